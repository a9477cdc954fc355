//! The 15 standard and 4 extra image corruptions of the robustness benchmarks (Hendrycks and Dietterich, ICLR 2019).
//!
//! Sources: `make_cifar_c.py` and `make_tinyimagenet_c.py` in github.com/hendrycks/robustness, and for motion blur, where
//! those call ImageMagick, github.com/bethgelab/imagecorruptions. Each family has a file; each function there takes its constants
//! and its random input as values, so that it can be compared with the reference; [`corrupt`] draws that input.
//! Invariant: the same image, corruption, severity, table and [`Draws`] give the same bytes.
//! Grey images: noise, blur and geometry act on the one channel; what needs colour (frost, spatter, saturate) acts on the
//! image replicated to RGB, and the luma of that is the answer.
//! [`HeldOut`] are forty-two more, of no benchmark.
pub mod blur;
mod corrupt;
pub mod digital;
mod draws;
mod held_out;
mod held_out_again;
mod held_out_fifth;
mod held_out_fourth;
mod held_out_seventh;
mod held_out_sixth;
mod held_out_third;
pub mod noise;
pub mod raster;
pub mod spatter;
pub mod tables;
pub mod weather;

pub use corrupt::{Corruption, CorruptionError, Severity, corrupt};
pub use draws::Draws;
pub use held_out::HeldOut;
pub use tables::Table;
