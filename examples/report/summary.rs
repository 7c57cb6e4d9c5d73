//! Ratios in short: for each pass, layout and element type, against each peer.

use crate::id::{Config, Element, Id, Pass, Slot};
use crate::join::{Peer, Row};

/// What is put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub pass: Pass,
    pub slot: Slot,
    pub element: Element,
    pub config: Config,
}

impl Kind {
    pub fn of(id: &Id) -> Self {
        Kind { pass: id.pass, slot: id.slot, element: id.element, config: id.config }
    }
}

/// A kind against a peer.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub kind: Kind,
    pub peer: usize,
    pub cases: usize,
    pub mean: f64,
    pub least: f64,
    /// Where the least is.
    pub worst: Id,
    /// What the peer refuses of this kind.
    pub refused: usize,
}

/// In the order of the rows. Copies are yardsticks.
pub fn summarize(rows: &[Row], peers: &[Peer]) -> Vec<Line> {
    let mut kinds: Vec<Kind> = Vec::new();
    for row in rows.iter().filter(|row| row.id.pass != Pass::Copy) {
        let kind = Kind::of(&row.id);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let mut lines = Vec::new();
    for kind in kinds {
        let of_kind = || rows.iter().filter(move |row| Kind::of(&row.id) == kind);
        for (index, peer) in peers.iter().enumerate() {
            let ratios = of_kind()
                .filter_map(|row| row.peers[index].map(|against| (against.ratio, &row.id)));
            let ratios: Vec<(f64, &Id)> = ratios.collect();
            let Some(&(least, worst)) = ratios.iter().min_by(|a, b| a.0.total_cmp(&b.0)) else {
                continue;
            };
            let refused = of_kind().filter(|row| peer.refused.contains_key(&row.id.to_string()));
            lines.push(Line {
                kind,
                peer: index,
                cases: ratios.len(),
                mean: geometric_mean(ratios.iter().map(|(ratio, _)| *ratio)),
                least,
                worst: worst.clone(),
                refused: refused.count(),
            });
        }
    }
    lines
}

pub fn geometric_mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value.ln(), count + 1));
    (sum / f64::from(count)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::{Measured, join};

    fn measured(shape: &str, layout: &str, median_ns: f64) -> Measured {
        let id = format!("train_forward/{layout}/f32/{shape}/none/1t").parse().unwrap();
        Measured { id, median_ns }
    }

    #[test]
    fn kinds_are_kept_apart_and_the_worst_case_is_named() {
        let of = |times: [f64; 3]| {
            vec![
                measured("8x4x2x2", "channels-first", times[0]),
                measured("8x8x2x2", "channels-first", times[1]),
                measured("8x8x2x2", "channels-last", times[2]),
            ]
        };
        let refused = "train_forward/channels-last/f32/8x8x2x2/none/1t";
        let peer = Peer {
            results: of([50.0, 800.0, 100.0]),
            refused: [(refused.to_owned(), "no".to_owned())].into(),
            ..Peer::default()
        };
        let peers = [peer];
        let rows = join(&of([100.0; 3]), &peers).unwrap();
        let lines = summarize(&rows, &peers);
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].cases, lines[0].least, lines[0].refused), (2, 0.5, 0));
        assert!((lines[0].mean - 2.0).abs() < 1e-12);
        assert_eq!(lines[0].worst.shape(), "8x4x2x2");
        assert_eq!((lines[1].cases, lines[1].refused), (1, 1));
    }

    #[test]
    fn the_geometric_mean_is_one_of_a_ratio_and_its_inverse() {
        assert!((geometric_mean([4.0, 0.25].into_iter()) - 1.0).abs() < 1e-12);
    }
}
