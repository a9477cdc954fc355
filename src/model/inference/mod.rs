//! The diffusion model's forward pass alone, for the judge, which needs no gradient.
//!
//! It computes what [`super::Dit`] computes, without tensors and without allocation: weights are packed once,
//! and an image's activations stay in the nearest caches, in the buffers of a workspace.
//! Invariant: one image is the unit of work, so that its bits do not depend on other images or on the number of threads.

mod dit;
mod trunk;

pub use dit::{DitWorkspace, InferenceDit};
