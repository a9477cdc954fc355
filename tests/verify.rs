//! `undrift verify` says yes to a true history, and of a changed one at which frame the change first shows.
//!
//! Method: one history of frames and decisions; each case changes one thing in a copy of it: frames or predictions in the
//! broker, the checkpoint, the decisions, the noise key, the configuration.

mod harness;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, consumer};
use futures_util::StreamExt;
use harness::{Broker, Daemon, Home, Server, control, copy_folder, png, servers, until};
use serde_json::json;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use undrift::frame::FrameSeq;
use undrift::noise::NoiseKey;
use undrift::proof::{HistoryId, PROOF_HEADER, Proof};
use undrift::shell::decision_log::{Action, Decided, DecisionLog};
use undrift::shell::store::{self, Store};
use undrift::state::{DurableState, Hearing};
use undrift::wire::{self, Format};

const FRAMES: &str = "UNDRIFT_V1_FRAMES";
const PREDICTIONS: &str = "UNDRIFT_V1_PREDICTIONS";
const SETS: [&str; 1] = ["nats.mode=jetstream"];
const LENGTH: u64 = 40;
/// Frames after which an operator decides: between two windows, and in one.
const SWITCHED_OFF: u64 = 12;
const SWITCHED_ON: u64 = 22;

/// A daemon's folder and a broker's files.
struct History {
    dir: TempDir,
}

impl History {
    async fn new(server: &Server) -> Self {
        let dir = TempDir::new().expect("temporary folders can be made");
        let (home, mut broker) = (Home::new(), Broker::start(server).await);
        Daemon::start(&home, &broker, &SETS).await.kill();
        let client = broker.client().await;
        let mut daemon = Daemon::start(&home, &broker, &SETS).await;
        for frame in 1..=LENGTH {
            publish(&broker, frame..frame + 1).await;
            until("the frame is answered", || async { (daemon.status()["sequence"] == frame).then_some(()) }).await;
            match frame {
                SWITCHED_OFF => drop(control(&client, "adapt", "off").await),
                SWITCHED_ON => drop(control(&client, "adapt", "on").await),
                _ => {}
            }
        }
        assert_eq!(daemon.stop().await, 0);
        broker.kill();
        for stream in [FRAMES, PREDICTIONS] {
            copy_folder(&broker.folder_of(stream), &dir.path().join(stream));
        }
        copy_folder(&home.path().join("state"), &dir.path().join("state"));
        Self { dir }
    }

    /// A copy that can be changed.
    async fn copy(&self, server: &Server) -> Case {
        let (home, mut broker) = (Home::new(), Broker::start(server).await);
        broker.kill();
        for stream in [FRAMES, PREDICTIONS] {
            copy_folder(&self.dir.path().join(stream), &broker.folder_of(stream));
        }
        copy_folder(&self.dir.path().join("state"), &home.path().join("state"));
        broker.resume().await;
        Case { home, broker }
    }
}

struct Case {
    home: Home,
    broker: Broker,
}

impl Case {
    fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }

    fn verify(&self, sets: &[&str]) -> serde_json::Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_undrift"));
        command.args(["verify", "--json", "--config"]).arg(self.home.config());
        let own = [format!("nats.urls={}", self.broker.url()), format!("checkpoint.dir={}", self.state().display())];
        for set in own.iter().map(String::as_str).chain(SETS).chain(sets.iter().copied()) {
            command.args(["--set", set]);
        }
        let output = command.output().expect("the program runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let verdict: serde_json::Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(output.status.code(), Some(if verdict["is_true"] == true { 0 } else { 65 }));
        verdict
    }

    /// Replaces the stored predictions by what `change` makes of each, by its place from 1.
    async fn change_predictions(&self, change: impl Fn(u64, HeaderMap, Vec<u8>) -> Vec<(HeaderMap, Vec<u8>)>) {
        let context = jetstream::new(self.broker.client().await);
        let stream = context.get_stream(PREDICTIONS).await.expect("the stream is there");
        let info = stream.cached_info().clone();
        let count = usize::try_from(info.state.messages).expect("few");
        let config = consumer::pull::Config { ack_policy: consumer::AckPolicy::None, ..Default::default() };
        let consumer = stream.create_consumer(config).await.expect("the broker makes consumers");
        let messages: Vec<_> =
            consumer.fetch().max_messages(count).messages().await.expect("the broker answers").take(count).collect().await;
        context.delete_stream(PREDICTIONS).await.expect("the stream can be deleted");
        // The broker drops what has an id that it has seen, but only for a while.
        let config = jetstream::stream::Config { duplicate_window: Duration::from_millis(100), ..info.config };
        context.create_stream(config).await.expect("the stream can be made");
        for (place, message) in (1..).zip(messages) {
            let message = message.expect("a message");
            let headers = message.headers.clone().expect("headers");
            let mut kept = HeaderMap::new();
            for name in ["Nats-Msg-Id", PROOF_HEADER] {
                kept.insert(name, headers.get(name).expect("a prediction has it").as_str());
            }
            for (headers, payload) in change(place, kept, message.payload.to_vec()) {
                let publish = || async {
                    let sent = context.publish_with_headers(message.subject.clone(), headers.clone(), payload.clone().into()).await;
                    let ack = sent.expect("the connection is open").await.expect("the broker answers");
                    (!ack.duplicate).then_some(())
                };
                until("the prediction is stored", publish).await;
            }
        }
    }

    /// Makes `change` to the newest state, written as the daemon would.
    fn change_state(&self, change: impl Fn(&mut DurableState)) {
        let newest = store::list(&self.state()).expect("a folder").remove(0).expect("a checkpoint");
        let (mut state, meta) = store::load(&self.state(), newest.generation).expect("a checkpoint");
        change(&mut state);
        Store::open(&self.state(), 9).expect("a folder").write(&state, &meta).expect("a disk");
    }

    /// Replaces the decisions.
    fn change_decisions(&self, change: impl Fn(&mut Vec<Decided>)) {
        let mut decisions = DecisionLog::open(&self.state()).expect("the decisions").after(0).to_vec();
        change(&mut decisions);
        std::fs::remove_file(self.state().join(store::DECISIONS_FILE)).expect("the file is there");
        let mut log = DecisionLog::open(&self.state()).expect("no decisions");
        decisions.into_iter().for_each(|decided| log.append(decided).expect("a disk"));
    }
}

async fn publish(broker: &Broker, indices: std::ops::Range<u64>) {
    let context = jetstream::new(broker.client().await);
    for index in indices {
        let sent = context.publish("undrift.v1.frames.cam1", png(index as usize).into()).await.expect("the connection is open");
        sent.await.expect("the frame is stored");
    }
}

/// A prediction that says something else, and its proof with it.
fn forged(headers: &HeaderMap, payload: &[u8]) -> (HeaderMap, Vec<u8>) {
    let mut prediction = wire::decode_prediction(payload).expect("a prediction");
    prediction.confidence *= 0.5;
    let stored = Proof::parse(headers.get(PROOF_HEADER).expect("a proof").as_str()).expect("a proof");
    let content = Proof::new(HistoryId::new(&[].into(), 0), &prediction).content;
    let mut headers = headers.clone();
    headers.insert(PROOF_HEADER, Proof { content, ..stored }.to_string());
    (headers, wire::encode_prediction(&prediction, Format::Msgpack))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_true_history_is_confirmed_and_the_first_wrong_frame_of_a_changed_one_named() {
    for server in servers() {
        let history = History::new(&server).await;
        let verdict = history.copy(&server).await.verify(&[]);
        let expected = json!({ "is_true": true, "sequence": LENGTH, "frames": LENGTH, "predictions": LENGTH, "from": null });
        for (name, value) in expected.as_object().expect("a map") {
            assert_eq!(verdict[name], *value, "{verdict}");
        }
        let mut cases = 0;
        let mut check = |verdict: serde_json::Value, at: u64, what: &str| {
            assert_eq!((&verdict["is_true"], &verdict["first_difference"]), (&json!(false), &json!([at, what])), "{verdict}");
            cases += 1;
        };

        for place in [1, 7, LENGTH] {
            let at = |n: u64| n == place;
            let case = history.copy(&server).await;
            case.change_predictions(|n, headers, payload| {
                let payload = if at(n) { forged(&headers, &payload).1 } else { payload };
                vec![(headers, payload)]
            })
            .await;
            check(case.verify(&[]), place, "proof");

            let case = history.copy(&server).await;
            case.change_predictions(|n, headers, payload| vec![if at(n) { forged(&headers, &payload) } else { (headers, payload) }]).await;
            check(case.verify(&[]), place, "prediction");

            let case = history.copy(&server).await;
            case.change_predictions(|n, headers, payload| {
                let count = if at(n) { 2 } else { 1 };
                vec![(headers, payload); count]
            })
            .await;
            check(case.verify(&[]), place, "repeated");
        }
        for place in [2, 20, LENGTH] {
            let case = history.copy(&server).await;
            case.change_predictions(|n, headers, payload| if n == place { Vec::new() } else { vec![(headers, payload)] }).await;
            check(case.verify(&[]), place, "missing");
        }

        for kept in [5, 20, LENGTH - 1] {
            let case = history.copy(&server).await;
            let context = jetstream::new(case.broker.client().await);
            let stream = context.get_stream(FRAMES).await.expect("the stream is there");
            stream.delete_message(kept).await.expect("messages can be deleted");
            check(case.verify(&[]), kept + 1, "frame");
        }
        let case = history.copy(&server).await;
        let context = jetstream::new(case.broker.client().await);
        let config = context.get_stream(FRAMES).await.expect("the stream is there").cached_info().config.clone();
        context.delete_stream(FRAMES).await.expect("the stream can be deleted");
        context.create_stream(config).await.expect("the stream can be made");
        publish(&case.broker, 1..LENGTH + 1).await;
        check(case.verify(&[]), 0, "stream");

        let changes: [fn(&mut DurableState); 6] = [
            |state| Arc::make_mut(&mut state.learner).optimizer.steps += 1,
            |state| state.frames += 1,
            |state| state.input_chain[0] ^= 1,
            |state| state.serving.hearing.values_mut().for_each(|hearing| *hearing = Hearing::Home),
            |state| Arc::make_mut(&mut state.learner).weights = state.serving.weights.clone(),
            |state| Arc::make_mut(&mut state.learner).optimizer.first_moments.values_mut().for_each(|values| values[0] += 1e-6),
        ];
        for change in changes {
            let case = history.copy(&server).await;
            case.change_state(change);
            check(case.verify(&[]), LENGTH, "state");
        }

        let case = history.copy(&server).await;
        case.change_decisions(|decisions| drop(decisions.remove(0)));
        // Nothing shows before the weights would have moved on; with two windows of lag that is in the window behind.
        let verdict = case.verify(&[]);
        let (first, what) = (verdict["first_difference"][0].as_u64().expect("a frame"), verdict["first_difference"][1].clone());
        assert!(verdict["is_true"] == false && (SWITCHED_OFF..=SWITCHED_ON + 8).contains(&first) && what == "prediction", "{verdict}");
        let case = history.copy(&server).await;
        case.change_decisions(|decisions| {
            decisions.push(Decided {
                number: 3,
                incarnation: decisions[0].incarnation.clone(),
                after: FrameSeq(LENGTH - 9),
                action: Action::Reset {},
            })
        });
        assert_eq!(case.verify(&[])["is_true"], false);

        let case = history.copy(&server).await;
        let key = case.state().join("noise.key");
        std::fs::write(&key, format!("{}\n", "5".repeat(64))).expect("the file is there");
        let verdict = case.verify(&[]);
        assert_eq!(verdict["fingerprints_differing"], json!(["noise_key"]));
        check(verdict, 1, "prediction");
        let verdict = history.copy(&server).await.verify(&["adapt.judge_weight=0.9"]);
        assert_eq!((&verdict["is_true"], &verdict["fingerprints_differing"]), (&json!(false), &json!(["configuration"])));
        println!("{} changed histories", cases + 3);
    }
}

/// Publishes frames, and waits until the daemon has applied them.
async fn apply(broker: &Broker, daemon: &Daemon, indices: std::ops::RangeInclusive<u64>) {
    let last = *indices.end();
    publish(broker, *indices.start()..last + 1).await;
    until("the frames are applied", || async { (daemon.status()["sequence"] == last).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_in_a_stream_that_was_made_anew_is_confirmed() {
    // Goal: weights that are older than the stream are no reason to doubt them.
    // Method: the stream is deleted under the daemon, which goes on with the new one's first frame.
    for server in servers() {
        let case = Case { home: Home::new(), broker: Broker::start(&server).await };
        let mut daemon = Daemon::start(&case.home, &case.broker, &SETS).await;
        apply(&case.broker, &daemon, 1..=16).await;
        let context = jetstream::new(case.broker.client().await);
        context.delete_stream(FRAMES).await.expect("the stream can be deleted");
        let is_seen = || async { (daemon.metric("undrift_stream_breaks_total{kind=\"new_stream\"}") == 1.0).then_some(()) };
        until("the new stream is seen", is_seen).await;
        daemon.wait_until_ready().await;
        apply(&case.broker, &daemon, 1..=10).await;
        assert_eq!(daemon.stop().await, 0);
        let verdict = case.verify(&[]);
        assert_eq!((&verdict["is_true"], &verdict["frames"], &verdict["predictions"]), (&json!(true), &json!(10), &json!(10)), "{verdict}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_whose_configuration_was_changed_is_confirmed_from_the_change_on() {
    // Goal: what another configuration has answered is no reason to doubt what this one has.
    // Method: another learning rate from frame 17 on; and from frame 33 on the first again.
    for server in servers() {
        let case = Case { home: Home::new(), broker: Broker::start(&server).await };
        let (first, second) = ("adapt.learning_rate=0.01", "adapt.learning_rate=0.02");
        for (round, rate) in [first, second, first].into_iter().enumerate() {
            let mut daemon = Daemon::start(&case.home, &case.broker, &[SETS[0], rate]).await;
            let round = round as u64;
            apply(&case.broker, &daemon, 16 * round + 1..=16 * round + 16).await;
            assert_eq!(daemon.stop().await, 0);
            let verdict = case.verify(&[rate]);
            let predictions = if round == 0 { 16 } else { 8 };
            assert_eq!((&verdict["is_true"], &verdict["predictions"]), (&json!(true), &json!(predictions)), "{verdict}");
            assert_eq!(verdict["from"].is_null(), round == 0, "{verdict}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_behind_a_later_break_is_no_part_of_the_history_before_it() {
    // Goal: an older checkpoint is confirmed too, whatever was decided since on a stream that had become another.
    for server in servers() {
        let case = History::new(&server).await.copy(&server).await;
        case.change_decisions(|decisions| {
            let incarnation = format!("{}+{LENGTH}", decisions[0].incarnation);
            decisions.push(Decided { number: 3, incarnation, after: FrameSeq(LENGTH + 1), action: Action::Reset {} });
        });
        let verdict = case.verify(&[]);
        assert_eq!(verdict["is_true"], true, "{verdict}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_counts_each_stored_prediction_that_is_not_the_replayed_one() {
    // Goal: what a restart proves can turn out to be false, and then it is said so.
    // Method: without the newest checkpoints, frames are replayed; two of their stored predictions say something else.
    const REPLAYED: u64 = 16;
    for server in servers() {
        let case = History::new(&server).await.copy(&server).await;
        for listed in store::list(&case.state()).expect("a folder").into_iter().map(|listed| listed.expect("a checkpoint")) {
            if listed.header.scalars.sequence.0 > LENGTH - REPLAYED {
                std::fs::remove_file(case.state().join(listed.generation.file_name())).expect("the file is there");
            }
        }
        let is_forged = |n: u64| [LENGTH - 9, LENGTH].contains(&n);
        case.change_predictions(|n, headers, payload| vec![if is_forged(n) { forged(&headers, &payload) } else { (headers, payload) }])
            .await;
        let daemon = Daemon::start(&case.home, &case.broker, &SETS).await;
        until("all frames are applied", || async { (daemon.status()["sequence"] == LENGTH).then_some(()) }).await;
        assert_eq!(daemon.metric("undrift_replay_mismatches_total"), 2.0);
        assert_eq!(daemon.metric("undrift_replayed_predictions_total{outcome=\"proven\"}"), (REPLAYED - 2) as f64);
    }
}

/// A PNG that does not compress, of 0.9 MB.
fn large_png(seed: u64) -> Vec<u8> {
    let noise = NoiseKey::from_seed(seed, "large png", 0);
    let pixels = (0..950 * 950).map(|index| noise.uniform_below(index, 256) as u8).collect();
    let image = image::GrayImage::from_raw(950, 950, pixels).expect("as many pixels");
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).expect("pictures encode");
    bytes.into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_of_large_frames_is_verified() {
    // Goal: ordinary pictures are verified as small ones are.
    // Method: frames that are together larger than a pull asks for (65 MiB).
    const COUNT: u64 = 80;
    let large = [SETS[0], "limits.payload_bytes_max=1048576"];
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let mut daemon = Daemon::start(&home, &broker, &large).await;
        let context = jetstream::new(broker.client().await);
        for frame in 1..=COUNT {
            let stored = context.publish("undrift.v1.frames.cam1", large_png(frame).into()).await.expect("the connection is open");
            stored.await.expect("the stream stores frames");
        }
        until("the frames are answered", || async { (daemon.status()["sequence"] == COUNT).then_some(()) }).await;
        assert_eq!(daemon.stop().await, 0);
        let verdict = Case { home, broker }.verify(&large[1..]);
        assert!(verdict["is_true"] == true, "{verdict}");
    }
}
