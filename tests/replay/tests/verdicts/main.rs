//! Verdicts: what must fail does, and says why.

mod command;
#[cfg(emulated)]
mod emulated;
mod folders;
mod scoring;
mod support;
