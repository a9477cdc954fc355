//! The classifier with its parameters: answers, and gradients from gradients of the logits.

use super::config::TrainablePart;
use super::optimizer::{Gradients, StepError, accumulate, collect};
use crate::model::{ClassifierConfig, ClassifierModel, NormStatistics, ParameterError, Parameters, Tensors};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Images that one task takes: small enough that activations stay in the cache. Fixed, so that bits do not depend on the
/// number of threads.
const SHARD_IMAGES: usize = 8;

/// A classifier and its parameters.
#[derive(Clone, Debug)]
pub struct Classifier {
    parameters: Parameters,
    model: ClassifierModel,
    image_elements: usize,
}

/// Logits of a window, with the graph that leads to them.
pub struct Forward {
    /// (n, K) for each shard, tracked.
    shards: Vec<Tensor>,
    /// A row for each image.
    pub logits: Vec<Vec<f64>>,
}

/// What the head sees of a window, and what it says; rows are images.
pub struct Description {
    /// Of D values.
    pub features: Vec<Vec<f64>>,
    pub logits: Vec<Vec<f64>>,
}

impl Classifier {
    /// A classifier whose parameters never change.
    pub fn frozen(config: &ClassifierConfig, tensors: Tensors) -> Result<Self, ParameterError> {
        let parameters = Parameters::frozen(tensors);
        Ok(Self { model: config.load(&parameters)?, image_elements: config.image().elements(), parameters })
    }

    /// A classifier of which `part` can learn; values are copied.
    pub fn trainable(config: &ClassifierConfig, tensors: &Tensors, part: TrainablePart) -> Result<Self, ParameterError> {
        let parameters = Parameters::trainable(tensors, |name| part.contains(name))?;
        Ok(Self { model: config.load(&parameters)?, image_elements: config.image().elements(), parameters })
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
        let shards = self
            .shards(images)
            .map(|images| self.model.forward(images, NormStatistics::Running))
            .collect::<candle_core::Result<Vec<_>>>()?;
        let logits = rows(&shards)?;
        Ok(Forward { shards, logits })
    }

    /// Features of images, and the logits that the head makes of them.
    pub fn describe(&self, images: &[f32]) -> candle_core::Result<Description> {
        let features = self
            .shards(images)
            .map(|images| self.model.features(images, NormStatistics::Running))
            .collect::<candle_core::Result<Vec<_>>>()?;
        let logits = features.iter().map(|features| self.model.head(features)).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Description { features: rows(&features)?, logits: rows(&logits)? })
    }

    fn shards<'a>(&self, images: &'a [f32]) -> rayon::slice::Chunks<'a, f32> {
        images.par_chunks(SHARD_IMAGES * self.image_elements)
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

/// Rows of all shards, in order.
fn rows(shards: &[Tensor]) -> candle_core::Result<Vec<Vec<f64>>> {
    let mut rows = Vec::new();
    for shard in shards {
        rows.extend(shard.to_vec2::<f32>()?.into_iter().map(|row| row.into_iter().map(f64::from).collect()));
    }
    Ok(rows)
}
