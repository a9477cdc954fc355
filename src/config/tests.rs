//! Each wrong configuration is refused with the key, the value, the origin and the limit.

use super::*;
use std::fs;
use tempfile::TempDir;

const FILE: &str = r#"
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
patch = 4
patch_window = 8
hidden = 96
depth = 4
heads = 3
mlp_ratio = 2
[diffusion]
conditioning = "readout"
num_timesteps = 1000
patch = 4
patch_window = 8
hidden = 128
depth = 6
heads = 4
mlp_ratio = 4
[nats]
urls = ["nats://127.0.0.1:4222"]
prefix = "undrift.v1"
mode = "core"
name = "undrift"
queue_frames_max = 64
queue_bytes_max = 67108864
reconnect_delay_max_ms = 4000
[output]
format = "msgpack"
top_k = 3
[adapt]
enabled = true
window = 16
lag = 2
answer = "before"
answer_by = "posterior"
objective = "posterior"
trainable = "all"
timesteps = [100, 300]
judge_weight = 1.0
judge_weight_shut = 0.4
judge_weight_home = 0.2
objective_weight = 1.0
recent_weight = 1.0
prior_weight = 1.0
learning_rate = 1e-3
gradient_norm_max = 1.0
anchor_pull = 0.001
anchor_pull_shut = 0.01
anchor_pull_retreat = 0.5
distance_max = 0.5
norm_pace = 0.05
norm_own_share = 0.2
domain_distance_max = 0.35
stretched_view = true
mirrored = true
optimizer = { kind = "sgd", momentum = 0.9 }
entropy = { weight = 1.0, margin = 0.4, cosine_max = 0.4 }
gate = { memory_frames = 256.0, margin = 0.0, tolerance = 0.1, diversity_slack = 1.0, confidence_min = 0.5, consistency = 0.5, home_entropy_max = 1.5, by_camera = true }
guard = { repeats_max = 8, camera_share_max = 2.0, canary_every_windows = 8, canary_images = 16, canary_tolerance = 0.05, canary_evidence_max = 1e4 }
condition = { steps_per_window = 5, draws_per_step = 6, accumulation_steps = 30, same_noise = false }
[checkpoint]
dir = "state"
every_windows = 64
keep = 5
[http]
listen = "127.0.0.1:9464"
[limits]
payload_bytes_max = 8388608
pixels_max = 16777216
dimension_max = 8192
cameras_max = 64
stall_patience_ms = 30000
[log]
format = "text"
"#;

fn folder() -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for name in ["classifier.safetensors", "diffusion.safetensors", "labels.txt", "statistics.json", "canary.safetensors", "BLAKE3SUMS"] {
        fs::write(dir.path().join(name), "").expect("a writable folder");
    }
    fs::write(dir.path().join("undrift.toml"), FILE).expect("a writable folder");
    dir
}

fn load(dir: &TempDir, sets: &[&str], variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    let variables = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    Config::load(&dir.path().join("undrift.toml"), &sets, variables)
}

/// The message about one `--set`, with the folder left out.
fn refusal(set: &str) -> String {
    let dir = folder();
    let error = load(&dir, &[set], &[]).err().map(|error| error.to_string());
    error.unwrap_or_else(|| format!("{set} was accepted")).replace(&format!("{}/", dir.path().display()), "")
}

#[test]
fn the_file_alone_makes_a_configuration() {
    let dir = folder();
    let config = load(&dir, &[], &[]).unwrap_or_else(|error| unreachable!("{error}"));
    assert_eq!(config.nats.reconnect_delay_max, Duration::from_secs(4));
    assert_eq!(config.bundle.files.labels, dir.path().join("labels.txt"));
    assert_eq!(config.checkpoint.dir, dir.path().join("state"));
    let ClassifierConfig::Vit(classifier) = config.bundle.classifier_config(10) else { unreachable!("the file says vit") };
    assert_eq!((classifier.trunk.hidden, classifier.classes), (96, 10));
    assert!(matches!(config.noise, NoiseConfig::Generated));
}

#[test]
fn set_is_stronger_than_the_environment_which_is_stronger_than_the_file() {
    let dir = folder();
    let variables = [("UNDRIFT__NATS__PREFIX", "lab.v1"), ("UNDRIFT__NATS__NAME", "lab"), ("PATH", "/bin")];
    let sets = ["nats.name=desk", "nats.urls=tls://a:1,tls://b:2", "checkpoint.dir=elsewhere", "adapt.gate.margin=0.25"];
    let config = load(&dir, &sets, &variables).unwrap_or_else(|error| unreachable!("{error}"));
    assert_eq!((config.nats.prefix.as_str(), config.nats.name.as_str(), config.nats.urls.len()), ("lab.v1", "desk", 2));
    // A path that an operator types is relative to where the operator is.
    assert_eq!(config.checkpoint.dir, Path::new("elsewhere"));
    assert_eq!(config.adapt.gate.margin, 0.25);
    let origin = |key: &str| config.settings.entries().into_iter().find(|setting| setting.key == key).map(|setting| setting.origin);
    assert_eq!(origin("nats.name").as_deref(), Some("--set"));
    assert_eq!(origin("nats.prefix").as_deref(), Some("UNDRIFT__NATS__PREFIX"));
    assert_eq!(origin("nats.mode"), Some(dir.path().join("undrift.toml").display().to_string()));
}

#[test]
fn an_unknown_key_is_refused_with_its_origin_and_the_nearest_known_key() {
    assert_eq!(refusal("nats.url=x"), "unknown key nats.url (from --set); did you mean nats.urls?");
    assert_eq!(refusal("checkpoints.dir=x"), "unknown key checkpoints (from --set); did you mean checkpoint?");
    assert_eq!(refusal("adapt.gate.margins=1"), "unknown key adapt.gate.margins (from --set); did you mean adapt.gate.margin?");
    assert_eq!(refusal("log.zebra=1"), "unknown key log.zebra (from --set)");
    let dir = folder();
    let error = load(&dir, &[], &[("UNDRIFT__HTTP__LISTENS", "x")]).err().map(|error| error.to_string());
    assert_eq!(error.as_deref(), Some("unknown key http.listens (from UNDRIFT__HTTP__LISTENS); did you mean http.listen?"));
}

#[test]
fn a_wrong_value_is_refused_with_its_limit() {
    for (set, expected) in [
        ("checkpoint.keep=0", "checkpoint.keep = 0 (from --set): must be from 1 to 1000"),
        ("checkpoint.keep=-1", "checkpoint.keep = -1 (from --set): invalid value: integer `-1`, expected usize"),
        ("output.format=xml", "output.format = \"xml\" (from --set): unknown variant `xml`, expected `msgpack` or `json`"),
        ("nats.queue_bytes_max=9", "nats.queue_bytes_max = 9 (from --set): must be from 8388608 to 68719476736"),
        (
            "nats.prefix=a..b",
            "nats.prefix = \"a..b\" (from --set): accepted are tokens of A-Z a-z 0-9 _ - with dots between, up to 128 characters",
        ),
        ("http.listen=9464", "http.listen = 9464 (from --set): invalid type: integer `9464`, expected socket address"),
        ("http.listen=localhost", "http.listen = \"localhost\" (from --set): invalid socket address syntax"),
        ("limits.stall_patience_ms=999", "limits.stall_patience_ms = 999 (from --set): must be from 1000 to 3600000"),
        ("adapt.lag=0", "adapt.lag = 0 (from --set): must be 1 to 8"),
        ("adapt.guard.repeats_max=0", "adapt.guard.repeats_max = 0 (from --set): must be at least 1"),
        ("adapt.guard.camera_share_max=inf", "adapt.guard.camera_share_max = inf (from --set): must be at least 1, and finite"),
        ("adapt.guard.canary_tolerance=1.0", "adapt.guard.canary_tolerance = 1.0 (from --set): must be from 0, below 1"),
        ("adapt.guard.canary_evidence_max=nan", "adapt.guard.canary_evidence_max = nan (from --set): must be above 1"),
        ("adapt.timesteps=[5, 1000]", "adapt.timesteps = [5, 1000] (from --set): must be below diffusion.num_timesteps"),
        ("bundle.labels=none.txt", "bundle.labels = \"none.txt\" (from --set): there is no file none.txt"),
        ("image.channels=2", "image.channels = 2 (from --set): must be 1 or 3"),
        ("diffusion.num_timesteps=20000", "diffusion.num_timesteps = 20000 (from --set): must be from 20 to 10000"),
        ("classifier.patch_window=65536", "[classifier] does not make a model: patch_window must be from 1 to 256, got 65536"),
        ("classifier.patch=5", "[classifier] does not make a model: patch 5 does not divide an image of 32 x 32"),
        ("nats=3", "nats = 3 (from --set): invalid type: integer `3`, expected struct NatsConfig"),
        ("nats.urls=3", "nats.urls = 3 (from --set): expected a URL, URLs with commas between them, or an array of URLs"),
        ("nats.urls", "--set \"nats.urls\" is not of the form key.path=value"),
        ("nats..urls=x", "\"nats..urls\" (from --set) is not of the form key.path"),
    ] {
        assert_eq!(refusal(set), expected);
    }
}

#[test]
fn a_schedule_whose_last_step_would_take_more_than_there_is_is_refused() {
    let refusal = |steps: &str| load(&folder(), &[steps, "adapt.timesteps=[8, 9]"], &[]).err().map(|error| error.to_string());
    let expected = "diffusion.num_timesteps = 19 (from --set): must be from 20 to 10000";
    assert_eq!(refusal("diffusion.num_timesteps=19").as_deref(), Some(expected));
    assert_eq!(refusal("diffusion.num_timesteps=20"), None);
}

#[test]
fn a_missing_key_and_a_syntax_error_name_the_file() {
    let dir = folder();
    let file = dir.path().join("undrift.toml");
    fs::write(&file, FILE.replace("keep = 5", "")).expect("a writable file");
    let error = load(&dir, &[], &[]).err().map(|error| error.to_string());
    assert_eq!(error, Some(format!("checkpoint.keep is missing from {}", file.display())));
    fs::write(&file, "[nats]\nurls = \"nats://u:secret@h").expect("a writable file");
    let error = load(&dir, &[], &[]).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("line 2") && !error.contains("secret"), "{error}");
}

#[test]
fn no_password_is_shown() {
    let dir = folder();
    let config = load(&dir, &["nats.urls=nats://user:secret@a:1,user:secret@b:2", "nats.allow_plaintext=true"], &[])
        .unwrap_or_else(|error| unreachable!("{error}"));
    let shown = config.settings.to_string();
    assert!(shown.contains(r#"urls = "nats://***@a:1,***@b:2""#) && !shown.contains("secret"), "{shown}");
    assert!(!refusal("nats.urls=nats://user:secret@a:port").contains("secret"));
    assert!(!refusal("nats.mode=nats://user:secret@a").contains("secret"));
}

#[test]
fn the_description_reads_as_the_same_configuration() {
    let dir = folder();
    let sets = ["checkpoint.dir=/var/lib/undrift", "nats.urls=tls://a:1"];
    let config = load(&dir, &sets, &[]).unwrap_or_else(|error| unreachable!("{error}"));
    fs::write(dir.path().join("undrift.toml"), config.settings.to_string()).expect("a writable file");
    let again = load(&dir, &[], &[]).unwrap_or_else(|error| unreachable!("{error}"));
    assert_eq!(again.fingerprint(), config.fingerprint());
    assert_eq!(again.checkpoint.dir, config.checkpoint.dir);
}

#[test]
fn the_noise_key_of_the_environment_is_checked_and_gives_way_to_a_file() {
    let dir = folder();
    let good = "ab".repeat(32);
    assert!(matches!(load(&dir, &[], &[("UNDRIFT_NOISE_KEY", &good)]).map(|config| config.noise), Ok(NoiseConfig::Environment(_))));
    assert!(matches!(load(&dir, &[], &[("UNDRIFT_NOISE_KEY", "ab")]), Err(ConfigError::NoiseKey)));
    let file = format!("noise.key_file={}", dir.path().join("labels.txt").display());
    let config = load(&dir, &[&file], &[("UNDRIFT_NOISE_KEY", &good)]);
    assert!(matches!(config.map(|config| config.noise), Ok(NoiseConfig::File(_))));
}

#[test]
fn the_fingerprint_sees_how_is_adapted_and_not_whether() {
    let dir = folder();
    let fingerprint = |set| load(&dir, &[set], &[]).map(|config| config.fingerprint()).unwrap_or_else(|error| unreachable!("{error}"));
    assert_eq!(fingerprint("adapt.enabled=false"), fingerprint("adapt.enabled=true"));
    assert_ne!(fingerprint("adapt.window=8"), fingerprint("adapt.window=16"));
}
