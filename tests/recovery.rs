//! Kill -9, of the daemon and of the broker: the bits, the predictions and the checkpoints are those of a history without it.
//!
//! UNDRIFT_KILLS kills for each server and variant (25 if unset; `make chaos` runs thousands), drawn from UNDRIFT_SEED.
//! Oracle: `undrift verify`, which computes the whole history again on one thread, without the daemon, from the frames in
//! the stream and the decisions on the disk. Every checkpoint that was ever seen must be a state of that history, and every
//! stored prediction its prediction.

mod harness;

use async_nats::jetstream::{self, stream::Stream};
use harness::{Broker, Daemon, Home, Server, control, png, servers, until};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};
use undrift::shell::store;

const SETS: [&str; 2] = ["nats.mode=jetstream", "checkpoint.keep=8"];
/// Frames that the camera publishes in a second.
const RATE: u64 = 60;
/// Length of the frames that cannot be used.
const BROKEN_BYTES: usize = 60;
/// System calls before which a kill can strike.
const CALLS: [&str; 6] = ["write", "fsync", "rename", "sendto", "openat", "futex"];

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Publishes until told to stop; one frame in 13 cannot be used.
async fn camera(broker_url: String, is_over: Arc<AtomicBool>) {
    let client = async_nats::ConnectOptions::new().retry_on_initial_connect().connect(broker_url).await.expect("an address");
    let context = jetstream::new(client);
    let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / RATE));
    let mut index = 0usize;
    while !is_over.load(SeqCst) {
        ticks.tick().await;
        let payload = if index % 13 == 7 { png(index)[..BROKEN_BYTES].to_vec() } else { png(index % 97) };
        // The id keeps a frame from being stored twice where an acknowledgement was lost with the broker.
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("frame-{index}"));
        let sent = context.publish_with_headers("undrift.v1.frames.cam1", headers, payload.into()).await;
        let Ok(sent) = sent else { continue };
        if sent.await.is_ok() {
            index += 1;
        }
    }
}

/// Where the loop happens.
struct Stage<'a> {
    home: Home,
    broker: Broker,
    context: jetstream::Context,
    kills_broker: bool,
    /// Configuration of the daemon.
    sets: &'a [&'a str],
}

/// What the loop has seen.
#[derive(Default)]
struct Seen {
    kills: u64,
    broker_kills: u64,
    decisions: u64,
    /// State hash of every checkpoint, by its last frame and decision.
    checkpoints: BTreeMap<(u64, u64), String>,
    /// From the start of a process, with the broker there and a frame in the stream that is not answered, to the first new prediction.
    recoveries: Vec<Duration>,
}

impl Seen {
    fn look_at(&mut self, home: &Home) {
        let Ok(listed) = store::list(&home.path().join("state")) else { return };
        for listed in listed {
            let listed = listed.expect("a checkpoint that has its name is complete");
            let hash = blake3::Hash::from_bytes(listed.header.state_hash).to_hex().to_string();
            let scalars = &listed.header.scalars;
            let at = (scalars.sequence.0, scalars.control.generation);
            let known = self.checkpoints.entry(at).or_insert_with(|| hash.clone());
            assert_eq!(*known, hash, "two states after frame and decision {at:?}");
        }
    }
}

async fn stream(context: &jetstream::Context, name: &str) -> Option<Stream> {
    context.get_stream(name).await.ok()
}

/// Numbers of the frames in the stream, behind `after`, that can be used. Its end and what it holds are not what the camera thinks: a frame may be
/// stored whose acknowledgement was lost, and stand there twice, as a broker that is killed may forget ids.
async fn usable(context: &jetstream::Context, after: u64) -> Vec<u64> {
    let stream = stream(context, "UNDRIFT_V1_FRAMES").await.expect("the stream is there");
    let mut usable = Vec::new();
    for sequence in after + 1..=stream.cached_info().state.last_sequence {
        let frame = stream.get_raw_message(sequence).await.expect("the stream holds the frame");
        if frame.payload.len() != BROKEN_BYTES {
            usable.push(sequence);
        }
    }
    usable
}

async fn predictions(context: &jetstream::Context) -> Option<u64> {
    stream(context, "UNDRIFT_V1_PREDICTIONS").await.map(|stream| stream.cached_info().state.last_sequence)
}

/// Puts a frame into the stream, so that a daemon need not wait until the camera has found the broker again; gives the count of
/// predictions before it.
async fn unanswered(context: &jetstream::Context) -> u64 {
    let publish = || async {
        let sent = context.publish("undrift.v1.frames.cam1", png(0).into()).await.ok()?;
        sent.await.ok()
    };
    until("the frame is stored", publish).await;
    until("predictions are counted", || predictions(context)).await
}

/// One life of the daemon, and its end; the broker may die before it does.
async fn live(stage: &mut Stage<'_>, random: &mut ChaCha8Rng, seen: &mut Seen) {
    let Stage { home, broker, context, kills_broker, sets } = stage;
    let way = random.random_range(0..10);
    let before = if way == 3 { unanswered(context).await } else { 0 };
    let began = Instant::now();
    let mut daemon = if way < 3 {
        let (call, nth) = (CALLS[random.random_range(0..CALLS.len())], random.random_range(1..40));
        let inject = format!("--inject={call}:signal=SIGKILL:when={nth}");
        Daemon::spawn_under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=none", &inject], home, broker.port, sets)
    } else {
        Daemon::spawn(home, broker.port, sets)
    };
    if way == 3 {
        // Until it is through with the replay: the first new prediction is stored.
        until("a new prediction", || async { predictions(context).await.filter(|&stored| stored > before) }).await;
        seen.recoveries.push(began.elapsed());
    }
    let deadline = Instant::now() + Duration::from_millis(random.random_range(0..700));
    // Before the daemon's, or after.
    let is_broker_to_die = *kills_broker && random.random_bool(0.5);
    let death_of_broker = is_broker_to_die.then(|| Instant::now() + Duration::from_millis(random.random_range(0..700)));
    if random.random_bool(0.3) {
        let switch = if random.random_bool(0.5) { "on" } else { "off" };
        let verb = ["adapt", "adapt", "reset", "rollback", "checkpoint"][random.random_range(0..5)];
        let payload = if verb == "adapt" { switch } else { "" };
        let client = context.client();
        let asked = tokio::time::timeout_at(deadline.into(), control_if_there(&client, verb, payload)).await;
        seen.decisions += u64::from(asked.is_ok_and(|was_made| was_made));
    }
    while Instant::now() < deadline && !daemon.has_ended() {
        if death_of_broker.is_some_and(|death| death <= Instant::now()) {
            broker.kill();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    daemon.kill();
    // Under strace it may outlive its tracer by an instant.
    let lock = home.path().join("state/lock");
    until("the folder is given up", || async {
        match std::fs::File::open(&lock) {
            Ok(file) => file.try_lock().ok(),
            Err(_) => Some(()),
        }
    })
    .await;
    seen.kills += 1;
    seen.look_at(home);
    if death_of_broker.is_some() {
        broker.kill();
        seen.broker_kills += 1;
        broker.resume().await;
    }
}

/// Asks until the daemon is there to answer.
async fn control_if_there(client: &async_nats::Client, verb: &str, payload: &str) -> bool {
    loop {
        let subject = format!("undrift.v1.control.{verb}");
        match client.request(subject, payload.to_owned().into()).await {
            Ok(reply) => return serde_json::from_slice::<serde_json::Value>(&reply.payload).is_ok_and(|reply| reply["ok"] == true),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// What a run of the loop is one of.
#[derive(Clone, Copy, Debug)]
struct Variant {
    kills_broker: bool,
    /// `adapt.answer`: whether frames are answered before or after their window is learned from.
    answer: &'static str,
}

async fn kill_loop(server: &Server, variant: Variant, kills: u64, seed: u64) {
    let Variant { kills_broker, answer } = variant;
    println!("seed {seed}, {kills} kills, {variant:?}");
    let answer_set = format!("adapt.answer={answer}");
    let sets = [SETS.as_slice(), &[&answer_set]].concat();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (home, broker) = (Home::new(), Broker::start(server).await);
    let context = jetstream::new(broker.client().await);
    // The streams are there before the camera is.
    Daemon::start(&home, &broker, &sets).await.kill();
    let is_over = Arc::new(AtomicBool::new(false));
    let camera = tokio::spawn(camera(broker.url(), is_over.clone()));
    let mut seen = Seen::default();
    let mut stage = Stage { home, broker, context, kills_broker, sets: &sets };
    while seen.kills < kills {
        live(&mut stage, &mut random, &mut seen).await;
    }
    let Stage { home, broker, context, .. } = stage;
    is_over.store(true, SeqCst);
    camera.await.expect("the camera ends");
    let mut daemon = Daemon::start(&home, &broker, &sets).await;
    let usable = usable(&context, 0).await;
    let last_usable = usable.last().copied().unwrap_or(0);
    until("all frames are applied", || async { (daemon.status()["sequence"] == last_usable).then_some(()) }).await;
    assert_eq!(daemon.metric("undrift_replay_mismatches_total"), 0.0);
    for kind in ["new_stream", "stream_truncated", "stream_rewritten"] {
        assert_eq!(daemon.metric(&format!("undrift_stream_breaks_total{{kind=\"{kind}\"}}")), 0.0, "{kind}");
    }
    assert_eq!(daemon.stop().await, 0);
    seen.look_at(&home);
    let verdict = verify(&home, &broker, &sets);
    assert_eq!(verdict["is_true"], true, "{}", verdict["first_difference"]);
    let frames = usable.len() as u64;
    assert_eq!((&verdict["sequence"], &verdict["frames"]), (&last_usable.into(), &frames.into()), "the last checkpoint has all frames");
    // With `answer = "after"` the frames of a window that is not full have no answer yet.
    let answered = if answer == "after" { frames - frames % 4 } else { frames };
    assert_eq!(verdict["predictions"], answered, "every frame has its prediction");
    assert_eq!(predictions(&context).await, Some(answered), "and each has one");
    let number = |state: &serde_json::Value, name: &str| state[name].as_u64().expect("a number");
    let states = verdict["states"].as_array().expect("states").iter();
    let states: BTreeMap<(u64, u64), &str> = states
        .map(|state| ((number(state, "sequence"), number(state, "decision")), state["state_hash"].as_str().expect("a hash")))
        .collect();
    for (at, hash) in seen.checkpoints.iter().filter(|((sequence, _), _)| *sequence > 0) {
        assert_eq!(states.get(at), Some(&hash.as_str()), "state after frame and decision {at:?}");
    }
    seen.recoveries.sort();
    let percentile = |share: usize| seen.recoveries.get(seen.recoveries.len().saturating_sub(1) * share / 100).copied().unwrap_or_default();
    println!(
        "{} kills of the daemon, {} of the broker, {} decisions; {frames} frames: 0 lost, 0 twice, 0 changed; {} checkpoints: 0 differing; start to first new prediction p50 {:.2} s, p99 {:.2} s of {}",
        seen.kills,
        seen.broker_kills,
        seen.decisions,
        seen.checkpoints.len(),
        percentile(50).as_secs_f64(),
        percentile(99).as_secs_f64(),
        seen.recoveries.len()
    );
}

/// What the daemon remembers of the frame that it works on.
fn in_hand(home: &Home) -> Option<(u64, u8)> {
    let bytes = std::fs::read(home.path().join("state/in-hand")).ok()?;
    let sequence = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
    Some((sequence, *bytes.get(16)?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_over_which_the_process_dies_three_times_is_passed_over() {
    // Goal: a frame that ends the process each time it comes does not keep the daemon from the frames behind it, and a replay
    // passes it over too.
    // Method: a picture that takes long to decode; SIGKILL while it is worked on, three times.
    const DEADLY: u64 = 6;
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let context = jetstream::new(broker.client().await);
        let sets = ["nats.mode=jetstream", "limits.payload_bytes_max=8388608", "limits.pixels_max=67108864", "limits.dimension_max=8192"];
        Daemon::start(&home, &broker, &sets).await.kill();
        let mut slow = std::io::Cursor::new(Vec::new());
        image::GrayImage::new(8000, 8000).write_to(&mut slow, image::ImageFormat::Png).expect("a picture encodes");
        for sequence in 1..=12 {
            let payload = if sequence == DEADLY { slow.get_ref().clone() } else { png(sequence as usize) };
            let sent = context.publish("undrift.v1.frames.cam1", payload.into()).await.expect("the connection is open");
            sent.await.expect("the frame is stored");
        }
        for death in 1..=3 {
            let mut daemon = Daemon::spawn(&home, broker.port, &sets);
            until("the frame is worked on", || async { (in_hand(&home) == Some((DEADLY, death))).then_some(()) }).await;
            daemon.kill();
        }
        let mut daemon = Daemon::start(&home, &broker, &sets).await;
        until("the frames behind it are applied", || async { (daemon.status()["sequence"] == 12).then_some(()) }).await;
        assert_eq!(daemon.metric("undrift_frames_rejected_total{reason=\"deadly\"}"), 1.0);
        daemon.kill();
        let daemon = Daemon::start(&home, &broker, &sets).await;
        until("the replay is through", || async { (daemon.status()["sequence"] == 12).then_some(()) }).await;
        assert_eq!(daemon.metric("undrift_replay_mismatches_total"), 0.0);
        assert_eq!(predictions(&context).await, Some(11), "each of the others is answered once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_from_before_the_first_checkpoint_are_known_again() {
    // Goal: a restart proves itself from the first frame of a history on.
    // Method: fewer frames than a window has, and SIGKILL.
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let context = jetstream::new(broker.client().await);
        let mut daemon = Daemon::start(&home, &broker, &SETS).await;
        for index in 0..3 {
            let sent = context.publish("undrift.v1.frames.cam1", png(index).into()).await.expect("the connection is open");
            sent.await.expect("the frame is stored");
        }
        until("they are answered", || async { (predictions(&context).await == Some(3)).then_some(()) }).await;
        daemon.kill();
        let daemon = Daemon::start(&home, &broker, &SETS).await;
        until("the replay is through", || async { (daemon.status()["sequence"] == 3).then_some(()) }).await;
        assert_eq!(daemon.metric("undrift_replayed_predictions_total{outcome=\"proven\"}"), 3.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_checkpoints_makes_the_written_decisions_again() {
    // Goal: who deletes the checkpoints to start from the source weights does not bring back what an operator has switched off, and
    // the history that begins then goes on as any other: its decisions have numbers of their own, and it can be verified.
    // Method: a switch, an orderly stop, no checkpoints; then another switch and another start.
    const FRAMES: u64 = 6;
    for server in servers() {
        for mode in ["nats.mode=core", "nats.mode=jetstream"] {
            let (home, broker) = (Home::new(), Broker::start(&server).await);
            let sets = [mode, SETS[1]];
            let (client, context) = (broker.client().await, jetstream::new(broker.client().await));
            let mut daemon = Daemon::start(&home, &broker, &sets).await;
            for index in 0..FRAMES {
                client.publish("undrift.v1.frames.cam1", png(index as usize).into()).await.expect("the connection is open");
            }
            until("they are applied", || async { (daemon.status()["frames"] == FRAMES).then_some(()) }).await;
            assert_eq!(control(&client, "adapt", "off").await["ok"], true);
            assert_eq!(daemon.stop().await, 0);
            let state = home.path().join("state");
            for listed in store::list(&state).expect("a folder").into_iter().map(|listed| listed.expect("a checkpoint")) {
                std::fs::remove_file(state.join(listed.generation.file_name())).expect("the file is there");
            }
            let mut daemon = Daemon::start(&home, &broker, &sets).await;
            let frames = if mode == SETS[0] { FRAMES } else { 0 };
            let is_made = |status: serde_json::Value| status["frames"] == frames && status["decision"] == 1;
            until("what the stream has is applied, and the decision made", || async { is_made(daemon.status()).then_some(()) }).await;
            assert_eq!(daemon.status()["adapt"], "off", "{mode}");
            let reply = control(&client, "adapt", "on").await;
            assert_eq!((&reply["adapt"], &reply["decision"]), (&"on".into(), &2.into()), "{reply}");
            assert_eq!(daemon.stop().await, 0);
            let mut daemon = Daemon::start(&home, &broker, &sets).await;
            assert_eq!((&daemon.status()["adapt"], &daemon.status()["decision"]), (&"on".into(), &2.into()), "{mode}");
            assert_eq!(daemon.stop().await, 0);
            if mode == SETS[0] {
                assert_eq!(predictions(&context).await, Some(FRAMES), "each is answered once");
                assert_eq!(verify(&home, &broker, &sets)["is_true"], true);
            }
        }
    }
}

/// What `undrift verify` says of the newest checkpoint.
fn verify(home: &Home, broker: &Broker, sets: &[&str]) -> serde_json::Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undrift"));
    command.args(["verify", "--json", "--states", "--config"]).arg(home.config());
    let own = [format!("nats.urls={}", broker.url()), format!("checkpoint.dir={}", home.path().join("state").display())];
    for set in own.iter().map(String::as_str).chain(sets.iter().copied()) {
        command.args(["--set", set]);
    }
    let output = command.output().expect("the program runs");
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn after_any_kill_bits_and_predictions_are_those_of_a_history_without_it() {
    // Goal: a daemon that is killed at any instant goes on to the same weights, optimizer state and predictions, each stored once.
    // Method: frames at a fixed rate, some of them broken; lives that end at a random instant, before a random system call, or
    // soon after the first new prediction; operators' decisions in between; then the oracle.
    let (kills, seed) = (setting("UNDRIFT_KILLS", 25), setting("UNDRIFT_SEED", 1));
    for server in servers() {
        for (kills_broker, answer) in [(false, "before"), (true, "before"), (false, "after")] {
            kill_loop(&server, Variant { kills_broker, answer }, kills, seed).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_at_any_moment_is_orderly() {
    // Goal: SIGTERM ends the daemon within seconds with exit code 0 and a checkpoint of all that was answered, whatever it is doing; the
    // next start applies no frame again.
    // Method: UNDRIFT_STOPS stops (15 if unset) at random moments under a camera's frames.
    let (stops, seed) = (setting("UNDRIFT_STOPS", 15), setting("UNDRIFT_SEED", 1));
    for server in servers() {
        println!("seed {seed}, {stops} stops");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let context = jetstream::new(broker.client().await);
        assert_eq!(Daemon::start(&home, &broker, &SETS).await.stop().await, 0);
        let is_over = Arc::new(AtomicBool::new(false));
        let camera = tokio::spawn(camera(broker.url(), is_over.clone()));
        let (mut longest, mut frames) = (Duration::ZERO, Vec::new());
        for _ in 0..stops {
            let mut daemon = Daemon::start(&home, &broker, &SETS).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
            for outcome in ["proven", "unknown", "mismatch"] {
                let replayed = daemon.metric(&format!("undrift_replayed_predictions_total{{outcome=\"{outcome}\"}}"));
                assert_eq!(replayed, 0.0, "{outcome}: after an orderly stop nothing is replayed");
            }
            let asked = Instant::now();
            assert_eq!(daemon.stop().await, 0);
            longest = longest.max(asked.elapsed());
            let newest = store::list(&home.path().join("state")).expect("a folder").remove(0).expect("a checkpoint");
            let applied = newest.header.scalars.sequence.0;
            let answered = predictions(&context).await.expect("the stream is there");
            frames.extend(usable(&context, frames.last().copied().unwrap_or(0)).await);
            let usable = frames.iter().filter(|&&sequence| sequence <= applied).count() as u64;
            assert_eq!(answered, usable, "answered, and in the checkpoint");
        }
        is_over.store(true, SeqCst);
        camera.await.expect("the camera ends");
        println!(
            "{stops} of {stops} stops: exit code 0, all that was answered in the checkpoint, nothing replayed; the longest took {:.2} s",
            longest.as_secs_f64()
        );
        assert!(longest < Duration::from_secs(5));
    }
}
