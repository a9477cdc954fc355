//! Fused CPU operations with their backward passes, as candle custom operations.
//!
//! candle loses the gradient silently in several of its own layers and computes gradients of frozen weights; models here
//! are therefore built of these operations only. Each states its shapes, recomputes in the backward pass what is cheap,
//! and returns a gradient for every argument that can be trained.
//! Invariant: the bits of a result do not depend on the number of threads: work is cut by fixed sizes, and sums over
//! pieces are taken in order.
//! Shape letters: N images (or draws of images), T tokens, D hidden, K classes, P values a token has of one class.

mod attention;
mod class_errors;
mod elementwise;
mod linear;
mod matmul;
mod normalize;
mod slices;

pub use attention::attention;
pub use class_errors::{GramTerms, class_errors, gram_terms};
pub use elementwise::{gated_residual, gelu};
pub use linear::linear;
pub use normalize::modulated_norm;
