//! What both models are made of: tokens of an image, linear layers, the modulated transformer block.
//!
//! Shape letters: N images or draws, C H W, T tokens, D hidden, P values of a patch.

use super::parameters::{Initializer, ParameterError, Parameters};
use crate::kernels;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

/// Shape of the images that a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageShape {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
}

impl ImageShape {
    /// Number of values of one image.
    pub fn elements(self) -> usize {
        self.channels * self.height * self.width
    }

    /// Left for right, of images (N, C, H, W).
    pub fn mirror(self, images: &mut [f32]) {
        images.chunks_exact_mut(self.width).for_each(<[f32]>::reverse);
    }
}

/// Sizes of the tokens and blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrunkConfig {
    pub image: ImageShape,
    /// Side of a patch, and the stride from one token to the next; divides height and width.
    pub patch: usize,
    /// Side of the square that a token sees, at least `patch`; the image is continued with zeros.
    pub patch_window: usize,
    /// D
    pub hidden: usize,
    pub depth: usize,
    pub heads: usize,
    /// Width of the MLP, as a multiple of `hidden`.
    pub mlp_ratio: usize,
}

/// A trunk that cannot be built.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    #[error("patch {patch} does not divide an image of {height} x {width}")]
    Patch { patch: usize, height: usize, width: usize },
    #[error("patch_window {window} must be patch {patch} plus an even number")]
    Window { window: usize, patch: usize },
    #[error("hidden {hidden} is not a multiple of 4 times heads {heads}")]
    Heads { hidden: usize, heads: usize },
    #[error("{field} must be from 1 to {limit}, got {got}")]
    Size { field: &'static str, got: usize, limit: usize },
}

impl TrunkConfig {
    /// # Errors
    /// One for the first size that does not fit.
    pub fn check(&self) -> Result<(), ShapeError> {
        let ImageShape { channels, height, width } = self.image;
        for (field, got, limit) in [
            ("channels", channels, 4),
            ("height", height, 1024),
            ("width", width, 1024),
            ("patch", self.patch, 64),
            ("patch_window", self.patch_window, 256),
            ("hidden", self.hidden, 4096),
            ("depth", self.depth, 64),
            ("heads", self.heads, 64),
            ("mlp_ratio", self.mlp_ratio, 16),
        ] {
            if got == 0 || got > limit {
                return Err(ShapeError::Size { field, got, limit });
            }
        }
        if height % self.patch != 0 || width % self.patch != 0 {
            return Err(ShapeError::Patch { patch: self.patch, height, width });
        }
        if self.patch_window < self.patch || !(self.patch_window - self.patch).is_multiple_of(2) {
            return Err(ShapeError::Window { window: self.patch_window, patch: self.patch });
        }
        if !self.hidden.is_multiple_of(4 * self.heads) {
            return Err(ShapeError::Heads { hidden: self.hidden, heads: self.heads });
        }
        Ok(())
    }

    /// (rows, columns) of tokens.
    pub fn grid(&self) -> (usize, usize) {
        (self.image.height / self.patch, self.image.width / self.patch)
    }

    /// T
    pub fn tokens(&self) -> usize {
        self.grid().0 * self.grid().1
    }

    /// Values that a token sees.
    pub fn window_elements(&self) -> usize {
        self.image.channels * self.patch_window * self.patch_window
    }

    /// P, values of a token's own patch.
    pub fn patch_elements(&self) -> usize {
        self.image.channels * self.patch * self.patch
    }

    /// Cuts images (N, C, H, W) into what each token sees, (N, T, C * window * window); each window as planes.
    pub fn windows(&self, images: &[f32]) -> Vec<f32> {
        let mut windows = vec![0f32; images.len() / self.image.elements() * self.tokens() * self.window_elements()];
        self.cut(images, self.patch_window, &mut windows);
        windows
    }

    /// [`Self::windows`] into a slice whose values outside of the image are zero, and stay so.
    pub fn windows_into(&self, images: &[f32], windows: &mut [f32]) {
        self.cut(images, self.patch_window, windows);
    }

    /// Cuts images (N, C, H, W) into patches (N, T, P): the order of values of a predicted noise.
    pub fn patches(&self, images: &[f32]) -> Vec<f32> {
        let mut patches = vec![0f32; images.len()];
        self.cut(images, self.patch, &mut patches);
        patches
    }

    /// [`Self::patches`] into a slice of as many values.
    pub fn patches_into(&self, images: &[f32], patches: &mut [f32]) {
        self.cut(images, self.patch, patches);
    }

    /// Squares of side `window` around each token's patch; what lies outside of the image is left as it is.
    fn cut(&self, images: &[f32], window: usize, tokens: &mut [f32]) {
        let ImageShape { channels, height, width } = self.image;
        let columns = self.grid().1;
        let border = (window - self.patch) / 2;
        let mut lines = tokens.chunks_exact_mut(window);
        for image in images.chunks_exact(self.image.elements()) {
            for token in 0..self.tokens() {
                let (top, left) = (token / columns * self.patch, token % columns * self.patch);
                for channel in 0..channels {
                    for line_index in 0..window {
                        let line = lines.next().expect("one line for each row of each window");
                        // Rows and columns shifted by the border, so that all stay unsigned.
                        let y = top + line_index;
                        if y < border || y - border >= height {
                            continue;
                        }
                        let first = border.saturating_sub(left);
                        let last = window.min(width + border - left);
                        let start = (channel * height + y - border) * width + left + first - border;
                        line[first..last].copy_from_slice(&image[start..start + last - first]);
                    }
                }
            }
        }
    }
}

/// Weight (outputs, inputs) and bias (outputs).
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    pub fn load(parameters: &Parameters, name: &str, outputs: usize, inputs: usize) -> Result<Self, ParameterError> {
        let weight = parameters.get(&format!("{name}.weight"), &[outputs, inputs])?;
        Ok(Self { weight, bias: parameters.get(&format!("{name}.bias"), &[outputs])? })
    }

    /// (.., inputs) -> (.., outputs)
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        kernels::linear(x, &self.weight, &self.bias)
    }
}

/// Number of vectors that modulate a block: shift, scale and gate, of attention and of MLP.
pub const BLOCK_MODULATIONS: usize = 6;

/// Attention and MLP, each behind a modulated norm and a gate (DiT, `models.py`, `DiTBlock`).
#[derive(Clone, Debug)]
pub struct Block {
    heads: usize,
    qkv: Linear,
    projection: Linear,
    expand: Linear,
    /// (9, D * mlp_ratio)
    neighbours: Tensor,
    contract: Linear,
    /// (rows, columns) of tokens
    grid: (usize, usize),
}

impl Block {
    fn load(parameters: &Parameters, name: &str, config: &TrunkConfig) -> Result<Self, ParameterError> {
        let (d, inner) = (config.hidden, config.hidden * config.mlp_ratio);
        Ok(Self {
            heads: config.heads,
            qkv: Linear::load(parameters, &format!("{name}.qkv"), 3 * d, d)?,
            projection: Linear::load(parameters, &format!("{name}.projection"), d, d)?,
            expand: Linear::load(parameters, &format!("{name}.expand"), inner, d)?,
            neighbours: parameters.get(&format!("{name}.neighbours"), &[kernels::NEIGHBOURS, inner])?,
            contract: Linear::load(parameters, &format!("{name}.contract"), d, inner)?,
            grid: config.grid(),
        })
    }

    /// `x` (N, T, D), `modulation` (R, 6 D) with R = N or 1.
    fn forward(&self, x: &Tensor, modulation: &Tensor) -> candle_core::Result<Tensor> {
        let d = x.dim(2)?;
        let part = |i: usize| modulation.narrow(1, i * d, d);
        let h = kernels::modulated_norm(x, &part(0)?, &part(1)?)?; // (N, T, D)
        let h = kernels::attention(&self.qkv.forward(&h)?, self.heads)?; // (N, T, D)
        let x = kernels::gated_residual(x, &part(2)?, &self.projection.forward(&h)?)?; // (N, T, D)
        let h = kernels::modulated_norm(&x, &part(3)?, &part(4)?)?; // (N, T, D)
        let h = kernels::neighbour_mix(&self.expand.forward(&h)?, &self.neighbours, self.grid)?; // (N, T, D * mlp_ratio)
        let h = kernels::gelu(&h)?; // (N, T, D * mlp_ratio)
        kernels::gated_residual(&x, &part(5)?, &self.contract.forward(&h)?) // (N, T, D)
    }
}

/// Tokens, positions and blocks.
#[derive(Clone, Debug)]
pub struct Trunk {
    config: TrunkConfig,
    embed: Linear,
    /// (1, T, D)
    position: Tensor,
    blocks: Vec<Block>,
}

impl Trunk {
    pub fn initialize(initializer: &mut Initializer, config: &TrunkConfig) -> Result<(), ParameterError> {
        let (d, inner) = (config.hidden, config.hidden * config.mlp_ratio);
        initializer.linear("embed", d, config.window_elements())?;
        initializer.put("position", &[1, config.tokens(), d], grid_positions(config))?;
        for block in 0..config.depth {
            initializer.linear(&format!("blocks.{block:02}.qkv"), 3 * d, d)?;
            initializer.linear(&format!("blocks.{block:02}.projection"), d, d)?;
            initializer.linear(&format!("blocks.{block:02}.expand"), inner, d)?;
            initializer.constant(&format!("blocks.{block:02}.neighbours"), &[kernels::NEIGHBOURS, inner], 0.0)?;
            initializer.linear(&format!("blocks.{block:02}.contract"), d, inner)?;
        }
        Ok(())
    }

    pub fn load(parameters: &Parameters, config: TrunkConfig) -> Result<Self, ParameterError> {
        let blocks = (0..config.depth).map(|block| Block::load(parameters, &format!("blocks.{block:02}"), &config));
        Ok(Self {
            config,
            embed: Linear::load(parameters, "embed", config.hidden, config.window_elements())?,
            position: parameters.get("position", &[1, config.tokens(), config.hidden])?,
            blocks: blocks.collect::<Result<_, _>>()?,
        })
    }

    /// Images (N, C, H, W) -> (N, T, D); `modulations` has a (R, 6 D) tensor for each block.
    ///
    /// No gradient goes to the images: nothing here needs one.
    pub fn forward(&self, images: &[f32], modulations: &[Tensor]) -> candle_core::Result<Tensor> {
        let n = images.len() / self.config.image.elements();
        let shape = (n, self.config.tokens(), self.config.window_elements());
        let windows = Tensor::from_vec(self.config.windows(images), shape, &Device::Cpu)?; // (N, T, window elements)
        let mut x = self.embed.forward(&windows)?.broadcast_add(&self.position)?; // (N, T, D)
        for (block, modulation) in self.blocks.iter().zip(modulations) {
            x = block.forward(&x, modulation)?; // (N, T, D)
        }
        Ok(x)
    }
}

/// Cosines and sines of the row in the first half, of the column in the second. DiT's `get_2d_sincos_pos_embed` has the same values in
/// another order: the column first, and sines before cosines.
fn grid_positions(config: &TrunkConfig) -> Vec<f32> {
    let (rows, columns) = config.grid();
    let mut positions = Vec::with_capacity(config.tokens() * config.hidden);
    for row in 0..rows {
        for column in 0..columns {
            positions.extend(sine_embedding(row as f64, config.hidden / 2));
            positions.extend(sine_embedding(column as f64, config.hidden / 2));
        }
    }
    positions
}

/// Cosines then sines of `value` at geometric frequencies 1 .. 1/10000 (DiT, `timestep_embedding`); `width` is even.
pub fn sine_embedding(value: f64, width: usize) -> impl Iterator<Item = f32> {
    let half = width / 2;
    let angle = move |i: usize| value * (-(10_000f64.ln()) * i as f64 / half as f64).exp();
    (0..half).map(move |i| angle(i).cos() as f32).chain((0..half).map(move |i| angle(i).sin() as f32))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: TrunkConfig = TrunkConfig {
        image: ImageShape { channels: 2, height: 4, width: 6 },
        patch: 2,
        patch_window: 4,
        hidden: 8,
        depth: 1,
        heads: 2,
        mlp_ratio: 2,
    };

    #[test]
    fn windows_continue_the_image_with_zeros_and_patches_tile_it() {
        let image: Vec<f32> = (1..=48u8).map(f32::from).collect();
        let patches = CONFIG.patches(&image);
        assert_eq!(patches.len(), 48);
        assert_eq!(patches[..8], [1., 2., 7., 8., 25., 26., 31., 32.]);
        let windows = CONFIG.windows(&image);
        assert_eq!(windows.len(), 6 * 32);
        assert_eq!(windows[..16], [0., 0., 0., 0., 0., 1., 2., 3., 0., 7., 8., 9., 0., 13., 14., 15.]);
        let last = &windows[5 * 32 + 16..];
        assert_eq!(last[..8], [34., 35., 36., 0., 40., 41., 42., 0.]);
        assert_eq!(last[12..], [0.; 4]);
    }

    #[test]
    fn a_trunk_that_does_not_fit_is_refused_with_the_reason() {
        assert_eq!(CONFIG.check(), Ok(()));
        let refused = TrunkConfig { patch: 3, ..CONFIG }.check();
        assert_eq!(refused, Err(ShapeError::Patch { patch: 3, height: 4, width: 6 }));
        assert_eq!(TrunkConfig { patch_window: 3, ..CONFIG }.check(), Err(ShapeError::Window { window: 3, patch: 2 }));
        assert_eq!(TrunkConfig { heads: 3, ..CONFIG }.check(), Err(ShapeError::Heads { hidden: 8, heads: 3 }));
    }
}
