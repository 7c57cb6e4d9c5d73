//! [`Id`]: what a measurement is of, `<pass>/<layout>/<dtype>/<extents>/<epilogue>/<config>`.
//! Shared by the benchmarks, which write such identifiers, and the report, which reads them.

use std::fmt;
use std::str::FromStr;
use warpnorm::{Activation, DType, Epilogue, Layout, Problem};

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pass {
    TrainForward,
    TrainBackward,
    Inference,
    Copy,
}

/// The layout, or for a copy the kind of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    ChannelsFirst,
    ChannelsLast,
    NonTemporal,
}

/// Declared in the order the tables list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    F32,
    F64,
    F16,
    Bf16,
}

/// What is fused behind the normalization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fused {
    None,
    Relu,
    AddRelu,
}

/// The processors that take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Config {
    Threads(usize),
    Gpu,
    /// A GPU on the same tensors again and again, which its L2 then holds.
    GpuInCache,
    /// A GPU that replays calls captured in a CUDA graph.
    GpuGraph,
}

/// An identifier, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Id {
    pub pass: Pass,
    pub slot: Slot,
    pub element: Element,
    pub extents: Vec<usize>,
    pub fused: Fused,
    pub config: Config,
}

const PASSES: [(&str, Pass); 4] = [
    ("train_forward", Pass::TrainForward),
    ("train_backward", Pass::TrainBackward),
    ("inference", Pass::Inference),
    ("copy", Pass::Copy),
];
const SLOTS: [(&str, Slot); 3] = [
    ("channels-first", Slot::ChannelsFirst),
    ("channels-last", Slot::ChannelsLast),
    ("non-temporal", Slot::NonTemporal),
];
const ELEMENTS: [(&str, Element); 4] =
    [("f32", Element::F32), ("f64", Element::F64), ("f16", Element::F16), ("bf16", Element::Bf16)];
const FUSED: [(&str, Fused); 3] =
    [("none", Fused::None), ("relu", Fused::Relu), ("add_relu", Fused::AddRelu)];
const GPU_CONFIGS: [(&str, Config); 3] =
    [("gpu", Config::Gpu), ("gpu-in-cache", Config::GpuInCache), ("gpu-graph", Config::GpuGraph)];

fn name_of<T: PartialEq>(names: &[(&'static str, T)], value: &T) -> &'static str {
    let named = names.iter().find(|(_, named)| named == value);
    named.map_or("?", |(name, _)| name)
}

fn find<T: Copy>(what: &str, names: &[(&str, T)], text: &str) -> Result<T, String> {
    let named = names.iter().find(|(name, _)| *name == text);
    named.map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<_> = names.iter().map(|(name, _)| *name).collect();
        format!("{what}: expected one of {}, found {text:?}", known.join(", "))
    })
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(&PASSES, self))
    }
}

impl FromStr for Pass {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        find("pass", &PASSES, text)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(&SLOTS, self))
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(&ELEMENTS, self))
    }
}

impl fmt::Display for Fused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(&FUSED, self))
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Config::Threads(threads) => write!(f, "{threads}t"),
            gpu => f.write_str(name_of(&GPU_CONFIGS, gpu)),
        }
    }
}

impl FromStr for Config {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(config) = find("config", &GPU_CONFIGS, text) {
            return Ok(config);
        }
        match text.strip_suffix('t').map(str::parse) {
            Some(Ok(threads)) if threads > 0 => Ok(Config::Threads(threads)),
            _ => Err(format!(
                "config: expected gpu, gpu-in-cache, gpu-graph or a thread count such as 2t, found {text:?}"
            )),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Id { pass, slot, element, fused, config, .. } = self;
        write!(f, "{pass}/{slot}/{element}/{}/{fused}/{config}", self.shape())
    }
}

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split('/').collect();
        let [pass, slot, element, extents, fused, config] = parts[..] else {
            return Err(format!(
                "identifier: expected <pass>/<layout>/<dtype>/<extents>/<epilogue>/<config>, found {text:?}"
            ));
        };
        let id = Id {
            pass: pass.parse()?,
            slot: find("layout", &SLOTS, slot)?,
            element: find("dtype", &ELEMENTS, element)?,
            extents: parse_extents(extents)?,
            fused: find("epilogue", &FUSED, fused)?,
            config: config.parse()?,
        };
        if id.slot == Slot::NonTemporal && id.pass != Pass::Copy {
            return Err(format!("layout: non-temporal is a kind of copy, found {text:?}"));
        }
        // Extents that no tensor can have are found here and not when the floor is asked for.
        id.problem().map_err(|error| error.to_string())?;
        Ok(id)
    }
}

fn parse_extents(text: &str) -> Result<Vec<usize>, String> {
    let extents: Option<Vec<usize>> =
        text.split('x').map(|extent| extent.parse().ok().filter(|&extent| extent > 0)).collect();
    extents
        .filter(|extents| extents.len() >= 2)
        .ok_or_else(|| format!("extents: expected such as 32x64x56x56, found {text:?}"))
}

impl Id {
    /// The extents as they are written.
    pub fn shape(&self) -> String {
        let extents: Vec<_> = self.extents.iter().map(usize::to_string).collect();
        extents.join("x")
    }

    /// The call that the identifier names.
    pub fn problem(&self) -> Result<Problem, warpnorm::Error> {
        let layout = match self.slot {
            Slot::ChannelsFirst => Layout::ChannelsFirst,
            Slot::ChannelsLast | Slot::NonTemporal => Layout::ChannelsLast,
        };
        let dtype = match self.element {
            Element::F32 => DType::F32,
            Element::F64 => DType::F64,
            Element::F16 => DType::F16,
            Element::Bf16 => DType::Bf16,
        };
        let epilogue = match self.fused {
            Fused::None => Epilogue::NONE,
            Fused::Relu => Epilogue { activation: Activation::Relu, residual: false },
            Fused::AddRelu => Epilogue { activation: Activation::Relu, residual: true },
        };
        Problem::new(&self.extents, layout, dtype, epilogue)
    }

    /// The least bytes the pass can move: every tensor read or written once.
    pub fn floor_bytes(&self) -> Result<usize, warpnorm::Error> {
        let problem = self.problem()?;
        Ok(match self.pass {
            Pass::TrainForward => problem.forward_floor_bytes(),
            Pass::TrainBackward => problem.backward_floor_bytes(),
            Pass::Inference => problem.forward_floor_bytes() - problem.mask_len(),
            Pass::Copy => 2 * problem.elements() * problem.dtype().size(),
        })
    }

    /// The copy that this pass is held against: same tensor, same processors. A GPU's copy knows
    /// bytes only, so that one serves both layouts and both 16-bit types.
    pub fn yardstick(&self) -> Id {
        let copy = Id { pass: Pass::Copy, fused: Fused::None, ..self.clone() };
        match (self.is_gpu(), self.element) {
            (false, _) => copy,
            (true, Element::Bf16) => Id { slot: Slot::ChannelsLast, element: Element::F16, ..copy },
            (true, _) => Id { slot: Slot::ChannelsLast, ..copy },
        }
    }

    /// Whether a GPU runs it.
    pub fn is_gpu(&self) -> bool {
        !matches!(self.config, Config::Threads(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    #[test]
    fn an_identifier_survives_reading_and_writing() {
        for text in [
            "train_forward/channels-first/f32/32x64x112x112/none/1t",
            "train_backward/channels-last/bf16/4096x1024/add_relu/16t",
            "inference/channels-last/f64/8x3x5/relu/gpu",
            "inference/channels-last/f16/8x3x5/none/gpu-in-cache",
            "inference/channels-last/f16/8x3x5/none/gpu-graph",
            "copy/non-temporal/f16/128x100/none/2t",
        ] {
            assert_eq!(id(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_with_an_identifier_is_named() {
        for (text, part) in [
            ("train_forward/channels-first/f32/32x64/none", "identifier"),
            ("forward/channels-first/f32/32x64/none/1t", "pass"),
            ("inference/nchw/f32/32x64/none/1t", "layout"),
            ("inference/non-temporal/f32/32x64/none/1t", "layout"),
            ("inference/channels-last/fp32/32x64/none/1t", "dtype"),
            ("inference/channels-last/f32/32/none/1t", "extents"),
            ("inference/channels-last/f32/32x0/none/1t", "extents"),
            ("inference/channels-last/f32/32x64/gelu/1t", "epilogue"),
            ("inference/channels-last/f32/32x64/none/0t", "config"),
            ("inference/channels-last/f32/32x64/none/t", "config"),
        ] {
            let error = text.parse::<Id>().unwrap_err();
            assert!(error.starts_with(part), "{text}: {error}");
        }
    }

    #[test]
    fn one_copy_of_a_gpu_serves_both_layouts_and_both_16_bit_types() {
        for (text, copy) in [
            (
                "train_forward/channels-first/bf16/8x3x5/relu/gpu",
                "copy/channels-last/f16/8x3x5/none/gpu",
            ),
            (
                "inference/channels-last/f32/8x3x5/none/gpu-graph",
                "copy/channels-last/f32/8x3x5/none/gpu-graph",
            ),
            (
                "train_forward/channels-first/bf16/8x3x5/relu/2t",
                "copy/channels-first/bf16/8x3x5/none/2t",
            ),
        ] {
            assert_eq!(id(text).yardstick().to_string(), copy);
        }
    }

    #[test]
    fn the_floor_counts_every_tensor_once_and_the_mask_where_there_is_one() {
        let tensor = 8 * 16 * 4 * 4 * 4;
        let mask = 8 * 16 * 4 * 4 / 8;
        for (text, bytes) in [
            ("copy/channels-first/f32/8x16x4x4/none/1t", 2 * tensor),
            ("train_forward/channels-first/f32/8x16x4x4/relu/1t", 2 * tensor),
            ("train_forward/channels-first/f32/8x16x4x4/add_relu/1t", 3 * tensor + mask),
            ("train_backward/channels-first/f32/8x16x4x4/none/1t", 3 * tensor),
            ("train_backward/channels-first/f32/8x16x4x4/add_relu/1t", 4 * tensor + mask),
            ("inference/channels-first/f32/8x16x4x4/add_relu/1t", 3 * tensor),
        ] {
            assert_eq!(id(text).floor_bytes().unwrap(), bytes, "{text}");
        }
    }
}
