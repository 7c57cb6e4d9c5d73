//! Pictures as SVG by plotters, and as PNG rendered from the same SVG, so that both are one.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, TextStyle, register_font};
use resvg::{tiny_skia, usvg};
use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

static REGULAR: &[u8] = include_bytes!("../../assets/Inter-Regular.otf");
static SEMI_BOLD: &[u8] = include_bytes!("../../assets/Inter-SemiBold.otf");

/// The name under which plotters finds the carried font; viewers of the SVG take their own.
const FAMILY: &str = "sans-serif";

pub const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
pub const GREY: RGBColor = RGBColor(0x60, 0x60, 0x60);

/// In pixels of a picture that is shown at half its size.
pub const TITLE: f64 = 42.0;
pub const TEXT: f64 = 30.0;
pub const NOTE: f64 = 25.0;
pub const WIDTH: u32 = 1920;
const MARGIN: i32 = 56;

/// A directory of pictures.
pub struct Canvas {
    directory: PathBuf,
    fonts: Arc<usvg::fontdb::Database>,
}

impl Canvas {
    /// Makes the directory if need be.
    pub fn new(directory: &Path) -> Outcome<Self> {
        fs::create_dir_all(directory).map_err(|error| naming(directory, error))?;
        let mut fonts = usvg::fontdb::Database::new();
        for (style, font) in [(FontStyle::Normal, REGULAR), (FontStyle::Bold, SEMI_BOLD)] {
            register_font(FAMILY, style, font).map_err(|_| "the carried font cannot be read")?;
            fonts.load_font_data(font.to_vec());
        }
        fonts.set_sans_serif_family("Inter");
        Ok(Canvas { directory: directory.to_owned(), fonts: Arc::new(fonts) })
    }

    /// Writes `name.svg` and `name.png`: what `content` draws, between title and caption.
    pub fn picture(
        &self,
        name: &str,
        height: u32,
        title: &str,
        caption: &str,
        content: impl FnOnce(&Area) -> Outcome<()>,
    ) -> Outcome<()> {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
            area.fill(&WHITE)?;
            let style = text(TITLE, INK, HPos::Left, VPos::Top);
            area.draw_text(title, &bold(style), (MARGIN, MARGIN))?;
            let style = text(NOTE, GREY, HPos::Left, VPos::Bottom);
            area.draw_text(caption, &style, (MARGIN, height as i32 - MARGIN + 12))?;
            content(&area.margin(MARGIN + 84, MARGIN + 44, MARGIN, MARGIN))?;
            area.present()?;
        }
        let svg = with_round_joins(svg);
        self.write(&format!("{name}.svg"), svg.as_bytes())?;
        self.write(&format!("{name}.png"), &self.png(&svg)?)
    }

    fn png(&self, svg: &str) -> Outcome<Vec<u8>> {
        let options = usvg::Options { fontdb: self.fonts.clone(), ..Default::default() };
        let tree = usvg::Tree::from_str(svg, &options)?;
        let size = tree.size().to_int_size();
        let mut pixels =
            tiny_skia::Pixmap::new(size.width(), size.height()).ok_or("a picture of no size")?;
        resvg::render(&tree, tiny_skia::Transform::identity(), &mut pixels.as_mut());
        Ok(pixels.encode_png()?)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Outcome<()> {
        let path = self.directory.join(name);
        fs::write(&path, bytes).map_err(|error| naming(&path, error).into())
    }
}

fn naming(path: &Path, error: io::Error) -> String {
    format!("{}: expected to write there, found: {error}", path.display())
}

/// plotters leaves joins mitred, which turns a noisy line into spikes.
fn with_round_joins(svg: String) -> String {
    const STYLE: &str = "<style>polyline{stroke-linejoin:round;stroke-linecap:round}</style>";
    match svg.find("<svg").and_then(|start| Some(start + svg[start..].find('>')? + 1)) {
        Some(after) => [&svg[..after], STYLE, &svg[after..]].concat(),
        None => svg,
    }
}

/// Text of a size in pixels.
pub fn text(size: f64, color: RGBColor, h_pos: HPos, v_pos: VPos) -> TextStyle<'static> {
    // plotters' SVG backend divides font sizes by this.
    const UNIT: f64 = 1.24;
    let font = (FAMILY, UNIT * size).into_font();
    let mut style = TextStyle::from(font).pos(Pos::new(h_pos, v_pos));
    style.color = color.to_backend_color();
    style
}

pub fn bold(mut style: TextStyle<'static>) -> TextStyle<'static> {
    style.font = style.font.style(FontStyle::Bold);
    style
}

/// A label to the right of a line's end.
pub struct EndLabel {
    pub text: String,
    pub color: RGBColor,
    /// Where the line ends.
    pub at: (i32, i32),
}

/// Draws labels one above the other, pushed apart as far as they would overlap.
pub fn draw_end_labels(area: &Area, mut labels: Vec<EndLabel>) -> Outcome<()> {
    const APART: i32 = 42;
    const GAP: i32 = 18;
    labels.sort_by_key(|label| label.at.1);
    for _ in 0..labels.len() {
        for upper in 1..labels.len() {
            let overlap = labels[upper - 1].at.1 + APART - labels[upper].at.1;
            if overlap > 0 {
                labels[upper - 1].at.1 -= (overlap + 1) / 2;
                labels[upper].at.1 += (overlap + 1) / 2;
            }
        }
    }
    let (left, top) = area.get_base_pixel();
    for label in labels {
        let style = text(TEXT, label.color, HPos::Left, VPos::Center);
        let at = (label.at.0 - left + GAP, label.at.1 - top);
        area.draw_text(&label.text, &style, at)?;
    }
    Ok(())
}
