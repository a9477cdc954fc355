//! RoTTA: a student learns a teacher's answers on a balanced memory of the stream (arXiv 2303.13899; BIT-DA/RoTTA,
//! `core/adapter/rotta.py`; constants: mariodoebler/test-time-adaptation, `classification/conf.py`,
//! `classification/cfgs/cifar10_c/rotta.yaml`).
//!
//! Answers with the teacher's logits from before the step. Batch norm, where the model has it, is the paper's robust one:
//! student and teacher each serve with statistics that follow those of the memory.

use super::augment::{Jitter, jittered_window};
use super::competitor::{ByNorm, Competitor, Context, Setting};
use super::losses::scaled;
use super::memory::Memory;
use super::student::{Student, Teacher};
use crate::learner::objective::{argmax, cross_entropy, entropy, softmax};
use crate::learner::{AdaptError, OptimizerConfig, TrainablePart};
use crate::model::{ImageShape, NormStatistics};

/// Of Adam; published: 1e-3 (`rotta.yaml`).
const LEARNING_RATES: ByNorm<f32> = ByNorm { layer_norm: 1e-3, batch_norm: 1e-3 };
/// Share of its way to the student that the teacher takes; `NU`.
const TEACHER_PACE: f32 = 0.001;
/// Share of their way to the memory's that statistics of batch norm take at each step; `ALPHA`.
const STATISTICS_PACE: f32 = 0.05;
/// Frames; `MEMORY_SIZE`.
const MEMORY_FRAMES: usize = 64;
/// Frames from one step to the next; `UPDATE_FREQUENCY`.
const STEP_FRAMES: u64 = 64;
/// In a step; answers are given with what was absorbed.
const STATISTICS: NormStatistics = NormStatistics::Mixed { share: STATISTICS_PACE };

pub struct Rotta {
    student: Student,
    teacher: Teacher,
    memory: Memory,
    image: ImageShape,
    /// Frames seen.
    frames: u64,
}

impl Rotta {
    pub fn new(setting: &Setting) -> Result<Self, AdaptError> {
        let student = setting.student(TrainablePart::Norms, OptimizerConfig::ADAM_W, LEARNING_RATES)?;
        Ok(Self {
            student: student.with_statistics(STATISTICS),
            teacher: setting.teacher(TrainablePart::Norms, TEACHER_PACE)?,
            memory: Memory::new(MEMORY_FRAMES, setting.classes()),
            image: setting.image(),
            frames: 0,
        })
    }

    /// One step on the memory: the student sees it augmented, the teacher as it is.
    fn step(&mut self, context: &mut Context) -> Result<(), AdaptError> {
        let images: Vec<f32> = self.memory.items().flat_map(|item| item.image.iter().copied()).collect();
        let augmented = jittered_window(&images, self.image, Jitter::Cotta, context.key("rotta", 0));
        let lessons = self.teacher.logits_with(&images, STATISTICS, &mut context.passes)?;
        let forward = self.student.forward(&augmented, &mut context.passes)?;
        let shares = self.memory.items().map(|item| self.memory.timeliness(item) / lessons.len() as f64);
        let row = |((logits, lesson), share): ((&Vec<f64>, &Vec<f64>), f64)| {
            scaled(&cross_entropy(logits, &softmax(lesson)).logit_gradient, share)
        };
        let rows: Vec<Vec<f64>> = forward.logits.iter().zip(&lessons).zip(shares).map(row).collect();
        // Statistics first: they are those that the weights from before the step saw.
        self.teacher.absorb(&images, STATISTICS_PACE)?;
        self.student.absorb(&augmented, STATISTICS_PACE)?;
        self.student.learn(&forward, &rows, &mut context.passes)?;
        self.teacher.follow(&self.student)
    }
}

impl Competitor for Rotta {
    fn answer(&mut self, images: &[f32], context: &mut Context) -> Result<Vec<usize>, AdaptError> {
        let logits = self.teacher.logits_with(images, NormStatistics::Running, &mut context.passes)?;
        let answers: Vec<usize> = logits.iter().map(argmax).collect();
        for ((image, logits), &answer) in images.chunks_exact(self.image.elements()).zip(&logits).zip(&answers) {
            self.memory.add(image.to_vec(), answer, entropy(softmax(logits)));
            self.frames += 1;
            if self.frames.is_multiple_of(STEP_FRAMES) {
                self.step(context)?;
            }
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::baselines::competitor::Tuning;
    use crate::lab::baselines::stage::{Stage, images};

    #[test]
    fn it_learns_from_its_memory_every_64_frames_and_the_teacher_follows() {
        let stage = Stage::new();
        let mut rotta = Rotta::new(&stage.setting(Tuning { learning_rate: Some(0.5), ..Tuning::default() })).expect("a method");
        let mut context = Context::default();
        let mut answer = |rotta: &mut Rotta, count, seed| rotta.answer(&images(count, seed), &mut context).expect("answers");
        answer(&mut rotta, 63, 1);
        assert_eq!(&rotta.student.weights().expect("weights"), rotta.student.source());
        answer(&mut rotta, 1, 2);
        let (student, teacher) = (rotta.student.weights().expect("weights"), rotta.teacher.weights().expect("weights"));
        assert_ne!(&student, rotta.student.source());
        for (name, source) in rotta.student.source() {
            for ((source, student), teacher) in source.iter().zip(&student[name]).zip(&teacher[name]) {
                let expected = TEACHER_PACE * (student - source);
                assert!((teacher - source - expected).abs() < 2e-7 * (1.0 + source.abs()), "{name}: {teacher} from {source}");
            }
        }
        let remembered = rotta.memory.items().count() as f64;
        assert_eq!(context.passes.classifier_forward, 64.0 + 2.0 * remembered);
    }

    #[test]
    fn the_statistics_of_batch_norm_change_with_its_steps_alone() {
        let stage = Stage::with_batch_norm();
        let mut rotta = Rotta::new(&stage.setting(Tuning { learning_rate: Some(0.0), ..Tuning::default() })).expect("a method");
        let (probe, mut context) = (images(4, 3), Context::default());
        let logits = |rotta: &Rotta, context: &mut Context| {
            rotta.teacher.logits_with(&probe, NormStatistics::Running, &mut context.passes).expect("a pass")
        };
        let source = logits(&rotta, &mut context);
        rotta.answer(&images(63, 1), &mut context).expect("answers");
        assert_eq!(logits(&rotta, &mut context), source);
        rotta.answer(&images(1, 2), &mut context).expect("answers");
        assert_ne!(logits(&rotta, &mut context), source);
        assert_eq!(&rotta.student.weights().expect("weights"), rotta.student.source());
    }
}
