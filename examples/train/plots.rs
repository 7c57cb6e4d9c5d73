//! The three pictures.

use crate::pictures::{
    Area, BLUE, Canvas, Chart, DOT, EndLabel, GREY, HEIGHT, LINE, NOTE, Outcome, TEXT, THIN,
    VERMILION, axes, bold, chart, draw_end_labels, legend, text,
};
use crate::report::{grouped, steps_to};
use crate::sweep::{self, REPEATS};
use crate::training::{Curve, Point};
use plotters::coord::ranged1d::Ranged;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use std::ops::Range;

const NORMALIZED: RGBColor = BLUE;
const PLAIN: RGBColor = VERMILION;
/// The axis of pre-activations reaches at least this far up and down, and at most this far.
const LEAST: f64 = 1.0;
const LIMIT: f64 = 50.0;

/// Test accuracy against steps: the paper's figure 1 (a).
pub fn accuracy(canvas: &Canvas, caption: &str, plain: &Curve, normalized: &Curve) -> Outcome<()> {
    const GOAL: f64 = 0.9;
    let title = match (steps_to(normalized, GOAL), steps_to(plain, GOAL)) {
        (Some(normalized), Some(plain)) => format!(
            "90 % test accuracy after {} steps with batch normalization, {} without",
            grouped(normalized),
            grouped(plain)
        ),
        (Some(normalized), None) => format!(
            "90 % test accuracy after {} steps with batch normalization, never without",
            grouped(normalized)
        ),
        _ => "Test accuracy with batch normalization and without".to_owned(),
    };
    canvas.picture("accuracy", HEIGHT, &title, caption, |area| {
        let (area, labels) = area.split_horizontally(1450);
        let mut chart = chart(&area, steps_of(plain), 0.0..1.0, "test accuracy")?;
        axes(&mut chart, "training steps", &|&step| grouped(step as usize), &percent)?;
        let mut ends = Vec::new();
        for (curve, color, name) in
            [(plain, PLAIN, "without"), (normalized, NORMALIZED, "with batch norm")]
        {
            let line = curve.points.iter().map(|point| (point.step as f64, point.accuracy));
            chart.draw_series(LineSeries::new(line, color.stroke_width(LINE)))?;
            if let Some(point) = curve.points.iter().find(|point| point.accuracy >= GOAL) {
                let label = format!("{} steps", grouped(point.step));
                mark(&mut chart, (point.step as f64, point.accuracy), color, label)?;
            }
            let last = curve.points[curve.points.len() - 1];
            ends.push(EndLabel {
                text: format!("{:.1} % {name}", 100.0 * last.accuracy),
                color,
                at: chart.backend_coord(&(last.step as f64, last.accuracy)),
            });
        }
        draw_end_labels(&labels, ends)
    })
}

/// A dot with a label below and to the right of it.
fn mark<X: Ranged<ValueType = f64>>(
    chart: &mut Chart<X>,
    at: (f64, f64),
    color: RGBColor,
    label: String,
) -> Outcome<()> {
    let style = text(NOTE, color, HPos::Left, VPos::Top);
    let dot = EmptyElement::at(at)
        + Circle::new((0, 0), DOT, color.filled())
        + Text::new(label, (12, 20), style);
    chart.draw_series([dot])?;
    Ok(())
}

fn steps_of(curve: &Curve) -> Range<f64> {
    0.0..curve.points[curve.points.len() - 1].step as f64
}

/// What enters one unit's nonlinearity, against steps: the paper's figure 1 (b) and (c).
pub fn percentiles(
    canvas: &Canvas,
    caption: &str,
    plain: &Curve,
    normalized: &Curve,
) -> Outcome<()> {
    let (range, clipped) = common_range(plain, normalized);
    let mut note = "percentiles, over the test images, of what enters one unit of the last hidden \
                    layer"
        .to_owned();
    let title = match (settled(normalized), settled(plain)) {
        (Some(normalized), Some(plain)) => {
            note += "; settled: within half the final spread";
            format!(
                "One unit’s input settles within {} steps with batch normalization, {} without",
                grouped(normalized),
                grouped(plain)
            )
        }
        _ => "One unit’s input with batch normalization and without".to_owned(),
    };
    if clipped {
        note += &format!("; clipped at {LIMIT}");
    }
    canvas.picture("pre-activation", HEIGHT, &title, caption, |area| {
        area.draw_text(&note, &text(NOTE, GREY, HPos::Left, VPos::Top), (0, 0))?;
        let panels = area.margin(70, 0, 0, 0).split_evenly((1, 2));
        for (panel, (curve, color, name)) in panels.iter().zip([
            (plain, PLAIN, "without batch normalization"),
            (normalized, NORMALIZED, "with batch normalization"),
        ]) {
            let heading = bold(text(TEXT, color, HPos::Left, VPos::Top));
            panel.draw_text(name, &heading, (96, 0))?;
            percentiles_panel(panel, curve, color, range.clone())?;
        }
        Ok(())
    })
}

fn percentiles_panel(
    panel: &Area,
    curve: &Curve,
    color: RGBColor,
    range: Range<f64>,
) -> Outcome<()> {
    let (width, _) = panel.dim_in_pixel();
    let (panel, labels) = panel.split_horizontally(width - 150);
    let mut chart = chart(&panel, steps_of(curve), range, "")?;
    axes(&mut chart, "training steps", &|&step| grouped(step as usize), &signed)?;
    let points: Vec<&Point> = shown(curve).collect();
    let line = |index: usize| {
        points
            .iter()
            .map(move |point| (point.step as f64, point.percentiles[index].clamp(-LIMIT, LIMIT)))
    };
    let band: Vec<(f64, f64)> = line(0).chain(line(2).rev()).collect();
    chart.draw_series([Polygon::new(band, color.mix(0.15))])?;
    let mut ends = Vec::new();
    for (index, name, width) in [(0, "15th", THIN), (1, "50th", LINE), (2, "85th", THIN)] {
        chart.draw_series(LineSeries::new(line(index), color.stroke_width(width)))?;
        if let Some(last) = line(index).next_back() {
            ends.push(EndLabel { text: name.to_owned(), color, at: chart.backend_coord(&last) });
        }
    }
    draw_end_labels(&labels, ends)
}

/// The points after the start, where the running statistics know nothing yet.
fn shown(curve: &Curve) -> impl Iterator<Item = &Point> {
    let finite = |point: &&Point| point.percentiles.iter().all(|value| value.is_finite());
    curve.points.iter().skip(1).filter(finite)
}

/// The step from which on all percentiles stay within half their final spread of their final
/// values.
fn settled(curve: &Curve) -> Option<usize> {
    let last = shown(curve).last()?.percentiles;
    let near = |point: &Point| {
        let mut changes = point.percentiles.iter().zip(last).map(|(now, then)| (now - then).abs());
        changes.all(|change| change <= 0.5 * (last[2] - last[0]))
    };
    let points: Vec<&Point> = shown(curve).collect();
    let still = points.iter().rev().take_while(|point| near(point)).last()?;
    Some(still.step)
}

/// Both networks' percentiles with some room, 0 among them, and whether that would be more than
/// the picture shows: a network that diverges would leave no room for the other.
fn common_range(plain: &Curve, normalized: &Curve) -> (Range<f64>, bool) {
    let values = shown(plain).chain(shown(normalized)).flat_map(|point| point.percentiles);
    let (low, high) =
        values.fold((0.0, 0.0), |(low, high): (f64, f64), value| (low.min(value), high.max(value)));
    let clipped = low < -LIMIT || high > LIMIT;
    let (low, high) = (low.clamp(-LIMIT, -LEAST), high.clamp(LEAST, LIMIT));
    let room = 0.05 * (high - low);
    (low - room..high + room, clipped)
}

/// Final test accuracy against learning rate.
pub fn sweep(
    canvas: &Canvas,
    caption: &str,
    outcomes: &[sweep::Outcome],
    steps: usize,
) -> Outcome<()> {
    let title = sweep_title(outcomes);
    canvas.picture("learning-rates", HEIGHT, title, caption, |area| {
        let (first, last) = (&outcomes[0], &outcomes[outcomes.len() - 1]);
        let range = 0.8 * first.learning_rate..1.25 * last.learning_rate;
        let name = format!(
            "test accuracy after {} steps: {REPEATS} runs each, line through medians",
            grouped(steps)
        );
        let mut chart = chart(area, range.log_scale(), 0.0..1.0, &name)?;
        axes(&mut chart, "learning rate", &|rate| rate.to_string(), &percent)?;
        for (color, normalized) in [(PLAIN, false), (NORMALIZED, true)] {
            let runs = |outcome: &sweep::Outcome| {
                if normalized { outcome.normalized } else { outcome.plain }
            };
            let median =
                outcomes.iter().map(|outcome| (outcome.learning_rate, middle(runs(outcome))));
            chart.draw_series(LineSeries::new(median, color.stroke_width(LINE)))?;
            let dots = outcomes.iter().flat_map(|outcome| {
                runs(outcome).map(|accuracy| (outcome.learning_rate, accuracy))
            });
            chart.draw_series(dots.map(|at| Circle::new(at, DOT, color.filled())))?;
        }
        legend(area, &[("with batch normalization", NORMALIZED), ("without", PLAIN)])
    })
}

fn middle(sorted: [f64; REPEATS]) -> f64 {
    sorted[REPEATS / 2]
}

/// Claims what the paper does only where these runs show it.
fn sweep_title(outcomes: &[sweep::Outcome]) -> &'static str {
    const TRAINS: f64 = 0.8;
    const FAILS: f64 = 0.5;
    let highest = |runs: fn(&sweep::Outcome) -> [f64; REPEATS], least: f64| {
        outcomes.iter().rposition(|outcome| middle(runs(outcome)) > least)
    };
    let normalized = highest(|outcome| outcome.normalized, TRAINS);
    if normalized > highest(|outcome| outcome.plain, FAILS) {
        "Batch normalization trains at learning rates where the plain network fails"
    } else {
        "Learning rates with batch normalization and without"
    }
}

fn percent(share: &f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// In hundredths, with a true minus sign.
fn signed(value: &f64) -> String {
    let hundredths = (100.0 * value).round() / 100.0;
    hundredths.to_string().replace('-', "−")
}
