//! candle's batch norm: `forward_train`, and gradients by its backpropagation.

use crate::library::{Device, Host, Layer, Library};
use candle_core::{DType, Result, Tensor, Var};
use candle_nn::BatchNorm;

pub const LIBRARY: Library = Library { name: "candle", version: "0.11.1", layer };

struct Candle {
    bn: BatchNorm,
    x: Var,
    y: Option<Tensor>,
}

fn layer(host: &Host, device: Device) -> Box<dyn Layer> {
    Box::new(Candle::new(host, device).expect("candle's layer"))
}

fn dtype(host: &Host) -> DType {
    match host.dtype {
        warpnorm::DType::F16 => DType::F16,
        warpnorm::DType::Bf16 => DType::BF16,
        _ => DType::F32,
    }
}

impl Candle {
    fn new(host: &Host, device: Device) -> Result<Self> {
        let device = match device {
            Device::Cpu { .. } => candle_core::Device::Cpu,
            Device::Cuda => candle_core::Device::new_cuda(0)?,
        };
        let channels = host.extents[1];
        let dtype = dtype(host);
        let vector = |values: &[f32]| Tensor::from_slice(values, channels, &device);
        let bn = BatchNorm::new(
            channels,
            Tensor::zeros(channels, DType::F32, &device)?,
            Tensor::ones(channels, DType::F32, &device)?,
            Var::from_tensor(&vector(&host.weight)?.to_dtype(dtype)?)?.into_inner(),
            Var::from_tensor(&vector(&host.bias)?.to_dtype(dtype)?)?.into_inner(),
            1e-5,
        )?;
        let x = Tensor::from_slice(&host.x, &host.extents[..], &device)?.to_dtype(dtype)?;
        // Its own memory, so that only one tensor is there.
        Ok(Candle { bn, x: Var::from_tensor(&x)?, y: None })
    }

    fn forward(&mut self) -> Result<()> {
        self.y = None;
        self.y = Some(self.bn.forward_train(&self.x)?);
        Ok(())
    }

    fn results(&mut self, dy: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
        self.forward()?;
        let y = self.y.as_ref().expect("a forward");
        let dy = Tensor::from_slice(dy, y.shape(), y.device())?.to_dtype(y.dtype())?;
        let gradients = (y * dy)?.sum_all()?.backward()?;
        let dx = gradients.get(&self.x).expect("a gradient of x");
        let values = |tensor: &Tensor| -> Result<Vec<f32>> {
            tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
        };
        Ok((values(y)?, values(dx)?))
    }
}

impl Layer for Candle {
    fn forward(&mut self) {
        Candle::forward(self).expect("candle's forward");
    }

    fn backward(&mut self) {
        let y = self.y.as_ref().expect("a forward");
        y.backward().expect("candle's backward");
    }

    fn results(&mut self, dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
        Candle::results(self, dy).expect("candle's results")
    }

    fn wait(&self) {
        self.x.device().synchronize().expect("a device that works");
    }
}
