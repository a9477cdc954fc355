//! The diffusion model: a diffusion transformer (DiT, arXiv 2212.09748) that predicts the noise of a noised image under
//! each class.
//!
//! The class enters in one of two ways. `Readout`: the trunk knows only the timestep, and the last layer has one output for
//! each class, e_k = W_k h(x_t, t); one forward pass gives all classes. `AdaLn`: as published, a class embedding is added
//! to the timestep's and modulates every block; a forward pass gives one condition.

use super::blocks::{BLOCK_MODULATIONS, Linear, Trunk, TrunkConfig, sine_embedding};
use super::parameters::{Initializer, ParameterError, Parameters, Tensors};
use crate::diffusion::Timestep;
use crate::kernels;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

/// Where the class enters the diffusion model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassConditioning {
    /// Linearly at the last layer.
    Readout,
    /// Through the modulation of every block.
    AdaLn,
}

/// Sizes of a diffusion model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DitConfig {
    pub trunk: TrunkConfig,
    /// K
    pub classes: usize,
    pub conditioning: ClassConditioning,
    pub num_timesteps: u32,
}

/// Width of the sines that a timestep is given by (DiT, `TimestepEmbedder`).
pub const TIMESTEP_SINES: usize = 256;

/// The diffusion model.
#[derive(Clone, Debug)]
pub struct Dit {
    config: DitConfig,
    trunk: Trunk,
    timestep_expand: Linear,
    timestep_contract: Linear,
    block_modulations: Vec<Linear>,
    final_modulation: Linear,
    readout: Linear,
    /// (K, D), only where classes enter by adaLN.
    class_embeddings: Option<Tensor>,
}

impl Dit {
    /// First values of the parameters; modulations and readout start at zero (adaLN-zero).
    pub fn initialize(config: &DitConfig, seed: u64) -> Result<Tensors, ParameterError> {
        let mut initializer = Initializer::new(seed);
        let d = config.trunk.hidden;
        Trunk::initialize(&mut initializer, &config.trunk)?;
        initializer.linear("timestep.expand", d, TIMESTEP_SINES)?;
        initializer.linear("timestep.contract", d, d)?;
        for block in 0..config.trunk.depth {
            initializer.zero_linear(&format!("blocks.{block:02}.modulation"), BLOCK_MODULATIONS * d, d)?;
        }
        initializer.zero_linear("final.modulation", 2 * d, d)?;
        match config.conditioning {
            // Small and not zero: with all classes alike, the cross entropy of their errors would have no gradient.
            ClassConditioning::Readout => {
                let outputs = config.outputs();
                initializer.normal("readout.weight", &[outputs, d], 0.002)?;
                initializer.constant("readout.bias", &[outputs], 0.0)?;
            }
            ClassConditioning::AdaLn => {
                initializer.zero_linear("readout", config.outputs(), d)?;
                initializer.normal("class_embeddings", &[config.classes, d], 0.02)?;
            }
        }
        Ok(initializer.finish())
    }

    /// # Errors
    /// `Missing` and `Shape` where the parameters are not those of `config`.
    pub fn load(config: &DitConfig, parameters: &Parameters) -> Result<Self, ParameterError> {
        let d = config.trunk.hidden;
        let modulation = |block| Linear::load(parameters, &format!("blocks.{block:02}.modulation"), BLOCK_MODULATIONS * d, d);
        let class_embeddings = match config.conditioning {
            ClassConditioning::Readout => None,
            ClassConditioning::AdaLn => Some(parameters.get("class_embeddings", &[config.classes, d])?),
        };
        Ok(Self {
            config: *config,
            trunk: Trunk::load(parameters, config.trunk)?,
            timestep_expand: Linear::load(parameters, "timestep.expand", d, TIMESTEP_SINES)?,
            timestep_contract: Linear::load(parameters, "timestep.contract", d, d)?,
            block_modulations: (0..config.trunk.depth).map(modulation).collect::<Result<_, _>>()?,
            final_modulation: Linear::load(parameters, "final.modulation", 2 * d, d)?,
            readout: Linear::load(parameters, "readout", config.outputs(), d)?,
            class_embeddings,
        })
    }

    pub fn config(&self) -> &DitConfig {
        &self.config
    }

    /// Predicted noise under every class, (N, T, K P), of `x_t` (N, C, H, W) at `timesteps` (N).
    ///
    /// With `Readout` one pass; with `AdaLn` one pass for each class.
    pub fn pred_noise_of_classes(&self, x_t: &[f32], timesteps: &[Timestep]) -> candle_core::Result<Tensor> {
        match &self.class_embeddings {
            None => self.forward(x_t, timesteps, None),
            Some(embeddings) => {
                let of_class = |class| self.forward(x_t, timesteps, Some(&embeddings.narrow(0, class, 1)?));
                let classes = (0..self.config.classes).map(of_class).collect::<candle_core::Result<Vec<_>>>()?;
                Tensor::cat(&classes, 2) // (N, T, K P)
            }
        }
    }

    /// Predicted noise (N, T, P) under the class of each row: for training by adaLN conditioning.
    pub fn pred_noise_of_labels(&self, x_t: &[f32], timesteps: &[Timestep], labels: &[u32]) -> candle_core::Result<Tensor> {
        let Some(embeddings) = &self.class_embeddings else {
            candle_core::bail!("the readout gives all classes at once: ask for the noise of classes");
        };
        let labels = Tensor::from_slice(labels, labels.len(), &Device::Cpu)?;
        self.forward(x_t, timesteps, Some(&embeddings.index_select(&labels, 0)?)) // (N, T, P)
    }

    /// Predicted noise (N, T, P) under the mixture of classes `probabilities` (1, K): the condition of Diffusion-TTA,
    /// sum_k p_k l_k (arXiv 2311.16102, algorithm 1). The gradient goes to `probabilities`.
    pub fn pred_noise_of_mixture(&self, x_t: &[f32], timesteps: &[Timestep], probabilities: &Tensor) -> candle_core::Result<Tensor> {
        match &self.class_embeddings {
            Some(embeddings) => self.forward(x_t, timesteps, Some(&probabilities.matmul(embeddings)?)),
            None => {
                // The readout is linear in the condition: mixing conditions is mixing outputs.
                let all = self.forward(x_t, timesteps, None)?; // (N, T, K P)
                let (n, t, _) = all.dims3()?;
                let p = self.config.trunk.patch_elements();
                let all = all.reshape((n * t, self.config.classes, p))?;
                let weights = probabilities.reshape((1, 1, self.config.classes))?.broadcast_as((n * t, 1, self.config.classes))?;
                weights.contiguous()?.matmul(&all)?.reshape((n, t, p)) // (N, T, P)
            }
        }
    }

    /// `condition`, (1, D) or (N, D), is added to the timesteps' embeddings. Gives (N, T, outputs).
    fn forward(&self, x_t: &[f32], timesteps: &[Timestep], condition: Option<&Tensor>) -> candle_core::Result<Tensor> {
        let d = self.config.trunk.hidden;
        let sines: Vec<f32> = timesteps.iter().flat_map(|t| sine_embedding(f64::from(t.0), TIMESTEP_SINES)).collect();
        let sines = Tensor::from_vec(sines, (timesteps.len(), TIMESTEP_SINES), &Device::Cpu)?; // (N, sines)
        let embedding = self.timestep_expand.forward(&sines)?.silu()?; // (N, D)
        let embedding = self.timestep_contract.forward(&embedding)?; // (N, D)
        let conditioned = match condition {
            Some(condition) => embedding.broadcast_add(condition)?, // (N, D)
            None => embedding,
        };
        let conditioned = conditioned.silu()?; // (N, D)
        let modulations = self.block_modulations.iter().map(|layer| layer.forward(&conditioned));
        let modulations = modulations.collect::<candle_core::Result<Vec<_>>>()?; // depth x (N, 6 D)
        let x = self.trunk.forward(x_t, &modulations)?; // (N, T, D)
        let last = self.final_modulation.forward(&conditioned)?; // (N, 2 D)
        let x = kernels::modulated_norm(&x, &last.narrow(1, 0, d)?, &last.narrow(1, d, d)?)?; // (N, T, D)
        self.readout.forward(&x) // (N, T, outputs)
    }
}

impl DitConfig {
    /// Values that the readout gives for a token.
    pub fn outputs(&self) -> usize {
        match self.conditioning {
            ClassConditioning::Readout => self.classes * self.trunk.patch_elements(),
            ClassConditioning::AdaLn => self.trunk.patch_elements(),
        }
    }
}
