//! Reference statistics of a bundle: what both models do on clean images that they were not trained on.

use super::dataset::{Labelled, pad};
use crate::bundle::{Moments, Statistics};
use crate::diffusion::Timestep;
use crate::learner::objective::{argmax, entropy, softmax};
use crate::learner::{AdaptError, Classifier, Judge, Verdict};
use crate::noise::NoiseKey;

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
        let mut planes = Self { images: Vec::new(), keys: Vec::new(), labels: Vec::new() };
        for (labelled, index) in data.iter().zip(0u64..) {
            let image = pad(&labelled.image, side);
            let mut values = vec![0f32; image.pixels().len()];
            image.write_planes(&mut values);
            planes.images.extend(values);
            planes.keys.push(NoiseKey::from_seed(seed, "statistics", index));
            planes.labels.push(labelled.label.index());
        }
        planes
    }

    fn share(&self, is_hit: impl Fn(usize, usize) -> bool) -> f64 {
        let hits = self.labels.iter().enumerate().filter(|&(n, &label)| is_hit(n, label)).count();
        hits as f64 / self.labels.len() as f64
    }
}

/// Statistics over clean `data`, which is grey or RGB as the models are.
pub fn measure(
    classifier: &Classifier,
    judge: &Judge,
    timesteps: &[Timestep],
    data: &[Labelled],
    seed: u64,
) -> Result<Statistics, AdaptError> {
    let planes = Planes::of(data, judge.model().config().trunk.image.height, seed);
    let logits = classifier.logits(&planes.images)?;
    let verdicts = judge.verdicts(&planes.images, &planes.keys, timesteps)?;
    let entropies: Vec<f64> = logits.iter().map(|z| entropy(&softmax(z))).collect();
    let best_error = |verdict: &Verdict| 1.0 + verdict.terms.errors().into_iter().fold(f64::INFINITY, f64::min);
    let denoising: Vec<f64> = verdicts.iter().map(best_error).collect();
    Ok(Statistics {
        timesteps: timesteps.iter().map(|t| t.0).collect(),
        source_accuracy: planes.share(|n, label| argmax(&logits[n]) == label),
        judge_accuracy: planes.share(|n, label| verdicts[n].label() == label),
        entropy: moments(&entropies),
        denoising_loss: moments(&denoising),
        draw_agreement: verdicts.iter().map(Verdict::draw_agreement).sum::<f64>() / verdicts.len() as f64,
    })
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
