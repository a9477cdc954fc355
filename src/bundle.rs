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

/// How likely an answer is right, without labels: a logistic regression on the log-odds of the judge's share of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    pub intercept: f64,
    pub slope: f64,
}

impl Calibration {
    /// 0..=1, where the judge gives the answer the share `share`, 0..=1.
    pub fn accuracy(&self, share: f64) -> f64 {
        1.0 / (1.0 + (-self.intercept - self.slope * Self::log_odds(share)).exp())
    }

    /// Of a share that is taken for no surer than one in a thousand.
    pub fn log_odds(share: f64) -> f64 {
        let share = share.clamp(1e-3, 1.0 - 1e-3);
        (share / (1.0 - share)).ln()
    }
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
