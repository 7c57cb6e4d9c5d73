//! Which line of a kernel an address in the program stands for.

use std::path::Path;
use std::process::Command;

/// File and line, where `addr2line` is there to find them. The address is one to return to.
pub(crate) fn line(returns_to: u64) -> Option<String> {
    let call = returns_to.checked_sub(1)?;
    let program = std::env::current_exe().ok()?;
    let output =
        Command::new("addr2line").arg("-e").arg(program).arg(format!("{call:#x}")).output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    let (path, line) = text.lines().next()?.split_once(':')?;
    let file = Path::new(path).file_name()?.to_str()?;
    let number = line.split(' ').next()?;
    (file != "??" && number != "?").then(|| format!("after {file} line {number}"))
}
