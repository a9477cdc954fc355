//! The classifier with its parameters, of which some learn: gradients from gradients of the logits.

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
    has_batch_norm: bool,
}

/// Logits of a window, with the graph that leads to them.
pub struct Forward {
    /// (n, K) for each shard, tracked.
    shards: Vec<Tensor>,
    /// n of all shards but the last, which may have fewer.
    shard_images: usize,
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
    /// A classifier none of whose parameters learn.
    pub(super) fn frozen(config: &ClassifierConfig, tensors: Tensors) -> Result<Self, ParameterError> {
        Self::of(config, Parameters::frozen(tensors))
    }

    /// A classifier of which `part` can learn; values are copied.
    pub fn trainable(config: &ClassifierConfig, tensors: &Tensors, part: TrainablePart) -> Result<Self, ParameterError> {
        Self::of(config, Parameters::trainable(tensors, |name| part.contains(name))?)
    }

    fn of(config: &ClassifierConfig, parameters: Parameters) -> Result<Self, ParameterError> {
        let (image_elements, has_batch_norm) = (config.image().elements(), config.has_batch_norm());
        Ok(Self { model: config.load(&parameters)?, parameters, image_elements, has_batch_norm })
    }

    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Logits of images (N, C, H, W) that gradients can be taken of.
    pub fn forward(&self, images: &[f32]) -> candle_core::Result<Forward> {
        self.forward_with(images, NormStatistics::Running)
    }

    /// The same; batch norm, where the model has it, takes `statistics`.
    pub fn forward_with(&self, images: &[f32], statistics: NormStatistics) -> candle_core::Result<Forward> {
        // Statistics of a window are those of all its images, so that it is one task.
        let is_whole = self.has_batch_norm && statistics != NormStatistics::Running;
        let shard_images = if is_whole { images.len() / self.image_elements } else { SHARD_IMAGES };
        let shards = images.par_chunks(shard_images.max(1) * self.image_elements);
        let shards = shards.map(|images| self.model.forward(images, statistics)).collect::<candle_core::Result<Vec<_>>>()?;
        let logits = rows(&shards)?;
        Ok(Forward { shards, shard_images, logits })
    }

    /// Moves the statistics that batch norm serves with the share `share` of their way to those of `images`.
    pub fn absorb(&mut self, images: &[f32], share: f32) -> candle_core::Result<()> {
        self.model.absorb(images, share)?;
        self.parameters.replace(self.model.running()?);
        Ok(())
    }

    /// Moves the same statistics towards those of `tensors`.
    pub fn approach(&mut self, tensors: &Tensors, share: f32) -> candle_core::Result<()> {
        self.model.approach(tensors, share)?;
        self.parameters.replace(self.model.running()?);
        Ok(())
    }

    /// Whether an answer can depend on statistics of images.
    pub fn has_batch_norm(&self) -> bool {
        self.has_batch_norm
    }

    /// Features of images, and the logits that the head makes of them.
    pub(super) fn describe(&self, images: &[f32]) -> candle_core::Result<Description> {
        let features = images
            .par_chunks(SHARD_IMAGES * self.image_elements)
            .map(|images| self.model.features(images, NormStatistics::Running))
            .collect::<candle_core::Result<Vec<_>>>()?;
        let logits = features.iter().map(|features| self.model.head(features)).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Description { features: rows(&features)?, logits: rows(&logits)? })
    }

    /// Gradients of the trainable parameters, for the gradient of the loss by each image's logits.
    ///
    /// # Errors
    /// `NoGradient` where the graph is cut.
    pub fn gradients(&self, forward: &Forward, logit_gradients: &[Vec<f64>]) -> Result<Gradients, StepError> {
        let shards = forward.shards.par_iter().zip(logit_gradients.par_chunks(forward.shard_images.max(1))).map(|(logits, gradient)| {
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
