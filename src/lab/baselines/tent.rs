//! TENT: entropy minimisation by the norms (arXiv 2006.10726; DequanWang/tent, `tent.py`).
//!
//! Answers with the logits from before its step.

use super::competitor::{ByNorm, Competitor, Context, Setting};
use super::losses::{entropy, scaled};
use super::student::Student;
use crate::learner::objective::argmax;
use crate::learner::{AdaptError, OptimizerConfig, TrainablePart};

/// Of Adam; published: 1e-3 (`cfgs/tent.yaml`, CIFAR-10-C, windows of 200).
const LEARNING_RATES: ByNorm<f32> = ByNorm { layer_norm: 1e-3, batch_norm: 1e-3 };

pub struct Tent {
    student: Student,
}

impl Tent {
    pub fn new(setting: &Setting) -> Result<Self, AdaptError> {
        Ok(Self { student: setting.student(TrainablePart::Norms, OptimizerConfig::ADAM_W, LEARNING_RATES)? })
    }
}

impl Competitor for Tent {
    fn answer(&mut self, images: &[f32], context: &mut Context) -> Result<Vec<usize>, AdaptError> {
        let forward = self.student.forward(images, &mut context.passes)?;
        let share = 1.0 / forward.logits.len() as f64;
        let rows: Vec<Vec<f64>> = forward.logits.iter().map(|logits| scaled(&entropy(logits).logit_gradient, share)).collect();
        self.student.learn(&forward, &rows, &mut context.passes)?;
        Ok(forward.logits.iter().map(argmax).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::baselines::competitor::{Passes, Tuning};
    use crate::lab::baselines::stage::{Stage, images};

    #[test]
    fn steps_lower_the_entropy_of_a_window_and_move_norms_alone() {
        for stage in [Stage::new(), Stage::with_batch_norm()] {
            steps_lower_the_entropy(&stage);
        }
    }

    fn steps_lower_the_entropy(stage: &Stage) {
        let mut tent = Tent::new(&stage.setting(Tuning { learning_rate: Some(1e-2), ..Tuning::default() })).expect("a method");
        let (images, mut context) = (images(4, 1), Context::default());
        let mean_entropy = |tent: &Tent| {
            let forward = tent.student.forward(&images, &mut Passes::default()).expect("a pass");
            forward.logits.iter().map(|logits| entropy(logits).loss).sum::<f64>() / 4.0
        };
        let before = mean_entropy(&tent);
        for _ in 0..10 {
            tent.answer(&images, &mut context).expect("answers");
        }
        assert!(mean_entropy(&tent) < before - 0.01, "{before} became {}", mean_entropy(&tent));
        assert!(tent.student.source().keys().all(|name| TrainablePart::Norms.contains(name)));
        assert_eq!(context.passes, Passes { classifier_forward: 40.0, classifier_backward: 40.0, ..Passes::default() });
    }
}
