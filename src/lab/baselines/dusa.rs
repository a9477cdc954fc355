//! DUSA: the mixture of the noises predicted under each class must be the noise (arXiv 2501.00873; BIT-DA/DUSA,
//! `classification`).
//!
//! Answers with the logits from before its step. Logits have unit length in the loss; the mixture is over the four most
//! probable classes and two drawn from the others. Departures: the diffusion model stays frozen, where the paper also
//! trains it on the stream (for its ImageNet models that adds 2 to 4 points); one window is one step, where it adds up
//! windows to 64 frames.

use super::competitor::{ByNorm, Competitor, Context, Setting};
use super::diffusion_classifier::verdicts;
use super::losses::{candidate_score, scaled};
use super::student::Student;
use crate::diffusion::Timestep;
use crate::lab::dice::Dice;
use crate::learner::objective::{argmax, softmax};
use crate::learner::{AdaptError, Judge, OptimizerConfig, TrainablePart};

/// Of Adam; published: 1e-5, for all classifiers.
const LEARNING_RATES: ByNorm<f32> = ByNorm { layer_norm: 3e-5, batch_norm: 3e-5 };
/// Of 1000; table 6.
const TIMESTEP: u32 = 100;
/// Candidates by probability and by draw.
const TOP_CLASSES: usize = 4;
const DRAWN_CLASSES: usize = 2;

pub struct Dusa {
    student: Student,
    judge: Judge,
    timestep: Timestep,
}

impl Dusa {
    pub fn new(setting: &Setting) -> Result<Self, AdaptError> {
        let judge = setting.judge()?;
        Ok(Self {
            student: setting.student(TrainablePart::All, OptimizerConfig::ADAM_W, LEARNING_RATES)?,
            timestep: Timestep(TIMESTEP * judge.schedule().num_timesteps() / 1000),
            judge,
        })
    }
}

impl Competitor for Dusa {
    fn answer(&mut self, images: &[f32], context: &mut Context) -> Result<Vec<usize>, AdaptError> {
        let verdicts = verdicts(&self.judge, images, &[self.timestep], context)?;
        let forward = self.student.forward(images, &mut context.passes)?;
        let share = 1.0 / verdicts.len() as f64;
        let row = |(position, logits): (usize, &Vec<f64>)| {
            let candidates = candidates(logits, &mut Dice::new(context.key("dusa", position)));
            scaled(&candidate_score(logits, &verdicts[position].terms, &candidates).logit_gradient, share)
        };
        let rows: Vec<Vec<f64>> = forward.logits.iter().enumerate().map(row).collect();
        self.student.learn(&forward, &rows, &mut context.passes)?;
        Ok(forward.logits.iter().map(argmax).collect())
    }
}

/// The most probable classes, then some of the others, drawn by probability without replacement.
fn candidates(logits: &[f64], dice: &mut Dice) -> Vec<usize> {
    let probabilities = softmax(logits);
    let mut others: Vec<usize> = (0..logits.len()).collect();
    others.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
    let mut chosen: Vec<usize> = others.drain(..TOP_CLASSES.min(logits.len())).collect();
    for _ in 0..DRAWN_CLASSES.min(others.len()) {
        let weights: Vec<f64> = others.iter().map(|&class| probabilities[class]).collect();
        chosen.push(others.remove(dice.choose(&weights)));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::baselines::competitor::{Passes, Tuning};
    use crate::lab::baselines::stage::{Stage, images};
    use crate::noise::NoiseKey;

    #[test]
    fn candidates_are_the_most_probable_classes_and_two_others() {
        let logits = [0.0, 5.0, 1.0, 4.0, 0.5, 3.0, 2.0, 0.2, 0.1, 0.3];
        for index in 0..50 {
            let chosen = candidates(&logits, &mut Dice::new(NoiseKey::from_seed(1, "candidates", index)));
            assert_eq!(chosen[..TOP_CLASSES], [1, 3, 5, 6]);
            let distinct: std::collections::BTreeSet<usize> = chosen.iter().copied().collect();
            assert_eq!(distinct.len(), TOP_CLASSES + DRAWN_CLASSES, "{chosen:?}");
        }
        assert_eq!(candidates(&[0.0, 1.0], &mut Dice::new(NoiseKey::from_seed(1, "candidates", 0))), [1, 0]);
    }

    #[test]
    fn steps_lower_the_error_of_the_mixture() {
        let stage = Stage::new();
        let mut dusa = Dusa::new(&stage.setting(Tuning { learning_rate: Some(1e-2), ..Tuning::default() })).expect("a method");
        let (images, mut context) = (images(4, 1), Context::default());
        let error = |dusa: &Dusa| {
            let verdicts = verdicts(&dusa.judge, &images, &[dusa.timestep], &mut Context::default()).expect("verdicts");
            let forward = dusa.student.forward(&images, &mut Passes::default()).expect("a pass");
            let losses = forward.logits.iter().zip(&verdicts).map(|(z, verdict)| candidate_score(z, &verdict.terms, &[0, 1, 2]).loss);
            losses.sum::<f64>()
        };
        let before = error(&dusa);
        for _ in 0..20 {
            // The frame does not move on, so that the draws are the same.
            dusa.answer(&images, &mut context).expect("answers");
        }
        assert!(error(&dusa) < before, "{before} became {}", error(&dusa));
        assert_eq!(context.passes.diffusion_forward, 80.0);
    }
}
