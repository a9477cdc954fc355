//! Methods side by side on the same labelled frames.

use super::baselines::{
    Competitor, Context, Cotta, DiffusionClassifier, Dusa, Eata, Lame, Memo, Norm, Passes, Rdumb, Roid, Rotta, Sar, Setting, Stretched,
    Tent, Tuning, Weights,
};
use super::corruptions::{Draws, Table};
use super::dataset::Labelled;
use super::evaluate::{Session, SessionError, accuracy};
use super::streams::Scene;
use crate::bundle::Bundle;
use crate::frame::{ClassIndex, Frame};
use crate::learner::objective::argmax;
use crate::learner::{
    AdaptConfig, AdaptError, AnswerBy, AnswerTime, ConditionConfig, FrozenClassifier, GuardConfig, ObjectiveKind, OptimizerConfig,
    TrainablePart,
};
use crate::model::{ClassifierConfig, ParameterError};
use crate::prediction::Prediction;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{LazyLock, OnceLock};
use std::time::Instant;

/// Something that answers frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Method {
    /// The source classifier, never adapted
    Source,
    /// This daemon, as configured
    Undrift,
    /// Diffusion-TTA as published: five steps of 180 draws for each frame, online (slow)
    DiffusionTta,
    /// The source on frames stretched to the full range of intensities, as the diffusion model sees them
    Stretched,
    /// The source with the window's statistics for batch norm, where the classifier has it (Nado 2020, Schneider 2020)
    Norm,
    /// Entropy minimisation by the norms (Wang 2021)
    Tent,
    /// Entropy minimisation on sure and new frames, held by importance (Niu 2022)
    Eata,
    /// Sharpness-aware entropy minimisation on sure frames (Niu 2023)
    Sar,
    /// Averaging teacher, augmentations, restoring by chance (Wang 2022)
    Cotta,
    /// Averaging teacher and a balanced memory (Yuan 2023)
    Rotta,
    /// Weighted likelihood ratio, weights pulled to the source, prior correction (Marsden 2024)
    Roid,
    /// The source's answers, smoothed among like frames (Boudiaf 2022)
    Lame,
    /// EATA without importance, starting again every 1000 windows (Press 2023)
    Rdumb,
    /// One step on each frame's augmentations, forgotten after it (Zhang 2022; slow)
    Memo,
    /// The diffusion model's own answer (Li 2023)
    DiffusionClassifier,
    /// Noise prediction as a mixture over classes, one draw for each frame (Li 2024)
    Dusa,
}

impl Method {
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Undrift => "undrift",
            Self::DiffusionTta => "diffusion-tta",
            Self::Stretched => "stretched",
            Self::Norm => "norm",
            Self::Tent => "tent",
            Self::Eata => "eata",
            Self::Sar => "sar",
            Self::Cotta => "cotta",
            Self::Rotta => "rotta",
            Self::Roid => "roid",
            Self::Lame => "lame",
            Self::Rdumb => "rdumb",
            Self::Memo => "memo",
            Self::DiffusionClassifier => "diffusion-classifier",
            Self::Dusa => "dusa",
        }
    }

    /// Whether its answers depend on the diffusion model.
    pub fn is_judged(self) -> bool {
        matches!(self, Self::Undrift | Self::DiffusionTta | Self::DiffusionClassifier | Self::Dusa)
    }

    /// Whether the method is something else than the source on such a classifier.
    pub fn suits(self, classifier: &ClassifierConfig) -> bool {
        self != Self::Norm || classifier.has_batch_norm()
    }
}

/// What a method made of the frames. Accuracies from 0 to 1.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Score {
    pub accuracy: f64,
    pub domains: BTreeMap<String, f64>,
    pub frames_per_second: f64,
    pub passes_per_frame: Passes,
}

/// What methods are compared on.
pub struct Trial<'a> {
    pub bundle: &'a Bundle,
    pub config: &'a AdaptConfig,
    /// Frames of a competitor's window; that of this daemon is configured.
    pub window: usize,
    /// In order, all of them labelled.
    pub frames: &'a [Frame],
    pub seed: u64,
    /// Clean images (N, C, H, W); EATA alone asks for them.
    pub source_images: &'a [f32],
    /// What EATA measured on them.
    pub importance: &'a OnceLock<Weights>,
    /// Of the competitors.
    pub tuning: Tuning,
    /// Seconds since a moment that stays the same: of the wall, or of this thread's work.
    pub clock: fn() -> f64,
}

/// Frames of a competitor's window where the stream does not ask for another: so that steps are as frequent as may be, and the entropies
/// and statistics of a window are still of more than a few frames.
pub const COMPETITOR_WINDOW: usize = 16;

/// What a method said of the frames of a trial, and what that cost.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Whether the answer was right, by frame.
    pub hits: Vec<bool>,
    /// Accuracy without labels as of the last window that was judged before the answer, 0..=1, by frame: not a number before the first
    /// window, empty for methods that estimate none.
    pub estimates: Vec<f64>,
    pub seconds: f64,
    pub passes: Passes,
}

impl Answers {
    /// Those of the same method on the frames that follow.
    pub fn append(&mut self, next: Self) {
        self.hits.extend(next.hits);
        self.estimates.extend(next.estimates);
        self.seconds += next.seconds;
        self.passes += next.passes;
    }

    /// The figures, for the frames that were answered.
    pub fn score<'a>(&self, frames: impl IntoIterator<Item = &'a Frame>) -> Score {
        let mut domains: BTreeMap<String, Vec<bool>> = BTreeMap::new();
        for (frame, &is_hit) in frames.into_iter().zip(&self.hits) {
            domains.entry(frame.domain.clone().unwrap_or_default()).or_default().push(is_hit);
        }
        let count = self.hits.len() as f64;
        Score {
            accuracy: accuracy(self.hits.iter().copied()),
            domains: domains.into_iter().map(|(domain, hits)| (domain, accuracy(hits))).collect(),
            frames_per_second: count / self.seconds,
            passes_per_frame: self.passes.per_frame(count),
        }
    }
}

/// The clock of a run that has the machine to itself.
pub fn wall_seconds() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
}

/// Processor time of this thread so far, as Linux counts it: a clock on the wall would count the other cells, too. Where it is not told,
/// that clock has to do.
pub fn processor_seconds() -> f64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds: Option<f64> = told.and_then(|text| text.split(' ').next()?.parse().ok());
    nanoseconds.map_or_else(wall_seconds, |nanoseconds| 1e-9 * nanoseconds)
}

/// Runs `method` over the frames of `trial`; calls `shown` after each.
///
/// # Errors
/// `NoBatchNorm` where the method does not suit the classifier; else only what is fatal to the run.
pub fn evaluate(method: Method, trial: &Trial, shown: impl Fn()) -> Result<Answers, SessionError> {
    if !method.suits(&trial.bundle.classifier_config) {
        return Err(SessionError::NoBatchNorm { method: method.name() });
    }
    let setting = Setting {
        bundle: trial.bundle,
        window: trial.window,
        timesteps: &trial.config.timesteps,
        source_images: trial.source_images,
        importance: trial.importance,
        tuning: trial.tuning,
    };
    match method {
        Method::Source => source(trial, shown),
        Method::Undrift => adapted(trial, trial.config, shown),
        Method::DiffusionTta => adapted(trial, &published(trial.config), shown),
        Method::Norm => competing(Norm::new(&setting)?, trial, shown),
        Method::Stretched => competing(Stretched::new(&setting)?, trial, shown),
        Method::Tent => competing(Tent::new(&setting)?, trial, shown),
        Method::Eata => competing(Eata::new(&setting)?, trial, shown),
        Method::Sar => competing(Sar::new(&setting)?, trial, shown),
        Method::Cotta => competing(Cotta::new(&setting)?, trial, shown),
        Method::Rotta => competing(Rotta::new(&setting)?, trial, shown),
        Method::Roid => competing(Roid::new(&setting)?, trial, shown),
        Method::Lame => competing(Lame::new(&setting)?, trial, shown),
        Method::Rdumb => competing(Rdumb::new(&setting)?, trial, shown),
        Method::Memo => competing(Memo::new(&setting)?, trial, shown),
        Method::DiffusionClassifier => competing(DiffusionClassifier::new(&setting)?, trial, shown),
        Method::Dusa => competing(Dusa::new(&setting)?, trial, shown),
    }
}

fn source(trial: &Trial, shown: impl Fn()) -> Result<Answers, SessionError> {
    let started = (trial.clock)();
    let classifier = FrozenClassifier::new(&trial.bundle.classifier_config, &trial.bundle.classifier).map_err(AdaptError::from)?;
    let mut hits = Vec::new();
    for frame in trial.frames {
        let logits = classifier.logits(&planes(std::slice::from_ref(frame))).map_err(AdaptError::from)?.remove(0);
        hits.push(is_right(frame, argmax(&logits)));
        shown();
    }
    let passes = Passes { classifier_forward: trial.frames.len() as f64, ..Passes::default() };
    Ok(Answers { hits, seconds: (trial.clock)() - started, passes, ..Answers::default() })
}

fn adapted(trial: &Trial, config: &AdaptConfig, shown: impl Fn()) -> Result<Answers, SessionError> {
    let started = (trial.clock)();
    let mut session = Session::new(trial.bundle, config, trial.seed)?;
    let (mut hits, mut estimates) = (Vec::new(), Vec::new());
    // Answers come in the order of the frames, and with `answer = "after"` by windows.
    let mut frames = trial.frames.iter();
    let mut count = |predictions: Vec<Prediction>, estimate| {
        estimates.extend(predictions.iter().map(|_| estimate));
        let pairs = predictions.into_iter().zip(&mut frames);
        hits.extend(pairs.map(|(prediction, frame)| is_right(frame, prediction.label.index())));
    };
    let mut estimate = f64::NAN;
    for frame in trial.frames {
        let step = session.frame(frame.clone())?;
        count(step.predictions, estimate);
        estimate = step.reports.last().map_or(estimate, |report| report.estimated_accuracy);
        shown();
    }
    count(session.finish()?, estimate);
    Ok(Answers { hits, estimates, seconds: (trial.clock)() - started, passes: session.passes() })
}

/// The clock starts when the method is made: what it measures on source images is no part of the stream.
fn competing(mut competitor: impl Competitor, trial: &Trial, shown: impl Fn()) -> Result<Answers, SessionError> {
    let started = (trial.clock)();
    let mut context = Context { seed: trial.seed, ..Context::default() };
    let mut hits = Vec::new();
    for window in trial.frames.chunks(trial.window) {
        let answers = competitor.answer(&planes(window), &mut context)?;
        for (frame, answer) in window.iter().zip(answers) {
            hits.push(is_right(frame, answer));
            context.frame += 1;
            shown();
        }
    }
    Ok(Answers { hits, seconds: (trial.clock)() - started, passes: context.passes, ..Answers::default() })
}

fn is_right(frame: &Frame, answer: usize) -> bool {
    frame.label.map(ClassIndex::index) == Some(answer)
}

/// Planes of all frames, (N, C, H, W).
fn planes(frames: &[Frame]) -> Vec<f32> {
    frames.iter().flat_map(|frame| frame.image.planes()).collect()
}

/// Share of `images`, each seen in `scene`, that the source gets right; 0..=1.
///
/// # Errors
/// When the classifier does not take images of this shape.
pub fn source_accuracy(
    classifier: &FrozenClassifier,
    scene: &Scene,
    images: &[Labelled],
    table: Table,
    seed: u64,
) -> Result<f64, ParameterError> {
    let planes = (0..images.len())
        .into_par_iter()
        .flat_map_iter(|index| scene.render(&images[index].image, table, &mut Draws::new(seed, index as u64)).planes());
    let logits = classifier.logits(&planes.collect::<Vec<_>>())?;
    Ok(accuracy(logits.iter().zip(images).map(|(logits, image)| argmax(logits) == image.label.index())))
}

/// Diffusion-TTA's own protocol (arXiv 2311.16102, section 3.2 and `config/`): one frame at a time, five steps, 180 draws
/// each at uniform timesteps, SGD with momentum 0.9 at 5e-3 on all weights, the frame answered after its steps, weights and
/// momentum kept from frame to frame; nothing holds the weights.
pub fn published(config: &AdaptConfig) -> AdaptConfig {
    AdaptConfig {
        window: 1,
        lag: 1,
        answer: AnswerTime::After,
        answer_by: AnswerBy::Classifier,
        objective: ObjectiveKind::Condition,
        trainable: TrainablePart::All,
        recent_weight: 0.0,
        learning_rate: 5e-3,
        gradient_norm_max: f32::MAX,
        anchor_pull: 0.0,
        anchor_pull_shut: 0.0,
        distance_max: f64::MAX,
        norm_pace: 0.0,
        norm_own_share: 0.0,
        stretched_view: false,
        mirrored: false,
        optimizer: OptimizerConfig::Sgd { momentum: 0.9 },
        guard: GuardConfig::OPEN,
        condition: ConditionConfig { steps_per_window: 5, draws_per_step: 20, accumulation_steps: 9, same_noise: false },
        ..config.clone()
    }
}
