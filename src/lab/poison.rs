//! A hostile camera among benign ones: what it can do to what is learned, and what the guard makes of it.
//!
//! The attacker has the bundle, and knows the method and its configuration; he knows neither the noise key nor the weights of the moment.
//! Both attacks are built on frames that source and diffusion model get wrong together, with confidence, as only those are learned
//! wrongly. `Repeated` sends a few of them again and again (after "R.I.P.", arXiv 2412.01154). `Accumulated` chooses windows one after
//! the other on a copy of the classifier that he adapts himself, each the one of several that does most harm on top of those before
//! (after TePA, arXiv 2308.08505, with chosen instead of optimised frames).
//!
//! Harm is what the weights lose against the source on an exam: labelled images that neither the stream nor the bundle's canary shows.

use super::corruptions::Draws;
use super::evaluate::{Session, SessionError, accuracy};
use crate::bundle::Bundle;
use crate::frame::{Frame, FrameSeq, Image};
use crate::guard::canary::Canary;
use crate::learner::objective::{argmax, mean_logits};
use crate::learner::{AdaptConfig, AdaptError, FrozenClassifier, GuardConfig};
use crate::model::Tensors;
use crate::noise::NoiseSecret;
use crate::pipeline::Start;
use crate::state::DurableState;
use rayon::prelude::*;
use serde::Serialize;

/// What a hostile camera sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Attack {
    Repeated,
    Accumulated,
}

/// Frames that are repeated.
const REPEATED: usize = 8;
/// Windows that are accumulated, and candidates for each.
pub const WINDOWS: usize = 24;
const CANDIDATES: usize = 6;
/// Images of the attacker's own exam.
const ATTACKER_EXAM: usize = 100;
/// Benign cameras, which send in turn.
const CAMERAS: u64 = 9;
/// Frames between two exams.
const EXAM_EVERY: usize = 160;

/// Labelled images that weights are examined on.
pub struct Exam<'a> {
    bundle: &'a Bundle,
    labels: &'a [usize],
    /// (N V, C, H, W)
    views: Vec<f32>,
    source_accuracy: f64,
}

impl<'a> Exam<'a> {
    pub fn new(bundle: &'a Bundle, config: &AdaptConfig, images: &'a Canary) -> Result<Self, SessionError> {
        let views = (0..images.labels.len()).flat_map(|n| config.views(images.image(n), bundle.classifier_config.image())).collect();
        let mut exam = Self { bundle, labels: &images.labels, views, source_accuracy: 0.0 };
        exam.source_accuracy = exam.accuracy(&bundle.classifier, exam.labels.len())?;
        Ok(exam)
    }

    /// Of the first `count` images, 0..=1.
    fn accuracy(&self, weights: &Tensors, count: usize) -> Result<f64, SessionError> {
        let classifier = FrozenClassifier::new(&self.bundle.classifier_config, weights).map_err(AdaptError::from)?;
        let elements = self.views.len() / self.labels.len();
        let logits = classifier.logits(&self.views[..count * elements]).map_err(AdaptError::from)?;
        let views = logits.len() / count;
        Ok(accuracy(logits.chunks_exact(views).zip(self.labels).map(|(views, &label)| argmax(mean_logits(views)) == label)))
    }
}

/// The images that a hostile camera sends, in order, over and over. `pool` is what the attacker has to choose from, with its labels;
/// `shown` hears of each window that was accumulated.
///
/// # Errors
/// Only what is fatal to a run.
pub fn craft(
    attack: Attack,
    pool: &[Frame],
    exam: &Exam,
    config: &AdaptConfig,
    seed: u64,
    shown: impl Fn(),
) -> Result<Vec<Image>, SessionError> {
    let wrong = misjudged(pool, exam.bundle, config, seed)?;
    match attack {
        Attack::Repeated => Ok(wrong.iter().take(REPEATED).map(|frame| frame.image.clone()).collect()),
        Attack::Accumulated => accumulate(&wrong, exam, config, seed, shown),
    }
}

/// Frames that source and diffusion model together get wrong, the most confident first.
fn misjudged(pool: &[Frame], bundle: &Bundle, config: &AdaptConfig, seed: u64) -> Result<Vec<Frame>, SessionError> {
    let mut session = Session::new(bundle, &AdaptConfig { enabled: false, ..config.clone() }, seed)?;
    let mut wrong = Vec::new();
    for frame in pool {
        for prediction in session.frame(frame.clone())?.predictions {
            if frame.label.is_some_and(|label| label != prediction.label) {
                wrong.push((prediction.confidence, frame.clone()));
            }
        }
    }
    wrong.sort_by(|a, b| b.0.total_cmp(&a.0));
    Ok(wrong.into_iter().map(|(_, frame)| frame).collect())
}

/// Window by window the candidate that does most harm to a copy that nothing guards.
fn accumulate(wrong: &[Frame], exam: &Exam, config: &AdaptConfig, seed: u64, shown: impl Fn()) -> Result<Vec<Image>, SessionError> {
    let config = AdaptConfig { guard: GuardConfig::OPEN, ..config.clone() };
    let mut draws = Draws::new(seed, 0);
    let (mut chosen, mut state): (Vec<Image>, Option<Box<DurableState>>) = (Vec::new(), None);
    for _ in 0..WINDOWS {
        let candidate = |_| (0..config.window).map(|_| &wrong[draws.below(wrong.len())]).collect::<Vec<&Frame>>();
        let candidates: Vec<Vec<&Frame>> = (0..CANDIDATES).map(candidate).collect();
        let tried = candidates.par_iter().map(|frames| {
            let start = match &state {
                Some(state) => Start::Resume { state: state.clone(), decisions: Vec::new() },
                None => Start::Source { incarnation: "attacker".to_owned(), birth: 0 },
            };
            let mut copy = Session::start(exam.bundle, &config, 1, NoiseSecret::from_seed(seed), start)?;
            for &frame in frames {
                let sequence = FrameSeq(copy.status().sequence + 1);
                copy.frame(Frame { sequence, ..frame.clone() })?;
            }
            let after = Box::new(copy.state());
            Ok((exam.accuracy(&after.learner.weights, ATTACKER_EXAM.min(exam.labels.len()))?, after))
        });
        let tried = tried.collect::<Result<Vec<_>, SessionError>>()?.into_iter().zip(candidates);
        let Some(((_, after), frames)) = tried.min_by(|((a, _), _), ((b, _), _)| a.total_cmp(b)) else { break };
        state = Some(after);
        chosen.extend(frames.into_iter().map(|frame| frame.image.clone()));
        shown();
    }
    Ok(chosen)
}

/// A stretch of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Before,
    Under,
    After,
}

/// What a stretch came to; accuracies and differences from -1 to 1.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Stretch {
    pub phase: Phase,
    /// What the weights get right on the exam more than the source, at the worst exam of the stretch.
    pub worst_gain: f64,
    /// The same at its end.
    pub last_gain: f64,
    /// What was answered rightly of the benign frames, less what the source would have.
    pub answers_gain: f64,
}

/// What came of an attack.
#[derive(Clone, Debug, Serialize)]
pub struct Course {
    pub stretches: Vec<Stretch>,
    /// Share of all frames, 0..=1.
    pub withheld: f64,
    /// The frame after which what was learned was taken back.
    pub frozen_after: Option<u64>,
}

/// Plays benign `frames` to a session, a third of them in each phase; under the attack, the share `hostile` of the frames is the hostile
/// camera's, which come in addition.
///
/// # Errors
/// Only what is fatal to a run.
pub fn play(
    frames: &[Frame],
    poison: &[Image],
    hostile: f64,
    exam: &Exam,
    config: &AdaptConfig,
    seed: u64,
    shown: impl Fn(),
) -> Result<Course, SessionError> {
    let mut session = Session::new(exam.bundle, config, seed)?;
    let (mut course, mut withheld) = (Course { stretches: Vec::new(), withheld: 0.0, frozen_after: None }, 0u32);
    let (mut sequence, mut sent, mut owed) = (0u64, 0usize, 0.0);
    let third = frames.len() / 3;
    for (phase, benign) in [Phase::Before, Phase::Under, Phase::After].into_iter().zip(frames.chunks_exact(third.max(1))) {
        let (mut gains, mut gain, mut answered) = (Vec::new(), 0.0, 0.0);
        for (index, frame) in benign.iter().enumerate() {
            // Hostile frames that go before this one.
            owed += if phase == Phase::Under { hostile / (1.0 - hostile) } else { 0.0 };
            let mut batch = vec![Frame { camera: format!("camera{}", index as u64 % CAMERAS), ..frame.clone() }];
            while owed >= 1.0 {
                owed -= 1.0;
                let image = poison[sent % poison.len()].clone();
                sent += 1;
                batch.insert(0, Frame { camera: "hostile".to_owned(), label: None, payload_hash: image.hash(), image, ..frame.clone() });
            }
            for frame in batch {
                sequence += 1;
                let label = frame.label;
                let step = session.frame(Frame { sequence: FrameSeq(sequence), ..frame })?;
                withheld += step.withheld.repeated + step.withheld.over_share;
                for prediction in step.predictions.iter().filter(|_| label.is_some()) {
                    answered += 1.0;
                    gain +=
                        f64::from(u8::from(Some(prediction.label) == label)) - f64::from(u8::from(Some(prediction.source_label) == label));
                }
                if session.status().frozen {
                    course.frozen_after.get_or_insert(sequence);
                }
            }
            if (index + 1).is_multiple_of(EXAM_EVERY) || index + 1 == benign.len() {
                gains.push(exam.accuracy(&session.state().learner.weights, exam.labels.len())? - exam.source_accuracy);
            }
            shown();
        }
        let worst_gain = gains.iter().copied().fold(f64::INFINITY, f64::min);
        let last_gain = gains.last().copied().unwrap_or_default();
        course.stretches.push(Stretch { phase, worst_gain, last_gain, answers_gain: gain / answered });
    }
    course.withheld = f64::from(withheld) / sequence as f64;
    Ok(course)
}
