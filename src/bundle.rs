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

/// What speaks for an answer, without labels; each is a share, 0..=1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grounds {
    /// Its probability to the classifier, whose logits are brought to one spread: what is learned makes them larger, and the answers
    /// are no more often right for that.
    pub classifier: f64,
    /// Its probability to the judge, at a temperature at which few are too near to 1 to be told apart.
    pub judge: f64,
}

/// How likely an answer is right: a logistic regression on the log-odds of its grounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    pub intercept: f64,
    pub by_classifier: f64,
    pub by_judge: f64,
}

impl Calibration {
    /// 0..=1
    pub fn accuracy(&self, grounds: &Grounds) -> f64 {
        let Grounds { classifier, judge } = grounds.log_odds();
        let logit = self.intercept + self.by_classifier * classifier + self.by_judge * judge;
        1.0 / (1.0 + (-logit).exp())
    }
}

impl Grounds {
    /// Of each, which is taken for no surer than one in a thousand.
    pub fn log_odds(&self) -> Self {
        let log_odds = |share: f64| {
            let share = share.clamp(1e-3, 1.0 - 1e-3);
            (share / (1.0 - share)).ln()
        };
        Self { classifier: log_odds(self.classifier), judge: log_odds(self.judge) }
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
