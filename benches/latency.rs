//! Frame to prediction, through a real nats-server: 30 frames a second, adaptation off and on by turns.
//!
//! `make bench`. Frames are due at fixed times, and a frame's latency counts from when it was due, so that a daemon that falls
//! behind cannot hide it. While adaptation is on, the gate is open: every window is learned from, which is the worst case.

#[path = "../tests/harness/mod.rs"]
mod harness;

use futures_util::StreamExt;
use harness::{Broker, Daemon, Home, control, headers, png, servers};
use std::collections::HashMap;
use std::time::{Duration, Instant};

const RATE: u32 = 30;
/// Of one turn; the first of them are not counted.
const FRAMES: u32 = 240;
const SETTLING: u32 = 30;
const TURNS: u32 = 6;
const OPEN_GATE: [&str; 3] = ["adapt.gate.margin=-1", "adapt.gate.diversity_slack=1", "adapt.gate.consistency=0"];

/// Latencies of one turn.
async fn turn(client: &async_nats::Client, number: u32) -> Vec<Duration> {
    let mut predictions = client.subscribe("undrift.v1.predictions.*").await.expect("the connection is open");
    client.flush().await.expect("the broker answers");
    let began = Instant::now() + Duration::from_millis(100);
    let due = move |frame: u32| began + frame * Duration::from_secs(1) / RATE;
    let publisher = client.clone();
    let publishing = tokio::spawn(async move {
        for frame in 0..FRAMES {
            tokio::time::sleep_until(due(frame).into()).await;
            let id = headers(&[("Frame-Id", &format!("{number}-{frame}"))]);
            let sent = publisher.publish_with_headers("undrift.v1.frames.cam1", id, png(frame as usize).into()).await;
            sent.expect("the connection is open");
        }
    });
    let mut answered = HashMap::new();
    while answered.len() < FRAMES as usize {
        let message = tokio::time::timeout(harness::PATIENCE, predictions.next()).await.expect("a prediction comes");
        let received = Instant::now();
        let prediction = undrift::wire::decode_prediction(&message.expect("the connection is open").payload).expect("a prediction");
        let (_, frame) = prediction.frame_id.split_once('-').expect("our own id");
        answered.insert(frame.parse::<u32>().expect("our own id"), received);
    }
    publishing.await.expect("all frames are published");
    answered.into_iter().filter(|&(frame, _)| frame >= SETTLING).map(|(frame, received)| received - due(frame)).collect()
}

fn percentile(sorted: &[Duration], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    for server in servers() {
        for mode in ["core", "jetstream"] {
            let (home, broker) = (Home::with_shipped_bundle(), Broker::start(&server).await);
            let mode_key = format!("nats.mode={mode}");
            let sets = [&[mode_key.as_str()], &OPEN_GATE[..]].concat();
            let daemon = Daemon::start(&home, &broker, &sets).await;
            let client = broker.client().await;
            let mut latencies: [Vec<Duration>; 2] = Default::default();
            for number in 0..TURNS {
                let is_on = number % 2 == 1;
                control(&client, "adapt", if is_on { "on" } else { "off" }).await;
                latencies[usize::from(is_on)].extend(turn(&client, number).await);
            }
            let learned = daemon.metric("undrift_adapt_steps_total{outcome=\"applied\"}");
            println!("{mode}, {RATE} frames a second, {learned} windows learned from");
            for (name, latencies) in ["off", "on"].into_iter().zip(&mut latencies) {
                latencies.sort();
                let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| percentile(latencies, share));
                println!(
                    "  adaptation {name:<4} p50 {p50:>7.2} ms  p99 {p99:>7.2} ms  p99.9 {p999:>7.2} ms  of {} frames",
                    latencies.len()
                );
            }
            println!("  on over off: p99 {:.2}", percentile(&latencies[1], 0.99) / percentile(&latencies[0], 0.99));
        }
    }
}
