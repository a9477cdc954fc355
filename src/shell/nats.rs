//! The connection to NATS and all that comes in over it, but for the stream (`jetstream.rs`).
//!
//! First station of a frame's path. Ingest only wraps messages and pushes them into the [`Inbox`]; the device thread decodes
//! them. Nothing here is waited for by the device thread.
//! Invariants: an outage ends no task: the client reconnects for ever, with jitter. A subscription buffers few messages,
//! because the client counts messages and not bytes; what it drops is an event, and counted.
//! Absent on purpose: JetStream acknowledgements of frames. The checkpoint alone says where we are.

use super::engine::{Lines, headers};
use super::queue::{Answer, Arrival, Asker, Inbox, Label, Order, Refusal};
use super::status::{Phase, Shared};
use super::telemetry;
use crate::config::{self, NatsConfig};
use crate::wire::{self, Command, Subjects, Terms};
use async_nats::jetstream;
use async_nats::rustls::pki_types::{CertificateDer, pem::PemObject};
use async_nats::service::{Request, Service, ServiceExt, endpoint::Endpoint};
use async_nats::{Client, ConnectOptions, Event, ServerAddr, Subscriber};
use futures_util::stream::{StreamExt, select_all};
use nkeys::KeyPair;
use parking_lot::Mutex;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A dead connection is noticed after two of these.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);
/// Messages that one subscription buffers, and commands (publications among them) that wait for the socket.
pub const SUBSCRIPTION_MESSAGES_MAX: usize = 256;
const CLIENT_COMMANDS_MAX: usize = 512;
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
const CONTROL_REQUESTS_MAX: usize = 64;
/// A command expires so long after it came, at the latest; who asked waits twice as long for what comes of it.
const COMMAND_PATIENCE: Duration = Duration::from_secs(30);
/// Verbs of `<prefix>.control.<verb>`, but for `status`.
const COMMANDS: [&str; 4] = ["adapt", "checkpoint", "reset", "rollback"];

/// A connection that cannot be made, or a subscription on it.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    #[error("failed to read who we are to NATS, and whom we believe: {0}")]
    Credentials(#[from] IdentityError),
    #[error("{host} would be spoken to in the clear: write tls://, or give --ca, or --allow-plaintext")]
    InTheClear { host: String },
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

/// A file of an [`Identity`] that cannot be used. What is in it is not shown.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct IdentityError {
    path: PathBuf,
    source: io::Error,
}

impl IdentityError {
    fn of(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self { path: path.to_owned(), source }
    }
}

/// Connects; it returns before the broker is there, and keeps trying.
///
/// # Errors
/// `Credentials` for a file that cannot be used, `Connect` for addresses that are none.
pub async fn connect(config: &NatsConfig, shared: &Arc<Shared>) -> Result<Client, NatsError> {
    let delay_max = config.reconnect_delay_max;
    let events = Arc::clone(shared);
    let obstacle = Mutex::new(String::new());
    let mut options = ConnectOptions::new()
        .name(&config.name)
        .retry_on_initial_connect()
        .ping_interval(PING_INTERVAL)
        .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
        .client_capacity(CLIENT_COMMANDS_MAX)
        .reconnect_delay_callback(move |attempts| jittered(attempts, delay_max))
        .event_callback(move |event| {
            on_event(&event, &events, &mut obstacle.lock());
            std::future::ready(())
        });
    let identity = Identity {
        credentials: config.credentials_file.clone(),
        nkey: config.nkey_file.clone(),
        ca: config.ca_file.clone(),
        allow_plaintext: config.allow_plaintext,
    };
    options = identity.apply(options, &config.urls).await?;
    // Without what may stand before the host: a user and a password.
    let urls = config.urls.iter().map(|url| format!("{}://{}:{}", url.scheme(), url.host(), url.port()));
    tracing::info!(urls = ?urls.collect::<Vec<_>>(), "waiting for NATS");
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
    /// Speak in the clear to a broker on another machine
    #[arg(long, global = true)]
    pub allow_plaintext: bool,
}

impl Identity {
    /// `options` for a connection to one of `urls`, or to another broker of their cluster where that does not go in the clear. The files are
    /// looked into here, because the client would retry for ever with a seed or a certificate that is none.
    ///
    /// # Errors
    /// `InTheClear`, and `Credentials` for a file that cannot be used.
    pub async fn apply(&self, mut options: ConnectOptions, urls: &[ServerAddr]) -> Result<ConnectOptions, NatsError> {
        if let Some(url) = config::in_the_clear(urls).filter(|_| self.ca.is_none() && !self.allow_plaintext) {
            return Err(NatsError::InTheClear { host: url.host().to_owned() });
        }
        if let Some(path) = &self.credentials {
            options = options.credentials_file(path).await.map_err(IdentityError::of(path))?;
        }
        if let Some(path) = &self.nkey {
            options = options.nkey(seed(path).map_err(IdentityError::of(path))?);
        }
        if let Some(path) = &self.ca {
            check_certificates(path).map_err(IdentityError::of(path))?;
            options = options.add_root_certificates(path.clone());
        }
        // A broker names the others of its cluster by address alone: that tls:// was meant for them too must be said.
        Ok(match () {
            () if self.ca.is_some() || urls.iter().all(ServerAddr::tls_required) => options.require_tls(true),
            () if self.allow_plaintext => options,
            () => options.ignore_discovered_servers(),
        })
    }
}

/// The seed in the file.
fn seed(path: &Path) -> io::Result<String> {
    let text = std::fs::read_to_string(path)?;
    let seed = text.trim();
    KeyPair::from_seed(seed).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not the seed of an nkey"))?;
    Ok(seed.to_owned())
}

fn check_certificates(path: &Path) -> io::Result<()> {
    let none = || io::Error::new(io::ErrorKind::InvalidData, "no certificates in PEM");
    let text = std::fs::read(path)?;
    let mut certificates = CertificateDer::pem_slice_iter(&text).peekable();
    certificates.peek().ok_or_else(none)?;
    if certificates.all(|certificate| certificate.is_ok()) { Ok(()) } else { Err(none()) }
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

/// `obstacle` is why the last attempt to connect failed; it is logged where it is another than before.
fn on_event(event: &Event, shared: &Shared, obstacle: &mut String) {
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
            obstacle.clear();
            shared.set_connected(true);
        }
        Event::Disconnected | Event::Closed => {
            tracing::warn!(event = name, "NATS connection lost");
            shared.set_connected(false);
        }
        Event::ServerError(error) => tracing::warn!(%error, "NATS server error"),
        // One comes for each refused attempt to connect.
        Event::ClientError(error) if error.to_string() != *obstacle => {
            tracing::warn!(%error, "NATS cannot be reached");
            *obstacle = error.to_string();
        }
        event => tracing::debug!(%event, "NATS event"),
    }
}

/// Core mode: takes frames in for ever. `sequence` is the last one of the checkpoint.
///
/// # Errors
/// `Subscribe` where the connection was closed.
pub async fn take_frames(client: &Client, subjects: &Subjects, lines: &Lines, mut sequence: u64) -> Result<(), NatsError> {
    lines.shared.set_phase(Phase::WaitingForNats);
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
                if !inbox.push_label(Label { camera, label }) {
                    telemetry::LABELS_RECEIVED.count_by("shed");
                }
            }
            Err(error) => {
                telemetry::LABELS_RECEIVED.count_by(error.reason());
                tracing::debug!(%error, "label rejected");
            }
        }
    }
}

/// The NATS service, and its endpoints on the control subjects.
pub struct Control {
    /// Answers `$SRV` while it is kept.
    _service: Service,
    status: Endpoint,
    commands: Vec<Endpoint>,
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
        let offer = async |verb: &'static str| {
            let endpoint = service.endpoint_builder().name(verb).add(subjects.control(verb)).await;
            endpoint.map_err(NatsError::Service)
        };
        let status = offer("status").await?;
        let mut commands = Vec::new();
        for verb in COMMANDS {
            commands.push(offer(verb).await?);
        }
        Ok(Self { _service: service, status, commands })
    }

    /// Answers requests until the connection is closed. The status waits for no command.
    pub async fn serve(self, inbox: Arc<Inbox>, shared: Arc<Shared>) {
        let answer = |request| answer(request, Arc::clone(&inbox), Arc::clone(&shared));
        let commands = select_all(self.commands).for_each_concurrent(CONTROL_REQUESTS_MAX, answer);
        tokio::join!(self.status.for_each(answer), commands);
    }
}

async fn answer(request: Request, inbox: Arc<Inbox>, shared: Arc<Shared>) {
    let verb = request.message.subject.rsplit('.').next().unwrap_or_default().to_owned();
    let headers = headers(&request.message);
    let command = wire::parse_control(&verb, &request.message.payload).and_then(|command| Ok((command, Terms::parse(&headers)?)));
    let answer = match command {
        // Known without the device thread, which may be at work or not there yet.
        Ok((Command::Status, _)) => Ok(shared.report()),
        Ok((command, terms)) => ask(&inbox, command, terms, COMMAND_PATIENCE).await.map(wire::accepted),
        Err(error) => Err((&error).into()),
    };
    telemetry::CONTROL_MESSAGES.count_by(answer.as_ref().map_or_else(|refusal| refusal.outcome, |_| "done"));
    let reply = answer.unwrap_or_else(|Refusal { outcome, text }| wire::refused(outcome, &text));
    match verb.as_str() {
        // Asked for every few seconds, and changes nothing.
        "status" => tracing::debug!(verb, %reply, "control"),
        _ => tracing::info!(verb, %reply, "control"),
    }
    // Without a reply subject nobody listens; the command was carried out all the same.
    let _ = request.respond(Ok(reply.to_string().into())).await;
}

/// Hands a command to the device thread and waits for what came of it. There may be no device thread yet, for as long as the streams are
/// missing: what is not done within `patience` is not done later either.
async fn ask(inbox: &Inbox, command: Command, mut terms: Terms, patience: Duration) -> Answer {
    let (reply, answer) = oneshot::channel();
    let expires_ns = ((telemetry::seconds_since_1970() + patience.as_secs_f64()) * 1e9) as i64;
    terms.expires_ns = Some(terms.expires_ns.map_or(expires_ns, |given| given.min(expires_ns)));
    if !inbox.push_order(Order::Control(command, Asker { terms, reply })) {
        return Err(Refusal { outcome: "flood", text: "too many requests wait".to_owned() });
    }
    match tokio::time::timeout(2 * patience, answer).await {
        Ok(answer) => answer.unwrap_or_else(|_| Err("the daemon is stopping".to_owned().into())),
        Err(_) => {
            let text = format!("nothing came of it in {} s: look at the status", 2 * patience.as_secs());
            Err(Refusal { outcome: "expired", text })
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::queue::{AtLimit, Input, Limits};

    #[tokio::test]
    async fn a_command_that_nobody_takes_is_answered_and_does_nothing_later() {
        let inbox = Inbox::new(Limits { frames: 1, bytes: 1, at_limit: AtLimit::HoldBack });
        let forever = Terms { expires_ns: Some(i64::MAX), ..Terms::default() };
        for terms in [Terms::default(), forever] {
            let answer = ask(&inbox, Command::Reset, terms, Duration::from_millis(10)).await;
            assert_eq!(answer.expect_err("nobody takes it").outcome, "expired");
            let Input::Order(Order::Control(Command::Reset, asker)) = inbox.next(|_| true) else { panic!("the reset waits") };
            let now_ns = (telemetry::seconds_since_1970() * 1e9) as i64;
            assert_eq!(asker.terms.check(1, now_ns).expect_err("it is late").reason(), "expired");
        }
    }
}
