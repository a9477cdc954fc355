//! EATA: entropy minimisation on frames that are sure and not like the last ones, held by the parameters' importance
//! (arXiv 2204.02610; mr-eggplant/EATA, `eata.py`, `main.py`).
//!
//! Answers with the logits from before its step. Importance is the diagonal Fisher information of the source's own labels
//! on clean images, by windows of 64 as in `main.py`; its passes come before the stream and are not counted.

use super::competitor::{ByNorm, Competitor, Context, Passes, Setting};
use super::losses::{cosine, entropy, mean, moving_average, scaled};
use super::student::{Student, Weights};
use crate::learner::objective::{argmax, cross_entropy, softmax};
use crate::learner::{AdaptError, OptimizerConfig, TrainablePart};
use crate::model::Gradients;

/// What is chosen by the kind of classifier.
#[derive(Clone, Copy)]
pub struct Choices {
    /// Of SGD.
    pub learning_rates: ByNorm<f32>,
    /// Entropy above which a frame is ignored, as a share of the largest.
    pub entropy_margins: ByNorm<f64>,
}

/// Published, for CIFAR-10: 0.005; 0.4.
const CHOICES: Choices = Choices {
    learning_rates: ByNorm { layer_norm: 0.005, batch_norm: 0.005 },
    entropy_margins: ByNorm { layer_norm: 0.4, batch_norm: 0.4 },
};
const MOMENTUM: f32 = 0.9;
/// Largest cosine between a frame's probabilities and the running mean's; the paper's for CIFAR-10.
const COSINE_MAX: f64 = 0.4;
/// Weight of the importance; the paper's for CIFAR-10.
const FISHER_ALPHA: f32 = 1.0;
/// Images of one squared gradient; `main.py`, `batch_size`.
const FISHER_WINDOW: usize = 64;
/// Of the mean of probabilities; `eata.py`, `update_model_probs`.
const PROBABILITY_MOMENTUM: f64 = 0.9;

pub struct Eata {
    pub(super) student: Student,
    /// Importance of each parameter; empty for ETA, which is EATA without it.
    fisher: Weights,
    entropy_margin: f64,
    mean_probabilities: Option<Vec<f64>>,
}

impl Eata {
    /// # Panics
    /// Without source images.
    pub fn new(setting: &Setting) -> Result<Self, AdaptError> {
        assert!(!setting.source_images.is_empty(), "EATA measures importance on source images, and got none");
        let mut eata = Self::without_fisher(setting, CHOICES)?;
        eata.fisher = match setting.importance.get() {
            Some(importance) => importance.clone(),
            None => {
                let importance = fisher(&eata.student, setting)?;
                setting.importance.get_or_init(|| importance).clone()
            }
        };
        Ok(eata)
    }

    /// ETA.
    pub fn without_fisher(setting: &Setting, choices: Choices) -> Result<Self, AdaptError> {
        let optimizer = OptimizerConfig::Sgd { momentum: MOMENTUM };
        Ok(Self {
            student: setting.student(TrainablePart::Norms, optimizer, choices.learning_rates)?,
            fisher: Weights::new(),
            entropy_margin: setting.entropy_margin(choices.entropy_margins),
            mean_probabilities: None,
        })
    }

    /// Back to the source, with nothing remembered.
    pub fn reset(&mut self) -> Result<(), AdaptError> {
        self.mean_probabilities = None;
        self.student.reset()
    }

    /// The gradient of each frame's weighted entropy, zero where it is not selected; none if no frame is.
    fn rows(&mut self, logits: &[Vec<f64>]) -> Option<Vec<Vec<f64>>> {
        let is_selected = |logits: &Vec<f64>| {
            let is_new = |mean: &Vec<f64>| cosine(mean, &softmax(logits)).abs() < COSINE_MAX;
            entropy(logits).loss < self.entropy_margin && self.mean_probabilities.as_ref().is_none_or(is_new)
        };
        let selected: Vec<bool> = logits.iter().map(is_selected).collect();
        let probabilities: Vec<Vec<f64>> = logits.iter().zip(&selected).filter(|(_, is)| **is).map(|(z, _)| softmax(z)).collect();
        if probabilities.is_empty() {
            return None;
        }
        let count = probabilities.len() as f64;
        let mean = mean(&probabilities);
        match &mut self.mean_probabilities {
            Some(average) => moving_average(average, &mean, PROBABILITY_MOMENTUM),
            None => self.mean_probabilities = Some(mean),
        }
        let row = |(logits, is_selected): (&Vec<f64>, bool)| {
            let entropy = entropy(logits);
            let weight = if is_selected { (self.entropy_margin - entropy.loss).exp() / count } else { 0.0 };
            scaled(&entropy.logit_gradient, weight)
        };
        Some(logits.iter().zip(selected).map(row).collect())
    }

    /// Adds the gradient of alpha F (weights - source)^2 (equations 8 and 9).
    fn anchor(&self, gradients: &mut Gradients) -> Result<(), AdaptError> {
        let weights = self.student.weights()?;
        for (name, fisher) in &self.fisher {
            let moved = weights[name].iter().zip(&self.student.source()[name]).map(|(weight, source)| weight - source);
            let gradient = gradients.get_mut(name).expect("gradients and importance are of the same parameters");
            for ((gradient, fisher), moved) in gradient.iter_mut().zip(fisher).zip(moved) {
                *gradient += 2.0 * FISHER_ALPHA * fisher * moved;
            }
        }
        Ok(())
    }
}

impl Competitor for Eata {
    fn answer(&mut self, images: &[f32], context: &mut Context) -> Result<Vec<usize>, AdaptError> {
        let forward = self.student.forward(images, &mut context.passes)?;
        if let Some(rows) = self.rows(&forward.logits) {
            let mut gradients = self.student.gradients(&forward, &rows, &mut context.passes)?;
            self.anchor(&mut gradients)?;
            self.student.step(&gradients)?;
        }
        Ok(forward.logits.iter().map(argmax).collect())
    }
}

/// Mean over windows of the squared gradient of the cross entropy to the source's own labels.
fn fisher(student: &Student, setting: &Setting) -> Result<Weights, AdaptError> {
    let windows = setting.source_images.chunks(FISHER_WINDOW * setting.image().elements());
    let count = windows.len() as f32;
    let mut fisher = Weights::new();
    for images in windows {
        let forward = student.forward(images, &mut Passes::default())?;
        let share = 1.0 / forward.logits.len() as f64;
        let rows: Vec<Vec<f64>> = forward.logits.iter().map(|logits| scaled(&to_own_label(logits), share)).collect();
        for (name, gradient) in student.gradients(&forward, &rows, &mut Passes::default())? {
            let sums = fisher.entry(name).or_insert_with(|| vec![0.0; gradient.len()]);
            sums.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g * g / count);
        }
    }
    Ok(fisher)
}

fn to_own_label(logits: &[f64]) -> Vec<f64> {
    let mut target = vec![0.0; logits.len()];
    target[argmax(logits)] = 1.0;
    cross_entropy(logits, &target).logit_gradient
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::baselines::competitor::Tuning;
    use crate::lab::baselines::stage::{Stage, images};

    fn eata(stage: &Stage, entropy_margin: f64) -> Eata {
        Eata::new(&stage.setting(Tuning { entropy_margin: Some(entropy_margin), ..Tuning::default() })).expect("a method")
    }

    #[test]
    fn a_frame_above_the_entropy_margin_teaches_nothing() {
        let stage = Stage::new();
        for (margin, backward) in [(0.0, 0.0), (1.0, 4.0)] {
            let (mut eata, mut context) = (eata(&stage, margin), Context::default());
            eata.answer(&images(4, 1), &mut context).expect("answers");
            assert_eq!(context.passes.classifier_backward, backward);
            assert_eq!(&eata.student.weights().expect("weights") == eata.student.source(), backward == 0.0);
        }
    }

    #[test]
    fn a_frame_like_the_last_ones_teaches_nothing() {
        let mut eata = eata(&Stage::new(), 1.0);
        let [left, right] = [vec![3.0, 0.0, 0.0], vec![0.0, 3.0, 0.0]];
        eata.rows(std::slice::from_ref(&left)).expect("the first frame teaches");
        let rows = eata.rows(&[left, right]).expect("the new frame teaches");
        assert_eq!(rows[0], [0.0; 3]);
        assert_ne!(rows[1], [0.0; 3]);
    }

    #[test]
    fn importance_is_positive_and_pulls_towards_the_source() {
        let eata = eata(&Stage::new(), 1.0);
        assert!(eata.fisher.values().flatten().all(|value| *value >= 0.0));
        let mut moved = eata.student.source().clone();
        moved.values_mut().flatten().for_each(|value| *value += 1.0);
        eata.student.set_weights(&moved).expect("weights");
        let mut gradients: Gradients = moved.iter().map(|(name, values)| (name.clone(), vec![0.0; values.len()])).collect();
        eata.anchor(&mut gradients).expect("gradients");
        for (name, fisher) in &eata.fisher {
            for (gradient, fisher) in gradients[name].iter().zip(fisher) {
                assert!((gradient - 2.0 * fisher).abs() <= 1e-5 * fisher, "{name}: {gradient} of {fisher}");
            }
        }
    }
}
