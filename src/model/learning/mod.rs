//! Forward and backward passes of the vision transformer that learns, without tensors.
//!
//! They compute what [`super::Vit`] computes and what candle's backward pass makes of it, in buffers that stay. Forward, the bits are
//! those of [`super::InferenceVit`], so that what learns is what answers.
//! Invariant: one image is the unit of work; gradients are added image by image, in the order of the calls.

mod linear;
mod trunk;
mod vit;

pub use vit::{BackwardWorkspace, LearningVit, Tape};
