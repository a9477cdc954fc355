//! The connection to NATS and all that comes in over it, but for the stream (`jetstream.rs`).
//!
//! First station of a frame's path. Ingest only wraps messages and pushes them into the [`Inbox`]; the device thread decodes
//! them. Nothing here is waited for by the device thread.
//! Invariants: an outage ends no task: the client reconnects for ever, with jitter. A subscription buffers few messages,
//! because the client counts messages and not bytes; what it drops is an event, and counted.
//! Absent on purpose: JetStream acknowledgements of frames. The checkpoint alone says where we are.

use super::engine::{Lines, headers};
use super::queue::{Answer, Arrival, Asker, Inbox, Order, Refusal};
use super::status::{Phase, Shared};
use super::telemetry;
use crate::config::NatsConfig;
use crate::wire::{self, Command, Subjects, Terms};
use async_nats::jetstream;
use async_nats::service::{Request, Service, ServiceExt, endpoint::Endpoint};
use async_nats::{Client, ConnectOptions, Event, Subscriber};
use futures_util::stream::{StreamExt, select_all};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A dead connection is noticed after two of these.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);
/// Messages that one subscription buffers, and commands (publications among them) that wait for the socket.
const SUBSCRIPTION_MESSAGES_MAX: usize = 256;
const CLIENT_COMMANDS_MAX: usize = 512;
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
const CONTROL_REQUESTS_MAX: usize = 64;
/// Verbs of `<prefix>.control.<verb>`.
const VERBS: [&str; 5] = ["adapt", "status", "checkpoint", "reset", "rollback"];

/// A connection that cannot be made, or a subscription on it.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    #[error("failed to read the NATS credentials: {0}")]
    Credentials(#[from] std::io::Error),
    #[error("failed to connect to NATS: {0}")]
    Connect(#[from] async_nats::ConnectError),
    #[error("failed to subscribe: {0}")]
    Subscribe(#[from] async_nats::client::SubscribeError),
    #[error("failed to reach the broker: {0}")]
    Flush(#[from] async_nats::client::FlushError),
    #[error("failed to offer the NATS service: {0}")]
    Service(#[source] async_nats::Error),
    #[error("JetStream: {0}")]
    JetStream(#[source] async_nats::Error),
}

/// Connects; it returns before the broker is there, and keeps trying.
///
/// # Errors
/// `Credentials` for a file that cannot be read, `Connect` for addresses that are none.
pub async fn connect(config: &NatsConfig, shared: &Arc<Shared>) -> Result<Client, NatsError> {
    let delay_max = config.reconnect_delay_max;
    let events = Arc::clone(shared);
    let mut options = ConnectOptions::new()
        .name(&config.name)
        .retry_on_initial_connect()
        .ping_interval(PING_INTERVAL)
        .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
        .client_capacity(CLIENT_COMMANDS_MAX)
        .reconnect_delay_callback(move |attempts| jittered(attempts, delay_max))
        .event_callback(move |event| {
            on_event(&event, &events);
            std::future::ready(())
        });
    let identity = Identity { credentials: config.credentials_file.clone(), nkey: config.nkey_file.clone(), ca: config.ca_file.clone() };
    options = identity.apply(options).await?;
    Ok(options.connect(&config.urls[..]).await?)
}

/// Who we are, and whom we believe; files, so that no secret is in a command line or an address.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Identity {
    /// Credentials of NATS: a JWT and its seed
    #[arg(long, value_name = "FILE", global = true)]
    pub credentials: Option<PathBuf>,
    /// Seed of an nkey
    #[arg(long, value_name = "FILE", global = true)]
    pub nkey: Option<PathBuf>,
    /// Certificates (PEM) that the broker's must be signed by one of; nothing goes in the clear then
    #[arg(long, value_name = "FILE", global = true)]
    pub ca: Option<PathBuf>,
}

impl Identity {
    /// # Errors
    /// `Credentials` for a file that cannot be read.
    pub async fn apply(&self, mut options: ConnectOptions) -> Result<ConnectOptions, NatsError> {
        if let Some(path) = &self.credentials {
            options = options.credentials_file(path).await?;
        }
        if let Some(path) = &self.nkey {
            options = options.nkey(std::fs::read_to_string(path)?.trim().to_owned());
        }
        if let Some(path) = &self.ca {
            options = options.add_root_certificates(path.clone()).require_tls(true);
        }
        Ok(options)
    }
}

/// Doubles with each attempt up to `max`; half of it is chance, so that daemons do not come back all at once.
pub fn jittered(attempts: usize, max: Duration) -> Duration {
    let doublings = u32::try_from(attempts.min(16)).unwrap_or(16);
    let full = RECONNECT_DELAY_MIN.saturating_mul(1 << doublings).min(max);
    let mut chance = [0u8];
    // Without the system's randomness there is no jitter, which is no reason to stop.
    let _ = getrandom::fill(&mut chance);
    full / 2 + full / 2 * u32::from(chance[0]) / 255
}

fn on_event(event: &Event, shared: &Shared) {
    let name = match event {
        Event::Connected => "connected",
        Event::Disconnected => "disconnected",
        Event::LameDuckMode => "lame_duck",
        Event::Draining => "draining",
        Event::Closed => "closed",
        Event::ServerError(_) => "server_error",
        Event::ClientError(_) => "client_error",
        Event::SlowConsumer(_) => {
            telemetry::SLOW_CONSUMER_EVENTS.count(1);
            return;
        }
    };
    telemetry::NATS_EVENTS.count_by(name);
    match event {
        Event::Connected => {
            tracing::info!("connected to NATS");
            shared.set_connected(true);
        }
        Event::Disconnected | Event::Closed => {
            tracing::warn!(event = name, "NATS connection lost");
            shared.set_connected(false);
        }
        Event::ServerError(error) => tracing::warn!(%error, "NATS server error"),
        // One comes for each refused attempt to reconnect.
        event => tracing::debug!(%event, "NATS event"),
    }
}

/// Core mode: takes frames in for ever. `sequence` is the last one of the checkpoint.
///
/// # Errors
/// `Subscribe` where the connection was closed.
pub async fn take_frames(client: &Client, subjects: &Subjects, lines: &Lines, mut sequence: u64) -> Result<(), NatsError> {
    let mut frames = client.subscribe(subjects.all_frames()).await?;
    // Back from here, the broker knows of every subscription that was made before.
    client.flush().await?;
    lines.shared.set_phase(Phase::Running);
    while let Some(message) = frames.next().await {
        sequence += 1;
        lines.inbox.push_frame(Arrival { message, sequence, broker_time_ns: None, received: Instant::now() }).await;
    }
    Ok(())
}

/// Takes labels in until the connection is closed.
pub async fn take_labels(mut labels: Subscriber, inbox: Arc<Inbox>, classes: usize) {
    while let Some(message) = labels.next().await {
        let camera = message.subject.rsplit('.').next().unwrap_or_default().to_owned();
        match wire::parse_label(&message.payload, classes) {
            Ok(label) => {
                if !inbox.push_order(Order::Label { camera, label }) {
                    telemetry::LABELS_RECEIVED.count_by("shed");
                }
            }
            Err(error) => {
                telemetry::LABELS_RECEIVED.count_by("rejected");
                tracing::debug!(%error, "label rejected");
            }
        }
    }
}

/// The NATS service, and its endpoints on the control subjects.
pub struct Control {
    /// Answers `$SRV` while it is kept.
    _service: Service,
    endpoints: Vec<Endpoint>,
}

impl Control {
    /// Subscribes to the control subjects and `$SRV`.
    ///
    /// # Errors
    /// `Service` where the connection was closed.
    pub async fn offer(client: &Client, subjects: &Subjects, name: &str, shared: &Arc<Shared>) -> Result<Self, NatsError> {
        let statistics = Arc::clone(shared);
        let service = client
            .service_builder()
            .description("keeps an image classifier adapted to a stream of frames")
            .stats_handler(move |_, _| statistics.report())
            .start(name, env!("CARGO_PKG_VERSION"))
            .await
            .map_err(NatsError::Service)?;
        let mut endpoints = Vec::new();
        for verb in VERBS {
            let endpoint = service.endpoint_builder().name(verb).add(subjects.control(verb)).await;
            endpoints.push(endpoint.map_err(NatsError::Service)?);
        }
        Ok(Self { _service: service, endpoints })
    }

    /// Answers requests until the connection is closed.
    pub async fn serve(self, inbox: Arc<Inbox>, shared: Arc<Shared>) {
        select_all(self.endpoints).for_each_concurrent(CONTROL_REQUESTS_MAX, |request| answer(request, &inbox, &shared)).await;
    }
}

async fn answer(request: Request, inbox: &Inbox, shared: &Shared) {
    let verb = request.message.subject.rsplit('.').next().unwrap_or_default().to_owned();
    let headers = headers(&request.message);
    let command = wire::parse_control(&verb, &request.message.payload).and_then(|command| Ok((command, Terms::parse(&headers)?)));
    let answer = match command {
        // Known without the device thread, which may be at work or not there yet.
        Ok((Command::Status, _)) => Ok(shared.report()),
        Ok((command, terms)) => ask(inbox, command, terms).await.map(wire::accepted),
        Err(error) => Err((&error).into()),
    };
    telemetry::CONTROL_MESSAGES.count_by(answer.as_ref().map_or_else(|refusal| refusal.outcome, |_| "done"));
    let reply = answer.unwrap_or_else(|Refusal { outcome, text }| wire::refused(outcome, &text));
    tracing::info!(verb, %reply, "control");
    // Without a reply subject nobody listens; the command was carried out all the same.
    let _ = request.respond(Ok(reply.to_string().into())).await;
}

/// Hands a command to the device thread and waits for what came of it.
async fn ask(inbox: &Inbox, command: Command, terms: Terms) -> Answer {
    let (reply, answer) = oneshot::channel();
    if !inbox.push_order(Order::Control(command, Asker { terms, reply })) {
        return Err(Refusal { outcome: "flood", text: "too many requests wait".to_owned() });
    }
    answer.await.unwrap_or_else(|_| Err("the daemon is stopping".to_owned().into()))
}

/// Eight hex digits that nobody else is likely to have.
pub fn chance_id() -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&telemetry::seconds_since_1970().to_le_bytes());
    hasher.update(&std::process::id().to_le_bytes());
    let mut chance = [0u8; 16];
    // Without the system's randomness, time and process have to do.
    let _ = getrandom::fill(&mut chance);
    hasher.update(&chance);
    hasher.finalize().to_hex()[..8].to_owned()
}

/// A JetStream context whose publications are given up after a few seconds, to be tried again.
pub fn jetstream_context(client: &Client) -> jetstream::Context {
    jetstream::context::ContextBuilder::new().ack_timeout(ACK_TIMEOUT).timeout(ACK_TIMEOUT).build(client.clone())
}
