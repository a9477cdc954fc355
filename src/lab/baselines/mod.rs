//! The competitors: methods of test-time adaptation as published, on the daemon's own classifier and diffusion model.
//!
//! Each module names its paper, the file of the public repository that it was checked against, and where it departs from
//! them. Losses are pure functions of logits (`losses.rs`); all that learns is a `Student`.
//! Where a paper has constants for CIFAR-10 and for ImageNet, those of CIFAR-10 are taken: ten classes, 32 x 32.
//! Invariant: nothing here knows the architecture of the classifier, but for what `ClassifierConfig` says of it; all models
//! come from [`Setting`].
//! Batch norm, where the classifier has it, takes the statistics of the window unless a module says otherwise.

mod augment;
mod competitor;
mod cotta;
mod diffusion_classifier;
mod dusa;
mod eata;
mod lame;
mod losses;
mod memo;
mod memory;
mod norm;
mod rdumb;
mod roid;
mod rotta;
mod sar;
#[cfg(test)]
mod stage;
mod stretched;
mod student;
mod tent;

pub use competitor::{ByNorm, Competitor, Context, Passes, Setting, Tuning};
pub use cotta::Cotta;
pub use diffusion_classifier::DiffusionClassifier;
pub use dusa::Dusa;
pub use eata::Eata;
pub use lame::Lame;
pub use memo::Memo;
pub use norm::Norm;
pub use rdumb::Rdumb;
pub use roid::Roid;
pub use rotta::Rotta;
pub use sar::Sar;
pub use stretched::Stretched;
pub use student::Weights;
pub use tent::Tent;
