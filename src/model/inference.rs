//! The diffusion model's forward pass alone, for the judge, which needs no gradient.
//!
//! It computes what [`super::Dit`] computes, without tensors and without allocation: weights are packed once, and an image's
//! activations stay in the nearest caches, in the buffers of a [`Workspace`].
//! Invariant: one image is the unit of work, so that its bits do not depend on other images or on the number of threads.

use super::blocks::{BLOCK_MODULATIONS, TrunkConfig, sine_embedding};
use super::dit::{ClassConditioning, DitConfig, TIMESTEP_SINES};
use super::parameters::{ParameterError, Parameters};
use crate::diffusion::Timestep;
use crate::kernels::{self, AttentionWorkspace, Finish, Matrix, Panels};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The diffusion model, frozen, forward only.
#[derive(Debug)]
pub struct InferenceDit {
    config: DitConfig,
    embed: Layer,
    /// (T, D)
    position: Vec<f32>,
    timestep_expand: Layer,
    timestep_contract: Layer,
    /// Of all blocks and the last norm, D -> M = (6 depth + 2) D.
    modulation: Layer,
    blocks: Vec<Block>,
    readout: Layer,
    /// (K, D), only where classes enter by adaLN.
    class_embeddings: Option<Vec<f32>>,
    /// (M) by timestep, where that is all they depend on: as many as there are timesteps, at most.
    modulations: Mutex<BTreeMap<Timestep, Arc<Vec<f32>>>>,
}

#[derive(Debug)]
struct Block {
    qkv: Layer,
    projection: Layer,
    expand: Layer,
    /// (9, D * mlp_ratio)
    neighbours: Vec<f32>,
    contract: Layer,
}

/// Weight, packed, and bias of a linear layer.
#[derive(Debug)]
struct Layer {
    panels: Panels,
    bias: Vec<f32>,
}

/// Buffers of one image's pass.
#[derive(Debug)]
pub struct Workspace {
    /// (T, window elements); the places outside of the image are never written.
    windows: Vec<f32>,
    /// (T, D)
    x: Vec<f32>,
    /// (T, D)
    h: Vec<f32>,
    /// (T, 3 D)
    qkv: Vec<f32>,
    /// (T, D * mlp_ratio)
    expanded: Vec<f32>,
    /// (T, D * mlp_ratio)
    mixed: Vec<f32>,
    attention: AttentionWorkspace,
    /// (T, K P)
    pred_noise: Vec<f32>,
}

impl Workspace {
    pub fn new(config: &DitConfig) -> Self {
        let trunk = &config.trunk;
        let tokens = |width: usize| vec![0f32; trunk.tokens() * width];
        let inner = trunk.hidden * trunk.mlp_ratio;
        Self {
            windows: tokens(trunk.window_elements()),
            x: tokens(trunk.hidden),
            h: tokens(trunk.hidden),
            qkv: tokens(3 * trunk.hidden),
            expanded: tokens(inner),
            mixed: tokens(inner),
            attention: AttentionWorkspace::default(),
            pred_noise: tokens(config.classes * trunk.patch_elements()),
        }
    }
}

impl InferenceDit {
    /// # Errors
    /// `Missing` and `Shape` where the parameters are not those of `config`.
    pub fn load(config: &DitConfig, parameters: &Parameters) -> Result<Self, ParameterError> {
        let (d, depth) = (config.trunk.hidden, config.trunk.depth);
        let mut modulations: Vec<_> = (0..depth).map(|block| (format!("blocks.{block:02}.modulation"), BLOCK_MODULATIONS * d)).collect();
        modulations.push(("final.modulation".to_owned(), 2 * d));
        let class_embeddings = match config.conditioning {
            ClassConditioning::Readout => None,
            ClassConditioning::AdaLn => Some(values(parameters, "class_embeddings", &[config.classes, d])?),
        };
        Ok(Self {
            config: *config,
            embed: Layer::load(parameters, "embed", d, config.trunk.window_elements())?,
            position: values(parameters, "position", &[1, config.trunk.tokens(), d])?,
            timestep_expand: Layer::load(parameters, "timestep.expand", d, TIMESTEP_SINES)?,
            timestep_contract: Layer::load(parameters, "timestep.contract", d, d)?,
            modulation: Layer::load_joined(parameters, &modulations, d)?,
            blocks: (0..depth).map(|block| Block::load(parameters, block, config)).collect::<Result<_, _>>()?,
            readout: Layer::load(parameters, "readout", config.outputs(), d)?,
            class_embeddings,
            modulations: Mutex::default(),
        })
    }

    /// Predicted noise under every class, (T, K P), of one `x_t` (C, H, W).
    pub fn pred_noise_of_classes<'a>(&self, x_t: &[f32], timestep: Timestep, workspace: &'a mut Workspace) -> &'a [f32] {
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
    fn forward(&self, x_t: &[f32], modulation: &[f32], column: usize, workspace: &mut Workspace) {
        let trunk = &self.config.trunk;
        let d = trunk.hidden;
        let mut parts = modulation.chunks_exact(d);
        let mut part = || parts.next().expect("six for each block, two for the last norm");
        trunk.windows_into(x_t, &mut workspace.windows);
        workspace.x.copy_from_slice(&self.position);
        self.embed.apply(&mut workspace.x, &workspace.windows, Finish::Residual(&self.embed.bias)); // (T, D)
        for block in &self.blocks {
            block.forward(std::array::from_fn(|_| part()), trunk, workspace); // (T, D)
        }
        kernels::modulate(&mut workspace.h, &workspace.x, part(), part()); // (T, D)
        let (stride, h) = (workspace.pred_noise.len() / trunk.tokens(), Matrix::rows_of(&workspace.h, trunk.tokens(), d, d));
        let readout = &self.readout;
        kernels::product(&mut workspace.pred_noise[column..], stride, h, &readout.panels, Finish::Bias(&readout.bias)); // (T, outputs)
    }
}

impl Block {
    fn load(parameters: &Parameters, block: usize, config: &DitConfig) -> Result<Self, ParameterError> {
        let (d, inner) = (config.trunk.hidden, config.trunk.hidden * config.trunk.mlp_ratio);
        let name = |part: &str| format!("blocks.{block:02}.{part}");
        Ok(Self {
            qkv: Layer::load(parameters, &name("qkv"), 3 * d, d)?,
            projection: Layer::load(parameters, &name("projection"), d, d)?,
            expand: Layer::load(parameters, &name("expand"), inner, d)?,
            neighbours: values(parameters, &name("neighbours"), &[kernels::NEIGHBOURS, inner])?,
            contract: Layer::load(parameters, &name("contract"), d, inner)?,
        })
    }

    /// Block of the workspace's x, (T, D), in place.
    fn forward(&self, parts: [&[f32]; BLOCK_MODULATIONS], trunk: &TrunkConfig, workspace: &mut Workspace) {
        let Workspace { x, h, qkv, expanded, mixed, attention, .. } = workspace;
        let [shift, scale, gate, mlp_shift, mlp_scale, mlp_gate] = parts;
        kernels::modulate(h, x, shift, scale); // (T, D)
        self.qkv.apply(qkv, h, Finish::Bias(&self.qkv.bias)); // (T, 3 D)
        kernels::attend(h, qkv, trunk.hidden, trunk.heads, attention); // (T, D)
        self.projection.apply(x, h, Finish::GatedResidual { bias: &self.projection.bias, gate }); // (T, D)
        kernels::modulate(h, x, mlp_shift, mlp_scale); // (T, D)
        self.expand.apply(expanded, h, Finish::Bias(&self.expand.bias)); // (T, D * mlp_ratio)
        kernels::mixed_gelu(mixed, expanded, &self.neighbours, trunk.grid()); // (T, D * mlp_ratio)
        self.contract.apply(x, mixed, Finish::GatedResidual { bias: &self.contract.bias, gate: mlp_gate }); // (T, D)
    }
}

impl Layer {
    fn load(parameters: &Parameters, name: &str, outputs: usize, inputs: usize) -> Result<Self, ParameterError> {
        Self::load_joined(parameters, &[(name.to_owned(), outputs)], inputs)
    }

    /// Layers (name, outputs) of the same input as one, the outputs one after the other.
    fn load_joined(parameters: &Parameters, layers: &[(String, usize)], inputs: usize) -> Result<Self, ParameterError> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for (name, outputs) in layers {
            weight.extend(values(parameters, &format!("{name}.weight"), &[*outputs, inputs])?);
            bias.extend(values(parameters, &format!("{name}.bias"), &[*outputs])?);
        }
        let mut panels = Panels::default();
        panels.pack(Matrix::rows_of(&weight, bias.len(), inputs, inputs).transposed());
        Ok(Self { panels, bias })
    }

    /// (T, inputs) -> (T, outputs)
    fn apply(&self, y: &mut [f32], x: &[f32], finish: Finish) {
        let rows = y.len() / self.bias.len();
        kernels::product(y, self.bias.len(), Matrix::rows_of(x, rows, x.len() / rows, x.len() / rows), &self.panels, finish);
    }

    fn of_row(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0f32; self.bias.len()];
        self.apply(&mut y, x, Finish::Bias(&self.bias));
        y
    }
}

fn values(parameters: &Parameters, name: &str, shape: &[usize]) -> Result<Vec<f32>, ParameterError> {
    Ok(parameters.get(name, shape)?.flatten_all()?.to_vec1::<f32>()?)
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
            let mut workspace = Workspace::new(config);
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
        let (x_t, mut workspace) = (vec![0.5f32; config.trunk.image.elements()], Workspace::new(config));
        let mut requests_of_pass = || {
            let before = kernels::allocations::count();
            inference.pred_noise_of_classes(&x_t, Timestep(10), &mut workspace);
            kernels::allocations::count() - before
        };
        assert!(requests_of_pass() > 0, "the first pass fills the buffers");
        assert_eq!(requests_of_pass(), 0);
    }
}
