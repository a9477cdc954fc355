//! Blocks of the vision transformer, forward with what the backward pass needs, and backward.

use super::linear::Linear;
use crate::kernels::{self, AttentionWorkspace};
use crate::model::blocks::{BLOCK_MODULATIONS, TrunkConfig};
use crate::model::parameters::{Gradients, ParameterError, Parameters};

/// A parameter that is no layer's: its name, shape and values.
#[derive(Clone, Debug)]
pub struct Constants {
    name: String,
    shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Constants {
    pub fn load(parameters: &Parameters, name: String, shape: &[usize]) -> Result<Self, ParameterError> {
        let mut constants = Self { name, shape: shape.to_vec(), values: vec![0f32; shape.iter().product()] };
        constants.pack(parameters)?;
        Ok(constants)
    }

    /// Takes the values that the parameter has now.
    pub fn pack(&mut self, parameters: &Parameters) -> Result<(), ParameterError> {
        parameters.read(&self.name, &self.shape, |values| self.values.copy_from_slice(values))
    }

    pub fn learns(&self, gradients: &Gradients) -> bool {
        gradients.contains_key(&self.name)
    }

    /// Adds `term`, if the gradient is asked for.
    pub fn add_gradient(&self, gradients: &mut Gradients, term: &[f32]) {
        if let Some(gradient) = gradients.get_mut(&self.name) {
            gradient.iter_mut().zip(term).for_each(|(sum, term)| *sum += term);
        }
    }
}

/// Attention and MLP, each behind a modulated norm and a gate.
#[derive(Clone, Debug)]
pub struct Block {
    modulation: Constants,
    qkv: Linear,
    projection: Linear,
    expand: Linear,
    neighbours: Constants,
    contract: Linear,
}

/// What a block's backward pass needs of the forward pass of one image.
#[derive(Clone, Debug)]
pub struct BlockTape {
    /// (T, D), what came in.
    pub x: Vec<f32>,
    /// (T, 3 D)
    qkv: Vec<f32>,
    /// (T, D)
    attended: Vec<f32>,
    /// (T, D)
    projected: Vec<f32>,
    /// (T, D), between attention and MLP.
    middle: Vec<f32>,
    /// (T, D * mlp_ratio)
    expanded: Vec<f32>,
    /// (T, D * mlp_ratio), after the neighbours.
    mixed: Vec<f32>,
    /// (T, D * mlp_ratio), after the GELU.
    activated: Vec<f32>,
    /// (T, D)
    contracted: Vec<f32>,
}

impl BlockTape {
    pub fn new(config: &TrunkConfig) -> Self {
        let of = |width: usize| vec![0f32; config.tokens() * width];
        let (d, inner) = (config.hidden, config.hidden * config.mlp_ratio);
        Self {
            x: of(d),
            qkv: of(3 * d),
            attended: of(d),
            projected: of(d),
            middle: of(d),
            expanded: of(inner),
            mixed: of(inner),
            activated: of(inner),
            contracted: of(d),
        }
    }
}

/// Buffers that hold nothing from one block to the next.
#[derive(Clone, Debug)]
pub struct BlockWorkspace {
    /// (T, D): a norm's output.
    pub h: Vec<f32>,
    /// (T, D)
    pub dh: Vec<f32>,
    /// (T, D)
    dy: Vec<f32>,
    /// (T, 3 D)
    dqkv: Vec<f32>,
    /// (T, D * mlp_ratio)
    dmixed: Vec<f32>,
    /// (T, D * mlp_ratio)
    dexpanded: Vec<f32>,
    /// (6 D)
    dmodulation: Vec<f32>,
    /// (9, D * mlp_ratio)
    dneighbours: Vec<f32>,
    attention: AttentionWorkspace,
}

impl BlockWorkspace {
    pub fn new(config: &TrunkConfig) -> Self {
        let of = |width: usize| vec![0f32; config.tokens() * width];
        let (d, inner) = (config.hidden, config.hidden * config.mlp_ratio);
        Self {
            h: of(d),
            dh: of(d),
            dy: of(d),
            dqkv: of(3 * d),
            dmixed: of(inner),
            dexpanded: of(inner),
            dmodulation: vec![0f32; BLOCK_MODULATIONS * d],
            dneighbours: vec![0f32; kernels::NEIGHBOURS * inner],
            attention: AttentionWorkspace::default(),
        }
    }
}

impl Block {
    pub fn load(parameters: &Parameters, block: usize, config: &TrunkConfig) -> Result<Self, ParameterError> {
        let (d, inner) = (config.hidden, config.hidden * config.mlp_ratio);
        let name = |part: &str| format!("blocks.{block:02}.{part}");
        Ok(Self {
            modulation: Constants::load(parameters, name("modulation"), &[1, BLOCK_MODULATIONS * d])?,
            qkv: Linear::load(parameters, &name("qkv"), 3 * d, d)?,
            projection: Linear::load(parameters, &name("projection"), d, d)?,
            expand: Linear::load(parameters, &name("expand"), inner, d)?,
            neighbours: Constants::load(parameters, name("neighbours"), &[kernels::NEIGHBOURS, inner])?,
            contract: Linear::load(parameters, &name("contract"), d, inner)?,
        })
    }

    /// Takes the values that the parameters have now.
    pub fn pack(&mut self, parameters: &Parameters) -> Result<(), ParameterError> {
        self.modulation.pack(parameters)?;
        self.neighbours.pack(parameters)?;
        [&mut self.qkv, &mut self.projection, &mut self.expand, &mut self.contract].into_iter().try_for_each(|layer| layer.pack(parameters))
    }

    /// Whether a gradient of this block is asked for.
    pub fn learns(&self, gradients: &Gradients) -> bool {
        let layers = [&self.qkv, &self.projection, &self.expand, &self.contract];
        layers.into_iter().any(|layer| layer.learns(gradients)) || self.modulation.learns(gradients) || self.neighbours.learns(gradients)
    }

    /// Writes y (T, D), and the tape but for its `x`, which is what comes in.
    pub fn forward(&self, y: &mut [f32], config: &TrunkConfig, tape: &mut BlockTape, workspace: &mut BlockWorkspace) {
        let BlockWorkspace { h, attention, .. } = workspace;
        let [shift, scale, gate, mlp_shift, mlp_scale, mlp_gate] = parts(&self.modulation.values);
        kernels::modulate(h, &tape.x, shift, scale); // (T, D)
        self.qkv.forward(&mut tape.qkv, h); // (T, 3 D)
        kernels::attend(&mut tape.attended, &tape.qkv, config.hidden, config.heads, attention); // (T, D)
        self.projection.forward(&mut tape.projected, &tape.attended); // (T, D)
        tape.middle.copy_from_slice(&tape.x);
        kernels::add_gated(&mut tape.middle, &tape.projected, gate); // (T, D)
        kernels::modulate(h, &tape.middle, mlp_shift, mlp_scale); // (T, D)
        self.expand.forward(&mut tape.expanded, h); // (T, D * mlp_ratio)
        kernels::mix(&mut tape.mixed, &tape.expanded, &self.neighbours.values, config.grid()); // (T, D * mlp_ratio)
        kernels::gelu_into(&mut tape.activated, &tape.mixed); // (T, D * mlp_ratio)
        self.contract.forward(&mut tape.contracted, &tape.activated); // (T, D)
        y.copy_from_slice(&tape.middle);
        kernels::add_gated(y, &tape.contracted, mlp_gate); // (T, D)
    }

    /// Puts the gradient of what came in, (T, D), in the place of `g`, that of what went out; adds those of the parameters.
    pub fn backward(
        &self,
        g: &mut [f32],
        config: &TrunkConfig,
        tape: &BlockTape,
        gradients: &mut Gradients,
        workspace: &mut BlockWorkspace,
    ) {
        let BlockWorkspace { h, dh, dy, dqkv, dmixed, dexpanded, dmodulation, dneighbours, attention } = workspace;
        let [shift, scale, gate, mlp_shift, mlp_scale, mlp_gate] = parts(&self.modulation.values);
        dmodulation.fill(0.0);
        let [dshift, dscale, dgate, dmlp_shift, dmlp_scale, dmlp_gate] = parts_mut(dmodulation);

        kernels::gate_backward(dy, dmlp_gate, &tape.contracted, g, mlp_gate); // (T, D)
        self.contract.add_gradients(gradients, &tape.activated, dy);
        self.contract.backward(dmixed, dy); // (T, D * mlp_ratio)
        kernels::gelu_backward(dmixed, &tape.mixed); // (T, D * mlp_ratio)
        dneighbours.fill(0.0);
        let asked = self.neighbours.learns(gradients).then_some(&mut dneighbours[..]);
        kernels::mix_backward(dexpanded, asked, &tape.expanded, dmixed, &self.neighbours.values, config.grid()); // (T, D * mlp_ratio)
        self.neighbours.add_gradient(gradients, dneighbours);
        kernels::modulate(h, &tape.middle, mlp_shift, mlp_scale); // (T, D)
        self.expand.add_gradients(gradients, h, dexpanded);
        self.expand.backward(dh, dexpanded); // (T, D)
        kernels::modulate_backward(g, dmlp_shift, dmlp_scale, &tape.middle, dh, mlp_scale); // (T, D)

        kernels::gate_backward(dy, dgate, &tape.projected, g, gate); // (T, D)
        self.projection.add_gradients(gradients, &tape.attended, dy);
        self.projection.backward(dh, dy); // (T, D)
        kernels::attend_backward(dqkv, &tape.qkv, &tape.attended, dh, config.hidden, config.heads, attention); // (T, 3 D)
        kernels::modulate(h, &tape.x, shift, scale); // (T, D)
        self.qkv.add_gradients(gradients, h, dqkv);
        self.qkv.backward(dh, dqkv); // (T, D)
        kernels::modulate_backward(g, dshift, dscale, &tape.x, dh, scale); // (T, D)
        self.modulation.add_gradient(gradients, dmodulation);
    }
}

/// `N` vectors of the same length that lie one after the other.
pub fn parts<const N: usize>(values: &[f32]) -> [&[f32]; N] {
    let mut parts = values.chunks_exact(values.len() / N);
    std::array::from_fn(|_| parts.next().expect("as many parts as there are"))
}

/// [`parts`], to be written.
pub fn parts_mut<const N: usize>(values: &mut [f32]) -> [&mut [f32]; N] {
    let mut parts = values.chunks_exact_mut(values.len() / N);
    std::array::from_fn(|_| parts.next().expect("as many parts as there are"))
}
