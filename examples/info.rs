//! What there is to run CUDA kernels with, and how a call would be laid over a GPU:
//! `cargo run --release --example info -- --shape 32x64x56x56`.

use clap::{Parser, ValueEnum};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;
use warpnorm::cuda::{
    Alignment, BLOCK, Best, DeviceFacts, DeviceInfo, Launcher, Pass, Plan, STATIC_SHARED_BYTES,
    Tier, best, devices, images, profiles, training_plans,
};
use warpnorm::{Activation, DType, Epilogue, Layout, Problem, Result};

/// Prints the driver, the devices, the embedded kernels, and the plan of a call.
#[derive(Parser)]
#[command(name = "info")]
struct Args {
    /// Extents [N, C, spatial...].
    #[arg(long, value_parser = shape, default_value = "32x64x56x56")]
    shape: Shape,
    #[arg(long, value_enum, default_value_t = LayoutName::ChannelsFirst)]
    layout: LayoutName,
    /// Element type.
    #[arg(long, value_enum, default_value_t = TypeName::F16)]
    dtype: TypeName,
    /// ReLU in the same pass.
    #[arg(long)]
    relu: bool,
    /// A residual in the same pass.
    #[arg(long)]
    residual: bool,
    /// Where tensors are to be between the two sweeps of a training pass [default: what should take
    /// the least time].
    #[arg(long, value_enum)]
    tier: Option<TierName>,
    /// The GPU to plan for [default: the best one here, or else an H100].
    #[arg(long, value_enum)]
    gpu: Option<Profile>,
}

type Shape = Vec<usize>;

fn shape(text: &str) -> std::result::Result<Shape, String> {
    let extents = text.split('x').map(|extent| extent.parse::<usize>());
    extents.collect::<std::result::Result<_, _>>().map_err(|error| format!("{error}: {text}"))
}

#[derive(Clone, Copy, ValueEnum)]
enum LayoutName {
    ChannelsFirst,
    ChannelsLast,
}

#[derive(Clone, Copy, ValueEnum)]
enum TierName {
    Streaming,
    Block,
    Cluster,
    Grid,
}

impl TierName {
    fn tier(self) -> Tier {
        match self {
            TierName::Streaming => Tier::Streaming,
            TierName::Block => Tier::Block,
            TierName::Cluster => Tier::Cluster,
            TierName::Grid => Tier::Grid,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum TypeName {
    F32,
    F16,
    Bf16,
}

/// GPUs that need not be here.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Profile {
    T4,
    A100,
    Rtx4090,
    H100,
    H200,
    B200,
}

impl Profile {
    fn facts(self) -> DeviceFacts {
        match self {
            Profile::T4 => profiles::T4,
            Profile::A100 => profiles::A100,
            Profile::Rtx4090 => profiles::RTX_4090,
            Profile::H100 => profiles::H100,
            Profile::H200 => profiles::H200,
            Profile::B200 => profiles::B200,
        }
    }
}

/// A line for each.
fn devices_found() -> String {
    match devices() {
        Err(error) => format!("devices: {error}\n"),
        Ok(devices) if devices.is_empty() => "devices: a CUDA driver, but no GPU\n".to_owned(),
        Ok(devices) => devices.iter().map(device_line).collect(),
    }
}

fn device_line(it: &DeviceInfo) -> String {
    let ((major, minor), (cuda, update)) = (it.compute_capability, it.driver_version);
    let gigabytes = it.memory_bytes as f64 / 1e9;
    format!(
        "device {}: {}, compute capability {major}.{minor}, {gigabytes:.1} GB, \
         driver for CUDA {cuda}.{update}\n",
        it.ordinal, it.name
    )
}

fn kernels_embedded() -> String {
    let (major, minor) = match images::compiler() {
        Ok(version) => version,
        Err(error) => return format!("kernels: {error}\n"),
    };
    let mut bytes = BTreeMap::<_, usize>::new();
    for image in images::images() {
        *bytes.entry(image.target).or_default() += image.compressed_bytes();
    }
    let targets: Vec<String> =
        bytes.iter().map(|(target, bytes)| format!("{target} ({} KB)", bytes / 1000)).collect();
    format!("kernels: compiled by NVRTC {major}.{minor} for {}\n", targets.join(", "))
}

/// The device to plan for, and what to call it.
fn facts(args: &Args, best: &Best) -> (DeviceFacts, String) {
    match (args.gpu, best) {
        (Some(profile), _) => (profile.facts(), format!("{profile:?}, from a table")),
        (None, Best::Gpu { backend, info }) => (backend.launcher().facts(), info.to_string()),
        (None, Best::Cpu { .. }) => (Profile::H100.facts(), "H100, from a table".to_owned()),
    }
}

fn plans(args: &Args, best: &Best) -> Result<String> {
    let layout = match args.layout {
        LayoutName::ChannelsFirst => Layout::ChannelsFirst,
        LayoutName::ChannelsLast => Layout::ChannelsLast,
    };
    let dtype = match args.dtype {
        TypeName::F32 => DType::F32,
        TypeName::F16 => DType::F16,
        TypeName::Bf16 => DType::Bf16,
    };
    let activation = if args.relu { Activation::Relu } else { Activation::Identity };
    let epilogue = Epilogue { activation, residual: args.residual };
    let problem = Problem::new(&args.shape, layout, dtype, epilogue)?;
    let (facts, name) = facts(args, best);
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "call",
        "kernel",
        "blocks x threads",
        "blocks per channel group",
        "shared memory a block",
        "inputs kept on chip",
        "requested",
        "memory traffic",
        "of the minimum traffic",
    ]);
    let aligned = Alignment::ALIGNED;
    let tier = args.tier.map(TierName::tier);
    for (call, pass, floor) in [
        ("forward_train", Pass::Forward, problem.forward_floor_bytes()),
        ("backward_train", Pass::Backward, problem.backward_floor_bytes()),
        // It writes no mask.
        ("inference", Pass::Inference, problem.forward_floor_bytes() - problem.mask_len()),
    ] {
        let plans = match pass {
            Pass::Inference => vec![Plan::new(pass, &problem, &facts, aligned)?],
            _ => training_plans(pass, &problem, &facts, aligned, aligned, tier)?,
        };
        for (index, plan) in plans.iter().enumerate() {
            let requested = plan.requested_bytes(&problem);
            let memory = plan.hbm_bytes(&problem, &facts, index == 1);
            table.add_row([
                call.to_owned(),
                plan.kernel.clone(),
                format!("{} x {BLOCK}", plan.grid),
                plan.parts.to_string(),
                shared_memory(plan),
                if pass == Pass::Inference { NOTHING.to_owned() } else { kept(plan, &problem) },
                megabytes(requested.total()),
                megabytes(memory),
                share(memory, floor),
            ]);
        }
    }
    for column in 2..9 {
        table.column_mut(column).expect("a header").set_cell_alignment(CellAlignment::Right);
    }
    Ok(format!("\n{problem} on {name}, tensors aligned to 16 bytes\n\n{table}\n"))
}

/// Where there is nothing to say.
const NOTHING: &str = "–";

fn share(bytes: u64, floor: usize) -> String {
    if floor == 0 { NOTHING.to_owned() } else { format!("{:.2}", bytes as f64 / floor as f64) }
}

/// Of a launch, with what the kernel has of its own.
fn shared_memory(plan: &Plan) -> String {
    if plan.tier == Tier::Streaming {
        return NOTHING.to_owned();
    }
    format!("{:.1} KB", f64::from(plan.shared_bytes + STATIC_SHARED_BYTES) / 1024.0)
}

/// The share of the inputs that stays on chip between the sweeps.
fn kept(plan: &Plan, problem: &Problem) -> String {
    if problem.elements() == 0 {
        return NOTHING.to_owned();
    }
    let evicted = match plan.tier {
        Tier::Streaming => problem.elements() as u64,
        Tier::Block | Tier::Cluster | Tier::Grid => plan.evicted_elements(problem),
    };
    let kept = 1.0 - evicted as f64 / problem.elements() as f64;
    format!("{:.0} %", 100.0 * kept)
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn main() -> io::Result<ExitCode> {
    let args = Args::parse();
    let mut out = io::stdout().lock();
    write!(out, "{}{}", devices_found(), kernels_embedded())?;
    let best = best();
    writeln!(out, "best: {best}")?;
    match plans(&args, &best) {
        Ok(plans) => {
            write!(out, "{plans}")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("error: {error}");
            Ok(ExitCode::FAILURE)
        }
    }
}
