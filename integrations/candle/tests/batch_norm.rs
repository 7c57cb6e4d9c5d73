//! The layer beside candle's own in f64.

use candle_core::{DType, Device, ModuleT, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use rand::SeedableRng;
use rand_distr::{Distribution, Normal};
use rand_pcg::Pcg64Mcg;
use warpnorm_candle::{Activation, BatchNorm, BatchNormConfig, batch_norm};

const CHANNELS: usize = 5;
const SHAPE: [usize; 4] = [6, CHANNELS, 4, 3];

/// The same in every run. Values of bf16 and f16, so that every element type holds them: what one rounds
/// lies on another side of ReLU's zero.
fn random(shape: &[usize], mean: f64, std: f64) -> Result<Tensor> {
    let len = shape.iter().product();
    let seed = mean.to_bits() ^ std.to_bits().rotate_left(17) ^ len as u64;
    let normal = Normal::new(mean, std).expect("a standard deviation");
    let values: Vec<f64> = normal.sample_iter(Pcg64Mcg::seed_from_u64(seed)).take(len).collect();
    let values = Tensor::from_vec(values, shape, &Device::Cpu)?;
    values.to_dtype(DType::BF16)?.to_dtype(DType::F16)?.to_dtype(DType::F64)
}

/// What a step takes and what it is compared by.
struct Step {
    x: Tensor,
    residual: Option<Tensor>,
    dy: Tensor,
    parameters: [Tensor; 4],
}

impl Step {
    fn random(shape: &[usize], residual: bool) -> Result<Self> {
        let channels = shape[1];
        let parameter = |mean, std| random(&[channels], mean, std);
        Ok(Step {
            x: random(shape, 2.0, 1.5)?,
            residual: residual.then(|| random(shape, 0.0, 1.0)).transpose()?,
            dy: random(shape, 0.0, 1.25)?,
            parameters: [
                parameter(0.5, 1.0)?,
                parameter(0.0, 1.0)?,
                parameter(1.0, 0.5)?,
                parameter(2.0, 0.2)?.abs()?,
            ],
        })
    }
}

/// y; gradients of x, weight, bias and residual; running mean and variance.
type Outcome = Vec<Tensor>;

/// One training or evaluation step, its outcome in f64.
fn outcome(
    step: &Step,
    layer: impl FnOnce(&[Var; 4], &Tensor, Option<&Tensor>) -> Result<Tensor>,
    [dtype, parameter_dtype]: [DType; 2],
) -> Result<Outcome> {
    let variable = |it: &Tensor, dtype| Var::from_tensor(&it.to_dtype(dtype)?);
    let [weight, bias, mean, var] = &step.parameters;
    let parameters = [
        variable(weight, parameter_dtype)?,
        variable(bias, parameter_dtype)?,
        variable(mean, parameter_dtype)?,
        variable(var, parameter_dtype)?,
    ];
    let x = variable(&step.x, dtype)?;
    let residual = step.residual.as_ref().map(|it| variable(it, dtype)).transpose()?;
    let y = layer(&parameters, &x, residual.as_deref())?;
    assert_eq!((y.dims(), y.dtype()), (x.dims(), dtype));
    let gradients = (&y * step.dy.to_dtype(dtype)?)?.sum_all()?.backward()?;
    let mut outcome = vec![y];
    let inputs = [&x, &parameters[0], &parameters[1]].into_iter().chain(residual.as_ref());
    for it in inputs {
        let gradient = gradients.get(it).expect("a gradient of each variable");
        assert_eq!((gradient.dims(), gradient.dtype()), (it.dims(), it.dtype()));
        outcome.push(gradient.clone());
    }
    outcome.extend(parameters[2..].iter().map(|it| it.as_tensor().clone()));
    outcome.iter().map(|it| it.to_dtype(DType::F64)).collect()
}

/// candle's own layer, and its operations for what follows, in f64.
fn expected(step: &Step, activation: Activation, train: bool) -> Result<Outcome> {
    let layer = |[weight, bias, mean, var]: &[Var; 4], x: &Tensor, residual: Option<&Tensor>| {
        let (mean, var) = (mean.as_tensor().clone(), var.as_tensor().clone());
        let (weight, bias) = (weight.as_tensor().clone(), bias.as_tensor().clone());
        let channels = x.dims()[1];
        let layer = candle_nn::BatchNorm::new(channels, mean, var, weight, bias, 1e-5)?;
        let z = layer.forward_t(x, train)?;
        let z = match residual {
            Some(it) => (z + it)?,
            None => z,
        };
        match activation {
            Activation::Identity => Ok(z),
            Activation::Relu => z.relu(),
            Activation::Silu => z.silu(),
            other => panic!("{other}"),
        }
    };
    outcome(step, layer, [DType::F64; 2])
}

/// The layer under test; `axes` permutes tensors to how they lie in memory, and back.
fn found(
    step: &Step,
    activation: Activation,
    train: bool,
    dtype: DType,
    lay: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Outcome> {
    let layer = |[weight, bias, mean, var]: &[Var; 4], x: &Tensor, residual: Option<&Tensor>| {
        let config = BatchNormConfig { activation, ..Default::default() };
        let (mean, var) = (mean.as_tensor().clone(), var.as_tensor().clone());
        let affine = (weight.as_tensor().clone(), bias.as_tensor().clone());
        let layer = BatchNorm::new(config, mean, var, Some(affine))?;
        let x = lay(x)?;
        let y = match residual {
            Some(it) => layer.forward_t_add(&x, &lay(it)?, train)?,
            None => layer.forward_t(&x, train)?,
        };
        assert_eq!(y.stride(), x.stride());
        Ok(y)
    };
    let parameters = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    outcome(step, layer, [dtype, parameters])
}

/// As candle makes tensors.
fn channels_first(x: &Tensor) -> Result<Tensor> {
    Ok(x.clone())
}

/// NHWC seen as NCHW.
fn channels_last(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 2, 3, 1))?.contiguous()?.permute((0, 3, 1, 2))
}

fn assert_close(found: &Outcome, expected: &Outcome, bar: f64) -> Result<()> {
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let scale = expected.abs()?.max_all()?.to_scalar::<f64>()?;
        let error = (found - expected)?.abs()?.max_all()?.to_scalar::<f64>()?;
        assert!(error <= bar * scale, "output {at}: {error:e} of {scale:e}");
    }
    Ok(())
}

/// Each type's rounding, with room for sums: of gradients in 16 bits the products with dy are rounded
/// by candle.
const BARS: [(DType, f64); 4] =
    [(DType::F64, 1e-13), (DType::F32, 1e-6), (DType::F16, 2e-3), (DType::BF16, 2e-2)];

#[test]
fn passes_agree_with_candle_s_layer_in_f64() -> Result<()> {
    for residual in [false, true] {
        let step = Step::random(&SHAPE, residual)?;
        for train in [true, false] {
            for activation in [Activation::Identity, Activation::Relu, Activation::Silu] {
                let expected = expected(&step, activation, train)?;
                for (dtype, bar) in BARS {
                    let first = found(&step, activation, train, dtype, channels_first)?;
                    assert_close(&first, &expected, bar)?;
                    let last = found(&step, activation, train, dtype, channels_last)?;
                    assert_close(&last, &expected, bar)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn matrices_and_other_ranks() -> Result<()> {
    for shape in [&[7, CHANNELS][..], &[3, CHANNELS, 9], &[2, CHANNELS, 3, 2, 4]] {
        let step = Step::random(shape, true)?;
        let expected = expected(&step, Activation::Relu, true)?;
        let found = found(&step, Activation::Relu, true, DType::F32, channels_first)?;
        assert_close(&found, &expected, 1e-6)?;
    }
    Ok(())
}

/// A slice of a larger batch is taken where it lies.
#[test]
fn views_are_read_where_they_lie() -> Result<()> {
    let step = Step::random(&[4, CHANNELS, 6], false)?;
    let (front, back) = (step.x.narrow(0, 0, 1)?, step.x.narrow(0, 1, 3)?);
    assert!(back.is_contiguous() && back.layout().start_offset() > 0);
    let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F64, &Device::Cpu);
    let bn = batch_norm(CHANNELS, 1e-5, vb)?;
    let x = Var::from_tensor(&Tensor::cat(&[&front, &back], 0)?)?;
    let part = x.narrow(0, 1, 3)?;
    let y = bn.forward_t(&part, true)?;
    let alone = bn.forward_t(&part.copy()?, true)?;
    assert_eq!(y.flatten_all()?.to_vec1::<f64>()?, alone.flatten_all()?.to_vec1::<f64>()?);
    // The gradient of a sum is the same everywhere, which statistics take to nothing.
    let gradients = y.sum_all()?.backward()?;
    let dx = gradients.get(&x).expect("of a variable").abs()?.max_all()?.to_scalar::<f64>()?;
    assert!(dx < 1e-14, "{dx:e}");
    Ok(())
}

#[test]
fn variables_are_candle_s_and_shared() -> Result<()> {
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    let bn = batch_norm(3, BatchNormConfig::default(), vb.pp("bn1"))?;
    let theirs = candle_nn::batch_norm(3, 1e-5, vb.pp("bn1"))?;
    let x = random(&[4, 3, 2], 1.0, 2.0)?.to_dtype(DType::F32)?;
    let clone = bn.clone();
    bn.forward_t(&x, true)?;
    let mean = bn.running_mean().to_vec1::<f32>()?;
    assert!(mean.iter().all(|&it| it != 0.0));
    assert_eq!(clone.running_mean().to_vec1::<f32>()?, mean);
    assert_eq!(theirs.running_mean().to_vec1::<f32>()?, mean);
    let mut names: Vec<_> = variables.data().lock().unwrap().keys().cloned().collect();
    names.sort();
    assert_eq!(names, ["bn1.bias", "bn1.running_mean", "bn1.running_var", "bn1.weight"]);
    Ok(())
}

/// The gradients of an evaluation are those of what it normalized with.
#[test]
fn a_training_step_between_changes_no_gradient() -> Result<()> {
    let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F64, &Device::Cpu);
    let bn = batch_norm(CHANNELS, 1e-5, vb)?;
    let x = Var::from_tensor(&random(&SHAPE, 3.0, 2.0)?)?;
    let gradient = |between: bool| -> Result<Vec<f64>> {
        let y = bn.forward_t(&x, false)?;
        if between {
            bn.forward_t(&x, true)?;
        }
        let gradients = y.sqr()?.sum_all()?.backward()?;
        gradients.get(&x).expect("of a variable").flatten_all()?.to_vec1()
    };
    assert_eq!(gradient(false)?, gradient(true)?);
    assert!(bn.running_mean().to_vec1::<f64>()?.iter().all(|&it| it != 0.0));
    Ok(())
}

/// Two losses of one y, whose residual is x itself.
#[test]
fn backward_may_run_twice() -> Result<()> {
    let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F64, &Device::Cpu);
    let config = BatchNormConfig { activation: Activation::Silu, ..Default::default() };
    let bn = batch_norm(CHANNELS, config, vb)?;
    let x = Var::from_tensor(&random(&SHAPE, 3.0, 2.0)?)?;
    let y = bn.forward_t_add(&x, &x, true)?;
    let gradient = |loss: Tensor| -> Result<Vec<f64>> {
        let gradients = loss.backward()?;
        gradients.get(&x).expect("of a variable").flatten_all()?.to_vec1()
    };
    let once = gradient(y.sqr()?.sum_all()?)?;
    let twice = gradient((y.sqr()? * 2.0)?.sum_all()?)?;
    let errors = once.iter().zip(&twice).map(|(once, twice)| (2.0 * once - twice).abs());
    assert!(errors.fold(0.0, f64::max) < 1e-12 && once.iter().any(|&it| it != 0.0));
    Ok(())
}

/// Tensors so large that their work is shared out over the very threads that call: one that waits for
/// its share may begin the other's call meanwhile.
#[test]
fn calls_may_meet_on_rayon_s_threads() -> Result<()> {
    let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
    let bn = batch_norm(64, 1e-5, vb)?;
    let x = Var::from_tensor(&Tensor::randn(1f32, 1f32, (16, 64, 12, 12), &Device::Cpu)?)?;
    let shared = bn.forward_t(&x, true)?;
    let step = |y: &dyn Fn() -> Result<Tensor>| y()?.sqr()?.sum_all()?.backward().map(drop);
    let fresh = || step(&|| bn.forward_t(&x, true));
    let again = || step(&|| Ok(shared.clone()));
    for _ in 0..20 {
        let (one, (two, three)) = rayon::join(fresh, || rayon::join(again, again));
        one.and(two).and(three)?;
    }
    Ok(())
}

#[test]
fn without_affine_weights_are_one() -> Result<()> {
    let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
    let (plain, affine) = (BatchNormConfig { affine: false, ..1e-3.into() }, 1e-3.into());
    let plain = batch_norm(3, plain, vb.pp("plain"))?;
    let affine: BatchNorm = batch_norm::<BatchNormConfig>(3, affine, vb.pp("affine"))?;
    assert!(plain.weight_and_bias().is_none() && affine.weight_and_bias().is_some());
    let x = random(&[4, 3, 2], 1.0, 2.0)?.to_dtype(DType::F32)?;
    let [y, other] = [plain.forward_t(&x, true)?, affine.forward_t(&x, true)?];
    assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, other.flatten_all()?.to_vec1::<f32>()?);
    Ok(())
}

/// What does not fit is refused by name, and leaves the running statistics.
#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
    let bn = batch_norm(3, BatchNormConfig::default(), vb.pp("bn"))?;
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu);
    let x = zeros(&[2, 3, 4, 5], DType::F32)?;
    let refused = |result: Result<Tensor>, name: &str, expected: &str| {
        let message = result.expect_err("refused").to_string();
        assert!(message.contains(name) && message.contains(expected), "{message}");
    };
    refused(bn.forward_t(&zeros(&[2, 4, 4], DType::F32)?, true), "x", "[N, 3, ...]");
    refused(bn.forward_t(&zeros(&[3], DType::F32)?, true), "x", "[N, 3, ...]");
    refused(bn.forward_t(&zeros(&[2, 3], DType::F64)?, true), "x", "f64");
    refused(bn.forward_t(&zeros(&[2, 3], DType::U8)?, true), "x", "U8");
    refused(bn.forward_t(&x.transpose(2, 3)?, true), "x", "contiguous");
    refused(bn.forward_t(&zeros(&[1, 3], DType::F32)?, true), "x", "more than 1 value");
    refused(bn.forward_t(&zeros(&[0, 3, 2], DType::F32)?, true), "x", "more than 1 value");
    let half = zeros(&[2, 3, 4, 5], DType::F16)?;
    refused(bn.forward_t_add(&x, &half, true), "residual", "F16");
    refused(bn.forward_t_add(&x, &channels_last(&x)?, true), "residual", "strides");
    assert_eq!(bn.running_mean().to_vec1::<f32>()?, [0.0; 3]);
    assert_eq!(bn.running_var().to_vec1::<f32>()?, [1.0; 3]);
    assert_eq!(bn.forward_t(&zeros(&[0, 3, 2], DType::F32)?, false)?.dims(), [0, 3, 2]);

    let bad =
        |config: BatchNormConfig| batch_norm(3, config, vb.pp("bad")).err().unwrap().to_string();
    assert!(bad((-1.0).into()).contains("eps"));
    assert!(bad(f64::NAN.into()).contains("eps"));
    assert!(bad(BatchNormConfig { momentum: 1.5, ..Default::default() }).contains("momentum"));
    let [three, four] = [zeros(&[3], DType::F32)?, zeros(&[4], DType::F32)?];
    let layer = BatchNorm::new(1e-5.into(), three.clone(), four, None);
    assert!(layer.err().unwrap().to_string().contains("running_var"));
    assert!(batch_norm(0, 1e-5, vb.pp("none")).is_err());
    let half = three.to_dtype(DType::F16)?;
    assert!(BatchNorm::new(1e-5.into(), half.clone(), half, None).is_err());
    Ok(())
}

/// Several shapes in turns, on several threads: each call has a workspace of its own.
#[test]
fn layers_may_be_called_from_several_threads() -> Result<()> {
    let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
    let bn = batch_norm(CHANNELS, 1e-5, vb)?;
    let step = |n: usize| -> Result<Vec<f32>> {
        let x = Tensor::arange(0f32, (n * CHANNELS) as f32, &Device::Cpu)?;
        bn.forward_t(&x.reshape((n, CHANNELS))?.sin()?, true)?.flatten_all()?.to_vec1()
    };
    let alone: Vec<_> = (2..9).map(step).collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (2..9).map(step).collect::<Result<Vec<_>>>())).collect();
        for it in threads {
            assert_eq!(it.join().expect("no panic")?, alone);
        }
        Ok(())
    })
}
