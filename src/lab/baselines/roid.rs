//! ROID: a soft likelihood ratio weighted by certainty and diversity, consistency under augmentation, weights that are
//! pulled to the source, answers corrected by their prior (arXiv 2306.00650; mariodoebler/test-time-adaptation,
//! `classification/methods/roid.py`, `classification/conf.py`, `classification/cfgs/cifar10_c/roid.yaml`).
//!
//! Answers with the logits from before its step, times the prior: logits and not probabilities, as in `roid.py`.
//! Departure: where all frames of a window weigh alike, they weigh 1, where `roid.py` divides by nothing.

use super::augment::{Jitter, jittered_window};
use super::competitor::{ByNorm, Competitor, Context, Setting};
use super::losses::{cosine, entropy, mean, moving_average, scaled, soft_likelihood_ratio, symmetric_cross_entropy};
use super::student::Student;
use crate::learner::objective::{argmax, softmax};
use crate::learner::{AdaptError, OptimizerConfig, TrainablePart, accumulate};
use crate::model::ImageShape;

/// Of Adam; published: 1e-3 (`roid.yaml`).
const LEARNING_RATES: ByNorm<f32> = ByNorm { layer_norm: 1e-3, batch_norm: 1e-3 };
/// Share of the way back to the source that each window takes; 1 - `MOMENTUM_SRC`.
const SOURCE_PULL: f32 = 0.01;
/// Of the mean of probabilities; `MOMENTUM_PROBS`.
const PROBABILITY_MOMENTUM: f64 = 0.9;
/// Of the weights of frames; `TEMPERATURE`.
const TEMPERATURE: f64 = 1.0 / 3.0;

pub struct Roid {
    student: Student,
    image: ImageShape,
    /// Of the frames so far; even before the first.
    mean_probabilities: Vec<f64>,
}

impl Roid {
    pub fn new(setting: &Setting) -> Result<Self, AdaptError> {
        let classes = setting.classes();
        Ok(Self {
            student: setting.student(TrainablePart::Norms, OptimizerConfig::ADAM_W, LEARNING_RATES)?,
            image: setting.image(),
            mean_probabilities: vec![1.0 / classes as f64; classes],
        })
    }

    /// Weights of the frames by the mean of earlier probabilities, which then moves.
    fn weights(&mut self, logits: &[Vec<f64>]) -> Vec<f64> {
        let probabilities: Vec<Vec<f64>> = logits.iter().map(|logits| softmax(logits)).collect();
        let weights = frame_weights(logits, &probabilities, &self.mean_probabilities);
        moving_average(&mut self.mean_probabilities, &mean(&probabilities), PROBABILITY_MOMENTUM);
        weights
    }
}

impl Competitor for Roid {
    fn answer(&mut self, images: &[f32], context: &mut Context) -> Result<Vec<usize>, AdaptError> {
        let forward = self.student.forward(images, &mut context.passes)?;
        let weights = self.weights(&forward.logits);
        let kept: Vec<usize> = (0..weights.len()).filter(|&n| weights[n] > 0.0).collect();
        let elements = self.image.elements();
        let kept_images: Vec<f32> = kept.iter().flat_map(|&n| &images[n * elements..(n + 1) * elements]).copied().collect();
        let augmented = jittered_window(&kept_images, self.image, Jitter::Roid, context.key("roid", 0));
        let augmented = self.student.forward(&augmented, &mut context.passes)?;
        let rows = rows(&forward.logits, &augmented.logits, &weights, &kept);
        let mut gradients = self.student.gradients(&forward, &rows.plain, &mut context.passes)?;
        accumulate(&mut gradients, &self.student.gradients(&augmented, &rows.augmented, &mut context.passes)?);
        self.student.step(&gradients)?;
        self.student.pull_to_source(SOURCE_PULL)?;
        let prior = smoothed_prior(&forward.logits);
        Ok(forward.logits.iter().map(|logits| argmax(times(logits, &prior))).collect())
    }
}

/// exp(diversity certainty / temperature), both from 0 to 1 over the window; 0 for frames of less than mean diversity.
fn frame_weights(logits: &[Vec<f64>], probabilities: &[Vec<f64>], mean_probabilities: &[f64]) -> Vec<f64> {
    let diversity = stretched(probabilities.iter().map(|p| 1.0 - cosine(mean_probabilities, p)).collect());
    let certainty = stretched(logits.iter().map(|logits| -entropy(logits).loss).collect());
    let mean_diversity = diversity.iter().sum::<f64>() / diversity.len() as f64;
    let weight = |(diversity, certainty): (&f64, &f64)| {
        if *diversity < mean_diversity { 0.0 } else { (diversity * certainty / TEMPERATURE).exp() }
    };
    diversity.iter().zip(&certainty).map(weight).collect()
}

/// Values moved and scaled to 0..=1; all 0 where they are alike.
fn stretched(values: Vec<f64>) -> Vec<f64> {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let range = if high > low { high - low } else { 1.0 };
    values.into_iter().map(|value| (value - low) / range).collect()
}

/// Gradients of the loss by the logits.
struct Rows {
    plain: Vec<Vec<f64>>,
    augmented: Vec<Vec<f64>>,
}

/// Of sum_n weight_n (ratio + consistency) / N; `augmented` has the frames `kept` alone. The consistency teaches both views,
/// as in `roid.py`.
fn rows(logits: &[Vec<f64>], augmented: &[Vec<f64>], weights: &[f64], kept: &[usize]) -> Rows {
    let share = |n: usize| weights[n] / logits.len() as f64;
    let ratio = |(n, logits): (usize, &Vec<f64>)| scaled(&soft_likelihood_ratio(logits).logit_gradient, share(n));
    let mut rows = Rows { plain: logits.iter().enumerate().map(ratio).collect(), augmented: Vec::new() };
    for (&n, augmented) in kept.iter().zip(augmented) {
        let (_, [by_augmented, by_plain]) = symmetric_cross_entropy([augmented, &logits[n]]);
        rows.plain[n].iter_mut().zip(by_plain).for_each(|(sum, g)| *sum += share(n) * g);
        rows.augmented.push(scaled(&by_augmented, share(n)));
    }
    rows
}

/// Mean probabilities of a window, smoothed the more the fewer frames and classes it has.
fn smoothed_prior(logits: &[Vec<f64>]) -> Vec<f64> {
    let prior = mean(&logits.iter().map(|logits| softmax(logits)).collect::<Vec<_>>());
    let (frames, classes) = (logits.len() as f64, prior.len() as f64);
    let smooth = (1.0 / frames).max(1.0 / classes) / prior.iter().copied().fold(0.0, f64::max);
    prior.iter().map(|p| (p + smooth) / (1.0 + smooth * classes)).collect()
}

fn times(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::baselines::competitor::Tuning;
    use crate::lab::baselines::stage::{Stage, images};

    #[test]
    fn each_window_pulls_the_weights_a_hundredth_of_their_way_to_the_source() {
        let stage = Stage::new();
        let mut roid = Roid::new(&stage.setting(Tuning { learning_rate: Some(0.0), ..Tuning::default() })).expect("a method");
        let mut moved = roid.student.source().clone();
        moved.values_mut().flatten().for_each(|value| *value += 1.0);
        roid.student.set_weights(&moved).expect("weights");
        roid.answer(&images(4, 1), &mut Context::default()).expect("answers");
        for (name, values) in roid.student.weights().expect("weights") {
            for (value, source) in values.iter().zip(&roid.student.source()[&name]) {
                assert!((value - source - 0.99).abs() < 1e-6, "{name}: {value} from {source}");
            }
        }
    }

    #[test]
    fn sure_and_rare_frames_count_and_common_ones_do_not() {
        let logits = [vec![4.0, 0.0, 0.0], vec![0.0, 4.0, 0.0], vec![0.0, 0.5, 0.4]];
        let probabilities: Vec<Vec<f64>> = logits.iter().map(|logits| softmax(logits)).collect();
        let weights = frame_weights(&logits, &probabilities, &[0.9, 0.05, 0.05]);
        assert_eq!(weights[0], 0.0);
        assert!((weights[1] - 3f64.exp()).abs() < 1e-9, "{weights:?}");
        assert!(weights[2] < weights[1]);
    }

    #[test]
    fn the_gradient_is_that_of_the_whole_loss() {
        let (plain, augmented) = (vec![vec![0.3, -0.2, 0.5], vec![1.0, 0.2, -0.4]], vec![vec![0.1, 0.7, -0.3]]);
        let (weights, kept) = ([0.0, 2.0], [1]);
        let loss = |plain: &[Vec<f64>], augmented: &[Vec<f64>]| {
            let ratios = plain.iter().zip(weights).map(|(z, weight)| weight * soft_likelihood_ratio(z).loss).sum::<f64>();
            (ratios + weights[1] * symmetric_cross_entropy([&augmented[0], &plain[1]]).0) / 2.0
        };
        let rows = rows(&plain, &augmented, &weights, &kept);
        let shifted = |rows: &[Vec<f64>], row: usize, k: usize, shift: f64| {
            let mut rows = rows.to_vec();
            rows[row][k] += shift;
            rows
        };
        for k in 0..3 {
            for row in 0..2 {
                let at = |shift| loss(&shifted(&plain, row, k, shift), &augmented);
                assert!((rows.plain[row][k] - (at(1e-5) - at(-1e-5)) / 2e-5).abs() < 1e-9);
            }
            let at = |shift| loss(&plain, &shifted(&augmented, 0, k, shift));
            assert!((rows.augmented[0][k] - (at(1e-5) - at(-1e-5)) / 2e-5).abs() < 1e-9);
        }
    }

    #[test]
    fn the_prior_favours_what_the_window_shows() {
        let even = smoothed_prior(&[vec![1.0, 0.0], vec![0.0, 1.0]]);
        assert!((even[0] - even[1]).abs() < 1e-12);
        let uneven = smoothed_prior(&[vec![3.0, 0.0], vec![3.0, 0.0]]);
        assert!(uneven[0] > uneven[1] && (uneven.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }
}
