//! Forward passes alone, for models that need no gradient: the judge, and classifiers that do not learn.
//!
//! They compute what [`super::Dit`] and [`super::Vit`] compute, without tensors and without allocation: weights are packed once,
//! and an image's activations stay in the nearest caches, in the buffers of a workspace.
//! Invariant: one image is the unit of work, so that its bits do not depend on other images or on the number of threads.

mod dit;
mod trunk;
mod vit;

pub use dit::{DitWorkspace, InferenceDit};
pub use vit::{InferenceVit, VitWorkspace};
