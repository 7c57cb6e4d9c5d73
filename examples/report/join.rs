//! Puts our times beside the copy's and the peers'. Knows no files and no formatting.

use crate::id::{Id, Pass};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::HashMap;

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    pub id: Id,
    pub median_ns: f64,
    /// Which of a library's ways it was, where it has several: the fastest.
    pub way: Option<String>,
}

impl Measured {
    pub fn new(id: Id, median_ns: f64) -> Self {
        Measured { id, median_ns, way: None }
    }
}

/// Another library's measurements.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Peer {
    pub name: String,
    /// What they were made on: the processor, the GPU.
    pub devices: Vec<String>,
    pub versions: BTreeMap<String, String>,
    /// What other processes used of a core meanwhile, where the peer's program says so.
    pub foreign_cpu_share: Option<f64>,
    pub results: Vec<Measured>,
    /// What it does not do, by identifier, and what it says to that.
    pub refused: BTreeMap<String, String>,
    /// The same of single ways, where it has another that does it.
    pub refused_ways: BTreeMap<String, String>,
    /// A whole training step of ResNet-50, by its batch.
    pub resnet50_step_ns: BTreeMap<usize, f64>,
}

/// A measurement of ours and all that it is compared with.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub id: Id,
    pub median_ns: f64,
    pub floor_bytes: usize,
    /// The time a copy would take to move the floor's bytes, over ours.
    pub share_of_copy: Option<f64>,
    /// One for each peer, in the order of the peers.
    pub peers: Vec<Option<Against>>,
}

/// A peer's measurement of the same thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Against {
    pub median_ns: f64,
    pub way: Option<String>,
    /// The peer's time over ours: below 1, we are the slower one.
    pub ratio: f64,
}

/// One row for each measurement of ours, in the order of the tables.
pub fn join(ours: &[Measured], peers: &[Peer]) -> Result<Vec<Row>, warpnorm::Error> {
    let times = by_id(ours);
    let peer_times: Vec<_> = peers.iter().map(|peer| by_id(&peer.results)).collect();
    let mut rows = Vec::with_capacity(ours.len());
    for Measured { id, median_ns, .. } in ours {
        let name = id.to_string();
        let floor_bytes = id.floor_bytes()?;
        let yardstick = id.yardstick();
        let share_of_copy = match times.get(&yardstick.to_string()) {
            Some(copy) => {
                let copy_bytes = yardstick.floor_bytes()?;
                Some(floor_bytes as f64 / copy_bytes as f64 * copy.median_ns / median_ns)
            }
            None => None,
        };
        let against = |times: &HashMap<String, &Measured>| {
            let Measured { median_ns: theirs, way, .. } = times.get(&name)?;
            Some(Against { median_ns: *theirs, way: way.clone(), ratio: theirs / median_ns })
        };
        let peers = peer_times.iter().map(against).collect();
        rows.push(Row { id: id.clone(), median_ns: *median_ns, floor_bytes, share_of_copy, peers });
    }
    rows.sort_by_key(|row| order(&row.id));
    Ok(rows)
}

/// The least of the times of each identifier, which was measured in several rounds; and how many
/// there are of one at most.
pub fn fastest(measured: Vec<Measured>) -> (Vec<Measured>, usize) {
    let (mut rounds, mut of_id) = (HashMap::new(), BTreeMap::new());
    for it in measured {
        let name = it.id.to_string();
        *rounds.entry(name.clone()).or_insert(0) += 1;
        let least = of_id.entry(name).or_insert_with(|| it.clone());
        if it.median_ns < least.median_ns {
            *least = it;
        }
    }
    (of_id.into_values().collect(), rounds.into_values().max().unwrap_or(0))
}

fn by_id(measured: &[Measured]) -> HashMap<String, &Measured> {
    measured.iter().map(|it| (it.id.to_string(), it)).collect()
}

/// A GPU's tables first; by pass and layout; in them the plain case first, 4-D before 2-D, large
/// before small.
fn order(id: &Id) -> impl Ord + use<> {
    let elements: usize = id.extents.iter().product();
    let plain = (id.element, id.fused);
    let size = (Reverse(id.extents.len()), Reverse(elements), id.extents.clone());
    (!id.is_gpu(), id.pass, id.slot, plain, size, id.config)
}

/// Row and peer of every case in which a peer is the faster one, the worst first. Copies are
/// yardsticks, not competitors.
pub fn slower(rows: &[Row]) -> Vec<(&Row, usize, &Against)> {
    let mut found: Vec<_> = rows
        .iter()
        .filter(|row| row.id.pass != Pass::Copy)
        .flat_map(|row| {
            let against = row.peers.iter().enumerate();
            against.filter_map(move |(peer, against)| Some((row, peer, against.as_ref()?)))
        })
        .filter(|(_, _, against)| against.ratio < 1.0)
        .collect();
    found.sort_by(|a, b| a.2.ratio.total_cmp(&b.2.ratio));
    found
}

/// In how many cases a peer was measured too, and in how many of these we are no slower.
pub fn score(rows: &[Row], peer: usize) -> (usize, usize) {
    let ratios = rows
        .iter()
        .filter(|row| row.id.pass != Pass::Copy)
        .filter_map(|row| row.peers[peer].as_ref().map(|against| against.ratio));
    ratios.fold((0, 0), |(all, won), ratio| (all + 1, won + usize::from(ratio >= 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(id: &str, median_ns: f64) -> Measured {
        Measured::new(id.parse().unwrap(), median_ns)
    }

    fn peer(results: Vec<Measured>) -> Peer {
        Peer { name: "peer".into(), results, ..Peer::default() }
    }

    const FORWARD: &str = "train_forward/channels-first/f32/8x16x4x4/none/1t";
    const BACKWARD: &str = "train_backward/channels-first/f32/8x16x4x4/none/1t";
    const COPY: &str = "copy/channels-first/f32/8x16x4x4/none/1t";

    #[test]
    fn the_share_of_copy_scales_the_copy_to_the_bytes_of_the_floor() {
        let ours = [measured(FORWARD, 200.0), measured(BACKWARD, 300.0), measured(COPY, 100.0)];
        let rows = join(&ours, &[]).unwrap();
        let shares: Vec<_> = rows.iter().map(|row| row.share_of_copy).collect();
        // Backward moves three tensors, the copy two: 150 ns of copying in 300 ns.
        assert_eq!(shares, [Some(0.5), Some(0.5), Some(1.0)]);
    }

    #[test]
    fn a_copy_of_another_tensor_layout_or_thread_count_is_no_yardstick() {
        for copy in [
            "copy/channels-first/f32/8x16x4x5/none/1t",
            "copy/channels-first/f16/8x16x4x4/none/1t",
            "copy/channels-first/f32/8x16x4x4/none/2t",
            "copy/non-temporal/f32/8x16x4x4/none/1t",
        ] {
            let rows = join(&[measured(FORWARD, 200.0), measured(copy, 100.0)], &[]).unwrap();
            assert_eq!(rows[0].share_of_copy, None, "{copy}");
        }
    }

    #[test]
    fn every_peer_has_its_place_in_every_row() {
        let ours = [measured(FORWARD, 200.0), measured(BACKWARD, 300.0)];
        let peers = [peer(vec![measured(BACKWARD, 150.0)]), peer(vec![measured(FORWARD, 500.0)])];
        let rows = join(&ours, &peers).unwrap();
        assert_eq!(
            rows[0].peers,
            [None, Some(Against { median_ns: 500.0, way: None, ratio: 2.5 })]
        );
        assert_eq!(
            rows[1].peers,
            [Some(Against { median_ns: 150.0, way: None, ratio: 0.5 }), None]
        );
        assert_eq!(score(&rows, 0), (1, 0));
        assert_eq!(score(&rows, 1), (1, 1));
    }

    #[test]
    fn what_is_slower_than_a_peer_is_listed_worst_first_and_copies_never() {
        let ours = [measured(FORWARD, 200.0), measured(BACKWARD, 300.0), measured(COPY, 100.0)];
        let fast = [measured(FORWARD, 150.0), measured(BACKWARD, 100.0), measured(COPY, 1.0)];
        let rows = join(&ours, &[peer(fast.to_vec())]).unwrap();
        let ids: Vec<_> = slower(&rows).iter().map(|(row, ..)| row.id.to_string()).collect();
        assert_eq!(ids, [BACKWARD, FORWARD]);
    }

    #[test]
    fn of_several_rounds_the_fastest_counts() {
        let rounds = [(FORWARD, 3.0), (BACKWARD, 5.0), (FORWARD, 2.0), (FORWARD, 4.0)];
        let rounds = rounds.map(|(id, time)| measured(id, time)).to_vec();
        assert_eq!(fastest(rounds), (vec![measured(BACKWARD, 5.0), measured(FORWARD, 2.0)], 3));
        assert_eq!(fastest(Vec::new()), (Vec::new(), 0));
    }

    #[test]
    fn equal_times_are_not_slower() {
        let rows = join(&[measured(FORWARD, 200.0)], &[peer(vec![measured(FORWARD, 200.0)])]);
        assert!(slower(&rows.unwrap()).is_empty());
    }

    #[test]
    fn rows_come_in_the_order_of_the_tables() {
        let expected = [
            "train_forward/channels-first/f32/8x64x4x4/none/1t",
            "train_forward/channels-first/f32/8x64x4x4/none/2t",
            "train_forward/channels-first/f32/8x16x4x4/none/1t",
            "train_forward/channels-first/f32/8x64x4x4/relu/1t",
            "train_forward/channels-first/f16/8x64x4x4/none/1t",
            "train_forward/channels-last/f32/8x16x4x4/none/1t",
            "train_forward/channels-last/f32/4096x1024/none/1t",
            "copy/channels-first/f32/8x16x4x4/none/1t",
        ];
        let ours: Vec<_> = expected.iter().rev().map(|id| measured(id, 1.0)).collect();
        let ids: Vec<_> = join(&ours, &[]).unwrap().iter().map(|row| row.id.to_string()).collect();
        assert_eq!(ids, expected);
    }
}
