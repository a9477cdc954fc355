//! Events in, effects out: the whole order of work, synchronous and replayable.
//!
//! Frames are grouped by their applied index into windows of W. A frame of window w is answered by the weights that came
//! out of window w - lag, whatever the clock says: [`Pipeline::is_ready`] tells the shell to wait if those are not there
//! yet. The window is then closed by a decision (adapt, or skip with a reason), and the adapter works on it while the
//! next is answered.
//! Invariants: weights change only between windows; at the border of a window the state is whole and needs no frame, so
//! that is where checkpoints are taken. Absent on purpose: time, threads, files, randomness.

mod messages;
mod start;

pub use messages::{Adapted, Decision, Effect, Event, Job, Outcome, PipelineError, Scheduled, Start, Status, WindowFrame};
pub use start::{OutputShape, check_weights, first_state};

use crate::by_camera::ByCamera;
use crate::diffusion::Timestep;
use crate::frame::{ClassIndex, Frame, FrameMark, FrameSeq, WeightsVersion};
use crate::guard::Withheld;
use crate::learner::objective::{argmax, entropy, mean_logits, posterior, softmax, weighted};
use crate::learner::{AdaptConfig, AnswerTime, FrozenClassifier, Judge, source_state};
use crate::model::{ClassifierConfig, ParameterError, Tensors, parameters};
use crate::monitor::{self, Monitor};
use crate::noise::NoiseSecret;
use crate::observation::{Observation, SkipReason, WindowReport};
use crate::prediction::{PREDICTION_VERSION, Prediction, RankedClass, StageLatency};
use crate::recent::Recent;
use crate::state::{DurableState, LearnerState, OpenFrame, Served};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A frame that was applied.
struct Taken {
    frame: Frame,
    studied: WindowFrame,
    /// Of all frames up to this one.
    input_chain: [u8; 32],
}

/// The state at the end of a window, still without what the adapter had in hand then.
struct Border {
    /// The last window that it waits for.
    awaits: u64,
    state: DurableState,
}

/// Counts since the process started.
#[derive(Default)]
struct Tally {
    windows_adapted: u64,
    windows_skipped: u64,
    last_report: Option<WindowReport>,
}

/// The daemon's core. One thread owns it.
pub struct Pipeline {
    config: AdaptConfig,
    classifier_config: ClassifierConfig,
    labels: Vec<String>,
    top_k: usize,
    checkpoint_windows: u64,
    secret: NoiseSecret,
    source_weights: Tensors,
    source: FrozenClassifier,
    serving: FrozenClassifier,
    /// Of weights that will serve, by their version.
    prepared: BTreeMap<WeightsVersion, FrozenClassifier>,
    /// Where it speaks in the answers.
    judge: Option<Judge>,
    timesteps: Vec<Timestep>,
    /// Whether the weights that answer are the source's, bit for bit.
    is_source_serving: bool,
    /// State at the newest border whose windows are all finished; what a checkpoint holds.
    whole: DurableState,
    /// Borders that still wait for the adapter, oldest first; at most `lag` of them.
    borders: VecDeque<Border>,
    /// State after the last frame, without what the adapter is working on.
    current: DurableState,
    /// Frames of the window that is open.
    window: Vec<Taken>,
    /// Windows that the adapter has not finished, oldest first.
    awaited: VecDeque<u64>,
    /// Frames that `answer = "after"` holds until their window is adapted.
    held: Vec<Taken>,
    /// Made before a restart, not reached yet, oldest first.
    decisions: VecDeque<Scheduled>,
    monitor: Monitor,
    tally: Tally,
}

impl Pipeline {
    /// False while frame `next` needs a window that the adapter has not finished.
    pub fn is_ready(&self, next: FrameSeq) -> bool {
        if self.is_decision_due(next) && !self.awaited.is_empty() {
            return false;
        }
        let is_border = self.window.is_empty();
        let next = self.window_index();
        match self.config.answer {
            AnswerTime::After => self.awaited.is_empty(),
            AnswerTime::Before => !is_border || !self.awaited.iter().any(|&index| index + self.lag() <= next),
        }
    }

    /// Whether an operator's decision can be applied now: those made before a restart come first, and the adapter has nothing
    /// in hand, so that what comes of the decision does not depend on how fast it is.
    pub fn is_settled(&self) -> bool {
        self.awaited.is_empty() && self.decisions.is_empty()
    }

    /// Whether decisions that were made before a restart have not been reached yet.
    pub fn has_scheduled(&self) -> bool {
        !self.decisions.is_empty()
    }

    /// Applies one event.
    ///
    /// # Errors
    /// Only what is fatal.
    ///
    /// # Panics
    /// When a frame comes while [`Self::is_ready`] is false, or out of order, or a decision while [`Self::is_settled`] is false:
    /// bugs of the shell.
    pub fn apply(&mut self, event: Event) -> Result<Vec<Effect>, PipelineError> {
        let mut effects = Vec::new();
        match event {
            Event::Frame { frame, is_overloaded } => self.frame(*frame, is_overloaded, &mut effects)?,
            Event::Adapted(adapted) => self.adapted(*adapted, &mut effects)?,
            Event::Label { camera, frame_id, label } => {
                effects.push(Effect::Observe(self.monitor.labelled(camera, frame_id, label)));
            }
            Event::Decided(decision) => {
                assert!(self.is_settled(), "a decision while windows are being learned from");
                self.decide(decision, &mut effects)?;
            }
        }
        // What was decided after this frame waits for the adapter, and not for a next frame, which may never come.
        if self.awaited.is_empty() {
            self.catch_up(FrameSeq(self.current.sequence.0 + 1), &mut effects)?;
        }
        Ok(effects)
    }

    /// Whether the weights of `state`, which an operator asked for, are those of this classifier.
    ///
    /// # Errors
    /// The first tensor that does not fit.
    pub fn check_rollback(&self, state: &DurableState) -> Result<(), ParameterError> {
        parameters::check(&state.learner.weights, &self.source_weights)
    }

    /// Number of the next decision.
    pub fn next_decision(&self) -> u64 {
        self.current.control.generation + 1
    }

    /// Answers what `answer = "after"` still holds of a window that no more frames will fill: at the end of a stream.
    pub fn answer_rest(&mut self) -> Result<Vec<Effect>, PipelineError> {
        let mut effects = Vec::new();
        if self.config.answer == AnswerTime::After {
            self.held.append(&mut self.window);
            self.answer_held(&mut effects)?;
        }
        Ok(effects)
    }

    /// The state to write when an operator asks: whole, at the last finished border. What was decided since is not in it.
    pub fn state(&self) -> DurableState {
        self.whole.clone()
    }

    /// The state after the last frame, with the window that is open, for an orderly stop; while the adapter has something in hand, that
    /// of [`Self::state`].
    pub fn state_at_stop(&self) -> DurableState {
        if !self.awaited.is_empty() {
            return self.state();
        }
        let open = |taken: &Taken| OpenFrame {
            frame: taken.frame.clone(),
            is_judged: taken.studied.verdict.is_some(),
            input_chain: taken.input_chain,
            prior: taken.studied.prior.clone(),
        };
        DurableState { monitor: self.monitor.state().clone(), open: self.window.iter().map(open).collect(), ..self.current.clone() }
    }

    /// What the adapter goes on from.
    pub fn learner(&self) -> &Arc<LearnerState> {
        &self.current.learner
    }

    /// Last frame that was applied.
    pub fn sequence(&self) -> FrameSeq {
        self.current.sequence
    }

    /// Name of the stream's incarnation.
    pub fn incarnation(&self) -> &str {
        &self.current.incarnation
    }

    /// The hash chain as it would be after a frame with this number and payload hash.
    pub fn chain_with(&self, sequence: FrameSeq, mark: FrameMark) -> [u8; 32] {
        chain(&self.current.input_chain, sequence, mark)
    }

    /// The operators' last word on adaptation.
    pub fn is_adapt_enabled(&self) -> bool {
        let scheduled = self.decisions.iter().rev().find_map(|scheduled| match scheduled.decision {
            Decision::Adapt { enabled } => Some(enabled),
            _ => None,
        });
        scheduled.unwrap_or(self.current.control.adapt_enabled)
    }

    /// Whether the guard has stopped learning.
    pub fn is_frozen(&self) -> bool {
        self.current.learner.guard.is_frozen
    }

    pub fn status(&self) -> Status {
        let accuracy = self.monitor.accuracy();
        let (drift, drift_score) = self.monitor.drift();
        let report = self.tally.last_report;
        Status {
            adapt: if self.is_adapt_enabled() { "on" } else { "off" },
            decision: self.current.control.generation,
            frozen: self.is_frozen(),
            canary_harm: self.current.learner.guard.evidence.harm,
            canary_evidence: self.current.learner.guard.evidence.value(),
            weights_version: self.current.serving.version.0,
            sequence: self.current.sequence.0,
            frames: self.current.frames,
            source_accuracy: accuracy.map(|(_, source)| source),
            adapted_accuracy: accuracy.map(|(adapted, _)| adapted),
            estimated_accuracy: report.map(|report| report.estimated_accuracy),
            drift,
            drift_score,
            collapsed: self.monitor.is_collapsed(),
            diversity: self.monitor.diversity(),
            reliability: report.map(|report| report.reliability),
            weights_distance: report.map(|report| report.weights_distance),
            windows_adapted: self.tally.windows_adapted,
            windows_skipped: self.tally.windows_skipped,
        }
    }

    fn frame(&mut self, frame: Frame, is_overloaded: bool, effects: &mut Vec<Effect>) -> Result<(), PipelineError> {
        assert!(self.is_ready(frame.sequence), "frame {} before its weights", frame.sequence.0);
        assert!(frame.sequence > self.current.sequence, "frame {} after {}", frame.sequence.0, self.current.sequence.0);
        self.catch_up(frame.sequence, effects)?;
        if self.window.is_empty() && self.config.answer == AnswerTime::Before {
            self.serve_what_is_due(self.window_index())?;
        }
        let studied = self.study(&frame, is_overloaded)?;
        self.current.sequence = frame.sequence;
        self.current.frames += 1;
        let mark = frame.mark();
        self.current.input_chain = chain(&self.current.input_chain, frame.sequence, mark);
        self.current.mark = Some(mark);
        let taken = Taken { frame, studied, input_chain: self.current.input_chain };
        if self.config.answer == AnswerTime::Before {
            self.answer(&taken, effects)?;
        }
        self.window.push(taken);
        if self.window.len() == self.config.window {
            self.close_window(is_overloaded, effects)?;
        }
        Ok(())
    }

    /// What answer and adapter need of the frame; source and judge look at it once, for both lanes.
    fn study(&self, frame: &Frame, is_overloaded: bool) -> Result<WindowFrame, PipelineError> {
        let image = frame.image.planes();
        let views = self.config.views(&image, self.classifier_config.image());
        let key = self.secret.frame_key(&self.current.incarnation, frame.sequence, &frame.payload_hash);
        let source_logits = self.source.logits(&views)?;
        let verdict = match &self.judge {
            Some(judge) if !is_overloaded => Some(judge.verdicts(&image, &[key], &self.timesteps)?.remove(0)),
            _ => None,
        };
        let nothing = Recent::default();
        let prior = self.current.recent.get(&frame.camera).unwrap_or(&nothing).prior(self.labels.len());
        Ok(WindowFrame { camera: frame.camera.clone(), key, views, source_logits, verdict, prior })
    }

    fn answer(&mut self, taken: &Taken, effects: &mut Vec<Effect>) -> Result<(), PipelineError> {
        let Taken { frame, studied, .. } = taken;
        let hearing = &self.current.serving.hearing;
        let here = hearing.get(&frame.camera).copied().unwrap_or_default();
        let is_by_source = self.is_source_serving || here.is_of_source(hearing.values().copied());
        let logits: Vec<f64> = match is_by_source {
            true => mean_logits(&studied.source_logits).collect(),
            false => mean_logits(&self.serving.logits(&studied.views)?).collect(),
        };
        let probabilities = match (&studied.verdict, &self.judge) {
            (Some(verdict), Some(judge)) => {
                let scale = self.config.answer_weight(here) * judge.likelihood_scale();
                posterior(logits.into_iter(), &verdict.errors, 1.0, scale).collect()
            }
            _ => softmax(&logits),
        };
        if let Some(recent) = self.current.recent.get_mut(&frame.camera) {
            recent.see(&probabilities);
        }
        let probabilities: Vec<f64> = weighted(probabilities.into_iter(), &studied.prior, self.config.recent_weight).collect();
        let prediction = self.prediction(taken, &probabilities, is_by_source);
        let answered = monitor::Answered {
            camera: &frame.camera,
            frame_id: &frame.frame_id,
            label: prediction.label,
            source_label: prediction.source_label,
            source_entropy: entropy(softmax(&studied.source_logits[0])),
            truth: frame.label,
        };
        let seen = self.monitor.answered(&answered);
        effects.push(Effect::Observe(Observation::Answered {
            camera: frame.camera.clone(),
            label: prediction.label,
            confidence: prediction.confidence,
            entropy: prediction.entropy,
        }));
        effects.push(Effect::Answer(Box::new(prediction)));
        effects.extend(seen.into_iter().map(Effect::Observe));
        Ok(())
    }

    fn prediction(&self, taken: &Taken, probabilities: &[f64], is_by_source: bool) -> Prediction {
        let Taken { frame, studied, input_chain } = taken;
        let mut ranked: Vec<usize> = (0..probabilities.len()).collect();
        ranked.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
        let class = |k: usize| ClassIndex(u32::try_from(k).expect("classes are counted by u32"));
        let top_k = ranked.iter().take(self.top_k).map(|&k| RankedClass {
            label: class(k),
            label_name: self.labels[k].clone(),
            probability: probabilities[k] as f32,
        });
        Prediction {
            v: PREDICTION_VERSION,
            frame_id: frame.frame_id.clone(),
            camera: frame.camera.clone(),
            sequence: frame.sequence,
            capture_time_ns: frame.capture_time_ns,
            broker_time_ns: frame.broker_time_ns,
            label: class(ranked[0]),
            label_name: self.labels[ranked[0]].clone(),
            confidence: probabilities[ranked[0]] as f32,
            top_k: top_k.collect(),
            entropy: entropy(probabilities) as f32,
            weights_version: self.current.serving.version,
            source_label: class(argmax(&studied.source_logits[0])),
            adapted: !is_by_source,
            judged: studied.verdict.is_some(),
            latency: StageLatency::default(),
            input_chain: *input_chain,
        }
    }

    /// The decision on a full window, and the border behind it.
    fn close_window(&mut self, is_overloaded: bool, effects: &mut Vec<Effect>) -> Result<(), PipelineError> {
        let index = self.window_index() - 1;
        let window = std::mem::take(&mut self.window);
        self.current.recent.see(window.iter().map(|taken| taken.frame.camera.as_str()));
        let skip = match (self.current.control.adapt_enabled, is_overloaded) {
            (false, _) => Some(SkipReason::Disabled),
            (true, true) => Some(SkipReason::Overload),
            (true, false) => None,
        };
        match skip {
            None => {
                self.awaited.push_back(index);
                let frames = window.iter().map(|taken| taken.studied.clone()).collect();
                if self.config.answer == AnswerTime::After {
                    self.held = window;
                }
                effects.push(Effect::Adapt(Job::Window { index, frames }));
            }
            Some(reason) => {
                self.tally.windows_skipped += 1;
                effects.push(Effect::Observe(Observation::WindowSkipped { reason, report: None }));
                if self.config.answer == AnswerTime::After {
                    self.held = window;
                    self.answer_held(effects)?;
                }
            }
        }
        self.current.monitor = self.monitor.state().clone();
        match self.awaited.back() {
            Some(&awaits) => self.borders.push_back(Border { awaits, state: self.current.clone() }),
            None => self.complete(self.current.clone(), effects),
        }
        Ok(())
    }

    fn adapted(&mut self, mut adapted: Adapted, effects: &mut Vec<Effect>) -> Result<(), PipelineError> {
        assert_eq!(self.awaited.pop_front(), Some(adapted.index), "the adapter finishes windows in their order");
        self.take_note(&adapted, effects);
        self.prepared.extend(adapted.classifier.take().map(|classifier| (adapted.learner.version, classifier)));
        receive(&mut self.current, &adapted);
        self.borders.iter_mut().for_each(|border| receive(&mut border.state, &adapted));
        if self.config.answer == AnswerTime::After {
            self.serve_what_is_due(u64::MAX)?;
            self.answer_held(effects)?;
            // No frame was taken since the border: what serves now, and what the monitor has seen of the answers, belongs to it.
            self.current.monitor = self.monitor.state().clone();
            self.borders.iter_mut().for_each(|border| border.state = self.current.clone());
        }
        while let Some(border) = self.borders.pop_front_if(|border| border.awaits <= adapted.index) {
            self.complete(border.state, effects);
        }
        Ok(())
    }

    fn take_note(&mut self, adapted: &Adapted, effects: &mut Vec<Effect>) {
        let version = adapted.learner.version;
        if adapted.withheld != Withheld::default() {
            effects.push(Effect::Observe(Observation::Withheld(adapted.withheld)));
        }
        let observation = match &adapted.outcome {
            Outcome::Learned(report) => {
                self.tally.windows_adapted += 1;
                self.tally.last_report = Some(*report);
                Observation::WindowAdapted { version, report: *report }
            }
            Outcome::Skipped(reason, report) => {
                self.tally.windows_skipped += 1;
                self.tally.last_report = report.or(self.tally.last_report);
                Observation::WindowSkipped { reason: *reason, report: *report }
            }
        };
        effects.push(Effect::Observe(observation));
        if matches!(adapted.outcome, Outcome::Skipped(SkipReason::Harmful, _)) {
            effects.push(Effect::Observe(Observation::Frozen { version }));
        }
    }

    /// A border that waits for nothing more: remembers its state, and has it written when it is time.
    fn complete(&mut self, state: DurableState, effects: &mut Vec<Effect>) {
        let checkpoint = |state: &DurableState| state.frames / self.window_length() / self.checkpoint_windows;
        let is_due = checkpoint(&state) > checkpoint(&self.whole);
        self.whole = state;
        if is_due {
            effects.push(Effect::Persist(Box::new(self.whole.clone())));
        }
    }

    /// Lets the newest weights serve that came out of window `next` - lag or before. Nothing while adaptation is off.
    fn serve_what_is_due(&mut self, next: u64) -> Result<(), PipelineError> {
        if !self.current.control.adapt_enabled {
            return Ok(());
        }
        let lag = self.lag();
        let due = self.current.pending.iter().take_while(|served| served.window.is_none_or(|window| window + lag <= next)).count();
        let newest = self.current.pending.drain(..due).next_back();
        match newest {
            Some(served) => self.serve(served),
            None => Ok(()),
        }
    }

    fn serve(&mut self, served: Served) -> Result<(), PipelineError> {
        // Else only who is heard has changed.
        if served.version != self.current.serving.version {
            let mut newer = self.prepared.split_off(&served.version);
            self.serving = match newer.remove(&served.version) {
                Some(classifier) => classifier,
                None => FrozenClassifier::new(&self.classifier_config, &served.weights)?,
            };
            self.prepared = newer;
            self.is_source_serving = parameters::are_equal(&served.weights, &self.source_weights)?;
        }
        self.current.serving = served;
        Ok(())
    }

    fn answer_held(&mut self, effects: &mut Vec<Effect>) -> Result<(), PipelineError> {
        for taken in std::mem::take(&mut self.held) {
            self.answer(&taken, effects)?;
        }
        Ok(())
    }

    fn is_decision_due(&self, next: FrameSeq) -> bool {
        self.decisions.front().is_some_and(|scheduled| scheduled.after < next)
    }

    /// Applies what was decided before frame `next` and before a restart.
    fn catch_up(&mut self, next: FrameSeq, effects: &mut Vec<Effect>) -> Result<(), PipelineError> {
        while self.is_decision_due(next)
            && let Some(scheduled) = self.decisions.pop_front()
        {
            self.decide(scheduled.decision, effects)?;
        }
        Ok(())
    }

    /// Counts from the next frame on. At a border it is in the next checkpoint; else a restart needs to be told of it.
    fn decide(&mut self, decision: Decision, effects: &mut Vec<Effect>) -> Result<(), PipelineError> {
        self.current.control.generation += 1;
        match decision {
            Decision::Adapt { enabled } => {
                self.current.control.adapt_enabled = enabled;
                if enabled && self.is_frozen() {
                    let learner = Arc::make_mut(&mut self.current.learner);
                    learner.guard = std::mem::take(&mut learner.guard).thawed();
                    effects.push(Effect::Adapt(Job::Restore(Arc::clone(&self.current.learner))));
                }
                effects.push(Effect::Observe(Observation::AdaptationSwitched { enabled }));
            }
            Decision::Reset => {
                self.replace(source_state(&self.source_weights, self.next_version()), effects)?;
                self.current.recent = ByCamera::default();
                effects.push(Effect::Observe(Observation::WeightsReset));
            }
            Decision::RollBack(learner) => {
                let version = self.next_version();
                let guard = learner.guard.clone().thawed();
                self.replace(LearnerState { version, guard, ..Arc::unwrap_or_clone(learner) }, effects)?;
                effects.push(Effect::Observe(Observation::RolledBack { version }));
            }
        }
        if self.window.is_empty() {
            self.whole = self.current.clone();
        }
        Ok(())
    }

    /// Other weights, from the next frame on.
    fn replace(&mut self, learner: LearnerState, effects: &mut Vec<Effect>) -> Result<(), PipelineError> {
        self.current.pending.clear();
        self.serve(Served::now(&learner))?;
        self.current.learner = Arc::new(learner);
        self.tally.last_report = None;
        effects.push(Effect::Adapt(Job::Restore(Arc::clone(&self.current.learner))));
        Ok(())
    }

    fn window_length(&self) -> u64 {
        u64::try_from(self.config.window).expect("at most 1024")
    }

    fn lag(&self) -> u64 {
        u64::try_from(self.config.lag).expect("at most 8")
    }

    /// Index of the window that the next frame belongs to.
    fn window_index(&self) -> u64 {
        self.current.frames / self.window_length()
    }

    fn next_version(&self) -> WeightsVersion {
        WeightsVersion(self.current.serving.version.max(self.current.learner.version).0 + 1)
    }
}

/// Takes what came of a window into a state: the learner goes on from there, and what changes the answers waits to serve.
fn receive(state: &mut DurableState, adapted: &Adapted) {
    let learner = &adapted.learner;
    let latest = state.pending.last().unwrap_or(&state.serving);
    if learner.version != latest.version || learner.policy.hearing() != latest.hearing {
        state.pending.push(Served { window: Some(adapted.index), ..Served::now(learner) });
    }
    state.learner = Arc::clone(learner);
}

/// H = BLAKE3(H, sequence, payload hash, broker's time).
fn chain(previous: &[u8; 32], sequence: FrameSeq, mark: FrameMark) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous);
    hasher.update(&sequence.0.to_le_bytes());
    hasher.update(&mark.payload_hash);
    // The same picture under an old number is another frame.
    hasher.update(&mark.broker_time_ns.unwrap_or(-1).to_le_bytes());
    *hasher.finalize().as_bytes()
}
