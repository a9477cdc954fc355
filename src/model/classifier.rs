//! The two kinds of classifier.

use super::blocks::ImageShape;
use super::parameters::{ParameterError, Parameters, Tensors};
use super::resnet::{NormStatistics, ResNet, ResNetConfig};
use super::vit::{Vit, VitConfig};
use candle_core::Tensor;
use serde::Serialize;

/// Kind and sizes of a classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ClassifierConfig {
    Vit(VitConfig),
    ResNet(ResNetConfig),
}

/// A classifier: images (N, C, H, W) in -1..=1 -> logits (N, K).
#[derive(Clone, Debug)]
pub enum ClassifierModel {
    Vit(Vit),
    ResNet(ResNet),
}

impl ClassifierConfig {
    pub fn image(&self) -> ImageShape {
        match self {
            Self::Vit(config) => config.trunk.image,
            Self::ResNet(config) => config.image,
        }
    }

    /// K
    pub fn classes(&self) -> usize {
        match self {
            Self::Vit(config) => config.classes,
            Self::ResNet(config) => config.classes,
        }
    }

    /// First values of the parameters.
    pub fn initialize(&self, seed: u64) -> Result<Tensors, ParameterError> {
        match self {
            Self::Vit(config) => Vit::initialize(config, seed),
            Self::ResNet(config) => ResNet::initialize(config, seed),
        }
    }

    /// # Errors
    /// `Missing` and `Shape` where the parameters are not those of this configuration.
    pub fn load(&self, parameters: &Parameters) -> Result<ClassifierModel, ParameterError> {
        Ok(match self {
            Self::Vit(config) => ClassifierModel::Vit(Vit::load(config, parameters)?),
            Self::ResNet(config) => ClassifierModel::ResNet(ResNet::load(config, parameters)?),
        })
    }
}

impl ClassifierModel {
    /// Logits (N, K); `statistics` are those of batch norm, and mean nothing to a model without it.
    pub fn forward(&self, images: &[f32], statistics: NormStatistics) -> candle_core::Result<Tensor> {
        self.head(&self.features(images, statistics)?)
    }

    /// What the head sees of images, (N, D).
    pub fn features(&self, images: &[f32], statistics: NormStatistics) -> candle_core::Result<Tensor> {
        match self {
            Self::Vit(model) => model.features(images),
            Self::ResNet(model) => model.features(images, statistics),
        }
    }

    /// Logits (N, K) of features (N, D).
    pub fn head(&self, features: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Vit(model) => model.head(features),
            Self::ResNet(model) => model.head(features),
        }
    }
}
