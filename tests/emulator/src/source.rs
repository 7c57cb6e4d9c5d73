//! Which line of a kernel an address in the program stands for.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Lines by address: a look-up reads all of the program's debug information.
static KNOWN: LazyLock<Mutex<HashMap<u64, Option<String>>>> = LazyLock::new(Mutex::default);

/// File and line of the call that returns to an address, where `addr2line` is there to find them.
pub(crate) fn line(returns_to: u64) -> Option<String> {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.entry(returns_to).or_insert_with(|| look_up(returns_to)).clone()
}

fn look_up(returns_to: u64) -> Option<String> {
    let call = returns_to.checked_sub(1)?;
    let program = std::env::current_exe().ok()?;
    let output =
        Command::new("addr2line").arg("-e").arg(program).arg(format!("{call:#x}")).output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    let (path, line) = text.lines().next()?.split_once(':')?;
    let file = Path::new(path).file_name()?.to_str()?;
    let number = line.split(' ').next()?;
    (file != "??" && number != "?").then(|| format!("{file} line {number}"))
}
