//! The diffusion model's forward pass alone, for the judge.

use super::trunk::{InferenceTrunk, Layer, TrunkWorkspace, modulations, values};
use crate::diffusion::Timestep;
use crate::kernels;
use crate::model::blocks::sine_embedding;
use crate::model::dit::{ClassConditioning, DitConfig, TIMESTEP_SINES};
use crate::model::parameters::{ParameterError, Parameters};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The diffusion model, frozen, forward only.
#[derive(Debug)]
pub struct InferenceDit {
    config: DitConfig,
    trunk: InferenceTrunk,
    timestep_expand: Layer,
    timestep_contract: Layer,
    /// Of all blocks and the last norm, D -> M = (6 depth + 2) D.
    modulation: Layer,
    readout: Layer,
    /// (K, D), only where classes enter by adaLN.
    class_embeddings: Option<Vec<f32>>,
    /// (M) by timestep, where that is all they depend on: as many as there are timesteps, at most.
    modulations: Mutex<BTreeMap<Timestep, Arc<Vec<f32>>>>,
}

/// Buffers of one image's pass.
#[derive(Debug)]
pub struct DitWorkspace {
    trunk: TrunkWorkspace,
    /// (T, K P)
    pred_noise: Vec<f32>,
}

impl DitWorkspace {
    pub fn new(config: &DitConfig) -> Self {
        let trunk = &config.trunk;
        let pred_noise = vec![0f32; trunk.tokens() * config.classes * trunk.patch_elements()];
        Self { trunk: TrunkWorkspace::new(trunk), pred_noise }
    }
}

impl InferenceDit {
    /// # Errors
    /// `Missing` and `Shape` where the parameters are not those of `config`.
    pub fn load(config: &DitConfig, parameters: &Parameters) -> Result<Self, ParameterError> {
        let d = config.trunk.hidden;
        let class_embeddings = match config.conditioning {
            ClassConditioning::Readout => None,
            ClassConditioning::AdaLn => Some(values(parameters, "class_embeddings", &[config.classes, d])?),
        };
        Ok(Self {
            config: *config,
            trunk: InferenceTrunk::load(&config.trunk, parameters)?,
            timestep_expand: Layer::load(parameters, "timestep.expand", d, TIMESTEP_SINES)?,
            timestep_contract: Layer::load(parameters, "timestep.contract", d, d)?,
            modulation: Layer::load_joined(parameters, &modulations(&config.trunk), d)?,
            readout: Layer::load(parameters, "readout", config.outputs(), d)?,
            class_embeddings,
            modulations: Mutex::default(),
        })
    }

    /// Predicted noise under every class, (T, K P), of one `x_t` (C, H, W).
    pub fn pred_noise_of_classes<'a>(&self, x_t: &[f32], timestep: Timestep, workspace: &'a mut DitWorkspace) -> &'a [f32] {
        match &self.class_embeddings {
            None => {
                let known = self.modulations.lock().get(&timestep).cloned();
                let modulation = known.unwrap_or_else(|| {
                    let modulation = Arc::new(self.modulation(timestep, None));
                    self.modulations.lock().insert(timestep, modulation.clone());
                    modulation
                });
                self.forward(x_t, &modulation, 0, workspace);
            }
            Some(embeddings) => {
                for (class, embedding) in embeddings.chunks_exact(self.config.trunk.hidden).enumerate() {
                    let modulation = self.modulation(timestep, Some(embedding));
                    self.forward(x_t, &modulation, class * self.config.outputs(), workspace);
                }
            }
        }
        &workspace.pred_noise
    }

    /// What modulates the norms and gates of all blocks, and the last norm: (M).
    fn modulation(&self, timestep: Timestep, class_embedding: Option<&[f32]>) -> Vec<f32> {
        let sines: Vec<f32> = sine_embedding(f64::from(timestep.0), TIMESTEP_SINES).collect();
        let mut embedding = self.timestep_expand.of_row(&sines); // (D)
        kernels::silu_in_place(&mut embedding);
        let mut conditioned = self.timestep_contract.of_row(&embedding); // (D)
        for (value, class) in conditioned.iter_mut().zip(class_embedding.into_iter().flatten()) {
            *value += class;
        }
        kernels::silu_in_place(&mut conditioned);
        self.modulation.of_row(&conditioned)
    }

    /// Writes the readout of `x_t` to the columns from `column` on of the predicted noise.
    fn forward(&self, x_t: &[f32], modulation: &[f32], column: usize, workspace: &mut DitWorkspace) {
        let DitWorkspace { trunk, pred_noise } = workspace;
        let tokens = self.config.trunk.tokens();
        let h = self.trunk.forward(x_t, modulation, trunk); // (T, D)
        let row_stride = pred_noise.len() / tokens;
        self.readout.rows_into(&mut pred_noise[column..], row_stride, h, tokens); // (T, outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Dit;
    use crate::noise::NoiseKey;
    use crate::tiny;

    #[test]
    fn it_predicts_what_the_model_with_gradients_predicts() {
        // Goal: one model, computed in two ways. Method: random weights that use every parameter, both ways that a class enters.
        for conditioning in [ClassConditioning::Readout, ClassConditioning::AdaLn] {
            let bundle = tiny::bundle(3, conditioning);
            let config = &bundle.diffusion_config;
            let parameters = Parameters::frozen(bundle.diffusion.clone());
            let mut x_t = vec![0f32; config.trunk.image.elements()];
            NoiseKey::from_seed(3, "x_t", 0).fill_normal(0, &mut x_t);
            let model = Dit::load(config, &parameters).expect("a model");
            let expected =
                model.pred_noise_of_classes(&x_t, &[Timestep(70)]).and_then(|t| t.flatten_all()?.to_vec1::<f32>()).expect("a pass");
            let inference = InferenceDit::load(config, &parameters).expect("a model");
            let mut workspace = DitWorkspace::new(config);
            let got = inference.pred_noise_of_classes(&x_t, Timestep(70), &mut workspace);
            let scale = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for (got, expected) in got.iter().zip(&expected) {
                // A few hundred roundings of f32, which mostly cancel.
                assert!((got - expected).abs() <= 1e-5 * scale, "{conditioning:?}: {got} against {expected}");
            }
        }
    }
    #[test]
    fn it_takes_no_memory_once_its_buffers_are_there() {
        let bundle = tiny::bundle(1, ClassConditioning::Readout);
        let config = &bundle.diffusion_config;
        let inference = InferenceDit::load(config, &Parameters::frozen(bundle.diffusion.clone())).expect("a model");
        let (x_t, mut workspace) = (vec![0.5f32; config.trunk.image.elements()], DitWorkspace::new(config));
        let mut requests_of_pass = || {
            let before = kernels::allocations::count();
            inference.pred_noise_of_classes(&x_t, Timestep(10), &mut workspace);
            kernels::allocations::count() - before
        };
        assert!(requests_of_pass() > 0, "the first pass fills the buffers");
        assert_eq!(requests_of_pass(), 0);
    }
}
