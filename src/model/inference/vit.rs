//! The classifier's forward pass alone.

use super::trunk::{InferenceTrunk, Layer, TrunkWorkspace, modulations, values};
use crate::model::parameters::{ParameterError, Parameters};
use crate::model::vit::{VitConfig, mean_of_tokens};

/// The vision transformer, frozen, forward only.
#[derive(Debug)]
pub struct InferenceVit {
    trunk: InferenceTrunk,
    /// (M), learned constants.
    modulation: Vec<f32>,
    head: Layer,
}

/// Buffers of one image's pass, and what comes of it.
#[derive(Debug)]
pub struct VitWorkspace {
    trunk: TrunkWorkspace,
    /// What the head sees: the mean of the tokens, (D).
    pub features: Vec<f32>,
    /// (K)
    pub logits: Vec<f32>,
}

impl VitWorkspace {
    pub fn new(config: &VitConfig) -> Self {
        let (features, logits) = (vec![0f32; config.trunk.hidden], vec![0f32; config.classes]);
        Self { trunk: TrunkWorkspace::new(&config.trunk), features, logits }
    }
}

impl InferenceVit {
    /// # Errors
    /// `Missing` and `Shape` where the parameters are not those of `config`.
    pub fn load(config: &VitConfig, parameters: &Parameters) -> Result<Self, ParameterError> {
        let mut modulation = Vec::new();
        for (name, count) in modulations(&config.trunk) {
            modulation.extend(values(parameters, &name, &[1, count])?);
        }
        Ok(Self {
            trunk: InferenceTrunk::load(&config.trunk, parameters)?,
            modulation,
            head: Layer::load(parameters, "head", config.classes, config.trunk.hidden)?,
        })
    }

    /// Leaves features and logits of one image (C, H, W) in the workspace.
    pub fn forward(&self, image: &[f32], workspace: &mut VitWorkspace) {
        let VitWorkspace { trunk, features, logits } = workspace;
        let tokens = self.trunk.forward(image, &self.modulation, trunk); // (T, D)
        mean_of_tokens(features, tokens); // (D)
        self.head.row_into(logits, features); // (K)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;
    use crate::model::{ClassConditioning, ClassifierConfig, Vit};
    use crate::noise::NoiseKey;
    use crate::tiny;

    /// A tiny classifier with random weights that use every parameter.
    fn classifier(channels: usize) -> (VitConfig, Parameters) {
        let bundle = tiny::bundle(channels, ClassConditioning::Readout);
        let ClassifierConfig::Vit(config) = bundle.classifier_config else { panic!("the tiny classifier is a vision transformer") };
        (config, Parameters::frozen(bundle.classifier))
    }

    #[test]
    fn it_answers_what_the_model_with_gradients_answers() {
        let (config, parameters) = classifier(3);
        let mut image = vec![0f32; config.trunk.image.elements()];
        NoiseKey::from_seed(3, "image", 0).fill_normal(0, &mut image);
        let model = Vit::load(&config, &parameters).expect("a model");
        let features = model.features(&image).expect("a pass");
        let logits = model.head(&features).expect("a pass");
        let mut workspace = VitWorkspace::new(&config);
        InferenceVit::load(&config, &parameters).expect("a model").forward(&image, &mut workspace);
        for (expected, got) in [(features, &workspace.features), (logits, &workspace.logits)] {
            let expected = expected.flatten_all().and_then(|row| row.to_vec1::<f32>()).expect("a row");
            assert_eq!(got.len(), expected.len());
            let scale = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for (got, expected) in got.iter().zip(&expected) {
                // A few hundred roundings of f32, which mostly cancel.
                assert!((got - expected).abs() <= 1e-5 * scale, "{got} against {expected}");
            }
        }
    }

    #[test]
    fn what_a_workspace_held_before_changes_no_bit() {
        let (config, parameters) = classifier(1);
        let inference = InferenceVit::load(&config, &parameters).expect("a model");
        let (mut fresh, mut used) = (VitWorkspace::new(&config), VitWorkspace::new(&config));
        inference.forward(&[0.7; 64], &mut used);
        for workspace in [&mut fresh, &mut used] {
            inference.forward(&[-0.3; 64], workspace);
        }
        assert_eq!((fresh.features, fresh.logits), (used.features, used.logits));
    }

    #[test]
    fn it_takes_no_memory_once_its_buffers_are_there() {
        let (config, parameters) = classifier(1);
        let inference = InferenceVit::load(&config, &parameters).expect("a model");
        let (image, mut workspace) = (vec![0.5f32; config.trunk.image.elements()], VitWorkspace::new(&config));
        let mut requests_of_pass = || {
            let before = kernels::allocations::count();
            inference.forward(&image, &mut workspace);
            kernels::allocations::count() - before
        };
        assert!(requests_of_pass() > 0, "the first pass fills the buffers");
        assert_eq!(requests_of_pass(), 0);
    }
}
