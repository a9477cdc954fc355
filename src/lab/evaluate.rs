//! Running the daemon's core over a stream without a daemon: pipeline and adapter by turns on one thread.

use super::baselines::Passes;
use crate::bundle::Bundle;
use crate::frame::Frame;
use crate::guard::Withheld;
use crate::learner::{AdaptConfig, AdaptError, Adapter, AnswerBy, ObjectiveKind};
use crate::model::DitConfig;
use crate::noise::NoiseSecret;
use crate::observation::{Observation, WindowReport};
use crate::pipeline::{Decision, Effect, Event, Job, Outcome, OutputShape, Pipeline, PipelineError, Start, Status};
use crate::prediction::Prediction;
use crate::state::DurableState;
use std::collections::VecDeque;

/// A run that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(transparent)]
    Adapt(#[from] AdaptError),
    #[error("method {method}: the classifier has no batch norm, so that this would be the source; leave it out")]
    NoBatchNorm { method: &'static str },
}

/// What a frame brought about.
#[derive(Default)]
pub struct Step {
    /// With `answer = "after"` none, or those of a whole window.
    pub predictions: Vec<Prediction>,
    /// Of windows that were judged.
    pub reports: Vec<WindowReport>,
    /// Frames of the window that it closed that were not learned from.
    pub withheld: Withheld,
}

/// A pipeline and its adapter. What it answers is what the daemon would answer: only threads are missing.
pub struct Session {
    pipeline: Pipeline,
    adapter: Adapter,
    config: AdaptConfig,
    diffusion_config: DitConfig,
    passes: Passes,
}

impl Session {
    /// Starts with the source weights; noise is keyed by `seed`.
    pub fn new(bundle: &Bundle, config: &AdaptConfig, seed: u64) -> Result<Self, SessionError> {
        let start = Start::Source { incarnation: "lab".to_owned(), birth: 0 };
        Self::start(bundle, config, 1, NoiseSecret::from_seed(seed), start)
    }

    /// Starts where a daemon would, with its noise; a prediction names `top_k` classes.
    pub fn start(bundle: &Bundle, config: &AdaptConfig, top_k: usize, secret: NoiseSecret, start: Start) -> Result<Self, SessionError> {
        let pipeline = Pipeline::new(bundle, config, OutputShape { top_k, checkpoint_windows: u64::MAX }, secret, start)?;
        Ok(Self {
            adapter: Adapter::new(bundle, config, pipeline.learner())?,
            pipeline,
            config: config.clone(),
            diffusion_config: bundle.diffusion_config,
            passes: Passes::default(),
        })
    }

    /// State at the border of the last window.
    pub fn state(&self) -> DurableState {
        self.pipeline.state()
    }

    /// State after the last frame, with the window that is open.
    pub fn state_at_stop(&self) -> DurableState {
        self.pipeline.state_at_stop()
    }

    pub fn status(&self) -> Status {
        self.pipeline.status()
    }

    /// Passes through the models so far.
    pub fn passes(&self) -> Passes {
        self.passes
    }

    /// Feeds the next frame, and does the work that comes of it.
    pub fn frame(&mut self, frame: Frame) -> Result<Step, SessionError> {
        self.apply(Event::Frame { frame: Box::new(frame), is_overloaded: false })
    }

    /// What an operator decides before the next frame.
    pub fn decide(&mut self, decision: Decision) -> Result<(), SessionError> {
        self.apply(Event::Decided(decision)).map(drop)
    }

    fn apply(&mut self, event: Event) -> Result<Step, SessionError> {
        let mut step = Step::default();
        let mut effects = VecDeque::from(self.pipeline.apply(event)?);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Answer(prediction) => {
                    self.count_answer(&prediction);
                    step.predictions.push(*prediction);
                }
                Effect::Adapt(job) => {
                    let frames = if let Job::Window { frames, .. } = &job { frames.len() } else { 0 };
                    if let Some(adapted) = self.adapter.run(job)? {
                        self.count_window(frames, &adapted.outcome);
                        effects.extend(self.pipeline.apply(Event::Adapted(Box::new(adapted)))?);
                    }
                }
                Effect::Observe(Observation::WindowAdapted { report, .. } | Observation::WindowSkipped { report: Some(report), .. }) => {
                    step.reports.push(report);
                }
                Effect::Observe(Observation::Withheld(withheld)) => step.withheld = withheld,
                Effect::Observe(_) | Effect::Persist(_) => {}
            }
        }
        Ok(step)
    }

    /// Answers of frames that still wait for a full window, when no more come.
    pub fn finish(&mut self) -> Result<Vec<Prediction>, SessionError> {
        let effects = self.pipeline.answer_rest()?.into_iter();
        let rest: Vec<Prediction> =
            effects.filter_map(|effect| if let Effect::Answer(prediction) = effect { Some(*prediction) } else { None }).collect();
        rest.iter().for_each(|prediction| self.count_answer(prediction));
        Ok(rest)
    }

    /// Of each frame.
    fn views(&self) -> f64 {
        if self.config.stretched_view { 2.0 } else { 1.0 }
    }

    /// The source looks at each view; the weights that answer do too, unless they are the source's.
    fn count_answer(&mut self, prediction: &Prediction) {
        self.passes.classifier_forward += self.views() * if prediction.adapted { 2.0 } else { 1.0 };
        if prediction.judged {
            self.passes.add_draws(&self.diffusion_config, self.config.timesteps.len());
        }
    }

    /// Counts the passes of a window that was judged.
    fn count_window(&mut self, frames: usize, outcome: &Outcome) {
        if self.config.answer_by == AnswerBy::Classifier {
            self.passes.add_draws(&self.diffusion_config, frames * self.config.timesteps.len());
        }
        let frames = frames as f64;
        let is_learned = matches!(outcome, Outcome::Learned(_));
        if self.config.objective == ObjectiveKind::Condition {
            let condition = &self.config.condition;
            let steps = f64::from(condition.steps_per_window);
            let draws = frames * steps * f64::from(condition.draws_per_step * condition.accumulation_steps);
            self.passes.diffusion_forward += draws;
            self.passes.diffusion_backward += draws;
            self.passes.classifier_forward += frames * steps;
            self.passes.classifier_backward += frames * steps;
        } else {
            self.passes.classifier_forward += frames * self.views();
            self.passes.classifier_backward += if is_learned { frames * self.views() } else { 0.0 };
        }
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
