//! The pictures beside the page: each as SVG and PNG, from what was measured.

mod bars;
mod roofline;
mod share;

use crate::id::{Config, Element, Pass, Slot};
use crate::join::Row;
use crate::page::Report;
use crate::pictures::{BLUE, Canvas, Outcome, VERMILION};
use plotters::style::RGBColor;
use std::path::Path;

/// A picture that was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Of its files, without `.svg` and `.png`.
    pub name: String,
    pub caption: String,
}

const PASSES: [Pass; 2] = [Pass::TrainForward, Pass::TrainBackward];
const OURS: RGBColor = BLUE;
/// The rest of Okabe and Ito's.
const PEERS: [RGBColor; 5] = [
    VERMILION,
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
];

/// Draws what there are measurements for.
pub fn draw(report: &Report, folder: &Path) -> Outcome<Vec<Picture>> {
    let canvas = Canvas::new(folder)?;
    let Some(view) = View::of(report) else { return Ok(Vec::new()) };
    let mut pictures = Vec::new();
    for slot in [Slot::ChannelsFirst, Slot::ChannelsLast] {
        pictures.extend(share::draw(&canvas, &view, slot)?);
    }
    for slot in [Slot::ChannelsFirst, Slot::ChannelsLast] {
        pictures.extend(bars::draw(&canvas, &view, slot)?);
    }
    pictures.extend(roofline::draw(&canvas, &view)?);
    Ok(pictures)
}

/// What pictures show of a report: the GPU where there is one, or else one thread of the CPU.
struct View<'r> {
    report: &'r Report,
    config: Config,
    /// Of which most was measured.
    element: Element,
}

impl<'r> View<'r> {
    fn of(report: &'r Report) -> Option<Self> {
        let configs = || report.rows.iter().map(|row| row.id.config);
        let threads = configs().filter(|config| matches!(config, Config::Threads(_))).min();
        let config = configs().find(|&config| config == Config::Gpu).or(threads)?;
        let element = if config == Config::Gpu { Element::F16 } else { Element::F32 };
        Some(View { report, config, element })
    }

    fn rows(&self) -> impl Iterator<Item = &'r Row> {
        let config = self.config;
        self.report.rows.iter().filter(move |row| row.id.config == config)
    }

    /// Rows of the pictured element type.
    fn rows_of(&self, pass: Pass, slot: Slot) -> impl Iterator<Item = &'r Row> {
        let element = self.element;
        self.rows()
            .filter(move |row| (row.id.pass, row.id.slot, row.id.element) == (pass, slot, element))
    }

    /// Peers that were measured in any of these rows, with their colours: those with most first.
    fn peers(&self, rows: &[&Row]) -> Vec<(usize, &'r str, RGBColor)> {
        let count = |index: usize| rows.iter().filter(|row| row.peers[index].is_some()).count();
        let named = self.report.peers.iter().enumerate();
        let mut peers: Vec<_> = named.filter(|(index, _)| count(*index) > 0).collect();
        peers.sort_by_key(|(index, _)| std::cmp::Reverse(count(*index)));
        let colored = peers.into_iter().zip(PEERS);
        colored.map(|((index, peer), color)| (index, peer.name.as_str(), color)).collect()
    }

    /// Where and how: `f32, 1 thread`.
    fn setting(&self) -> String {
        let config = match self.config {
            Config::Threads(1) => "one thread".to_owned(),
            Config::Threads(threads) => format!("{threads} threads"),
            _ => "GPU".to_owned(),
        };
        format!("{}, {config}", self.element)
    }

    /// Machine, versions, day: what a picture must say wherever it is shown.
    fn source(&self) -> String {
        let report = self.report;
        let device = match (&report.gpu, self.config) {
            (Some(gpu), Config::Gpu) => gpu.device.name.clone(),
            _ => format!("{}, {} cores", report.machine.cpu, report.machine.cores),
        };
        let commit = report.commit.as_deref().unwrap_or("an unknown commit");
        format!("{device}; commit {commit}, {}", report.dates.1)
    }
}

/// `64×112²`, or `1024` where there is no spatial extent.
fn short_shape(sample: &[usize]) -> String {
    match sample {
        [channels, height, width] if height == width => format!("{channels}×{height}²"),
        other => other.iter().map(usize::to_string).collect::<Vec<_>>().join("×"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invented;

    #[test]
    fn every_picture_is_drawn_of_a_full_report_and_none_of_an_empty_one() {
        // Set to keep the pictures, for somebody to look at.
        let kept = std::env::var_os("WARPNORM_PICTURES");
        let temporary = tempfile::tempdir().unwrap();
        let folder = kept.as_ref().map_or(temporary.path(), Path::new);
        let mut report = invented::report();
        let names: Vec<_> =
            draw(&report, folder).unwrap().into_iter().map(|picture| picture.name).collect();
        assert_eq!(
            names,
            [
                "share-of-copy-channels-first",
                "share-of-copy-channels-last",
                "resnet-50-channels-first",
                "resnet-50-channels-last",
                "roofline"
            ]
        );
        for name in names {
            let svg = std::fs::read_to_string(folder.join(format!("{name}.svg"))).unwrap();
            assert!(svg.contains("</svg>"));
            assert!(folder.join(format!("{name}.png")).exists());
        }
        report.rows.clear();
        assert!(draw(&report, temporary.path()).unwrap().is_empty());
    }

    #[test]
    fn shapes_are_short() {
        assert_eq!(short_shape(&[64, 112, 112]), "64×112²");
        assert_eq!(short_shape(&[1024]), "1024");
        assert_eq!(short_shape(&[32, 20, 100, 100]), "32×20×100×100");
    }
}
