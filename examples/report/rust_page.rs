//! The page's section about Rust's other batch norms.

use crate::files::{HardInput, Memory, RustFile};
use crate::id::Id;
use crate::table::{Table, error, ratio, time};
use std::fmt::Write;

pub fn write(rust: &RustFile, page: &mut String) {
    page.push_str("## Beside candle and Burn\n\n");
    write_memory(&rust.memory, page);
    write_allocation(rust, page);
    write_accuracy(&rust.accuracy, page);
}

fn write_memory(memory: &[Memory], page: &mut String) {
    let Some(first) = memory.first() else { return };
    let _ = writeln!(
        page,
        "Peak memory of a training forward and backward of {} in f32, in tensors of its size; x, \
         y, dy and dx are 4.\n",
        first.shape
    );
    let mut table = Table::new(&["library", "tensors"], 1);
    for it in memory {
        table.row(vec![it.library.clone(), format!("{:.1}", it.tensors)]);
    }
    table.write(page);
}

fn write_allocation(rust: &RustFile, page: &mut String) {
    if rust.allocation.is_empty() {
        return;
    }
    page.push_str(
        "Training passes that allocate their outputs, ours by the layer's calls on arrays. \
         **kept**: the allocator keeps freed memory. **returned**: it gives it back, so that \
         outputs are pages never touched, which Linux clears when they are. A ratio is a library's \
         time over ours.\n\n",
    );
    let columns = ["pass", "tensor", "config", "library", "kept", "ratio", "returned", "ratio"];
    let mut table = Table::new(&columns, 4);
    let ours =
        |id: &str| rust.allocation.iter().find(|row| row.id == id && row.library == "warpnorm");
    let mut rows: Vec<_> = rust.allocation.iter().collect();
    // Libraries side by side.
    rows.sort_by_key(|row| rust.allocation.iter().position(|first| first.id == row.id));
    for row in rows {
        let Ok(id) = row.id.parse::<Id>() else { continue };
        let against = |time: f64, own: f64| {
            if row.library == "warpnorm" { String::new() } else { ratio(time / own) }
        };
        let (kept, fresh) =
            ours(&row.id).map_or((f64::NAN, f64::NAN), |ours| (ours.kept_ns, ours.fresh_ns));
        table.row(vec![
            id.pass.to_string(),
            id.shape(),
            id.config.to_string(),
            row.library.clone(),
            time(row.kept_ns),
            against(row.kept_ns, kept),
            time(row.fresh_ns),
            against(row.fresh_ns, fresh),
        ]);
    }
    table.write(page);
}

fn write_accuracy(accuracy: &[HardInput], page: &mut String) {
    if accuracy.is_empty() {
        return;
    }
    page.push_str(
        "The largest error of a training pass, as a share of what adds up in an output's channel, \
         against the textbook in f64; rounding alone is 6e-8 in f32 and 5e-4 in f16.\n\n",
    );
    let mut table = Table::new(&["input", "library", "y", "dx"], 2);
    for it in accuracy {
        let (y, dx) = (error(it.y.0), error(it.dx.0));
        table.row(vec![it.input.clone(), it.library.clone(), y, dx]);
    }
    table.write(page);
}
