//! Fused CPU operations with their backward passes, as candle custom operations.
//!
//! candle loses the gradient silently in several of its own layers and computes gradients of frozen weights; models here
//! are therefore built of these operations only. Each states its shapes, recomputes in the backward pass what is cheap,
//! and returns a gradient for every argument that can be trained. What goes forward alone works on the slices of one image
//! ([`product`], [`modulate`], [`attend`], [`mixed_gelu`], [`gram_terms`]), vectorised for the processor that is found at run time.
//! Invariant: the bits of a result do not depend on the number of threads: work is cut by fixed sizes, and sums over
//! pieces are taken in order.
//! Shape letters: N images (or draws of images), T tokens, D hidden, K classes, P values a token has of one class.

#[cfg(test)]
pub mod allocations;
mod attention;
mod batch_norm;
mod class_errors;
#[cfg(feature = "cuda")]
pub mod cuda;
mod depthwise;
mod elementwise;
pub mod launch;
mod linear;
mod matmul;
mod normalize;
mod outer;
mod panels;
mod right_of_way;
mod slices;
mod unfold;
mod vectorized;

pub use attention::{AttentionWorkspace, attend, attend_backward, attention};
pub use batch_norm::{ChannelMoments, NormMoments, batch_norm};
pub use class_errors::{GramTerms, class_errors, gram_terms, gram_terms_into};
pub use depthwise::{NEIGHBOURS, mix, mix_backward, mixed_gelu, neighbour_mix};
pub use elementwise::{add_gated, gate_backward, gated_residual, gelu, gelu_backward, gelu_into, silu_in_place};
pub use linear::linear;
pub use matmul::{Matrix, Write, matmul};
pub use normalize::{modulate, modulate_backward, modulated_norm};
pub use outer::transposed_product;
pub use panels::{Finish, Panels, product};
pub use right_of_way::{RightOfWay, give_way_to};
pub use slices::{Variable, with_values};
pub use unfold::{strided, unfold};
pub use vectorized::vectorized;
