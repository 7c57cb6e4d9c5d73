//! warpnorm's layer on `ndarray` arrays, which allocates its outputs as the others do.

use crate::library::{Device, Host, Layer, Library};
use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn};
use warpnorm::{BatchNorm, BatchNormConfig, Cpu, DType, Element, Saved};

pub const LIBRARY: Library = Library { name: "warpnorm", version: "this commit", layer };

struct Ours<E: Element<Param = f32>> {
    bn: BatchNorm<Cpu>,
    x: ArrayD<E>,
    dy: ArrayD<E>,
    forward: Option<(ArrayD<E>, Saved<Cpu, f32>)>,
}

fn layer(host: &Host, device: Device) -> Box<dyn Layer> {
    match host.dtype {
        DType::F16 => Box::new(Ours::<f16>::new(host, device)),
        DType::Bf16 => Box::new(Ours::<bf16>::new(host, device)),
        _ => Box::new(Ours::<f32>::new(host, device)),
    }
}

fn array<E: Element>(extents: &[usize], values: &[f32]) -> ArrayD<E> {
    let values = values.iter().map(|value| E::from_f64((*value).into())).collect();
    ArrayD::from_shape_vec(IxDyn(extents), values).expect("a value for each element")
}

impl<E: Element<Param = f32>> Ours<E> {
    fn new(host: &Host, device: Device) -> Self {
        let cpu = match device {
            Device::Cpu { threads } => Cpu::with_threads(threads).expect("threads"),
            Device::Cuda => panic!("cargo bench --bench cuda measures the CUDA backend"),
        };
        let config = BatchNormConfig::new(host.extents[1]);
        let mut bn: BatchNorm<Cpu> = config.build(cpu).expect("a layer");
        bn.weight_buffer_mut().expect("a weight").copy_from_slice(&host.weight);
        bn.bias_buffer_mut().expect("a bias").copy_from_slice(&host.bias);
        Ours {
            bn,
            x: array(&host.extents, &host.x),
            dy: ArrayD::from_elem(IxDyn(&host.extents), E::from_f64(1.0)),
            forward: None,
        }
    }

    fn gradient(&self, dy: &ArrayD<E>) -> ArrayD<E> {
        let (_, saved) = self.forward.as_ref().expect("a forward");
        self.bn.backward(&self.x, dy, saved).expect("a fitting call").dx
    }
}

impl<E: Element<Param = f32>> Layer for Ours<E> {
    fn forward(&mut self) {
        self.forward = None;
        self.forward = Some(self.bn.forward_train(&self.x).expect("a fitting call"));
    }

    fn backward(&mut self) {
        self.gradient(&self.dy);
    }

    fn results(&mut self, dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
        self.forward();
        let dx = self.gradient(&array(self.x.shape(), dy));
        let (y, _) = self.forward.as_ref().expect("a forward");
        let narrow = |array: &ArrayD<E>| array.iter().map(|v| v.to_f64() as f32).collect();
        (narrow(y), narrow(&dx))
    }
}
