//! Computes a checkpoint's history again, away from the daemon, and compares: predictions one by one, then the state.
//!
//! From the source weights, or where the stream has forgotten its first frames, or bundle, configuration or build were others then, from
//! the oldest checkpoint that is kept since, the stream's frames and the written decisions go through the same core. Whatever was changed
//! on the way (a frame, a decision, a prediction, the weights) shows at the first frame that it touches.
//! Invariant: nothing is written, neither to the folder nor to the broker.

use super::evaluate::{Session, SessionError};
use crate::bundle::Bundle;
use crate::checkpoint::{self, CheckpointError, Meta};
use crate::config::{Config, NatsMode};
use crate::decode::{self, Message};
use crate::frame::FrameSeq;
use crate::pipeline::{self, Scheduled, Start};
use crate::prediction::Prediction;
use crate::proof::{HistoryId, PROOF_HEADER, Proof};
use crate::shell::bundle_reader::{BundleReadError, read_bundle};
use crate::shell::daemon::{fingerprints, id_prefix};
use crate::shell::decision_log::{Decided, DecisionLog};
use crate::shell::engine::headers;
use crate::shell::jetstream::{self, FETCH_MESSAGES, FETCH_PATIENCE, PULL_BYTES_MAX, PULL_FRAMES_MAX, boxed};
use crate::shell::nats::{self, NatsError};
use crate::shell::replay::{PredictionId, Tail};
use crate::shell::status::Shared;
use crate::shell::store::{self, Generation, StoreError};
use crate::state::DurableState;
use crate::wire::{self, PrefixError, Subjects};
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::Stream;
use futures_util::StreamExt;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// The broker forgets the consumer of frames that nobody has pulled from for so long: each frame is learned from before the next is taken.
const INACTIVE_THRESHOLD: Duration = Duration::from_secs(600);

/// Why nothing can be said of a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("nats.mode is \"core\": only the frames of a stream can be had again (nats.mode=jetstream)")]
    Core,
    #[error("there is no checkpoint in checkpoint.dir")]
    NoCheckpoint,
    #[error("no answer from NATS within {} s", CONNECT_PATIENCE.as_secs())]
    Timeout,
    #[error(
        "the stream keeps no frames before {first}, and no checkpoint before generation {generation} is kept to begin at: verify an older one, or keep more (checkpoint.keep)"
    )]
    Forgotten { first: u64, generation: Generation },
    #[error(
        "up to frame {frame} another bundle, configuration or build has answered, and no checkpoint before generation {generation} is kept since: verify a later one"
    )]
    Changed { frame: u64, generation: Generation },
    #[error("the stream does not deliver what it has after frame {after}")]
    Stalled { after: u64 },
    #[error(transparent)]
    Bundle(#[from] BundleReadError),
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error(transparent)]
    Store(Box<StoreError>),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl From<StoreError> for VerifyError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

/// What differs from what was computed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// The stream was made anew: its frames are not those that the checkpoint has seen.
    Stream,
    /// Other frames were answered than the stream has up to here.
    Frame,
    /// The stored prediction says something else.
    Prediction,
    /// The stored prediction is not the one that its proof was made of.
    Proof,
    /// Another prediction of the same frame is stored too.
    Repeated,
    /// The frame has no stored prediction.
    Missing,
    /// The stored prediction is of another history, among those of this one.
    History,
    /// Predictions agree; the checkpoint's state does not.
    State,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Verdict {
    pub is_true: bool,
    pub generation: Generation,
    /// Last frame that the checkpoint has seen.
    pub sequence: u64,
    /// The generation that it was computed from; none is the source weights.
    pub from: Option<Generation>,
    /// Frames that were applied again.
    pub frames: u64,
    /// Predictions that were found as they were stored.
    pub predictions: u64,
    /// Last frame that was answered before this history: by another bundle, configuration or build, or from another start.
    pub answered_before: Option<u64>,
    /// Frame at which the first difference shows, and what differs.
    pub first_difference: Option<(u64, Difference)>,
    /// Names of the fingerprints that are not the checkpoint's: with them, differences are to be expected.
    pub fingerprints_differing: Vec<String>,
    /// At each border of a window, and after each decision there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<StateAt>,
}

/// A state on the way.
#[derive(Debug, Serialize)]
pub struct StateAt {
    /// Last frame that it has seen.
    pub sequence: u64,
    /// Number of the last decision that it has seen.
    pub decision: u64,
    /// In hex.
    pub state_hash: String,
}

/// What is stored of a frame's prediction.
struct Stored {
    proof: Option<Proof>,
    /// Of the prediction as it is stored.
    content: Option<[u8; 32]>,
    is_repeated: bool,
}

/// A history to compute again.
pub struct Verifier {
    config: Config,
    bundle: Bundle,
    subjects: Subjects,
    frames: Stream,
    incarnation: String,
    predictions: BTreeMap<u64, Stored>,
    log: DecisionLog,
    verdict: Verdict,
    target: DurableState,
    /// What the target was written with.
    meta: Meta,
}

impl Verifier {
    /// Reads all but the frames: the checkpoint (`generation`, else the newest), and the stored predictions.
    ///
    /// # Errors
    /// Whatever keeps it from being read.
    pub async fn new(config: Config, generation: Option<u64>) -> Result<Self, VerifyError> {
        if config.nats.mode == NatsMode::Core {
            return Err(VerifyError::Core);
        }
        let bundle = read_bundle(&config)?;
        let generation = match generation {
            Some(generation) => Generation(generation),
            None => kept(&config.checkpoint.dir)?.last().copied().ok_or(VerifyError::NoCheckpoint)?,
        };
        let (target, meta) = store::load(&config.checkpoint.dir, generation)?;
        let secret = store::noise_key(&config.checkpoint.dir, &config.noise)?;
        let fingerprints = fingerprints(&config, &bundle, &secret);
        let subjects = Subjects::new(&config.nats.prefix)?;
        let context = connect(&config).await?;
        let frames = context.get_stream(jetstream::frames_stream(&subjects)).await.map_err(boxed)?;
        let verdict = Verdict {
            is_true: false,
            generation,
            sequence: target.sequence.0,
            from: None,
            frames: 0,
            predictions: 0,
            answered_before: None,
            first_difference: None,
            fingerprints_differing: meta.differing(&fingerprints).into_iter().map(str::to_owned).collect(),
            states: Vec::new(),
        };
        let predictions = read_predictions(&context, &subjects, &id_prefix(&target.incarnation, true)).await?;
        let incarnation = jetstream::facts(&frames).incarnation;
        let log = DecisionLog::open(&config.checkpoint.dir)?;
        let mut verifier = Self { config, bundle, subjects, frames, incarnation, predictions, log, verdict, target, meta };
        verifier.verdict.answered_before = verifier.answered_before();
        Ok(verifier)
    }

    /// Last of the frames up to the checkpoint whose stored prediction is of another history.
    fn answered_before(&self) -> Option<u64> {
        let seen = self.predictions.range(..=self.target.sequence.0);
        let is_other = |stored: &Stored| stored.proof.is_some_and(|proof| proof.history != self.history());
        seen.rev().find(|(_, stored)| is_other(stored)).map(|(&sequence, _)| sequence)
    }

    fn history(&self) -> HistoryId {
        HistoryId::new(&self.meta.fingerprints, self.target.birth)
    }

    /// Frames that are to be applied at most.
    pub fn length(&self) -> u64 {
        self.target.sequence.0
    }

    /// Applies the frames; `advanced` hears the number of each. With `keeps_states` the verdict has the state at each border.
    ///
    /// # Errors
    /// Whatever keeps the history from being computed.
    pub async fn run(mut self, keeps_states: bool, mut advanced: impl FnMut(u64)) -> Result<Verdict, VerifyError> {
        if self.target.incarnation.split('+').next() != Some(&self.incarnation) {
            return Ok(self.differs(0, Difference::Stream));
        }
        let (mut session, mut after, mut decisions) = self.start()?;
        if after > self.target.sequence.0 {
            return Ok(self.differs(after, Difference::State));
        }
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: after + 1 },
            ack_policy: AckPolicy::None,
            filter_subject: self.subjects.all_frames(),
            inactive_threshold: INACTIVE_THRESHOLD,
            memory_storage: true,
            ..pull::Config::default()
        };
        let consumer = self.frames.create_consumer(config).await.map_err(boxed)?;
        let pull = consumer.stream().max_messages_per_batch(PULL_FRAMES_MAX).max_bytes_per_batch(PULL_BYTES_MAX);
        let mut messages = pull.messages().await.map_err(boxed)?;
        while after < self.target.sequence.0 {
            let next = tokio::time::timeout(FETCH_PATIENCE, messages.next()).await.ok().flatten();
            let message = next.ok_or(VerifyError::Stalled { after })?.map_err(boxed)?;
            let info = message.info().map_err(NatsError::JetStream)?;
            let (sequence, time) = (info.stream_sequence, i64::try_from(info.published.unix_timestamp_nanos()).ok());
            if sequence > self.target.sequence.0 {
                // The last frame that the checkpoint has seen is gone.
                return Ok(self.differs(after, Difference::Frame));
            }
            self.decide(&mut session, &mut decisions, sequence, keeps_states)?;
            after = sequence;
            for prediction in self.apply(&mut session, &message, sequence, time)? {
                if let Some(difference) = self.compare(&prediction) {
                    return Ok(self.differs(prediction.sequence.0, difference));
                }
            }
            if keeps_states {
                self.keep_state(&session.state())?;
            }
            advanced(sequence);
        }
        // What was decided after the last frame is in the checkpoint, or is not; its number tells.
        let decided = self.target.control.generation.saturating_sub(session.state().control.generation);
        let decided = usize::try_from(decided).unwrap_or(usize::MAX);
        decisions.truncate(decided);
        self.decide(&mut session, &mut decisions, u64::MAX, keeps_states)?;
        // Labels that came later are no part of the stream, and nothing but metrics depends on them.
        let state = if self.target.open.is_empty() { session.state() } else { session.state_at_stop() };
        if keeps_states {
            self.keep_state(&state)?;
        }
        let state = DurableState { monitor: self.target.monitor.clone(), ..state };
        match checkpoint::state_hash(&state)? == checkpoint::state_hash(&self.target)? {
            true => Ok(Verdict { is_true: true, ..self.verdict }),
            false => Ok(self.differs(after, Difference::State)),
        }
    }

    /// From the source weights where the stream still has its first frame, and this history has answered all since; else from the oldest
    /// checkpoint that is kept.
    fn start(&mut self) -> Result<(Session, u64, VecDeque<Scheduled>), VerifyError> {
        let dir = &self.config.checkpoint.dir;
        let first = self.frames.cached_info().state.first_sequence;
        let is_whole = self.target.incarnation == self.incarnation && first <= 1 && self.verdict.answered_before.is_none();
        let (start, state) = if is_whole {
            let (incarnation, birth) = (self.target.incarnation.clone(), self.target.birth);
            let state = pipeline::first_state(&self.bundle, &self.config.adapt, incarnation.clone(), birth);
            (Start::Source { incarnation, birth }, state)
        } else {
            let (generation, state) = self.oldest(first)?;
            self.verdict.from = Some(generation);
            (Start::Resume { state: Box::new(state.clone()), decisions: Vec::new() }, state)
        };
        let secret = store::noise_key(dir, &self.config.noise)?;
        let scheduled = self.log.scheduled(&state, false, &fingerprints(&self.config, &self.bundle, &secret))?;
        // What was decided on what the stream became later is no part of it.
        let is_part =
            |decided: &Decided| decided.number <= self.target.control.generation || decided.incarnation == self.target.incarnation;
        let decided = self.log.after(state.control.generation).iter();
        let decisions =
            scheduled.into_iter().zip(decided).filter(|(_, decided)| is_part(decided)).map(|(scheduled, _)| scheduled).collect();
        let session = Session::start(&self.bundle, &self.config.adapt, self.config.output.top_k, secret, start)?;
        Ok((session, state.sequence.0, decisions))
    }

    /// Makes the decisions before frame `next`.
    fn decide(
        &mut self,
        session: &mut Session,
        decisions: &mut VecDeque<Scheduled>,
        next: u64,
        keeps_states: bool,
    ) -> Result<(), VerifyError> {
        while let Some(scheduled) = decisions.pop_front_if(|scheduled| scheduled.after.0 < next) {
            session.decide(scheduled.decision)?;
            if keeps_states {
                self.keep_state(&session.state())?;
            }
        }
        Ok(())
    }

    /// The oldest kept state whose next frame the stream still has, and after which all that are kept are of the target's history.
    fn oldest(&self, first: u64) -> Result<(Generation, DurableState), VerifyError> {
        let dir = &self.config.checkpoint.dir;
        let mut oldest = None;
        for generation in kept(dir)?.into_iter().rev().skip_while(|&generation| generation >= self.verdict.generation) {
            let (state, meta) = match store::load(dir, generation) {
                // A daemon at work prunes.
                Err(error) if error.is_not_found() => break,
                loaded => loaded?,
            };
            let is_same = state.incarnation == self.target.incarnation && HistoryId::new(&meta.fingerprints, state.birth) == self.history();
            if !is_same || state.sequence.0 + 1 < first {
                break;
            }
            oldest = Some((generation, state));
        }
        let generation = self.verdict.generation;
        oldest.ok_or(match self.verdict.answered_before {
            Some(frame) => VerifyError::Changed { frame, generation },
            None => VerifyError::Forgotten { first, generation },
        })
    }

    fn apply(
        &mut self,
        session: &mut Session,
        message: &async_nats::Message,
        sequence: u64,
        broker_time_ns: Option<i64>,
    ) -> Result<Vec<Prediction>, VerifyError> {
        let headers = headers(message);
        let message = Message {
            subject_camera: message.subject.rsplit('.').next().unwrap_or_default(),
            headers: &headers,
            payload: &message.payload,
            sequence: FrameSeq(sequence),
            broker_time_ns,
        };
        let shape = self.bundle.classifier_config.image();
        let is_put_aside = self.log.is_put_aside(&self.target.incarnation, FrameSeq(sequence));
        let decoded = decode::decode(&message, &self.config.limits.of_decoder(), shape, self.bundle.labels.len());
        // A frame that cannot be used, or was put aside, leaves no trace in the history.
        let Some(frame) = decoded.ok().filter(|_| !is_put_aside) else { return Ok(Vec::new()) };
        self.verdict.frames += 1;
        Ok(session.frame(frame)?.predictions)
    }

    fn compare(&mut self, prediction: &Prediction) -> Option<Difference> {
        let sequence = prediction.sequence.0;
        let Some(stored) = self.predictions.get(&sequence) else {
            // What is older than all that is stored may have been forgotten.
            let is_after_first = self.predictions.keys().next().is_some_and(|&first| first < sequence);
            return is_after_first.then_some(Difference::Missing);
        };
        let proof = Proof::new(HistoryId::new(&BTreeMap::new(), 0), prediction);
        match stored {
            Stored { is_repeated: true, .. } => Some(Difference::Repeated),
            Stored { proof: Some(stored), content, .. } if Some(stored.content) != *content => Some(Difference::Proof),
            // A restart replays frames that another history has answered, and leaves its answers.
            Stored { proof: Some(stored), .. } if stored.history != self.history() => {
                (self.verdict.predictions > 0).then_some(Difference::History)
            }
            Stored { proof: Some(stored), .. } if stored.input_chain != proof.input_chain => Some(Difference::Frame),
            Stored { content, .. } if *content != Some(proof.content) => Some(Difference::Prediction),
            Stored { proof: None, .. } => Some(Difference::Proof),
            Stored { .. } => {
                self.verdict.predictions += 1;
                None
            }
        }
    }

    fn keep_state(&mut self, state: &DurableState) -> Result<(), VerifyError> {
        let (sequence, decision) = (state.sequence.0, state.control.generation);
        let is_known = self.verdict.states.last().is_some_and(|last| (last.sequence, last.decision) == (sequence, decision));
        if !is_known {
            let state_hash = blake3::Hash::from_bytes(checkpoint::state_hash(state)?).to_hex().to_string();
            self.verdict.states.push(StateAt { sequence, decision, state_hash });
        }
        Ok(())
    }

    fn differs(self, sequence: u64, difference: Difference) -> Verdict {
        Verdict { first_difference: Some((sequence, difference)), ..self.verdict }
    }
}

/// Generations that can be read, oldest first.
fn kept(dir: &Path) -> Result<Vec<Generation>, StoreError> {
    let mut kept: Vec<Generation> = store::list(dir)?.into_iter().flatten().map(|listed| listed.generation).collect();
    kept.reverse();
    Ok(kept)
}

async fn connect(config: &Config) -> Result<Context, VerifyError> {
    let shared = Arc::new(Shared::new(config.nats.mode));
    let client = nats::connect(&config.nats, &shared).await?;
    tokio::time::timeout(CONNECT_PATIENCE, shared.wait_until_connected()).await.map_err(|_| VerifyError::Timeout)?;
    Ok(nats::jetstream_context(&client))
}

async fn read_predictions(context: &Context, subjects: &Subjects, prefix: &str) -> Result<BTreeMap<u64, Stored>, VerifyError> {
    let stream = context.get_stream(jetstream::predictions_stream(subjects)).await.map_err(boxed)?;
    let last = Tail::read(context, subjects).await?.newest;
    let mut predictions = BTreeMap::new();
    let config = pull::Config { ack_policy: AckPolicy::None, memory_storage: true, ..pull::Config::default() };
    let consumer = stream.create_consumer(config).await.map_err(boxed)?;
    let mut reached = 0;
    while reached < last {
        let before = reached;
        let mut batch = consumer.fetch().max_messages(FETCH_MESSAGES).expires(FETCH_PATIENCE).messages().await.map_err(boxed)?;
        while let Some(message) = batch.next().await {
            let message = message.map_err(NatsError::JetStream)?;
            reached = message.info().map_err(NatsError::JetStream)?.stream_sequence;
            let Some(headers) = &message.headers else { continue };
            let Some(id) = PredictionId::of(headers).filter(|id| id.prefix == prefix) else { continue };
            let proof = headers.get(PROOF_HEADER).and_then(|value| Proof::parse(value.as_str()));
            let prediction = wire::decode_prediction(&message.payload).ok();
            let content = prediction.map(|prediction| Proof::new(HistoryId::new(&BTreeMap::new(), 0), &prediction).content);
            let is_repeated = predictions.contains_key(&id.sequence);
            predictions.insert(id.sequence, Stored { proof, content, is_repeated });
        }
        if reached == before {
            return Err(NatsError::JetStream("the stream of predictions does not deliver what it has".into()).into());
        }
    }
    Ok(predictions)
}
