//! How many instructions a call takes for each element, which `docs/kernels.md` shows beside what there
//! is; with `WARPNORM_WRITE_INSTRUCTIONS=1` they are written there instead.

use conformance::devices::default_facts;
use conformance::document::{self, Section};
use conformance::suite::flat::Buffers;
use conformance::suite::on_backend::on_backend;
use conformance::suite::{Case, Data, LAYOUTS};
use half::{bf16, f16};
use libtest_mimic::{Arguments, Failed, Trial};
use ptx_machine::{PtxMachine, embedded};
use std::process::ExitCode;
use std::sync::Arc;
use std::{env, thread};
use warpnorm::cuda::{Alignment, Device, DeviceFacts, Pass, Plan, Tier, images, training_plans};
use warpnorm::{Activation, Backend, Element, Epilogue, Layout, Problem, Result};

/// What an H200's multiprocessors issue while its memory moves a byte: 128 a cycle, and 16 bytes.
const PER_BYTE: f64 = 8.0;

/// Of a tensor that takes turns of a block's threads, and of one that takes twice as many: what a launch
/// does beside its loops is not in the difference.
const TURNS: [usize; 2] = [8, 16];

const PASSES: [Pass; 3] = [Pass::Forward, Pass::Backward, Pass::Inference];

const EPILOGUES: [(&str, Epilogue); 4] = [
    ("none", Epilogue::NONE),
    ("ReLU", Epilogue { activation: Activation::Relu, residual: false }),
    ("residual, ReLU", Epilogue { activation: Activation::Relu, residual: true }),
    ("SiLU", Epilogue { activation: Activation::Silu, residual: false }),
];

/// A call, and where its tensors are between its sweeps.
#[derive(Clone, Copy)]
struct Call {
    pass: Pass,
    layout: Layout,
    epilogue: Epilogue,
    tier: Tier,
}

impl Call {
    /// One multiprocessor: its blocks have much to do.
    fn facts() -> DeviceFacts {
        DeviceFacts { multiprocessors: 1, cooperative_blocks: [1, 2], ..default_facts() }
    }

    /// A tensor that one block walks over in so many turns on chip, in several times as many if it
    /// streams: then blocks share it.
    fn case<E: Element>(&self, turns: usize) -> Case {
        let pack = 16 / size_of::<E>();
        let packs = 256 * turns * if self.tier == Tier::Streaming { 8 } else { 1 };
        let dim = match self.layout {
            Layout::ChannelsFirst => (packs * pack / 1024, 1, 1024),
            // Rows of four packs.
            Layout::ChannelsLast => (packs / 4, 4 * pack, 1),
        };
        Case::new(dim, self.layout, self.epilogue)
    }

    fn plans(&self, problem: &Problem) -> Result<Vec<Plan>> {
        let (facts, aligned) = (Call::facts(), Alignment::ALIGNED);
        match self.pass {
            Pass::Inference => Ok(vec![Plan::new(Pass::Inference, problem, &facts, aligned)?]),
            pass => training_plans(pass, problem, &facts, aligned, aligned, Some(self.tier)),
        }
    }

    /// Instructions of a tensor's launches, its elements, and the bytes that they ask memory for.
    fn run<E: Element>(&self, turns: usize) -> (f64, f64, f64) {
        let data = Data::<E>::new(self.case::<E>(turns));
        let mut buffers = Buffers::dense(&data);
        let problem = buffers.problem;
        let plans = self.plans(&problem).unwrap();
        let kernels = Arc::clone(embedded(90).expect("else this is ignored"));
        let device = Device::new(PtxMachine::new(kernels, Call::facts(), 0));
        let device = device.with_tier(Some(self.tier));
        let mut workspace = device.workspace(&problem).unwrap();
        let mut launches = Vec::new();
        on_backend(&mut buffers, &device, &mut workspace, |on| {
            if self.pass == Pass::Inference {
                on.inference()?;
            } else {
                on.forward_train()?;
            }
            if self.pass == Pass::Backward {
                device.launcher().take_launches();
                on.backward_train()?;
            }
            launches = device.launcher().take_launches();
            Ok(())
        })
        .unwrap();
        let ran: Vec<_> = launches.iter().map(|it| &it.kernel).collect();
        assert_eq!(ran, plans.iter().map(|plan| &plan.kernel).collect::<Vec<_>>());
        let instructions = launches.iter().map(|it| it.instructions).sum::<u64>();
        let bytes: u64 = plans.iter().map(|plan| plan.requested_bytes(&problem).total()).sum();
        (instructions as f64, problem.elements() as f64, bytes as f64)
    }

    /// Instructions for an element more, and what there is of them.
    fn counts<E: Element>(&self) -> [f64; 2] {
        let [few, many] = TURNS.map(|turns| self.run::<E>(turns));
        let elements = many.1 - few.1;
        [(many.0 - few.0) / elements, (many.2 - few.2) / elements * PER_BYTE]
    }

    /// Of f32, f16 and bf16.
    fn counts_of_all(&self) -> [[f64; 2]; 3] {
        thread::scope(|scope| {
            let narrow =
                [scope.spawn(|| self.counts::<f16>()), scope.spawn(|| self.counts::<bf16>())];
            let wide = self.counts::<f32>();
            let [half, brain] = narrow.map(|counts| counts.join().expect("a call failed"));
            [wide, half, brain]
        })
    }
}

/// The table's rows: what names them, and a cell for each type on chip and streaming.
fn rows() -> Vec<(String, Vec<Option<[f64; 2]>>)> {
    let mut rows = Vec::new();
    for pass in PASSES {
        for layout in LAYOUTS {
            for (name, epilogue) in EPILOGUES {
                let cells = [Tier::Block, Tier::Streaming].into_iter().flat_map(|tier| {
                    let is_there = pass != Pass::Inference || tier == Tier::Streaming;
                    let call = is_there.then_some(Call { pass, layout, epilogue, tier });
                    call.map_or([None; 3], |call| call.counts_of_all().map(Some))
                });
                let pass = match pass {
                    Pass::Inference => "inference",
                    Pass::Backward => "backward",
                    _ => "forward",
                };
                rows.push((format!("{pass} | {layout} | {name}"), cells.collect()));
            }
        }
    }
    rows
}

fn table() -> String {
    let mut table = heading();
    table += "\n| call | layout | epilogue | on chip: f32 | f16 | bf16 | streaming: f32 | f16 | bf16 |\n\
              | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n";
    for (name, cells) in rows() {
        let cells = cells.iter().map(|cell| match cell {
            Some([taken, there]) => format!("{taken:.0} of {there:.0}"),
            None => String::new(),
        });
        table += &format!("| {name} | {} |\n", cells.collect::<Vec<_>>().join(" | "));
    }
    table
}

/// The table's first line: other compilers make other code.
fn heading() -> String {
    let (major, minor) = images::compiler().expect("else this is ignored");
    format!("Of what NVRTC {major}.{minor} made.\n")
}

const REMEDY: &str = "WARPNORM_WRITE_INSTRUCTIONS=1 cargo test -p ptx-machine --test instructions";

fn section() -> Section {
    Section::open(document::KERNELS, "instructions").expect("the document has it")
}

fn is_written() -> bool {
    env::var_os("WARPNORM_WRITE_INSTRUCTIONS").is_some()
}

/// Whether two lines say the same, but for a tenth of their numbers: a compiler's patches may differ.
fn agree(shown: &str, counted: &str) -> bool {
    let [shown, counted] = [shown, counted].map(|text| text.split_whitespace().collect::<Vec<_>>());
    let is_near = |(a, b): (&&str, &&str)| match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => (a - b).abs() <= 0.1 * a.max(b),
        _ => a == b,
    };
    shown.len() == counted.len() && shown.iter().zip(&counted).all(is_near)
}

fn the_document_shows_them() -> std::result::Result<(), Failed> {
    let table = table();
    match is_written() {
        true => section().write(&table)?,
        false => section().check(&table, agree, REMEDY)?,
    }
    Ok(())
}

fn main() -> ExitCode {
    let is_missing = embedded(90).is_none();
    let is_other = !is_missing && !is_written() && !section().shown().starts_with(&heading());
    if is_missing {
        println!("nothing to count: no PTX for 90 in the build, as without NVRTC");
    } else if is_other {
        println!("nothing to compare: docs/kernels.md counts what another NVRTC made");
    }
    let trial = Trial::test("the_document_shows_them", the_document_shows_them);
    let trials = vec![trial.with_ignored_flag(is_missing || is_other)];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
