//! Reading `.npy` files of any number type, byte order and memory order.

use half::f16;
use ndarray::{ArrayD, IxDyn, ShapeBuilder};
use npyz::{DType, NpyFile, Order, TypeChar, TypeStr};
use std::fs;
use std::io;
use std::path::Path;

/// Reads an array; every number a 16- to 64-bit float or an integer below 2^53 can hold is exact.
///
/// # Errors
/// No such file, no NumPy array, a type that is not a number, or fewer or more bytes than the
/// header announces.
pub fn read(path: &Path) -> io::Result<ArrayD<f64>> {
    let bytes = fs::read(path)?;
    let mut unread = bytes.as_slice();
    let file = NpyFile::new(&mut unread)?;
    let DType::Plain(element) = file.dtype() else {
        return Err(invalid("structured arrays hold no single number type"));
    };
    let shape = extents(file.shape(), &element, bytes.len())?;
    let order = file.order();
    let data = file.into_inner();
    let values = decode(&element, data, shape.iter().product())?;
    let fortran = order == Order::Fortran;
    ArrayD::from_shape_vec(IxDyn(&shape).set_f(fortran), values).map_err(invalid)
}

/// The shape, once it is known that a file of `available` bytes could hold it: a broken header
/// must not make us allocate what it claims.
fn extents(shape: &[u64], element: &TypeStr, available: usize) -> io::Result<Vec<usize>> {
    let item = element.num_bytes().unwrap_or(1).max(1) as u64;
    let bytes = shape.iter().try_fold(item, |product, &extent| product.checked_mul(extent));
    if bytes.is_none_or(|bytes| bytes > available as u64) {
        return Err(invalid(format_args!(
            "the header announces shape {shape:?}, more than the file holds"
        )));
    }
    let extents = shape.iter().map(|&extent| usize::try_from(extent).map_err(invalid));
    extents.collect()
}

fn decode(element: &TypeStr, data: &[u8], len: usize) -> io::Result<Vec<f64>> {
    use TypeChar::{Bool, Float, Int, Uint};
    let kind = (element.type_char(), element.size_field());
    match kind {
        (Float, 2) => values(element, data, len, f16::to_f64),
        (Float, 4) => values(element, data, len, |value: f32| f64::from(value)),
        (Float, 8) => values(element, data, len, |value: f64| value),
        (Int, 1) => values(element, data, len, |value: i8| f64::from(value)),
        (Int, 2) => values(element, data, len, |value: i16| f64::from(value)),
        (Int, 4) => values(element, data, len, |value: i32| f64::from(value)),
        (Int, 8) => values(element, data, len, |value: i64| value as f64),
        (Uint, 1) => values(element, data, len, |value: u8| f64::from(value)),
        (Uint, 2) => values(element, data, len, |value: u16| f64::from(value)),
        (Uint, 4) => values(element, data, len, |value: u32| f64::from(value)),
        (Uint, 8) => values(element, data, len, |value: u64| value as f64),
        (Bool, _) => values(element, data, len, |value: bool| f64::from(u8::from(value))),
        _ => Err(invalid(format_args!("type {element} is not a number of 1 to 8 bytes"))),
    }
}

fn values<T: npyz::Deserialize>(
    element: &TypeStr,
    mut data: &[u8],
    len: usize,
    widen: impl Fn(T) -> f64,
) -> io::Result<Vec<f64>> {
    let reader = T::reader(&DType::Plain(element.clone())).map_err(invalid)?;
    let mut values = Vec::with_capacity(len);
    for _ in 0..len {
        values.push(widen(npyz::TypeRead::read_one(&reader, &mut data)?));
    }
    match data.len() {
        0 => Ok(values),
        extra => Err(invalid(format_args!("{extra} bytes follow the last element"))),
    }
}

fn invalid(reason: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_string())
}
