//! Reference statistics of a bundle: what both models do on images that they were not trained on, clean ones and those
//! of the validation corruptions.

use super::dataset::{Labelled, pad};
use super::streams::StreamFrame;
use crate::bundle::{Bundle, Calibration, Moments, Statistics};
use crate::diffusion::Timestep;
use crate::frame::{Image, WeightsVersion};
use crate::guard::canary::Canary;
use crate::learner::objective::{argmax, entropy, softmax};
use crate::learner::{AdaptConfig, AdaptError, Adapter, FrozenClassifier, Judge, Judgement, Verdict, source_state};
use crate::model::Tensors;
use crate::noise::NoiseKey;
use crate::pipeline::{Job, WindowFrame};
use crate::policy::{self, Evidence};
use crate::recent::Recent;
use std::sync::Arc;

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
            planes.images.extend(image.planes());
            planes.keys.push(NoiseKey::from_seed(seed, "statistics", index));
            planes.labels.push(label);
        }
        planes
    }

    /// Of one image.
    fn elements(&self) -> usize {
        self.images.len() / self.labels.len()
    }

    fn share(&self, is_hit: impl Fn(usize, usize) -> bool) -> f64 {
        let hits = self.labels.iter().enumerate().filter(|&(n, &label)| is_hit(n, label)).count();
        hits as f64 / self.labels.len() as f64
    }
}

/// Statistics over clean `data`, which is grey or RGB as the models are; the calibration over a run of the daemon's method over the frames
/// of `validation`, from the weights of `bundle` on. What the bundle says of them is not looked at.
pub fn measure(
    bundle: &Bundle,
    config: &AdaptConfig,
    data: &[Labelled],
    validation: impl Iterator<Item = StreamFrame>,
    seed: u64,
) -> Result<Statistics, AdaptError> {
    let classifier = FrozenClassifier::new(&bundle.classifier_config, &bundle.classifier)?;
    let judge = Judge::of(bundle, config)?;
    let timesteps = &config.timesteps.iter().map(|&t| Timestep(t)).collect::<Vec<_>>();
    let planes = Planes::of(data, judge.model().config().trunk.image.height, seed);
    let logits = classifier.logits(&planes.images)?;
    let verdicts = judge.verdicts(&planes.images, &planes.keys, timesteps)?;
    let entropies: Vec<f64> = logits.iter().map(|z| entropy(softmax(z))).collect();
    let best_error = |verdict: &Verdict| 1.0 + verdict.errors.iter().copied().fold(f64::INFINITY, f64::min);
    let denoising: Vec<f64> = verdicts.iter().map(best_error).collect();
    let uncalibrated = Statistics {
        timesteps: config.timesteps.clone(),
        source_accuracy: planes.share(|n, label| argmax(&logits[n]) == label),
        judge_accuracy: planes.share(|n, label| verdicts[n].label() == label),
        entropy: moments(&entropies),
        denoising_loss: moments(&denoising),
        draw_agreement: verdicts.iter().map(Verdict::draw_agreement).sum::<f64>() / verdicts.len() as f64,
        calibration: Calibration::default(),
    };
    let validation = Planes::of_images(validation.map(|frame| (frame.image, frame.label.index())), seed);
    let bundle = Bundle { statistics: uncalibrated.clone(), canary: Canary::default(), ..bundle.clone() };
    Ok(Statistics { calibration: fitted(&trials(&bundle, config, &validation)?), ..uncalibrated })
}

/// An answer to a frame whose label is known.
struct Trial {
    /// That the judge gives the answer, 0..=1.
    share: f64,
    is_hit: bool,
}

/// What the daemon's method answers on `planes`, window by window, from the source weights on.
fn trials(bundle: &Bundle, config: &AdaptConfig, planes: &Planes) -> Result<Vec<Trial>, AdaptError> {
    let frozen = |weights: &Tensors| FrozenClassifier::new(&bundle.classifier_config, weights);
    let source = frozen(&bundle.classifier)?;
    let likelihood_scale = Judge::of(bundle, config)?.likelihood_scale();
    let mut learner = Arc::new(source_state(&bundle.classifier, WeightsVersion(0)));
    let mut adapter = Adapter::new(bundle, config, &learner)?;
    let even = Recent::default().prior(bundle.labels.len());
    let mut judgement = Judgement::default();
    let mut trials = Vec::new();
    let windows = planes.images.chunks(config.window * planes.elements()).zip(planes.keys.chunks(config.window));
    for ((index, (images, keys)), labels) in (0..).zip(windows).zip(planes.labels.chunks(config.window)) {
        let frame = |(image, &key)| {
            let views = config.views(image, bundle.classifier_config.image());
            let source_logits = source.logits(&views)?;
            Ok::<_, AdaptError>(WindowFrame { camera: String::new(), key, views, source_logits, verdict: None, prior: even.clone() })
        };
        let frames: Vec<WindowFrame> = images.chunks(planes.elements()).zip(keys).map(frame).collect::<Result<_, _>>()?;
        let classifier = frozen(&learner.weights)?;
        let logits: Vec<_> = frames.iter().map(|frame| classifier.logits(&frame.views)).collect::<Result<_, _>>()?;
        let source_logits: Vec<_> = frames.iter().flat_map(|frame| frame.source_logits.clone()).collect();
        let (cameras, priors) = (vec![String::new(); frames.len()], vec![even.clone(); frames.len()]);
        adapter.judge_into(&mut judgement, &frames);
        let verdicts = &judgement.verdicts;
        let evidence = Evidence {
            cameras: &cameras,
            logits: &logits.concat(),
            source_logits: &source_logits,
            verdicts,
            priors: &priors,
            likelihood_scale,
        };
        trials.extend(labels.iter().enumerate().map(|(n, &label)| {
            let (answer, share) = policy::answer(&evidence, config, &learner.policy, n);
            Trial { share, is_hit: answer == label }
        }));
        if let Some(adapted) = adapter.run(Job::Window { index, frames })? {
            learner = adapted.learner;
        }
    }
    Ok(trials)
}

/// Logistic regression by gradient descent: the coefficients under which `trials` come out as they did most likely.
fn fitted(trials: &[Trial]) -> Calibration {
    const STEPS: u32 = 20_000;
    const RATE: f64 = 0.1;
    let mut calibration = Calibration::default();
    for _ in 0..STEPS {
        let mut gradient = [0.0; 2];
        for Trial { share, is_hit } in trials {
            let excess = calibration.accuracy(*share) - f64::from(u8::from(*is_hit));
            for (sum, feature) in gradient.iter_mut().zip([1.0, Calibration::log_odds(*share)]) {
                *sum += excess * feature / trials.len() as f64;
            }
        }
        calibration.intercept -= RATE * gradient[0];
        calibration.slope -= RATE * gradient[1];
    }
    calibration
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
        let truth = Calibration { intercept: -0.5, slope: 0.8 };
        let of_share = |share| {
            let hits = (1000.0 * truth.accuracy(share)).round() as usize;
            (0..1000).map(move |n| Trial { share, is_hit: n < hits })
        };
        let found = fitted(&[0.3, 0.7, 0.95].into_iter().flat_map(of_share).collect::<Vec<_>>());
        for (found, truth) in [(found.intercept, truth.intercept), (found.slope, truth.slope)] {
            assert!((found - truth).abs() < 0.01, "{found} against {truth}");
        }
    }
}
