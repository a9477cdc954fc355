//! Supervision: builds every part, starts every thread and task, and ends them in order.
//!
//! | channel | from | to | limit | at the limit |
//! |---|---|---|---|---|
//! | inbox, frames | ingest | device thread | `nats.queue_frames_max`, `queue_bytes_max` | core: oldest shed; JetStream: held back |
//! | inbox, orders | control, adapter, store | device thread | 4096 | control refused |
//! | inbox, labels | labels | device thread | 4096 | labels shed |
//! | jobs | device thread | adapter thread | `adapt.lag` + 1 windows: the pipeline is not ready beyond | frames wait |
//! | outbox | device thread, store | publisher | [`OUTBOX_MESSAGES_MAX`] | oldest dropped; JetStream: frames wait |
//! | store | device thread | store thread | 1 state, 16 reads | state superseded; reads refused |
//!
//! A session is what belongs to one incarnation of the stream: ingest, device thread, adapter thread. When the stream
//! turns out to be another one, the session ends as at a shutdown and the next starts from its checkpoint, on the same
//! path as a process that starts anew.
//! Invariant: every task and thread has its end awaited here, and the end of any of them that was not asked for ends the
//! process with its reason.

use super::bundle_reader::{BundleReadError, read_bundle};
use super::changed_stream::Facts;
use super::decision_log::DecisionLog;
use super::engine::{Codec, Engine, Finished, History, Lines, STOP_PATIENCE};
use super::http::{self, ListenError};
use super::in_hand::InHand;
use super::jetstream::{self, Position};
use super::nats::{self, Control, NatsError};
use super::publisher::{self, Fenced};
use super::queue::{AtLimit, Inbox, Limits, Order, Outbox, Outgoing};
use super::replay::Answered;
use super::stall;
use super::status::{Phase, Shared};
use super::store::{Store, StoreError};
use super::store_thread::{self, Reply, Save, StoreOrder, StoreQueue};
use super::telemetry::{self, Telemetry, TelemetryError};
use super::threads::Threads;
use crate::bundle::Bundle;
use crate::by_camera::ByCamera;
use crate::checkpoint::{BUNDLE_FINGERPRINT, Meta};
use crate::config::{Config, NatsMode};
use crate::frame::{FrameSeq, WeightsVersion};
use crate::learner::{AdaptError, Adapter, source_state};
use crate::noise::NoiseSecret;
use crate::pipeline::{self, Job, OutputShape, Pipeline, PipelineError, Scheduled, Start};
use crate::proof::HistoryId;
use crate::recent::Recent;
use crate::state::{DurableState, MonitorState, Served};
use crate::wire::{PrefixError, Subjects};
use async_nats::Client;
use async_nats::jetstream::Context;
use rayon::ThreadPool;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Predictions and notices that may wait for NATS: twice the largest window, and some.
const OUTBOX_MESSAGES_MAX: usize = 4096;
/// How long a stopping daemon waits for its last predictions to leave, after the store has waited for them.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(4);

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error(transparent)]
    Fenced(#[from] Fenced),
    #[error(transparent)]
    Store(Box<StoreError>),
    #[error(transparent)]
    Bundle(#[from] BundleReadError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error("adaptation: {0}")]
    Adapt(#[from] AdaptError),
    #[error("failed to start a thread: {0}")]
    Thread(#[from] std::io::Error),
    #[error("{0} ended by a panic, or where it should not")]
    Ended(&'static str),
}

impl From<StoreError> for DaemonError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

impl DaemonError {
    /// After sysexits.h: 69 unavailable, 70 software, 73 cannot create (another daemon does), 74 input or output, 78 configuration.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Listen(_) | Self::Nats(NatsError::Connect(_)) => 69,
            Self::Prefix(_) | Self::Bundle(_) | Self::Nats(NatsError::Credentials(_)) => 78,
            Self::Fenced(_) => 73,
            Self::Store(error) if matches!(**error, StoreError::Locked { .. }) => 73,
            Self::Store(_) | Self::Thread(_) => 74,
            _ => 70,
        }
    }
}

/// Runs until `shutdown`, or until something fails that cannot be gone on from.
///
/// # Errors
/// Each names what an operator has to look at; an outage of NATS is none.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), DaemonError> {
    let metrics = telemetry::install()?;
    let shared = Arc::new(Shared::new(config.nats.mode));
    let listener = http::listen(config.http.listen).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(http::serve(listener, Arc::clone(&shared), metrics.clone()));
    tasks.spawn(telemetry::upkeep(metrics));
    let client = nats::connect(&config.nats, &shared).await?;
    shared.set_client(client.clone());
    let daemon = Daemon::new(config, client, shared)?;
    // Aborts the tasks when it is dropped; none of them holds anything that must be finished.
    daemon.run(tasks, shutdown).await
}

/// What lives as long as the process.
struct Daemon {
    config: Config,
    bundle: Bundle,
    secret: NoiseSecret,
    subjects: Subjects,
    client: Client,
    /// None in core mode.
    stream: Option<Context>,
    lines: Lines,
    store: Option<Store>,
    restored: Option<DurableState>,
    /// Of this process's sessions; one has it while it runs.
    log: Option<DecisionLog>,
    /// Whether the session before found other frames than those that were answered.
    is_rewritten: bool,
    meta: Meta,
}

/// Where a session starts.
struct Origin {
    start: Start,
    /// Of the stream; without what a break adds to the state's.
    incarnation: String,
    /// How the stream differs from the one that the state has seen; then the state must be on the disk before the first frame.
    is_new: bool,
    /// Of the stream's first and last message; 0 without a stream.
    held: RangeInclusive<u64>,
}

/// Why a session ended without an error.
enum SessionEnd {
    Shutdown,
    NewIncarnation,
}

impl Daemon {
    fn new(config: Config, client: Client, shared: Arc<Shared>) -> Result<Self, DaemonError> {
        let subjects = Subjects::new(&config.nats.prefix)?;
        let bundle = read_bundle(&config)?;
        let mut store = Store::open(&config.checkpoint.dir, config.checkpoint.keep)?;
        let secret = store.noise_key(&config.noise)?;
        let log = DecisionLog::open(&config.checkpoint.dir)?;
        let mut recovery = store.latest()?;
        for quarantined in &recovery.quarantined {
            tracing::error!(generation = %quarantined.generation, path = %quarantined.path.display(), reason = quarantined.reason, "damaged checkpoint moved away");
        }
        let meta = Meta { created_ns: 0, fingerprints: fingerprints(&config, &bundle, &secret) };
        if let Some(restored) = &mut recovery.newest {
            let differing: Vec<String> = restored.meta.differing(&meta.fingerprints).into_iter().map(|name| name.to_string()).collect();
            tracing::info!(generation = %restored.generation, sequence = restored.state.sequence.0, ?differing, "checkpoint restored");
            telemetry::CHECKPOINT_TIMESTAMP.set(restored.meta.created_ns as f64 * 1e-9);
            if !restored.meta.is_of_bundle(&meta.fingerprints) {
                tracing::warn!("the checkpoint is of another bundle: starting from the new source weights");
                start_from_source(&mut restored.state, &bundle);
            }
        }
        let at_limit = at_limit(config.nats.mode);
        let limits = Limits { frames: config.nats.queue_frames_max, bytes: config.nats.queue_bytes_max, at_limit };
        let lines = Lines {
            inbox: Arc::new(Inbox::new(limits)),
            outbox: Arc::new(Outbox::new(OUTBOX_MESSAGES_MAX)),
            store: Arc::new(StoreQueue::default()),
            shared,
            way: Arc::default(),
        };
        let stream = (config.nats.mode == NatsMode::Jetstream).then(|| nats::jetstream_context(&client));
        let restored = recovery.newest.map(|restored| restored.state);
        Ok(Self {
            config,
            bundle,
            secret,
            subjects,
            client,
            stream,
            lines,
            store: Some(store),
            restored,
            log: Some(log),
            is_rewritten: false,
            meta,
        })
    }

    /// Sessions, one after the other, and the order of the end.
    async fn run(mut self, mut tasks: JoinSet<()>, shutdown: CancellationToken) -> Result<(), DaemonError> {
        let (outbox, inbox) = (Arc::clone(&self.lines.outbox), Arc::clone(&self.lines.inbox));
        let publisher = publisher::publish(self.client.clone(), self.stream.clone(), self.subjects.clone(), outbox, inbox);
        let mut publisher = tokio::spawn(publisher);
        let mut store = self.start_store_thread()?;
        self.start_tasks(&mut tasks).await?;
        loop {
            let end = tokio::select! {
                // A session that is cut off here ends with the process.
                end = self.session(&shutdown) => end?,
                result = &mut publisher => return Err(match result {
                    Ok(Err(fenced)) => fenced.into(),
                    Ok(Ok(())) | Err(_) => DaemonError::Ended("publisher"),
                }),
                result = &mut store => return Err(result.map_or(DaemonError::Ended("store thread"), |()| DaemonError::Ended("store thread"))),
                _ = tasks.join_next() => return Err(DaemonError::Ended("a task of NATS or HTTP")),
            };
            match end {
                SessionEnd::Shutdown => break,
                SessionEnd::NewIncarnation => tracing::warn!("the stream is another one: starting over from the checkpoint"),
            }
        }
        self.lines.store.close();
        store.await.map_err(|_| DaemonError::Ended("store thread"))?;
        self.lines.outbox.close();
        let drained = async {
            publisher.await.map_err(|_| DaemonError::Ended("publisher"))??;
            // Fails only for a connection that was closed.
            let _ = self.client.flush().await;
            Ok::<_, DaemonError>(())
        };
        match tokio::time::timeout(DRAIN_PATIENCE, drained).await {
            Ok(result) => result?,
            Err(_) => tracing::warn!("stopped with predictions that NATS did not take"),
        }
        tracing::info!("stopped");
        Ok(())
    }

    /// Labels and control are listened to before the first frame is.
    async fn start_tasks(&self, tasks: &mut JoinSet<()>) -> Result<(), DaemonError> {
        let (inbox, shared) = (&self.lines.inbox, &self.lines.shared);
        let labels = self.client.subscribe(self.subjects.all_labels()).await.map_err(NatsError::from)?;
        tasks.spawn(nats::take_labels(labels, Arc::clone(inbox), self.bundle.labels.len()));
        let control = Control::offer(&self.client, &self.subjects, &self.config.nats.name, shared).await?;
        tasks.spawn(control.serve(Arc::clone(inbox), Arc::clone(shared)));
        tasks.spawn(stall::watch(self.lines.clone(), self.subjects.clone(), self.config.limits.stall_patience));
        Ok(())
    }

    fn start_store_thread(&mut self) -> Result<oneshot::Receiver<()>, DaemonError> {
        let (lines, subjects, meta) = (self.lines.clone(), self.subjects.clone(), self.meta.clone());
        let dir = self.config.checkpoint.dir.clone();
        let mut store = self.store.take().ok_or(DaemonError::Ended("store thread"))?;
        spawn("store", move || store_thread::run(&mut store, &dir, &meta, &lines, &subjects))
    }

    /// From the first frame after the checkpoint to a shutdown or another stream.
    async fn session(&mut self, shutdown: &CancellationToken) -> Result<SessionEnd, DaemonError> {
        let Some(Origin { start, incarnation, is_new, held }) = self.origin(shutdown).await? else {
            return Ok(SessionEnd::Shutdown);
        };
        let output = OutputShape { top_k: self.config.output.top_k, checkpoint_windows: self.config.checkpoint.every_windows };
        let pipeline = Pipeline::new(&self.bundle, &self.config.adapt, output, self.secret.clone(), start)?;
        let state = pipeline.state();
        if is_new {
            self.persist(state.clone()).await;
        }
        let last = Position { sequence: state.sequence.0, mark: state.mark };
        let adapter = Adapter::new(&self.bundle, &self.config.adapt, pipeline.learner())?;
        let id_prefix = id_prefix(pipeline.incarnation(), self.stream.is_some());
        let Some(answered) = self.answered(&id_prefix, last.sequence, shutdown).await else { return Ok(SessionEnd::Shutdown) };
        let history = self.history(&pipeline, answered, &held)?;
        let at_limit = at_limit(self.config.nats.mode);
        let codec = Codec::new(&self.config, self.bundle.labels.len(), self.subjects.clone(), id_prefix, at_limit);
        let telemetry = Telemetry::new(&self.bundle.labels, self.config.limits.cameras_max);
        let (jobs, jobs_of_adapter) = mpsc::channel();
        let inbox = Arc::clone(&self.lines.inbox);
        let threads = Threads::start(&self.lines.way).map_err(|error| DaemonError::Thread(std::io::Error::other(error)))?;
        let mut adapter = spawn("adapter", move || adapt(adapter, &threads.adapter, &jobs_of_adapter, &inbox))?;
        let answered = history.answered.last;
        let engine = Engine::new(pipeline, codec, self.lines.clone(), jobs, telemetry, history);
        let mut engine = spawn("device", move || threads.frames.install(|| engine.run()))?;
        tracing::info!(incarnation, applied = last.sequence, answered, "answering frames");
        let mut has_adapter_ended = false;
        let (end, finished) = {
            let ingest = self.ingest(&incarnation, last);
            tokio::pin!(ingest);
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => break (SessionEnd::Shutdown, None),
                    // Frames that are cut off were not applied: the stream has them still, and core NATS promises nothing.
                    end = &mut ingest => break (end?, None),
                    result = &mut engine => break (SessionEnd::NewIncarnation, Some(ended_by_itself(result)?)),
                    // It ends after the device thread has.
                    result = &mut adapter, if !has_adapter_ended => match result {
                        Ok(Ok(())) => has_adapter_ended = true,
                        result => return Err(ended("adapter thread", result.map(|result| result.map_err(DaemonError::from)))),
                    },
                }
            }
        };
        self.lines.shared.set_phase(Phase::Stopping);
        // The device thread waits for the adapter as long.
        let deadline = tokio::time::Instant::now() + STOP_PATIENCE;
        let finished = match finished {
            Some(finished) => finished,
            None => {
                self.lines.inbox.push_order(Order::Stop);
                engine.await.map_err(|_| DaemonError::Ended("device thread"))??
            }
        };
        if !has_adapter_ended {
            match (&end, tokio::time::timeout_at(deadline, &mut adapter).await) {
                (_, Ok(result)) => result.map_err(|_| DaemonError::Ended("adapter thread"))??,
                (SessionEnd::Shutdown, Err(_)) => tracing::warn!("stopped while a window was being learned from: it is lost"),
                (SessionEnd::NewIncarnation, Err(_)) => adapter.await.map_err(|_| DaemonError::Ended("adapter thread"))??,
            }
        }
        // What the session's ingest and adapter have brought since means nothing to the next.
        self.lines.inbox.shed_all();
        self.lines.inbox.forget_session();
        (self.restored, self.log, self.is_rewritten) = (Some(finished.state), Some(finished.log), finished.is_rewritten);
        Ok(end)
    }

    /// What the session adds to.
    fn history(&mut self, pipeline: &Pipeline, answered: Answered, held: &RangeInclusive<u64>) -> Result<History, DaemonError> {
        Ok(History {
            id: HistoryId::new(&self.meta.fingerprints, pipeline.state().birth),
            // Where all that was answered is gone, nothing is applied again.
            replayed_until: if answered.last < *held.start() { 0 } else { answered.last.min(*held.end()) },
            answered,
            log: self.log.take().ok_or(DaemonError::Ended("session"))?,
            in_hand: match self.stream {
                Some(_) => Some(InHand::open(&self.config.checkpoint.dir, pipeline.incarnation())?),
                None => None,
            },
        })
    }

    /// Has `state` written, and waits for it. A disk that does not take it is reported, and no reason not to answer frames.
    async fn persist(&self, state: DurableState) {
        let (to, written) = oneshot::channel();
        let replies = vec![Reply { to, body: serde_json::json!({}) }];
        self.lines.store.push(StoreOrder::Save(Save { state: Box::new(state), ticket: 0, replies }));
        if let Ok(Err(error)) = written.await {
            tracing::error!(
                error = error.text,
                "the start is not on the disk: after a crash the answers until the next checkpoint may differ"
            );
        }
    }

    /// What the stream of predictions holds of this incarnation; none at a shutdown.
    async fn answered(&self, id_prefix: &str, applied: u64, shutdown: &CancellationToken) -> Option<Answered> {
        let Some(stream) = &self.stream else { return Some(Answered::default()) };
        let read = || Answered::read(stream, &self.subjects, id_prefix, applied);
        persevere("the stored predictions cannot be read", &self.lines.shared, shutdown, read).await
    }

    async fn ingest(&self, incarnation: &str, last: Position) -> Result<SessionEnd, DaemonError> {
        match &self.stream {
            None => {
                nats::take_frames(&self.client, &self.subjects, &self.lines, last.sequence).await?;
                Err(DaemonError::Ended("the subscription to frames"))
            }
            Some(stream) => {
                jetstream::follow(stream, &self.subjects, &self.lines, incarnation, last).await;
                Ok(SessionEnd::NewIncarnation)
            }
        }
    }

    /// Waits for the stream, where there is one, and decides where to start; none at a shutdown.
    async fn origin(&mut self, shutdown: &CancellationToken) -> Result<Option<Origin>, DaemonError> {
        let Some(context) = &self.stream else {
            let incarnation = "core".to_owned();
            let is_new = self.restored.is_none();
            let state = self.take_restored(&incarnation, 0);
            // Frames that came after the state are gone: what was decided meanwhile counts from the first new one on.
            let decisions = self.decisions(&state, true)?;
            return Ok(Some(Origin { start: Start::Resume { state: Box::new(state), decisions }, incarnation, is_new, held: 0..=0 }));
        };
        self.lines.shared.set_phase(Phase::WaitingForStream);
        let (stored, is_rewritten) = (self.restored.as_ref(), self.is_rewritten);
        let read = || Facts::read(context, &self.subjects, stored, is_rewritten);
        let Some(Facts { incarnation, change, birth, held }) =
            persevere("the streams are not there yet", &self.lines.shared, shutdown, read).await
        else {
            return Ok(None);
        };
        self.is_rewritten = false;
        let is_new = change.is_some() || self.restored.is_none();
        let mut state = self.take_restored(&incarnation, birth);
        let mut decisions = self.decisions(&state, change.is_some())?;
        // The frames before it are gone: nothing is waited for that was decided among them.
        decisions.iter_mut().filter(|scheduled| scheduled.after.0 < *held.start()).for_each(|scheduled| scheduled.after = FrameSeq(0));
        if let Some(change) = change {
            let event = change.apply(&mut state, &incarnation);
            tracing::warn!(?event, sequence = state.sequence.0, "the stream is not the checkpoint's: weights are kept");
            telemetry::STREAM_BREAKS.count_by(event.kind());
            self.lines.outbox.push(Outgoing::event(&self.subjects, &event, state.sequence));
        }
        Ok(Some(Origin { start: Start::Resume { state: Box::new(state), decisions }, incarnation, is_new, held }))
    }

    /// The state to go on from; without one the source weights, and then every written decision is still to be made.
    fn take_restored(&mut self, incarnation: &str, birth: u64) -> DurableState {
        self.restored.take().unwrap_or_else(|| pipeline::first_state(&self.bundle, &self.config.adapt, incarnation.to_owned(), birth))
    }

    /// What was decided after `state`; see [`DecisionLog::scheduled`].
    fn decisions(&self, state: &DurableState, at_once: bool) -> Result<Vec<Scheduled>, StoreError> {
        self.log.as_ref().map_or(Ok(Vec::new()), |log| log.scheduled(state, at_once, &self.meta.fingerprints))
    }
}

/// Tries until it succeeds; none at a shutdown.
async fn persevere<T, F: Future<Output = Result<T, NatsError>>>(
    obstacle: &str,
    shared: &Shared,
    shutdown: &CancellationToken,
    mut attempt: impl FnMut() -> F,
) -> Option<T> {
    let attempts = async {
        for failures in 1.. {
            shared.wait_until_connected().await;
            match attempt().await {
                Ok(value) => return value,
                Err(error) => tracing::warn!(%error, "{obstacle}"),
            }
            tokio::time::sleep(nats::jittered(failures, RETRY_DELAY_MAX)).await;
        }
        unreachable!("attempts do not end")
    };
    tokio::select! {
        value = attempts => Some(value),
        () = shutdown.cancelled() => None,
    }
}

/// Weights of another bundle are another model's: position and switches are kept, what was learned is not.
fn start_from_source(state: &mut DurableState, bundle: &Bundle) {
    let version = WeightsVersion(state.serving.version.max(state.learner.version).0 + 1);
    state.learner = Arc::new(source_state(&bundle.classifier, version));
    state.serving = Served::now(&state.learner);
    state.pending.clear();
    state.monitor = MonitorState::default();
    // Its classes may be others.
    state.recent = ByCamera::default();
    state.open.iter_mut().for_each(|open| open.prior = Recent::default().prior(bundle.labels.len()));
}

/// Eight hex digits; without a stream, numbers mean nothing beyond this process, so that chance takes the place of a name.
pub(crate) fn id_prefix(incarnation: &str, has_stream: bool) -> String {
    if has_stream { blake3::hash(incarnation.as_bytes()).to_hex()[..8].to_owned() } else { nats::chance_id() }
}

fn at_limit(mode: NatsMode) -> AtLimit {
    match mode {
        NatsMode::Core => AtLimit::ShedOldest,
        NatsMode::Jetstream => AtLimit::HoldBack,
    }
}

/// What a state's next bit depends on outside of it.
pub(crate) fn fingerprints(config: &Config, bundle: &Bundle, secret: &NoiseSecret) -> BTreeMap<String, String> {
    let mut labels = blake3::Hasher::new();
    for label in &bundle.labels {
        labels.update(label.as_bytes());
    }
    let entries = [
        ("build", build()),
        // The list of hashes that every file of the bundle was checked against.
        (BUNDLE_FINGERPRINT, blake3::hash(&std::fs::read(&config.bundle.files.hashes).unwrap_or_default()).to_hex().to_string()),
        ("configuration", config.fingerprint()),
        ("execution", execution()),
        ("labels", labels.finalize().to_hex().to_string()),
        ("noise_key", secret.id()),
    ];
    entries.map(|(name, value)| (name.to_owned(), value)).into()
}

/// Version, and hash of the program itself: another compiler or library may round otherwise.
fn build() -> String {
    let program = std::env::current_exe().and_then(std::fs::read).map(|bytes| blake3::hash(&bytes).to_hex()[..16].to_owned());
    format!("{} {}", env!("CARGO_PKG_VERSION"), program.unwrap_or_else(|_| "unknown".to_owned()))
}

/// What the processor offers, which decides how some sums are ordered.
fn execution() -> String {
    format!("{} {:?}", std::env::consts::ARCH, pulp::Arch::new())
}

/// The adapter thread: windows in, weights out, until the device thread has gone.
fn adapt(mut adapter: Adapter, threads: &ThreadPool, jobs: &mpsc::Receiver<Job>, inbox: &Inbox) -> Result<(), AdaptError> {
    while let Ok(job) = jobs.recv() {
        let started = Instant::now();
        if let Some(adapted) = threads.install(|| adapter.run(job))? {
            telemetry::STAGE_DURATION.record_by("adapt", started.elapsed().as_secs_f64());
            inbox.push_order(Order::Adapted(Box::new(adapted)));
        }
    }
    Ok(())
}

/// A named thread; its result comes by the channel, and a panic closes it.
fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<oneshot::Receiver<T>, DaemonError> {
    let (sender, result) = oneshot::channel();
    let body = move || {
        // The daemon may have gone on without it.
        let _ = sender.send(work());
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(body)?;
    Ok(result)
}

/// The device thread ends by itself only where the stream turns out to be another.
fn ended_by_itself(result: Result<Result<Finished, PipelineError>, oneshot::error::RecvError>) -> Result<Finished, DaemonError> {
    match result {
        Ok(Ok(finished)) if finished.is_rewritten => Ok(finished),
        result => Err(ended("device thread", result.map(|result| result.map_err(DaemonError::from)))),
    }
}

fn ended<T>(name: &'static str, result: Result<Result<T, DaemonError>, oneshot::error::RecvError>) -> DaemonError {
    match result {
        Ok(Err(error)) => error,
        Ok(Ok(_)) | Err(_) => DaemonError::Ended(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ClassConditioning;
    use crate::state::OpenFrame;
    use crate::tiny;

    #[test]
    fn what_cameras_have_shown_another_bundle_says_nothing_of_the_new_ones_classes() {
        let bundle = tiny::bundle(1, ClassConditioning::Readout);
        let even = Recent::default().prior(bundle.labels.len());
        let mut state = pipeline::first_state(&bundle, &tiny::config(), "frames".to_owned(), 1);
        state.recent.see(std::iter::once("door"));
        state.recent.get_mut("door").expect("it was seen").see(&[0.5, 0.5]);
        let frame = tiny::frame(1, 0, "door");
        state.open.push(OpenFrame { frame, is_judged: true, input_chain: [0; 32], prior: vec![0.5, 0.5] });
        start_from_source(&mut state, &bundle);
        assert!(state.recent.is_empty() && state.open[0].prior == even, "{:?}", state.open[0].prior);
    }
}
