//! [`Choice`]: which of its plans a training pass gets.

use super::launcher::DeviceFacts;
use super::model::{inference_seconds, streaming_seconds};
use super::plan::{Alignment, Pass, Plan, Tier};
use super::resident::resident;
use crate::error::{Error, Result};
use crate::problem::Problem;

/// What is said of a training pass's plan beforehand, for tests and measurements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// What should take the least time.
    #[default]
    Best,
    /// The best of a tier; what has no such plan streams.
    Tier(Tier),
    /// The best of a tier with so many blocks to a channel: the size of a cluster, or of a team that
    /// meets in memory, or the parts of each launch that streams. An error where there is none.
    Parts(Tier, u32),
}

impl From<Option<Tier>> for Choice {
    fn from(tier: Option<Tier>) -> Choice {
        tier.map_or(Choice::Best, Choice::Tier)
    }
}

impl Choice {
    /// Blocks to a channel, if they are said.
    pub(super) fn parts(self) -> Option<u64> {
        match self {
            Choice::Best | Choice::Tier(_) => None,
            Choice::Parts(_, parts) => Some(parts.into()),
        }
    }

    pub(super) fn allows(self, tier: Tier, parts: u64) -> bool {
        match self {
            Choice::Best => true,
            Choice::Tier(only) => only == tier,
            Choice::Parts(only, as_many) => only == tier && u64::from(as_many) == parts,
        }
    }

    /// Of blocks to a channel that `tier` has no plan with.
    fn refused(tier: Tier, parts: u32, problem: &Problem, facts: &DeviceFacts) -> Error {
        let expected = match tier {
            Tier::Streaming => format!("blocks that all have a part of {problem}"),
            Tier::Block => format!("1 block that holds a group of channels of {problem}"),
            Tier::Cluster => {
                let largest = facts.clusters.largest();
                format!("a cluster that holds a group of channels of {problem}, at most {largest}")
            }
            Tier::Grid => {
                let [_, most] = facts.cooperative_blocks;
                format!("2 to {most} blocks that all have a part of {problem}")
            }
        };
        Error::argument("parts", expected, parts)
    }
}

/// The launches of a training pass, `Pass::Forward` or `Pass::Backward`: one that keeps tensors on
/// chip, or two that stream. `inputs` is how the tensors of the first sweep lie.
///
/// # Errors
/// As for [`Plan::new`]; blocks to a channel that no plan can have.
pub fn training_plans(
    pass: Pass,
    problem: &Problem,
    facts: &DeviceFacts,
    inputs: Alignment,
    all: Alignment,
    choice: impl Into<Choice>,
) -> Result<Vec<Plan>> {
    Ok(plans_and_seconds(pass, problem, facts, [inputs, all], choice.into())?.0)
}

/// Seconds that a call should take by the model that plans are chosen by: `Pass::Forward` or
/// `Pass::Backward` with aligned tensors, or `Pass::Inference`.
///
/// # Errors
/// As for [`training_plans`].
pub fn predicted_seconds(
    pass: Pass,
    problem: &Problem,
    facts: &DeviceFacts,
    choice: impl Into<Choice>,
) -> Result<f64> {
    let aligned = [Alignment::ALIGNED; 2];
    match pass {
        Pass::Inference => {
            let plan = Plan::new(pass, problem, facts, Alignment::ALIGNED)?;
            Ok(inference_seconds(problem, facts, &plan))
        }
        _ => Ok(plans_and_seconds(pass, problem, facts, aligned, choice.into())?.1),
    }
}

fn plans_and_seconds(
    pass: Pass,
    problem: &Problem,
    facts: &DeviceFacts,
    [inputs, all]: [Alignment; 2],
    choice: Choice,
) -> Result<(Vec<Plan>, f64)> {
    let [first, second] = match pass {
        Pass::Backward => [Pass::Reduce, Pass::Gradient],
        _ => [Pass::Statistics, Pass::Apply],
    };
    let first = Plan::new(first, problem, facts, inputs)?;
    let streaming = [first, Plan::new(second, problem, facts, all)?];
    let seconds = streaming_seconds(pass, problem, facts, &streaming);
    let found = match choice {
        Choice::Tier(Tier::Streaming) => None,
        Choice::Parts(Tier::Streaming, parts) => {
            let [first, second] = streaming.each_ref().map(|plan| plan.with_parts(parts, problem));
            first.zip(second).map(|(first, second)| {
                let plans = [first, second];
                let seconds = streaming_seconds(pass, problem, facts, &plans);
                (plans.into(), seconds)
            })
        }
        _ => resident(pass, problem, facts, all, choice)
            .filter(|(_, time)| choice != Choice::Best || *time < seconds)
            .map(|(plan, time)| (vec![plan], time)),
    };
    match (found, choice) {
        (Some(found), _) => Ok(found),
        (None, Choice::Parts(tier, parts)) => Err(Choice::refused(tier, parts, problem, facts)),
        (None, _) => Ok((streaming.into(), seconds)),
    }
}
