//! The device thread: it owns the pipeline, and it alone touches a model that answers.
//!
//! The path of a frame is [`Engine::process`]: decode, predict, reply. Everything else that happens to the daemon comes
//! through the same inbox as an order and is applied between two frames.
//! Invariants: nothing here waits for NATS, and for a disk only where a decision is written down and the frame in hand noted; a
//! frame is taken only when the pipeline has the weights that are to answer it and, with a stream, when the outbox has room for the
//! answer. A checkpoint is asked for after the answers of its frames were pushed, so that it can be held back until they are stored.

use super::decision_log::{Action, Decided, DecisionLog};
use super::in_hand::InHand;
use super::queue::{Answer, Arrival, Asker, AtLimit, Inbox, Input, Label, Order, Outbox, Outgoing, Refusal};
use super::replay::{Answered, PredictionId, Replayed};
use super::status::Shared;
use super::store::Generation;
use super::store_thread::{Reply, Save, StoreOrder, StoreQueue};
use super::telemetry::{self, Telemetry};
use crate::config::Config;
use crate::decode::{self, Limits, Message, Reject};
use crate::frame::FrameSeq;
use crate::kernels::RightOfWay;
use crate::model::ImageShape;
use crate::observation::Observation;
use crate::pipeline::{Decision, Effect, Event, Job, Pipeline, PipelineError};
use crate::prediction::{Prediction, StageLatency};
use crate::proof::{HistoryId, PROOF_HEADER, Proof};
use crate::state::DurableState;
use crate::wire::{self, Command, ControlError, EventRecord, Format, Lane, Subjects, Terms};
use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long a stopping daemon waits for the adapter.
pub const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Commands that change something, in how long: each costs frames a wait for the disk.
const COMMANDS_MAX: usize = 32;
const COMMANDS_PERIOD: Duration = Duration::from_secs(10);

/// The queues and facts that the device thread shares with the other threads.
#[derive(Clone)]
pub struct Lines {
    pub inbox: Arc<Inbox>,
    pub outbox: Arc<Outbox>,
    pub store: Arc<StoreQueue>,
    pub shared: Arc<Shared>,
    /// A frame's, before what is learned.
    pub way: Arc<RightOfWay>,
}

/// What turns messages into frames and predictions into messages.
pub struct Codec {
    pub limits: Limits,
    pub shape: ImageShape,
    pub classes: usize,
    pub format: Format,
    pub subjects: Subjects,
    /// First part of a prediction's id: names the incarnation of the stream.
    pub id_prefix: String,
    pub at_limit: AtLimit,
}

impl Codec {
    pub fn new(config: &Config, classes: usize, subjects: Subjects, id_prefix: String, at_limit: AtLimit) -> Self {
        Self {
            limits: config.limits.of_decoder(),
            shape: config.bundle.classifier_config(classes).image(),
            classes,
            format: config.output.format,
            subjects,
            id_prefix,
            at_limit,
        }
    }
}

/// The device thread's state.
pub struct Engine {
    pipeline: Pipeline,
    codec: Codec,
    lines: Lines,
    /// The adapter takes windows in order; the pipeline hands out at most `lag` + 1 before it wants one back.
    jobs: Sender<Job>,
    telemetry: Telemetry,
    /// Stage times of frames that are not answered yet, by sequence: more than one only with `answer = "after"`.
    latencies: BTreeMap<u64, StageLatency>,
    /// Windows that the adapter has and has not brought back.
    windows_out: usize,
    history: History,
    /// Decisions that wait until they can be applied, oldest first.
    deciding: VecDeque<(Decision, Action, Asker)>,
    /// When the last commands came that change something; at most [`COMMANDS_MAX`].
    commanded: VecDeque<Instant>,
}

/// What happened before the session, and is added to by it.
pub struct History {
    pub id: HistoryId,
    pub answered: Answered,
    /// Last frame that is answered already and that the stream still has.
    pub replayed_until: u64,
    pub log: DecisionLog,
    /// Only with a stream, where a frame comes again.
    pub in_hand: Option<InHand>,
}

/// What a session leaves.
pub struct Finished {
    /// To go on from.
    pub state: DurableState,
    pub log: DecisionLog,
    /// Whether it ended because the stream holds other frames than those that were answered.
    pub is_rewritten: bool,
}

impl Engine {
    pub fn new(pipeline: Pipeline, codec: Codec, lines: Lines, jobs: Sender<Job>, telemetry: Telemetry, history: History) -> Self {
        let status = pipeline.status();
        telemetry::show_status(&status);
        lines.shared.set_pipeline(status);
        Self {
            pipeline,
            codec,
            lines,
            jobs,
            telemetry,
            latencies: BTreeMap::new(),
            windows_out: 0,
            history,
            deciding: VecDeque::new(),
            commanded: VecDeque::new(),
        }
    }

    /// Works until it is told to stop, or the stream turns out to be another; then a last checkpoint is asked for.
    ///
    /// # Errors
    /// Only what the process cannot go on from.
    pub fn run(mut self) -> Result<Finished, PipelineError> {
        let lines = self.lines.clone();
        loop {
            match lines.inbox.next(|next| self.accepts(next)) {
                Input::Frame { arrival, is_overloaded } => {
                    lines.shared.take_frame();
                    self.history.in_hand.iter().for_each(|in_hand| in_hand.take(arrival.sequence));
                    // Where others wait behind it, all cores are to be at work, whatever at.
                    let way = (!lines.inbox.has_frames()).then(|| lines.way.take());
                    let flow = self.process(&arrival, is_overloaded)?;
                    drop(way);
                    self.history.in_hand.iter_mut().for_each(|in_hand| in_hand.put_down(arrival.sequence));
                    lines.shared.finish_frame();
                    match flow {
                        Flow::GoOn => {}
                        Flow::Rewritten => return self.finish(true),
                    }
                }
                Input::Label(Label { camera, label }) => {
                    self.apply(Event::Label { camera, frame_id: label.frame_id, label: label.label })?;
                }
                Input::Order(Order::Stop) => return self.finish(false),
                Input::Order(order) => self.obey(order)?,
            }
            self.decide()?;
        }
    }

    fn accepts(&self, next: FrameSeq) -> bool {
        // A decision counts from the next frame on, so that frame waits for it; but what happened before a restart comes first.
        let is_decided = self.deciding.is_empty() || self.is_replaying();
        let has_room = self.codec.at_limit == AtLimit::ShedOldest || self.lines.outbox.has_room();
        let has_weights = is_decided && self.pipeline.is_ready(next);
        self.lines.shared.set_held_by(match (has_room, has_weights) {
            (false, _) => Lane::Publisher,
            (true, false) => Lane::Adapter,
            (true, true) => Lane::Device,
        });
        has_room && has_weights
    }

    /// Whether frames are applied again, or decisions to be made again, that others have seen the effect of.
    fn is_replaying(&self) -> bool {
        // With `answer = "after"` a frame is applied before it is answered, and a decision in between changes its answer.
        let unanswered = self.latencies.keys().next().copied().unwrap_or(self.pipeline.sequence().0 + 1);
        self.pipeline.has_scheduled() || unanswered <= self.history.replayed_until
    }

    /// The path of a frame.
    fn process(&mut self, arrival: &Arrival, is_overloaded: bool) -> Result<Flow, PipelineError> {
        let started = Instant::now();
        let queue = started - arrival.received;
        let headers = headers(&arrival.message);
        let message = Message {
            subject_camera: arrival.message.subject.rsplit('.').next().unwrap_or_default(),
            headers: &headers,
            payload: &arrival.message.payload,
            sequence: FrameSeq(arrival.sequence),
            broker_time_ns: arrival.broker_time_ns,
        };
        if self.is_passed_over(FrameSeq(arrival.sequence)) {
            self.reject(&message, &Reject::Deadly);
            return Ok(Flow::GoOn);
        }
        let decoded = decode::decode(&message, &self.codec.limits, self.codec.shape, self.codec.classes);
        let decode = started.elapsed();
        telemetry::STAGE_DURATION.record_by("queue", queue.as_secs_f64());
        telemetry::STAGE_DURATION.record_by("decode", decode.as_secs_f64());
        let frame = match decoded {
            Ok(frame) => frame,
            Err(reject) => {
                self.reject(&message, &reject);
                return Ok(Flow::GoOn);
            }
        };
        let input_chain = self.pipeline.chain_with(frame.sequence, frame.mark());
        if self.history.answered.contradicts(arrival.sequence, self.history.id, &input_chain) {
            return Ok(Flow::Rewritten);
        }
        self.telemetry.received(&frame.camera);
        self.latencies
            .insert(arrival.sequence, StageLatency { queue_ms: milliseconds(queue), decode_ms: milliseconds(decode), predict_ms: 0.0 });
        let decoded_at = Instant::now();
        let effects = self.pipeline.apply(Event::Frame { frame: Box::new(frame), is_overloaded })?;
        let predict = decoded_at.elapsed();
        telemetry::STAGE_DURATION.record_by("predict", predict.as_secs_f64());
        if let Some(latency) = self.latencies.get_mut(&arrival.sequence) {
            latency.predict_ms = milliseconds(predict);
        }
        self.carry_out(effects);
        Ok(Flow::GoOn)
    }

    /// Whether the frame was put aside, now or before, because it ends the process.
    fn is_passed_over(&mut self, frame: FrameSeq) -> bool {
        let incarnation = self.pipeline.incarnation();
        if self.history.log.is_put_aside(incarnation, frame) {
            return true;
        }
        if !self.history.in_hand.as_ref().is_some_and(|in_hand| in_hand.is_deadly(frame.0)) {
            return false;
        }
        let written = self.history.log.put_aside(incarnation, frame);
        if let Err(error) = &written {
            tracing::error!(%error, sequence = frame.0, "a frame that ends the process could not be put aside");
        }
        written.is_ok()
    }

    fn reject(&mut self, message: &Message<'_>, reject: &Reject) {
        telemetry::FRAMES_REJECTED.count_by(reject.reason());
        // The camera's name may be what is wrong with it; the bounded set keeps such names out.
        self.telemetry.received(if wire::is_camera_id(message.subject_camera) { message.subject_camera } else { "other" });
        tracing::debug!(sequence = message.sequence.0, reason = reject.reason(), error = %reject, "frame rejected");
        let subject = self.codec.subjects.rejected(message.subject_camera);
        self.lines.outbox.push(Outgoing::notice(subject, wire::encode_rejected(message, reject)));
    }

    fn obey(&mut self, order: Order) -> Result<(), PipelineError> {
        match order {
            Order::Adapted(adapted) => {
                self.windows_out = self.windows_out.saturating_sub(1);
                self.apply(Event::Adapted(adapted))
            }
            Order::Control(command, asker) => {
                self.control(command, asker);
                Ok(())
            }
            Order::RollBack(generation, state, asker) => {
                match self.pipeline.check_rollback(&state) {
                    Ok(()) => {
                        let decision = Decision::RollBack(state.learner);
                        self.deciding.push_back((decision, Action::RollBack { generation }, asker));
                    }
                    Err(error) => asker.answer(Err(format!("that checkpoint is of another classifier: {error}").into())),
                }
                Ok(())
            }
            Order::Stop => Ok(()),
        }
    }

    /// What an operator asked for; the reply comes from the store, when a checkpoint is on the disk.
    fn control(&mut self, command: Command, asker: Asker) {
        if command != Command::Status && self.is_flooded() {
            let text = format!("more than {COMMANDS_MAX} commands in {} s: try again later", COMMANDS_PERIOD.as_secs());
            asker.answer(Err(Refusal { outcome: "flood", text }));
            return;
        }
        match command {
            Command::Adapt { enabled } => self.deciding.push_back((Decision::Adapt { enabled }, Action::Adapt { enabled }, asker)),
            Command::Reset => self.deciding.push_back((Decision::Reset, Action::Reset {}, asker)),
            Command::Checkpoint => match self.check(asker.terms) {
                Ok(()) => self.save(asker.reply, None),
                Err(error) => asker.answer(Err((&error).into())),
            },
            Command::Status => asker.answer(Ok(self.lines.shared.report())),
            Command::RollBack { generation } => self.lines.store.push(StoreOrder::Read { generation, asker }),
        }
    }

    fn check(&self, terms: Terms) -> Result<(), ControlError> {
        terms.check(self.pipeline.next_decision(), (telemetry::seconds_since_1970() * 1e9) as i64)
    }

    /// Counts a command; true where there were too many lately.
    fn is_flooded(&mut self) -> bool {
        let now = Instant::now();
        self.commanded.retain(|&came| now - came < COMMANDS_PERIOD);
        let is_flooded = self.commanded.len() >= COMMANDS_MAX;
        if !is_flooded {
            self.commanded.push_back(now);
        }
        is_flooded
    }

    /// Applies the decisions that wait, once nothing else is under way. Each is on the disk before it takes effect.
    fn decide(&mut self) -> Result<(), PipelineError> {
        while !self.is_replaying()
            && self.pipeline.is_settled()
            && let Some((decision, action, asker)) = self.deciding.pop_front()
        {
            // It may have waited for a replay, or behind another.
            if let Err(error) = self.check(asker.terms) {
                asker.answer(Err((&error).into()));
                continue;
            }
            // What is so already needs no decision; "on" is one where the guard has stopped learning.
            let is_so = |enabled| enabled == self.pipeline.is_adapt_enabled() && !(enabled && self.pipeline.is_frozen());
            let is_new = !matches!(action, Action::Adapt { enabled } if is_so(enabled));
            if is_new {
                let after = self.pipeline.sequence();
                let (number, incarnation) = (self.pipeline.next_decision(), self.pipeline.incarnation().to_owned());
                if let Err(error) = self.history.log.append(Decided { number, incarnation, after, action }) {
                    tracing::error!(%error, ?action, "not decided");
                    asker.answer(Err(format!("nothing was changed, because it could not be written down: {error}").into()));
                    continue;
                }
                self.apply(Event::Decided(decision))?;
            }
            self.save(asker.reply, action.target());
        }
        Ok(())
    }

    fn save(&self, reply: oneshot::Sender<Answer>, rolled_back_to: Option<Generation>) {
        let status = self.pipeline.status();
        let mut body = serde_json::json!({
            "adapt": status.adapt,
            "decision": status.decision,
            "sequence": status.sequence,
            "weights_version": status.weights_version,
        });
        if let Some(generation) = rolled_back_to {
            body["rolled_back_to"] = generation.0.into();
        }
        self.persist(Box::new(self.pipeline.state()), vec![Reply { to: reply, body }]);
    }

    fn persist(&self, state: Box<DurableState>, replies: Vec<Reply>) {
        let ticket = match self.codec.at_limit {
            AtLimit::HoldBack => self.lines.outbox.ticket(),
            AtLimit::ShedOldest => 0,
        };
        self.lines.store.push(StoreOrder::Save(Save { state, ticket, replies }));
    }

    fn apply(&mut self, event: Event) -> Result<(), PipelineError> {
        let effects = self.pipeline.apply(event)?;
        self.carry_out(effects);
        Ok(())
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        // Before the answers leave: who has an answer and asks for the status finds it counted.
        let status = self.pipeline.status();
        telemetry::show_status(&status);
        self.lines.shared.set_pipeline(status);
        for effect in effects {
            match effect {
                Effect::Answer(prediction) => self.reply(*prediction),
                Effect::Adapt(job) => {
                    self.windows_out += usize::from(matches!(job, Job::Window { .. }));
                    // The adapter ends before the engine only by an error, which the daemon acts on.
                    let _ = self.jobs.send(job);
                }
                Effect::Persist(state) => self.persist(state, Vec::new()),
                Effect::Observe(observation) => self.observe(&observation),
            }
        }
    }

    fn reply(&mut self, mut prediction: Prediction) {
        prediction.latency = self.latencies.remove(&prediction.sequence.0).unwrap_or_default();
        if let Some(taken) = prediction.capture_time_ns.or(prediction.broker_time_ns) {
            // A camera's clock may run ahead.
            telemetry::FRAME_AGE.record((telemetry::seconds_since_1970() - taken as f64 * 1e-9).max(0.0));
        }
        let proof = Proof::new(self.history.id, &prediction);
        match self.history.answered.replayed(prediction.sequence.0, &proof) {
            Replayed::New => self.publish_prediction(&prediction, &proof),
            Replayed::Proven => telemetry::REPLAYED_PREDICTIONS.count_by("proven"),
            Replayed::Unknown => telemetry::REPLAYED_PREDICTIONS.count_by("unknown"),
            Replayed::Mismatch => {
                telemetry::REPLAYED_PREDICTIONS.count_by("mismatch");
                telemetry::REPLAY_MISMATCHES.count(1);
                tracing::error!(sequence = prediction.sequence.0, "a replayed prediction is not the one that was stored");
                self.publish_event(&EventRecord::ReplayMismatch { frame: prediction.sequence }, prediction.sequence);
            }
        }
    }

    fn publish_prediction(&self, prediction: &Prediction, proof: &Proof) {
        let id = PredictionId { prefix: self.codec.id_prefix.clone(), sequence: prediction.sequence.0 };
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, id.header());
        headers.insert(PROOF_HEADER, proof.to_string());
        self.lines.outbox.push(Outgoing {
            subject: self.codec.subjects.predictions(&prediction.camera),
            headers,
            payload: wire::encode_prediction(prediction, self.codec.format).into(),
            prediction: Some(id),
            made: Instant::now(),
        });
    }

    fn observe(&mut self, observation: &Observation) {
        self.telemetry.observe(observation);
        let event = match *observation {
            Observation::Drift { state, score } => EventRecord::Drift { state, score },
            Observation::Collapse { is_collapsed, diversity } => EventRecord::Collapse { is_collapsed, diversity },
            Observation::AdaptationSwitched { enabled } => EventRecord::Adapt { enabled },
            Observation::Frozen { version } => EventRecord::Freeze { weights_version: version },
            Observation::WeightsReset => EventRecord::Reset {},
            Observation::RolledBack { version } => EventRecord::RollBack { weights_version: version },
            _ => return,
        };
        tracing::info!(?event, "event");
        self.publish_event(&event, self.pipeline.sequence());
    }

    fn publish_event(&self, event: &EventRecord, sequence: FrameSeq) {
        self.lines.outbox.push(Outgoing::event(&self.codec.subjects, event, sequence));
    }

    /// Lets the adapter finish what it has, so that the last checkpoint lies as far on as it can.
    fn finish(mut self, is_rewritten: bool) -> Result<Finished, PipelineError> {
        let deadline = Instant::now() + STOP_PATIENCE;
        self.lines.inbox.shed_all();
        while self.windows_out > 0 {
            match self.lines.inbox.next_order(deadline) {
                Some(order) => self.obey(order)?,
                None => break,
            }
        }
        // Frames that no broker keeps are not kept here either.
        let state = match self.codec.at_limit {
            AtLimit::HoldBack if !is_rewritten => self.pipeline.state_at_stop(),
            _ => self.pipeline.state(),
        };
        self.persist(Box::new(state.clone()), Vec::new());
        if self.codec.at_limit == AtLimit::ShedOldest {
            // No broker brings them again.
            let effects = self.pipeline.answer_rest()?;
            self.carry_out(effects);
        }
        Ok(Finished { state, log: self.history.log, is_rewritten })
    }
}

/// Whether a session can go on after a frame.
enum Flow {
    GoOn,
    /// The frame is not the one that was answered under its number.
    Rewritten,
}

fn milliseconds(duration: Duration) -> f32 {
    duration.as_secs_f32() * 1e3
}

/// Names and values; a name that is there more than once comes more than once.
pub(crate) fn headers(message: &async_nats::Message) -> Vec<(String, String)> {
    let pairs = message.headers.iter().flat_map(HeaderMap::iter);
    pairs.flat_map(|(name, values)| values.iter().map(move |value| (name.to_string(), value.to_string()))).collect()
}
