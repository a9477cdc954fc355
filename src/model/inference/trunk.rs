//! What both models have in common, forward only: tokens of one image, blocks, the last norm.

use crate::kernels::{self, AttentionWorkspace, Finish, Matrix, Panels};
use crate::model::blocks::{BLOCK_MODULATIONS, TrunkConfig};
use crate::model::parameters::{ParameterError, Parameters};

/// Tokens, positions, blocks and the last norm; what modulates them is given to each pass.
#[derive(Debug)]
pub struct InferenceTrunk {
    config: TrunkConfig,
    embed: Layer,
    /// (T, D)
    position: Vec<f32>,
    blocks: Vec<Block>,
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
pub struct Layer {
    panels: Panels,
    bias: Vec<f32>,
}

/// Buffers of one image's pass through the trunk.
#[derive(Debug)]
pub struct TrunkWorkspace {
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
}

impl TrunkWorkspace {
    pub fn new(config: &TrunkConfig) -> Self {
        let tokens = |width: usize| vec![0f32; config.tokens() * width];
        let inner = config.hidden * config.mlp_ratio;
        Self {
            windows: tokens(config.window_elements()),
            x: tokens(config.hidden),
            h: tokens(config.hidden),
            qkv: tokens(3 * config.hidden),
            expanded: tokens(inner),
            mixed: tokens(inner),
            attention: AttentionWorkspace::default(),
        }
    }
}

impl InferenceTrunk {
    /// # Errors
    /// `Missing` and `Shape` where the parameters are not those of `config`.
    pub fn load(config: &TrunkConfig, parameters: &Parameters) -> Result<Self, ParameterError> {
        Ok(Self {
            config: *config,
            embed: Layer::load(parameters, "embed", config.hidden, config.window_elements())?,
            position: values(parameters, "position", &[1, config.tokens(), config.hidden])?,
            blocks: (0..config.depth).map(|block| Block::load(parameters, block, config)).collect::<Result<_, _>>()?,
        })
    }

    /// Tokens (T, D) of one image (C, H, W), after the last norm; `modulation` (M) has the parts of [`modulations`] in a row.
    pub fn forward<'a>(&self, image: &[f32], modulation: &[f32], workspace: &'a mut TrunkWorkspace) -> &'a [f32] {
        let mut parts = modulation.chunks_exact(self.config.hidden);
        let mut part = || parts.next().expect("six for each block, two for the last norm");
        self.config.windows_into(image, &mut workspace.windows);
        workspace.x.copy_from_slice(&self.position);
        self.embed.apply(&mut workspace.x, &workspace.windows, Finish::Residual(&self.embed.bias)); // (T, D)
        for block in &self.blocks {
            block.forward(std::array::from_fn(|_| part()), &self.config, workspace); // (T, D)
        }
        kernels::modulate(&mut workspace.h, &workspace.x, part(), part()); // (T, D)
        &workspace.h
    }
}

/// What modulates the norms and gates of all blocks and the last norm, M = (6 depth + 2) D values: (name, values).
pub fn modulations(config: &TrunkConfig) -> Vec<(String, usize)> {
    let of_block = |block| (format!("blocks.{block:02}.modulation"), BLOCK_MODULATIONS * config.hidden);
    (0..config.depth).map(of_block).chain([("final.modulation".to_owned(), 2 * config.hidden)]).collect()
}

impl Block {
    fn load(parameters: &Parameters, block: usize, config: &TrunkConfig) -> Result<Self, ParameterError> {
        let (d, inner) = (config.hidden, config.hidden * config.mlp_ratio);
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
    fn forward(&self, parts: [&[f32]; BLOCK_MODULATIONS], trunk: &TrunkConfig, workspace: &mut TrunkWorkspace) {
        let TrunkWorkspace { x, h, qkv, expanded, mixed, attention, .. } = workspace;
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
    pub fn load(parameters: &Parameters, name: &str, outputs: usize, inputs: usize) -> Result<Self, ParameterError> {
        Self::load_joined(parameters, &[(name.to_owned(), outputs)], inputs)
    }

    /// Layers (name, outputs) of the same input as one, the outputs one after the other.
    pub fn load_joined(parameters: &Parameters, layers: &[(String, usize)], inputs: usize) -> Result<Self, ParameterError> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for (name, outputs) in layers {
            weight.extend(values(parameters, &format!("{name}.weight"), &[*outputs, inputs])?);
            bias.extend(values(parameters, &format!("{name}.bias"), &[*outputs])?);
        }
        let mut panels = Panels::default();
        panels.pack(Matrix::rows_of(&weight, bias.len(), inputs, inputs).transposed());
        Ok(Self { panels, bias })
    }

    /// (rows, inputs) -> (rows, outputs), to rows of `y` that lie `row_stride` values apart.
    pub fn rows_into(&self, y: &mut [f32], row_stride: usize, x: &[f32], rows: usize) {
        let inputs = x.len() / rows;
        kernels::product(y, row_stride, Matrix::rows_of(x, rows, inputs, inputs), &self.panels, Finish::Bias(&self.bias));
    }

    /// (T, inputs) -> (T, outputs)
    fn apply(&self, y: &mut [f32], x: &[f32], finish: Finish) {
        let rows = y.len() / self.bias.len();
        kernels::product(y, self.bias.len(), Matrix::rows_of(x, rows, x.len() / rows, x.len() / rows), &self.panels, finish);
    }

    /// (inputs) -> (outputs)
    pub fn row_into(&self, y: &mut [f32], x: &[f32]) {
        self.apply(y, x, Finish::Bias(&self.bias));
    }

    /// [`Self::row_into`] a vector of its own.
    pub fn of_row(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0f32; self.bias.len()];
        self.row_into(&mut y, x);
        y
    }
}

/// Values of the parameter `name`, which must have `shape`.
pub fn values(parameters: &Parameters, name: &str, shape: &[usize]) -> Result<Vec<f32>, ParameterError> {
    Ok(parameters.get(name, shape)?.flatten_all()?.to_vec1::<f32>()?)
}
