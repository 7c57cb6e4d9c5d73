//! What the examples draw with: a canvas that writes SVG and PNG, and charts on it.

mod canvas;
mod chart;

pub use canvas::{
    Area, Canvas, EndLabel, GREY, INK, NOTE, Outcome, TEXT, TITLE, WIDTH, bold, draw_end_labels,
    text,
};
pub use chart::{Chart, DOT, HEIGHT, LINE, THIN, axes, chart, legend, x_names};

use plotters::style::RGBColor;

/// Two colours that colour-blind readers tell apart (Okabe & Ito 2008).
pub const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
pub const VERMILION: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
