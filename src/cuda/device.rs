//! [`Device`]: every call of [`Backend`] on a GPU, or whatever else launches the kernels.

use super::bind::{Bound, check_dtype};
use super::choice::Choice;
use super::launcher::{Launch, Launched, Launcher};
use super::params::Params;
use super::plan::{Alignment, BLOCK, Geometry, Pass, Plan, Tier};
use super::remembered::{Question, Remembered};
use super::workspace::{Size, Workspace};
use crate::backend::*;
use crate::config::Activation;
use crate::element::{DType, Element, Scalar};
use crate::error::Result;
use crate::problem::{Operand, Problem};

/// A device on which the kernels run: `Cuda`, or whatever else launches
/// them.
#[derive(Debug, Clone)]
pub struct Device<L: Launcher> {
    launcher: L,
    choice: Choice,
}

impl<L: Launcher> Device<L> {
    /// A backend over `launcher`.
    pub fn new(launcher: L) -> Self {
        Device { launcher, choice: Choice::Best }
    }

    /// Says where training passes keep their tensors between sweeps, for tests and measurements.
    /// What has no such plan streams. `None`, the default: what should be fastest.
    #[doc(hidden)]
    pub fn with_tier(self, tier: Option<Tier>) -> Self {
        self.with_choice(tier.into())
    }

    /// Says more of what plans training passes get. Workspaces are to be made afterwards: others may
    /// be too small.
    #[doc(hidden)]
    pub fn with_choice(self, choice: Choice) -> Self {
        Device { choice, ..self }
    }

    /// What runs the kernels.
    pub fn launcher(&self) -> &L {
        &self.launcher
    }

    /// Bytes on the device that [`workspace`](Backend::workspace) takes for `problem`, which this does not
    /// allocate.
    ///
    /// # Errors
    /// An element type that it does not take; a tensor that needs more blocks than a grid has.
    pub fn workspace_bytes(&self, problem: &Problem) -> Result<u64> {
        check_dtype("problem", problem.dtype())?;
        Ok(Size::of(problem, &self.launcher.facts(), self.choice)?.bytes())
    }

    /// A [`workspace`](Backend::workspace) in memory of the caller's, which is filled with zeros: at
    /// least [`workspace_bytes`](Self::workspace_bytes), from a multiple of 16 bytes on.
    /// [`Workspace::into_memory`] gives it back; what is refused is freed.
    ///
    /// # Errors
    /// As `workspace_bytes`; memory that is too small, lies elsewhere, or is another context's.
    pub fn workspace_in(&self, problem: &Problem, memory: L::Buffer<f64>) -> Result<Workspace<L>> {
        check_dtype("problem", problem.dtype())?;
        Workspace::within(&self.launcher, problem, self.choice, memory)
    }

    /// Begins a call on tensors of `E`.
    fn bind<E: Element>(&self, problem: &Problem) -> Result<Bound<'_, L>> {
        problem.check_dtype(E::DTYPE)?;
        check_dtype("x", E::DTYPE)?;
        Ok(Bound::new(&self.launcher, params_of(problem)))
    }

    /// Begins a call on what ranks have gathered.
    fn bind_ranks(&self, channels: usize) -> Bound<'_, L> {
        Bound::new(&self.launcher, Params { channels: channels as u64, ..Params::default() })
    }

    fn question(&self, pass: Pass, problem: &Problem, alignments: [Alignment; 2]) -> Question {
        let (choice, facts) = (self.choice, self.launcher.facts());
        Question { pass, choice, alignments, problem: *problem, facts }
    }

    /// A training pass: on chip as planned, or streaming where the device turns out to hold too few
    /// blocks together. That may have passed by the next call, which tries again.
    fn train(
        &self,
        question: Question,
        remembered: &mut Remembered,
        size: Size,
        params: &Params,
    ) -> Result<()> {
        let mut chosen = remembered.plans(question)?;
        size.check(&question.problem, chosen)?;
        if let [resident] = chosen {
            let launched = self.try_launch(resident, params, false)?;
            if launched == Launched::Enqueued || matches!(question.choice, Choice::Parts(..)) {
                return launched.required(&resident.kernel);
            }
            let choice = Choice::Tier(Tier::Streaming);
            chosen = remembered.plans(Question { choice, ..question })?;
            size.check(&question.problem, chosen)?;
        }
        self.launch(chosen, params)
    }

    /// A pass of sums, for which the workspace must have room.
    fn launch_sums(
        &self,
        question: Question,
        remembered: &mut Remembered,
        size: Size,
        params: &Params,
    ) -> Result<()> {
        let plans = remembered.plans(question)?;
        size.check(&question.problem, plans)?;
        self.launch(plans, params)
    }

    /// A pass without sums: it takes no scratch, and has nothing to do for no elements.
    fn launch_elementwise(
        &self,
        pass: Pass,
        problem: &Problem,
        bound: &Bound<'_, L>,
        workspace: &mut Workspace<L>,
    ) -> Result<()> {
        if problem.elements() == 0 {
            return Ok(());
        }
        let question = self.question(pass, problem, [bound.alignment(problem); 2]);
        self.launch(workspace.remembered.plans(question)?, &bound.params)
    }

    /// What needs no blocks to be resident together.
    fn launch(&self, plans: &[Plan], params: &Params) -> Result<()> {
        // The second reads what the first has found, after it has waited for it.
        for (plan, is_second) in plans.iter().zip([false, true]) {
            self.try_launch(plan, params, is_second)?.required(&plan.kernel)?;
        }
        Ok(())
    }

    fn try_launch(&self, plan: &Plan, params: &Params, early: bool) -> Result<Launched> {
        let params = with_geometry(*params, plan);
        self.launcher.launch(&Launch {
            kernel: &plan.kernel,
            grid: plan.grid,
            block: BLOCK,
            shared_bytes: plan.shared_bytes,
            is_cooperative: plan.tier == Tier::Grid,
            cluster: if plan.tier == Tier::Cluster { plan.parts } else { 1 },
            may_begin_early: early,
            params: bytemuck::bytes_of(&params),
        })
    }

    fn launch_kernel(&self, kernel: &str, grid: u32, params: &Params) -> Result<()> {
        let launched = self.launcher.launch(&Launch {
            kernel,
            grid,
            block: BLOCK,
            shared_bytes: 0,
            is_cooperative: false,
            cluster: 1,
            may_begin_early: false,
            params: bytemuck::bytes_of(params),
        })?;
        launched.required(kernel)
    }
}

/// Shape, strides and activation.
fn params_of(problem: &Problem) -> Params {
    let stride = |operand| problem.batch_stride(operand) as u64;
    let epilogue = problem.epilogue();
    Params {
        samples: problem.batch() as u64,
        channels: problem.channels() as u64,
        spatial: problem.spatial() as u64,
        x_stride: stride(Operand::X),
        residual_stride: stride(Operand::Residual),
        y_stride: stride(Operand::Y),
        dy_stride: stride(Operand::Dy),
        dx_stride: stride(Operand::Dx),
        dresidual_stride: stride(Operand::Dresidual),
        is_bf16: (problem.dtype() == DType::Bf16).into(),
        activation: activation_kind(epilogue.activation),
        negative_slope: match epilogue.activation {
            Activation::LeakyRelu { negative_slope } => negative_slope as f32,
            _ => 0.0,
        },
        ..Params::default()
    }
}

fn activation_kind(activation: Activation) -> u32 {
    use super::params::*;
    match activation {
        Activation::Identity => ActivationKind_ACTIVATION_IDENTITY,
        Activation::Relu => ActivationKind_ACTIVATION_RELU,
        Activation::LeakyRelu { .. } => ActivationKind_ACTIVATION_LEAKY_RELU,
        Activation::Relu6 => ActivationKind_ACTIVATION_RELU6,
        Activation::Sigmoid => ActivationKind_ACTIVATION_SIGMOID,
        Activation::Tanh => ActivationKind_ACTIVATION_TANH,
        Activation::Silu => ActivationKind_ACTIVATION_SILU,
        Activation::Gelu => ActivationKind_ACTIVATION_GELU,
        Activation::GeluTanh => ActivationKind_ACTIVATION_GELU_TANH,
    }
}

fn with_geometry(params: Params, plan: &Plan) -> Params {
    let (parts, slots, groups) = (plan.parts, plan.slots, plan.groups);
    let (tile_bytes, shelf_at) = (plan.tile_bytes, plan.shelf_at);
    let (spares_cache, late_by) = (plan.spares_cache.into(), plan.late_by);
    let params = Params { parts, slots, groups, tile_bytes, shelf_at, ..params };
    let params = Params { spares_cache, late_by, ..params };
    match plan.geometry {
        Geometry::Planes { misalignment, boundary, windows, windows_per_part } => {
            Params { misalignment, boundary, windows, windows_per_part, ..params }
        }
        Geometry::Columns {
            rows,
            columns,
            rows_per_sample,
            rows_per_part,
            columns_per_channel,
            packs_per_tile,
            rows_abreast,
        } => Params {
            rows,
            columns,
            rows_per_sample,
            rows_per_part,
            columns_per_channel,
            packs_per_tile,
            rows_abreast,
            ..params
        },
    }
}

impl<L: Launcher> Backend for Device<L> {
    type Buffer<T: Scalar> = L::Buffer<T>;
    type Slice<'a, T: Scalar> = L::Slice<'a, T>;
    type SliceMut<'a, T: Scalar> = L::SliceMut<'a, T>;
    type Workspace = Workspace<L>;

    fn zeros<T: Scalar>(&self, len: usize) -> Result<L::Buffer<T>> {
        self.launcher.zeros(len)
    }

    fn upload<T: Scalar>(&self, values: &[T]) -> Result<L::Buffer<T>> {
        self.launcher.upload(values)
    }

    fn download<T: Scalar>(&self, buffer: &L::Buffer<T>) -> Result<Vec<T>> {
        self.launcher.download(buffer)
    }

    fn duplicate<T: Scalar>(&self, buffer: &L::Buffer<T>) -> Result<L::Buffer<T>> {
        self.launcher.duplicate(buffer)
    }

    fn len<T: Scalar>(buffer: &L::Buffer<T>) -> usize {
        L::len(buffer)
    }

    fn slice<T: Scalar>(buffer: &L::Buffer<T>) -> L::Slice<'_, T> {
        L::slice(buffer)
    }

    fn slice_mut<T: Scalar>(buffer: &mut L::Buffer<T>) -> L::SliceMut<'_, T> {
        L::slice_mut(buffer)
    }

    fn workspace(&self, problem: &Problem) -> Result<Workspace<L>> {
        check_dtype("problem", problem.dtype())?;
        Workspace::new(&self.launcher, problem, self.choice)
    }

    fn check_dtype(&self, dtype: DType) -> Result<()> {
        check_dtype("dtype", dtype)
    }

    fn forward_train<E: Element>(
        &self,
        problem: &Problem,
        norm: &Norm,
        args: ForwardTrain<'_, Self, E>,
    ) -> Result<()> {
        let ForwardTrain { x, residual, affine, mut running, mut y, saved, workspace } = args;
        let SavedMut { mean_hi, mean_lo, invstd, mut mask } = saved;
        let mut saved = SavedMut::<Self, E> { mean_hi, mean_lo, invstd, mask: None };
        let mut buffer = L::slice_mut(&mut workspace.buffer);

        let mut bound = self.bind::<E>(problem)?;
        problem.check_trainable(problem.values_per_channel())?;
        bound.norm(norm)?;
        bound.tensor::<E>(problem, Operand::X, &x)?;
        let alone = bound.alignment(problem);
        bound.residual::<E>(problem, &residual)?;
        bound.affine(&affine)?;
        bound.running_mut(&mut running)?;
        bound.tensor_mut::<E>(problem, Operand::Y, &mut y)?;
        bound.saved_mut(&mut saved)?;
        bound.mask_mut("saved.mask", problem, &mut mask)?;
        bound.scratch(workspace.size, &mut buffer)?;

        let question = self.question(Pass::Forward, problem, [alone, bound.alignment(problem)]);
        self.train(question, &mut workspace.remembered, workspace.size, &bound.params)
    }

    fn backward_train<E: Element>(
        &self,
        problem: &Problem,
        args: BackwardTrain<'_, Self, E>,
    ) -> Result<()> {
        let BackwardTrain { x, residual, dy, affine, saved, gradients, workspace } = args;
        let GradientsMut { mut dx, mut dresidual, mut dweight, mut dbias } = gradients;
        let needs_residual = problem.epilogue().backward_reads_residual();
        let mut buffer = L::slice_mut(&mut workspace.buffer);

        let mut bound = self.bind::<E>(problem)?;
        problem.check_trainable(problem.values_per_channel())?;
        bound.backward_inputs::<E>(problem, needs_residual, &x, &residual, &dy)?;
        let inputs = bound.alignment(problem);
        bound.affine(&affine)?;
        bound.saved(&saved)?;
        bound.mask(problem, &saved.mask)?;
        bound.backward_outputs::<E>(problem, &mut dx, &mut dresidual)?;
        bound.affine_gradients(&mut dweight, &mut dbias)?;
        bound.params.sums = bound.scratch(workspace.size, &mut buffer)?;

        let question = self.question(Pass::Backward, problem, [inputs, bound.alignment(problem)]);
        self.train(question, &mut workspace.remembered, workspace.size, &bound.params)
    }

    fn inference<E: Element>(
        &self,
        problem: &Problem,
        norm: &Norm,
        args: Inference<'_, Self, E>,
    ) -> Result<()> {
        let Inference { x, residual, affine, running, mut y, workspace } = args;
        let mut bound = self.bind::<E>(problem)?;
        bound.eps(norm)?;
        bound.tensor::<E>(problem, Operand::X, &x)?;
        bound.residual::<E>(problem, &residual)?;
        bound.affine(&affine)?;
        bound.running(&running)?;
        bound.tensor_mut::<E>(problem, Operand::Y, &mut y)?;
        self.launch_elementwise(Pass::Inference, problem, &bound, workspace)
    }

    fn inference_inplace<E: Element>(
        &self,
        problem: &Problem,
        norm: &Norm,
        args: InferenceInplace<'_, Self, E>,
    ) -> Result<()> {
        let InferenceInplace { mut x, residual, affine, running, workspace } = args;
        let mut bound = self.bind::<E>(problem)?;
        bound.eps(norm)?;
        bound.tensor_mut::<E>(problem, Operand::X, &mut x)?;
        bound.params.y = bound.params.x;
        bound.params.y_stride = bound.params.x_stride;
        bound.residual::<E>(problem, &residual)?;
        bound.affine(&affine)?;
        bound.running(&running)?;
        self.launch_elementwise(Pass::Inference, problem, &bound, workspace)
    }

    fn inference_backward<E: Element>(
        &self,
        problem: &Problem,
        norm: &Norm,
        args: InferenceBackward<'_, Self, E>,
    ) -> Result<()> {
        let InferenceBackward { x, residual, dy, affine, running, gradients, workspace } = args;
        let GradientsMut { mut dx, mut dresidual, mut dweight, mut dbias } = gradients;
        let needs_residual = problem.epilogue().inference_backward_reads_residual();
        let mut buffer = L::slice_mut(&mut workspace.buffer);

        let mut bound = self.bind::<E>(problem)?;
        bound.eps(norm)?;
        bound.backward_inputs::<E>(problem, needs_residual, &x, &residual, &dy)?;
        bound.affine(&affine)?;
        bound.running(&running)?;
        bound.backward_outputs::<E>(problem, &mut dx, &mut dresidual)?;
        bound.affine_gradients(&mut dweight, &mut dbias)?;
        bound.scratch(workspace.size, &mut buffer)?;

        let question = self.question(Pass::Frozen, problem, [bound.alignment(problem); 2]);
        self.launch_sums(question, &mut workspace.remembered, workspace.size, &bound.params)
    }

    fn statistics<E: Element>(
        &self,
        problem: &Problem,
        x: Self::Slice<'_, E>,
        mut moments: Self::SliceMut<'_, f64>,
        workspace: &mut Workspace<L>,
    ) -> Result<()> {
        let mut buffer = L::slice_mut(&mut workspace.buffer);
        let len = MOMENT_ROWS * problem.channels();

        let mut bound = self.bind::<E>(problem)?;
        bound.tensor::<E>(problem, Operand::X, &x)?;
        bound.params.moments = bound.write("moments", len, &mut moments)?;
        bound.scratch(workspace.size, &mut buffer)?;

        let question = self.question(Pass::Statistics, problem, [bound.alignment(problem); 2]);
        self.launch_sums(question, &mut workspace.remembered, workspace.size, &bound.params)
    }

    fn merge_statistics<E: Element>(
        &self,
        channels: usize,
        norm: &Norm,
        args: MergeStatistics<'_, Self, E>,
    ) -> Result<()> {
        let MergeStatistics { moments, mut running, mut saved } = args;
        check_dtype("saved", E::DTYPE)?;
        let mut bound = self.bind_ranks(channels);
        bound.norm(norm)?;
        bound.gathered("moments", MOMENT_ROWS, &moments)?;
        bound.running_mut(&mut running)?;
        bound.saved_mut(&mut saved)?;
        self.launch_kernel("merge_statistics_of_ranks", 1, &bound.params)
    }

    fn apply<E: Element>(&self, problem: &Problem, args: Apply<'_, Self, E>) -> Result<()> {
        let Apply { x, residual, affine, mut y, saved, mut mask, workspace } = args;
        let mut bound = self.bind::<E>(problem)?;
        bound.tensor::<E>(problem, Operand::X, &x)?;
        bound.residual::<E>(problem, &residual)?;
        bound.affine(&affine)?;
        bound.saved(&saved)?;
        bound.tensor_mut::<E>(problem, Operand::Y, &mut y)?;
        bound.mask_mut("mask", problem, &mut mask)?;
        self.launch_elementwise(Pass::Apply, problem, &bound, workspace)
    }

    fn backward_reduce<E: Element>(
        &self,
        problem: &Problem,
        args: BackwardReduce<'_, Self, E>,
    ) -> Result<()> {
        let BackwardReduce {
            x,
            residual,
            dy,
            affine,
            saved,
            mut sums,
            mut dweight,
            mut dbias,
            workspace,
        } = args;
        let needs_residual = problem.epilogue().backward_reads_residual();
        let mut buffer = L::slice_mut(&mut workspace.buffer);
        let len = SUM_ROWS * problem.channels();

        let mut bound = self.bind::<E>(problem)?;
        bound.backward_inputs::<E>(problem, needs_residual, &x, &residual, &dy)?;
        bound.affine(&affine)?;
        bound.saved(&saved)?;
        bound.mask(problem, &saved.mask)?;
        bound.params.sums = bound.write("sums", len, &mut sums)?;
        bound.affine_gradients(&mut dweight, &mut dbias)?;
        bound.scratch(workspace.size, &mut buffer)?;

        let question = self.question(Pass::Reduce, problem, [bound.alignment(problem); 2]);
        self.launch_sums(question, &mut workspace.remembered, workspace.size, &bound.params)
    }

    fn merge_sums(
        &self,
        channels: usize,
        gathered: Self::Slice<'_, f64>,
        mut sums: Self::SliceMut<'_, f64>,
    ) -> Result<()> {
        let mut bound = self.bind_ranks(channels);
        bound.gathered("gathered", SUM_ROWS, &gathered)?;
        bound.params.sums = bound.write("sums", SUM_ROWS * channels, &mut sums)?;
        let grid = channels.div_ceil(BLOCK as usize) as u32;
        self.launch_kernel("merge_sums_of_ranks", grid, &bound.params)
    }

    fn backward_apply<E: Element>(
        &self,
        problem: &Problem,
        args: BackwardApply<'_, Self, E>,
    ) -> Result<()> {
        let BackwardApply {
            x,
            residual,
            dy,
            affine,
            saved,
            sums,
            mut dx,
            mut dresidual,
            workspace,
        } = args;
        let needs_residual = problem.epilogue().backward_reads_residual();

        let mut bound = self.bind::<E>(problem)?;
        bound.backward_inputs::<E>(problem, needs_residual, &x, &residual, &dy)?;
        bound.affine(&affine)?;
        bound.saved(&saved)?;
        bound.mask(problem, &saved.mask)?;
        bound.params.sums = bound.read("sums", SUM_ROWS * problem.channels(), &sums)?;
        bound.backward_outputs::<E>(problem, &mut dx, &mut dresidual)?;
        self.launch_elementwise(Pass::Gradient, problem, &bound, workspace)
    }
}
