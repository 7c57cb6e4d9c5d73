//! The same training over a range of learning rates, each a few times.

use crate::network::{Architecture, Network};
use crate::ops::{Ops, Real};
use crate::training::{Samples, Schedule, train};
use indicatif::ProgressBar;
use rayon::prelude::*;
use warpnorm::{Element, Result};

/// Half a decade apart.
pub const RATES: [f64; 9] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];
/// Runs for each rate and network, that differ in their seed.
pub const REPEATS: usize = 3;

/// What one learning rate led to: the final test accuracies, lowest first.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub learning_rate: f64,
    pub plain: [f64; REPEATS],
    pub normalized: [f64; REPEATS],
}

/// Runs in rayon's current pool, a network a thread. The schedule's own rate plays no part.
pub fn sweep<E: Element<Param: Real>, O: Ops<E::Param>>(
    architecture: &Architecture,
    ops: &O,
    samples: &Samples<E::Param>,
    schedule: &Schedule,
    progress: &ProgressBar,
) -> Result<Vec<Outcome>> {
    let run = |learning_rate: f64, normalized: bool, repeat: usize| -> Result<f64> {
        let seed = schedule.seed.wrapping_add(repeat as u64);
        let schedule = Schedule { learning_rate, seed, ..*schedule };
        let mut network = Network::<E, O>::new(architecture, ops, normalized, seed)?;
        let hidden = ProgressBar::hidden();
        let curve = train(&mut network, samples, &schedule, schedule.steps, &hidden)?;
        progress.inc(1);
        Ok(curve.points[curve.points.len() - 1].accuracy)
    };
    let runs = RATES.len() * REPEATS;
    let pairs: Vec<(f64, f64)> = (0..runs)
        .into_par_iter()
        .map(|index| {
            let (rate, repeat) = (RATES[index / REPEATS], index % REPEATS);
            Ok((run(rate, false, repeat)?, run(rate, true, repeat)?))
        })
        .collect::<Result<_>>()?;
    let outcome = |(&learning_rate, runs): (&f64, &[(f64, f64)])| Outcome {
        learning_rate,
        plain: sorted(std::array::from_fn(|repeat| runs[repeat].0)),
        normalized: sorted(std::array::from_fn(|repeat| runs[repeat].1)),
    };
    Ok(RATES.iter().zip(pairs.chunks(REPEATS)).map(outcome).collect())
}

fn sorted(mut accuracies: [f64; REPEATS]) -> [f64; REPEATS] {
    accuracies.sort_by(f64::total_cmp);
    accuracies
}
