//! What loops run along.

use crate::config::Layout;
use crate::problem::Problem;

/// Neighbouring values of a tensor that loops run along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// A channel's positions in a channels-first sample.
    Planes,
    /// A position's channels.
    Rows,
    /// A channels-first sample, whose planes are too small for loops of their own: a row, of which
    /// a channel has several neighbouring lanes.
    Samples,
}

impl Runs {
    /// Those of a call, whose tensors are all `gapless` or not.
    pub fn of(problem: &Problem, gapless: bool) -> Runs {
        match (problem.layout(), problem.spatial()) {
            // Of one position, layouts are the same.
            (Layout::ChannelsLast, _) | (_, 1) => Runs::Rows,
            // In a mask each plane has bytes of its own.
            _ if problem.epilogue().has_mask() => Runs::Planes,
            _ if gapless && Runs::may_be_samples(problem) => Runs::Samples,
            _ => Runs::Planes,
        }
    }

    /// Whether planes are so small, and samples so many, that adding up each lane by itself pays.
    pub fn may_be_samples(problem: &Problem) -> bool {
        const MOST_POSITIONS: usize = 12;
        const MOST_LANES: usize = 8192;
        /// For each position: what is done once a lane takes as long as some of its values.
        const FEWEST_SAMPLES: usize = 4;
        problem.layout() == Layout::ChannelsFirst
            && (2..=MOST_POSITIONS).contains(&problem.spatial())
            && problem.channels() * problem.spatial() <= MOST_LANES
            && problem.batch() >= FEWEST_SAMPLES * problem.spatial()
    }
}
