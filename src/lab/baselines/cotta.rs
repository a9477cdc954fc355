//! CoTTA: a student learns from a teacher that follows it, and parts of it return to the source by chance
//! (arXiv 2203.13591; qinenergy/cotta, `cifar/cotta.py`, `cifar/cfgs/cifar10/cotta.yaml`).
//!
//! Answers with the teacher's logits from before the step, averaged over augmentations where the source is unsure.
//! Departure: the augmentations are made only where their average is used, as in its code for ImageNet.

use super::augment::{Jitter, jittered_window};
use super::competitor::{ByNorm, Competitor, Context, Setting};
use super::losses::{mean, scaled};
use super::student::{Student, Teacher};
use crate::learner::objective::{argmax, cross_entropy, softmax};
use crate::learner::{AdaptError, FrozenClassifier, OptimizerConfig, TrainablePart};
use crate::model::{ImageShape, NormStatistics};
use crate::noise::NoiseKey;

/// Of Adam; published: 1e-3 (`cotta.yaml`).
const LEARNING_RATES: ByNorm<f32> = ByNorm { layer_norm: 1e-3, batch_norm: 1e-3 };
/// Share of its way to the student that the teacher takes; 1 - `MT`.
const TEACHER_PACE: f32 = 0.001;
/// Chance of a parameter to return to its source value; `RST`.
const RESTORE_PROBABILITY: f64 = 0.01;
/// Mean confidence of the source below which augmentations are averaged; `AP`.
const SURE_CONFIDENCE: f64 = 0.92;
/// `cotta.py`, `N`.
const AUGMENTATIONS: usize = 32;

pub struct Cotta {
    student: Student,
    teacher: Teacher,
    source: FrozenClassifier,
    image: ImageShape,
}

impl Cotta {
    pub fn new(setting: &Setting) -> Result<Self, AdaptError> {
        Ok(Self {
            student: setting.student(TrainablePart::All, OptimizerConfig::ADAM_W, LEARNING_RATES)?,
            teacher: setting.teacher(TrainablePart::All, TEACHER_PACE)?,
            source: setting.source()?,
            image: setting.image(),
        })
    }

    /// The teacher's logits, averaged over augmentations where the source is unsure of the window.
    fn teach(&self, images: &[f32], context: &mut Context) -> Result<Vec<Vec<f64>>, AdaptError> {
        let source = self.source.logits_with(images, NormStatistics::Batch)?;
        context.passes.classifier_forward += source.len() as f64;
        let confidence = |logits: &Vec<f64>| softmax(logits).into_iter().fold(0.0, f64::max);
        if source.iter().map(confidence).sum::<f64>() / source.len() as f64 >= SURE_CONFIDENCE {
            return self.teacher.logits(images, &mut context.passes);
        }
        let mut views = Vec::with_capacity(AUGMENTATIONS);
        for view in 0..AUGMENTATIONS {
            let key = context.key(&format!("cotta view {view}"), 0);
            let augmented = jittered_window(images, self.image, Jitter::Cotta, key);
            views.push(self.teacher.logits(&augmented, &mut context.passes)?);
        }
        Ok((0..source.len()).map(|n| mean(&views.iter().map(|view| view[n].clone()).collect::<Vec<_>>())).collect())
    }

    /// Returns each parameter of the student to the source by chance.
    fn restore(&self, context: &Context) -> Result<(), AdaptError> {
        let mut weights = self.student.weights()?;
        for (name, values) in &mut weights {
            let key = context.key(&format!("cotta restore {name}"), 0);
            for ((value, source), element) in values.iter_mut().zip(&self.student.source()[name]).zip(0u32..) {
                if returns(key, element) {
                    *value = *source;
                }
            }
        }
        self.student.set_weights(&weights)
    }
}

impl Competitor for Cotta {
    fn answer(&mut self, images: &[f32], context: &mut Context) -> Result<Vec<usize>, AdaptError> {
        let lessons = self.teach(images, context)?;
        let forward = self.student.forward(images, &mut context.passes)?;
        let share = 1.0 / lessons.len() as f64;
        let row = |(logits, lesson): (&Vec<f64>, &Vec<f64>)| scaled(&cross_entropy(logits, &softmax(lesson)).logit_gradient, share);
        let rows: Vec<Vec<f64>> = forward.logits.iter().zip(&lessons).map(row).collect();
        self.student.learn(&forward, &rows, &mut context.passes)?;
        self.teacher.follow(&self.student)?;
        self.restore(context)?;
        Ok(lessons.iter().map(argmax).collect())
    }
}

fn returns(key: NoiseKey, element: u32) -> bool {
    f64::from(key.uniform_below(element, u32::MAX)) < RESTORE_PROBABILITY * f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::baselines::competitor::Tuning;
    use crate::lab::baselines::stage::{Stage, images};

    #[test]
    fn the_teacher_follows_slowly_and_few_parameters_of_the_student_return() {
        let stage = Stage::new();
        // A step of 0.5 is far above the rounding of f32, also when the teacher takes a thousandth of it.
        let mut cotta = Cotta::new(&stage.setting(Tuning { learning_rate: Some(0.5), ..Tuning::default() })).expect("a method");
        cotta.answer(&images(4, 1), &mut Context::default()).expect("answers");
        let (student, teacher) = (cotta.student.weights().expect("weights"), cotta.teacher.weights().expect("weights"));
        let (mut parameters, mut returned) = (0, 0);
        for (name, source) in cotta.student.source() {
            for ((source, student), teacher) in source.iter().zip(&student[name]).zip(&teacher[name]) {
                parameters += 1;
                if student == source {
                    returned += 1;
                } else {
                    let expected = TEACHER_PACE * (student - source);
                    assert!((teacher - source - expected).abs() < 2e-7 * (1.0 + source.abs()), "{name}: {teacher} from {source}");
                }
            }
        }
        let share = f64::from(returned) / f64::from(parameters);
        assert!((0.5..2.0).contains(&(share / RESTORE_PROBABILITY)), "{returned} of {parameters} returned");
    }

    #[test]
    fn augmentations_are_averaged_only_where_the_source_is_unsure() {
        let stage = Stage::new();
        let cotta = Cotta::new(&stage.setting(Tuning::default())).expect("a method");
        let mut context = Context::default();
        cotta.teach(&images(4, 1), &mut context).expect("lessons");
        // The tiny source is unsure of noise.
        assert_eq!(context.passes.classifier_forward, 4.0 * (1 + AUGMENTATIONS) as f64);
    }
}
