//! The first steps of a course once more on the CPU: as far as two devices round alike, the curves
//! are the same.

use crate::network::{Architecture, Network};
use crate::ops::Real;
use crate::training::{Curve, Samples, Schedule, train};
use indicatif::ProgressBar;
use warpnorm::{Cpu, DType, Element, Result};

/// Training makes much of little: what devices round otherwise grows with every step.
const STEPS: usize = 200;

/// How far two curves come apart.
#[derive(Debug, Clone, Copy)]
pub struct Deviation {
    pub steps: usize,
    /// The largest difference of a test accuracy.
    pub accuracy: f64,
    /// The largest difference of a test loss, as a share of the CPU's.
    pub loss: f64,
}

impl Deviation {
    /// Whether it is no more than `bound`.
    pub fn is_within(&self, bound: &Deviation) -> bool {
        // Comparisons that NaN fails.
        self.accuracy <= bound.accuracy && self.loss <= bound.loss
    }

    /// How far rounding may take the default network's curves apart. On the CPU, with every entry
    /// of every matrix product off by a random share of up to 4.8e-7, six seeds gave losses that
    /// differed by at most 4.4e-7 in f32, 2.5e-4 in f16 and 1.9e-3 in bf16, and accuracies by 0, 1
    /// and 2 of the 450 test images: this is about ten times that. It says nothing of other
    /// networks: without batch normalization, those of ReLU come apart entirely.
    pub fn bound(dtype: DType) -> Self {
        let (accuracy, loss) = match dtype {
            DType::F64 => (0.0, 0.0),
            DType::F32 => (0.005, 5e-6),
            DType::F16 => (0.02, 2.5e-3),
            DType::Bf16 => (0.03, 2e-2),
        };
        Deviation { steps: STEPS, accuracy, loss }
    }
}

/// How many steps of a course can be compared, if it is looked at every so many.
pub fn comparable(steps: usize, every: usize) -> usize {
    let looks = (STEPS / every).max(1);
    (looks * every).min(steps)
}

/// Trains on the CPU as `curve` was trained elsewhere, and compares.
pub fn compare<E: Element<Param: Real>>(
    curve: &Curve,
    architecture: &Architecture,
    normalized: bool,
    samples: &Samples<E::Param>,
    schedule: &Schedule,
    every: usize,
) -> Result<Deviation> {
    let schedule = Schedule { steps: comparable(schedule.steps, every), ..*schedule };
    let mut network = Network::<E, Cpu>::new(architecture, &Cpu::new(), normalized, schedule.seed)?;
    let twin = train(&mut network, samples, &schedule, every, &ProgressBar::hidden())?;
    Ok(deviation(curve, &twin))
}

/// Of the looks that both have had.
fn deviation(curve: &Curve, twin: &Curve) -> Deviation {
    let mut deviation = Deviation { steps: 0, accuracy: 0.0, loss: 0.0 };
    for (point, twin) in curve.points.iter().zip(&twin.points) {
        assert_eq!(point.step, twin.step, "looks at the same steps");
        deviation.steps = point.step;
        deviation.accuracy = larger(deviation.accuracy, (point.accuracy - twin.accuracy).abs());
        deviation.loss = larger(deviation.loss, (point.loss - twin.loss).abs() / twin.loss);
    }
    deviation
}

/// NaN if either is.
fn larger(a: f64, b: f64) -> f64 {
    if a > b || a.is_nan() { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::Point;
    use std::time::Duration;

    fn curve(looks: &[(f64, f64)]) -> Curve {
        let point = |(index, &(accuracy, loss)): (usize, &(f64, f64))| Point {
            step: 5 * index,
            accuracy,
            loss,
            percentiles: [0.0; 3],
        };
        let points = looks.iter().enumerate().map(point).collect();
        Curve { points, time: Duration::ZERO, norm_time: None }
    }

    #[test]
    fn the_largest_differences_count_of_the_looks_that_both_had() {
        let found = curve(&[(0.5, 2.0), (0.75, 1.0), (1.0, 0.0)]);
        let twin = curve(&[(0.5, 2.0), (0.5, 1.25)]);
        let deviation = deviation(&found, &twin);
        assert_eq!((deviation.steps, deviation.accuracy, deviation.loss), (5, 0.25, 0.2));
        assert!(!deviation.is_within(&Deviation::bound(DType::Bf16)));
    }

    #[test]
    fn a_diverged_curve_agrees_with_none() {
        let (found, twin) = (curve(&[(0.1, f64::NAN), (0.1, 1.0)]), curve(&[(0.1, 1.0); 2]));
        let bound = Deviation::bound(DType::Bf16);
        assert!(!deviation(&found, &twin).is_within(&bound));
        assert!(!deviation(&twin, &found).is_within(&bound));
        assert!(deviation(&twin, &twin).is_within(&Deviation::bound(DType::F32)));
    }

    #[test]
    fn looks_of_both_fall_on_the_same_steps() {
        assert_eq!(comparable(5000, 25), 200);
        assert_eq!(comparable(1_000_000, 5000), 5000);
        assert_eq!(comparable(30_000, 150), 150);
        assert_eq!(comparable(40, 1), 40);
    }
}
