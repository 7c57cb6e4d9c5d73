//! How much faster than each peer, for each shape of ResNet-50's batch norms.

use super::{PASSES, Picture, View, short_shape};
use crate::cases::{BATCH, RESNET_50};
use crate::id::{Fused, Pass, Slot};
use crate::join::{Peer, Row};
use crate::pictures::{
    Area, Canvas, Chart, GREY, HEIGHT, INK, Outcome, TEXT, THIN, axes, bold, chart, legend, text,
    x_names,
};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

/// Of a group's room, what its bars take.
const FILLED: f64 = 0.8;
/// Beyond this a bar is cut, and its label says how far it would go.
const HIGHEST: f64 = 8.0;
/// Of a bar's number, in pixels of a picture that is shown at half its size.
const NUMBER: f64 = 22.0;

type PeerColor<'r> = (usize, &'r str, RGBColor);

pub fn draw(canvas: &Canvas, view: &View, slot: Slot) -> Outcome<Option<Picture>> {
    let panels = PASSES.map(|pass| (pass, layers(view, pass, slot)));
    let all: Vec<&Row> = panels.iter().flat_map(|(_, rows)| rows.iter().copied()).collect();
    let peers = view.peers(&all);
    if all.is_empty() || peers.is_empty() {
        return Ok(None);
    }
    let name = format!("resnet-50-{slot}");
    let batch = all[0].id.extents[0];
    let title =
        format!("Speed-up on ResNet-50’s batch norms: {slot}, N = {batch}, {}", view.setting());
    let epilogues = match all.iter().any(|row| row.id.fused != Fused::None) {
        true => "with ReLU and residual where the network has them",
        false => "without an epilogue",
    };
    let caption = format!(
        "A peer’s time over ours: above 1, warpnorm is faster. Calls {epilogues}.{} {}",
        refusals(view, &all),
        view.source()
    );
    canvas.picture(&name, HEIGHT + 160, &title, &caption, |area| {
        let names: Vec<_> = peers.iter().map(|&(_, name, color)| (name, color)).collect();
        legend(area, &names)?;
        let parts = area.margin(8, 0, 0, 20).split_evenly((2, 1));
        for (part, (pass, rows)) in parts.iter().zip(&panels) {
            panel(part, *pass, rows, &peers)?;
        }
        Ok(())
    })?;
    Ok(Some(Picture { name, caption: format!("{title}. {caption}") }))
}

/// ` cuDNN refuses 14 of 18.`
fn refusals(view: &View, rows: &[&Row]) -> String {
    let refusal = |peer: &Peer| {
        let refused = rows.iter().filter(|row| peer.refused.contains_key(&row.id.to_string()));
        match refused.count() {
            0 => String::new(),
            count => format!(" {} refuses {count} of {}.", peer.name, rows.len()),
        }
    };
    view.report.peers.iter().map(refusal).collect()
}

/// One row for each of the network's shapes that was measured, with the epilogue that most of its
/// layers have, or else without.
fn layers<'r>(view: &View<'r>, pass: Pass, slot: Slot) -> Vec<&'r Row> {
    let is_layer = |row: &&Row| RESNET_50.iter().any(|layer| row.id.extents[1..] == layer.sample);
    let rows: Vec<&Row> = view.rows_of(pass, slot).filter(is_layer).collect();
    let batches = || rows.iter().map(|row| row.id.extents[0]);
    let batch = batches().find(|&batch| batch == BATCH).or_else(|| batches().max());
    let find = |sample: &[usize], fused: Fused| {
        rows.iter().copied().find(|row| {
            row.id.extents[1..] == *sample
                && Some(row.id.extents[0]) == batch
                && row.id.fused == fused
                && row.peers.iter().any(Option::is_some)
        })
    };
    let gpu = view.config == crate::id::Config::Gpu;
    let found = RESNET_50.iter().filter_map(|layer| {
        let usual = layer.uses.iter().max_by_key(|(_, count)| *count).filter(|_| gpu);
        let fused = usual.and_then(|(fused, _)| find(&layer.sample, *fused));
        fused.or_else(|| find(&layer.sample, Fused::None))
    });
    found.collect()
}

fn panel(area: &Area, pass: Pass, rows: &[&Row], peers: &[PeerColor]) -> Outcome<()> {
    let heading = match pass {
        Pass::TrainForward => "training forward",
        _ => "training backward",
    };
    let style = bold(text(TEXT, GREY, HPos::Left, VPos::Top));
    area.draw_text(heading, &style, (96, 0))?;
    let ratios = rows.iter().flat_map(|row| row.peers.iter().flatten());
    let most = ratios.fold(1.5, |most: f64, against| most.max(1.12 * against.ratio)).min(HIGHEST);
    let mut chart = chart(area, 0.0..rows.len().max(1) as f64, 0.0..most, "")?;
    axes(&mut chart, "", &|_| String::new(), &|ratio| {
        format!("{}×", (100.0 * ratio).round() / 100.0)
    })?;
    let shapes = rows.iter().map(|row| short_shape(&row.id.extents[1..]));
    x_names(area, &chart, 0.0, (0..).map(|group| f64::from(group) + 0.5).zip(shapes))?;
    let width = FILLED / peers.len() as f64;
    for (group, row) in rows.iter().enumerate() {
        for (place, (index, _, color)) in peers.iter().enumerate() {
            let Some(against) = &row.peers[*index] else { continue };
            let left = group as f64 + (1.0 - FILLED) / 2.0 + place as f64 * width;
            bar(&mut chart, left..left + 0.9 * width, against.ratio, most, *color)?;
        }
    }
    let one = [(0.0, 1.0), (rows.len() as f64, 1.0)];
    chart.draw_series(LineSeries::new(one, INK.stroke_width(THIN)))?;
    Ok(())
}

fn bar(
    chart: &mut Chart<RangedCoordf64>,
    across: std::ops::Range<f64>,
    ratio: f64,
    most: f64,
    color: RGBColor,
) -> Outcome<()> {
    let top = ratio.min(most);
    let corners = [(across.start, 0.0), (across.end, top)];
    chart.draw_series([Rectangle::new(corners, color.filled())])?;
    // Not across the line at 1, and not above the chart.
    let inside = ratio > 0.92 * most || (ratio < 1.0 && ratio > 1.0 - 0.12 * most);
    let (color, position, shift) =
        if inside { (WHITE, VPos::Top, 6) } else { (color, VPos::Bottom, -3) };
    // Never rounds what is slower up to 1.
    let shown = if ratio < 1.0 { (ratio * 100.0).floor() / 100.0 } else { ratio };
    let style = bold(text(NUMBER, color, HPos::Center, position));
    let middle = (across.start + across.end) / 2.0;
    let number =
        EmptyElement::at((middle, top)) + Text::new(format!("{shown:.2}"), (0, shift), style);
    chart.draw_series([number])?;
    Ok(())
}
