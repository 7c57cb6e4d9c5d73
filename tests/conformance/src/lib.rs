//! Checks of the CUDA kernels and of the calls around them that hold wherever they run: in the
//! emulator (`tests/emulator`), as PTX (`tests/ptx`) and on a GPU (`tests/gpu`). A check panics where
//! it fails.

#[allow(missing_docs, reason = "the library's own tests compile this file too")]
#[path = "../../suite/common/mod.rs"]
pub mod suite;

mod batch_norm;
mod calls;
pub mod devices;
pub mod document;
mod long_shares;
mod views;

use half::{bf16, f16};
use warpnorm::cuda::{Device, Launcher, Tier};
use warpnorm::{Activation, Epilogue, Scalar};

/// What is checked.
pub trait Subject: 'static {
    /// What runs the kernels.
    type Launcher: Launcher;

    /// Where its training passes are to keep their tensors. What has no such plan streams.
    fn tier(&self) -> Tier;

    /// Of cases that are much alike it checks one in so many: more where each takes long.
    fn one_in(&self) -> usize {
        1
    }

    /// A device of that tier. The emulator's schedule follows from `seed`; a GPU has its own.
    fn device(&self, seed: u64) -> Device<Self::Launcher>;

    /// The elements of a buffer from `start` on.
    fn part<T: Scalar>(buffer: &BufferOf<Self, T>, start: usize) -> SliceOf<'_, Self, T>;

    /// The elements of a buffer from `start` on.
    fn part_mut<T: Scalar>(buffer: &mut BufferOf<Self, T>, start: usize)
    -> SliceMutOf<'_, Self, T>;
}

/// Memory of a subject's device.
pub type BufferOf<S, T> = <<S as Subject>::Launcher as Launcher>::Buffer<T>;
/// Part of it, to read.
pub type SliceOf<'a, S, T> = <<S as Subject>::Launcher as Launcher>::Slice<'a, T>;
/// Part of it, to write.
pub type SliceMutOf<'a, S, T> = <<S as Subject>::Launcher as Launcher>::SliceMut<'a, T>;
/// A subject's device as a backend.
type DeviceOf<S> = Device<<S as Subject>::Launcher>;

/// A check and its name.
pub struct Check<S> {
    /// `file::what::element`.
    pub name: &'static str,
    /// Panics if it does not hold.
    pub run: Run<S>,
}

impl<S> Check<S> {
    /// Whether it has something to say of a tier that it has not said of streaming: it is about
    /// training passes, and where it is about long shares, the tier has such.
    pub fn concerns(&self, tier: Tier) -> bool {
        match tier {
            Tier::Streaming => true,
            Tier::Grid => !self.name.starts_with("calls::"),
            Tier::Block | Tier::Cluster => {
                !self.name.starts_with("calls::") && !self.name.starts_with("long_shares::")
            }
        }
    }
}

type Run<S> = fn(&S);

/// Every check; those that take longest come first.
pub fn checks<S: Subject>() -> Vec<Check<S>> {
    let checks: [(&str, Run<S>); 41] = [
        ("long_shares::lose_no_digits::f32", long_shares::in_f32),
        ("long_shares::lose_no_digits::bf16", long_shares::in_bf16),
        ("long_shares::lose_no_digits::f16", long_shares::in_f16),
        ("batch_norm::every_epilogue::f32", batch_norm::every_epilogue::<S, f32>),
        ("batch_norm::every_epilogue::f16", batch_norm::every_epilogue::<S, f16>),
        ("batch_norm::every_epilogue::bf16", batch_norm::every_epilogue::<S, bf16>),
        ("views::tensors_begin_anywhere::f32", views::tensors_begin_anywhere::<S, f32>),
        ("views::tensors_begin_anywhere::f16", views::tensors_begin_anywhere::<S, f16>),
        ("views::masks_of_odd_planes::f32", views::masks_of_odd_planes::<S, f32>),
        ("views::masks_of_odd_planes::f16", views::masks_of_odd_planes::<S, f16>),
        ("views::masks_of_odd_planes::bf16", views::masks_of_odd_planes::<S, bf16>),
        ("batch_norm::a_stride_for_every_operand::f32", batch_norm::strides::<S, f32>),
        ("batch_norm::a_stride_for_every_operand::bf16", batch_norm::strides::<S, bf16>),
        ("batch_norm::a_scaled_twin_of_a_real_shape::f32", batch_norm::real_shapes::<S, f32>),
        ("batch_norm::a_scaled_twin_of_a_real_shape::f16", batch_norm::real_shapes::<S, f16>),
        ("batch_norm::rows_abreast::f32", batch_norm::rows_abreast::<S, f32>),
        ("batch_norm::rows_abreast::f16", batch_norm::rows_abreast::<S, f16>),
        ("batch_norm::rows_abreast::bf16", batch_norm::rows_abreast::<S, bf16>),
        ("batch_norm::the_same_bits_again", batch_norm::the_same_bits_again),
        ("batch_norm::a_mean_far_from_zero", batch_norm::a_mean_far_from_zero),
        ("batch_norm::huge_and_tiny_values::f32", batch_norm::huge_and_tiny_values::<S, f32>),
        ("batch_norm::huge_and_tiny_values::bf16", batch_norm::huge_and_tiny_values::<S, bf16>),
        ("batch_norm::constant_channels::f32", batch_norm::constant_channels::<S, f32>),
        ("batch_norm::constant_channels::f16", batch_norm::constant_channels::<S, f16>),
        ("batch_norm::constant_channels::bf16", batch_norm::constant_channels::<S, bf16>),
        ("batch_norm::a_nan_stays_in_its_channel", batch_norm::a_nan_stays_in_its_channel),
        ("calls::ranks_give_what_the_batch_gives::f32", calls::ranks::<S, f32>),
        ("calls::ranks_give_what_the_batch_gives::bf16", calls::ranks::<S, bf16>),
        ("calls::inference_in_place::f32", calls::inference_in_place::<S, f32>),
        ("calls::inference_in_place::f16", calls::inference_in_place::<S, f16>),
        ("calls::inference_in_place::bf16", calls::inference_in_place::<S, bf16>),
        ("calls::a_batch_of_nothing", calls::a_batch_of_nothing),
        ("calls::one_sample_of_a_larger_array", calls::one_sample_of_a_larger_array),
        ("calls::one_value_over_all_ranks", calls::one_value_over_all_ranks),
        ("calls::refused_calls_change_nothing", calls::refused_calls_change_nothing),
        ("calls::a_workspace_of_a_smaller_problem", calls::a_workspace_of_a_smaller_problem),
        (
            "calls::a_workspace_in_memory_of_the_caller_s",
            calls::a_workspace_in_memory_of_the_caller_s,
        ),
        ("calls::what_a_gpu_does_not_do", calls::what_a_gpu_does_not_do),
        ("calls::a_used_workspace_changes_no_bit", calls::a_used_workspace_changes_no_bit),
        ("calls::a_duplicate_has_buffers_of_its_own", calls::a_duplicate_has_buffers_of_its_own),
        ("calls::the_cumulative_average", calls::the_cumulative_average),
    ];
    checks.into_iter().map(|(name, run)| Check { name, run }).collect()
}

const ADD_RELU: Epilogue = Epilogue { activation: Activation::Relu, residual: true };
