//! The classifier with its parameters: answers, and gradients from gradients of the logits.

use super::config::TrainablePart;
use super::optimizer::{Gradients, StepError, accumulate, collect};
use crate::model::{ParameterError, Parameters, Tensors, Vit, VitConfig};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Images that one task takes: small enough that activations stay in the cache. Fixed, so that bits do not depend on the
/// number of threads.
const SHARD_IMAGES: usize = 8;

/// A classifier and its parameters.
#[derive(Clone, Debug)]
pub struct Classifier {
    parameters: Parameters,
    model: Vit,
}

/// Logits of a window, with the graph that leads to them.
pub struct Forward {
    /// (n, K) for each shard, tracked.
    shards: Vec<Tensor>,
    /// A row for each image.
    pub logits: Vec<Vec<f64>>,
}

impl Classifier {
    /// A classifier whose parameters never change.
    pub fn frozen(config: &VitConfig, tensors: Tensors) -> Result<Self, ParameterError> {
        let parameters = Parameters::frozen(tensors);
        Ok(Self { model: Vit::load(config, &parameters)?, parameters })
    }

    /// A classifier of which `part` can learn; values are copied.
    pub fn trainable(config: &VitConfig, tensors: &Tensors, part: TrainablePart) -> Result<Self, ParameterError> {
        let parameters = Parameters::trainable(tensors, |name| part.contains(name))?;
        Ok(Self { model: Vit::load(config, &parameters)?, parameters })
    }

    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Logits of images (N, C, H, W), a row for each image.
    pub fn logits(&self, images: &[f32]) -> candle_core::Result<Vec<Vec<f64>>> {
        Ok(self.forward(images)?.logits)
    }

    /// Logits that gradients can be taken of.
    pub fn forward(&self, images: &[f32]) -> candle_core::Result<Forward> {
        let shard = SHARD_IMAGES * self.model.config().trunk.image.elements();
        let shards = images.par_chunks(shard).map(|images| self.model.forward(images)).collect::<candle_core::Result<Vec<_>>>()?;
        let mut logits = Vec::new();
        for shard in &shards {
            logits.extend(shard.to_vec2::<f32>()?.into_iter().map(|row| row.into_iter().map(f64::from).collect()));
        }
        Ok(Forward { shards, logits })
    }

    /// Gradients of the trainable parameters, for the gradient of the loss by each image's logits.
    ///
    /// # Errors
    /// `NoGradient` where the graph is cut.
    pub fn gradients(&self, forward: &Forward, logit_gradients: &[Vec<f64>]) -> Result<Gradients, StepError> {
        let shards = forward.shards.par_iter().zip(logit_gradients.par_chunks(SHARD_IMAGES)).map(|(logits, gradient)| {
            let values: Vec<f32> = gradient.iter().flatten().map(|&g| g as f32).collect();
            let gradient = Tensor::from_vec(values, logits.shape(), &Device::Cpu)?;
            // The gradient of sum(logits * gradient) by the logits is `gradient`.
            let store = logits.mul(&gradient)?.sum_all()?.backward()?;
            collect(self.parameters.variables(), &store)
        });
        let mut total = Gradients::new();
        for term in shards.collect::<Result<Vec<_>, StepError>>()? {
            accumulate(&mut total, term);
        }
        Ok(total)
    }
}
