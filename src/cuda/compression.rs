//! The images' compression: lzip, whose checksum tells a damaged image. The build script shares it.

// Each side uses its part.
#![allow(dead_code)]

use lzma_rust2::{LzipOptions, LzipReader, LzipWriter};
use std::io::{Read, Result, Write};

/// For what is compressed once and kept.
pub const BEST: u32 = 6;
/// For what somebody waits for.
pub const FAST: u32 = 1;

/// `bytes` in fewer, with `effort` of 0 to 9.
pub fn compress(bytes: &[u8], effort: u32) -> Result<Vec<u8>> {
    let mut writer = LzipWriter::new(Vec::new(), LzipOptions::with_preset(effort));
    writer.write_all(bytes)?;
    writer.finish()
}

/// What was compressed, or an error where it is no longer whole.
pub fn decompress(compressed: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    LzipReader::new(compressed).read_to_end(&mut bytes)?;
    Ok(bytes)
}
