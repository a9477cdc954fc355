//! A bundle: the weights of both models, the labels, and what the source model does on clean images.

use crate::guard::canary::Canary;
use crate::model::{ClassifierConfig, DitConfig, Tensors};
use serde::{Deserialize, Serialize};

/// Mean and spread of one quantity on clean images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moments {
    pub mean: f64,
    pub standard_deviation: f64,
}

/// The posterior whose probabilities are neither too sure nor too unsure of an answer: softmax(prior_weight z -
/// judge_weight error), with z the source classifier's logits and error the diffusion model's minus log-likelihood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    pub prior_weight: f64,
    pub judge_weight: f64,
    /// What turns the answer's share of that posterior into a probability that it is right, by [`Calibration::accuracy`].
    pub intercept: f64,
    pub by_posterior: f64,
    pub by_agreement: f64,
}

impl Calibration {
    /// How likely an answer is right, 0..=1, by its share of the posterior and by the agreement of the judge's draws lately: on frames that
    /// both models get wrong the posterior alone is sure of itself, and the draws agree less.
    pub fn accuracy(&self, posterior: f64, agreement: f64) -> f64 {
        let logit = self.intercept + self.by_posterior * log_odds(posterior) + self.by_agreement * log_odds(agreement);
        1.0 / (1.0 + (-logit).exp())
    }
}

/// Of a share, 0..=1, which is taken for no surer than one in a thousand.
pub fn log_odds(share: f64) -> f64 {
    let share = share.clamp(1e-3, 1.0 - 1e-3);
    (share / (1.0 - share)).ln()
}

/// What is normal: measured once by `undrift train bundle`, on clean images but for the calibration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    /// Of the draws that the figures of the diffusion model were measured with.
    pub timesteps: Vec<u32>,
    /// Accuracy of the source classifier, 0..=1.
    pub source_accuracy: f64,
    /// Accuracy of the diffusion model's verdict over the configured draws, 0..=1.
    pub judge_accuracy: f64,
    /// Entropy of the source classifier's probabilities, nats.
    pub entropy: Moments,
    /// Error of the best class per element.
    pub denoising_loss: Moments,
    /// Share of pairs of draws that name the same class, 0..=1.
    pub draw_agreement: f64,
    /// Fitted on the validation corruptions.
    pub calibration: Calibration,
}

/// All that a daemon starts from.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub classifier_config: ClassifierConfig,
    pub classifier: Tensors,
    pub diffusion_config: DitConfig,
    pub diffusion: Tensors,
    /// Names of the classes, by index.
    pub labels: Vec<String>,
    pub statistics: Statistics,
    pub canary: Canary,
}
