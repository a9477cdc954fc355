//! Goal: a daemon whose frames wait and do not move is not ready, says which lane keeps them, and is ready again when they move.
//! Method: a broker that takes no more predictions; one that says it has frames and delivers none, as nats-server 2.9 does after a bit of a
//! block was flipped while it was down.

mod harness;

use async_nats::jetstream::{self, stream};
use futures_util::StreamExt;
use harness::{Broker, Daemon, Home, png, servers, until};
use std::path::Path;
use std::time::{Duration, Instant};
use undrift::shell::jetstream::ensure_streams;
use undrift::wire::Subjects;

const SETS: [&str; 2] = ["nats.mode=jetstream", "limits.stall_patience_ms=1000"];
const PREDICTIONS: &str = "UNDRIFT_V1_PREDICTIONS";
const FRAMES: &str = "UNDRIFT_V1_FRAMES";
/// Frames of the block before the one whose length is damaged.
const BEFORE_THE_FLIP: u64 = 10;
/// Predictions that are on their way to the stream at once.
const IN_FLIGHT: f64 = 64.0;
/// Times that a stream is deleted.
const DELETIONS: usize = 25;
/// Notices of frames that cannot be used, after which the outbox has no room for the answer of another frame.
const NOTICES: usize = 2100;

async fn publish(context: &jetstream::Context, payload: Vec<u8>) {
    let sent = context.publish("undrift.v1.frames.cam1", payload.into()).await.expect("the connection is open");
    sent.await.expect("the frame is stored");
}

/// Waits until the daemon is not ready because of `lane`, and gives what it says.
async fn stall(daemon: &Daemon, lane: &str) -> String {
    let refused = || async { daemon.get("/readyz").filter(|(status, _)| *status == 503).map(|(_, text)| text) };
    let text = until("the daemon is not ready", refused).await;
    assert!(daemon.metric(&format!("undrift_stalls_total{{lane=\"{lane}\"}}")) > 0.0, "{text}");
    assert_eq!(daemon.metric("undrift_ready"), 0.0);
    text
}

/// The stream of predictions as an operator may have made it; `full` takes ten of them.
fn predictions_stream() -> (stream::Config, stream::Config) {
    let subjects = vec!["undrift.v1.predictions.*".to_owned()];
    let open = stream::Config { name: PREDICTIONS.to_owned(), subjects, discard: stream::DiscardPolicy::New, ..Default::default() };
    let full = stream::Config { max_messages: 10, ..open.clone() };
    (open, full)
}

#[tokio::test(flavor = "multi_thread")]
async fn predictions_that_nobody_takes_are_a_stall_until_they_are_taken() {
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let context = jetstream::new(broker.client().await);
        let (open, full) = predictions_stream();
        context.create_stream(full).await.expect("the stream can be made");
        let mut events = broker.client().await.subscribe("undrift.v1.events.stall").await.expect("the connection is open");
        let daemon = Daemon::start(&home, &broker, &SETS).await;
        for index in 0..80 {
            publish(&context, png(index)).await;
        }
        for _ in 0..NOTICES {
            publish(&context, b"no picture".to_vec()).await;
        }
        assert_eq!(stall(&daemon, "publisher").await, "stalled: NATS does not take predictions\n");
        context.update_stream(open).await.expect("streams can be changed");
        daemon.wait_until_ready().await;
        let stored = || async { context.get_stream(PREDICTIONS).await.ok().map(|stream| stream.cached_info().state.messages) };
        until("every frame is answered", || async { stored().await.filter(|&stored| stored == 80) }).await;
        let event = tokio::time::timeout(harness::PATIENCE, events.next()).await.expect("an event comes").expect("the connection is open");
        let event: serde_json::Value = serde_json::from_slice(&event.payload).expect("events are JSON");
        assert_eq!((&event["kind"], &event["lane"]), (&"stall".into(), &"publisher".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn predictions_that_the_broker_refuses_are_sent_again_with_pauses_and_the_log_says_why() {
    // Goal: a broker that says no is not asked at the speed of its answers, and an operator reads once what it says.
    // Method: a stream that is full; the time in which all that is on its way is sent four times.
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let context = jetstream::new(broker.client().await);
        let (open, full) = predictions_stream();
        context.create_stream(full).await.expect("the stream can be made");
        let daemon = Daemon::start(&home, &broker, &SETS).await;
        for index in 0..80 {
            publish(&context, png(index)).await;
        }
        let sent_again = || daemon.metric("undrift_publish_retries_total");
        until("what is on its way is sent again", || async { (sent_again() > IN_FLIGHT).then_some(()) }).await;
        let (before, began) = (sent_again(), Instant::now());
        until("and again", || async { (sent_again() >= before + 4.0 * IN_FLIGHT).then_some(()) }).await;
        println!("{} sent in {:.2} s", sent_again() - before, began.elapsed().as_secs_f64());
        assert!(began.elapsed() > Duration::from_millis(300), "{:?}", began.elapsed());
        let log = daemon.log();
        assert_eq!(log.lines().filter(|line| line.contains("maximum messages exceeded")).count(), 1, "{log}");
        context.update_stream(open).await.expect("streams can be changed");
        let stored = || async { context.get_stream(PREDICTIONS).await.ok().map(|stream| stream.cached_info().state.messages) };
        until("every frame is answered", || async { stored().await.filter(|&stored| stored == 80) }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_nothing_is_stored_is_short_and_tells_of_another_writer() {
    // Goal: a daemon that cannot store its last predictions ends in time, and where another daemon is the cause, with its exit code.
    // Method: a stream that is full; SIGTERM; when the last checkpoint is given up, another writer's prediction takes a place that
    // becomes free.
    for server in servers() {
        for is_fenced in [false, true] {
            let (home, broker) = (Home::new(), Broker::start(&server).await);
            let context = jetstream::new(broker.client().await);
            context.create_stream(predictions_stream().1).await.expect("the stream can be made");
            let mut daemon = Daemon::start(&home, &broker, &SETS).await;
            for index in 0..80 {
                publish(&context, png(index)).await;
            }
            let is_sent_again = || async { (daemon.metric("undrift_publish_retries_total") > IN_FLIGHT).then_some(()) };
            until("predictions are refused", is_sent_again).await;
            let asked = Instant::now();
            daemon.terminate();
            let is_given_up = || async { daemon.log().contains("last checkpoint not written").then_some(()) };
            until("the last checkpoint is given up", is_given_up).await;
            if is_fenced {
                let stream = context.get_stream(PREDICTIONS).await.expect("the stream is there");
                // The daemon tries again, too, and may be the first to take a place.
                for oldest in 1.. {
                    stream.delete_message(oldest).await.expect("messages can be deleted");
                    let sent = context.publish("undrift.v1.predictions.cam1", "another's".into()).await.expect("the connection is open");
                    if sent.await.is_ok() {
                        break;
                    }
                }
            }
            assert_eq!(daemon.exit_code().await, if is_fenced { 73 } else { 0 });
            println!("{:.2} s", asked.elapsed().as_secs_f64());
            assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_predictions_that_is_deleted_is_made_again() {
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let _daemon = Daemon::start(&home, &broker, &SETS).await;
        let context = jetstream::new(broker.client().await);
        let stored = || async { context.get_stream(PREDICTIONS).await.ok().map(|stream| stream.cached_info().state.messages) };
        publish(&context, png(0)).await;
        // A stream that is made while the broker deletes the one before it may lose its files to that.
        until("the first is stored", || async { stored().await.filter(|&stored| stored > 0) }).await;
        context.delete_stream(PREDICTIONS).await.expect("streams can be deleted");
        publish(&context, png(1)).await;
        until("the next is stored", || async { stored().await.filter(|&stored| stored > 0) }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_made_while_the_broker_deletes_it_stores_what_comes() {
    // Method: one client deletes a stream that has something to delete, another makes it as soon as it is missing.
    for server in servers() {
        let (_home, broker) = (Home::new(), Broker::start(&server).await);
        let (ours, theirs) = (jetstream::new(broker.client().await), jetstream::new(broker.client().await));
        let subjects = Subjects::new("undrift.v1").expect("a prefix");
        for round in 0..DELETIONS {
            ensure_streams(&ours, &subjects).await.expect("the streams can be made");
            for _ in 0..10 {
                let sent = ours.publish("undrift.v1.predictions.cam1", vec![0; 900_000].into()).await.expect("the connection is open");
                sent.await.unwrap_or_else(|error| panic!("round {round}: the stream does not store: {error}"));
            }
            let remake = async {
                while ours.get_stream(PREDICTIONS).await.is_ok() {}
                ensure_streams(&ours, &subjects).await.expect("the streams can be made");
            };
            let (deleted, ()) = tokio::join!(theirs.delete_stream(PREDICTIONS), remake);
            assert!(deleted.expect("streams can be deleted").success);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_the_stream_has_and_does_not_deliver_are_a_stall() {
    for server in servers() {
        let (home, mut broker) = (Home::new(), Broker::start(&server).await);
        Daemon::start(&home, &broker, &SETS).await.kill();
        let context = jetstream::new(broker.client().await);
        for index in 0..20 {
            publish(&context, png(index)).await;
        }
        broker.stop();
        flip(&broker.folder_of(FRAMES).join("msgs/1.blk"), BEFORE_THE_FLIP);
        broker.resume().await;
        let daemon = Daemon::start(&home, &broker, &SETS).await;
        until("what it delivers is applied", || async { (daemon.status()["sequence"] == BEFORE_THE_FLIP).then_some(()) }).await;
        let pending = daemon.metric("undrift_nats_consumer_pending");
        println!("{pending} frames pending");
        // Later versions look at the block when they start, and know what they have lost.
        assert_eq!(pending > 0.0, server.is_2_9());
        if pending > 0.0 {
            assert_eq!(stall(&daemon, "stream").await, "stalled: the stream has frames and delivers none\n");
            // A new consumer tells what is there.
            daemon.wait_until_ready().await;
        }
    }
}

/// Flips a bit in the length of record `index`.
fn flip(block: &Path, index: u64) {
    let mut bytes = std::fs::read(block).expect("the stream has a block");
    let mut at = 0;
    for _ in 0..index {
        // Its highest bit says whether the record has headers.
        let length = u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) & 0x7FFF_FFFF;
        at += usize::try_from(length).expect("short");
    }
    bytes[at + 1] ^= 1;
    std::fs::write(block, bytes).expect("the block can be written");
}
