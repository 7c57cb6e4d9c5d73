//! Memory whose size follows from what a caller asks for.

use crate::error::{Error, Result};

/// `len` times `value`. What does not fit memory is an error, where `vec!` panics or aborts.
pub(crate) fn filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values
        .try_reserve_exact(len)
        .map_err(|error| Error::out_of_memory(format!("memory for {len} values"), error))?;
    values.resize(len, value);
    Ok(values)
}
