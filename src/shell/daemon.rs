//! Supervision: builds every part, starts every thread and task, and ends them in order.
//!
//! | channel | from | to | limit | at the limit |
//! |---|---|---|---|---|
//! | inbox, frames | ingest | device thread | `nats.queue_frames_max`, `queue_bytes_max` | core: oldest shed; JetStream: held back |
//! | inbox, orders | labels, control, adapter, store | device thread | 4096 | labels shed, control refused |
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
use super::engine::{Codec, Engine, Lines, STOP_PATIENCE};
use super::http::{self, ListenError};
use super::jetstream::{self, StreamFacts};
use super::nats::{self, Control, NatsError};
use super::queue::{AtLimit, Inbox, Limits, Order, Outbox, Outgoing};
use super::status::{Phase, Shared};
use super::store::{Store, StoreError};
use super::store_thread::{self, Save, StoreOrder, StoreQueue};
use super::telemetry::{self, Telemetry, TelemetryError};
use crate::bundle::Bundle;
use crate::checkpoint::Meta;
use crate::config::{Config, NatsMode};
use crate::frame::{FrameSeq, WeightsVersion};
use crate::learner::{AdaptError, Adapter, source_state};
use crate::noise::NoiseSecret;
use crate::pipeline::{Job, OutputShape, Pipeline, PipelineError, Start};
use crate::state::{DurableState, MonitorState, Served};
use crate::wire::{self, EventRecord, PrefixError, Subjects};
use async_nats::jetstream::Context;
use async_nats::{Client, HeaderMap};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Predictions and notices that may wait for NATS: twice the largest window, and some.
const OUTBOX_MESSAGES_MAX: usize = 4096;
/// How long a stopping daemon waits for its last predictions to leave.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

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
    /// After sysexits.h: 69 unavailable, 70 software, 74 input or output, 78 configuration.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Listen(_) | Self::Nats(NatsError::Connect(_)) => 69,
            Self::Prefix(_) | Self::Bundle(_) | Self::Nats(NatsError::Credentials(_)) => 78,
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
    meta: Meta,
}

/// Where a session starts.
struct Origin {
    start: Start,
    /// Of the stream; without what a lost end adds to the state's.
    incarnation: String,
    /// First part of the predictions' ids.
    id_prefix: String,
    last: u64,
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
        let mut recovery = store.latest()?;
        for quarantined in &recovery.quarantined {
            tracing::error!(generation = %quarantined.generation, path = %quarantined.path.display(), reason = quarantined.reason, "damaged checkpoint moved away");
        }
        let meta = Meta { created_ns: 0, fingerprints: fingerprints(&config, &bundle, &secret) };
        if let Some(restored) = &mut recovery.newest {
            let differing: Vec<String> = restored.meta.differing(&meta.fingerprints).into_iter().map(|name| name.to_string()).collect();
            tracing::info!(generation = %restored.generation, sequence = restored.state.sequence.0, ?differing, "checkpoint restored");
            if differing.iter().any(|name| name == "bundle") {
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
        };
        let stream = (config.nats.mode == NatsMode::Jetstream).then(|| nats::jetstream_context(&client));
        let restored = recovery.newest.map(|restored| restored.state);
        Ok(Self { config, bundle, secret, subjects, client, stream, lines, store: Some(store), restored, meta })
    }

    /// Sessions, one after the other, and the order of the end.
    async fn run(mut self, mut tasks: JoinSet<()>, shutdown: CancellationToken) -> Result<(), DaemonError> {
        let publisher =
            nats::publish(self.client.clone(), self.stream.clone(), Arc::clone(&self.lines.outbox), Arc::clone(&self.lines.inbox));
        let publisher = tokio::spawn(publisher);
        let mut store = self.start_store_thread()?;
        self.start_tasks(&mut tasks).await?;
        loop {
            let end = tokio::select! {
                // A session that is cut off here ends with the process.
                end = self.session(&shutdown) => end?,
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
        if tokio::time::timeout(DRAIN_PATIENCE, async { (publisher.await, self.client.flush().await) }).await.is_err() {
            tracing::warn!("stopped with predictions that NATS did not take");
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
        let Some(origin) = self.origin(shutdown).await else { return Ok(SessionEnd::Shutdown) };
        let Origin { start, incarnation, id_prefix, last } = origin;
        let output = OutputShape { top_k: self.config.output.top_k, checkpoint_windows: self.config.checkpoint.every_windows };
        let pipeline = Pipeline::new(&self.bundle, &self.config.adapt, output, self.secret.clone(), start)?;
        let adapter = Adapter::new(&self.bundle, &self.config.adapt, pipeline.state().learner)?;
        let at_limit = at_limit(self.config.nats.mode);
        let codec = Codec::new(&self.config, self.bundle.labels.len(), self.subjects.clone(), id_prefix, at_limit);
        let telemetry = Telemetry::new(&self.bundle.labels, self.config.limits.cameras_max);
        let (jobs, jobs_of_adapter) = mpsc::channel();
        let inbox = Arc::clone(&self.lines.inbox);
        let mut adapter = spawn("adapter", move || adapt(adapter, &jobs_of_adapter, &inbox))?;
        let engine = Engine::new(pipeline, codec, self.lines.clone(), jobs, telemetry);
        let mut engine = spawn("device", move || engine.run())?;
        tracing::info!(incarnation, last, "answering frames");
        let end = tokio::select! {
            () = shutdown.cancelled() => SessionEnd::Shutdown,
            // Frames that are cut off were not applied: the stream has them still, and core NATS promises nothing.
            end = self.ingest(&incarnation, last) => end?,
            result = &mut engine => return Err(ended("device thread", result.map(|result| result.map_err(DaemonError::from)))),
            result = &mut adapter => return Err(ended("adapter thread", result.map(|result| result.map_err(DaemonError::from)))),
        };
        self.lines.shared.set_phase(Phase::Stopping);
        self.lines.inbox.push_order(Order::Stop);
        let state = engine.await.map_err(|_| DaemonError::Ended("device thread"))??;
        match (&end, tokio::time::timeout(STOP_PATIENCE, &mut adapter).await) {
            (_, Ok(result)) => result.map_err(|_| DaemonError::Ended("adapter thread"))??,
            (SessionEnd::Shutdown, Err(_)) => tracing::warn!("stopped while a window was being learned from: it is lost"),
            (SessionEnd::NewIncarnation, Err(_)) => adapter.await.map_err(|_| DaemonError::Ended("adapter thread"))??,
        }
        self.lines.inbox.forget_windows();
        self.restored = Some(state);
        Ok(end)
    }

    async fn ingest(&self, incarnation: &str, last: u64) -> Result<SessionEnd, DaemonError> {
        match &self.stream {
            None => {
                nats::take_frames(&self.client, &self.subjects, &self.lines, last).await?;
                Err(DaemonError::Ended("the subscription to frames"))
            }
            Some(stream) => {
                jetstream::follow(stream, &self.subjects, &self.lines, incarnation, last).await;
                Ok(SessionEnd::NewIncarnation)
            }
        }
    }

    /// Waits for the stream, where there is one, and decides where to start; none at a shutdown.
    async fn origin(&mut self, shutdown: &CancellationToken) -> Option<Origin> {
        let facts = match &self.stream {
            None => None,
            Some(stream) => {
                self.lines.shared.set_phase(Phase::WaitingForStream);
                tokio::select! {
                    facts = jetstream::wait_for_stream(stream, &self.subjects, &self.lines.shared) => Some(facts),
                    () = shutdown.cancelled() => return None,
                }
            }
        };
        let incarnation = facts.as_ref().map_or_else(|| "core".to_owned(), |facts| facts.incarnation.clone());
        let Some(mut state) = self.restored.take() else {
            let id_prefix = id_prefix(&incarnation, facts.is_some());
            return Some(Origin { start: Start::Source { incarnation: incarnation.clone() }, incarnation, id_prefix, last: 0 });
        };
        if let Some(change) = reconcile(&mut state, &incarnation, facts.as_ref()) {
            tracing::warn!(
                ?change,
                incarnation = state.incarnation,
                sequence = state.sequence.0,
                "the stream is not the checkpoint's: weights are kept"
            );
            // On disk at once: were the stream to grow past the old number first, the change could not be seen any more.
            self.lines.store.push(StoreOrder::Save(Save { state: Box::new(state.clone()), ticket: 0, replies: Vec::new() }));
            self.announce(&change, state.sequence);
        }
        let id_prefix = id_prefix(&state.incarnation, facts.is_some());
        let last = state.sequence.0;
        Some(Origin { start: Start::Resume(Box::new(state)), incarnation, id_prefix, last })
    }

    fn announce(&self, event: &EventRecord, sequence: FrameSeq) {
        self.lines.outbox.push(Outgoing {
            subject: self.subjects.events(event),
            headers: HeaderMap::new(),
            payload: wire::encode_event(event, sequence).into(),
            is_prediction: false,
            made: Instant::now(),
        });
    }
}

/// Weights of another bundle are another model's: position and switches are kept, what was learned is not.
fn start_from_source(state: &mut DurableState, bundle: &Bundle) {
    let version = WeightsVersion(state.serving.version.max(state.learner.version).0 + 1);
    state.learner = source_state(&bundle.classifier, version);
    state.serving = Served::now(&state.learner);
    state.pending.clear();
    state.monitor = MonitorState::default();
}

/// Makes a checkpoint's state fit the stream that is there; names what had to be changed.
///
/// Another stream is begun at its beginning. A stream that lost its end goes on after what is left, under a changed
/// incarnation: its next numbers stand for other frames than before.
fn reconcile(state: &mut DurableState, incarnation: &str, facts: Option<&StreamFacts>) -> Option<EventRecord> {
    let is_same = state.incarnation.split('+').next() == Some(incarnation);
    match facts {
        _ if !is_same => {
            state.incarnation = incarnation.to_owned();
            state.sequence = FrameSeq(0);
            Some(EventRecord::NewStream { incarnation: state.incarnation.clone() })
        }
        Some(facts) if facts.last_sequence < state.sequence.0 => {
            state.incarnation = format!("{incarnation}+{}", facts.last_sequence);
            state.sequence = FrameSeq(facts.last_sequence);
            Some(EventRecord::StreamTruncated { incarnation: state.incarnation.clone() })
        }
        _ => None,
    }
}

/// Eight hex digits; without a stream, numbers mean nothing beyond this process, so that chance takes the place of a name.
fn id_prefix(incarnation: &str, has_stream: bool) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(incarnation.as_bytes());
    if !has_stream {
        hasher.update(&telemetry::seconds_since_1970().to_le_bytes());
        hasher.update(&std::process::id().to_le_bytes());
    }
    hasher.finalize().to_hex()[..8].to_owned()
}

fn at_limit(mode: NatsMode) -> AtLimit {
    match mode {
        NatsMode::Core => AtLimit::ShedOldest,
        NatsMode::Jetstream => AtLimit::HoldBack,
    }
}

/// What a state's next bit depends on outside of it.
fn fingerprints(config: &Config, bundle: &Bundle, secret: &NoiseSecret) -> BTreeMap<String, String> {
    let mut labels = blake3::Hasher::new();
    for label in &bundle.labels {
        labels.update(label.as_bytes());
    }
    let entries = [
        ("build", env!("CARGO_PKG_VERSION").to_owned()),
        // The list of hashes that every file of the bundle was checked against.
        ("bundle", blake3::hash(&std::fs::read(&config.bundle.files.hashes).unwrap_or_default()).to_hex().to_string()),
        ("configuration", config.fingerprint()),
        ("labels", labels.finalize().to_hex().to_string()),
        ("noise_key", secret.id()),
    ];
    entries.map(|(name, value)| (name.to_owned(), value)).into()
}

/// The adapter thread: windows in, weights out, until the device thread has gone.
fn adapt(mut adapter: Adapter, jobs: &mpsc::Receiver<Job>, inbox: &Inbox) -> Result<(), AdaptError> {
    while let Ok(job) = jobs.recv() {
        let started = Instant::now();
        if let Some(adapted) = adapter.run(job)? {
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

fn ended<T>(name: &'static str, result: Result<Result<T, DaemonError>, oneshot::error::RecvError>) -> DaemonError {
    match result {
        Ok(Err(error)) => error,
        Ok(Ok(_)) | Err(_) => DaemonError::Ended(name),
    }
}
