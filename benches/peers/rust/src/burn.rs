//! Burn's batch norm on its CPU backend, Flex, or on CUDA.

use crate::library::{Device, Host, Layer, Library};
use burn::module::Param;
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::{DType, Tensor, TensorData};

pub const LIBRARY: Library = Library { name: "Burn", version: "0.22.1", layer };

/// Of any rank: spatial extents are one.
struct Burn {
    bn: BatchNorm,
    x: Tensor<3>,
    y: Option<Tensor<3>>,
    device: burn::tensor::Device,
}

fn layer(host: &Host, device: Device) -> Box<dyn Layer> {
    Box::new(Burn::new(host, device))
}

fn dtype(host: &Host) -> DType {
    match host.dtype {
        warpnorm::DType::F16 => DType::F16,
        warpnorm::DType::Bf16 => DType::BF16,
        _ => DType::F32,
    }
}

impl Burn {
    fn new(host: &Host, device: Device) -> Self {
        let device = match device {
            Device::Cpu { .. } => burn::tensor::Device::flex(),
            #[cfg(feature = "cuda")]
            Device::Cuda => burn::tensor::Device::cuda(0),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda => panic!("built without the feature cuda"),
        };
        let device = device.autodiff();
        let dtype = dtype(host);
        let channels = host.extents[1];
        let vector = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), [channels]);
            let vector = Tensor::<1>::from_data(data, (&device, DType::F32));
            Param::from_tensor(vector.cast(dtype))
        };
        let mut bn = BatchNormConfig::new(channels).init(&device);
        bn.gamma = vector(&host.weight);
        bn.beta = vector(&host.bias);
        if dtype != DType::F32 {
            let statistics = |value| {
                burn::module::RunningState::new(Tensor::full([channels], value, (&device, dtype)))
            };
            bn.running_mean = statistics(0.0);
            bn.running_var = statistics(1.0);
        }
        let shape = [host.extents[0], channels, host.extents[2..].iter().product()];
        let x = TensorData::new(host.x.clone(), shape);
        let x = Tensor::<3>::from_data(x, (&device, DType::F32)).cast(dtype).detach();
        Burn { bn, x: x.require_grad(), y: None, device }
    }
}

impl Layer for Burn {
    fn forward(&mut self) {
        self.y = None;
        self.y = Some(self.bn.forward(self.x.clone()));
    }

    /// It consumes what forward left.
    fn backward(&mut self) {
        let y = self.y.take().expect("a forward");
        drop(y.backward());
    }

    fn results(&mut self, dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let y = self.bn.forward(self.x.clone());
        let dy = TensorData::new(dy.to_vec(), y.shape());
        let dy = Tensor::<3>::from_data(dy, (&self.device, DType::F32)).cast(y.dtype());
        let gradients = (y.clone() * dy).sum().backward();
        let dx = self.x.grad(&gradients).expect("a gradient of x");
        let values = |data: TensorData| data.try_into_vec::<f32>().expect("f32");
        (values(y.into_data_as::<f32>()), values(dx.into_data_as::<f32>()))
    }

    fn wait(&self) {
        self.device.sync().expect("a device that works");
    }
}
