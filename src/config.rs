//! The configuration: one TOML file, changed by the environment and by `--set`, read once and checked in full.
//!
//! Precedence: `--set key.path=value`, then `UNDRIFT__KEY__PATH`, then the file. A path in the file is relative to the file,
//! any other to the working directory.
//! Invariants: an unknown key is an error; every number has a range; a [`Config`] never changes after it was loaded.
//! Absent on purpose: defaults. What is not written in the file is not configured; only keys that name a secret may be left out.

mod settings;

pub use settings::{Origin, Setting, Settings, Suggestion, redact};

use crate::decode;
use crate::learner::AdaptConfig;
use crate::model::{ClassConditioning, ClassifierConfig, DitConfig, ImageShape, ResNetConfig, ShapeError, TrunkConfig, VitConfig};
use crate::noise::NoiseSecret;
use crate::wire::{Format, PREFIX_ACCEPTED, Subjects, is_token};
use async_nats::ServerAddr;
use serde::{Deserialize, Deserializer, Serialize, de};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Variable that holds the noise key, where no key file is configured: 64 hex digits.
pub const NOISE_KEY_VARIABLE: &str = "UNDRIFT_NOISE_KEY";

/// The variables of this process that are text: only they can set a key.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Everything that is configured; each module gets its own part.
pub struct Config {
    pub bundle: BundleConfig,
    pub nats: NatsConfig,
    pub output: OutputConfig,
    pub adapt: AdaptConfig,
    pub noise: NoiseConfig,
    pub checkpoint: CheckpointConfig,
    pub http: HttpConfig,
    pub limits: LimitsConfig,
    pub log: LogConfig,
    /// What all of this was read from.
    pub settings: Settings,
}

/// A configuration that cannot be used. Each message names the key, the value, where it came from, and the limit.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("failed to read the configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not valid TOML: {message}")]
    Syntax { path: PathBuf, message: String },
    #[error("--set {argument:?} is not of the form key.path=value")]
    Assignment { argument: String },
    #[error("{key:?} (from {origin}) is not of the form key.path")]
    Key { key: String, origin: Origin },
    #[error("unknown key {key} (from {origin}){suggestion}")]
    Unknown { key: String, origin: Origin, suggestion: Suggestion },
    #[error("{key} is missing from {path}")]
    Missing { key: String, path: PathBuf },
    #[error("{key} = {value} (from {origin}): {reason}")]
    Invalid { key: String, value: String, origin: Origin, reason: String },
    #[error("[{section}] does not make a model: {source}")]
    Shape { section: &'static str, source: ShapeError },
    #[error("{NOISE_KEY_VARIABLE} must be 64 hex digits")]
    NoiseKey,
}

impl Config {
    /// Reads the file at `path`, merges `environment` and `sets` into it, and checks all of it.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(path: &Path, sets: &[String], environment: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let environment: BTreeMap<String, String> = environment.filter(|(name, _)| name.starts_with("UNDRIFT_")).collect();
        let settings = Settings::merge(path, &text, sets, &environment)?;
        let raw: RawConfig = settings.read()?;
        raw.adapt
            .check(raw.diffusion.num_timesteps)
            .map_err(|error| settings.invalid(&format!("adapt.{}", error.field), format_args!("must be {}", error.range)))?;
        raw.limits.check(&settings)?;
        Ok(Self {
            bundle: BundleConfig::check(&raw, &settings)?,
            nats: raw.nats.check(&settings, &raw.limits)?,
            output: raw.output.check(&settings)?,
            adapt: raw.adapt,
            noise: raw.noise.check(&settings, environment.get(NOISE_KEY_VARIABLE))?,
            checkpoint: raw.checkpoint.check(&settings)?,
            http: raw.http,
            limits: raw.limits,
            log: raw.log,
            settings,
        })
    }

    /// BLAKE3, in hex, of what weights and predictions depend on next to the stream: sizes of the models, adaptation but for its
    /// switch, which frames are accepted, and how many classes a prediction names.
    pub fn fingerprint(&self) -> String {
        let adapt = AdaptConfig { enabled: true, ..self.adapt.clone() };
        let accepted = (self.limits.payload_bytes_max, self.limits.pixels_max, self.limits.dimension_max);
        let bytes = rmp_serde::to_vec_named(&(&self.bundle.classifier, &self.bundle.diffusion, adapt, accepted, self.output.top_k));
        blake3::hash(&bytes.expect("plain structs always encode")).to_hex().to_string()
    }
}

/// The file's layout.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    bundle: BundleFiles,
    image: ImageShape,
    classifier: RawClassifier,
    diffusion: RawDiffusion,
    nats: NatsConfig,
    output: OutputConfig,
    adapt: AdaptConfig,
    #[serde(default)]
    noise: RawNoise,
    checkpoint: CheckpointConfig,
    http: HttpConfig,
    limits: LimitsConfig,
    log: LogConfig,
}

#[derive(Deserialize)]
#[serde(tag = "architecture", rename_all = "lowercase")]
enum RawClassifier {
    Vit(RawVit),
    ResNet(RawResNet),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVit {
    patch: usize,
    patch_window: usize,
    hidden: usize,
    depth: usize,
    heads: usize,
    mlp_ratio: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawResNet {
    width: usize,
    blocks: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDiffusion {
    conditioning: ClassConditioning,
    num_timesteps: u32,
    patch: usize,
    patch_window: usize,
    hidden: usize,
    depth: usize,
    heads: usize,
    mlp_ratio: usize,
}

/// Files of a bundle.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleFiles {
    pub classifier: PathBuf,
    pub diffusion: PathBuf,
    /// One name a line, in the order of the classes.
    pub labels: PathBuf,
    pub statistics: PathBuf,
    /// Labelled images that no camera has sent, to see harm on.
    pub canary: PathBuf,
    /// BLAKE3 of the files above, as `b3sum` writes it.
    pub hashes: PathBuf,
}

/// The models and where they lie; the number of classes is that of the labels.
#[derive(Clone, Debug)]
pub struct BundleConfig {
    /// All of them were there when the configuration was loaded.
    pub files: BundleFiles,
    classifier: Architecture,
    pub diffusion: DiffusionConfig,
}

/// A classifier but for the number of classes.
#[derive(Clone, Copy, Debug, Serialize)]
enum Architecture {
    Vit(TrunkConfig),
    ResNet { image: ImageShape, width: usize, blocks: usize },
}

/// A diffusion model but for the number of classes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DiffusionConfig {
    pub trunk: TrunkConfig,
    pub conditioning: ClassConditioning,
    /// Length of the noise schedule, 1..=10000.
    pub num_timesteps: u32,
}

impl BundleConfig {
    fn check(raw: &RawConfig, settings: &Settings) -> Result<Self, ConfigError> {
        if ![1, 3].contains(&raw.image.channels) {
            return Err(settings.invalid("image.channels", "must be 1 or 3"));
        }
        let classifier = match raw.classifier {
            RawClassifier::Vit(RawVit { patch, patch_window, hidden, depth, heads, mlp_ratio }) => {
                let trunk = TrunkConfig { image: raw.image, patch, patch_window, hidden, depth, heads, mlp_ratio };
                trunk.check().map_err(|source| ConfigError::Shape { section: "classifier", source })?;
                Architecture::Vit(trunk)
            }
            RawClassifier::ResNet(RawResNet { width, blocks }) => {
                settings.check_range("classifier.width", width, 1..=1024)?;
                settings.check_range("classifier.blocks", blocks, 1..=9)?;
                Architecture::ResNet { image: raw.image, width, blocks }
            }
        };
        let RawDiffusion { conditioning, num_timesteps, patch, patch_window, hidden, depth, heads, mlp_ratio } = raw.diffusion;
        let trunk = TrunkConfig { image: raw.image, patch, patch_window, hidden, depth, heads, mlp_ratio };
        trunk.check().map_err(|source| ConfigError::Shape { section: "diffusion", source })?;
        // Below 20, the last step of the schedule would add more noise than there is.
        settings.check_range("diffusion.num_timesteps", num_timesteps, 20..=10_000)?;
        let files = &raw.bundle;
        let files = BundleFiles {
            classifier: settings.resolve_file("bundle.classifier", &files.classifier)?,
            diffusion: settings.resolve_file("bundle.diffusion", &files.diffusion)?,
            labels: settings.resolve_file("bundle.labels", &files.labels)?,
            statistics: settings.resolve_file("bundle.statistics", &files.statistics)?,
            canary: settings.resolve_file("bundle.canary", &files.canary)?,
            hashes: settings.resolve_file("bundle.hashes", &files.hashes)?,
        };
        Ok(Self { files, classifier, diffusion: DiffusionConfig { trunk, conditioning, num_timesteps } })
    }

    /// The classifier of a bundle with this many labels.
    pub fn classifier_config(&self, classes: usize) -> ClassifierConfig {
        match self.classifier {
            Architecture::Vit(trunk) => ClassifierConfig::Vit(VitConfig { trunk, classes }),
            Architecture::ResNet { image, width, blocks } => ClassifierConfig::ResNet(ResNetConfig { image, width, blocks, classes }),
        }
    }

    /// The diffusion model of a bundle with this many labels.
    pub fn diffusion_config(&self, classes: usize) -> DitConfig {
        let DiffusionConfig { trunk, conditioning, num_timesteps } = self.diffusion;
        DitConfig { trunk, classes, conditioning, num_timesteps }
    }
}

/// How frames come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NatsMode {
    /// At most once, counted by arrival.
    Core,
    /// Replayed from the checkpoint on.
    Jetstream,
}

/// The connection to NATS. Not `Debug`: its addresses may hold passwords.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatsConfig {
    #[serde(deserialize_with = "server_addresses")]
    pub urls: Vec<ServerAddr>,
    /// First tokens of every subject.
    pub prefix: String,
    pub mode: NatsMode,
    /// Name of the client, and of what it makes on the broker.
    pub name: String,
    /// Who we are: a file of a JWT and its seed, or of an nkey's seed.
    pub credentials_file: Option<PathBuf>,
    pub nkey_file: Option<PathBuf>,
    /// Certificates (PEM) that the broker's must be signed by one of; with it, nothing goes in the clear.
    pub ca_file: Option<PathBuf>,
    /// Whether frames and answers may go over a network in the clear.
    #[serde(default)]
    pub allow_plaintext: bool,
    pub queue_frames_max: usize,
    pub queue_bytes_max: usize,
    #[serde(rename = "reconnect_delay_max_ms", deserialize_with = "milliseconds")]
    pub reconnect_delay_max: Duration,
}

impl NatsConfig {
    fn check(self, settings: &Settings, limits: &LimitsConfig) -> Result<Self, ConfigError> {
        Subjects::new(&self.prefix).map_err(|_| settings.invalid("nats.prefix", PREFIX_ACCEPTED))?;
        if self.name.len() > 64 || !is_token(&self.name) {
            return Err(settings.invalid("nats.name", "must be 1 to 64 characters of [A-Za-z0-9_-]"));
        }
        settings.check_range("nats.queue_frames_max", self.queue_frames_max, 1..=65_536)?;
        // A queue that cannot hold one frame of the largest legal size would drop it whatever else happens.
        settings.check_range("nats.queue_bytes_max", self.queue_bytes_max, limits.payload_bytes_max..=1 << 36)?;
        settings.check_range("nats.reconnect_delay_max_ms", self.reconnect_delay_max.as_millis(), 10..=600_000)?;
        if let Some(url) = in_the_clear(&self.urls).filter(|_| self.ca_file.is_none() && !self.allow_plaintext) {
            let advice = "would carry frames and answers in the clear: write tls://, or set nats.ca_file, or nats.allow_plaintext = true";
            return Err(settings.invalid("nats.urls", format_args!("{}: {advice}", url.host())));
        }
        let file = |key, path: Option<PathBuf>| path.map(|path| settings.resolve_file(key, &path)).transpose();
        let credentials_file = file("nats.credentials_file", self.credentials_file)?;
        let nkey_file = file("nats.nkey_file", self.nkey_file)?;
        let ca_file = file("nats.ca_file", self.ca_file)?;
        Ok(Self { credentials_file, nkey_file, ca_file, ..self })
    }
}

/// The first address of another machine that TLS is not asked for on.
pub fn in_the_clear(urls: &[ServerAddr]) -> Option<&ServerAddr> {
    urls.iter().find(|url| !url.tls_required() && !is_loopback(url.host()))
}

fn is_loopback(host: &str) -> bool {
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    is_address || host == "localhost"
}

fn server_addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ServerAddr>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a URL, URLs with commas between them, or an array of URLs")]
    enum Urls {
        Joined(String),
        Listed(Vec<String>),
    }
    let urls = match Urls::deserialize(deserializer)? {
        Urls::Joined(urls) => urls.split(',').map(|url| url.trim().to_owned()).collect(),
        Urls::Listed(urls) => urls,
    };
    if !(1..=64).contains(&urls.len()) || urls.iter().any(String::is_empty) {
        return Err(de::Error::custom("must be 1 to 64 URLs"));
    }
    urls.iter().map(|url| url.parse().map_err(|error| de::Error::custom(format_args!("{url:?} is not a URL of NATS: {error}")))).collect()
}

fn milliseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_millis)
}

/// What a prediction holds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputConfig {
    pub format: Format,
    /// Most probable classes that a prediction lists; with fewer classes, all.
    pub top_k: usize,
}

impl OutputConfig {
    fn check(self, settings: &Settings) -> Result<Self, ConfigError> {
        settings.check_range("output.top_k", self.top_k, 1..=1000)?;
        Ok(self)
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNoise {
    key_file: Option<PathBuf>,
}

/// Where the secret behind the noise comes from.
#[derive(Clone, Debug)]
pub enum NoiseConfig {
    File(PathBuf),
    Environment(NoiseSecret),
    /// Made at the first start, beside the checkpoints.
    Generated,
}

impl RawNoise {
    fn check(self, settings: &Settings, variable: Option<&String>) -> Result<NoiseConfig, ConfigError> {
        match (self.key_file, variable) {
            (Some(path), _) => Ok(NoiseConfig::File(settings.resolve_file("noise.key_file", &path)?)),
            (None, Some(text)) => Ok(NoiseConfig::Environment(parse_noise_key(text).ok_or(ConfigError::NoiseKey)?)),
            (None, None) => Ok(NoiseConfig::Generated),
        }
    }
}

/// The secret that 64 hex digits, with white space around them, stand for.
pub fn parse_noise_key(text: &str) -> Option<NoiseSecret> {
    blake3::Hash::from_hex(text.trim()).ok().map(|bytes| NoiseSecret::new(bytes.into()))
}

/// When and where state is kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    pub dir: PathBuf,
    /// Windows from one checkpoint to the next.
    pub every_windows: u64,
    /// Generations that are kept.
    pub keep: usize,
}

impl CheckpointConfig {
    fn check(self, settings: &Settings) -> Result<Self, ConfigError> {
        settings.check_range("checkpoint.every_windows", self.every_windows, 1..=1_000_000)?;
        settings.check_range("checkpoint.keep", self.keep, 1..=1000)?;
        Ok(Self { dir: settings.resolve("checkpoint.dir", &self.dir), ..self })
    }
}

/// The page, the metrics and the probes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    pub listen: SocketAddr,
}

/// What a frame, and the set of cameras, may cost.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// Of one message as it comes.
    pub payload_bytes_max: usize,
    /// Of one image, before any of it is decoded.
    pub pixels_max: usize,
    /// Of width and of height.
    pub dimension_max: u32,
    /// Cameras that get metrics of their own.
    pub cameras_max: usize,
    /// How long frames may wait without one being finished before the daemon says that it is not ready.
    #[serde(rename = "stall_patience_ms", deserialize_with = "milliseconds")]
    pub stall_patience: Duration,
}

impl LimitsConfig {
    /// Those of a frame.
    pub fn of_decoder(&self) -> decode::Limits {
        let dimension_max = self.dimension_max as usize;
        decode::Limits { payload_bytes_max: self.payload_bytes_max, pixels_max: self.pixels_max, dimension_max }
    }

    fn check(&self, settings: &Settings) -> Result<(), ConfigError> {
        // 64 MiB is the largest message that a NATS server can be configured to take.
        settings.check_range("limits.payload_bytes_max", self.payload_bytes_max, 1024..=1 << 26)?;
        settings.check_range("limits.pixels_max", self.pixels_max, 1..=1 << 28)?;
        settings.check_range("limits.dimension_max", self.dimension_max, 1..=65_535)?;
        settings.check_range("limits.cameras_max", self.cameras_max, 1..=1000)?;
        settings.check_range("limits.stall_patience_ms", self.stall_patience.as_millis(), 1000..=3_600_000)
    }
}

/// How lines of the log are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

/// The log.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    pub format: LogFormat,
}

#[cfg(test)]
mod tests;
