//! A classifier of the other kind: a residual network (arXiv 1512.03385) with batch norm, three stages of basic blocks.
//!
//! It serves with the statistics of its training images, as constants; methods that adapt statistics ask for those of the
//! batch, or for a mixture, which it can also absorb. Tokens are positions of the grid, (N, T, C), so that a convolution is [`kernels::unfold`] and a linear layer.

use super::blocks::{ImageShape, Linear};
use super::parameters::{Initializer, ParameterError, Parameters, Tensors};
use crate::kernels::{self, ChannelMoments, NormMoments};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Sizes of a residual network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNetConfig {
    pub image: ImageShape,
    /// Channels of the first stage; each further one has twice those of the last.
    pub width: usize,
    /// Blocks of a stage.
    pub blocks: usize,
    /// K
    pub classes: usize,
}

/// Where batch norm takes mean and variance from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormStatistics {
    /// Those of the training images.
    Running,
    /// Those of the images at hand.
    Batch,
    /// Those of the training images, moved the share `share` of their way to those of the images at hand; 0..=1.
    Mixed { share: f32 },
}

pub(super) const STAGES: usize = 3;

#[derive(Clone, Debug)]
struct BatchNorm {
    name: String,
    /// (C)
    scale: Tensor,
    shift: Tensor,
    running: ChannelMoments,
}

impl BatchNorm {
    fn initialize(initializer: &mut Initializer, name: &str, channels: usize) -> Result<(), ParameterError> {
        for (part, value) in [("scale", 1.0), ("shift", 0.0), ("running_mean", 0.0), ("running_variance", 1.0)] {
            initializer.constant(&format!("{name}.{part}"), &[channels], value)?;
        }
        Ok(())
    }

    fn load(parameters: &Parameters, name: &str, channels: usize) -> Result<Self, ParameterError> {
        let part = |part| parameters.get(&format!("{name}.{part}"), &[channels]);
        let running = ChannelMoments { mean: part("running_mean")?.to_vec1()?, variance: part("running_variance")?.to_vec1()? };
        Ok(Self { name: name.to_owned(), scale: part("scale")?, shift: part("shift")?, running })
    }

    fn forward(&self, x: &Tensor, statistics: NormStatistics) -> candle_core::Result<Tensor> {
        let moments = match statistics {
            NormStatistics::Running => NormMoments::Given(&self.running),
            NormStatistics::Batch => NormMoments::Batch,
            NormStatistics::Mixed { share } => NormMoments::Mixed { given: &self.running, share },
        };
        kernels::batch_norm(x, &self.scale, &self.shift, moments)
    }
}

/// A 3 x 3 convolution, and the norm behind it.
#[derive(Clone, Debug)]
struct Convolution {
    stride: usize,
    weight: Linear,
    norm: BatchNorm,
}

impl Convolution {
    fn initialize(initializer: &mut Initializer, name: &str, inputs: usize, outputs: usize) -> Result<(), ParameterError> {
        initializer.linear(&format!("{name}.convolution"), outputs, kernels::NEIGHBOURS * inputs)?;
        BatchNorm::initialize(initializer, &format!("{name}.norm"), outputs)
    }

    fn load(parameters: &Parameters, name: &str, inputs: usize, outputs: usize, stride: usize) -> Result<Self, ParameterError> {
        Ok(Self {
            stride,
            weight: Linear::load(parameters, &format!("{name}.convolution"), outputs, kernels::NEIGHBOURS * inputs)?,
            norm: BatchNorm::load(parameters, &format!("{name}.norm"), outputs)?,
        })
    }
}

/// x + norm(conv(relu(norm(conv(x))))), the first convolution of a stage with stride and a norm of the shortcut.
#[derive(Clone, Debug)]
struct Block {
    first: Convolution,
    second: Convolution,
    /// Where the shape changes: a 3 x 3 convolution of the same stride.
    shortcut: Option<Convolution>,
}

impl Block {
    fn convolutions(&self) -> impl Iterator<Item = &Convolution> {
        [&self.first, &self.second].into_iter().chain(&self.shortcut)
    }

    fn convolutions_mut(&mut self) -> impl Iterator<Item = &mut Convolution> {
        [&mut self.first, &mut self.second].into_iter().chain(&mut self.shortcut)
    }
}

/// The classifier: images (N, C, H, W) in -1..=1 -> logits (N, K).
#[derive(Clone, Debug)]
pub struct ResNet {
    config: ResNetConfig,
    stem: Convolution,
    blocks: Vec<Block>,
    head: Linear,
}

/// Name, channels in and out, and stride of each block.
fn layout(config: &ResNetConfig) -> impl Iterator<Item = (String, usize, usize, usize)> {
    let (width, blocks) = (config.width, config.blocks);
    (0..STAGES).flat_map(move |stage| {
        (0..blocks).map(move |block| {
            let is_first = block == 0 && stage > 0;
            let outputs = width << stage;
            (format!("blocks.{stage}{block}"), if is_first { outputs / 2 } else { outputs }, outputs, if is_first { 2 } else { 1 })
        })
    })
}

impl ResNet {
    /// First values of the parameters.
    pub fn initialize(config: &ResNetConfig, seed: u64) -> Result<Tensors, ParameterError> {
        let mut initializer = Initializer::new(seed);
        Convolution::initialize(&mut initializer, "stem", config.image.channels, config.width)?;
        for (name, inputs, outputs, stride) in layout(config) {
            Convolution::initialize(&mut initializer, &format!("{name}.first"), inputs, outputs)?;
            Convolution::initialize(&mut initializer, &format!("{name}.second"), outputs, outputs)?;
            if stride > 1 {
                Convolution::initialize(&mut initializer, &format!("{name}.shortcut"), inputs, outputs)?;
            }
        }
        initializer.zero_linear("head", config.classes, config.width << (STAGES - 1))?;
        Ok(initializer.finish())
    }

    /// # Errors
    /// `Missing` and `Shape` where the parameters are not those of `config`.
    pub fn load(config: &ResNetConfig, parameters: &Parameters) -> Result<Self, ParameterError> {
        let block = |(name, inputs, outputs, stride): (String, usize, usize, usize)| {
            let convolution =
                |part: &str, inputs, stride| Convolution::load(parameters, &format!("{name}.{part}"), inputs, outputs, stride);
            Ok(Block {
                first: convolution("first", inputs, stride)?,
                second: convolution("second", outputs, 1)?,
                shortcut: (stride > 1).then(|| convolution("shortcut", inputs, stride)).transpose()?,
            })
        };
        Ok(Self {
            config: *config,
            stem: Convolution::load(parameters, "stem", config.image.channels, config.width, 2)?,
            blocks: layout(config).map(block).collect::<Result<_, ParameterError>>()?,
            head: Linear::load(parameters, "head", config.classes, config.width << (STAGES - 1))?,
        })
    }

    /// Logits (N, K) of features (N, D).
    pub fn head(&self, features: &Tensor) -> candle_core::Result<Tensor> {
        self.head.forward(features)
    }

    /// What the head sees of images (N, C, H, W), given as one slice: the mean over positions, (N, D).
    pub fn features(&self, images: &[f32], statistics: NormStatistics) -> candle_core::Result<Tensor> {
        self.pass(images, &mut |norm, x| norm.forward(x, statistics))
    }

    /// Mean and variance of every norm on `images`, by the name of the parameter that holds them: what a network that was
    /// trained on batches serves with.
    pub fn statistics(&self, images: &[f32]) -> candle_core::Result<Tensors> {
        let mut all = Tensors::new();
        for (name, ChannelMoments { mean, variance }) in self.moments(images, NormStatistics::Batch)? {
            for (part, values) in [("running_mean", mean), ("running_variance", variance)] {
                let channels = values.len();
                all.insert(format!("{name}.{part}"), Tensor::from_vec(values, channels, &Device::Cpu)?);
            }
        }
        Ok(all)
    }

    /// Moves the statistics that it serves with the share `share` of their way to those of `images`, each norm's as they
    /// are when the norms before it take that mixture.
    pub fn absorb(&mut self, images: &[f32], share: f32) -> candle_core::Result<()> {
        let moments = self.moments(images, NormStatistics::Mixed { share })?;
        for norm in self.norms_mut() {
            norm.running = norm.running.moved(&moments[&norm.name], share);
        }
        Ok(())
    }

    /// Moves the statistics that it serves with the share `share` of their way to those of `tensors`, which has them by name.
    pub fn approach(&mut self, tensors: &Tensors, share: f32) -> candle_core::Result<()> {
        for norm in self.norms_mut() {
            let values = |part: &str| match tensors.get(&format!("{}.{part}", norm.name)) {
                Some(tensor) => tensor.to_vec1(),
                None => candle_core::bail!("no {part} of {}", norm.name),
            };
            let moments = ChannelMoments { mean: values("running_mean")?, variance: values("running_variance")? };
            norm.running = norm.running.moved(&moments, share);
        }
        Ok(())
    }

    /// The statistics that it serves with, by the names of their parameters.
    pub fn running(&self) -> candle_core::Result<Tensors> {
        let mut all = Tensors::new();
        for Convolution { norm, .. } in std::iter::once(&self.stem).chain(self.blocks.iter().flat_map(Block::convolutions)) {
            for (part, values) in [("running_mean", &norm.running.mean), ("running_variance", &norm.running.variance)] {
                all.insert(format!("{}.{part}", norm.name), Tensor::from_slice(values, values.len(), &Device::Cpu)?);
            }
        }
        Ok(all)
    }

    fn norms_mut(&mut self) -> impl Iterator<Item = &mut BatchNorm> {
        let convolutions = std::iter::once(&mut self.stem).chain(self.blocks.iter_mut().flat_map(Block::convolutions_mut));
        convolutions.map(|convolution| &mut convolution.norm)
    }

    /// Moments of what comes into each norm, by its name, in a pass with `statistics`.
    fn moments(&self, images: &[f32], statistics: NormStatistics) -> candle_core::Result<BTreeMap<String, ChannelMoments>> {
        let mut all = BTreeMap::new();
        self.pass(images, &mut |norm, x| {
            all.insert(norm.name.clone(), ChannelMoments::of(x)?);
            norm.forward(x, statistics)
        })?;
        Ok(all)
    }

    fn pass(&self, images: &[f32], norm: &mut Normalize<'_>) -> candle_core::Result<Tensor> {
        let ImageShape { channels, height, width } = self.config.image;
        let n = images.len() / self.config.image.elements();
        let planes = Tensor::from_slice(images, (n, channels, height * width), &Device::Cpu)?;
        let x = planes.transpose(1, 2)?.contiguous()?; // (N, H W, C)
        let mut grid = (height, width);
        let mut x = convolve(&self.stem, &x, &mut grid, norm)?.relu()?; // (N, T, width)
        for block in &self.blocks {
            let mut shortcut_grid = grid;
            let shortcut = match &block.shortcut {
                Some(convolution) => convolve(convolution, &x, &mut shortcut_grid, norm)?,
                None => x.clone(),
            };
            let h = convolve(&block.first, &x, &mut grid, norm)?.relu()?;
            x = (shortcut + convolve(&block.second, &h, &mut grid, norm)?)?.relu()?;
        }
        x.mean(1) // (N, D)
    }
}

/// How a pass applies a norm to what comes out of its convolution.
type Normalize<'a> = dyn FnMut(&BatchNorm, &Tensor) -> candle_core::Result<Tensor> + 'a;

/// Moves `grid` to that of the result.
fn convolve(convolution: &Convolution, x: &Tensor, grid: &mut (usize, usize), norm: &mut Normalize<'_>) -> candle_core::Result<Tensor> {
    let windows = kernels::unfold(x, *grid, convolution.stride)?; // (N, T', 9 C)
    *grid = kernels::strided(*grid, convolution.stride);
    norm(&convolution.norm, &convolution.weight.forward(&windows)?) // (N, T', C')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::NoiseKey;

    const CONFIG: ResNetConfig = ResNetConfig { image: ImageShape { channels: 2, height: 9, width: 6 }, width: 3, blocks: 2, classes: 4 };

    fn images(count: usize) -> Vec<f32> {
        let mut images = vec![0f32; count * CONFIG.image.elements()];
        NoiseKey::from_seed(7, "images", 0).fill_normal(0, &mut images);
        images
    }

    #[test]
    fn with_the_statistics_of_a_batch_it_says_of_each_image_what_it_said_of_the_batch() {
        let (weights, images) = (ResNet::initialize(&CONFIG, 1).expect("a model"), images(5));
        let model = ResNet::load(&CONFIG, &Parameters::frozen(weights.clone())).expect("a model");
        let of_batch = model.features(&images, NormStatistics::Batch).and_then(|y| y.to_vec2::<f32>()).expect("a pass");
        let served = weights.into_iter().chain(model.statistics(&images).expect("a pass")).collect();
        let model = ResNet::load(&CONFIG, &Parameters::frozen(served)).expect("the names are those of the parameters");
        for (image, expected) in images.chunks_exact(CONFIG.image.elements()).zip(of_batch) {
            let alone = model.features(image, NormStatistics::Running).and_then(|y| y.to_vec2::<f32>()).expect("a pass").remove(0);
            for (alone, expected) in alone.iter().zip(&expected) {
                assert!((alone - expected).abs() < 1e-4, "{alone} against {expected}");
            }
        }
    }

    #[test]
    fn what_it_absorbs_it_serves_with() {
        let (weights, images) = (ResNet::initialize(&CONFIG, 1).expect("a model"), images(5));
        let mut model = ResNet::load(&CONFIG, &Parameters::frozen(weights.clone())).expect("a model");
        let features = |model: &ResNet, statistics| model.features(&images, statistics).and_then(|y| y.to_vec2::<f32>()).expect("a pass");
        let [source, batch] = [NormStatistics::Running, NormStatistics::Batch].map(|statistics| features(&model, statistics));
        assert_eq!(features(&model, NormStatistics::Mixed { share: 0.0 }), source);
        let mixed = features(&model, NormStatistics::Mixed { share: 0.3 });
        model.absorb(&images, 0.3).expect("a pass");
        assert_eq!(features(&model, NormStatistics::Running), mixed);
        for _ in 0..60 {
            model.absorb(&images, 0.3).expect("a pass");
        }
        // What is left of the source is 0.7^60 of it.
        for (absorbed, batch) in features(&model, NormStatistics::Running).iter().flatten().zip(batch.iter().flatten()) {
            assert!((absorbed - batch).abs() < 1e-4, "{absorbed} against {batch}");
        }
        assert_eq!(model.running().expect("tensors").len(), weights.keys().filter(|name| name.contains(".running_")).count());
        model.approach(&weights, 1.0).expect("the names are those of the parameters");
        assert_eq!(features(&model, NormStatistics::Running), source);
    }

    #[test]
    fn a_convolution_is_the_sum_over_its_window() {
        let (grid, inputs, outputs, stride) = ((9, 6), 2, 3, 2);
        let mut initializer = Initializer::new(3);
        Convolution::initialize(&mut initializer, "c", inputs, outputs).expect("a layer");
        let tensors = initializer.finish();
        let weight = tensors["c.convolution.weight"].to_vec2::<f32>().expect("a matrix");
        let convolution = Convolution::load(&Parameters::frozen(tensors), "c", inputs, outputs, stride).expect("a layer");
        let values = &images(1)[..9 * 6 * inputs];
        let x = Tensor::from_slice(values, (1, 9 * 6, inputs), &Device::Cpu).expect("a tensor");
        let mut out_grid = grid;
        let y = convolve(&convolution, &x, &mut out_grid, &mut |_, x| Ok(x.clone())).and_then(|y| y.to_vec3::<f32>()).expect("a pass");
        assert_eq!(out_grid, (5, 3));
        for (token, y) in y[0].iter().enumerate() {
            for (channel, &y) in y.iter().enumerate() {
                let mut expected = 0.0;
                for place in 0..9 {
                    let (row, column) = ((token / 3 * stride + place / 3) as i64 - 1, (token % 3 * stride + place % 3) as i64 - 1);
                    if (0..9).contains(&row) && (0..6).contains(&column) {
                        for input in 0..inputs {
                            expected += weight[channel][place * inputs + input] * values[(row * 6 + column) as usize * inputs + input];
                        }
                    }
                }
                assert!((y - expected).abs() < 1e-5, "token {token}, channel {channel}: {y} against {expected}");
            }
        }
    }
}
