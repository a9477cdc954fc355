//! A classifier of the other kind: a residual network (arXiv 1512.03385) with batch norm, three stages of basic blocks.
//!
//! It serves each image with the statistics of the images that were like it ([`Domain`]), at first those of its training images; methods
//! that adapt statistics ask for those of the batch, or for a mixture, which it can also absorb. Tokens are positions of the grid,
//! (N, T, C), so that a convolution is [`kernels::unfold`] and a linear layer.

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
    /// Those of each image's domain, moved a share of their way to those of the image by itself ([`ResNet::remember`]).
    Running,
    /// Those of the images at hand.
    Batch,
    /// Those of the domain that was seen last, moved the share `share` of their way to those of the images at hand; 0..=1.
    Mixed { share: f32 },
}

/// Domains that are remembered; of more, the one that was not seen for longest is forgotten.
const DOMAINS_MAX: usize = 32;

/// Images after which a domain's centre follows by a running mean.
const CENTRE_MEMORY_IMAGES: f32 = 10.0;

/// Name of [`ResNet::own_share`].
const OWN_SHARE: &str = "domains.running_own_share";

/// Added to a variance before its logarithm.
const VARIANCE_MIN: f64 = 1e-4;

/// Images that are like each other: what the first convolution makes of each has about the same mean and variance, by channel. Weather and
/// light change those far more than what the image shows does. (UnMix-TNS, arXiv 2405.15328, keeps components apart in each norm;
/// here the first one decides for all.)
#[derive(Clone, Debug)]
struct Domain {
    /// Running mean of its images' [`descriptor`]s, (2 C).
    centre: Vec<f32>,
    /// Seen, up to [`CENTRE_MEMORY_IMAGES`].
    images: f32,
    /// By the name of the norm.
    moments: BTreeMap<String, ChannelMoments>,
}

/// How far the moments of one image lie from those of the training images, in standard deviations and in their logarithm, (2 C).
fn descriptor(image: &ChannelMoments, source: &ChannelMoments) -> Vec<f32> {
    let pairs = |of: fn(&ChannelMoments) -> &[f32]| of(image).iter().zip(of(source)).map(|(&a, &b)| (f64::from(a), f64::from(b)));
    let variances = pairs(|moments| &moments.variance).map(|(image, source)| (image + VARIANCE_MIN, source + VARIANCE_MIN));
    let means =
        pairs(|moments| &moments.mean).zip(variances.clone()).map(|((image, source), (_, variance))| (image - source) / variance.sqrt());
    means.chain(variances.map(|(image, source)| 0.5 * (image / source).ln())).map(|value| value as f32).collect()
}

/// Root of the mean squared difference.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let squares: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (squares / a.len() as f64).sqrt()
}

/// Place and distance of the domain that is nearest to `descriptor`; the one seen later of equals.
fn nearest(domains: &[Domain], descriptor: &[f32]) -> (usize, f64) {
    let distances = domains.iter().map(|domain| distance(&domain.centre, descriptor)).enumerate();
    distances.reduce(|best, next| if next.1 < best.1 { next } else { best }).expect("there is always a domain")
}

/// Takes the domain of an image out of `domains`: the nearest one, or a new one that starts as it where it is further than `distance_max`.
fn recall(domains: &mut Vec<Domain>, descriptor: &[f32], distance_max: f64) -> Domain {
    let (place, distance) = nearest(domains, descriptor);
    if distance > distance_max {
        return Domain { centre: descriptor.to_vec(), images: 1.0, moments: domains[place].moments.clone() };
    }
    let mut domain = domains.remove(place);
    domain.images = (domain.images + 1.0).min(CENTRE_MEMORY_IMAGES);
    domain.centre.iter_mut().zip(descriptor).for_each(|(centre, value)| *centre += (value - *centre) / domain.images);
    domain
}

pub(super) const STAGES: usize = 3;

#[derive(Clone, Debug)]
struct BatchNorm {
    name: String,
    /// (C)
    scale: Tensor,
    shift: Tensor,
    /// Of the training images.
    source: ChannelMoments,
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
        let source = ChannelMoments { mean: part("running_mean")?.to_vec1()?, variance: part("running_variance")?.to_vec1()? };
        Ok(Self { name: name.to_owned(), scale: part("scale")?, shift: part("shift")?, source })
    }

    fn forward(&self, x: &Tensor, moments: NormMoments<'_>) -> candle_core::Result<Tensor> {
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
}

/// The classifier: images (N, C, H, W) in -1..=1 -> logits (N, K).
#[derive(Clone, Debug)]
pub struct ResNet {
    config: ResNetConfig,
    stem: Convolution,
    blocks: Vec<Block>,
    head: Linear,
    /// At least one; what was seen last comes first.
    domains: Vec<Domain>,
    /// Of an image in the statistics that it is normalised by, beside its domain's.
    own_share: f32,
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

/// Name and channels of each norm.
fn norms(config: &ResNetConfig) -> impl Iterator<Item = (String, usize)> {
    let of_block = |(name, _, channels, stride): (String, usize, usize, usize)| {
        let parts: &[&str] = if stride > 1 { &["first", "second", "shortcut"] } else { &["first", "second"] };
        parts.iter().map(move |part| (format!("{name}.{part}.norm"), channels)).collect::<Vec<_>>()
    };
    std::iter::once(("stem.norm".to_owned(), config.width)).chain(layout(config).flat_map(of_block))
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
        let mut tensors = initializer.finish();
        tensors.extend(Self::without_domains(config)?);
        Ok(tensors)
    }

    /// Room for domains, as long as none is remembered.
    pub fn without_domains(config: &ResNetConfig) -> Result<Tensors, ParameterError> {
        let mut initializer = Initializer::new(0);
        initializer.constant(OWN_SHARE, &[1], 0.0)?;
        initializer.constant("domains.running_images", &[DOMAINS_MAX], 0.0)?;
        initializer.constant("domains.running_centres", &[DOMAINS_MAX, 2 * config.width], 0.0)?;
        for (norm, channels) in norms(config) {
            for part in ["running_means", "running_variances"] {
                initializer.constant(&format!("{norm}.{part}"), &[DOMAINS_MAX, channels], 0.0)?;
            }
        }
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
        let mut model = Self {
            config: *config,
            stem: Convolution::load(parameters, "stem", config.image.channels, config.width, 2)?,
            blocks: layout(config).map(block).collect::<Result<_, ParameterError>>()?,
            head: Linear::load(parameters, "head", config.classes, config.width << (STAGES - 1))?,
            domains: Vec::new(),
            own_share: parameters.get(OWN_SHARE, &[1])?.to_vec1()?[0],
        };
        model.domains = model.remembered(parameters)?;
        Ok(model)
    }

    /// The domains in `parameters`; that of the training images where there is none.
    fn remembered(&self, parameters: &Parameters) -> Result<Vec<Domain>, ParameterError> {
        let rows = |name: &str, width: usize| Ok::<_, ParameterError>(parameters.get(name, &[DOMAINS_MAX, width])?.to_vec2::<f32>()?);
        let images = parameters.get("domains.running_images", &[DOMAINS_MAX])?.to_vec1::<f32>()?;
        let centres = rows("domains.running_centres", 2 * self.config.width)?;
        let seen = images.into_iter().zip(centres).take_while(|(images, _)| *images > 0.0);
        let mut domains: Vec<Domain> = seen.map(|(images, centre)| Domain { centre, images, moments: BTreeMap::new() }).collect();
        for norm in self.norms() {
            let channels = norm.source.mean.len();
            let [means, variances] = ["running_means", "running_variances"].map(|part| rows(&format!("{}.{part}", norm.name), channels));
            for ((domain, mean), variance) in domains.iter_mut().zip(means?).zip(variances?) {
                domain.moments.insert(norm.name.clone(), ChannelMoments { mean, variance });
            }
        }
        if domains.is_empty() {
            let moments = self.norms().map(|norm| (norm.name.clone(), norm.source.clone())).collect();
            domains.push(Domain { centre: vec![0.0; 2 * self.config.width], images: 1.0, moments });
        }
        Ok(domains)
    }

    /// Logits (N, K) of features (N, D).
    pub fn head(&self, features: &Tensor) -> candle_core::Result<Tensor> {
        self.head.forward(features)
    }

    /// What the head sees of images (N, C, H, W), given as one slice: the mean over positions, (N, D).
    pub fn features(&self, images: &[f32], statistics: NormStatistics) -> candle_core::Result<Tensor> {
        let last = &self.domains[0].moments;
        match statistics {
            NormStatistics::Batch => self.pass(images, &mut |norm, x| norm.forward(x, NormMoments::Batch)),
            NormStatistics::Mixed { share } => {
                self.pass(images, &mut |norm, x| norm.forward(x, NormMoments::Mixed { given: &[&last[&norm.name]], share }))
            }
            NormStatistics::Running => {
                let mut domains: Vec<&Domain> = Vec::new();
                self.pass(images, &mut |norm, x| {
                    if domains.is_empty() {
                        let place = |image: &ChannelMoments| nearest(&self.domains, &descriptor(image, &norm.source)).0;
                        domains = ChannelMoments::of_images(x)?.iter().map(|image| &self.domains[place(image)]).collect();
                    }
                    let given: Vec<&ChannelMoments> = domains.iter().map(|domain| &domain.moments[&norm.name]).collect();
                    norm.forward(x, NormMoments::Mixed { given: &given, share: self.own_share })
                })
            }
        }
    }

    /// Mean and variance of every norm on `images`, by the name of the parameter that holds them: what a network that was
    /// trained on batches serves with.
    pub fn statistics(&self, images: &[f32]) -> candle_core::Result<Tensors> {
        let mut all = Tensors::new();
        self.pass(images, &mut |norm, x| {
            let ChannelMoments { mean, variance } = ChannelMoments::of(x)?;
            for (part, values) in [("running_mean", mean), ("running_variance", variance)] {
                let channels = values.len();
                all.insert(format!("{}.{part}", norm.name), Tensor::from_vec(values, channels, &Device::Cpu)?);
            }
            norm.forward(x, NormMoments::Batch)
        })?;
        Ok(all)
    }

    /// Moves the statistics of the domain that was seen last the share `share` of their way to those of `images`, each norm's as they
    /// are when the norms before it take that mixture.
    pub fn absorb(&mut self, images: &[f32], share: f32) -> candle_core::Result<()> {
        let mut moments = self.domains[0].moments.clone();
        self.pass(images, &mut |norm, x| {
            let given = moments.get_mut(&norm.name).expect("a domain has moments of every norm");
            let y = norm.forward(x, NormMoments::Mixed { given: &[given], share })?;
            *given = given.moved(&ChannelMoments::of(x)?, share);
            Ok(y)
        })?;
        self.domains[0].moments = moments;
        Ok(())
    }

    /// Takes an image (C, H, W) into the statistics of its domain, with the share `share` of the whole, each norm's as they are when the
    /// norms before it have. Where every domain is further from it than `distance_max`, a new one begins, with the statistics of
    /// the nearest. From then on each image is normalised by the statistics of its domain, moved the share `own_share` of their way to
    /// its own.
    pub fn remember(&mut self, image: &[f32], share: f32, own_share: f32, distance_max: f64) -> candle_core::Result<()> {
        self.own_share = own_share;
        let (mut domains, mut of_image) = (std::mem::take(&mut self.domains), None);
        let passed = self.pass(image, &mut |norm, x| {
            let image = ChannelMoments::of(x)?;
            let domain = of_image.get_or_insert_with(|| recall(&mut domains, &descriptor(&image, &norm.source), distance_max));
            let moments = domain.moments.get_mut(&norm.name).expect("a domain has moments of every norm");
            moments.take_in(&image, share);
            norm.forward(x, NormMoments::Mixed { given: &[moments], share: own_share })
        });
        domains.splice(0..0, of_image);
        domains.truncate(DOMAINS_MAX);
        self.domains = domains;
        passed.map(drop)
    }

    /// The domains, by the names of their parameters.
    pub fn domains(&self) -> candle_core::Result<Tensors> {
        let mut all = Tensors::new();
        let mut put = |name: String, of: &dyn Fn(&Domain) -> &[f32]| {
            let mut values: Vec<f32> = self.domains.iter().flat_map(|domain| of(domain).iter().copied()).collect();
            let width = values.len() / self.domains.len();
            values.resize(DOMAINS_MAX * width, 0.0);
            all.insert(name, Tensor::from_vec(values, (DOMAINS_MAX, width), &Device::Cpu)?);
            Ok::<_, candle_core::Error>(())
        };
        put("domains.running_centres".to_owned(), &|domain| &domain.centre)?;
        for BatchNorm { name, .. } in self.norms() {
            put(format!("{name}.running_means"), &|domain| &domain.moments[name].mean)?;
            put(format!("{name}.running_variances"), &|domain| &domain.moments[name].variance)?;
        }
        all.insert(OWN_SHARE.to_owned(), Tensor::from_vec(vec![self.own_share], 1, &Device::Cpu)?);
        let mut images: Vec<f32> = self.domains.iter().map(|domain| domain.images).collect();
        images.resize(DOMAINS_MAX, 0.0);
        all.insert("domains.running_images".to_owned(), Tensor::from_vec(images, DOMAINS_MAX, &Device::Cpu)?);
        Ok(all)
    }

    fn norms(&self) -> impl Iterator<Item = &BatchNorm> {
        std::iter::once(&self.stem).chain(self.blocks.iter().flat_map(Block::convolutions)).map(|convolution| &convolution.norm)
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
    use crate::model::parameters;
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

    fn features(model: &ResNet, images: &[f32], statistics: NormStatistics) -> Vec<Vec<f32>> {
        model.features(images, statistics).and_then(|y| y.to_vec2::<f32>()).expect("a pass")
    }

    #[test]
    fn what_it_absorbs_it_serves_with() {
        let (weights, images) = (ResNet::initialize(&CONFIG, 1).expect("a model"), images(5));
        let mut model = ResNet::load(&CONFIG, &Parameters::frozen(weights)).expect("a model");
        let [source, batch] = [NormStatistics::Running, NormStatistics::Batch].map(|statistics| features(&model, &images, statistics));
        assert_eq!(features(&model, &images, NormStatistics::Mixed { share: 0.0 }), source);
        let mixed = features(&model, &images, NormStatistics::Mixed { share: 0.3 });
        model.absorb(&images, 0.3).expect("a pass");
        assert_eq!(features(&model, &images, NormStatistics::Running), mixed);
        for _ in 0..60 {
            model.absorb(&images, 0.3).expect("a pass");
        }
        // What is left of the source is 0.7^60 of it.
        for (absorbed, batch) in features(&model, &images, NormStatistics::Running).iter().flatten().zip(batch.iter().flatten()) {
            assert!((absorbed - batch).abs() < 1e-4, "{absorbed} against {batch}");
        }
    }

    /// An image of noise with this mean and standard deviation.
    fn image_like(mean: f32, deviation: f32, seed: u64) -> Vec<f32> {
        let mut image = vec![0f32; CONFIG.image.elements()];
        NoiseKey::from_seed(seed, "image", 0).fill_normal(0, &mut image);
        image.into_iter().map(|value| mean + deviation * value).collect()
    }

    #[test]
    fn a_domain_that_comes_back_finds_the_statistics_that_it_left() {
        const DISTANCE_MAX: f64 = 1.0;
        let weights = ResNet::initialize(&CONFIG, 1).expect("a model");
        let mut model = ResNet::load(&CONFIG, &Parameters::frozen(weights.clone())).expect("a model");
        let (dim, bright) = (|seed| image_like(-1.0, 0.02, seed), |seed| image_like(0.5, 1.5, seed));
        let source = features(&model, &dim(1), NormStatistics::Running);
        (2..40).for_each(|seed| model.remember(&dim(seed), 0.1, 0.2, DISTANCE_MAX).expect("a pass"));
        let left = features(&model, &dim(1), NormStatistics::Running);
        assert_ne!(left, source);
        (40..80).for_each(|seed| model.remember(&bright(seed), 0.1, 0.2, DISTANCE_MAX).expect("a pass"));
        assert_eq!(features(&model, &dim(1), NormStatistics::Running), left, "other images have moved its statistics");
        // Each image of a window has the statistics of its own domain.
        let both = features(&model, &[dim(1), bright(1)].concat(), NormStatistics::Running);
        assert_eq!(both, [left, features(&model, &bright(1), NormStatistics::Running)].concat());

        let loaded: Tensors = weights.into_iter().chain(model.domains().expect("tensors")).collect();
        let mut loaded = ResNet::load(&CONFIG, &Parameters::frozen(loaded)).expect("domains are parameters");
        for model in [&mut model, &mut loaded] {
            model.remember(&dim(90), 0.1, 0.2, DISTANCE_MAX).expect("a pass");
        }
        assert!(parameters::are_equal(&model.domains().expect("tensors"), &loaded.domains().expect("tensors")).expect("values"));
        let [model, loaded] = [model, loaded].map(|model| features(&model, &dim(1), NormStatistics::Running));
        assert_eq!(model, loaded);
    }

    #[test]
    fn an_image_of_which_all_statistics_are_its_own_is_answered_as_a_batch_of_one() {
        let weights = ResNet::initialize(&CONFIG, 1).expect("a model");
        let mut model = ResNet::load(&CONFIG, &Parameters::frozen(weights)).expect("a model");
        let [seen, image, other] = [1, 2, 3].map(|seed| image_like(0.3, 0.8, seed));
        let alone = features(&model, &image, NormStatistics::Batch);
        assert_ne!(features(&model, &image, NormStatistics::Running), alone);
        model.remember(&seen, 0.1, 1.0, 1.0).expect("a pass");
        assert_eq!(features(&model, &[image, other].concat(), NormStatistics::Running)[..1], alone);
    }

    #[test]
    fn of_too_many_domains_the_one_not_seen_for_longest_is_forgotten() {
        let weights = ResNet::initialize(&CONFIG, 1).expect("a model");
        let mut model = ResNet::load(&CONFIG, &Parameters::frozen(weights)).expect("a model");
        let kind = |kind: u16| image_like(f32::from(kind), 0.1, u64::from(kind));
        let count = u16::try_from(DOMAINS_MAX).expect("few domains");
        for seen in (1..=count).chain([1, count + 1]) {
            model.remember(&kind(seen), 0.1, 0.0, 1e-3).expect("a pass");
        }
        let stem = |image: &[f32]| {
            let mut described = Vec::new();
            let keep = &mut |norm: &BatchNorm, x: &Tensor| {
                if norm.name == "stem.norm" {
                    described = descriptor(&ChannelMoments::of(x)?, &norm.source);
                }
                Ok(x.clone())
            };
            model.pass(image, keep).expect("a pass");
            described
        };
        let is_known = |seen| nearest(&model.domains, &stem(&kind(seen))).1 < 1e-3;
        assert_eq!(model.domains.len(), DOMAINS_MAX);
        assert!(is_known(1) && is_known(3) && is_known(count + 1) && !is_known(2));
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
