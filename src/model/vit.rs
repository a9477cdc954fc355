//! The classifier: a vision transformer (arXiv 2010.11929) of the DiT's blocks, mean-pooled.
//!
//! Its norms are modulated by learned constants: scale and shift play the affine part of a layer norm, the gate that of
//! LayerScale. It has no batch statistics, so it adapts at any batch size.

use super::blocks::{BLOCK_MODULATIONS, Linear, Trunk, TrunkConfig};
use super::parameters::{Initializer, ParameterError, Parameters, Tensors};
use crate::kernels;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// Sizes of a classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    pub trunk: TrunkConfig,
    /// K
    pub classes: usize,
}

/// The classifier: images (N, C, H, W) in -1..=1 -> logits (N, K).
#[derive(Clone, Debug)]
pub struct Vit {
    config: VitConfig,
    trunk: Trunk,
    /// (1, 6 D) for each block.
    modulations: Vec<Tensor>,
    /// (1, 2 D): shift and scale.
    final_modulation: Tensor,
    head: Linear,
}

impl Vit {
    /// First values of the parameters.
    pub fn initialize(config: &VitConfig, seed: u64) -> Result<Tensors, ParameterError> {
        let mut initializer = Initializer::new(seed);
        let d = config.trunk.hidden;
        Trunk::initialize(&mut initializer, &config.trunk)?;
        for block in 0..config.trunk.depth {
            // Shift 0, scale 0 (of 1 + scale), gate 1, twice.
            let values = (0..BLOCK_MODULATIONS * d).map(|i| if i / d % 3 == 2 { 1.0 } else { 0.0 }).collect();
            initializer.put(&format!("blocks.{block:02}.modulation"), &[1, BLOCK_MODULATIONS * d], values)?;
        }
        initializer.constant("final.modulation", &[1, 2 * d], 0.0)?;
        initializer.zero_linear("head", config.classes, d)?;
        Ok(initializer.finish())
    }

    /// # Errors
    /// `Missing` and `Shape` where the parameters are not those of `config`.
    pub fn load(config: &VitConfig, parameters: &Parameters) -> Result<Self, ParameterError> {
        let d = config.trunk.hidden;
        let modulation = |block| parameters.get(&format!("blocks.{block:02}.modulation"), &[1, BLOCK_MODULATIONS * d]);
        Ok(Self {
            config: *config,
            trunk: Trunk::load(parameters, config.trunk)?,
            modulations: (0..config.trunk.depth).map(modulation).collect::<Result<_, _>>()?,
            final_modulation: parameters.get("final.modulation", &[1, 2 * d])?,
            head: Linear::load(parameters, "head", config.classes, d)?,
        })
    }

    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// Logits (N, K) of features (N, D).
    pub fn head(&self, features: &Tensor) -> candle_core::Result<Tensor> {
        self.head.forward(features)
    }

    /// What the head sees of images (N, C, H, W), given as one slice: the mean of their tokens, (N, D).
    pub fn features(&self, images: &[f32]) -> candle_core::Result<Tensor> {
        let d = self.config.trunk.hidden;
        let x = self.trunk.forward(images, &self.modulations)?; // (N, T, D)
        let (shift, scale) = (self.final_modulation.narrow(1, 0, d)?, self.final_modulation.narrow(1, d, d)?);
        let x = kernels::modulated_norm(&x, &shift, &scale)?; // (N, T, D)
        x.mean(1) // (N, D)
    }
}

/// The mean (D) of tokens (T, D).
pub fn mean_of_tokens(mean: &mut [f32], tokens: &[f32]) {
    mean.fill(0.0);
    for token in tokens.chunks_exact(mean.len()) {
        mean.iter_mut().zip(token).for_each(|(sum, value)| *sum += value);
    }
    let count = (tokens.len() / mean.len()) as f32;
    mean.iter_mut().for_each(|sum| *sum /= count);
}
