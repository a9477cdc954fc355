//! The slow lane: a window of frames in, better weights out.
//!
//! One adapter thread owns it. Invariant: what leaves is a deep copy; a step that is not finite or leaves its bounds is
//! taken back whole.

use super::classifier::{Classifier, Forward};
use super::condition;
use super::config::{AdaptConfig, ObjectiveKind};
use super::frozen::FrozenClassifier;
use super::judge::{Judge, Judgement, Verdict};
use super::lookout::Lookout;
use super::objective::{LossAndGradient, cross_entropy_into, entropy, entropy_gradient, score};
use super::optimizer::{Anchor, Optimizer, OptimizerState, StepError, StepReport, copy_by_name};
use crate::bundle::{Bundle, Statistics};
use crate::diffusion::Timestep;
use crate::frame::WeightsVersion;
use crate::guard::{GuardState, Withheld};
use crate::kernels::{self, Variable};
use crate::model::{ClassifierConfig, Gradients, NormStatistics, ParameterError, Tensors};
use crate::noise::NoiseKey;
use crate::observation::{SkipReason, WindowReport};
use crate::pipeline::{Adapted, Job, Outcome, WindowFrame};
use crate::policy::{self, Evidence, Lesson, Ruling};
use crate::state::{Good, LearnerState, PolicyState};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why the adapter cannot go on: weights or configuration that do not fit, or a bug.
#[derive(Debug, thiserror::Error)]
pub enum AdaptError {
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    #[error(transparent)]
    Step(StepError),
}

/// The classifier that learns, its judge, its optimizer, its anchor.
pub struct Adapter {
    config: AdaptConfig,
    classifier_config: ClassifierConfig,
    timesteps: Vec<Timestep>,
    classifier: Classifier,
    judge: Judge,
    optimizer: Optimizer,
    /// The source weights, with the statistics that batch norm goes back to.
    source_tensors: Tensors,
    /// Values of the trainable parameters in the source weights.
    source: BTreeMap<String, Vec<f32>>,
    source_norm: f64,
    buffers: Buffers,
    statistics: Statistics,
    version: WeightsVersion,
    policy: PolicyState,
    guard: GuardState,
    good: Option<Arc<Good>>,
    lookout: Option<Lookout>,
}

impl Adapter {
    /// # Errors
    /// Where the bundle's weights or `learner` do not fit its configuration.
    pub fn new(bundle: &Bundle, config: &AdaptConfig, learner: &LearnerState) -> Result<Self, AdaptError> {
        let source_model = Classifier::trainable(&bundle.classifier_config, &bundle.classifier, config.trainable)?;
        let source = trainable_values(&source_model)?;
        let mut adapter = Self {
            timesteps: config.timesteps.iter().map(|&t| Timestep(t)).collect(),
            classifier: source_model,
            judge: Judge::of(bundle, config)?,
            optimizer: Optimizer::new(config.optimizer),
            source_tensors: bundle.classifier.clone(),
            source_norm: norm(source.values().flatten().map(|&value| f64::from(value))),
            source,
            buffers: Buffers::default(),
            statistics: bundle.statistics.clone(),
            version: learner.version,
            policy: PolicyState::default(),
            guard: GuardState::default(),
            good: None,
            lookout: Lookout::new(bundle)?,
            classifier_config: bundle.classifier_config,
            config: config.clone(),
        };
        adapter.restore(learner)?;
        Ok(adapter)
    }

    /// Does a job; a restored state has no answer.
    pub fn run(&mut self, job: Job) -> Result<Option<Adapted>, AdaptError> {
        match job {
            Job::Restore(learner) => self.restore(&learner).map(|()| None),
            Job::Window { index, frames } => {
                let before = self.version;
                let guarded = match self.guard.is_frozen {
                    true => self.watch(&frames)?,
                    false => self.learn_guarded(index, frames)?,
                };
                let Guarded { withheld, outcome, .. } = guarded;
                let learner = Arc::new(self.state()?);
                let is_new = learner.version != before;
                let classifier = is_new.then(|| FrozenClassifier::new(&self.classifier_config, &learner.weights)).transpose()?;
                Ok(Some(Adapted { index, withheld, learner, classifier, outcome }))
            }
        }
    }

    /// Learns nothing, and says what is known of the window without labels.
    fn watch(&mut self, frames: &[WindowFrame]) -> Result<Guarded, AdaptError> {
        let mut judgement = std::mem::take(&mut self.buffers.judgement);
        self.judge_into(&mut judgement, frames);
        let outcome = self.learn(frames, &judgement.verdicts)?;
        self.buffers.judgement = judgement;
        Ok(Guarded { withheld: Withheld::default(), outcome })
    }

    /// Learns from what the guard lets through, and takes it back where the canary shows harm.
    fn learn_guarded(&mut self, index: u64, mut frames: Vec<WindowFrame>) -> Result<Guarded, AdaptError> {
        let key = frames.last().map(|frame| frame.key);
        let mut guarded = Guarded::skipped(SkipReason::Withheld);
        guarded.withheld = self.guard.admit(&mut frames, self.classifier_config.image(), &self.config.guard);
        if !frames.is_empty() {
            guarded.outcome = self.learn_and_charge(&frames)?;
        }
        let is_look_due = (index + 1).is_multiple_of(self.config.guard.canary_every_windows);
        if let Some(key) = key.filter(|_| is_look_due) {
            self.look_at_canary(key)?;
            if self.guard.evidence.value() >= self.config.guard.canary_evidence_max {
                self.take_back()?;
                guarded.outcome = Outcome::Skipped(SkipReason::Harmful, guarded.outcome.report().copied());
            }
        }
        Ok(guarded)
    }

    /// Learns, and puts what moved the weights down to the cameras.
    fn learn_and_charge(&mut self, frames: &[WindowFrame]) -> Result<Outcome, AdaptError> {
        let mut judgement = std::mem::take(&mut self.buffers.judgement);
        let mut before = std::mem::take(&mut self.buffers.before_window);
        self.judge_into(&mut judgement, frames);
        copy_values(&self.classifier, &mut before)?;
        let outcome = self.learn(frames, &judgement.verdicts)?;
        let change = if matches!(outcome, Outcome::Learned(_)) { self.distance_from(&before)? } else { 0.0 };
        self.buffers.before_window = before;
        self.buffers.judgement = judgement;
        let forgotten = self.share(frames) * self.config.anchor_pull;
        self.guard.shares.charge(frames.iter().map(|frame| frame.camera.as_str()), change, forgotten);
        Ok(outcome)
    }

    /// Takes what the canary says of the weights into the evidence; remembers them where nothing speaks for harm.
    fn look_at_canary(&mut self, key: NoiseKey) -> Result<(), AdaptError> {
        let Some(lookout) = &mut self.lookout else { return Ok(()) };
        let weights = self.classifier.parameters().snapshot()?;
        let adapted = FrozenClassifier::new(&self.classifier_config, &weights)?;
        lookout.look(&adapted, key, &self.config, &mut self.guard.evidence)?;
        if self.guard.evidence.is_none() {
            self.good = Some(Arc::new(Good { weights, optimizer: self.optimizer.state().clone(), policy: self.policy.clone() }));
        }
        Ok(())
    }

    /// Back to the last state that did no harm, and no further.
    fn take_back(&mut self) -> Result<(), AdaptError> {
        let version = WeightsVersion(self.version.0 + 1);
        let source = || source_state(&self.source_tensors, version);
        let good = self.good.clone();
        let learner = good.as_ref().map_or_else(source, |good| LearnerState {
            weights: good.weights.clone(),
            optimizer: good.optimizer.clone(),
            policy: good.policy.clone(),
            ..source()
        });
        let guard = GuardState { is_frozen: true, ..self.guard.clone() };
        self.restore(&LearnerState { guard, good, ..learner })
    }

    /// The judge's verdicts on a window, into buffers that were there before; they do not depend on the classifier. Those that the
    /// answers needed are there.
    pub fn judge_into(&self, judgement: &mut Judgement, frames: &[WindowFrame]) {
        let there = frames.iter().filter_map(|frame| frame.verdict.as_ref());
        if there.clone().count() == frames.len() {
            return judgement.copy_from(there);
        }
        let images = frames.iter().map(|frame| (frame.key, plane(frame, TAKEN)));
        self.judge.verdicts_into(judgement, images, &self.timesteps);
    }

    /// Learns from a window and the verdicts on it, unless the guard has stopped that.
    pub fn learn(&mut self, frames: &[WindowFrame], verdicts: &[Verdict]) -> Result<Outcome, AdaptError> {
        if !self.guard.is_frozen {
            self.follow(frames)?;
        }
        let mut buffers = std::mem::take(&mut self.buffers);
        let outcome = self.learn_with(&mut buffers, frames, verdicts);
        self.buffers = buffers;
        outcome
    }

    fn learn_with(&mut self, buffers: &mut Buffers, frames: &[WindowFrame], verdicts: &[Verdict]) -> Result<Outcome, AdaptError> {
        let Buffers { cameras, images, forward, source_logits, priors, lessons, logit_gradients, gradients, .. } = &mut *buffers;
        cameras.resize_with(frames.len(), String::new);
        if self.config.gate.by_camera {
            cameras.iter_mut().zip(frames).for_each(|(to, frame)| to.clone_from(&frame.camera));
        }
        images.clear();
        images.extend(frames.iter().flat_map(|frame| &frame.views));
        self.classifier.forward_into(forward, images, NormStatistics::Running)?;
        source_logits.resize_with(forward.logits.len(), Vec::new);
        source_logits.iter_mut().zip(frames.iter().flat_map(|frame| &frame.source_logits)).for_each(|(to, from)| to.clone_from(from));
        priors.resize_with(frames.len(), Vec::new);
        priors.iter_mut().zip(frames).for_each(|(to, frame)| to.clone_from(&frame.prior));
        let likelihood_scale = self.judge.likelihood_scale();
        let evidence = Evidence { cameras, logits: &forward.logits, source_logits, verdicts, priors, likelihood_scale };
        let ruling = policy::rule(&evidence, &self.config, &self.statistics, &mut self.policy);
        let mut report = self.report(&ruling, verdicts);
        if self.guard.is_frozen {
            return Ok(Outcome::Skipped(SkipReason::Frozen, Some(report)));
        }
        if self.config.objective == ObjectiveKind::Condition {
            return self.learn_as_published(buffers, frames, report);
        }
        let (share, pull) = (self.share(frames), self.share(frames) * ruling.pull);
        policy::teach(lessons, &evidence, &self.config, &mut self.policy);
        if lessons.iter().all(|lesson| lesson.weight == 0.0 && lesson.entropy_weight == 0.0) {
            let is_misfit = ruling.learn == 0.0 && ruling.retreat > 0.0;
            let reason = if is_misfit { SkipReason::Misfit } else { SkipReason::Unreliable };
            return self.go_back(pull, reason, report);
        }
        report.loss = self.window_gradient(logit_gradients, &evidence, lessons);
        self.classifier.gradients_into(gradients, forward, logit_gradients).map_err(AdaptError::Step)?;
        self.step(buffers, share, pull, report)
    }

    /// Of a window, 0..=1: where the guard has kept frames out, the others move the weights as far, forth and back, as their part of a
    /// full one.
    fn share(&self, frames: &[WindowFrame]) -> f64 {
        (frames.len() as f64 / self.config.window as f64).min(1.0)
    }

    /// Takes the window into the statistics of batch norm, frame by frame and view by view.
    fn follow(&mut self, frames: &[WindowFrame]) -> Result<(), AdaptError> {
        let AdaptConfig { norm_pace, norm_own_share, domain_distance_max, .. } = self.config;
        if norm_pace == 0.0 || !self.classifier.has_batch_norm() {
            return Ok(());
        }
        let views: Vec<f32> = frames.iter().flat_map(|frame| &frame.views).copied().collect();
        self.classifier.remember(&views, norm_pace, norm_own_share, domain_distance_max)?;
        self.version = WeightsVersion(self.version.0 + 1);
        Ok(())
    }

    /// Learns nothing, and moves towards the source weights; new weights, unless it is there already.
    fn go_back(&mut self, pull: f64, reason: SkipReason, report: WindowReport) -> Result<Outcome, AdaptError> {
        if self.pull(pull)? {
            self.version = WeightsVersion(self.version.0 + 1);
        }
        let weights_distance = self.distance()?;
        Ok(Outcome::Skipped(reason, Some(WindowReport { weights_distance, ..report })))
    }

    /// The paper's loop: several steps on the same frames, the classifier's answer renewed before each.
    fn learn_as_published(
        &mut self,
        buffers: &mut Buffers,
        frames: &[WindowFrame],
        mut report: WindowReport,
    ) -> Result<Outcome, AdaptError> {
        let keys: Vec<NoiseKey> = frames.iter().map(|frame| frame.key).collect();
        for step in 0..self.config.condition.steps_per_window {
            let Buffers { images, forward, gradients, .. } = &mut *buffers;
            if step > 0 {
                self.classifier.forward_into(forward, images, NormStatistics::Running)?;
            }
            let gradient = condition::gradient(&self.judge, forward, images, &keys, &self.config.condition, step)?;
            report.loss = gradient.loss;
            self.classifier.gradients_into(gradients, forward, &gradient.logit_gradients).map_err(AdaptError::Step)?;
            match self.step(buffers, self.share(frames), self.share(frames) * self.config.anchor_pull, report)? {
                Outcome::Learned(of_step) => report = of_step,
                skipped if step == 0 => return Ok(skipped),
                Outcome::Skipped(..) => break,
            }
        }
        Ok(Outcome::Learned(report))
    }

    /// Mean loss of a window; its gradient by the logits of each frame's views, (N V, K), goes to `rows`.
    fn window_gradient(&self, rows: &mut Vec<Vec<f64>>, evidence: &Evidence, lessons: &[Lesson]) -> f64 {
        let (count, views) = (lessons.len() as f64, evidence.views());
        let scale = self.config.judge_weight * evidence.likelihood_scale;
        let mut total = 0.0;
        rows.resize_with(evidence.logits.len(), Vec::new);
        for (n, (of_frame, lesson)) in rows.chunks_exact_mut(views).zip(lessons).enumerate() {
            let (row, others) = of_frame.split_first_mut().expect("a frame has a view");
            let mixed = evidence.mean_logits(n);
            let loss = match self.config.objective {
                ObjectiveKind::Score => {
                    let LossAndGradient { loss, logit_gradient } = score(&mixed.collect::<Vec<_>>(), &evidence.verdicts[n].terms, scale);
                    *row = logit_gradient;
                    loss
                }
                ObjectiveKind::Posterior | ObjectiveKind::Condition => cross_entropy_into(row, mixed, &lesson.target),
            };
            let Lesson { weight, probabilities, entropy_weight, .. } = lesson;
            total += (weight * loss + entropy_weight * entropy(probabilities)) / count;
            let of_entropy = entropy_gradient(probabilities);
            row.iter_mut()
                .zip(of_entropy)
                .for_each(|(g, of_entropy)| *g = (weight * *g + entropy_weight * of_entropy) / count / views as f64);
            others.iter_mut().for_each(|other| other.clone_from(row));
        }
        total
    }

    /// Takes one step along the gradients, `share` of the learning rate, and the share `pull` of the way to the anchor; takes both back if the
    /// result leaves its bounds.
    fn step(&mut self, buffers: &mut Buffers, share: f64, pull: f64, mut report: WindowReport) -> Result<Outcome, AdaptError> {
        let AdaptConfig { learning_rate, gradient_norm_max, distance_max, .. } = self.config;
        copy_values(&self.classifier, &mut buffers.before_step)?;
        buffers.optimizer.copy_from(self.optimizer.state());
        let variables = self.classifier.parameters().variables();
        let anchor = Anchor { values: &self.source, share: pull as f32 };
        let stepped = self.optimizer.step(variables, &buffers.gradients, share as f32 * learning_rate, gradient_norm_max, Some(anchor));
        match stepped {
            Ok(StepReport { gradient_norm }) => report.gradient_norm = gradient_norm,
            Err(StepError::NotFinite { .. }) => {
                report.weights_distance = self.distance()?;
                return Ok(Outcome::Skipped(SkipReason::Rejected, Some(report)));
            }
            Err(error) => return Err(AdaptError::Step(error)),
        }
        report.weights_distance = self.distance()?;
        // A distance that is not a number is out of bounds too.
        let is_in_bounds = report.weights_distance <= distance_max;
        if !is_in_bounds {
            for (name, variable) in self.classifier.parameters().variables() {
                variable.change(|values| values.copy_from_slice(&buffers.before_step[name]))?;
            }
            self.optimizer.restore(buffers.optimizer.clone());
            report.weights_distance = self.distance()?;
            return Ok(Outcome::Skipped(SkipReason::Rejected, Some(report)));
        }
        self.version = WeightsVersion(self.version.0 + 1);
        Ok(Outcome::Learned(report))
    }

    /// Moves the trainable parameters the share `pull` of their way back to the source weights; says whether any moved.
    fn pull(&self, pull: f64) -> Result<bool, AdaptError> {
        let anchor = Anchor { values: &self.source, share: pull as f32 };
        let mut is_moved = false;
        for (name, variable) in self.classifier.parameters().variables() {
            is_moved |= variable.change(|values| anchor.pull(name, values))?;
        }
        Ok(is_moved)
    }

    /// |weights - source| / |source| over the trainable parameters.
    fn distance(&self) -> Result<f64, AdaptError> {
        self.distance_from(&self.source)
    }

    /// |weights - others| / |source| over the trainable parameters.
    fn distance_from(&self, others: &BTreeMap<String, Vec<f32>>) -> Result<f64, AdaptError> {
        let mut squares = 0.0;
        for (name, variable) in self.classifier.parameters().variables() {
            squares += kernels::with_values(variable, |values| Ok(squared_distance(values, &others[name])))?;
        }
        Ok(squares.sqrt() / self.source_norm)
    }

    fn report(&self, ruling: &Ruling, verdicts: &[Verdict]) -> WindowReport {
        let best = |verdict: &Verdict| 1.0 + verdict.errors.iter().copied().fold(f64::INFINITY, f64::min);
        WindowReport {
            denoising_loss: verdicts.iter().map(best).sum::<f64>() / verdicts.len() as f64,
            draw_disagreement: ruling.draw_disagreement,
            reliability: ruling.reliability,
            estimated_accuracy: ruling.estimated_accuracy,
            ..WindowReport::default()
        }
    }

    /// A deep copy of what the next window depends on.
    pub fn state(&self) -> Result<LearnerState, AdaptError> {
        Ok(LearnerState {
            version: self.version,
            weights: self.classifier.parameters().snapshot()?,
            optimizer: self.optimizer.state().clone(),
            policy: self.policy.clone(),
            guard: self.guard.clone(),
            good: self.good.clone(),
        })
    }

    fn restore(&mut self, learner: &LearnerState) -> Result<(), AdaptError> {
        // All weights, also those that do not learn now and may have learned under another configuration.
        self.classifier = Classifier::trainable(&self.classifier_config, &learner.weights, self.config.trainable)?;
        let state = if self.is_usable(&learner.optimizer) { learner.optimizer.clone() } else { OptimizerState::default() };
        self.optimizer.restore(state);
        self.version = learner.version;
        self.policy = learner.policy.clone();
        self.guard = learner.guard.clone();
        self.good = learner.good.clone();
        Ok(())
    }

    /// Whether moments are those of this optimizer and these parameters; of others they would mean nothing.
    fn is_usable(&self, state: &OptimizerState) -> bool {
        let variables = self.classifier.parameters().variables();
        let fit = |moments: &BTreeMap<String, Vec<f32>>, is_kept: &dyn Fn(&str, &Variable) -> bool| {
            let mut kept = variables.iter().filter(|(name, variable)| is_kept(name, variable));
            moments.len() == kept.clone().count() && kept.all(|(name, v)| moments.get(name).is_some_and(|m| m.len() == v.elem_count()))
        };
        fit(&state.first_moments, &|_, _| true)
            && fit(&state.second_moments, &|name, variable| self.config.optimizer.has_second_moments(name, variable))
    }
}

/// What came of a window.
struct Guarded {
    withheld: Withheld,
    outcome: Outcome,
}

impl Guarded {
    fn skipped(reason: SkipReason) -> Self {
        Self { withheld: Withheld::default(), outcome: Outcome::Skipped(reason, None) }
    }
}

/// The frames as they were taken: the first view.
const TAKEN: usize = 0;

/// One view of a frame, (C, H, W).
fn plane(frame: &WindowFrame, view: usize) -> &[f32] {
    let elements = frame.views.len() / frame.source_logits.len();
    &frame.views[view * elements..(view + 1) * elements]
}

/// Memory that a window needs and leaves for the next.
#[derive(Default)]
struct Buffers {
    judgement: Judgement,
    /// One for each frame: whose gate counts; no name where there is one for all.
    cameras: Vec<String>,
    /// (N V, C, H, W), the views of a frame one after the other.
    images: Vec<f32>,
    forward: Forward,
    /// (N V, K), of the source classifier.
    source_logits: Vec<Vec<f64>>,
    /// (N, K), of what the cameras have shown.
    priors: Vec<Vec<f64>>,
    /// One for each frame.
    lessons: Vec<Lesson>,
    /// (N V, K)
    logit_gradients: Vec<Vec<f64>>,
    gradients: Gradients,
    /// Values of the trainable parameters before the window, and before the step.
    before_window: BTreeMap<String, Vec<f32>>,
    before_step: BTreeMap<String, Vec<f32>>,
    /// The optimizer's state before the step.
    optimizer: OptimizerState,
}

/// Values of the parameters that learn, by name.
fn trainable_values(classifier: &Classifier) -> Result<BTreeMap<String, Vec<f32>>, AdaptError> {
    let mut values = BTreeMap::new();
    copy_values(classifier, &mut values)?;
    Ok(values)
}

/// The same, to where they were copied before.
fn copy_values(classifier: &Classifier, into: &mut BTreeMap<String, Vec<f32>>) -> Result<(), AdaptError> {
    for (name, variable) in classifier.parameters().variables() {
        kernels::with_values(variable, |values| {
            copy_by_name(into, name, values);
            Ok(())
        })?;
    }
    Ok(())
}

/// Sum of (a - b)^2, in f64.
fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a - b).powi(2)).sum()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// The state that adaptation starts from: the source weights, nothing learned.
pub fn source_state(source: &Tensors, version: WeightsVersion) -> LearnerState {
    LearnerState {
        version,
        weights: source.clone(),
        optimizer: OptimizerState::default(),
        policy: PolicyState::default(),
        guard: GuardState::default(),
        good: None,
    }
}
