//! Arithmetic a second against arithmetic per byte, under what copying allows.

use super::{OURS, Picture, View};
use crate::id::{Element, Fused, Id, Pass};
use crate::join::Row;
use crate::pictures::{
    Canvas, Chart, DOT, EndLabel, GREY, HEIGHT, INK, LINE, NOTE, Outcome, axes, chart,
    draw_end_labels, legend, text, x_names,
};
use plotters::coord::combinators::LogCoord;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

/// Operations for an element, additions and multiplications counted alike. Forward: sum (1),
/// deviation, square, sum (3), scale and shift (2). Backward: deviation, product and two sums (4),
/// two multiply-adds (4). Inference: scale and shift.
fn operations(pass: Pass) -> f64 {
    match pass {
        Pass::TrainForward => 6.0,
        Pass::TrainBackward => 8.0,
        Pass::Inference => 2.0,
        Pass::Copy => 0.0,
    }
}

/// One kind of call on its largest tensor.
struct Point<'r> {
    row: &'r Row,
    per_byte: f64,
    /// Operations of the whole call.
    operations: f64,
}

impl Point<'_> {
    /// Operations per byte, billions of operations a second.
    fn at(&self, ns: f64) -> (f64, f64) {
        (self.per_byte, self.operations / ns)
    }
}

pub fn draw(canvas: &Canvas, view: &View) -> Outcome<Option<Picture>> {
    let (Some(bandwidth), points) = (copy_bandwidth(view), points(view)) else {
        return Ok(None);
    };
    if points.len() < 2 {
        return Ok(None);
    }
    let rows: Vec<&Row> = points.iter().map(|point| point.row).collect();
    let peers = view.peers(&rows);
    let title = format!("Roofline: what copying at {:.0} GB/s allows", bandwidth / 1e9);
    let caption = format!(
        "Largest tensors. Operations per element: forward 6, backward 8, inference 2. {}",
        view.source()
    );
    let x = points.iter().fold(f64::MAX..0.0, |range: std::ops::Range<f64>, point| {
        range.start.min(point.per_byte / 1.5)..range.end.max(point.per_byte * 1.5)
    });
    let y = 0.1 * bandwidth * x.start..1.6 * bandwidth * x.end;
    canvas.picture("roofline", HEIGHT, &title, &caption, |area| {
        let names = peers.iter().map(|&(_, name, color)| (name, color));
        let names: Vec<_> = [("warpnorm", OURS)].into_iter().chain(names).collect();
        legend(area, &names)?;
        let (area, labels) = area.margin(8, 0, 0, 20).split_horizontally(1560);
        let (x_range, y_range) = (x.clone().log_scale(), (y.start / 1e9..y.end / 1e9).log_scale());
        let mut chart = chart(&area, x_range, y_range, "G operations a second")?;
        axes(&mut chart, "operations per byte", &|_| String::new(), &|y| y.to_string())?;
        let ticks = [0.25, 0.5, 1.0, 2.0].into_iter().filter(|tick| x.contains(tick));
        x_names(&area, &chart, y.start / 1e9, ticks.map(|tick| (tick, tick.to_string())))?;
        let roof = [x.start, x.end].map(|x| (x, bandwidth * x / 1e9));
        chart.draw_series(LineSeries::new(roof, GREY.stroke_width(LINE)))?;
        let end = EndLabel { text: "copy".into(), color: GREY, at: chart.backend_coord(&roof[1]) };
        draw_end_labels(&labels, vec![end])?;
        for point in &points {
            let times = peers.iter().filter_map(|&(index, _, color)| {
                point.row.peers[index].as_ref().map(|against| (against.median_ns, color))
            });
            let times: Vec<_> = times.chain([(point.row.median_ns, OURS)]).collect();
            for &(ns, color) in &times {
                let dot = Circle::new(point.at(ns), DOT + 3, color.filled());
                chart.draw_series([dot])?;
            }
            name(&mut chart, point, times.iter().fold(0.0, |most, (ns, _)| ns.max(most)))?;
        }
        Ok(())
    })?;
    Ok(Some(Picture { name: "roofline".into(), caption: format!("{title}. {caption}") }))
}

type LogChart<'a, 'b> = Chart<'a, 'b, LogCoord<f64>, LogCoord<f64>>;

/// Beside the lowest dot or below it, where no other kind is.
fn name(chart: &mut LogChart, point: &Point, slowest_ns: f64) -> Outcome<()> {
    let id = &point.row.id;
    let (pass, side, shift) = match id.pass {
        Pass::TrainForward => ("forward", HPos::Left, (20, 0)),
        Pass::TrainBackward => ("backward", HPos::Right, (20, 32)),
        _ => ("inference", HPos::Right, (-20, 0)),
    };
    let style = text(NOTE, INK, side, VPos::Center);
    let name = Text::new(format!("{pass} {}", id.element), shift, style);
    chart.draw_series([EmptyElement::at(point.at(slowest_ns)) + name])?;
    Ok(())
}

/// Of the fastest copy that no cache has a part in.
fn copy_bandwidth(view: &View) -> Option<f64> {
    let copies = || view.rows().filter(|row| row.id.pass == Pass::Copy);
    let largest = copies().map(|row| row.floor_bytes).max()?;
    let large = copies().filter(|row| row.floor_bytes >= largest / 2);
    large.map(|row| row.floor_bytes as f64 / row.median_ns * 1e9).reduce(f64::max)
}

/// For each pass, f32 and f16, the largest tensor; of two layouts the faster one.
fn points<'r>(view: &View<'r>) -> Vec<Point<'r>> {
    let mut points = Vec::new();
    for pass in [Pass::TrainForward, Pass::TrainBackward, Pass::Inference] {
        for element in [Element::F32, Element::F16] {
            let of_kind = |id: &Id| (id.pass, id.element, id.fused) == (pass, element, Fused::None);
            let rows = view.rows().filter(|row| of_kind(&row.id));
            let best = rows.max_by(|a, b| {
                let size = a.floor_bytes.cmp(&b.floor_bytes);
                size.then(b.median_ns.total_cmp(&a.median_ns))
            });
            let Some(row) = best else { continue };
            let elements: usize = row.id.extents.iter().product();
            let operations = operations(pass) * elements as f64;
            points.push(Point { row, per_byte: operations / row.floor_bytes as f64, operations });
        }
    }
    points
}
