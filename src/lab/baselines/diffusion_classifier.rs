//! Diffusion Classifier: the class under which the diffusion model predicts the noise best (arXiv 2303.16203;
//! diffusion-classifier/diffusion-classifier, `eval_prob_adaptive.py`).
//!
//! No classifier, no weight that changes; each frame on its own. Noise is shared by the classes, as there. Departure: one
//! draw at each configured timestep, where the paper takes hundreds over all timesteps and drops classes on the way. No draw is mirrored.

use super::competitor::{Competitor, Context, Setting};
use crate::diffusion::Timestep;
use crate::learner::{AdaptError, Judge, Verdict};
use crate::noise::NoiseKey;

pub struct DiffusionClassifier {
    judge: Judge,
    timesteps: Vec<Timestep>,
}

impl DiffusionClassifier {
    pub fn new(setting: &Setting) -> Result<Self, AdaptError> {
        Ok(Self { judge: setting.judge()?, timesteps: setting.timesteps.iter().map(|&timestep| Timestep(timestep)).collect() })
    }
}

impl Competitor for DiffusionClassifier {
    fn answer(&mut self, images: &[f32], context: &mut Context) -> Result<Vec<usize>, AdaptError> {
        let verdicts = verdicts(&self.judge, images, &self.timesteps, context)?;
        Ok(verdicts.iter().map(Verdict::label).collect())
    }
}

/// The judge's verdicts on a window, one draw at each of `timesteps`.
pub fn verdicts(judge: &Judge, images: &[f32], timesteps: &[Timestep], context: &mut Context) -> Result<Vec<Verdict>, AdaptError> {
    let config = judge.model().config();
    let frames = images.len() / config.trunk.image.elements();
    context.passes.add_draws(config, frames * timesteps.len());
    let keys: Vec<NoiseKey> = (0..frames).map(|position| context.key("judge", position)).collect();
    Ok(judge.verdicts(images, &keys, timesteps)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::baselines::competitor::{Passes, Tuning};
    use crate::lab::baselines::stage::{Stage, images};
    use crate::model::ClassConditioning;

    #[test]
    fn the_answer_is_the_class_of_the_least_error_and_each_pass_is_counted() {
        for (conditioning, passes_per_draw) in [(ClassConditioning::Readout, 1.0), (ClassConditioning::AdaLn, 3.0)] {
            let stage = Stage::with(conditioning);
            let mut method = DiffusionClassifier::new(&stage.setting(Tuning::default())).expect("a method");
            let (images, mut context) = (images(4, 1), Context::default());
            let verdicts = verdicts(&method.judge, &images, &method.timesteps, &mut Context::default()).expect("verdicts");
            let answers = method.answer(&images, &mut context).expect("answers");
            for (verdict, answer) in verdicts.iter().zip(answers) {
                let errors = &verdict.errors;
                assert!(errors.iter().all(|error| errors[answer] <= *error), "{errors:?}: {answer}");
            }
            // Four frames at two timesteps.
            assert_eq!(context.passes, Passes { diffusion_forward: 8.0 * passes_per_draw, ..Passes::default() });
        }
    }
}
