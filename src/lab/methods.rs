//! Methods side by side on the same labelled frames.

use super::evaluate::{Session, SessionError};
use crate::bundle::Bundle;
use crate::frame::{ClassIndex, Frame};
use crate::learner::objective::argmax;
use crate::learner::{AdaptConfig, AnswerTime, Classifier, ConditionConfig, ObjectiveKind, OptimizerConfig, TrainablePart};
use serde::Serialize;
use std::collections::BTreeMap;
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
}

impl Method {
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Undrift => "undrift",
            Self::DiffusionTta => "diffusion-tta",
        }
    }
}

/// What a method made of the frames. Accuracies from 0 to 1.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Score {
    pub accuracy: f64,
    pub domains: BTreeMap<String, f64>,
    pub frames_per_second: f64,
}

/// Hits and frames, by domain.
#[derive(Default)]
struct Tally(BTreeMap<String, (u32, u32)>);

impl Tally {
    fn add(&mut self, domain: &str, is_hit: bool) {
        let (hits, frames) = self.0.entry(domain.to_owned()).or_default();
        *hits += u32::from(is_hit);
        *frames += 1;
    }

    fn score(self, seconds: f64) -> Score {
        let (hits, frames) = self.0.values().fold((0, 0), |(hits, frames), of| (hits + of.0, frames + of.1));
        Score {
            accuracy: f64::from(hits) / f64::from(frames),
            domains: self.0.into_iter().map(|(domain, (hits, frames))| (domain, f64::from(hits) / f64::from(frames))).collect(),
            frames_per_second: f64::from(frames) / seconds,
        }
    }
}

/// Runs `method` over `frames`, all of which are labelled; calls `shown` after each.
///
/// # Errors
/// Only what is fatal to the run.
pub fn evaluate(
    method: Method,
    bundle: &Bundle,
    config: &AdaptConfig,
    frames: &[Frame],
    seed: u64,
    shown: impl Fn(),
) -> Result<Score, SessionError> {
    let started = Instant::now();
    let tally = match method {
        Method::Source => source(bundle, frames, shown)?,
        Method::Undrift => adapted(bundle, config, frames, seed, shown)?,
        Method::DiffusionTta => adapted(bundle, &published(config), frames, seed, shown)?,
    };
    Ok(tally.score(started.elapsed().as_secs_f64()))
}

fn source(bundle: &Bundle, frames: &[Frame], shown: impl Fn()) -> Result<Tally, SessionError> {
    let classifier = Classifier::frozen(&bundle.classifier_config, bundle.classifier.clone()).map_err(crate::learner::AdaptError::from)?;
    let mut tally = Tally::default();
    for frame in frames {
        let mut planes = vec![0f32; frame.image.pixels().len()];
        frame.image.write_planes(&mut planes);
        let logits = classifier.logits(&planes).map_err(crate::learner::AdaptError::from)?.remove(0);
        let is_hit = frame.label.map(ClassIndex::index) == Some(argmax(&logits));
        tally.add(frame.domain.as_deref().unwrap_or_default(), is_hit);
        shown();
    }
    Ok(tally)
}

fn adapted(bundle: &Bundle, config: &AdaptConfig, frames: &[Frame], seed: u64, shown: impl Fn()) -> Result<Tally, SessionError> {
    let mut session = Session::new(bundle, config, seed)?;
    let mut tally = Tally::default();
    let truths: BTreeMap<u64, &Frame> = frames.iter().map(|frame| (frame.sequence.0, frame)).collect();
    let mut count = |predictions: Vec<crate::prediction::Prediction>| {
        for prediction in predictions {
            let frame = truths[&prediction.sequence.0];
            tally.add(frame.domain.as_deref().unwrap_or_default(), frame.label == Some(prediction.label));
        }
    };
    for frame in frames {
        count(session.frame(frame.clone())?.predictions);
        shown();
    }
    Ok(tally)
}

/// Diffusion-TTA's own protocol (arXiv 2311.16102, section 3.2 and `config/`): one frame at a time, five steps, 180 draws
/// each at uniform timesteps, SGD with momentum 0.9 at 5e-3 on all weights, the frame answered after its steps, weights and
/// momentum kept from frame to frame; nothing holds the weights.
pub fn published(config: &AdaptConfig) -> AdaptConfig {
    AdaptConfig {
        window: 1,
        lag: 1,
        answer: AnswerTime::After,
        objective: ObjectiveKind::Condition,
        trainable: TrainablePart::All,
        learning_rate: 5e-3,
        gradient_norm_max: f32::MAX,
        anchor_pull: 0.0,
        anchor_pull_shut: 0.0,
        distance_max: f64::MAX,
        optimizer: OptimizerConfig::Sgd { momentum: 0.9 },
        condition: ConditionConfig { steps_per_window: 5, draws_per_step: 20, accumulation_steps: 9, same_noise: false },
        ..config.clone()
    }
}
