//! Measures every plan that a training pass has, beside what the plans' model predicts of it:
//!
//!     cargo bench --bench tune
//!     cargo bench --bench tune -- train_backward/channels-last/f16/64x256x56x56
//!     cargo bench --bench tune -- --parts=2,4,8 train_backward/channels-last/f16/64x256x56x56
//!
//! Each identifier that contains the text given, in each tier that has a plan for it, and where
//! `--parts` says so, with as many blocks to a channel: clusters and teams of these sizes. Marked are
//! the plan that is chosen and the one that was fastest: where they differ, or a prediction is far
//! off, the constants of `src/cuda/resident.rs` are what to change.

#[path = "../shared/calls.rs"]
#[allow(dead_code, reason = "some is for the benchmarks")]
mod calls;
mod case;
#[path = "../shared/cases.rs"]
#[allow(dead_code, reason = "some is for the CPU, some for the report")]
mod cases;
#[allow(dead_code, reason = "only its errors are of interest here")]
mod cudnn;
#[path = "../../examples/report/files.rs"]
#[allow(dead_code, reason = "some is for the report")]
mod files;
#[allow(dead_code, reason = "some is for the benchmarks")]
mod gpu;
#[path = "../../examples/report/id.rs"]
#[allow(dead_code, reason = "the report reads identifiers, the benchmarks only write them")]
mod id;
#[allow(dead_code, reason = "series in the cache are for the benchmarks")]
mod sampling;
#[path = "../shared/score.rs"]
#[allow(dead_code, reason = "differences are for cuDNN")]
mod score;
#[allow(dead_code, reason = "what the host takes is for the benchmarks")]
mod timing;

use case::Case;
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use gpu::Gpu;
use half::{bf16, f16};
use id::{Config, Element as Type, Id, Pass};
use std::num::ParseIntError;
use std::process::ExitCode;
use warpnorm::cuda::{
    Alignment, Choice, Pass as Call, Plan, Tier, predicted_seconds, training_plans,
};
use warpnorm::{Element, Result};

/// The tiers, one after the other. The compiler says when one is missing.
fn after(tier: Option<Tier>) -> Option<Tier> {
    match tier {
        None => Some(Tier::Streaming),
        Some(Tier::Streaming) => Some(Tier::Block),
        Some(Tier::Block) => Some(Tier::Cluster),
        Some(Tier::Cluster) => Some(Tier::Grid),
        Some(Tier::Grid) => None,
    }
}

/// A plan and its times.
struct Measured {
    plans: Vec<Plan>,
    predicted_ns: f64,
    measured_ns: f64,
}

fn main() -> ExitCode {
    let gpu = match Gpu::open() {
        Ok(gpu) => gpu,
        Err(reason) => {
            println!("no GPU, nothing measured: {reason}");
            return ExitCode::SUCCESS;
        }
    };
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let parts = match parts(std::env::args()) {
        Ok(parts) => parts,
        Err(error) => {
            eprintln!("--parts: {error}");
            return ExitCode::FAILURE;
        }
    };
    let is_training = |id: &Id| matches!(id.pass, Pass::TrainForward | Pass::TrainBackward);
    let mut ids = cases::gpu();
    ids.retain(|id| {
        id.config == Config::Gpu && is_training(id) && id.to_string().contains(&filter)
    });
    let mut failed = false;
    for id in ids {
        let outcome = match id.element {
            Type::F16 => tune::<f16>(&gpu, &id, &parts),
            Type::Bf16 => tune::<bf16>(&gpu, &id, &parts),
            Type::F32 | Type::F64 => tune::<f32>(&gpu, &id, &parts),
        };
        match outcome {
            Ok((measured, all)) => {
                println!("{id}\n{}\n", table(&gpu, &id, &measured));
                failed |= !all;
            }
            Err(error) => {
                eprintln!("{id}: {error}");
                failed = true;
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn call_of(id: &Id) -> Call {
    if id.pass == Pass::TrainBackward { Call::Backward } else { Call::Forward }
}

/// What `--parts` says.
fn parts(mut args: impl Iterator<Item = String>) -> std::result::Result<Vec<u32>, ParseIntError> {
    let list = args.find_map(|arg| arg.strip_prefix("--parts=").map(str::to_owned));
    list.iter().flat_map(|list| list.split(',')).map(str::parse).collect()
}

fn plans(gpu: &Gpu, id: &Id, choice: Choice) -> Result<Vec<Plan>> {
    let aligned = Alignment::ALIGNED;
    training_plans(call_of(id), &id.problem()?, &gpu.planned_with, aligned, aligned, choice)
}

/// Every tier, by itself and with as many blocks to a channel as `parts` says.
fn choices(parts: &[u32]) -> impl Iterator<Item = Choice> {
    std::iter::successors(after(None), |tier| after(Some(*tier))).flat_map(move |tier| {
        let of_parts = parts.iter().map(move |parts| Choice::Parts(tier, *parts));
        std::iter::once(Choice::Tier(tier)).chain(of_parts)
    })
}

/// Every plan once: a tier that has none of its own streams. One that fails ends none of the others;
/// whether all went well is said, too.
fn tune<E: Element>(gpu: &Gpu, id: &Id, parts: &[u32]) -> Result<(Vec<Measured>, bool)> {
    let mut case = Case::<E>::new(gpu, id.problem()?)?;
    let (mut found, mut all) = (Vec::<Measured>::new(), true);
    for choice in choices(parts) {
        let plans = match plans(gpu, id, choice) {
            Ok(plans) => plans,
            // Not every tier can have so many.
            Err(_) if matches!(choice, Choice::Parts(..)) => continue,
            Err(error) => return Err(error),
        };
        if found.iter().any(|it| it.plans == plans) {
            continue;
        }
        match measure(&mut case, id, choice, plans) {
            Ok(measured) => found.push(measured),
            Err(error) => {
                eprintln!("{id}: {choice:?}: {error}");
                all = false;
            }
        }
    }
    // An error that stays with the device is all plans' from here on.
    gpu.cuda.synchronize()?;
    Ok((found, all))
}

fn measure<E: Element>(
    case: &mut Case<'_, E>,
    id: &Id,
    choice: Choice,
    plans: Vec<Plan>,
) -> Result<Measured> {
    case.force(choice)?;
    case.check(id.pass)?;
    let measured_ns = sampling::median_ns(|calls| case.time(id.pass, id.config, calls))?;
    let facts = &case.gpu.facts;
    let seconds = predicted_seconds(call_of(id), &case.problem, facts, choice)?;
    Ok(Measured { plans, predicted_ns: seconds * 1e9, measured_ns })
}

fn table(gpu: &Gpu, id: &Id, measured: &[Measured]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let header = [
        "tier",
        "kernel",
        "blocks",
        "blocks per group",
        "on chip",
        "predicted",
        "measured",
        "off",
        "of copy",
        "",
    ];
    table.set_header(header);
    let chosen = plans(gpu, id, Choice::Best).ok();
    let fastest = measured.iter().map(|it| it.measured_ns).fold(f64::INFINITY, f64::min);
    let floor_ns = id.floor_bytes().unwrap_or(0) as f64 / gpu.facts.memory_bandwidth as f64 * 1e9;
    for Measured { plans, predicted_ns, measured_ns } in measured {
        let plan = &plans[0];
        let is_chosen = chosen.as_ref() == Some(plans);
        let mark = match (is_chosen, *measured_ns == fastest) {
            (true, true) => "chosen, fastest",
            (true, false) => "chosen",
            (false, true) => "fastest",
            (false, false) => "",
        };
        table.add_row([
            format!("{:?}", plan.tier).to_lowercase(),
            plan.kernel.clone(),
            plan.grid.to_string(),
            plan.parts.to_string(),
            format!("{} KB", plan.shared_bytes >> 10),
            format!("{:.1} us", predicted_ns / 1e3),
            format!("{:.1} us", measured_ns / 1e3),
            format!("{:+.0} %", 100.0 * (measured_ns / predicted_ns - 1.0)),
            format!("{:.0} %", 100.0 * floor_ns / measured_ns),
            mark.to_owned(),
        ]);
    }
    for column in 2..9 {
        table.column_mut(column).expect("a header").set_cell_alignment(CellAlignment::Right);
    }
    table
}
