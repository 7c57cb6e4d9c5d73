//! Tests of what the benchmarks decide without measuring anything: what is measured, on how many
//! tensors and in how much memory, what of it is right, what cuDNN is told and what is kept of it. No timing, no GPU.

#[path = "../../benches/shared/calls.rs"]
#[allow(dead_code, reason = "some is for GPUs")]
mod calls;
#[path = "../../benches/shared/cases.rs"]
#[allow(dead_code, reason = "not all of it is tested")]
mod cases;
#[path = "../../benches/cuda/cudnn/describe.rs"]
#[allow(dead_code, reason = "not all of it is tested")]
mod describe;
#[path = "../../examples/report/files.rs"]
#[allow(dead_code, reason = "some is for the report")]
mod files;
#[path = "../../examples/report/id.rs"]
#[allow(dead_code, reason = "not all of it is used here")]
mod id;
#[path = "../../benches/cuda/cudnn/loaded.rs"]
mod loaded;
#[path = "../../benches/cuda/sampling.rs"]
mod sampling;
#[path = "../../benches/shared/score.rs"]
mod score;

#[path = "cases.rs"]
mod cases_test;
#[path = "cudnn.rs"]
mod cudnn_test;
#[path = "memory.rs"]
mod memory_test;
#[path = "record.rs"]
mod record_test;
#[path = "sampling.rs"]
mod sampling_test;
#[path = "score.rs"]
mod score_test;
