//! Reference statistics of a bundle: what both models do on images that they were not trained on, clean ones and those
//! of the validation corruptions.

use super::dataset::{Labelled, pad};
use super::streams::StreamFrame;
use crate::bundle::{Calibration, Moments, Statistics};
use crate::diffusion::Timestep;
use crate::frame::Image;
use crate::learner::objective::{argmax, entropy, posterior, softmax};
use crate::learner::{AdaptError, FrozenClassifier, Judge, Verdict};
use crate::noise::NoiseKey;
use std::ops::RangeInclusive;

/// Accuracies of the diffusion model alone, 0..=1.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct JudgeAccuracy {
    /// Of one draw, by timestep.
    pub by_timestep: Vec<(u32, f64)>,
    /// Of one draw at each of the timesteps together.
    pub together: f64,
}

/// Images as the models see them.
struct Planes {
    /// (N, C, H, W)
    images: Vec<f32>,
    keys: Vec<NoiseKey>,
    labels: Vec<usize>,
}

impl Planes {
    fn of(data: &[Labelled], side: usize, seed: u64) -> Self {
        Self::of_images(data.iter().map(|labelled| (pad(&labelled.image, side), labelled.label.index())), seed)
    }

    fn of_images(images: impl Iterator<Item = (Image, usize)>, seed: u64) -> Self {
        let mut planes = Self { images: Vec::new(), keys: Vec::new(), labels: Vec::new() };
        for ((image, label), index) in images.zip(0u64..) {
            let mut values = vec![0f32; image.pixels().len()];
            image.write_planes(&mut values);
            planes.images.extend(values);
            planes.keys.push(NoiseKey::from_seed(seed, "statistics", index));
            planes.labels.push(label);
        }
        planes
    }

    fn share(&self, is_hit: impl Fn(usize, usize) -> bool) -> f64 {
        let hits = self.labels.iter().enumerate().filter(|&(n, &label)| is_hit(n, label)).count();
        hits as f64 / self.labels.len() as f64
    }
}

/// Statistics over clean `data`, which is grey or RGB as the models are; the calibration over frames of `validation`.
pub fn measure(
    classifier: &FrozenClassifier,
    judge: &Judge,
    timesteps: &[Timestep],
    data: &[Labelled],
    validation: impl Iterator<Item = StreamFrame>,
    seed: u64,
) -> Result<Statistics, AdaptError> {
    let validation = Planes::of_images(validation.map(|frame| (frame.image, frame.label.index())), seed);
    let planes = Planes::of(data, judge.model().config().trunk.image.height, seed);
    let logits = classifier.logits(&planes.images)?;
    let verdicts = judge.verdicts(&planes.images, &planes.keys, timesteps)?;
    let entropies: Vec<f64> = logits.iter().map(|z| entropy(softmax(z))).collect();
    let best_error = |verdict: &Verdict| 1.0 + verdict.errors.iter().copied().fold(f64::INFINITY, f64::min);
    let denoising: Vec<f64> = verdicts.iter().map(best_error).collect();
    Ok(Statistics {
        timesteps: timesteps.iter().map(|t| t.0).collect(),
        source_accuracy: planes.share(|n, label| argmax(&logits[n]) == label),
        judge_accuracy: planes.share(|n, label| verdicts[n].label() == label),
        entropy: moments(&entropies),
        denoising_loss: moments(&denoising),
        draw_agreement: verdicts.iter().map(Verdict::draw_agreement).sum::<f64>() / verdicts.len() as f64,
        calibration: calibration(classifier, judge, timesteps, &validation)?,
    })
}

/// The weights of classifier and judge under which the true labels are likeliest: temperature scaling (Guo 2017), with a
/// temperature for each.
fn calibration(classifier: &FrozenClassifier, judge: &Judge, timesteps: &[Timestep], planes: &Planes) -> Result<Calibration, AdaptError> {
    const PRIOR_WEIGHTS: RangeInclusive<u32> = 4..=15; // tenths
    const JUDGE_WEIGHTS: RangeInclusive<u32> = 1..=25; // twentieths
    let logits = classifier.logits(&planes.images)?;
    let verdicts = judge.verdicts(&planes.images, &planes.keys, timesteps)?;
    let loss = |calibration: &Calibration| {
        let scale = calibration.judge_weight * judge.likelihood_scale();
        let of_frame = |n: usize| {
            let mut posterior = posterior(logits[n].iter().copied(), &verdicts[n].errors, calibration.prior_weight, scale);
            -posterior.nth(planes.labels[n]).expect("a label is a class").ln()
        };
        (0..logits.len()).map(of_frame).sum::<f64>()
    };
    let prior_weights = PRIOR_WEIGHTS.map(|tenths| f64::from(tenths) / 10.0);
    let judge_weights = |prior_weight| JUDGE_WEIGHTS.map(move |w| Calibration { prior_weight, judge_weight: f64::from(w) / 20.0 });
    let grid = prior_weights.flat_map(judge_weights);
    Ok(grid.min_by(|a, b| loss(a).total_cmp(&loss(b))).expect("a grid of several points"))
}

/// How well the diffusion model classifies clean `data` alone (arXiv 2303.16203), by timestep and together.
pub fn judge_accuracy(judge: &Judge, timesteps: &[Timestep], data: &[Labelled], seed: u64) -> Result<JudgeAccuracy, AdaptError> {
    let planes = Planes::of(data, judge.model().config().trunk.image.height, seed);
    let verdicts = judge.verdicts(&planes.images, &planes.keys, timesteps)?;
    let of_draw = |draw: usize| planes.share(|n, label| verdicts[n].draw_labels[draw] == label);
    Ok(JudgeAccuracy {
        by_timestep: timesteps.iter().enumerate().map(|(draw, timestep)| (timestep.0, of_draw(draw))).collect(),
        together: planes.share(|n, label| verdicts[n].label() == label),
    })
}

fn moments(values: &[f64]) -> Moments {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    Moments { mean, standard_deviation: variance.sqrt() }
}
