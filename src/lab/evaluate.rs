//! Running the daemon's core over a stream without a daemon: pipeline and adapter by turns on one thread.

use crate::bundle::Bundle;
use crate::frame::WeightsVersion;
use crate::frame::{ClassIndex, Frame};
use crate::learner::{AdaptConfig, AdaptError, Adapter, source_state};
use crate::noise::NoiseSecret;
use crate::observation::{Observation, WindowReport};
use crate::pipeline::{Effect, Event, OutputShape, Pipeline, PipelineError, Start, Status};
use crate::prediction::Prediction;
use std::collections::VecDeque;

/// A run that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(transparent)]
    Adapt(#[from] AdaptError),
}

/// What a frame brought about.
#[derive(Default)]
pub struct Step {
    /// With `answer = "after"` none, or those of a whole window.
    pub predictions: Vec<Prediction>,
    /// Of windows that were judged.
    pub reports: Vec<WindowReport>,
}

/// A pipeline and its adapter. What it answers is what the daemon would answer: only threads are missing.
pub struct Session {
    pipeline: Pipeline,
    adapter: Adapter,
}

impl Session {
    /// Starts with the source weights; noise is keyed by `seed`.
    pub fn new(bundle: &Bundle, config: &AdaptConfig, seed: u64) -> Result<Self, SessionError> {
        let shape = OutputShape { top_k: 1, checkpoint_windows: u64::MAX };
        let start = Start::Source { incarnation: "lab".to_owned() };
        Ok(Self {
            pipeline: Pipeline::new(bundle, config, shape, NoiseSecret::from_seed(seed), start)?,
            adapter: Adapter::new(bundle, config, source_state(&bundle.classifier, WeightsVersion(0)))?,
        })
    }

    pub fn status(&self) -> Status {
        self.pipeline.status()
    }

    /// Feeds the next frame, and does the work that comes of it.
    pub fn frame(&mut self, frame: Frame) -> Result<Step, SessionError> {
        let mut step = Step::default();
        let event = Event::Frame { frame: Box::new(frame), is_overloaded: false };
        let mut effects = VecDeque::from(self.pipeline.apply(event)?);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Answer(prediction) => step.predictions.push(*prediction),
                Effect::Adapt(job) => {
                    if let Some(adapted) = self.adapter.run(job)? {
                        effects.extend(self.pipeline.apply(Event::Adapted(Box::new(adapted)))?);
                    }
                }
                Effect::Observe(Observation::WindowAdapted { report, .. } | Observation::WindowSkipped { report: Some(report), .. }) => {
                    step.reports.push(report);
                }
                Effect::Observe(_) | Effect::Persist(_) => {}
            }
        }
        Ok(step)
    }
}

/// Share of hits, 0..=1; not a number for none.
pub fn accuracy(hits: impl IntoIterator<Item = bool>) -> f64 {
    let (mut count, mut total) = (0u32, 0u32);
    for hit in hits {
        count += u32::from(hit);
        total += 1;
    }
    f64::from(count) / f64::from(total)
}

/// Whether `label` is the truth.
pub fn is_hit(label: ClassIndex, truth: ClassIndex) -> bool {
    label == truth
}
