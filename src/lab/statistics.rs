//! Reference statistics of a bundle: what both models do on images that they were not trained on, clean ones and those
//! of the validation corruptions.

use super::dataset::{Labelled, pad};
use super::streams::StreamFrame;
use crate::bundle::{Calibration, Moments, Statistics, log_odds};
use crate::diffusion::Timestep;
use crate::frame::Image;
use crate::learner::objective::{argmax, entropy, mean_logits, posterior, softmax};
use crate::learner::{AdaptConfig, AdaptError, FrozenClassifier, Judge, Verdict};
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
    config: &AdaptConfig,
    data: &[Labelled],
    validation: impl Iterator<Item = StreamFrame>,
    seed: u64,
) -> Result<Statistics, AdaptError> {
    let timesteps = &config.timesteps.iter().map(|&t| Timestep(t)).collect::<Vec<_>>();
    let validation = Planes::of_images(validation.map(|frame| (frame.image, frame.label.index())), seed);
    let planes = Planes::of(data, judge.model().config().trunk.image.height, seed);
    let logits = classifier.logits(&planes.images)?;
    let verdicts = judge.verdicts(&planes.images, &planes.keys, timesteps)?;
    let entropies: Vec<f64> = logits.iter().map(|z| entropy(softmax(z))).collect();
    let best_error = |verdict: &Verdict| 1.0 + verdict.errors.iter().copied().fold(f64::INFINITY, f64::min);
    let denoising: Vec<f64> = verdicts.iter().map(best_error).collect();
    Ok(Statistics {
        timesteps: config.timesteps.clone(),
        source_accuracy: planes.share(|n, label| argmax(&logits[n]) == label),
        judge_accuracy: planes.share(|n, label| verdicts[n].label() == label),
        entropy: moments(&entropies),
        denoising_loss: moments(&denoising),
        draw_agreement: verdicts.iter().map(Verdict::draw_agreement).sum::<f64>() / verdicts.len() as f64,
        calibration: calibration(classifier, judge, config, timesteps, &validation)?,
    })
}

/// The weights of classifier and judge under which the true labels are likeliest: temperature scaling (Guo 2017), with a
/// temperature for each. The classifier's logits are the mean over its views, as they are where frames are answered.
fn calibration(
    classifier: &FrozenClassifier,
    judge: &Judge,
    config: &AdaptConfig,
    timesteps: &[Timestep],
    planes: &Planes,
) -> Result<Calibration, AdaptError> {
    const PRIOR_WEIGHTS: RangeInclusive<u32> = 4..=15; // tenths
    const JUDGE_WEIGHTS: RangeInclusive<u32> = 1..=25; // twentieths
    let images = planes.images.chunks_exact(planes.images.len() / planes.labels.len());
    let logits: Vec<Vec<f64>> =
        images.map(|image| Ok(mean_logits(&classifier.logits(&config.views(image))?).collect())).collect::<Result<_, AdaptError>>()?;
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
    let unfitted = Calibration { by_posterior: 1.0, ..Calibration::default() };
    let judge_weights =
        |prior_weight| JUDGE_WEIGHTS.map(move |w| Calibration { prior_weight, judge_weight: f64::from(w) / 20.0, ..unfitted });
    let grid = prior_weights.flat_map(judge_weights);
    let mut best = grid.min_by(|a, b| loss(a).total_cmp(&loss(b))).expect("a grid of several points");

    let scale = judge.likelihood_scale();
    let mut agreement = None;
    let trials = (0..logits.len()).map(|n| {
        let (logits, Verdict { errors, .. }) = (logits[n].iter().copied(), &verdicts[n]);
        // As the daemon answers where it does not hear the judge, and as its average of the agreement moves.
        let answer = argmax(posterior(logits.clone(), errors, 1.0, config.answer_weight(false) * scale));
        let of_frame = verdicts[n].draw_agreement();
        let lately = *agreement.get_or_insert(of_frame);
        agreement = Some(lately + (of_frame - lately) / config.gate.memory_frames);
        let share = posterior(logits, errors, best.prior_weight, best.judge_weight * scale).nth(answer).expect("an answer is a class");
        Trial { share, agreement: lately, is_hit: answer == planes.labels[n] }
    });
    let trials: Vec<Trial> = trials.collect();
    fit_accuracy(&mut best, &trials);
    Ok(best)
}

/// An answer to a frame whose label is known.
struct Trial {
    /// Of the posterior.
    share: f64,
    /// Of the judge's draws, lately.
    agreement: f64,
    is_hit: bool,
}

/// Logistic regression by gradient descent: the coefficients under which `trials` come out as they did most likely.
fn fit_accuracy(calibration: &mut Calibration, trials: &[Trial]) {
    const STEPS: u32 = 20_000;
    const RATE: f64 = 0.1;
    for _ in 0..STEPS {
        let mut gradient = [0.0; 3];
        for &Trial { share, agreement, is_hit } in trials {
            let excess = calibration.accuracy(share, agreement) - f64::from(u8::from(is_hit));
            for (sum, feature) in gradient.iter_mut().zip([1.0, log_odds(share), log_odds(agreement)]) {
                *sum += excess * feature / trials.len() as f64;
            }
        }
        let Calibration { intercept, by_posterior, by_agreement, .. } = calibration;
        for (coefficient, slope) in [intercept, by_posterior, by_agreement].into_iter().zip(gradient) {
            *coefficient -= RATE * slope;
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coefficients_that_trials_come_of_are_found_again() {
        let truth = Calibration { intercept: -0.5, by_posterior: 0.8, by_agreement: 0.4, ..Calibration::default() };
        let mut trials = Vec::new();
        for (share, agreement) in [0.3, 0.6, 0.9, 0.99].into_iter().flat_map(|share| [0.4, 0.7, 0.95].map(|agreement| (share, agreement))) {
            let hits = (1000.0 * truth.accuracy(share, agreement)).round() as usize;
            trials.extend((0..1000).map(|n| Trial { share, agreement, is_hit: n < hits }));
        }
        let mut fitted = Calibration { by_posterior: 1.0, ..Calibration::default() };
        fit_accuracy(&mut fitted, &trials);
        for (fitted, truth) in
            [(fitted.intercept, truth.intercept), (fitted.by_posterior, truth.by_posterior), (fitted.by_agreement, truth.by_agreement)]
        {
            assert!((fitted - truth).abs() < 0.01, "{fitted} against {truth}");
        }
    }
}
