//! Goal: a daemon whose frames wait and do not move is not ready, says which lane keeps them, and is ready again when they move.
//! Method: a broker that takes no more predictions; one that says it has frames and delivers none, as nats-server 2.9 does after a bit of a
//! block was flipped while it was down.

mod harness;

use async_nats::jetstream::{self, stream};
use futures_util::StreamExt;
use harness::{Broker, Daemon, Home, png, servers, until};
use std::path::Path;

const SETS: [&str; 2] = ["nats.mode=jetstream", "limits.stall_patience_ms=1000"];
const PREDICTIONS: &str = "UNDRIFT_V1_PREDICTIONS";
const FRAMES: &str = "UNDRIFT_V1_FRAMES";
/// Frames of the block before the one whose length is damaged.
const BEFORE_THE_FLIP: u64 = 10;
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

#[tokio::test(flavor = "multi_thread")]
async fn predictions_that_nobody_takes_are_a_stall_until_they_are_taken() {
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let context = jetstream::new(broker.client().await);
        let subjects = vec!["undrift.v1.predictions.*".to_owned()];
        let open = stream::Config { name: PREDICTIONS.to_owned(), subjects, discard: stream::DiscardPolicy::New, ..Default::default() };
        let full = stream::Config { max_messages: 10, ..open.clone() };
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
