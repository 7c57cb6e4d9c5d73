//! The kernels that `warpnorm` was built with.

use crate::decode::program;
use crate::program::Program;
use std::sync::{Arc, OnceLock};
use warpnorm::cuda::images::images;
use warpnorm::cuda::target::Target;

/// The least that kernels are compiled for, which has no asynchronous copies, no clusters and no bf16;
/// and what has all of it.
pub const CAPABILITIES: [u32; 2] = [75, 90];

/// What the build embeds as PTX for one of [`CAPABILITIES`]; `None`: nothing, as without NVRTC.
///
/// # Panics
/// If it cannot be read.
pub fn embedded(capability: u32) -> Option<&'static Arc<Program>> {
    static KERNELS: [OnceLock<Option<Arc<Program>>>; 2] = [const { OnceLock::new() }; 2];
    let place = CAPABILITIES.iter().position(|one| *one == capability)?;
    let kernels = KERNELS[place].get_or_init(|| {
        let units = images().iter().filter(|image| image.target == Target::Ptx(capability));
        let texts: Vec<_> = units.map(|unit| unit.decompress().expect("it is whole")).collect();
        let texts = texts.iter().map(|text| str::from_utf8(text).expect("PTX is text"));
        let program = program(texts).unwrap_or_else(|error| panic!("{error}"));
        (!program.is_empty()).then(|| Arc::new(program))
    });
    kernels.as_ref()
}
