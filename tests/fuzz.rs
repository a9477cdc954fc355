//! Goal: whatever bytes come from outside, each reader gives a value within its limits or an error with a name, without a panic and
//! within a bound of memory.
//! Method: the files of `tests/corpus/<target>/` as they are, then damaged in every way that pays, and values made to the format's
//! grammar. PROPTEST_CASES sets the number of cases of each test, UNDRIFT_SEED where they begin. What fails is kept, smallest
//! first, in `found.txt` beside the corpus, and tried before anything else from then on.

mod heap;
mod support;

use heap::peak_heap;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{FileFailurePersistence, RngSeed};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use support::{meta, state};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use undrift::checkpoint::{PREFIX_BYTES, decode, encode};
use undrift::config::{Config, ConfigError, NatsMode};
use undrift::decode::{self as frames, Limits, Message, Reject};
use undrift::frame::{Frame, FrameSeq};
use undrift::model::{ImageShape, parameters};
use undrift::shell::{http, status::Shared, telemetry};
use undrift::wire::{self, Command, ControlError, LabelError, Terms, parse_control, parse_label};

const LIMITS: Limits = Limits { payload_bytes_max: 1 << 16, pixels_max: 1 << 16, dimension_max: 1024 };
const SHAPE: ImageShape = ImageShape { channels: 1, height: 32, width: 32 };
const CLASSES: usize = 10;
const SEED: u64 = 20_240_611;

/// Beyond what an image of `pixels_max` takes: tables of the decoders.
const FRAME_HEAP_MAX: usize = 12 * LIMITS.pixels_max + (64 << 10);
/// Of what is at most a few KiB itself.
const SMALL_HEAP_MAX: usize = 32 << 10;
const CONFIG_HEAP_MAX: usize = 1 << 20;
/// Of the server and of its client: heads, and the longest answer.
const HTTP_HEAP_MAX: usize = 256 << 10;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Of the test with this corpus; `cases` where PROPTEST_CASES is not set.
fn cases(target: &str, cases: u32) -> ProptestConfig {
    let cases = variable("PROPTEST_CASES").and_then(|cases| u32::try_from(cases).ok()).unwrap_or(cases);
    let seed = variable("UNDRIFT_SEED").unwrap_or(SEED);
    println!("{target}: {cases} cases, UNDRIFT_SEED={seed}");
    let found: &'static str = Box::leak(format!("tests/corpus/{target}/found.txt").into_boxed_str());
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(found))),
        ..ProptestConfig::default()
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).expect("a corpus").map(|entry| entry.expect("a file").path()).collect();
    paths.retain(|path| !path.ends_with("found.txt"));
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a file")).collect()
}

/// One change to some bytes.
#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Set(Index, u8),
    /// A number at the edge of its range, where a length or a size may stand.
    Number(Index, Vec<u8>),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    Repeat(Index, usize, usize),
    Cut(Index),
    /// From here on another file of the corpus, from there on.
    Splice(Index, Index, Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    let number = select(vec![
        vec![0xFF; 2],
        vec![0xFF; 4],
        vec![0xFF; 8],
        vec![0; 2],
        vec![0; 4],
        vec![0x7F, 0xFF],
        vec![0x80, 0],
        vec![0x7F, 0xFF, 0xFF, 0xFF],
        vec![0x80, 0, 0, 0],
        vec![0, 0, 0, 0x80],
        vec![0, 1],
    ]);
    prop_oneof![
        4 => (at(), 0..8u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        3 => (at(), number).prop_map(|(at, number)| Damage::Number(at, number)),
        2 => (at(), 1..64usize).prop_map(|(at, length)| Damage::Remove(at, length)),
        2 => (at(), prop::collection::vec(any::<u8>(), 1..16)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        2 => (at(), 1..64usize, 1..200usize).prop_map(|(at, length, times)| Damage::Repeat(at, length, times)),
        1 => at().prop_map(Damage::Cut),
        1 => (at(), at(), at()).prop_map(|(at, other, from)| Damage::Splice(at, other, from)),
    ]
}

fn apply(damage: &Damage, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    if bytes.is_empty() {
        return;
    }
    let length = bytes.len();
    let range = |at: &Index, count: usize| at.index(length)..(at.index(length) + count).min(length);
    match damage {
        Damage::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
        Damage::Set(at, byte) => bytes[at.index(length)] = *byte,
        Damage::Number(at, number) => {
            let range = range(at, number.len());
            bytes[range.clone()].copy_from_slice(&number[..range.len()]);
        }
        Damage::Remove(at, count) => drop(bytes.drain(range(at, *count))),
        Damage::Insert(at, more) => drop(bytes.splice(at.index(length)..at.index(length), more.iter().copied())),
        Damage::Repeat(at, count, times) => {
            let range = range(at, *count);
            let repeated = bytes[range.clone()].repeat(*times);
            bytes.splice(range, repeated);
        }
        Damage::Cut(at) => bytes.truncate(at.index(length)),
        Damage::Splice(at, other, from) => {
            let other = other.get(corpus);
            bytes.truncate(at.index(length));
            bytes.extend(other.iter().skip(from.index(other.len() + 1)));
        }
    }
}

/// A file of the corpus, as it is or damaged.
fn damaged(corpus: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (any::<Index>(), prop::collection::vec(damage(), 0..6)).prop_map(move |(file, damages)| {
        let mut bytes = file.get(&corpus).clone();
        damages.iter().for_each(|damage| apply(damage, &mut bytes, &corpus));
        bytes
    })
}

fn noise() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..200)
}

/// A PNG whose chunks have the checksums of what they hold now, so that what was damaged is looked at.
fn with_checksums(mut png: Vec<u8>) -> Vec<u8> {
    let mut at = 8;
    while let Some(length) = png.get(at..at + 4).and_then(|bytes| bytes.first_chunk()).map(|bytes| u32::from_be_bytes(*bytes) as usize) {
        let Some(end) = at.checked_add(8 + length).filter(|end| end + 4 <= png.len()) else { break };
        let mut crc = flate2::Crc::new();
        crc.update(&png[at + 4..end]);
        png[end..end + 4].copy_from_slice(&crc.sum().to_be_bytes());
        at = end + 4;
    }
    png
}

/// Within its limits, or refused for a reason that is not the decoder's own failure.
fn check_frame(content_type: Option<&str>, payload: &[u8]) {
    let headers: Vec<(String, String)> = content_type.map(|value| ("Content-Type".to_owned(), value.to_owned())).into_iter().collect();
    let message = Message { subject_camera: "cam-1", headers: &headers, payload, sequence: FrameSeq(1), broker_time_ns: None };
    let (result, peak) = peak_heap(|| frames::decode(&message, &LIMITS, SHAPE, CLASSES));
    assert!(peak <= FRAME_HEAP_MAX, "{peak} bytes of heap for {} of payload", payload.len());
    match result {
        Ok(frame) => check_limits(&frame),
        Err(reject) => {
            assert!(Reject::ALL_REASONS.contains(&reject.reason()) && reject.reason() != "decoder", "{reject}");
            let record = wire::encode_rejected(&message, &reject);
            assert!(record.len() < 2048, "a record of {} bytes: {reject}", record.len());
        }
    }
}

fn check_limits(frame: &Frame) {
    let image = (frame.image.channels(), frame.image.height(), frame.image.width());
    assert_eq!(image, (SHAPE.channels, SHAPE.height, SHAPE.width));
    let is_printable = |text: &str, max: usize| (1..=max).contains(&text.len()) && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    assert!(frame.camera == "cam-1" && is_printable(&frame.frame_id, 128), "{frame:?}");
    assert!(frame.domain.as_deref().is_none_or(|domain| is_printable(domain, 64)), "{frame:?}");
    assert!(frame.label.is_none_or(|label| label.index() < CLASSES), "{frame:?}");
    assert!(frame.capture_time_ns.is_none_or(|time| time >= 0), "{frame:?}");
}

/// A value of MessagePack, well formed or with a length that lies.
#[derive(Clone, Debug)]
enum Packed {
    Nil,
    Bool(bool),
    Integer(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    Array(Vec<Packed>),
    Map(Vec<(String, Packed)>),
    Nested(u8, usize),
    /// A marker and a length with nothing behind it.
    Lie(u8, u32),
}

fn pack(value: &Packed, bytes: &mut Vec<u8>) {
    let head = |marker: u8, length: usize| [&[marker][..], &u32::try_from(length).expect("short").to_be_bytes()].concat();
    match value {
        Packed::Nil => bytes.push(0xC0),
        Packed::Bool(value) => bytes.push(0xC2 + u8::from(*value)),
        Packed::Integer(value) => bytes.extend([&[0xD3][..], &value.to_be_bytes()].concat()),
        Packed::Unsigned(value) => bytes.extend([&[0xCF][..], &value.to_be_bytes()].concat()),
        Packed::Float(value) => bytes.extend([&[0xCB][..], &value.to_be_bytes()].concat()),
        Packed::Text(text) => bytes.extend([head(0xDB, text.len()), text.clone().into_bytes()].concat()),
        Packed::Bytes(content) => bytes.extend([head(0xC6, content.len()), content.clone()].concat()),
        Packed::Array(values) => {
            bytes.extend(head(0xDD, values.len()));
            values.iter().for_each(|value| pack(value, bytes));
        }
        Packed::Map(pairs) => {
            bytes.extend(head(0xDF, pairs.len()));
            for (key, value) in pairs {
                pack(&Packed::Text(key.clone()), bytes);
                pack(value, bytes);
            }
        }
        Packed::Nested(marker, depth) => bytes.extend(vec![*marker; *depth]),
        Packed::Lie(marker, length) => bytes.extend(head(*marker, *length as usize)),
    }
}

fn packed() -> impl Strategy<Value = Packed> {
    let words = ["gray8", "rgb8", "gray_f32", "jpeg", "png", "cam-1", "cam-2", "", "a\nb", "caf\u{e9}"];
    let leaf = prop_oneof![
        2 => select(vec![0i64, 1, 2, 8, 10, 32, -1, i64::MIN, i64::MAX]).prop_map(Packed::Integer),
        2 => select(vec![0u64, 1, 4, 8, 1 << 32, 1 << 63, u64::MAX]).prop_map(Packed::Unsigned),
        2 => select(words.to_vec()).prop_map(|word| Packed::Text(word.to_owned())),
        2 => prop::collection::vec(any::<u8>(), 0..80).prop_map(Packed::Bytes),
        1 => (0..300usize).prop_map(|length| Packed::Bytes(vec![7; length])),
        1 => "\\PC{0,200}".prop_map(Packed::Text),
        1 => any::<f64>().prop_map(Packed::Float),
        1 => any::<bool>().prop_map(Packed::Bool),
        1 => Just(Packed::Nil),
        1 => (select(vec![0x91u8, 0x81, 0xDC, 0xC1]), 1..3000usize).prop_map(|(marker, depth)| Packed::Nested(marker, depth)),
        1 => (select(vec![0xC6u8, 0xC9, 0xDB, 0xDD, 0xDF]), any::<u32>()).prop_map(|(marker, length)| Packed::Lie(marker, length)),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Packed::Array),
            prop::collection::vec(("[a-z]{0,3}", inner), 0..4).prop_map(Packed::Map),
        ]
    })
}

/// Maps with these keys, once or more, in any order, mostly with what belongs there.
fn maps(fields: Vec<(&'static str, Packed)>) -> impl Strategy<Value = Vec<u8>> {
    let pair = move |(key, is_right, other): (Index, bool, Packed)| {
        let (key, right) = key.get(&fields).clone();
        (key.to_owned(), if is_right { right } else { other })
    };
    let pairs = prop::collection::vec((any::<Index>(), prop::bool::weighted(0.8), packed()).prop_map(pair), 0..10);
    (pairs, any::<bool>()).prop_map(|(mut pairs, is_set)| {
        if is_set {
            pairs = pairs.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect();
        }
        let mut bytes = Vec::new();
        pack(&Packed::Map(pairs), &mut bytes);
        bytes
    })
}

fn envelopes() -> impl Strategy<Value = Vec<u8>> {
    let text = |text: &str| Packed::Text(text.to_owned());
    maps(vec![
        ("v", Packed::Integer(1)),
        ("camera", text("cam-1")),
        ("frame_id", text("a")),
        ("capture_time_ns", Packed::Integer(5)),
        ("encoding", text("gray8")),
        ("height", Packed::Unsigned(4)),
        ("width", Packed::Unsigned(4)),
        ("image", Packed::Bytes(vec![1; 16])),
        ("label", Packed::Unsigned(3)),
        ("domain", text("fog")),
        ("other", Packed::Nil),
    ])
}

fn labels() -> impl Strategy<Value = Vec<u8>> {
    maps(vec![("frame_id", Packed::Text("a".to_owned())), ("label", Packed::Unsigned(3)), ("weight", Packed::Float(1.0))])
}

fn check_label(payload: &[u8]) {
    let (result, peak) = peak_heap(|| parse_label(payload, CLASSES));
    assert!(peak <= SMALL_HEAP_MAX, "{peak} bytes of heap");
    match result {
        Ok(label) => assert!((1..=128).contains(&label.frame_id.len()) && label.label.index() < CLASSES, "{label:?}"),
        Err(error) => assert!(LabelError::ALL_REASONS.contains(&error.reason()), "{error}"),
    }
}

fn check_control(verb: &str, payload: &[u8]) {
    let (result, peak) = peak_heap(|| parse_control(verb, payload));
    assert!(peak <= SMALL_HEAP_MAX, "{peak} bytes of heap");
    match result {
        Ok(Command::Adapt { .. }) => assert_eq!(verb, "adapt"),
        Ok(Command::RollBack { .. }) => assert_eq!(verb, "rollback"),
        Ok(Command::Status | Command::Checkpoint | Command::Reset) => assert!(payload.trim_ascii().is_empty()),
        Err(error) => {
            assert!(ControlError::ALL_REASONS.contains(&error.reason()), "{error}");
            assert!(wire::refused(error.reason(), &error.to_string()).to_string().len() < 2048, "{error}");
        }
    }
}

proptest! {
    #![proptest_config(cases("picture", 40_000))]
    #[test]
    fn a_damaged_picture_is_a_frame_or_a_reason(bytes in damaged(corpus("picture")), has_checksums in any::<bool>()) {
        check_frame(None, &if has_checksums { with_checksums(bytes) } else { bytes });
    }
}

proptest! {
    #![proptest_config(cases("envelope", 60_000))]
    #[test]
    fn an_envelope_is_a_frame_or_a_reason(bytes in prop_oneof![damaged(corpus("envelope")), envelopes(), noise()]) {
        check_frame(Some("application/msgpack"), &bytes);
    }
}

proptest! {
    #![proptest_config(cases("label", 40_000))]
    #[test]
    fn a_label_is_a_class_or_a_reason(bytes in prop_oneof![damaged(corpus("label")), labels(), noise()]) {
        check_label(&bytes);
    }
}

proptest! {
    #![proptest_config(cases("control", 40_000))]
    #[test]
    fn a_control_message_is_a_command_or_a_reason(
        verb in prop_oneof![select(vec!["adapt", "status", "checkpoint", "reset", "rollback"]).prop_map(str::to_owned), "\\PC{0,80}"],
        bytes in prop_oneof![damaged(corpus("control")), noise()],
    ) {
        check_control(&verb, &bytes);
    }
}

proptest! {
    #![proptest_config(cases("control", 40_000))]
    #[test]
    fn terms_of_a_command_are_kept_or_refused_with_a_reason(
        decision in prop_oneof!["[0-9]{0,21}", "\\PC{0,40}"],
        expires in prop_oneof!["[0-9]{0,21}", "[12][0-9]{3}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]Z", "\\PC{0,40}"],
        (next, now_ns) in (0u64..5, any::<i64>()),
    ) {
        let headers = [("Decision".to_owned(), decision), ("Expires".to_owned(), expires)];
        match Terms::parse(&headers).and_then(|terms| terms.check(next, now_ns).map(|()| terms)) {
            Ok(terms) => {
                prop_assert!(terms.decision == Some(next) && terms.expires_ns.is_some_and(|expires| expires >= now_ns), "{terms:?}");
            }
            Err(error) => prop_assert!(["header", "stale", "expired"].contains(&error.reason()), "{error}"),
        }
    }
}

/// A checkpoint whose lengths and root are those of the bytes that it has now, so that what was damaged is looked at.
fn with_root(mut bytes: Vec<u8>, header_bytes: usize) -> Vec<u8> {
    if bytes.len() >= PREFIX_BYTES {
        let header = header_bytes.min(bytes.len() - PREFIX_BYTES);
        bytes[12..16].copy_from_slice(&u32::try_from(header).expect("short").to_le_bytes());
        let payload = (bytes.len() - PREFIX_BYTES - header) as u64;
        bytes[16..24].copy_from_slice(&payload.to_le_bytes());
        let root = blake3::Hasher::new().update(&bytes[..24]).update(&bytes[PREFIX_BYTES..][..header]).finalize();
        bytes[24..PREFIX_BYTES].copy_from_slice(root.as_bytes());
    }
    bytes
}

static CHECKPOINTS: LazyLock<Vec<Vec<u8>>> =
    LazyLock::new(|| [(32, 1), (48, 2)].map(|(frames, rows)| encode(&state(frames, rows), &meta()).expect("finite values")).into());

proptest! {
    #![proptest_config(cases("checkpoint", 30_000))]
    #[test]
    fn a_checkpoint_is_what_was_written_or_an_error(bytes in damaged(CHECKPOINTS.clone()), has_root in any::<bool>(), shift in -40i64..40) {
        let written = u32::from_le_bytes(*bytes.get(12..16).and_then(|bytes| bytes.first_chunk()).unwrap_or(&[0; 4]));
        let header_bytes = usize::try_from(i64::from(written) + if shift % 4 == 0 { shift } else { 0 }).unwrap_or(0);
        let bytes = if has_root { with_root(bytes, header_bytes) } else { bytes };
        let (result, peak) = peak_heap(|| decode(&bytes));
        prop_assert!(peak <= 16 * bytes.len() + SMALL_HEAP_MAX, "{peak} bytes of heap for {}", bytes.len());
        if let Ok((state, meta)) = result {
            prop_assert_eq!(encode(&state, &meta).expect("finite values"), bytes, "one state has one form");
        }
    }

    #[test]
    fn weights_are_tensors_or_an_error(bytes in damaged(CHECKPOINTS.clone()), at in any::<Index>()) {
        // The payload is safetensors; what stands before it are lengths to it.
        let start = at.index(bytes.len() + 1);
        for bytes in [&bytes[start..], &bytes[(bytes.len() / 2).min(start)..]] {
            let (result, peak) = peak_heap(|| parameters::read(bytes).map(drop));
            prop_assert!(peak <= 16 * bytes.len() + SMALL_HEAP_MAX, "{peak} bytes of heap for {}: {result:?}", bytes.len());
        }
    }
}

/// A folder with the shipped configuration and empty files beside it.
struct Folder {
    dir: TempDir,
    text: String,
    keys: Vec<String>,
}

impl Folder {
    fn new() -> Self {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/fashion-mnist/undrift.toml");
        let text = std::fs::read_to_string(shipped).expect("the shipped configuration");
        let dir = TempDir::new().expect("a temporary folder");
        let folder = Self { dir, text, keys: Vec::new() };
        for name in ["classifier.safetensors", "diffusion.safetensors", "labels.txt", "statistics.json", "canary.safetensors", "BLAKE3SUMS"]
        {
            std::fs::write(folder.dir.path().join(name), "").expect("a writable folder");
        }
        let config = folder.load(folder.text.as_bytes(), &[], &[]).unwrap_or_else(|error| panic!("the shipped configuration: {error}"));
        let keys = config.settings.entries().into_iter().map(|setting| setting.key).collect();
        Self { keys, ..folder }
    }

    fn load(&self, text: &[u8], sets: &[String], variables: &[(String, String)]) -> Result<Config, ConfigError> {
        let path = self.dir.path().join("undrift.toml");
        std::fs::write(&path, text).expect("a writable folder");
        Config::load(&path, sets, variables.iter().cloned())
    }

    fn check(&self, text: &[u8], sets: &[String], variables: &[(String, String)]) {
        let (result, peak) = peak_heap(|| self.load(text, sets, variables));
        assert!(peak <= CONFIG_HEAP_MAX, "{peak} bytes of heap");
        match result {
            Ok(config) => check_config(&config),
            Err(error) => {
                let message = error.to_string();
                assert!(!message.is_empty() && !message.contains(PASSWORD), "{message}");
            }
        }
    }
}

const PASSWORD: &str = "S3cret";

fn check_config(config: &Config) {
    let adapt = &config.adapt;
    assert!((1..=1024).contains(&adapt.window) && (1..=8).contains(&adapt.lag), "{adapt:?}");
    let positive = [f64::from(adapt.learning_rate), f64::from(adapt.gradient_norm_max), adapt.distance_max];
    assert!(positive.iter().all(|value| value.is_finite() && *value > 0.0), "{adapt:?}");
    assert!(!adapt.timesteps.is_empty() && adapt.timesteps.iter().all(|&t| t < config.bundle.diffusion.num_timesteps), "{adapt:?}");
    let guard = &adapt.guard;
    assert!(guard.repeats_max >= 1 && guard.camera_share_max >= 1.0 && guard.canary_evidence_max > 1.0, "{guard:?}");
    assert!((0.0..1.0).contains(&guard.canary_tolerance) && (1..=1024).contains(&guard.canary_images), "{guard:?}");
    assert!((1..=1000).contains(&config.output.top_k));
    assert!((1..=65_536).contains(&config.nats.queue_frames_max) && config.nats.queue_bytes_max >= config.limits.payload_bytes_max);
    assert!((1..=64).contains(&config.nats.urls.len()));
    assert!((1..=1000).contains(&config.checkpoint.keep) && config.checkpoint.every_windows >= 1);
    assert!((1..=1000).contains(&config.limits.cameras_max) && (1..=65_535).contains(&config.limits.dimension_max));
    assert!((1..=3600).contains(&config.limits.stall_patience.as_secs()));
    assert!((1..=1 << 28).contains(&config.limits.pixels_max) && (1024..=1 << 26).contains(&config.limits.payload_bytes_max));
    assert!(!config.settings.to_string().contains(PASSWORD), "a password is shown");
    assert_eq!(config.fingerprint().len(), 64);
}

thread_local! {
    static FOLDER: Folder = Folder::new();
}

fn values() -> impl Strategy<Value = String> {
    let values = [
        "0",
        "1",
        "-1",
        "2",
        "17",
        "1e9",
        "1e400",
        "-0.0",
        "nan",
        "inf",
        "-inf",
        "4294967296",
        "18446744073709551616",
        "0x10",
        "true",
        "\"\"",
        "''",
        "[]",
        "[1]",
        "{}",
        "{a=1}",
        "[[[[[[[[]]]]]]]]",
        "on",
        "core",
        "jetstream",
        "posterior",
        "before",
        "after",
        "./labels.txt",
        "nats://user:S3cret@127.0.0.1:4222",
        "tls://S3cret@a,b",
        "a.b.c",
        "$SYS",
        "*",
        ">",
        "127.0.0.1:0",
        "1979-05-27",
        "\"\\u0000\"",
    ];
    let known = select(values.to_vec()).prop_map(str::to_owned);
    prop_oneof![4 => known, 1 => "\\PC{0,40}", 1 => any::<f64>().prop_map(|value| value.to_string())]
}

fn assignments() -> impl Strategy<Value = Vec<(String, String)>> {
    let keys = FOLDER.with(|folder| folder.keys.clone());
    let key = prop_oneof![8 => select(keys), 1 => "[a-z.]{0,20}", 1 => "\\PC{0,20}"];
    prop::collection::vec((key, values()), 0..4)
}

proptest! {
    #![proptest_config(cases("configuration", 4000))]
    #[test]
    fn a_configuration_is_within_its_limits_or_refused(
        damages in prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(damage(), 0..4)],
        sets in assignments(),
        variables in assignments(),
    ) {
        FOLDER.with(|folder| {
            let mut text = folder.text.clone().into_bytes();
            damages.iter().for_each(|damage| apply(damage, &mut text, &[folder.text.clone().into_bytes()]));
            let sets: Vec<String> = sets.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let name = |key: &str| format!("UNDRIFT__{}", key.to_ascii_uppercase().replace('.', "__"));
            let variables: Vec<(String, String)> = variables.iter().map(|(key, value)| (name(key), value.clone())).collect();
            folder.check(&text, &sets, &variables);
        });
    }
}

/// Panics on the threads of HTTP, where no test would hear of them.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// The daemon's own server, on this thread.
struct Http {
    runtime: tokio::runtime::Runtime,
    address: std::net::SocketAddr,
}

impl Http {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let metrics = telemetry::install().expect("one recorder");
        let listener = runtime.block_on(http::listen("127.0.0.1:0".parse().expect("an address"))).expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket");
        let shared = std::sync::Arc::new(Shared::new(NatsMode::Core));
        runtime.spawn(http::serve(listener, shared, metrics));
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, SeqCst);
            before(panic);
        }));
        Self { runtime, address }
    }

    /// What comes back for `request`, up to the end that the server makes.
    fn exchange(&self, request: &[u8]) -> Vec<u8> {
        self.runtime.block_on(async {
            let mut stream = TcpStream::connect(self.address).await.expect("the server listens");
            let mut answer = Vec::new();
            let exchange = async {
                // The server may have seen enough before all of it is sent.
                let _ = stream.write_all(request).await;
                let _ = stream.shutdown().await;
                let _ = stream.read_to_end(&mut answer).await;
            };
            tokio::time::timeout(Duration::from_secs(10), exchange).await.expect("the server ends what the client has ended");
            answer
        })
    }

    fn check(&self, request: &[u8]) {
        let before = PANICS.load(SeqCst);
        let (answer, peak) = peak_heap(|| self.exchange(request));
        assert!(peak <= HTTP_HEAP_MAX, "{peak} bytes of heap");
        assert_eq!(PANICS.load(SeqCst), before, "a panic while it was served");
        let Some(rest) = answer.strip_prefix(b"HTTP/1.") else {
            return assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
        };
        let status = str::from_utf8(&rest[2..5]).ok().and_then(|digits| digits.parse::<u16>().ok());
        let is_known = status.is_some_and(|status| [100, 200, 400, 404, 405, 414, 417, 431, 503].contains(&status));
        assert!(is_known, "status {status:?}");
    }
}

thread_local! {
    static HTTP: RefCell<Option<Http>> = const { RefCell::new(None) };
}

fn requests() -> impl Strategy<Value = Vec<u8>> {
    let method =
        prop_oneof![select(vec!["GET", "HEAD", "POST", "DELETE", "CONNECT", "PRI", "get", ""]).prop_map(str::to_owned), "\\PC{0,12}"];
    let target = prop_oneof![
        select(vec!["/", "/status", "/metrics", "/livez", "/../../etc/passwd", "*", "//", "/%00", "http://a/", "?"])
            .prop_map(str::to_owned),
        "/\\PC{0,60}",
        (0..20_000usize).prop_map(|length| "/".repeat(length)),
    ];
    let version = select(vec!["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "", "HTTP/1.1 "]);
    let header = prop_oneof![
        select(vec![
            "Host: a",
            "Content-Length: 5",
            "Content-Length: -1",
            "Content-Length: 18446744073709551616",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: chunked, identity",
            "Connection: upgrade",
            "Upgrade: websocket",
            "Expect: 100-continue",
            " folded",
            ":",
            "a",
        ])
        .prop_map(str::to_owned),
        "\\PC{0,30}: \\PC{0,60}",
        (0..20_000usize).prop_map(|length| format!("X: {}", "v".repeat(length))),
    ];
    let end = select(vec!["\r\n", "\n", "\r", ""]);
    let headers = (prop::collection::vec(header, 0..8), select(vec![1, 1, 30]))
        .prop_map(|(headers, times)| std::iter::repeat_n(headers, times).flatten().collect::<Vec<_>>());
    (method, target, version, headers, end).prop_map(|(method, target, version, headers, end)| {
        let head: Vec<String> = [format!("{method} {target} {version}")].into_iter().chain(headers).collect();
        format!("{}{end}{end}", head.join(end)).into_bytes()
    })
}

proptest! {
    #![proptest_config(cases("http", 6000))]
    #[test]
    fn a_request_is_answered_by_its_status_or_not_at_all(bytes in prop_oneof![damaged(corpus("http")), requests(), noise()]) {
        HTTP.with_borrow_mut(|http| {
            let http = http.get_or_insert_with(Http::start);
            http.check(&bytes);
            let alive = http.exchange(b"GET /livez HTTP/1.0\r\n\r\n");
            assert!(alive.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&alive));
        });
    }
}

#[test]
fn the_corpora_are_read_as_they_are() {
    corpus("picture").iter().for_each(|bytes| check_frame(None, bytes));
    corpus("envelope").iter().for_each(|bytes| check_frame(Some("application/msgpack"), bytes));
    corpus("label").iter().for_each(|bytes| check_label(bytes));
    corpus("control").iter().for_each(|bytes| check_control("adapt", bytes));
}

#[test]
fn a_picture_that_is_cut_anywhere_is_refused() {
    for (file, payload) in corpus("picture").iter().enumerate() {
        for length in 0..payload.len() {
            let payload = &payload[..length];
            let message = Message { subject_camera: "cam-1", headers: &[], payload, sequence: FrameSeq(1), broker_time_ns: None };
            assert!(frames::decode(&message, &LIMITS, SHAPE, CLASSES).is_err(), "file {file} cut after {length} bytes");
        }
    }
}

#[test]
fn what_is_damaged_was_good_before() {
    for (target, headers) in [("picture", vec![]), ("envelope", vec![("Content-Type".to_owned(), "application/msgpack".to_owned())])] {
        for (file, payload) in corpus(target).iter().enumerate() {
            let message = Message { subject_camera: "cam-1", headers: &headers, payload, sequence: FrameSeq(1), broker_time_ns: None };
            let refused = frames::decode(&message, &LIMITS, SHAPE, CLASSES).err();
            assert!(refused.is_none(), "file {file} of {target}: {refused:?}");
        }
    }
    assert!(corpus("label").iter().all(|bytes| parse_label(bytes, CLASSES).is_ok()));
}
