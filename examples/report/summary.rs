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
    /// `None` where the peer refuses all.
    pub ratios: Option<Ratios>,
    /// What the peer refuses of this kind.
    pub refused: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Ratios {
    pub mean: f64,
    pub least: f64,
    /// Where the least is.
    pub worst: Id,
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
            let against = of_kind().filter_map(|row| {
                row.peers[index].as_ref().map(|against| (against.ratio, &row.id))
            });
            let against: Vec<(f64, &Id)> = against.collect();
            let is_refused = |row: &&Row| peer.refused.contains_key(&row.id.to_string());
            let refused = of_kind().filter(is_refused).count();
            if against.is_empty() && refused == 0 {
                continue;
            }
            let (cases, ratios) = (against.len(), ratios(&against));
            lines.push(Line { kind, peer: index, cases, ratios, refused });
        }
    }
    lines
}

fn ratios(against: &[(f64, &Id)]) -> Option<Ratios> {
    let &(least, worst) = against.iter().min_by(|a, b| a.0.total_cmp(&b.0))?;
    let mean = geometric_mean(against.iter().map(|(ratio, _)| *ratio));
    Some(Ratios { mean, least, worst: worst.clone() })
}

fn geometric_mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value.ln(), count + 1));
    (sum / f64::from(count)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::{Measured, join};

    fn measured(shape: &str, layout: &str, median_ns: f64) -> Measured {
        let id = format!("train_forward/{layout}/f32/{shape}/none/1t").parse().unwrap();
        Measured::new(id, median_ns)
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
        assert_eq!((lines[0].cases, lines[0].refused), (2, 0));
        let ratios = lines[0].ratios.as_ref().unwrap();
        assert!((ratios.mean - 2.0).abs() < 1e-12);
        assert_eq!((ratios.least, ratios.worst.shape().as_str()), (0.5, "8x4x2x2"));
        assert_eq!((lines[1].cases, lines[1].refused), (1, 1));
    }

    #[test]
    fn a_kind_that_is_refused_altogether_is_a_line() {
        let ours = [measured("8x4x2x2", "channels-last", 1.0)];
        let refused = [(ours[0].id.to_string(), "no".to_owned())].into();
        let peers = [Peer { refused, ..Peer::default() }, Peer::default()];
        let lines = summarize(&join(&ours, &peers).unwrap(), &peers);
        assert_eq!(lines.len(), 1);
        assert_eq!((lines[0].peer, lines[0].cases, lines[0].refused), (0, 0, 1));
        assert_eq!(lines[0].ratios, None);
    }

    #[test]
    fn the_geometric_mean_is_one_of_a_ratio_and_its_inverse() {
        assert!((geometric_mean([4.0, 0.25].into_iter()) - 1.0).abs() < 1e-12);
    }
}
