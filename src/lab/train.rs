//! Training of the two models of a bundle: seeded, resumable, with a moving average of the weights.
//!
//! Invariant: what a run of N steps gives depends on seed, data, settings and first weights alone, also when it was interrupted.

use super::augmentation::{Augmentation, augmented};
use super::dataset::Labelled;
use crate::diffusion::{Schedule, Timestep, stretch};
use crate::kernels;
use crate::learner::{Optimizer, OptimizerConfig, OptimizerState, StepError, TrainablePart, accumulate, collect};
use crate::model::{
    ClassConditioning, ClassifierConfig, Dit, DitConfig, Gradients, ImageShape, NormStatistics, ParameterError, Parameters, ResNet,
    Tensors, parameters,
};
use crate::noise::NoiseKey;
use candle_core::{DType, Device, Tensor};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What both kinds of training share.
#[derive(Clone, Debug)]
pub struct TrainingRun {
    pub seed: u64,
    pub steps: u64,
    pub batch: usize,
    pub learning_rate: f32,
    pub weight_decay: f32,
    /// Where the moving average goes as safetensors; the state for resuming stands beside it.
    pub out: PathBuf,
}

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Step(#[from] StepError),
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    #[error("file {path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("state {path} is of step {step}, beyond the {steps} steps asked for: remove it, or ask for more")]
    Beyond { path: PathBuf, step: u64, steps: u64 },
}

/// Gradients are scaled down to this norm.
const GRADIENT_NORM_MAX: f32 = 1.0;
/// Steps between two lines of the log.
const LOG_STEPS: u64 = 100;
/// Steps between two states written for resuming.
const SAVE_STEPS: u64 = 500;
/// Steps in which the learning rate rises.
const WARMUP_STEPS: u64 = 200;
/// Share of the steps in which the learning rate falls.
const DECAY_SHARE: f32 = 0.4;
const EMA_DECAY: f64 = 0.999;

/// Images that one task takes forward and backward: small enough that its activations stay in the cache. Fixed, so that
/// bits do not depend on the number of threads.
const SHARD_IMAGES: usize = 16;

/// Part of a batch: images placed at random in the frame of the model and mirrored by chance.
struct Shard {
    /// Position of the first image in the batch.
    start: usize,
    /// (N, C, H, W)
    images: Vec<f32>,
    labels: Vec<u32>,
}

impl Shard {
    fn draw(data: &[Labelled], shape: ImageShape, rows: Range<usize>, key: NoiseKey) -> Self {
        let count = index(data.len());
        let images = vec![-1f32; rows.len() * shape.elements()];
        let mut shard = Self { start: rows.start, images, labels: Vec::with_capacity(rows.len()) };
        for (row, image) in rows.zip(shard.images.chunks_exact_mut(shape.elements())) {
            let draw = 4 * index(row);
            let chosen = &data[key.uniform_below(draw, count) as usize];
            place(chosen, shape, |choice, limit| key.uniform_below(draw + choice, limit), image);
            shard.labels.push(chosen.label.0);
        }
        shard
    }
}

/// A position or count as the `u32` that noise is counted by.
fn index(position: usize) -> u32 {
    u32::try_from(position).expect("fewer than 2^32 images")
}

/// Puts an image into the larger frame at a random offset, mirrored with probability one half. `choose(i, limit)` is the
/// i-th random number below `limit`.
fn place(source: &Labelled, shape: ImageShape, choose: impl Fn(u32, u32) -> u32, into: &mut [f32]) {
    let (h, w) = (source.image.height(), source.image.width());
    let offset = |choice, outer: usize, inner: usize| choose(choice, index(outer - inner + 1)) as usize;
    let (top, left) = (offset(1, shape.height, h), offset(2, shape.width, w));
    let mirrored = choose(3, 2) == 1;
    let planes = source.image.planes();
    for channel in 0..shape.channels {
        for y in 0..h {
            let line = &planes[(channel * h + y) * w..][..w];
            let start = (channel * shape.height + top + y) * shape.width + left;
            let target = &mut into[start..start + w];
            target.copy_from_slice(line);
            if mirrored {
                target.reverse();
            }
        }
    }
}

/// Figures for the log, by name.
type Figures = Vec<(&'static str, f32)>;

/// Loss of one shard, as its share of the batch's mean, and figures for the log.
struct Objective {
    loss: Tensor,
    figures: Figures,
}

/// Trains a classifier by cross entropy with label smoothing; gives the moving average of its weights.
pub fn classifier(config: &ClassifierConfig, data: &[Labelled], run: &TrainingRun) -> Result<Tensors, TrainError> {
    const LABEL_SMOOTHING: f64 = 0.05;
    let first = config.initialize(run.seed)?;
    let image = config.image();
    let average = train(run, first, |parameters, step, rows| {
        let model = config.load(parameters)?;
        let batch = Shard::draw(data, image, rows, NoiseKey::from_seed(run.seed, "batch", step));
        let logits = model.forward(&batch.images, NormStatistics::Batch)?; // (N, K)
        let classes = logits.dim(1)?;
        let log_probabilities = candle_nn::ops::log_softmax(&logits, 1)?;
        let hits = hits(&logits, &batch.labels)?;
        let targets: Vec<f32> = batch.labels.iter().flat_map(|&label| (0..classes).map(move |k| f32::from(k as u32 == label))).collect();
        let targets = Tensor::from_vec(targets, (batch.labels.len(), classes), &Device::Cpu)?;
        let targets = targets.affine(1.0 - LABEL_SMOOTHING, LABEL_SMOOTHING / classes as f64)?;
        let loss = (log_probabilities * targets)?.sum_all()?.affine(-1.0 / run.batch as f64, 0.0)?;
        Ok(Objective { figures: vec![("loss", scalar(&loss)?), ("accuracy", hits / run.batch as f32)], loss })
    })?;
    let ClassifierConfig::ResNet(resnet) = config else { return Ok(average) };
    // Batch norms serve with statistics of the averaged weights, which are known only now.
    let model = ResNet::load(resnet, &Parameters::frozen(average.clone()))?;
    let images = Shard::draw(data, image, 0..STATISTICS_IMAGES, NoiseKey::from_seed(run.seed, "statistics", 0)).images;
    let weights = average.into_iter().chain(model.statistics(&images)?).collect();
    write_file(&run.out, &parameters::write(&weights, HashMap::new())?)?;
    Ok(weights)
}

/// Training images that the statistics of batch norms are taken of.
const STATISTICS_IMAGES: usize = 1024;

/// Timesteps of training: beyond them an image of this size says nothing.
const TRAINING_TIMESTEPS: u32 = 550;

/// Steps in which the weight of the cross entropy rises: given it in full at once, the model tells classes and never learns
/// to denoise.
const DISCRIMINATION_WARMUP_STEPS: f64 = 1000.0;

/// What is special in the training of a diffusion model.
#[derive(Clone, Debug)]
pub struct DiffusionTraining {
    /// How far the cross entropy counts beside the denoising loss.
    pub discrimination_weight: f64,
    /// Weights to begin with; none begins with random ones.
    pub start: Option<Tensors>,
    /// How images change before they are learned from.
    pub augmentation: Option<Augmentation>,
}

/// Trains a diffusion model: denoising loss of the true class, and, where one pass gives all classes, the cross entropy of
/// the classifier that their errors make (logits: minus half the summed squared error).
///
/// # Errors
/// `Parameters` where the weights to begin with are not those of `config`, and what training itself can end with.
pub fn diffusion(config: &DitConfig, data: &[Labelled], run: &TrainingRun, training: &DiffusionTraining) -> Result<Tensors, TrainError> {
    let random = Dit::initialize(config, run.seed)?;
    let first = training.start.as_ref().unwrap_or(&random).clone();
    parameters::check(&first, &random)?;
    let (shape, schedule) = (config.trunk.image, Schedule::linear(config.num_timesteps));
    train(run, first, |parameters, step, rows| {
        let model = Dit::load(config, parameters)?;
        let mut shard = Shard::draw(data, shape, rows.clone(), NoiseKey::from_seed(run.seed, "batch", step));
        if let Some(augmentation) = training.augmentation {
            let images: Vec<&[f32]> = shard.images.chunks_exact(shape.elements()).collect();
            let ghosts = images.iter().cycle().skip(1); // the next image of the shard
            let changed = rows.zip(images.iter().zip(ghosts)).map(|(row, (image, ghost))| {
                let key = NoiseKey::from_seed(run.seed, "augmentation", step * run.batch as u64 + row as u64);
                augmented(image, ghost, shape, augmentation, key)
            });
            shard.images = changed.collect::<Vec<_>>().concat();
        }
        shard.images.chunks_exact_mut(shape.elements()).for_each(stretch);
        let noised = Noised::of(&shard, config, &schedule, run.seed, step);
        let share = shard.labels.len() as f64 / run.batch as f64;
        match config.conditioning {
            ClassConditioning::Readout => {
                let weight = training.discrimination_weight * (step as f64 / DISCRIMINATION_WARMUP_STEPS).min(1.0);
                joint_objective(run.batch, weight, config, &model, &shard, noised)
            }
            ClassConditioning::AdaLn => {
                let pred_noise = model.pred_noise_of_labels(&noised.x_t, &noised.timesteps, &shard.labels)?; // (N, T, P)
                let loss = kernels::class_errors(&pred_noise, noised.noise, 1)?.mean_all()?.affine(share, 0.0)?;
                Ok(Objective { figures: vec![("denoising_loss", scalar(&loss)?)], loss })
            }
        }
    })
}

/// A shard with its noise added.
struct Noised {
    /// (N, C, H, W)
    x_t: Vec<f32>,
    timesteps: Vec<Timestep>,
    /// (N, T, P)
    noise: Arc<Vec<f32>>,
}

impl Noised {
    fn of(shard: &Shard, config: &DitConfig, schedule: &Schedule, seed: u64, step: u64) -> Self {
        let elements = config.trunk.image.elements();
        let limit = TRAINING_TIMESTEPS.min(config.num_timesteps);
        let timestep_key = NoiseKey::from_seed(seed, "timesteps", step);
        let noise_key = NoiseKey::from_seed(seed, "noise", step);
        let mut noised = Self { x_t: vec![0f32; shard.images.len()], timesteps: Vec::new(), noise: Arc::default() };
        let mut noise = vec![0f32; shard.images.len()];
        let images = shard.images.chunks_exact(elements).zip(noise.chunks_exact_mut(elements));
        for (n, ((x_start, noise), x_t)) in images.zip(noised.x_t.chunks_exact_mut(elements)).enumerate() {
            let row = index(shard.start + n);
            let timestep = Timestep(timestep_key.uniform_below(row, limit));
            schedule.sample(noise_key, row, timestep, x_start, noise, x_t);
            noised.timesteps.push(timestep);
        }
        noised.noise = Arc::new(config.trunk.patches(&noise));
        noised
    }
}

fn joint_objective(
    batch: usize,
    discrimination_weight: f64,
    config: &DitConfig,
    model: &Dit,
    shard: &Shard,
    noised: Noised,
) -> Result<Objective, TrainError> {
    let share = shard.labels.len() as f64 / batch as f64;
    let pred_noise = model.pred_noise_of_classes(&noised.x_t, &noised.timesteps)?; // (N, T, K P)
    let errors = kernels::class_errors(&pred_noise, noised.noise, config.classes)?; // (N, K)
    let labels = Tensor::from_slice(&shard.labels, (shard.labels.len(), 1), &Device::Cpu)?; // (N, 1)
    let denoising_loss = errors.gather(&labels, 1)?.mean_all()?.affine(share, 0.0)?;
    let logits = errors.affine(-0.5 * config.trunk.image.elements() as f64, 0.0)?; // (N, K)
    let cross_entropy = candle_nn::loss::cross_entropy(&logits, &labels.squeeze(1)?)?.affine(share, 0.0)?;
    let hits = hits(&logits, &shard.labels)?;
    let figures = vec![
        ("denoising_loss", scalar(&denoising_loss)?),
        ("cross_entropy", scalar(&cross_entropy)?),
        ("accuracy", hits * share as f32 / shard.labels.len() as f32),
    ];
    Ok(Objective { loss: (denoising_loss + (cross_entropy * discrimination_weight)?)?, figures })
}

/// The loop that all training shares.
fn train(
    run: &TrainingRun,
    first: Tensors,
    objective: impl Fn(&Parameters, u64, Range<usize>) -> Result<Objective, TrainError> + Sync,
) -> Result<Tensors, TrainError> {
    let mut state = TrainingState::open(run, &first)?;
    let variables = state.parameters.variables().clone();
    let bar = ProgressBar::new(run.steps).with_position(state.step);
    bar.reset_eta();
    let (first_step, begun) = (state.step, Instant::now());
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {eta} {msg}").expect("a template of known keys"));
    let mut means: Vec<(&str, f32)> = Vec::new();
    while state.step < run.steps {
        let (gradients, figures) = batch_gradients(run, &state, &objective)?;
        state.optimizer.step(&variables, &gradients, learning_rate(run, state.step), GRADIENT_NORM_MAX, None)?;
        state.step += 1;
        state.average()?;
        means = figures.iter().enumerate().map(|(i, &(name, v))| (name, means.get(i).map_or(v, |&(_, m)| 0.98 * m + 0.02 * v))).collect();
        let message: Vec<String> = means.iter().map(|(name, mean)| format!("{name} {mean:.4}")).collect();
        bar.set_message(message.join(" "));
        bar.inc(1);
        if state.step.is_multiple_of(LOG_STEPS) || state.step == run.steps {
            tracing::info!(
                step = state.step,
                images_per_second = format!("{:.0}", (state.step - first_step) as f64 * run.batch as f64 / begun.elapsed().as_secs_f64()),
                "{}",
                message.join(" ")
            );
        }
        if state.step.is_multiple_of(SAVE_STEPS) || state.step == run.steps {
            state.save(run)?;
        }
    }
    bar.finish();
    Ok(state.average)
}

/// Forward and backward of one batch, shard by shard over the cores; sums are taken in the order of the shards.
fn batch_gradients(
    run: &TrainingRun,
    state: &TrainingState,
    objective: &(impl Fn(&Parameters, u64, Range<usize>) -> Result<Objective, TrainError> + Sync),
) -> Result<(Gradients, Figures), TrainError> {
    let shards: Vec<Range<usize>> = (0..run.batch).step_by(SHARD_IMAGES).map(|i| i..(i + SHARD_IMAGES).min(run.batch)).collect();
    let results = shards.into_par_iter().map(|rows| {
        let Objective { loss, figures } = objective(&state.parameters, state.step, rows)?;
        Ok((collect(state.parameters.variables(), &loss.backward()?)?, figures))
    });
    let (mut gradients, mut figures) = (Gradients::new(), Figures::new());
    for (term, part) in results.collect::<Result<Vec<_>, TrainError>>()? {
        accumulate(&mut gradients, &term);
        figures = part.iter().enumerate().map(|(i, &(name, v))| (name, v + figures.get(i).map_or(0.0, |&(_, sum)| sum))).collect();
    }
    Ok((gradients, figures))
}

/// Up, level, and down in a straight line over the last [`DECAY_SHARE`] of the steps: a run that is asked for more steps
/// before it has come so far goes on as if it had been asked for them at first.
fn learning_rate(run: &TrainingRun, step: u64) -> f32 {
    let warm = (step + 1) as f32 / WARMUP_STEPS as f32;
    let left = (run.steps - step) as f32 / (DECAY_SHARE * run.steps as f32);
    run.learning_rate * warm.min(left).min(1.0)
}

struct TrainingState {
    step: u64,
    parameters: Parameters,
    optimizer: Optimizer,
    average: Tensors,
}

impl TrainingState {
    fn path(run: &TrainingRun) -> PathBuf {
        run.out.with_extension("state.safetensors")
    }

    /// The state that an earlier run left, or the first.
    fn open(run: &TrainingRun, first: &Tensors) -> Result<Self, TrainError> {
        let config = OptimizerConfig::Muon { momentum: 0.95, beta1: 0.9, beta2: 0.99, adam_eps: 1e-8, weight_decay: run.weight_decay };
        let mut state = Self {
            step: 0,
            parameters: Parameters::trainable(first, |name| TrainablePart::All.contains(name))?,
            optimizer: Optimizer::new(config),
            average: first.clone(),
        };
        let path = Self::path(run);
        if !path.exists() {
            return Ok(state);
        }
        let bytes = std::fs::read(&path).map_err(|source| TrainError::File { path: path.clone(), source })?;
        let tensors = parameters::read(&bytes)?;
        let part = |prefix: &str| -> Tensors {
            tensors.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.clone()))).collect()
        };
        let values = |prefix: &str| -> candle_core::Result<BTreeMap<String, Vec<f32>>> {
            part(prefix).into_iter().map(|(name, t)| Ok((name, t.flatten_all()?.to_vec1()?))).collect()
        };
        state.parameters.restore(&part("weights."))?;
        // What is not trained is not in the state.
        state.average.extend(part("average."));
        parameters::check(&state.average, first)?;
        let steps = part("step.").get("steps").map(|t| t.to_scalar::<f32>()).transpose()?.unwrap_or(0.0) as u64;
        let first_moments = values("first.")?;
        let second_moments = values("second.")?;
        state.optimizer.restore(OptimizerState { steps, first_moments, second_moments });
        state.step = steps;
        match state.step > run.steps {
            true => Err(TrainError::Beyond { path, step: state.step, steps: run.steps }),
            false => Ok(state),
        }
    }

    /// Moves the average towards the weights; the first steps count for less, as they are worse.
    fn average(&mut self) -> Result<(), TrainError> {
        let decay = EMA_DECAY.min((self.step as f64 + 1.0) / (self.step as f64 + 10.0));
        for (name, variable) in self.parameters.variables() {
            let average = &self.average[name];
            self.average.insert(name.clone(), (average.affine(decay, 0.0)? + variable.as_detached_tensor().affine(1.0 - decay, 0.0)?)?);
        }
        Ok(())
    }

    fn save(&self, run: &TrainingRun) -> Result<(), TrainError> {
        let mut tensors = Tensors::new();
        let state = self.optimizer.state();
        tensors.insert("step.steps".to_owned(), Tensor::new(state.steps as f32, &Device::Cpu)?);
        for (name, variable) in self.parameters.variables() {
            let mut put = |prefix: &str, values: &[f32]| {
                tensors.insert(format!("{prefix}.{name}"), Tensor::from_slice(values, variable.shape(), &Device::Cpu)?);
                Ok::<_, candle_core::Error>(())
            };
            put("first", &state.first_moments[name])?;
            if let Some(second) = state.second_moments.get(name) {
                put("second", second)?;
            }
            tensors.insert(format!("weights.{name}"), variable.as_detached_tensor());
            tensors.insert(format!("average.{name}"), self.average[name].clone());
        }
        write_file(&Self::path(run), &parameters::write(&tensors, HashMap::new())?)?;
        write_file(&run.out, &parameters::write(&self.average, HashMap::new())?)
    }
}

/// Writes beside the target, then renames, so that an interrupted run leaves the old file.
fn write_file(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, bytes)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|source| TrainError::File { path: path.to_owned(), source })
}

fn scalar(tensor: &Tensor) -> candle_core::Result<f32> {
    tensor.to_dtype(DType::F32)?.to_scalar()
}

/// Number of rows whose largest logit is at the label.
fn hits(logits: &Tensor, labels: &[u32]) -> candle_core::Result<f32> {
    let answers = logits.argmax(1)?.to_vec1::<u32>()?;
    let hits = answers.iter().zip(labels).filter(|(answer, label)| answer == label).count();
    Ok(hits as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::ClassIndex;
    use crate::tiny;
    use std::iter;
    use tempfile::TempDir;

    /// What so many steps on four images make of the tiny bundle's diffusion model.
    fn trained(steps: u64, start: Option<Tensors>, augmentation: Option<Augmentation>) -> Result<Tensors, TrainError> {
        let folder = TempDir::new().expect("temporary folders can be made");
        let out = folder.path().join("diffusion.safetensors");
        let run = TrainingRun { seed: 1, steps, batch: 4, learning_rate: 1e-2, weight_decay: 0.0, out };
        let data: Vec<Labelled> = (0..4u32).map(|n| Labelled { image: tiny::image(1, u64::from(n)), label: ClassIndex(n % 3) }).collect();
        let config = tiny::bundle(1, ClassConditioning::Readout).diffusion_config;
        diffusion(&config, &data, &run, &DiffusionTraining { discrimination_weight: 0.2, start, augmentation })
    }

    fn values(tensors: &Tensors) -> BTreeMap<String, Vec<f32>> {
        let of = |tensor: &Tensor| tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("tensors of f32");
        tensors.iter().map(|(name, tensor)| (name.clone(), of(tensor))).collect()
    }

    #[test]
    fn training_begins_with_the_weights_that_are_given() {
        let start = tiny::bundle(1, ClassConditioning::Readout).diffusion;
        assert_eq!(values(&trained(0, Some(start.clone()), None).expect("no step")), values(&start));
        let of_three_channels = tiny::bundle(3, ClassConditioning::Readout).diffusion;
        let refused = trained(0, Some(of_three_channels), None);
        assert!(matches!(refused, Err(TrainError::Parameters(ParameterError::Shape { .. }))), "{refused:?}");
    }

    #[test]
    fn augmented_images_teach_something_else() {
        let of = |augmentation| values(&trained(2, None, augmentation).expect("two steps"));
        let augmentations = [Augmentation::Shapes, Augmentation::Overlays, Augmentation::Covers, Augmentation::Distortions];
        let kinds: Vec<_> = iter::once(None).chain(augmentations.map(Some)).map(of).collect();
        assert_eq!(kinds[0], of(None));
        assert!((0..kinds.len()).all(|a| (0..a).all(|b| kinds[a] != kinds[b])));
    }
}
