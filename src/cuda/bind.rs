//! Arguments of the GPU's calls, checked and bound: everything that can be refused is refused
//! here, before anything is launched.

use super::device::Device;
use super::launcher::{Launcher, MemoryRef};
use super::params::Params;
use super::plan::Alignment;
use super::workspace::Size;
use crate::arguments::{
    check_dresidual, check_no_mask, check_norm, check_residual, check_span, missing_mask,
    missing_residual, rank_count,
};
use crate::backend::{Affine, Norm, Running, RunningMut, SavedMut, SavedRef};
use crate::config::check_eps;
use crate::element::{DType, Element, Param, Scalar};
use crate::error::{Error, Result, check_len};
use crate::problem::{Operand, Problem};

/// The parameters of one call, and its buffers: held until it is launched, and checked against each
/// other.
pub(super) struct Bound<'a, L: Launcher> {
    launcher: &'a L,
    pub(super) params: Params,
    buffers: Vec<Named<L::Hold<'a>>>,
}

struct Named<H> {
    name: &'static str,
    written: bool,
    memory: MemoryRef<H>,
}

impl<'a, L: Launcher> Bound<'a, L> {
    /// `params` say what is not a buffer.
    pub(super) fn new(launcher: &'a L, params: Params) -> Self {
        Bound { launcher, params, buffers: Vec::with_capacity(16) }
    }

    fn memory<T: Scalar>(
        &self,
        name: &str,
        slice: &'a L::Slice<'_, T>,
    ) -> Result<MemoryRef<L::Hold<'a>>> {
        let memory = self.launcher.memory(slice).map_err(|error| error.renamed(name))?;
        check_address::<T, _>(name, &memory)?;
        Ok(memory)
    }

    fn memory_mut<T: Scalar>(
        &self,
        name: &str,
        slice: &'a mut L::SliceMut<'_, T>,
    ) -> Result<MemoryRef<L::Hold<'a>>> {
        let memory = self.launcher.memory_mut(slice).map_err(|error| error.renamed(name))?;
        check_address::<T, _>(name, &memory)?;
        Ok(memory)
    }

    fn keep(
        &mut self,
        name: &'static str,
        written: bool,
        memory: MemoryRef<L::Hold<'a>>,
    ) -> Result<u64> {
        let address = memory.address;
        let shared = self
            .buffers
            .iter()
            .find(|other| (written || other.written) && memory.overlaps(&other.memory));
        if let Some(other) = shared {
            let (output, input) = if written { (name, other.name) } else { (other.name, name) };
            return Err(Error::argument(
                output,
                "memory of its own",
                format_args!("memory that `{input}` has too"),
            ));
        }
        self.buffers.push(Named { name, written, memory });
        Ok(address)
    }

    /// `[len]` values that are read.
    pub(super) fn read<T: Scalar>(
        &mut self,
        name: &'static str,
        len: usize,
        slice: &'a L::Slice<'_, T>,
    ) -> Result<u64> {
        let memory = self.memory(name, slice)?;
        check_len(name, len, memory.bytes / size_of::<T>())?;
        self.keep(name, false, memory)
    }

    /// `[len]` values that are written.
    pub(super) fn write<T: Scalar>(
        &mut self,
        name: &'static str,
        len: usize,
        slice: &'a mut L::SliceMut<'_, T>,
    ) -> Result<u64> {
        let memory = self.memory_mut(name, slice)?;
        check_len(name, len, memory.bytes / size_of::<T>())?;
        self.keep(name, true, memory)
    }

    /// `[len]` values that are read, 0 if absent.
    fn read_optional<T: Scalar>(
        &mut self,
        name: &'static str,
        len: usize,
        slice: &'a Option<L::Slice<'_, T>>,
    ) -> Result<u64> {
        slice.as_ref().map_or(Ok(0), |slice| self.read(name, len, slice))
    }

    /// `[len]` values that are written, 0 if absent.
    fn write_optional<T: Scalar>(
        &mut self,
        name: &'static str,
        len: usize,
        slice: &'a mut Option<L::SliceMut<'_, T>>,
    ) -> Result<u64> {
        slice.as_mut().map_or(Ok(0), |slice| self.write(name, len, slice))
    }

    fn channels(&self) -> usize {
        self.params.channels as usize
    }
}

/// Tensors.
impl<'a, L: Launcher> Bound<'a, L> {
    fn address(&mut self, operand: Operand) -> &mut u64 {
        match operand {
            Operand::X => &mut self.params.x,
            Operand::Residual => &mut self.params.residual,
            Operand::Y => &mut self.params.y,
            Operand::Dy => &mut self.params.dy,
            Operand::Dx => &mut self.params.dx,
            Operand::Dresidual => &mut self.params.dresidual,
        }
    }

    /// A tensor that is read.
    pub(super) fn tensor<E: Element>(
        &mut self,
        problem: &Problem,
        operand: Operand,
        slice: &'a L::Slice<'_, E>,
    ) -> Result<()> {
        let memory = self.memory(operand.name(), slice)?;
        check_span(problem, operand, memory.bytes / size_of::<E>())?;
        *self.address(operand) = self.keep(operand.name(), false, memory)?;
        Ok(())
    }

    /// A tensor that is written.
    pub(super) fn tensor_mut<E: Element>(
        &mut self,
        problem: &Problem,
        operand: Operand,
        slice: &'a mut L::SliceMut<'_, E>,
    ) -> Result<()> {
        let memory = self.memory_mut(operand.name(), slice)?;
        check_span(problem, operand, memory.bytes / size_of::<E>())?;
        *self.address(operand) = self.keep(operand.name(), true, memory)?;
        Ok(())
    }

    /// The residual of forward.
    pub(super) fn residual<E: Element>(
        &mut self,
        problem: &Problem,
        residual: &'a Option<L::Slice<'_, E>>,
    ) -> Result<()> {
        check_residual(problem, residual.is_some())?;
        let Some(residual) = residual else { return Ok(()) };
        self.tensor::<E>(problem, Operand::Residual, residual)
    }

    /// What backward reads of tensors: the residual only where it `needs_residual` to know the
    /// pre-activation.
    pub(super) fn backward_inputs<E: Element>(
        &mut self,
        problem: &Problem,
        needs_residual: bool,
        x: &'a L::Slice<'_, E>,
        residual: &'a Option<L::Slice<'_, E>>,
        dy: &'a L::Slice<'_, E>,
    ) -> Result<()> {
        self.tensor::<E>(problem, Operand::X, x)?;
        if needs_residual {
            let residual = residual.as_ref().ok_or_else(|| missing_residual(problem))?;
            self.tensor::<E>(problem, Operand::Residual, residual)?;
        }
        self.tensor::<E>(problem, Operand::Dy, dy)
    }

    /// What backward writes of tensors: dx and dresidual.
    pub(super) fn backward_outputs<E: Element>(
        &mut self,
        problem: &Problem,
        dx: &'a mut L::SliceMut<'_, E>,
        dresidual: &'a mut Option<L::SliceMut<'_, E>>,
    ) -> Result<()> {
        check_dresidual(problem, dresidual.is_some())?;
        self.tensor_mut::<E>(problem, Operand::Dx, dx)?;
        let Some(dresidual) = dresidual else { return Ok(()) };
        self.tensor_mut::<E>(problem, Operand::Dresidual, dresidual)
    }

    /// How the tensors bound so far lie.
    pub(super) fn alignment(&self, problem: &Problem) -> Alignment {
        let params = &self.params;
        let operands = [
            (params.x, Operand::X),
            (params.residual, Operand::Residual),
            (params.y, Operand::Y),
            (params.dy, Operand::Dy),
            (params.dx, Operand::Dx),
            (params.dresidual, Operand::Dresidual),
        ];
        Alignment::of(problem, &operands)
    }

    pub(super) fn mask(
        &mut self,
        problem: &Problem,
        mask: &'a Option<L::Slice<'_, u8>>,
    ) -> Result<()> {
        let len = problem.mask_len();
        if len > 0 {
            let mask = mask.as_ref().ok_or_else(|| missing_mask("saved.mask", problem))?;
            self.params.mask = self.read("saved.mask", len, mask)?;
        } else if let Some(mask) = mask {
            check_no_mask("saved.mask", self.memory("saved.mask", mask)?.bytes)?;
        }
        Ok(())
    }

    pub(super) fn mask_mut(
        &mut self,
        name: &'static str,
        problem: &Problem,
        mask: &'a mut Option<L::SliceMut<'_, u8>>,
    ) -> Result<()> {
        let len = problem.mask_len();
        if len > 0 {
            let mask = mask.as_mut().ok_or_else(|| missing_mask(name, problem))?;
            self.params.mask = self.write(name, len, mask)?;
        } else if let Some(mask) = mask {
            check_no_mask(name, self.memory_mut(name, mask)?.bytes)?;
        }
        Ok(())
    }
}

/// The rest: what there is one of per channel, numbers, scratch.
impl<'a, L: Launcher> Bound<'a, L> {
    /// All that inference asks of a norm.
    pub(super) fn eps(&mut self, norm: &Norm) -> Result<()> {
        check_eps(norm.eps)?;
        self.params.eps = norm.eps;
        Ok(())
    }

    /// A momentum below 0 is the cumulative average.
    pub(super) fn norm(&mut self, norm: &Norm) -> Result<()> {
        check_norm(norm)?;
        (self.params.eps, self.params.momentum) = (norm.eps, norm.momentum.unwrap_or(-1.0));
        Ok(())
    }

    pub(super) fn affine<E: Element>(
        &mut self,
        affine: &'a Affine<'_, Device<L>, E>,
    ) -> Result<()> {
        let channels = self.channels();
        self.params.weight = self.read_optional("weight", channels, &affine.weight)?;
        self.params.bias = self.read_optional("bias", channels, &affine.bias)?;
        Ok(())
    }

    /// The gradients of weight and bias.
    pub(super) fn affine_gradients<P: Param>(
        &mut self,
        dweight: &'a mut Option<L::SliceMut<'_, P>>,
        dbias: &'a mut Option<L::SliceMut<'_, P>>,
    ) -> Result<()> {
        let channels = self.channels();
        self.params.dweight = self.write_optional("dweight", channels, dweight)?;
        self.params.dbias = self.write_optional("dbias", channels, dbias)?;
        Ok(())
    }

    pub(super) fn saved<E: Element>(
        &mut self,
        saved: &'a SavedRef<'_, Device<L>, E>,
    ) -> Result<()> {
        let channels = self.channels();
        self.params.mean_hi = self.read("saved.mean_hi", channels, &saved.mean_hi)?;
        self.params.mean_lo = self.read("saved.mean_lo", channels, &saved.mean_lo)?;
        self.params.invstd = self.read("saved.invstd", channels, &saved.invstd)?;
        Ok(())
    }

    pub(super) fn saved_mut<E: Element>(
        &mut self,
        saved: &'a mut SavedMut<'_, Device<L>, E>,
    ) -> Result<()> {
        let channels = self.channels();
        self.params.mean_hi = self.write("saved.mean_hi", channels, &mut saved.mean_hi)?;
        self.params.mean_lo = self.write("saved.mean_lo", channels, &mut saved.mean_lo)?;
        self.params.invstd = self.write("saved.invstd", channels, &mut saved.invstd)?;
        Ok(())
    }

    pub(super) fn running<E: Element>(
        &mut self,
        running: &'a Running<'_, Device<L>, E>,
    ) -> Result<()> {
        let channels = self.channels();
        self.params.running_mean = self.read("running_mean", channels, &running.mean)?;
        self.params.running_var = self.read("running_var", channels, &running.var)?;
        Ok(())
    }

    pub(super) fn running_mut<E: Element>(
        &mut self,
        running: &'a mut Option<RunningMut<'_, Device<L>, E>>,
    ) -> Result<()> {
        let Some(running) = running else { return Ok(()) };
        let channels = self.channels();
        self.params.running_mean = self.write("running_mean", channels, &mut running.mean)?;
        self.params.running_var = self.write("running_var", channels, &mut running.var)?;
        self.params.num_batches_tracked =
            self.write("num_batches_tracked", 1, &mut running.num_batches_tracked)?;
        Ok(())
    }

    /// What every rank has gathered: `rows` values per channel.
    pub(super) fn gathered(
        &mut self,
        name: &'static str,
        rows: usize,
        slice: &'a L::Slice<'_, f64>,
    ) -> Result<()> {
        let memory = self.memory(name, slice)?;
        let len = rows.saturating_mul(self.channels());
        self.params.ranks = rank_count(name, len, memory.bytes / size_of::<f64>())? as u64;
        self.params.moments = self.keep(name, false, memory)?;
        Ok(())
    }

    /// The workspace: counters and partial results of blocks; gives the address of what is left for
    /// the sums of a backward.
    pub(super) fn scratch(
        &mut self,
        size: Size,
        buffer: &'a mut L::SliceMut<'_, f64>,
    ) -> Result<u64> {
        let memory = self.memory_mut("workspace", buffer)?;
        // Of a caller's memory there may be more.
        if (memory.bytes as u64) < size.bytes() {
            let expected = format_args!("at least {} bytes", size.bytes());
            return Err(Error::argument("workspace", expected, memory.bytes));
        }
        self.params.counters = self.keep("workspace", true, memory)?;
        self.params.partials = self.params.counters + 8 * size.counters;
        Ok(self.params.partials + 8 * size.partials)
    }
}

/// Refuses an address at which there can be no `T`.
fn check_address<T, H>(name: &str, memory: &MemoryRef<H>) -> Result<()> {
    let size = size_of::<T>();
    if memory.bytes == 0 || (memory.address != 0 && memory.address.is_multiple_of(size as u64)) {
        return Ok(());
    }
    let expected = format_args!("an address that is a multiple of {size} and not 0");
    Err(Error::argument(name, expected, format_args!("{:#x}", memory.address)))
}

pub(super) fn check_dtype(argument: &str, dtype: DType) -> Result<()> {
    match dtype {
        DType::F64 => Err(Error::argument(argument, "f32, f16 or bf16 on a GPU", dtype)),
        DType::F32 | DType::F16 | DType::Bf16 => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f64_is_refused_by_name() {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            assert_eq!(check_dtype("x", dtype), Ok(()));
        }
        let error = check_dtype("P", DType::F64).unwrap_err().to_string();
        assert_eq!(error, "`P`: expected f32, f16 or bf16 on a GPU, found f64");
    }

    #[test]
    fn addresses_that_cannot_be_are_refused_by_name() {
        let check = |address, bytes| {
            let memory = MemoryRef { address, bytes, hold: () };
            check_address::<f32, _>("weight", &memory).map_err(|error| error.to_string())
        };
        let expected = "`weight`: expected an address that is a multiple of 4 and not 0, found ";
        assert_eq!(check(4096, 8), Ok(()));
        assert_eq!(check(4098, 8), Err(format!("{expected}0x1002")));
        assert_eq!(check(0, 8), Err(format!("{expected}0x0")));
        assert_eq!(check(0, 0), Ok(()));
    }
}
