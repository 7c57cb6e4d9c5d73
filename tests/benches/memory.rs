//! How much memory a call's tensors are said to take.

use crate::calls::{Inputs, Tensors, bytes, most_bytes};
use half::f16;
use warpnorm::{Activation, Cpu, DType, Element, Epilogue, Layout, Problem};

/// By what the allocator sees. Beside what is counted are the masks and vectors that are copied from.
fn agrees<E: Element>(dtype: DType, epilogue: Epilogue) {
    let problem = Problem::new(&[64, 128, 16, 16], Layout::ChannelsLast, dtype, epilogue).unwrap();
    let (inputs, cpu) = (Inputs::<E>::random(&problem), Cpu::new());
    let mut tensors = None;
    let found = allocation_counter::measure(|| {
        tensors = Some(Tensors::new(&cpu, &problem, &inputs).unwrap());
    });
    for (said, found) in
        [(bytes(&problem), found.bytes_current as u64), (most_bytes(&problem), found.bytes_max)]
    {
        let off = found as f64 / said as f64 - 1.0;
        assert!((0.0..0.02).contains(&off), "{dtype:?} {epilogue:?}: {said}, found {found}");
    }
}

#[test]
fn tensors_take_what_they_are_said_to_take() {
    for residual in [false, true] {
        let epilogue = Epilogue { activation: Activation::Relu, residual };
        agrees::<f32>(DType::F32, epilogue);
        agrees::<f16>(DType::F16, epilogue);
    }
    agrees::<f16>(DType::F16, Epilogue::NONE);
}
