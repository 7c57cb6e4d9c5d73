//! Share of copying speed by the tensor's size.

use super::{OURS, PASSES, Picture, View};
use crate::id::{Fused, Pass, Slot};
use crate::join::Row;
use crate::pictures::{
    Area, Canvas, DOT, GREY, HEIGHT, LINE, NOTE, Outcome, TEXT, THIN, axes, bold, chart, legend,
    text,
};
use crate::table::percent;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use std::ops::Range;

/// Fewer points make no curve.
const LEAST: usize = 3;

struct Curve<'r> {
    name: &'r str,
    color: RGBColor,
    /// Megabytes and shares.
    points: Vec<(f64, f64)>,
}

pub fn draw(canvas: &Canvas, view: &View, slot: Slot) -> Outcome<Option<Picture>> {
    let panels = PASSES.map(|pass| (pass, curves(view, pass, slot)));
    if panels.iter().any(|(_, curves)| curves[0].points.len() < LEAST) {
        return Ok(None);
    }
    let all = || panels.iter().flat_map(|(_, curves)| curves);
    let points = || all().flat_map(|curve| &curve.points);
    let sizes = points().fold(f64::MAX..0.0, |range: Range<f64>, point| {
        range.start.min(point.0 / 1.5)..range.end.max(point.0 * 1.5)
    });
    let most = points().fold(1.1, |most: f64, point| most.max(1.05 * point.1));
    let name = format!("share-of-copy-{slot}");
    let title = format!("Share of copying speed by tensor size: {slot}, {}", view.setting());
    let caption = format!(
        "100 %: each tensor read or written once, as fast as a plain copy moves as many bytes. {}",
        view.source()
    );
    canvas.picture(&name, HEIGHT, &title, &caption, |area| {
        let mut names: Vec<(&str, RGBColor)> = Vec::new();
        for curve in all() {
            if !names.contains(&(curve.name, curve.color)) {
                names.push((curve.name, curve.color));
            }
        }
        legend(area, &names)?;
        let parts = area.margin(52, 0, 0, 0).split_evenly((1, 2));
        for (part, (pass, curves)) in parts.iter().zip(&panels) {
            panel(part, *pass, curves, sizes.clone(), most)?;
        }
        Ok(())
    })?;
    Ok(Some(Picture { name, caption: format!("{title}. {caption}") }))
}

/// Ours first.
fn curves<'r>(view: &View<'r>, pass: Pass, slot: Slot) -> Vec<Curve<'r>> {
    let plain = |row: &&Row| row.id.fused == Fused::None;
    let rows: Vec<&Row> = view.rows_of(pass, slot).filter(plain).collect();
    let curve = |name, color, factor: &dyn Fn(&Row) -> Option<f64>| {
        let point = |row: &&Row| {
            let bytes = row.id.yardstick().floor_bytes().ok()? / 2;
            Some((bytes as f64 / 1e6, row.share_of_copy? * factor(row)?))
        };
        let mut points: Vec<_> = rows.iter().filter_map(point).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Curve { name, color, points }
    };
    let mut curves = vec![curve("warpnorm", OURS, &|_| Some(1.0))];
    for (index, name, color) in view.peers(&rows) {
        curves.push(curve(name, color, &|row| Some(1.0 / row.peers[index].as_ref()?.ratio)));
    }
    curves
}

fn panel(area: &Area, pass: Pass, curves: &[Curve], sizes: Range<f64>, most: f64) -> Outcome<()> {
    let heading = match pass {
        Pass::TrainForward => "training forward",
        _ => "training backward",
    };
    let style = bold(text(TEXT, GREY, HPos::Left, VPos::Top));
    area.draw_text(heading, &style, (96, 0))?;
    let area = area.margin(0, 0, 0, 30);
    let mut chart = chart(&area, sizes.clone().log_scale(), 0.0..most, "")?;
    axes(&mut chart, "tensor, MB", &|&size| megabytes(size), &|&share| percent(share))?;
    let full = [(sizes.start, 1.0), (sizes.end, 1.0)];
    chart.draw_series(LineSeries::new(full, GREY.stroke_width(THIN)))?;
    let note = text(NOTE, GREY, HPos::Right, VPos::Bottom);
    let label = EmptyElement::at((sizes.end, 1.0)) + Text::new("copy", (-4, -4), note);
    chart.draw_series([label])?;
    for Curve { color, points, .. } in curves.iter().rev() {
        chart.draw_series(LineSeries::new(means(points), color.stroke_width(LINE)))?;
        let dots = points.iter().map(|&point| Circle::new(point, DOT, color.filled()));
        chart.draw_series(dots)?;
    }
    Ok(())
}

/// One point for tensors of the same size.
fn means(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let same_size = points.chunk_by(|a, b| a.0 == b.0);
    let mean = |points: &[(f64, f64)]| {
        let sum: f64 = points.iter().map(|point| point.1).sum();
        (points[0].0, sum / points.len() as f64)
    };
    same_size.map(mean).collect()
}

fn megabytes(size: f64) -> String {
    if size < 1.0 { format!("{size}") } else { format!("{size:.0}") }
}
