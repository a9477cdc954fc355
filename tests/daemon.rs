//! The daemon from outside: a real nats-server, the real binary, and what a camera, a labeller and an operator see.
//!
//! Every test runs once for each server of `NATS_SERVER_BIN`.

mod harness;

use futures_util::StreamExt;
use harness::{Broker, Daemon, Home, Predictions, control, control_on_terms, headers, jpeg, png, servers, until};
use serde_json::json;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use undrift::shell::store::{Generation, read_header};

const MODES: [&str; 2] = ["core", "jetstream"];

async fn publish(client: &async_nats::Client, payload: Vec<u8>) {
    client.publish("undrift.v1.frames.cam1", payload.into()).await.expect("the connection is open");
}

/// Publishes `indices`, one at a time: each waits for its answer, so that nothing is shed.
async fn serve(
    client: &async_nats::Client,
    predictions: &mut Predictions,
    indices: std::ops::Range<usize>,
) -> Vec<undrift::prediction::Prediction> {
    let mut answers = Vec::new();
    for index in indices {
        publish(client, png(index)).await;
        answers.push(predictions.next().await.1);
    }
    answers
}

/// Publishes through JetStream, so that each frame is stored when this returns.
async fn store(client: &async_nats::Client, indices: std::ops::Range<usize>) {
    let jetstream = async_nats::jetstream::new(client.clone());
    for index in indices {
        let ack = jetstream.publish("undrift.v1.frames.cam1", png(index).into()).await.expect("the connection is open");
        ack.await.expect("the stream stores frames");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_frame_gets_one_prediction_in_order() {
    // Goal: raw PNG and JPEG bytes are answered once each, in order, with what is known of the frame.
    // Method: both modes; alternate formats; half of the frames with headers; then nothing more may come.
    for server in servers() {
        for mode in MODES {
            let (home, broker) = (Home::new(), Broker::start(&server).await);
            let daemon = Daemon::start(&home, &broker, &[&format!("nats.mode={mode}")]).await;
            let client = broker.client().await;
            let mut predictions = Predictions::of(&client).await;
            for index in 0..12 {
                let payload = if index % 2 == 0 { png(index) } else { jpeg(index) };
                let id = format!("frame-{index}");
                let headers = headers(&[("frame-id", &id), ("Capture-Time", "1700000000123456789"), ("Label", "3")]);
                client.publish_with_headers("undrift.v1.frames.cam1", headers, payload.into()).await.expect("the connection is open");
            }
            let mut ids = BTreeSet::new();
            for index in 0..12 {
                let (message, prediction) = predictions.next().await;
                assert_eq!(prediction.frame_id, format!("frame-{index}"));
                assert_eq!((prediction.camera.as_str(), prediction.sequence.0), ("cam1", index + 1));
                assert_eq!(prediction.capture_time_ns, Some(1_700_000_000_123_456_789));
                assert_eq!(prediction.broker_time_ns.is_some(), mode == "jetstream");
                assert_eq!(prediction.label_name, format!("class-{}", prediction.label.0));
                assert_eq!(prediction.top_k.len(), 3);
                assert!(prediction.latency.predict_ms > 0.0, "{:?}", prediction.latency);
                let id = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id")).expect("predictions have an id");
                assert!(ids.insert(id.to_string()), "{id} came twice");
            }
            publish(&client, png(0)).await;
            assert_eq!(predictions.next().await.1.frame_id, "cam1:13");
            assert_eq!(daemon.status()["frames"], 13);
            assert_eq!(daemon.metric("undrift_publish_retries_total"), 0.0, "all were published for the first time");
            assert_eq!(daemon.metric("undrift_frames_answered_total{camera=\"cam1\"}"), 13.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adaptation_stops_and_goes_on_by_a_plain_request_and_remembers() {
    // Goal: "off" holds the weights, "on" lets them move, and the last word survives a restart.
    // Method: the version before and after frames; a kill right after the reply, which promises that it is on disk.
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let mut daemon = Daemon::start(&home, &broker, &[]).await;
        let client = broker.client().await;
        let mut predictions = Predictions::of(&client).await;
        serve(&client, &mut predictions, 0..32).await;
        until("weights move", || async { (daemon.status()["weights_version"].as_u64() > Some(0)).then_some(()) }).await;

        let reply = control(&client, "adapt", "off").await;
        assert_eq!((&reply["ok"], &reply["adapt"]), (&true.into(), &"off".into()), "{reply}");
        let version = daemon.status()["weights_version"].clone();
        let answers = serve(&client, &mut predictions, 32..64).await;
        assert!(answers.iter().all(|answer| json!(answer.weights_version) == version), "{version}");

        daemon.kill();
        let daemon = Daemon::start(&home, &broker, &[]).await;
        assert_eq!(daemon.status()["adapt"], "off");
        let reply = control(&client, "adapt", "on").await;
        assert_eq!((&reply["ok"], &reply["adapt"]), (&true.into(), &"on".into()), "{reply}");
        let before = daemon.status()["weights_version"].as_u64();
        serve(&client, &mut predictions, 0..32).await;
        until("weights move", || async { (daemon.status()["weights_version"].as_u64() > before).then_some(()) }).await;
        let reply = control(&client, "adapt", "perhaps").await;
        assert_eq!(reply["ok"], false);
    }
}

/// Gauges of what a checkpoint holds, but for the time it was written.
const GAUGES: [&str; 11] = [
    "undrift_adapt_enabled",
    "undrift_frozen",
    "undrift_canary_harm_ratio",
    "undrift_canary_evidence",
    "undrift_weights_version",
    "undrift_accuracy_ratio{model=\"adapted\"}",
    "undrift_accuracy_ratio{model=\"source\"}",
    "undrift_drift_score",
    "undrift_drift_state",
    "undrift_collapse",
    "undrift_prediction_diversity_ratio",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_changes_no_gauge_of_what_is_kept() {
    // Goal: an alert does not resolve itself by a restart, and what is not known is not zero.
    // Method: the same frame, labelled, and a classifier that hardly moves, until all predictions are of one class; a restart.
    let sets = ["nats.mode=jetstream", "adapt.answer_by=classifier", "adapt.learning_rate=1e-6"];
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let mut daemon = Daemon::start(&home, &broker, &sets).await;
        for gauge in [GAUGES[5], GAUGES[6], "undrift_estimated_accuracy_ratio", "undrift_reliability_ratio"] {
            assert!(daemon.metric(gauge).is_nan(), "{gauge} is not known yet");
        }
        assert_eq!(daemon.metric("undrift_canary_evidence"), 1.0);
        let client = broker.client().await;
        let frames = Cell::new(0);
        let collapsed = || async {
            for _ in 0..32 {
                let frame = headers(&[("Label", "3")]);
                client.publish_with_headers("undrift.v1.frames.cam1", frame, png(1).into()).await.expect("the connection is open");
            }
            frames.set(frames.get() + 32);
            (daemon.metric("undrift_collapse") == 1.0).then_some(())
        };
        until("predictions are of one class", collapsed).await;
        until("all are answered", || async { (daemon.status()["frames"] == frames.get()).then_some(()) }).await;
        assert_eq!(control(&client, "adapt", "off").await["ok"], true);
        let before = GAUGES.map(|gauge| (gauge, daemon.metric(gauge)));
        let written = daemon.metric("undrift_checkpoint_last_success_timestamp_seconds");
        // In order, so that nothing is replayed that could set them.
        assert_eq!(daemon.stop().await, 0);
        let daemon = Daemon::start(&home, &broker, &sets).await;
        assert_eq!(daemon.status()["frames"], frames.get());
        assert_eq!(GAUGES.map(|gauge| (gauge, daemon.metric(gauge))), before);
        let restored = daemon.metric("undrift_checkpoint_last_success_timestamp_seconds");
        assert!(restored >= written - 1.0, "{restored} after {written}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reset_and_rollback_change_the_weights() {
    // Goal: a reset brings the source weights back, a roll-back earlier ones; both as new versions.
    // Method: adapt, reset, and see whose weights answer; roll back, and see another version.
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let daemon = Daemon::start(&home, &broker, &[]).await;
        let client = broker.client().await;
        let mut predictions = Predictions::of(&client).await;
        let adapted = serve(&client, &mut predictions, 0..32).await.remove(31);
        assert!(adapted.adapted);
        assert_eq!(control(&client, "checkpoint", "").await["ok"], true);
        let reset = control(&client, "reset", "").await;
        assert_eq!(reset["ok"], true, "{reset}");
        let answer = serve(&client, &mut predictions, 32..33).await.remove(0);
        assert!(!answer.adapted, "by the source weights");
        let rolled_back = control(&client, "rollback", "").await;
        assert_eq!(rolled_back["ok"], true, "{rolled_back}");
        assert!(rolled_back["weights_version"].as_u64() > reset["weights_version"].as_u64(), "{reset} {rolled_back}");
        assert_eq!(daemon.metric("undrift_resets_total{reason=\"rollback\"}"), 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_rollback_goes_further_back_than_the_one_before() {
    // Goal: who rolls back twice does not come back to what he fled from.
    // Method: checkpoints of four windows, each with other weights; roll-backs until none is left, at the border of a window and
    // within one.
    for server in servers() {
        for frames_of_open_window in [0, 1] {
            let (home, broker) = (Home::new(), Broker::start(&server).await);
            let daemon = Daemon::start(&home, &broker, &["checkpoint.keep=99"]).await;
            let client = broker.client().await;
            let mut predictions = Predictions::of(&client).await;
            for window in 1..=4 {
                serve(&client, &mut predictions, 4 * window - 4..4 * window).await;
                until("the window is learned from", || async { (daemon.status()["windows_adapted"] == window).then_some(()) }).await;
                // Two of the same weights.
                for _ in 0..2 {
                    assert_eq!(control(&client, "checkpoint", "").await["ok"], true);
                }
            }
            serve(&client, &mut predictions, 0..frames_of_open_window).await;
            let learner = |generation: u64| {
                let listed = read_header(&home.path().join("state"), Generation(generation)).expect("a checkpoint");
                let tensors = listed.header.tensors().clone().into_iter();
                tensors.filter(|(name, _)| name.starts_with("learner/")).collect::<Vec<_>>()
            };
            let mut seen = Vec::new();
            let refused = loop {
                let reply = control(&client, "rollback", "").await;
                let Some(generation) = reply["rolled_back_to"].as_u64() else { break reply };
                assert!(seen.iter().all(|&(later, _)| generation < later), "{reply} after {seen:?}");
                let weights = learner(generation);
                assert!(seen.iter().all(|(_, other)| *other != weights), "the same weights again: {reply} after {seen:?}");
                seen.push((generation, weights));
            };
            // Of the four, the newest is left behind; the first state, from before the first frame, is a checkpoint too.
            assert_eq!((seen.len(), &refused["ok"]), (4, &false.into()), "{refused}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_of_another_bundle_are_not_gone_back_to() {
    // Goal: a roll-back never serves weights that were learned by another bundle's classifier, though they fit.
    // Method: adapt, install a retrained classifier of the same shape, and roll back, to what is found and by number.
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let mut daemon = Daemon::start(&home, &broker, &[]).await;
        let client = broker.client().await;
        let mut predictions = Predictions::of(&client).await;
        serve(&client, &mut predictions, 0..32).await;
        let old = control(&client, "checkpoint", "").await;
        assert_eq!(daemon.stop().await, 0);
        home.retrain();
        let daemon = Daemon::start(&home, &broker, &[]).await;
        assert_eq!(control(&client, "checkpoint", "").await["ok"], true);
        for generation in [String::new(), old["generation"].to_string()] {
            let reply = control(&client, "rollback", &generation).await;
            assert_eq!(reply["ok"], false, "{generation:?}: {reply}");
        }
        let answer = serve(&client, &mut predictions, 32..33).await.remove(0);
        assert!(!answer.adapted, "by the source weights");
        assert_eq!(daemon.status()["decision"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_goes_on_from_its_checkpoint() {
    // Goal: with a stream, every frame is answered at least once, whenever the daemon is killed.
    // Method: store frames while killing it twice; collect the answered sequence numbers.
    const FRAMES: usize = 120;
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let mut daemon = Daemon::start(&home, &broker, &["nats.mode=jetstream"]).await;
        let client = broker.client().await;
        let mut predictions = Predictions::of(&client).await;
        let mut answered = BTreeSet::new();
        for part in 0..3 {
            store(&client, part * FRAMES / 3..(part + 1) * FRAMES / 3).await;
            while answered.len() < part * FRAMES / 3 + 20 {
                answered.insert(predictions.next().await.1.sequence.0);
            }
            daemon.kill();
            daemon = Daemon::start(&home, &broker, &["nats.mode=jetstream"]).await;
        }
        while answered.len() < FRAMES {
            answered.insert(predictions.next().await.1.sequence.0);
        }
        assert_eq!(answered.into_iter().collect::<Vec<_>>(), (1..=FRAMES as u64).collect::<Vec<_>>());
        let status = daemon.status();
        assert_eq!((&status["sequence"], &status["frames"]), (&FRAMES.into(), &FRAMES.into()), "no frame was applied twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_of_predictions_holds_each_once_after_a_kill() {
    // Goal: what a replay repeats, the predictions' stream drops by its id.
    // Method: kill after some frames; count the stored predictions when all frames are applied.
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let mut daemon = Daemon::start(&home, &broker, &["nats.mode=jetstream"]).await;
        let client = broker.client().await;
        store(&client, 0..41).await;
        until("frames are answered", || async { (daemon.status()["sequence"] == 41).then_some(()) }).await;
        daemon.kill();
        let daemon = Daemon::start(&home, &broker, &["nats.mode=jetstream"]).await;
        until("frames are applied again", || async { (daemon.status()["sequence"] == 41).then_some(()) }).await;
        let jetstream = async_nats::jetstream::new(client);
        until("predictions are stored once", || async {
            let stream = jetstream.get_stream("UNDRIFT_V1_PREDICTIONS").await.expect("the daemon made the stream");
            (stream.cached_info().state.messages == 41).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_broker_is_survived() {
    // Goal: the daemon stays up while the broker is gone, says that it is not ready, and goes on by itself.
    // Method: kill the broker for a while (UNDRIFT_OUTAGE_SECONDS, 3 if unset), start it again, publish.
    let outage = std::env::var("UNDRIFT_OUTAGE_SECONDS").map_or(3, |seconds| seconds.parse().expect("a number of seconds"));
    for server in servers() {
        for mode in MODES {
            let (home, mut broker) = (Home::new(), Broker::start(&server).await);
            let mut daemon = Daemon::start(&home, &broker, &[&format!("nats.mode={mode}")]).await;
            {
                let client = broker.client().await;
                let mut predictions = Predictions::of(&client).await;
                publish(&client, png(1)).await;
                predictions.next().await;
            }
            broker.kill();
            until("the daemon sees the outage", || async { daemon.get("/readyz").filter(|(status, _)| *status == 503) }).await;
            // The length of the outage is what is tested.
            tokio::time::sleep(Duration::from_secs(outage)).await;
            assert_eq!(daemon.get("/livez").map(|(status, _)| status), Some(200));
            broker.resume().await;
            daemon.wait_until_ready().await;
            let client = broker.client().await;
            let mut predictions = Predictions::of(&client).await;
            publish(&client, png(2)).await;
            // After a power cut the broker may have lost its last frame; numbers go on either way.
            assert_eq!(predictions.next().await.1.camera, "cam1");
            assert_eq!(daemon.stop().await, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_may_start_before_the_broker() {
    // Goal: without a broker the daemon stays up and not ready; it serves when the broker comes.
    // Method: start it on a free port, see 503, start a broker there.
    for server in servers() {
        for mode in MODES {
            let (home, port) = (Home::new(), harness::free_port());
            let daemon = Daemon::spawn(&home, port, &[&format!("nats.mode={mode}")]);
            let (_, reason) =
                until("the daemon serves HTTP", || async { daemon.get("/readyz").filter(|(status, _)| *status == 503) }).await;
            assert!(!reason.trim().is_empty());
            let broker = Broker::start_on(&server, port).await;
            daemon.wait_until_ready().await;
            let client = broker.client().await;
            let mut predictions = Predictions::of(&client).await;
            publish(&client, png(1)).await;
            assert_eq!(predictions.next().await.1.camera, "cam1");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_waits_for_its_broker_has_started() {
    // Goal: a probe that asks whether it has started does not end a daemon that has, and waits for its broker.
    // Method: start it where no broker is.
    for mode in MODES {
        let (home, port) = (Home::new(), harness::free_port());
        let daemon = Daemon::spawn(&home, port, &[&format!("nats.mode={mode}")]);
        until("it has started", || async { daemon.get("/startupz").filter(|(status, _)| *status == 200) }).await;
        assert_eq!(daemon.get("/readyz"), Some((503, "not connected to NATS\n".to_owned())), "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_frames_are_rejected_with_a_reason_and_the_next_is_served() {
    // Goal: what cannot be used is reported and counted, and harms nothing.
    // Method: empty, foreign, truncated and oversized payloads, then a good frame.
    for server in servers() {
        for mode in MODES {
            let (home, broker) = (Home::new(), Broker::start(&server).await);
            let daemon = Daemon::start(&home, &broker, &[&format!("nats.mode={mode}")]).await;
            let client = broker.client().await;
            let mut predictions = Predictions::of(&client).await;
            let mut rejected = client.subscribe("undrift.v1.rejected.*").await.expect("the connection is open");
            client.flush().await.expect("the broker answers");
            let bad = [
                ("empty", Vec::new()),
                ("format", b"GIF89a".to_vec()),
                ("truncated", png(1)[..100].to_vec()),
                ("too_large", vec![0; 65_537]),
            ];
            for (reason, payload) in bad {
                publish(&client, payload).await;
                let message = tokio::time::timeout(harness::PATIENCE, rejected.next())
                    .await
                    .expect("a rejection comes")
                    .expect("the connection is open");
                let record: serde_json::Value = serde_json::from_slice(&message.payload).expect("the record is JSON");
                assert_eq!(record["reason"], reason, "{record}");
                assert_eq!(daemon.metric(&format!("undrift_frames_rejected_total{{reason=\"{reason}\"}}")), 1.0);
            }
            publish(&client, png(1)).await;
            assert_eq!(predictions.next().await.1.sequence.0, 5);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_that_come_later_make_accuracies() {
    // Goal: labels are matched with answered frames; unknown and malformed ones are counted as such.
    // Method: label one frame with what the source said of it, one unknown frame, and send one piece of nonsense.
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let daemon = Daemon::start(&home, &broker, &[]).await;
        let client = broker.client().await;
        let mut predictions = Predictions::of(&client).await;
        assert!(daemon.status()["source_accuracy"].is_null());
        let answer = serve(&client, &mut predictions, 0..1).await.remove(0);
        let label = |id: &str| json!({ "frame_id": id, "label": answer.source_label }).to_string();
        for payload in [label(&answer.frame_id), label("never-seen"), "nonsense".to_owned()] {
            client.publish("undrift.v1.labels.cam1", payload.into()).await.expect("the connection is open");
        }
        for outcome in ["matched", "unmatched", "format"] {
            let series = format!("undrift_labels_received_total{{outcome=\"{outcome}\"}}");
            until(outcome, || async { (daemon.metric(&series) == 1.0).then_some(()) }).await;
        }
        assert_eq!(daemon.status()["source_accuracy"], 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overload_sheds_the_oldest_frames_and_counts_them() {
    // Goal: with core NATS more frames than fit are dropped, counted; the newest is answered.
    // Method: a queue of two frames and a burst of many.
    const FRAMES: u64 = 200;
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let daemon = Daemon::start(&home, &broker, &["nats.queue_frames_max=2"]).await;
        let client = broker.client().await;
        let mut predictions = Predictions::of(&client).await;
        for index in 0..FRAMES {
            publish(&client, png(index as usize)).await;
        }
        while predictions.next().await.1.sequence.0 < FRAMES {}
        let answered = daemon.metric("undrift_frames_answered_total{camera=\"cam1\"}");
        let shed = daemon.metric("undrift_frames_shed_total{reason=\"queue_frames\"}");
        assert_eq!(answered + shed, FRAMES as f64, "answered {answered}, shed {shed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_commands_is_refused_and_frames_are_answered() {
    // Goal: who may command cannot keep the daemon from its frames.
    // Method: many switches at once, then frames; then the refusals are counted.
    const COMMANDS: usize = 200;
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let daemon = Daemon::start(&home, &broker, &[]).await;
        let client = broker.client().await;
        let mut predictions = Predictions::of(&client).await;
        let switches = (0..COMMANDS).map(|i| control(&client, "adapt", if i % 2 == 0 { "off" } else { "on" }));
        let replies = futures_util::future::join_all(switches).await;
        let obeyed = replies.iter().filter(|reply| reply["ok"] == true).count();
        // More only where the machine takes longer than the period for all of them.
        assert!((32..COMMANDS / 2).contains(&obeyed), "{obeyed} of {COMMANDS}");
        let refused = replies.iter().find(|reply| reply["ok"] == false).expect("some are refused");
        assert!(refused["error"].as_str().is_some_and(|error| error.contains("32 commands in 10 s")), "{refused}");
        serve(&client, &mut predictions, 0..8).await;
        assert_eq!(daemon.status()["frames"], 8);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_late_or_sent_again_is_counted_and_does_nothing() {
    // Goal: nobody switches adaptation with a message of before, or over the head of another operator.
    // Method: a switch as decision 1; the same message again; one that has expired; and a malformed one.
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let daemon = Daemon::start(&home, &broker, &[]).await;
        let client = broker.client().await;
        let first = [("Decision", "1"), ("Expires", "2099-01-01T00:00:00Z")];
        let reply = control_on_terms(&client, "adapt", "off", &first).await;
        assert_eq!((&reply["ok"], &reply["decision"]), (&json!(true), &json!(1)), "{reply}");
        let refused = [
            ("stale", control_on_terms(&client, "adapt", "off", &first).await),
            ("stale", control_on_terms(&client, "reset", "", &[("Decision", "3")]).await),
            ("expired", control_on_terms(&client, "adapt", "on", &[("Expires", "2020-01-01T00:00:00Z")]).await),
            ("expired", control_on_terms(&client, "checkpoint", "", &[("Expires", "1")]).await),
            ("header", control_on_terms(&client, "adapt", "on", &[("Decision", "second")]).await),
        ];
        for (reason, reply) in refused {
            assert_eq!((&reply["ok"], &reply["reason"]), (&json!(false), &json!(reason)), "{reply}");
        }
        assert_eq!((&daemon.status()["adapt"], &daemon.status()["decision"]), (&json!("off"), &json!(1)));
        for (outcome, count) in [("done", 1.0), ("stale", 2.0), ("expired", 2.0), ("header", 1.0)] {
            assert_eq!(daemon.metric(&format!("undrift_control_messages_total{{outcome=\"{outcome}\"}}")), count, "{outcome}");
        }
        let reply = control_on_terms(&client, "adapt", "on", &[("decision", "2")]).await;
        assert_eq!((&reply["ok"], &daemon.status()["adapt"]), (&json!(true), &json!("on")), "{reply}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_is_begun_at_its_beginning() {
    // Goal: when the stream is deleted and made again, its frames are answered from the first one on, by the same weights.
    // Method: adapt, delete the stream under the running daemon, publish, and read the event.
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let daemon = Daemon::start(&home, &broker, &["nats.mode=jetstream"]).await;
        let client = broker.client().await;
        let mut predictions = Predictions::of(&client).await;
        serve(&client, &mut predictions, 0..32).await;
        let mut events = client.subscribe("undrift.v1.events.new_stream").await.expect("the connection is open");
        client.flush().await.expect("the broker answers");
        let jetstream = async_nats::jetstream::new(client.clone());
        jetstream.delete_stream("UNDRIFT_V1_FRAMES").await.expect("the stream can be deleted");
        tokio::time::timeout(harness::PATIENCE, events.next()).await.expect("the event comes").expect("the connection is open");
        daemon.wait_until_ready().await;
        let answer = serve(&client, &mut predictions, 0..1).await.remove(0);
        assert_eq!(answer.sequence.0, 1);
        assert!(answer.weights_version.0 > 0, "weights are kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_stream_the_frames_of_a_window_that_is_not_full_are_answered_at_the_stop() {
    // Goal: where answers wait for what their window teaches, none is lost that no broker brings again.
    // Method: fewer frames than a window, and SIGTERM.
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let mut daemon = Daemon::start(&home, &broker, &["adapt.answer=after", "adapt.window=8"]).await;
        let client = broker.client().await;
        let mut predictions = Predictions::of(&client).await;
        for index in 0..3 {
            publish(&client, png(index)).await;
        }
        until("the frames are taken", || async { (daemon.status()["frames"] == 3).then_some(()) }).await;
        assert_eq!(daemon.stop().await, 0);
        for sequence in 1..=3 {
            assert_eq!(predictions.next().await.1.sequence.0, sequence);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_the_status_fills_no_log() {
    // Goal: what is asked every few seconds is not logged; what changes something is, once.
    // Method: ask, switch, and read the log.
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let daemon = Daemon::start(&home, &broker, &[]).await;
        let client = broker.client().await;
        for _ in 0..10 {
            assert_eq!(control(&client, "status", "").await["phase"], "running");
        }
        assert_eq!(control(&client, "adapt", "off").await["ok"], true);
        until("the switch is in the log", || async { daemon.log().contains("verb=\"adapt\"").then_some(()) }).await;
        let log = daemon.log();
        assert_eq!(log.lines().filter(|line| line.contains("verb=")).count(), 1, "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_api_answers() {
    // Goal: `nats micro` finds the daemon.
    // Method: the requests that it sends.
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let _daemon = Daemon::start(&home, &broker, &[]).await;
        let client = broker.client().await;
        for verb in ["PING", "INFO", "STATS"] {
            let reply = client.request(format!("$SRV.{verb}.undrift"), "".into()).await.expect("the daemon replies");
            let reply: serde_json::Value = serde_json::from_slice(&reply.payload).expect("the reply is JSON");
            assert_eq!(reply["name"], "undrift", "{reply}");
        }
    }
}

/// Runs promtool, which must find nothing.
fn promtool(arguments: &[&str], input: Option<&Path>) {
    let mut command = std::process::Command::new("promtool");
    command.args(arguments);
    if let Some(path) = input {
        command.stdin(std::fs::File::open(path).expect("the file was written"));
    }
    let output = command.output().expect("promtool is installed");
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

#[test]
fn alert_rules_and_dashboard_are_what_prometheus_reads() {
    promtool(&["check", "config", "deploy/prometheus.yml"], None);
    promtool(&["test", "rules", "tests/alerts.yml"], None);
    let dashboard = std::fs::read_to_string("deploy/grafana-dashboard.json").expect("a dashboard");
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).expect("dashboards are JSON");
    let targets = dashboard["panels"].as_array().into_iter().flatten().flat_map(|panel| panel["targets"].as_array()).flatten();
    // What Grafana puts in the place of its variables.
    let expression =
        |target: &serde_json::Value| target["expr"].as_str().map(|e| e.replace("$instance", ".+").replace("$__rate_interval", "1m"));
    let rules: Vec<_> =
        targets.enumerate().map(|(n, target)| json!({ "record": format!("panel:{n}"), "expr": expression(target) })).collect();
    assert!(rules.len() > 12, "{rules:?}");
    let home = tempfile::TempDir::new().expect("temporary folders can be made");
    let file = home.path().join("rules.yml");
    // JSON is YAML.
    let groups = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    std::fs::write(&file, groups.to_string()).expect("the temporary folder takes files");
    promtool(&["check", "rules", &file.display().to_string()], None);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_those_of_the_table_and_lint_clean() {
    // Goal: `/metrics` holds the table's names and no others, as promtool likes them.
    // Method: compare families; feed the text to `promtool check metrics`.
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let daemon = Daemon::start(&home, &broker, &[]).await;
        let client = broker.client().await;
        let mut predictions = Predictions::of(&client).await;
        serve(&client, &mut predictions, 0..8).await;
        let frame = headers(&[("Capture-Time", "1700000000123456789")]);
        client.publish_with_headers("undrift.v1.frames.cam1", frame, png(8).into()).await.expect("the connection is open");
        predictions.next().await;
        let (_, text) = daemon.get("/metrics").expect("the daemon answers HTTP");
        let shown: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let table: BTreeSet<&str> = undrift::shell::telemetry::names().into_iter().map(|(name, ..)| name).collect();
        assert_eq!(shown, table);
        let file = home.path().join("metrics.txt");
        std::fs::write(&file, &text).expect("the temporary folder takes files");
        promtool(&["check", "metrics"], Some(&file));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_frames_a_second_are_answered_with_adaptation_on() {
    // Goal: the shipped bundle keeps up with a camera, and no window goes unadapted for want of time.
    // Method: `undrift publish` plays 300 frames at 30 a second, and the gate is open, so that every window is learned from; then every
    // frame is answered, and no window was skipped for want of time.
    const FRAMES: u64 = 300;
    for server in servers() {
        for mode in MODES {
            let (home, broker) = (Home::with_shipped_bundle(), Broker::start(&server).await);
            let open_gate = ["adapt.gate.margin=-1", "adapt.gate.diversity_slack=1"];
            let daemon = Daemon::start(&home, &broker, &[&format!("nats.mode={mode}"), open_gate[0], open_gate[1]]).await;
            let url = broker.url();
            let played = std::process::Command::new(env!("CARGO_BIN_EXE_undrift"))
                .args(["publish", "--url", &url, "--rate", "30", "--stream", "contrast", "--length", &FRAMES.to_string()])
                .status();
            assert!(played.is_ok_and(|status| status.success()));
            until("all frames are answered", || async { (daemon.status()["frames"] == FRAMES).then_some(()) }).await;
            let status = daemon.status();
            println!("{mode}: {status}");
            assert_eq!(daemon.metric("undrift_adapt_steps_total{outcome=\"overload\"}"), 0.0);
            assert!(status["weights_version"].as_u64() > Some(10), "{status}");
            assert!(status["adapted_accuracy"].as_f64() > status["source_accuracy"].as_f64(), "{status}");
        }
    }
}
