//! What a method is to the lab: a window of frames in, the answer of each out, and the passes that it took.

use super::student::{Student, Teacher, Weights};
use crate::bundle::Bundle;
use crate::learner::{AdaptError, Classifier, FrozenClassifier, Judge, OptimizerConfig, TrainablePart};
use crate::model::{ClassConditioning, ClassifierConfig, DitConfig, ImageShape};
use crate::noise::NoiseKey;
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

/// A method of test-time adaptation.
pub trait Competitor {
    /// Answers a window of images (N, C, H, W), each with the index of a class, and learns from them as the method does.
    ///
    /// # Errors
    /// Only what is fatal to the run.
    fn answer(&mut self, images: &[f32], context: &mut Context) -> Result<Vec<usize>, AdaptError>;
}

/// Where in its run a method stands.
#[derive(Clone, Debug, Default)]
pub struct Context {
    pub seed: u64,
    /// Frames before this window.
    pub frame: u64,
    /// Passes so far; methods add theirs.
    pub passes: Passes,
}

impl Context {
    /// Key of the randomness that `purpose` needs for the frame at `position` of the window.
    pub fn key(&self, purpose: &str, position: usize) -> NoiseKey {
        let position = u64::try_from(position).expect("a usize has at most 64 bits");
        NoiseKey::from_seed(self.seed, purpose, self.frame + position)
    }
}

/// Images that went through the models, forwards and backwards; a backward pass is counted next to its forward pass, for
/// the images whose gradient is not zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Passes {
    pub classifier_forward: f64,
    pub classifier_backward: f64,
    pub diffusion_forward: f64,
    pub diffusion_backward: f64,
}

impl Passes {
    /// Adds the forward passes that the errors of all classes take for `draws` draws.
    pub fn add_draws(&mut self, config: &DitConfig, draws: usize) {
        let passes_per_draw = match config.conditioning {
            ClassConditioning::Readout => 1,
            ClassConditioning::AdaLn => config.classes,
        };
        self.diffusion_forward += (draws * passes_per_draw) as f64;
    }

    /// Passes for each of so many frames.
    pub fn per_frame(self, frames: f64) -> Self {
        Self {
            classifier_forward: self.classifier_forward / frames,
            classifier_backward: self.classifier_backward / frames,
            diffusion_forward: self.diffusion_forward / frames,
            diffusion_backward: self.diffusion_backward / frames,
        }
    }
}

impl std::ops::AddAssign for Passes {
    fn add_assign(&mut self, other: Self) {
        self.classifier_forward += other.classifier_forward;
        self.classifier_backward += other.classifier_backward;
        self.diffusion_forward += other.diffusion_forward;
        self.diffusion_backward += other.diffusion_backward;
    }
}

/// A setting for each kind of classifier.
///
/// Those of the competitors were chosen for their accuracy on the stream `extra`, in windows of 16 (tests/reference/COMPETITORS.md has
/// the grids); of equals, the published one.
#[derive(Clone, Copy, Debug)]
pub struct ByNorm<T> {
    pub layer_norm: T,
    pub batch_norm: T,
}

impl<T> ByNorm<T> {
    fn of(self, classifier: &ClassifierConfig) -> T {
        if classifier.has_batch_norm() { self.batch_norm } else { self.layer_norm }
    }
}

/// What may be chosen on a held-out stream; what is absent is as it was chosen for the shipped bundles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// Learning rate of the competitors instead of the one chosen for the kind of classifier
    #[arg(long)]
    pub learning_rate: Option<f32>,
    /// Entropy above which EATA, RDumb and SAR ignore a frame, as a share of the largest, instead of the chosen one
    #[arg(long)]
    pub entropy_margin: Option<f64>,
}

/// What a method is made of.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    pub bundle: &'a Bundle,
    /// Frames of a full window.
    pub window: usize,
    /// Timesteps of the Diffusion Classifier's draws.
    pub timesteps: &'a [u32],
    /// Clean images (N, C, H, W) that EATA measures the importance of parameters on.
    pub source_images: &'a [f32],
    /// That importance, once it is measured: of one bundle and one set of images.
    pub importance: &'a OnceLock<Weights>,
    pub tuning: Tuning,
}

impl Setting<'_> {
    /// K
    pub fn classes(&self) -> usize {
        self.bundle.classifier_config.classes()
    }

    /// Of one image.
    pub fn image(&self) -> ImageShape {
        self.bundle.classifier_config.image()
    }

    /// The source classifier, never changed.
    pub fn source(&self) -> Result<FrozenClassifier, AdaptError> {
        Ok(FrozenClassifier::new(&self.bundle.classifier_config, &self.bundle.classifier)?)
    }

    /// The source classifier, of which `part` learns.
    pub fn student(&self, part: TrainablePart, optimizer: OptimizerConfig, rates: ByNorm<f32>) -> Result<Student, AdaptError> {
        let chosen = rates.of(&self.bundle.classifier_config);
        Student::new(self.trainable(part)?, optimizer, self.tuning.learning_rate.unwrap_or(chosen))
    }

    /// The source classifier, of which `part` follows a student by the share `pace` at a time.
    pub fn teacher(&self, part: TrainablePart, pace: f32) -> Result<Teacher, AdaptError> {
        Ok(Teacher::new(self.trainable(part)?, pace))
    }

    fn trainable(&self, part: TrainablePart) -> Result<Classifier, AdaptError> {
        Ok(Classifier::trainable(&self.bundle.classifier_config, &self.bundle.classifier, part)?)
    }

    pub fn judge(&self) -> Result<Judge, AdaptError> {
        Ok(Judge::new(&self.bundle.diffusion_config, self.bundle.diffusion.clone())?)
    }

    /// E0, nats, for shares of the largest entropy ln K.
    pub fn entropy_margin(&self, shares: ByNorm<f64>) -> f64 {
        let chosen = shares.of(&self.bundle.classifier_config);
        self.tuning.entropy_margin.unwrap_or(chosen) * (self.classes() as f64).ln()
    }
}
