//! A real nats-server and the real daemon, for tests from outside.
//!
//! Every wait polls a condition until a deadline; nothing sleeps for a guess. Processes end with the test that started
//! them. The servers are those of `NATS_SERVER_BIN` (paths with `:` between them), else `nats-server` on the PATH.

#![allow(dead_code, reason = "each test takes what it needs")]

use candle_core::{Device, Tensor, safetensors};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use undrift::model::{ClassConditioning, Dit, DitConfig, ImageShape, TrunkConfig, Vit, VitConfig, parameters};
use undrift::prediction::Prediction;
use undrift::wire;

/// The longest that a condition may take, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
pub const CLASSES: usize = 10;

/// A server's binary.
#[derive(Clone, Debug)]
pub struct Server {
    binary: String,
    version: String,
}

impl Server {
    /// Whether it is of the old line, which the project promises to work with too.
    pub fn is_2_9(&self) -> bool {
        self.version.contains("v2.9.")
    }
}

/// The servers to test with; each is named on stdout.
pub fn servers() -> Vec<Server> {
    let binaries = std::env::var("NATS_SERVER_BIN").unwrap_or_else(|_| "nats-server".to_owned());
    let server = |binary: &str| {
        let output = Command::new(binary).arg("--version").output().unwrap_or_else(|error| panic!("{binary}: {error}"));
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        println!("with {version} ({binary})");
        Server { binary: binary.to_owned(), version }
    };
    binaries.split(':').map(server).collect()
}

/// Polls `condition` until it gives a value.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// A port that was free a moment ago, and that neither this process nor a connection's own end gets again: a server that is
/// down for a while finds it free.
pub fn free_port() -> u16 {
    // Below those that Linux gives to connections. Processes begin far from each other.
    const PORTS: Range<u32> = 10_000..32_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(997);
    loop {
        let offset = begin.wrapping_add(TAKEN.fetch_add(1, Relaxed)) % (PORTS.end - PORTS.start);
        let port = u16::try_from(PORTS.start + offset).expect("a port");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A running nats-server; its store outlives a stop.
pub struct Broker {
    server: Server,
    store: TempDir,
    pub port: u16,
    process: Option<Child>,
}

impl Broker {
    pub async fn start(server: &Server) -> Self {
        Self::start_on(server, free_port()).await
    }

    pub async fn start_on(server: &Server, port: u16) -> Self {
        let store = TempDir::new().expect("temporary folders can be made");
        let mut broker = Self { server: server.clone(), store, port, process: None };
        broker.resume().await;
        broker
    }

    /// With a configuration of its own, which may read these variables; the folder that is to keep its streams is NATS_STORE.
    pub async fn start_with(server: &Server, configuration: &Path, variables: &[(&str, String)]) -> Self {
        let store = TempDir::new().expect("temporary folders can be made");
        let mut broker = Self { server: server.clone(), store, port: free_port(), process: None };
        let mut command = broker.command();
        command.arg("-c").arg(configuration).env("NATS_STORE", broker.store.path());
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        broker.run(command).await;
        broker
    }

    /// Starts it again, on the same port and store.
    pub async fn resume(&mut self) {
        let mut command = self.command();
        command.args(["-js", "-sd"]).arg(self.store.path());
        self.run(command).await;
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.server.binary);
        command.args(["-a", "127.0.0.1", "-p", &self.port.to_string()]);
        command
    }

    async fn run(&mut self, mut command: Command) {
        self.process = Some(command.stderr(Stdio::null()).spawn().expect("nats-server starts"));
        let port = self.port;
        until("nats-server listens", || async move { TcpStream::connect(("127.0.0.1", port)).ok() }).await;
    }

    /// Kills it, as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().and_then(|()| process.wait()).expect("nats-server can be killed");
        }
    }

    /// Ends it in order.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let asked = Command::new("kill").args(["-TERM", &process.id().to_string()]).status();
            asked.and_then(|_| process.wait()).expect("nats-server can be stopped");
        }
    }

    /// Kills it, and starts it again without anything that it has stored.
    pub async fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.store.path().join("jetstream")).expect("the store is there");
        self.resume().await;
    }

    /// Where the messages of a JetStream stream lie.
    pub fn folder_of(&self, stream: &str) -> PathBuf {
        self.store.path().join("jetstream/$G/streams").join(stream)
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.expect("nats-server takes connections")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A folder with a bundle of small random models, and the daemon's state.
pub struct Home {
    dir: TempDir,
    config: PathBuf,
}

impl Home {
    pub fn new() -> Self {
        let dir = TempDir::new().expect("temporary folders can be made");
        write_bundle(dir.path(), 1);
        Self { config: dir.path().join("undrift.toml"), dir }
    }

    /// With the bundle that ships.
    pub fn with_shipped_bundle() -> Self {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/fashion-mnist/undrift.toml");
        Self { config, dir: TempDir::new().expect("temporary folders can be made") }
    }

    /// Puts another classifier of the same shape into the bundle.
    pub fn retrain(&self) {
        write_bundle(self.dir.path(), 3);
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn config(&self) -> &Path {
        &self.config
    }
}

/// The daemon as a process.
pub struct Daemon {
    process: Child,
    http_port: u16,
    log: PathBuf,
}

impl Daemon {
    /// Starts it and waits until it is ready.
    pub async fn start(home: &Home, broker: &Broker, sets: &[&str]) -> Self {
        let daemon = Self::spawn(home, broker.port, sets);
        daemon.wait_until_ready().await;
        daemon
    }

    /// Starts it, and does not wait.
    pub fn spawn(home: &Home, nats_port: u16, sets: &[&str]) -> Self {
        Self::spawn_under(&[], home, nats_port, sets)
    }

    /// Starts it as the last argument of another program.
    pub fn spawn_under(program: &[&str], home: &Home, nats_port: u16, sets: &[&str]) -> Self {
        let http_port = free_port();
        let log = home.path().join(format!("log-{http_port}"));
        let file = std::fs::File::create(&log).expect("the temporary folder takes files");
        let words = [program, &[env!("CARGO_BIN_EXE_undrift"), "run", "--config"]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(home.config());
        let own = [
            format!("nats.urls=nats://127.0.0.1:{nats_port}"),
            format!("http.listen=127.0.0.1:{http_port}"),
            format!("checkpoint.dir={}", home.path().join("state").display()),
        ];
        for set in own.iter().map(String::as_str).chain(sets.iter().copied()) {
            command.args(["--set", set]);
        }
        // A group of its own, so that all of it can be killed at once.
        let process = command.process_group(0).stderr(file).spawn().expect("the daemon starts");
        Self { process, http_port, log }
    }

    pub async fn wait_until_ready(&self) {
        until("the daemon is ready", || async { self.get("/readyz").filter(|(status, _)| *status == 200) }).await;
    }

    /// Status and body of a GET; none where nobody answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http_port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.split_whitespace().nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn status(&self) -> serde_json::Value {
        let (_, body) = self.get("/status").expect("the daemon answers HTTP");
        serde_json::from_str(&body).expect("the status is JSON")
    }

    /// The value of a metric's series, written as in `/metrics`.
    pub fn metric(&self, series: &str) -> f64 {
        let (_, body) = self.get("/metrics").expect("the daemon answers HTTP");
        let line = body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
        line.unwrap_or_else(|| panic!("{series} is in\n{body}")).parse().expect("metrics are numbers")
    }

    /// Ends it without warning, and what it runs, where it is another program.
    pub fn kill(&mut self) {
        self.signal("KILL");
        self.process.wait().expect("the daemon can be killed");
    }

    /// Stops its clock until [`Self::resume`].
    pub fn pause(&self) {
        self.signal("STOP");
    }

    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        // A group may be gone already.
        let group = format!("-{}", self.process.id());
        let _ = Command::new("kill").args(["-s", name, "--", &group]).stderr(Stdio::null()).status();
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().expect("the daemon is a child").is_some()
    }

    /// Asks it to end, and gives its exit code.
    pub async fn stop(&mut self) -> i32 {
        self.terminate();
        self.exit_code().await
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().is_ok_and(|status| status.success()), "the daemon runs");
    }

    /// Waits until it has ended.
    pub async fn exit_code(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().expect("the daemon is a child") {
                return status.code().expect("it exits by itself");
            }
            assert!(Instant::now() < deadline, "the daemon ends");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// Predictions as they come, in order.
pub struct Predictions(async_nats::Subscriber);

impl Predictions {
    pub async fn of(client: &async_nats::Client) -> Self {
        let subscriber = client.subscribe("undrift.v1.predictions.*").await.expect("the connection is open");
        client.flush().await.expect("the broker answers");
        Self(subscriber)
    }

    pub async fn next(&mut self) -> (async_nats::Message, Prediction) {
        use futures_util::StreamExt;
        let message = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("a prediction comes").expect("the connection is open");
        let prediction = wire::decode_prediction(&message.payload).expect("it is a prediction");
        (message, prediction)
    }
}

/// Replaces the folder `to` by a copy of the folder `from`.
pub fn copy_folder(from: &Path, to: &Path) {
    // It may not be there yet.
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).expect("the temporary folder takes folders");
    for entry in std::fs::read_dir(from).expect("the folder is there") {
        let entry = entry.expect("the folder can be read");
        let target = to.join(entry.file_name());
        match entry.file_type().expect("the folder can be read").is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).expect("the temporary folder takes files")),
        }
    }
}

/// Sends a control message as any NATS client would, and reads the reply.
pub async fn control(client: &async_nats::Client, verb: &str, payload: &str) -> serde_json::Value {
    control_on_terms(client, verb, payload, &[]).await
}

pub async fn control_on_terms(client: &async_nats::Client, verb: &str, payload: &str, terms: &[(&str, &str)]) -> serde_json::Value {
    let request = async_nats::Request::new().headers(headers(terms)).payload(payload.to_owned().into()).timeout(Some(PATIENCE));
    let reply = client.send_request(format!("undrift.v1.control.{verb}"), request).await.expect("the daemon replies");
    serde_json::from_slice(&reply.payload).expect("the reply is JSON")
}

/// A PNG of 28 x 28 grey pixels; each index has another picture.
pub fn png(index: usize) -> Vec<u8> {
    encode(index, image::ImageFormat::Png)
}

pub fn jpeg(index: usize) -> Vec<u8> {
    encode(index, image::ImageFormat::Jpeg)
}

fn encode(index: usize, format: image::ImageFormat) -> Vec<u8> {
    let pixel =
        |x: u32, y: u32| image::Luma([u8::try_from((x * 7 + y * (3 + index as u32) + index as u32 * 29) % 256).expect("below 256")]);
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::GrayImage::from_fn(28, 28, pixel).write_to(&mut bytes, format).expect("small pictures encode");
    bytes.into_inner()
}

pub fn headers(pairs: &[(&str, &str)]) -> async_nats::HeaderMap {
    let mut headers = async_nats::HeaderMap::new();
    pairs.iter().for_each(|&(name, value)| headers.insert(name, value));
    headers
}

/// One draw a frame, which no other can contradict, and a gate that is open: every window is learned from.
const BUNDLE: &str = r#"
[bundle]
classifier = "classifier.safetensors"
diffusion = "diffusion.safetensors"
labels = "labels.txt"
statistics = "statistics.json"
canary = "canary.safetensors"
hashes = "BLAKE3SUMS"
[image]
channels = 1
height = 32
width = 32
[classifier]
architecture = "vit"
patch = 8
patch_window = 8
hidden = 16
depth = 1
heads = 2
mlp_ratio = 2
[diffusion]
conditioning = "readout"
num_timesteps = 1000
patch = 8
patch_window = 8
hidden = 16
depth = 1
heads = 2
mlp_ratio = 2
[nats]
urls = "nats://127.0.0.1:4222"
prefix = "undrift.v1"
mode = "core"
name = "undrift"
queue_frames_max = 64
queue_bytes_max = 67108864
reconnect_delay_max_ms = 500
[output]
format = "msgpack"
top_k = 3
[adapt]
enabled = true
window = 4
lag = 2
answer = "before"
answer_by = "posterior"
objective = "posterior"
trainable = "all"
timesteps = [300, 500]
judge_weight = 1.0
judge_weight_shut = 0.4
judge_weight_home = 0.2
objective_weight = 1.0
recent_weight = 1.0
prior_weight = 0.0
learning_rate = 0.01
gradient_norm_max = 1.0
anchor_pull = 0.0
anchor_pull_shut = 0.0
anchor_pull_retreat = 0.5
distance_max = 1000.0
norm_pace = 0.05
norm_own_share = 0.2
domain_distance_max = 0.35
stretched_view = true
mirrored = true
[adapt.entropy]
weight = 1.0
margin = 0.4
cosine_max = 0.4
[adapt.optimizer]
kind = "sgd"
momentum = 0.9
[adapt.gate]
memory_frames = 32.0
margin = -1.0
diversity_slack = 1.0
tolerance = 1.0
confidence_min = 0.0
consistency = 0.0
home_entropy_max = 0.0
by_camera = true
[adapt.guard]
repeats_max = 1000000
camera_share_max = 2.0
canary_every_windows = 2
canary_images = 4
canary_tolerance = 0.5
canary_evidence_max = 1e9
[adapt.condition]
steps_per_window = 1
draws_per_step = 1
accumulation_steps = 1
same_noise = true
[checkpoint]
dir = "state"
every_windows = 2
keep = 5
[http]
listen = "127.0.0.1:9464"
[limits]
payload_bytes_max = 65536
pixels_max = 1048576
dimension_max = 2048
cameras_max = 64
stall_patience_ms = 30000
[log]
format = "text"
"#;

fn write_bundle(dir: &Path, classifier_seed: u64) {
    let image = ImageShape { channels: 1, height: 32, width: 32 };
    let trunk = TrunkConfig { image, patch: 8, patch_window: 8, hidden: 16, depth: 1, heads: 2, mlp_ratio: 2 };
    let diffusion = DitConfig { trunk, classes: CLASSES, conditioning: ClassConditioning::Readout, num_timesteps: 1000 };
    let weights = |tensors| parameters::write(&tensors, HashMap::new()).expect("tensors serialize");
    let labels: String = (0..CLASSES).map(|class| format!("class-{class}\n")).collect();
    let statistics = serde_json::json!({
        "timesteps": [300, 500], "source_accuracy": 0.5, "judge_accuracy": 0.9, "draw_agreement": 0.1,
        "calibration": { "intercept": 0.1, "slope": 0.9 },
        "entropy": { "mean": 2.0, "standard_deviation": 0.5 }, "denoising_loss": { "mean": 1.0, "standard_deviation": 0.5 },
    });
    let canary_bytes: Vec<u8> = (0..8 * 1024u32).map(|n| (n * n / 7 % 251) as u8).collect();
    let canary = HashMap::from([
        ("images", Tensor::from_vec(canary_bytes, (8, 1, 32, 32), &Device::Cpu).expect("a tensor")),
        ("labels", Tensor::arange(0u32, 8, &Device::Cpu).expect("a tensor")),
    ]);
    let canary_path = dir.join("canary.safetensors");
    safetensors::save(&canary, &canary_path).expect("the temporary folder takes files");
    let files = [
        (
            "classifier.safetensors",
            weights(Vit::initialize(&VitConfig { trunk, classes: CLASSES }, classifier_seed).expect("the sizes fit")),
        ),
        ("diffusion.safetensors", weights(Dit::initialize(&diffusion, 2).expect("the sizes fit"))),
        ("labels.txt", labels.into_bytes()),
        ("statistics.json", statistics.to_string().into_bytes()),
        ("canary.safetensors", std::fs::read(canary_path).expect("it was just written")),
    ];
    let mut hashes = String::new();
    for (name, bytes) in &files {
        writeln!(hashes, "{}  {name}", blake3::hash(bytes)).expect("text grows");
        std::fs::write(dir.join(name), bytes).expect("the temporary folder takes files");
    }
    std::fs::write(dir.join("BLAKE3SUMS"), hashes).expect("the temporary folder takes files");
    std::fs::write(dir.join("undrift.toml"), BUNDLE).expect("the temporary folder takes files");
}
