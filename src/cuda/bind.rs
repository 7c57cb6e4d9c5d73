//! Arguments of the GPU's calls, checked and bound: everything that can be refused is refused
//! here, before anything is launched.

use super::device::Device;
use super::launcher::{Launcher, MemoryRef};
use super::params::Params;
use super::workspace::Size;
use crate::arguments::{
    check_dresidual, check_norm, check_residual, check_span, missing_mask, missing_residual,
    rank_count,
};
use crate::backend::{Affine, Norm, Running, RunningMut, SavedMut, SavedRef};
use crate::element::{DType, Element, Scalar};
use crate::error::{Error, Result, check_len};
use crate::problem::{Operand, Problem};

/// The buffers of one call: held until it is launched, and checked against each other.
pub(super) struct Bound<'a, L: Launcher> {
    launcher: &'a L,
    buffers: Vec<Named<L::Hold<'a>>>,
}

struct Named<H> {
    name: &'static str,
    written: bool,
    memory: MemoryRef<H>,
}

impl<'a, L: Launcher> Bound<'a, L> {
    pub(super) fn new(launcher: &'a L) -> Self {
        Bound { launcher, buffers: Vec::with_capacity(16) }
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

    /// [`read`](Self::read), 0 if absent.
    pub(super) fn read_optional<T: Scalar>(
        &mut self,
        name: &'static str,
        len: usize,
        slice: &'a Option<L::Slice<'_, T>>,
    ) -> Result<u64> {
        slice.as_ref().map_or(Ok(0), |slice| self.read(name, len, slice))
    }

    /// [`write`](Self::write), 0 if absent.
    pub(super) fn write_optional<T: Scalar>(
        &mut self,
        name: &'static str,
        len: usize,
        slice: &'a mut Option<L::SliceMut<'_, T>>,
    ) -> Result<u64> {
        slice.as_mut().map_or(Ok(0), |slice| self.write(name, len, slice))
    }

    /// What `ranks` ranks have gathered, `len` values each; its address and the ranks.
    pub(super) fn gathered(
        &mut self,
        name: &'static str,
        len: usize,
        slice: &'a L::Slice<'_, f64>,
    ) -> Result<(u64, u64)> {
        let memory = self.memory(name, slice)?;
        let ranks = rank_count(name, len, memory.bytes / size_of::<f64>())?;
        Ok((self.keep(name, false, memory)?, ranks as u64))
    }

    /// A tensor that is read.
    pub(super) fn tensor<E: Element>(
        &mut self,
        problem: &Problem,
        operand: Operand,
        slice: &'a L::Slice<'_, E>,
    ) -> Result<u64> {
        let memory = self.memory(operand.name(), slice)?;
        check_span(problem, operand, memory.bytes / size_of::<E>())?;
        self.keep(operand.name(), false, memory)
    }

    /// A tensor that is written.
    pub(super) fn tensor_mut<E: Element>(
        &mut self,
        problem: &Problem,
        operand: Operand,
        slice: &'a mut L::SliceMut<'_, E>,
    ) -> Result<u64> {
        let memory = self.memory_mut(operand.name(), slice)?;
        check_span(problem, operand, memory.bytes / size_of::<E>())?;
        self.keep(operand.name(), true, memory)
    }
}

impl<'a, L: Launcher> Bound<'a, L> {
    pub(super) fn affine<E: Element>(
        &mut self,
        channels: usize,
        affine: &'a Affine<'_, Device<L>, E>,
        params: &mut Params,
    ) -> Result<()> {
        params.weight = self.read_optional("weight", channels, &affine.weight)?;
        params.bias = self.read_optional("bias", channels, &affine.bias)?;
        Ok(())
    }

    pub(super) fn saved<E: Element>(
        &mut self,
        channels: usize,
        saved: &'a SavedRef<'_, Device<L>, E>,
        params: &mut Params,
    ) -> Result<()> {
        params.mean_hi = self.read("saved.mean_hi", channels, &saved.mean_hi)?;
        params.mean_lo = self.read("saved.mean_lo", channels, &saved.mean_lo)?;
        params.invstd = self.read("saved.invstd", channels, &saved.invstd)?;
        Ok(())
    }

    pub(super) fn saved_mut<E: Element>(
        &mut self,
        channels: usize,
        saved: &'a mut SavedMut<'_, Device<L>, E>,
        params: &mut Params,
    ) -> Result<()> {
        params.mean_hi = self.write("saved.mean_hi", channels, &mut saved.mean_hi)?;
        params.mean_lo = self.write("saved.mean_lo", channels, &mut saved.mean_lo)?;
        params.invstd = self.write("saved.invstd", channels, &mut saved.invstd)?;
        Ok(())
    }

    pub(super) fn running<E: Element>(
        &mut self,
        channels: usize,
        running: &'a Running<'_, Device<L>, E>,
        params: &mut Params,
    ) -> Result<()> {
        params.running_mean = self.read("running_mean", channels, &running.mean)?;
        params.running_var = self.read("running_var", channels, &running.var)?;
        Ok(())
    }

    pub(super) fn running_mut<E: Element>(
        &mut self,
        channels: usize,
        running: &'a mut Option<RunningMut<'_, Device<L>, E>>,
        params: &mut Params,
    ) -> Result<()> {
        let Some(running) = running else { return Ok(()) };
        params.running_mean = self.write("running_mean", channels, &mut running.mean)?;
        params.running_var = self.write("running_var", channels, &mut running.var)?;
        params.num_batches_tracked =
            self.write("num_batches_tracked", 1, &mut running.num_batches_tracked)?;
        Ok(())
    }

    /// The residual of forward.
    pub(super) fn residual<E: Element>(
        &mut self,
        problem: &Problem,
        residual: &'a Option<L::Slice<'_, E>>,
    ) -> Result<u64> {
        check_residual(problem, residual.is_some())?;
        residual.as_ref().map_or(Ok(0), |it| self.tensor::<E>(problem, Operand::Residual, it))
    }

    /// The residual, where backward needs it to know the pre-activation.
    pub(super) fn residual_for_backward<E: Element>(
        &mut self,
        problem: &Problem,
        needed: bool,
        residual: &'a Option<L::Slice<'_, E>>,
    ) -> Result<u64> {
        match (needed, residual) {
            (false, _) => Ok(0),
            (true, Some(residual)) => self.tensor::<E>(problem, Operand::Residual, residual),
            (true, None) => Err(missing_residual(problem)),
        }
    }

    pub(super) fn mask(
        &mut self,
        problem: &Problem,
        mask: &'a Option<L::Slice<'_, u8>>,
    ) -> Result<u64> {
        match (problem.mask_len(), mask) {
            (0, _) => Ok(0),
            (len, Some(mask)) => self.read("saved.mask", len, mask),
            (_, None) => Err(missing_mask(problem)),
        }
    }

    pub(super) fn mask_mut(
        &mut self,
        problem: &Problem,
        mask: &'a mut Option<L::SliceMut<'_, u8>>,
    ) -> Result<u64> {
        match (problem.mask_len(), mask) {
            (0, _) => Ok(0),
            (len, Some(mask)) => self.write("saved.mask", len, mask),
            (_, None) => Err(missing_mask(problem)),
        }
    }

    /// dx and dresidual.
    pub(super) fn gradients<E: Element>(
        &mut self,
        problem: &Problem,
        dx: &'a mut L::SliceMut<'_, E>,
        dresidual: &'a mut Option<L::SliceMut<'_, E>>,
        params: &mut Params,
    ) -> Result<()> {
        check_dresidual(problem, dresidual.is_some())?;
        params.dx = self.tensor_mut::<E>(problem, Operand::Dx, dx)?;
        let Some(dresidual) = dresidual else { return Ok(()) };
        params.dresidual = self.tensor_mut::<E>(problem, Operand::Dresidual, dresidual)?;
        Ok(())
    }

    /// Counters and partial results of blocks; gives the address of the sums of a backward.
    pub(super) fn scratch(
        &mut self,
        size: Size,
        buffer: &'a mut L::SliceMut<'_, f64>,
        params: &mut Params,
    ) -> Result<u64> {
        params.counters = self.write("workspace", size.words() as usize, buffer)?;
        params.partials = params.counters + 8 * size.counters;
        Ok(params.partials + 8 * size.partials)
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

/// The element type of a call: not f64, and the problem's.
pub(super) fn check_element<E: Element>(problem: &Problem) -> Result<()> {
    problem.check_dtype(E::DTYPE)?;
    check_dtype("x", E::DTYPE)
}

pub(super) fn check_dtype(argument: &str, dtype: DType) -> Result<()> {
    match dtype {
        DType::F64 => Err(Error::argument(argument, "f32, f16 or bf16 on a GPU", dtype)),
        DType::F32 | DType::F16 | DType::Bf16 => Ok(()),
    }
}

/// eps and momentum as `Params` has them: a momentum below 0 is the cumulative average.
pub(super) fn norm_values(norm: &Norm) -> Result<(f64, f64)> {
    check_norm(norm)?;
    Ok((norm.eps, norm.momentum.unwrap_or(-1.0)))
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
