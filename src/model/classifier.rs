//! The two kinds of classifier.

use super::blocks::ImageShape;
use super::parameters::{ParameterError, Parameters, Tensors};
use super::resnet::{NormStatistics, ResNet, ResNetConfig, STAGES};
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

    /// `tensors`, with room for what is remembered of images where a file has none.
    pub fn with_room(&self, mut tensors: Tensors) -> Result<Tensors, ParameterError> {
        if let Self::ResNet(config) = self {
            for (name, room) in ResNet::without_domains(config)? {
                tensors.entry(name).or_insert(room);
            }
        }
        Ok(tensors)
    }

    /// Whether norms take statistics of images, so that an answer can depend on the other images of a window.
    pub fn has_batch_norm(&self) -> bool {
        matches!(self, Self::ResNet(_))
    }

    /// Whether the parameter `name` is of the last stage of a residual network, of the last quarter of a transformer's
    /// blocks, or of what comes after them.
    pub fn is_late(&self, name: &str) -> bool {
        let first_late = match self {
            Self::Vit(config) => format!("blocks.{:02}", config.trunk.depth - config.trunk.depth / 4),
            Self::ResNet(_) => format!("blocks.{}", STAGES - 1),
        };
        // Numbers have as many digits as each other, and "blocks" comes before "final" and "head" in the alphabet.
        ["blocks.", "final.", "head."].iter().any(|start| name.starts_with(start)) && name >= first_late.as_str()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TrunkConfig;

    #[test]
    fn late_is_the_last_stage_or_the_last_quarter_of_the_blocks() {
        let image = ImageShape { channels: 1, height: 8, width: 8 };
        let trunk = TrunkConfig { image, patch: 4, patch_window: 4, hidden: 8, depth: 12, heads: 2, mlp_ratio: 2 };
        let vit = ClassifierConfig::Vit(VitConfig { trunk, classes: 3 });
        let resnet = ClassifierConfig::ResNet(ResNetConfig { image, width: 2, blocks: 2, classes: 3 });
        for (config, early, late) in [
            (vit, ["position", "embed.weight", "blocks.08.modulation"], ["blocks.09.modulation", "final.modulation", "head.bias"]),
            (
                resnet,
                ["stem.norm.scale", "blocks.00.first.norm.scale", "blocks.11.second.norm.shift"],
                ["blocks.20.first.norm.scale", "blocks.21.shortcut.norm.shift", "head.weight"],
            ),
        ] {
            let parameters = config.initialize(1).expect("a model");
            assert!(parameters.keys().any(|name| config.is_late(name)) && !parameters.keys().all(|name| config.is_late(name)));
            assert!(!early.into_iter().any(|name| config.is_late(name)), "{config:?}");
            assert!(late.into_iter().all(|name| config.is_late(name)), "{config:?}");
        }
    }
}
