//! Charts with a name above, grey axes and horizontal lines.

use super::canvas::{Area, GREY, INK, NOTE, Outcome, TEXT, bold, text};
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

const GRID: RGBColor = RGBColor(0xe2, 0xe2, 0xe2);
/// Of a picture.
pub const HEIGHT: u32 = 1140;
/// In pixels of a picture that is shown at half its size.
pub const LINE: u32 = 5;
pub const THIN: u32 = 2;
pub const DOT: i32 = 9;

pub type Chart<'a, 'b, X, Y = RangedCoordf64> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>;

/// Room for a chart and its labels, the name of the y axis level above it.
pub fn chart<'a, 'b, X: AsRangedCoord, Y: AsRangedCoord>(
    area: &'a Area<'b>,
    x: X,
    y: Y,
    y_name: &str,
) -> Outcome<Chart<'a, 'b, X::CoordDescType, Y::CoordDescType>> {
    area.draw_text(y_name, &text(NOTE, GREY, HPos::Left, VPos::Top), (0, 0))?;
    let chart = ChartBuilder::on(area)
        .margin_top(62)
        .margin_right(4)
        .set_label_area_size(LabelAreaPosition::Left, 96)
        .set_label_area_size(LabelAreaPosition::Bottom, 92)
        .build_cartesian_2d(x, y)?;
    Ok(chart)
}

/// Horizontal grid lines, and labels on both axes.
pub fn axes<X, Y>(
    chart: &mut Chart<X, Y>,
    x_name: &str,
    x_label: &dyn Fn(&f64) -> String,
    y_label: &dyn Fn(&f64) -> String,
) -> Outcome<()>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let style = text(NOTE, GREY, HPos::Center, VPos::Center);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID.stroke_width(THIN))
        .axis_style(GREY.stroke_width(THIN))
        .x_labels(6)
        .y_labels(8)
        .x_label_formatter(x_label)
        .y_label_formatter(y_label)
        .label_style(style.clone())
        .x_desc(x_name)
        .axis_desc_style(style)
        .draw()?;
    Ok(())
}

/// Names below the x axis, each at its place, where the axis itself has none.
pub fn x_names<X, Y>(
    area: &Area,
    chart: &Chart<X, Y>,
    bottom: f64,
    names: impl IntoIterator<Item = (f64, String)>,
) -> Outcome<()>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    let style = text(NOTE, INK, HPos::Center, VPos::Top);
    let (left, top) = area.get_base_pixel();
    for (x, name) in names {
        let at = chart.backend_coord(&(x, bottom));
        area.draw_text(&name, &style, (at.0 - left, at.1 - top + 14))?;
    }
    Ok(())
}

/// Names in their colours, on the line of the y axis's name, at the right, the last one rightmost.
pub fn legend(area: &Area, entries: &[(&str, RGBColor)]) -> Outcome<()> {
    let (width, _) = area.dim_in_pixel();
    let mut right = width as i32;
    for &(name, color) in entries.iter().rev() {
        let style = bold(text(TEXT, color, HPos::Right, VPos::Top));
        area.draw_text(name, &style, (right, 0))?;
        right -= area.estimate_text_size(name, &style)?.0 as i32 + 30;
    }
    Ok(())
}
