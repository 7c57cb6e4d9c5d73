//! Verdicts: what must fail does, and says why.

mod command;
mod folders;
mod scoring;
mod support;
