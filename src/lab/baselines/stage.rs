//! Where the competitors are tested: tiny models, random frames.

use super::competitor::{Setting, Tuning};
use super::student::Weights;
use crate::bundle::Bundle;
use crate::learner::AdaptConfig;
use crate::model::{ClassConditioning, ClassifierConfig, ResNetConfig};
use crate::tiny;
use std::sync::OnceLock;

pub struct Stage {
    pub bundle: Bundle,
    config: AdaptConfig,
    source_images: Vec<f32>,
    importance: OnceLock<Weights>,
}

impl Stage {
    pub fn new() -> Self {
        Self::with(ClassConditioning::Readout)
    }

    pub fn with(conditioning: ClassConditioning) -> Self {
        Self {
            bundle: tiny::bundle(1, conditioning),
            config: tiny::config(),
            source_images: images(tiny::CLASSES, 9),
            importance: OnceLock::new(),
        }
    }

    /// With a classifier that has batch norm.
    pub fn with_batch_norm() -> Self {
        let mut stage = Self::new();
        let image = stage.bundle.classifier_config.image();
        let config = ClassifierConfig::ResNet(ResNetConfig { image, width: 4, blocks: 1, classes: tiny::CLASSES });
        stage.bundle.classifier = tiny::shaken(config.initialize(1).expect("a model"), 1);
        stage.bundle.classifier_config = config;
        stage
    }

    pub fn setting(&self, tuning: Tuning) -> Setting<'_> {
        Setting {
            bundle: &self.bundle,
            window: self.config.window,
            timesteps: &self.config.timesteps,
            source_images: &self.source_images,
            importance: &self.importance,
            tuning,
        }
    }
}

/// `count` images of noise, (N, C, H, W).
pub fn images(count: usize, seed: u64) -> Vec<f32> {
    let image = |index: usize| {
        let mut planes = vec![0f32; 64];
        tiny::image(1, 100 * seed + u64::try_from(index).expect("few images")).write_planes(&mut planes);
        planes
    };
    (0..count).flat_map(image).collect()
}
