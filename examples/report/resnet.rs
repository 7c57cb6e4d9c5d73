//! All batch norms of a ResNet-50 training step: its 53 layers, forward and backward.

use crate::cases::{RESNET_50, STEP_BATCHES};
use crate::id::{Config, Element, Id, Pass, Slot};
use crate::join::{Peer, Row};
use std::collections::HashMap;

/// A step's batch norms in f16.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub batch: usize,
    pub slot: Slot,
    pub ours_ns: f64,
    /// `None`: not all of them measured.
    pub peers_ns: Vec<Option<f64>>,
}

/// Those steps of which all our times are there.
pub fn steps(rows: &[Row], peers: &[Peer]) -> Vec<Step> {
    let by_id: HashMap<String, &Row> = rows.iter().map(|row| (row.id.to_string(), row)).collect();
    let mut steps = Vec::new();
    for batch in STEP_BATCHES {
        for slot in [Slot::ChannelsFirst, Slot::ChannelsLast] {
            let sum = |time: &dyn Fn(&Row) -> Option<f64>| -> Option<f64> {
                uses(batch, slot)
                    .map(|(id, count)| {
                        let row = by_id.get(&id.to_string())?;
                        Some(count as f64 * time(row)?)
                    })
                    .sum()
            };
            let Some(ours_ns) = sum(&|row| Some(row.median_ns)) else { continue };
            let peers_ns = (0..peers.len())
                .map(|index| sum(&|row| row.peers[index].as_ref().map(|against| against.median_ns)))
                .collect();
            steps.push(Step { batch, slot, ours_ns, peers_ns });
        }
    }
    steps
}

/// Each kind of call in a step, and how often it is made.
fn uses(batch: usize, slot: Slot) -> impl Iterator<Item = (Id, usize)> {
    let passes = [Pass::TrainForward, Pass::TrainBackward];
    let layers =
        RESNET_50.iter().flat_map(|layer| layer.uses.iter().map(move |use_| (layer, use_)));
    layers.flat_map(move |(layer, &(fused, count))| {
        passes.map(|pass| {
            let extents = [&[batch], &layer.sample[..]].concat();
            let (element, config) = (Element::F16, Config::Gpu);
            (Id { pass, slot, element, extents, fused, config }, count)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::{Measured, join};

    #[test]
    fn a_step_is_106_calls_and_a_gap_is_no_sum() {
        let all = |slot| uses(64, slot).map(|(id, _)| Measured::new(id, 1.0));
        let ours: Vec<_> = all(Slot::ChannelsFirst).chain(all(Slot::ChannelsLast)).collect();
        let theirs = Peer { results: ours[1..].to_vec(), ..Peer::default() };
        let peers = [theirs];
        let steps = steps(&join(&ours, &peers).unwrap(), &peers);
        let found: Vec<_> = steps.iter().map(|step| (step.batch, step.ours_ns)).collect();
        assert_eq!(found, [(64, 106.0), (64, 106.0)]);
        assert_eq!(steps[0].peers_ns, [None]);
        assert_eq!(steps[1].peers_ns, [Some(106.0)]);
    }
}
