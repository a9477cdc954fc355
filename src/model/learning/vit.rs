//! The vision transformer in both directions.

use super::linear::Linear;
use super::trunk::{Block, BlockTape, BlockWorkspace, Constants, parts, parts_mut};
use crate::kernels;
use crate::model::parameters::{Gradients, ParameterError, Parameters};
use crate::model::vit::{VitConfig, mean_of_tokens};

/// The vision transformer, with the values that its parameters had when they were packed.
#[derive(Clone, Debug)]
pub struct LearningVit {
    config: VitConfig,
    embed: Linear,
    position: Constants,
    blocks: Vec<Block>,
    final_modulation: Constants,
    head: Linear,
}

/// What the backward pass needs of the forward pass of one image.
#[derive(Clone, Debug)]
pub struct Tape {
    /// (T, window elements); the places outside of the image are never written.
    windows: Vec<f32>,
    blocks: Vec<BlockTape>,
    /// (T, D), before the last norm.
    last: Vec<f32>,
    /// What the head sees: the mean of the tokens, (D).
    pub features: Vec<f32>,
    /// (K)
    pub logits: Vec<f32>,
}

impl Tape {
    pub fn new(config: &VitConfig) -> Self {
        let trunk = &config.trunk;
        Self {
            windows: vec![0f32; trunk.tokens() * trunk.window_elements()],
            blocks: vec![BlockTape::new(trunk); trunk.depth],
            last: vec![0f32; trunk.tokens() * trunk.hidden],
            features: vec![0f32; trunk.hidden],
            logits: vec![0f32; config.classes],
        }
    }
}

/// Buffers of one image's pass.
#[derive(Clone, Debug)]
pub struct BackwardWorkspace {
    block: BlockWorkspace,
    /// (T, D)
    g: Vec<f32>,
    /// (2 D)
    dmodulation: Vec<f32>,
    /// (D)
    dfeatures: Vec<f32>,
}

impl BackwardWorkspace {
    pub fn new(config: &VitConfig) -> Self {
        let (trunk, d) = (&config.trunk, config.trunk.hidden);
        let block = BlockWorkspace::new(trunk);
        Self { block, g: vec![0f32; trunk.tokens() * d], dmodulation: vec![0f32; 2 * d], dfeatures: vec![0f32; d] }
    }
}

impl LearningVit {
    /// # Errors
    /// `Missing` and `Shape` where the parameters are not those of `config`.
    pub fn load(config: &VitConfig, parameters: &Parameters) -> Result<Self, ParameterError> {
        let (trunk, d) = (&config.trunk, config.trunk.hidden);
        Ok(Self {
            config: *config,
            embed: Linear::load(parameters, "embed", d, trunk.window_elements())?,
            position: Constants::load(parameters, "position".to_owned(), &[1, trunk.tokens(), d])?,
            blocks: (0..trunk.depth).map(|block| Block::load(parameters, block, trunk)).collect::<Result<_, _>>()?,
            final_modulation: Constants::load(parameters, "final.modulation".to_owned(), &[1, 2 * d])?,
            head: Linear::load(parameters, "head", config.classes, d)?,
        })
    }

    /// Takes the values that the parameters have now, without allocation.
    pub fn pack(&mut self, parameters: &Parameters) -> Result<(), ParameterError> {
        self.embed.pack(parameters)?;
        self.position.pack(parameters)?;
        self.blocks.iter_mut().try_for_each(|block| block.pack(parameters))?;
        self.final_modulation.pack(parameters)?;
        self.head.pack(parameters)
    }

    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// Leaves features and logits of one image (C, H, W) on the tape, with what the backward pass needs.
    pub fn forward(&self, image: &[f32], tape: &mut Tape, workspace: &mut BackwardWorkspace) {
        let trunk = &self.config.trunk;
        let Tape { windows, blocks, last, features, logits } = tape;
        trunk.windows_into(image, windows);
        let first = blocks.first_mut().map_or(&mut *last, |block| &mut block.x);
        first.copy_from_slice(&self.position.values);
        self.embed.forward_onto(first, windows); // (T, D)
        for (i, block) in self.blocks.iter().enumerate() {
            let (tape, rest) = blocks[i..].split_first_mut().expect("a tape for each block");
            let y = rest.first_mut().map_or(&mut *last, |next| &mut next.x);
            block.forward(y, trunk, tape, &mut workspace.block); // (T, D)
        }
        let [shift, scale] = parts(&self.final_modulation.values);
        kernels::modulate(&mut workspace.block.h, last, shift, scale); // (T, D)
        mean_of_tokens(features, &workspace.block.h); // (D)
        self.head.forward(logits, features); // (K)
    }

    /// Adds the gradients of one image to those that `gradients` has a place for, for the gradient of the loss by its logits (K).
    pub fn backward(&self, dlogits: &[f32], tape: &Tape, gradients: &mut Gradients, workspace: &mut BackwardWorkspace) {
        let trunk = &self.config.trunk;
        let BackwardWorkspace { block: of_block, g, dmodulation, dfeatures } = workspace;
        self.head.add_gradients(gradients, &tape.features, dlogits);
        self.head.backward(dfeatures, dlogits); // (D)
        let tokens = trunk.tokens() as f32;
        dfeatures.iter_mut().for_each(|value| *value /= tokens);
        of_block.dh.chunks_exact_mut(trunk.hidden).for_each(|row| row.copy_from_slice(dfeatures)); // (T, D)
        g.fill(0.0);
        dmodulation.fill(0.0);
        let ([dshift, dscale], [_, scale]) = (parts_mut(dmodulation), parts(&self.final_modulation.values));
        kernels::modulate_backward(g, dshift, dscale, &tape.last, &of_block.dh, scale); // (T, D)
        self.final_modulation.add_gradient(gradients, dmodulation);

        let embedding_learns = self.position.learns(gradients) || self.embed.learns(gradients);
        // What lies before the first block that learns needs no gradient.
        let first = if embedding_learns { Some(0) } else { self.blocks.iter().position(|block| block.learns(gradients)) };
        for i in (first.unwrap_or(self.blocks.len())..self.blocks.len()).rev() {
            self.blocks[i].backward(g, trunk, &tape.blocks[i], gradients, of_block); // (T, D)
        }
        if embedding_learns {
            self.position.add_gradient(gradients, g);
            self.embed.add_gradients(gradients, &tape.windows, g);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClassConditioning, ClassifierConfig, InferenceVit, Vit, VitWorkspace};
    use crate::noise::NoiseKey;
    use crate::tiny;
    use candle_core::{Device, Tensor};

    /// A tiny classifier with random weights that use every parameter.
    fn classifier(channels: usize) -> (VitConfig, Parameters) {
        let bundle = tiny::bundle(channels, ClassConditioning::Readout);
        let ClassifierConfig::Vit(config) = bundle.classifier_config else { panic!("the tiny classifier is a vision transformer") };
        (config, Parameters::trainable(&bundle.classifier, |_| true).expect("parameters"))
    }

    fn image(config: &VitConfig, index: u64) -> Vec<f32> {
        let mut image = vec![0f32; config.trunk.image.elements()];
        NoiseKey::from_seed(3, "image", index).fill_normal(0, &mut image);
        image
    }

    /// Gradients of the parameters that `is_asked` names, for the gradient of the loss by the logits of one image.
    fn gradients(config: &VitConfig, parameters: &Parameters, dlogits: &[f32], is_asked: impl Fn(&str) -> bool) -> Gradients {
        let model = LearningVit::load(config, parameters).expect("a model");
        let (mut tape, mut workspace) = (Tape::new(config), BackwardWorkspace::new(config));
        let asked = parameters.variables().iter().filter(|(name, _)| is_asked(name));
        let mut gradients: Gradients = asked.map(|(name, variable)| (name.clone(), vec![0f32; variable.elem_count()])).collect();
        model.forward(&image(config, 0), &mut tape, &mut workspace);
        model.backward(dlogits, &tape, &mut gradients, &mut workspace);
        gradients
    }

    #[test]
    fn it_answers_with_the_bits_of_the_model_that_only_answers() {
        for channels in [1, 3] {
            let (config, parameters) = classifier(channels);
            let learning = LearningVit::load(&config, &parameters).expect("a model");
            let inference = InferenceVit::load(&config, &parameters).expect("a model");
            let (mut tape, mut workspace) = (Tape::new(&config), BackwardWorkspace::new(&config));
            let mut expected = VitWorkspace::new(&config);
            for index in 0..3 {
                learning.forward(&image(&config, index), &mut tape, &mut workspace);
                inference.forward(&image(&config, index), &mut expected);
                assert_eq!((&tape.features, &tape.logits), (&expected.features, &expected.logits));
            }
        }
    }

    #[test]
    fn its_gradients_are_those_of_the_model_with_tensors() {
        let (config, parameters) = classifier(3);
        let dlogits: Vec<f32> = (0..config.classes).map(|k| 0.3 - 0.2 * k as f32).collect();
        let model = Vit::load(&config, &parameters).expect("a model");
        let logits = model.features(&image(&config, 0)).and_then(|features| model.head(&features)).expect("a pass");
        let weights = Tensor::from_slice(&dlogits, (1, config.classes), &Device::Cpu).expect("a row");
        let store = logits.mul(&weights).and_then(|y| y.sum_all()).and_then(|loss| loss.backward()).expect("a backward pass");
        let got = gradients(&config, &parameters, &dlogits, |_| true);
        assert_eq!(got.len(), parameters.variables().len());
        for (name, variable) in parameters.variables() {
            let expected =
                store.get(variable).and_then(|g| g.flatten_all().ok()).and_then(|g| g.to_vec1::<f32>().ok()).expect("a gradient");
            let scale = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            assert!(scale > 0.0, "{name} is used");
            for (got, expected) in got[name].iter().zip(&expected) {
                // A few hundred roundings of f32, which mostly cancel.
                assert!((got - expected).abs() <= 2e-5 * scale, "{name}: {got} against {expected}");
            }
        }
    }

    #[test]
    fn gradients_that_are_not_asked_for_change_no_bit_of_the_others() {
        let (config, parameters) = classifier(1);
        let dlogits = vec![0.5f32; config.classes];
        let all = gradients(&config, &parameters, &dlogits, |_| true);
        for part in ["modulation", "blocks.01", "head", "position", "neighbours", ".bias"] {
            let some = gradients(&config, &parameters, &dlogits, |name| name.contains(part));
            assert!(!some.is_empty(), "{part}");
            assert!(some.iter().all(|(name, gradient)| *gradient == all[name]), "{part}");
        }
    }

    #[test]
    fn both_passes_take_no_memory_once_their_buffers_are_there() {
        let (config, parameters) = classifier(1);
        let mut model = LearningVit::load(&config, &parameters).expect("a model");
        let (mut tape, mut workspace) = (Tape::new(&config), BackwardWorkspace::new(&config));
        let (image, dlogits) = (image(&config, 0), vec![0.5f32; config.classes]);
        let mut gradients: Gradients =
            parameters.variables().iter().map(|(name, variable)| (name.clone(), vec![0f32; variable.elem_count()])).collect();
        let mut requests_of_pass = || {
            let before = kernels::allocations::count();
            model.pack(&parameters).expect("the same parameters");
            model.forward(&image, &mut tape, &mut workspace);
            model.backward(&dlogits, &tape, &mut gradients, &mut workspace);
            kernels::allocations::count() - before
        };
        assert!(requests_of_pass() > 0, "the first pass fills the buffers");
        assert_eq!(requests_of_pass(), 0);
    }
}
