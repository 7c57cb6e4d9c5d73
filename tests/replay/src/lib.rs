//! Runs batch-normalization case folders through [`warpnorm`] and scores what comes out.
//!
//! A case folder holds `meta.json` and NumPy arrays: inputs, and what another implementation made
//! of them. `case-format.md` beside this crate describes it; `README.md` shows how to dump one
//! from PyTorch.
//!
//! ```no_run
//! use replay::{Options, replay};
//!
//! let report = replay("cases/pytorch/train_2d_29x11".as_ref(), Options::default());
//! println!("{report}"); // PASS train_2d_29x11 y=6.1e-8 dx=...
//! ```

pub mod arrays;
pub mod buffers;
pub mod case;
#[cfg(emulated)]
mod emulated;
pub mod gpu;
pub mod magnitude;
pub mod meta;
pub mod npy;
pub mod onnx;
pub mod refusal;
pub mod report;
pub mod rule;
pub mod run;
pub mod score;
mod split_form;
pub mod subject;
pub mod sync;
pub mod tensor;
pub mod walk;

pub use report::{Device, Options, Report, Tier, Verdict, replay};
pub use walk::find_cases;
