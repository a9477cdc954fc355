//! Operation counts: multiplications and additions of matrix products, computed from sizes. What goes over values once (norms, GELU,
//! softmax, neighbours, noise) is left out.

#![allow(dead_code, reason = "each bench takes what it needs")]

use undrift::model::{DitConfig, TrunkConfig};

/// Of one image's forward pass; `outputs` are those of each token.
pub fn forward(trunk: &TrunkConfig, outputs: usize) -> f64 {
    let (t, d) = (trunk.tokens(), trunk.hidden);
    let block = d * (4 * d + 2 * trunk.mlp_ratio * d) + 2 * t * d;
    (2 * t * (trunk.depth * block + d * (trunk.window_elements() + outputs))) as f64
}

/// Of forward and backward pass of one image where all weights learn: a product more by the inputs, and one by the weights.
pub fn forward_and_backward(trunk: &TrunkConfig) -> f64 {
    3.0 * forward(trunk, 0)
}

/// Of the judgement of one draw: predicted noise under each class, products of each two of them, and of each with the noise.
pub fn judgement(config: &DitConfig) -> f64 {
    let pairs = config.classes * (config.classes + 1) / 2 + config.classes;
    forward(&config.trunk, config.outputs()) + (2 * pairs * config.trunk.image.elements()) as f64
}
