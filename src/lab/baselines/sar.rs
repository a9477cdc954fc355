//! SAR: entropy minimisation on sure frames, with the gradient at the worst weights nearby, and a reset where entropy
//! collapses (arXiv 2302.12400; mr-eggplant/SAR, `sar.py`, `sam.py`, `main.py`).
//!
//! Answers with the logits from before its step. The norms of the last stage, or of the last quarter of the blocks and after
//! them, stay as they are. A window without a sure frame has no gradient, and momentum alone moves the weights. Departure: a
//! reset forgets the average of the loss, as in the paper (in `sar.py` the old average comes back, and resets again).

use super::competitor::{ByNorm, Competitor, Context, Setting};
use super::losses::{entropy, scaled};
use super::student::{Student, Weights};
use crate::learner::objective::argmax;
use crate::learner::{AdaptError, Forward, OptimizerConfig, TrainablePart};
use crate::model::ClassifierConfig;
use crate::model::Gradients;

/// Of SGD, in windows of 16; published, for those: 2.5e-4 for vision transformers, 1.25e-4 for batch norm (`main.py`).
const LEARNING_RATES: ByNorm<f32> = ByNorm { layer_norm: 2.5e-3, batch_norm: 1.25e-4 };
/// Entropy above which a frame is ignored, as a share of the largest; published: 0.4.
const ENTROPY_MARGINS: ByNorm<f64> = ByNorm { layer_norm: 0.4, batch_norm: 0.4 };
const MOMENTUM: f32 = 0.9;
/// Radius of the neighbourhood; `sam.py`.
const RHO: f64 = 0.05;
/// Added to the norm of the gradient; `sam.py`.
const NORM_EPS: f64 = 1e-12;
/// Average entropy, nats, below which the model has collapsed; `sar.py`, `reset_constant_em`.
const RESET_ENTROPY: f64 = 0.2;
/// Of that average; `sar.py`, `update_ema`.
const LOSS_MOMENTUM: f64 = 0.9;

pub struct Sar {
    student: Student,
    classifier: ClassifierConfig,
    entropy_margin: f64,
    average_loss: Option<f64>,
}

impl Sar {
    pub fn new(setting: &Setting) -> Result<Self, AdaptError> {
        // As published, in proportion to the window.
        let scale = setting.window as f32 / 16.0;
        let rates = ByNorm { layer_norm: scale * LEARNING_RATES.layer_norm, batch_norm: scale * LEARNING_RATES.batch_norm };
        Ok(Self {
            student: setting.student(TrainablePart::Norms, OptimizerConfig::Sgd { momentum: MOMENTUM }, rates)?,
            classifier: setting.bundle.classifier_config,
            entropy_margin: setting.entropy_margin(ENTROPY_MARGINS),
            average_loss: None,
        })
    }

    /// Gradients of the parameters, zero for those that stay as they are.
    fn gradients(&self, forward: &Forward, rows: &[Vec<f64>], context: &mut Context) -> Result<Gradients, AdaptError> {
        let mut gradients = self.student.gradients(forward, rows, &mut context.passes)?;
        let late = gradients.iter_mut().filter(|(name, _)| self.classifier.is_late(name));
        late.for_each(|(_, gradient)| gradient.fill(0.0));
        Ok(gradients)
    }

    /// Steps along the gradient at the worst weights nearby, over those of the frames `sure` that are still sure there.
    fn step_sharp(&mut self, images: &[f32], sure: &[bool], gradients: &Gradients, context: &mut Context) -> Result<(), AdaptError> {
        let weights = self.student.weights()?;
        self.student.set_weights(&worst_nearby(&weights, gradients))?;
        let forward = self.student.forward(images, &mut context.passes)?;
        let still: Vec<bool> = forward.logits.iter().zip(sure).map(|(z, &sure)| sure && entropy(z).loss < self.entropy_margin).collect();
        let (loss, rows) = mean_entropy(&forward.logits, &still);
        let gradients = self.gradients(&forward, &rows, context)?;
        self.student.set_weights(&weights)?;
        self.student.step(&gradients)?;
        if let Some(loss) = loss {
            let average = self.average_loss.map_or(loss, |average| LOSS_MOMENTUM * average + (1.0 - LOSS_MOMENTUM) * loss);
            self.average_loss = Some(average);
        }
        self.recover()
    }

    /// Starts again where the average of the loss says that the model has collapsed.
    fn recover(&mut self) -> Result<(), AdaptError> {
        if self.average_loss.is_some_and(|average| average < RESET_ENTROPY) {
            self.average_loss = None;
            self.student.reset()?;
        }
        Ok(())
    }
}

impl Competitor for Sar {
    fn answer(&mut self, images: &[f32], context: &mut Context) -> Result<Vec<usize>, AdaptError> {
        let forward = self.student.forward(images, &mut context.passes)?;
        let sure: Vec<bool> = forward.logits.iter().map(|logits| entropy(logits).loss < self.entropy_margin).collect();
        let (_, rows) = mean_entropy(&forward.logits, &sure);
        let gradients = self.gradients(&forward, &rows, context)?;
        self.step_sharp(images, &sure, &gradients, context)?;
        Ok(forward.logits.iter().map(argmax).collect())
    }
}

/// weights + rho gradient / |gradient| (equation 4).
fn worst_nearby(weights: &Weights, gradients: &Gradients) -> Weights {
    let norm = gradients.values().flatten().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    let scale = (RHO / (norm + NORM_EPS)) as f32;
    let perturbed = |(name, values): (&String, &Vec<f32>)| {
        let values = values.iter().zip(&gradients[name]).map(|(value, g)| value + scale * g);
        (name.clone(), values.collect())
    };
    weights.iter().map(perturbed).collect()
}

/// Mean entropy of the frames that `is_counted`, none if no frame is, and its gradient by the logits of all.
fn mean_entropy(logits: &[Vec<f64>], is_counted: &[bool]) -> (Option<f64>, Vec<Vec<f64>>) {
    let count = is_counted.iter().filter(|is| **is).count();
    let mut mean = 0.0;
    let row = |(logits, is_counted): (&Vec<f64>, &bool)| {
        let share = if *is_counted { 1.0 / count as f64 } else { 0.0 };
        let entropy = entropy(logits);
        mean += share * entropy.loss;
        scaled(&entropy.logit_gradient, share)
    };
    let rows = logits.iter().zip(is_counted).map(row).collect();
    ((count > 0).then_some(mean), rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::baselines::competitor::Tuning;
    use crate::lab::baselines::stage::{Stage, images};

    fn sar(stage: &Stage) -> Sar {
        Sar::new(&stage.setting(Tuning { entropy_margin: Some(1.0), learning_rate: Some(0.1) })).expect("a method")
    }

    #[test]
    fn the_step_is_from_the_old_weights_along_the_gradient_at_the_worst_nearby() {
        let stage = Stage::new();
        let (mut sar, other) = (sar(&stage), sar(&stage));
        let (images, mut context, by_hand) = (images(4, 1), Context::default(), &other.student);
        let mut gradient = || {
            let forward = by_hand.forward(&images, &mut context.passes).expect("a pass");
            let (_, rows) = mean_entropy(&forward.logits, &[true; 4]);
            other.gradients(&forward, &rows, &mut context).expect("gradients")
        };
        let worst = worst_nearby(by_hand.source(), &gradient());
        let distance =
            worst.iter().flat_map(|(name, values)| values.iter().zip(&by_hand.source()[name])).map(|(a, b)| f64::from(a - b).powi(2));
        assert!((distance.sum::<f64>().sqrt() - RHO).abs() < 1e-5);
        by_hand.set_weights(&worst).expect("weights");
        let sharp = gradient();
        let moving: Vec<&String> = sharp.iter().filter(|(_, gradient)| gradient.iter().any(|g| *g != 0.0)).map(|(name, _)| name).collect();
        assert_eq!(moving, ["blocks.00.modulation", "blocks.01.modulation"]);
        sar.answer(&images, &mut Context::default()).expect("answers");
        for (name, values) in sar.student.weights().expect("weights") {
            for ((value, source), gradient) in values.iter().zip(&by_hand.source()[&name]).zip(&sharp[&name]) {
                // The same arithmetic in f32, in the same order.
                assert_eq!(*value, source - 0.1 * gradient, "{name}");
            }
        }
    }

    #[test]
    fn it_starts_again_where_entropy_collapses() {
        let stage = Stage::new();
        let mut sar = sar(&stage);
        sar.answer(&images(4, 1), &mut Context::default()).expect("answers");
        sar.average_loss = Some(0.27);
        sar.recover().expect("weights");
        assert_ne!(&sar.student.weights().expect("weights"), sar.student.source(), "an average of 0.27 is no collapse");
        sar.average_loss = Some(0.19);
        sar.recover().expect("weights");
        assert_eq!(&sar.student.weights().expect("weights"), sar.student.source());
        assert_eq!(sar.average_loss, None);
    }

    #[test]
    fn without_a_sure_frame_momentum_alone_moves_the_weights() {
        let stage = Stage::new();
        let mut sar = sar(&stage);
        let weights = |sar: &Sar| sar.student.weights().expect("weights");
        let start = weights(&sar);
        sar.answer(&images(4, 1), &mut Context::default()).expect("answers");
        let first = weights(&sar);
        sar.entropy_margin = 0.0;
        sar.answer(&images(4, 2), &mut Context::default()).expect("answers");
        for (name, second) in weights(&sar) {
            for ((second, first), start) in second.iter().zip(&first[&name]).zip(&start[&name]) {
                // In f32, of values up to 2.
                assert!((second - first - MOMENTUM * (first - start)).abs() < 1e-6, "{name}: {start}, {first}, {second}");
            }
        }
    }
}
