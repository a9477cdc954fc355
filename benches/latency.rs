//! Frame to prediction, through a real nats-server.
//!
//! `make bench`. Frames are due at fixed times, and a frame's latency counts from when it was due, so that a daemon that falls
//! behind cannot hide it. While adaptation is on, the gate is open: every window is learned from, which is the worst case.
//!
//! First, 30 frames a second, adaptation off and on by turns. Then frames of the demo, a corruption after the other, at 60 a second for
//! half a minute, and from there in steps of 10 a second, each for 10 seconds, to the first rate that does not hold: a rate holds
//! while every frame is answered in full, every window learned from, and no backlog grows.

#[path = "../tests/harness/mod.rs"]
mod harness;

mod beside;

use beside::figure;
use bytes::Bytes;
use futures_util::StreamExt;
use harness::{Broker, Daemon, Home, control, headers, png, servers};
use image::{ExtendedColorType, ImageEncoder as _, codecs::png::PngEncoder};
use rayon::prelude::*;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use undrift::config::Config;
use undrift::frame::Image;
use undrift::lab::corruptions::{Severity, Table};
use undrift::lab::dataset::{self, Labelled};
use undrift::lab::streams::{Plan, Playback, Request, Stream};
use undrift::observation::SkipReason;

const RATE: u32 = 30;
/// Of one turn; the first of them are not counted.
const FRAMES: u32 = 240;
const SETTLING: u32 = 30;
const TURNS: u32 = 6;
const OPEN_GATE: [&str; 3] = ["adapt.gate.margin=-1", "adapt.gate.diversity_slack=1", "adapt.gate.consistency=0"];
/// With this too, nothing that was learned is thought not to fit.
const NO_RETREAT: &str = "adapt.gate.tolerance=1";

const SUSTAINED_RATE: u32 = 60;
const SUSTAINED_SECONDS: u32 = 30;
const RATE_STEP: u32 = 10;
const RATE_MAX: u32 = 300;
const STEP_SECONDS: u32 = 10;
/// A daemon that is 3 % too slow is this much behind at the end of a step.
const BACKLOG_MAX: Duration = Duration::from_millis(300);
/// Without a prediction for so long, the frames that are left were shed.
const SILENCE: Duration = Duration::from_secs(5);
const SIDE: usize = 32;
/// Megabytes, 10^6 bytes.
const RESIDENT_MAX: f64 = 250.0;
const SAMPLE: &str = "configs/fashion-mnist";

/// Frames at a constant rate.
#[derive(Clone)]
struct Arrivals {
    rate: u32,
    frames: u32,
    /// PNG files; after the last comes the first.
    payloads: Arc<[Bytes]>,
}

/// What came back of them.
struct Answers {
    count: u32,
    /// Of frames that the judge was spared, because too many waited.
    overloaded: u32,
    /// Sorted, without those of the settling.
    latencies: Vec<Duration>,
}

impl Arrivals {
    /// Publishes all, and waits for their predictions; `number` is that of the turn.
    async fn run(&self, client: &async_nats::Client, number: u32) -> Answers {
        let mut predictions = client.subscribe("undrift.v1.predictions.*").await.expect("the connection is open");
        client.flush().await.expect("the broker answers");
        let (began, rate) = (Instant::now() + Duration::from_millis(100), self.rate);
        let due = move |frame: u32| began + frame * Duration::from_secs(1) / rate;
        let publishing = tokio::spawn(self.clone().publish(client.clone(), number, due));
        let (mut answered, mut overloaded) = (HashMap::new(), 0);
        while answered.len() < self.frames as usize {
            let Ok(message) = tokio::time::timeout(SILENCE, predictions.next()).await else { break };
            let received = Instant::now();
            let prediction = undrift::wire::decode_prediction(&message.expect("the connection is open").payload).expect("a prediction");
            let (_, frame) = prediction.frame_id.split_once('-').expect("our own id");
            answered.insert(frame.parse::<u32>().expect("our own id"), received);
            overloaded += u32::from(!prediction.judged);
        }
        publishing.await.expect("all frames are published");
        let count = u32::try_from(answered.len()).expect("no more than were sent");
        let settled = answered.into_iter().filter(|&(frame, _)| frame >= SETTLING);
        let mut latencies: Vec<Duration> = settled.map(|(frame, received)| received - due(frame)).collect();
        latencies.sort();
        Answers { count, overloaded, latencies }
    }

    async fn publish(self, client: async_nats::Client, number: u32, due: impl Fn(u32) -> Instant) {
        for frame in 0..self.frames {
            tokio::time::sleep_until(due(frame).into()).await;
            let id = headers(&[("Frame-Id", &format!("{number}-{frame}"))]);
            let payload = self.payloads[frame as usize % self.payloads.len()].clone();
            client.publish_with_headers("undrift.v1.frames.cam1", id, payload).await.expect("the connection is open");
        }
    }
}

/// In milliseconds: p50, p99, p99.9.
fn percentiles(sorted: &[Duration]) -> [f64; 3] {
    [0.5, 0.99, 0.999].map(|share| sorted[((sorted.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let demo: Arc<[Bytes]> = demo_frames(SUSTAINED_RATE * SUSTAINED_SECONDS).into();
    for server in servers() {
        for mode in ["core", "jetstream"] {
            let broker = Broker::start(&server).await;
            off_and_on(&broker, mode).await;
            let broker = Broker::start(&server).await;
            at_rates(&broker, mode, &demo).await;
        }
    }
}

/// A daemon with the shipped bundle, which learns from every window.
async fn daemon(home: &Home, broker: &Broker, mode: &str, sets: &[&str]) -> Daemon {
    let mode_key = format!("nats.mode={mode}");
    Daemon::start(home, broker, &[&[mode_key.as_str()], &OPEN_GATE[..], sets].concat()).await
}

async fn off_and_on(broker: &Broker, mode: &str) {
    let home = Home::with_shipped_bundle();
    let daemon = daemon(&home, broker, mode, &[]).await;
    let client = broker.client().await;
    let payloads = (0..FRAMES as usize).map(|index| png(index).into()).collect();
    let arrivals = Arrivals { rate: RATE, frames: FRAMES, payloads };
    let mut latencies: [Vec<Duration>; 2] = Default::default();
    for number in 0..TURNS {
        let is_on = number % 2 == 1;
        control(&client, "adapt", if is_on { "on" } else { "off" }).await;
        let answers = arrivals.run(&client, number).await;
        assert_eq!(answers.count, FRAMES, "frames that were answered");
        latencies[usize::from(is_on)].extend(answers.latencies);
    }
    println!("{mode}, {RATE} frames a second, {} windows learned from", Windows::of(&daemon).learned);
    let [off, on] = latencies.map(|mut latencies| {
        latencies.sort();
        percentiles(&latencies)
    });
    for (name, [p50, p99, p999]) in [("off", off), ("on", on)] {
        println!("  adaptation {name:<4} p50 {p50:>7.2} ms  p99 {p99:>7.2} ms  p99.9 {p999:>7.2} ms");
    }
    println!("  on over off: p99 {:.2}", on[1] / off[1]);
    let [of_on, of_off] = [on, off].map(|[_, p99, _]| format!("{p99:.2} ms"));
    figure(&format!("p99 at {RATE} frames/s, {mode}, adaptation on against off"), &of_on, &of_off, &format!("{:.2}", on[1] / off[1]));
}

/// Windows by what came of them, since the daemon's start.
#[derive(Clone, Copy)]
struct Windows {
    learned: f64,
    skipped: f64,
}

impl Windows {
    fn of(daemon: &Daemon) -> Self {
        let count = |outcome: &str| daemon.metric(&format!("undrift_adapt_steps_total{{outcome=\"{outcome}\"}}"));
        Self { learned: count("applied"), skipped: SkipReason::ALL.iter().map(|reason| count(reason.name())).sum() }
    }

    /// Once `frames` were answered and the last of their windows has come out of the slow lane.
    async fn after(daemon: &Daemon, frames: u32, window: u32) -> Self {
        let are_done = |windows: &Self| windows.learned + windows.skipped >= f64::from(frames / window);
        harness::until("all windows come out", || async { Some(Self::of(daemon)).filter(are_done) }).await
    }
}

/// A daemon under rising rates.
struct Ladder<'a> {
    daemon: &'a Daemon,
    client: async_nats::Client,
    /// Frames of a window.
    window: u32,
    answered: u32,
    windows: Windows,
}

/// What came of one rate.
struct Rung {
    learned: f64,
    skipped: f64,
    overloaded: u32,
    lost: u32,
    percentiles: [f64; 3],
    resident_megabytes: f64,
}

impl Ladder<'_> {
    async fn step(&mut self, arrivals: &Arrivals) -> Rung {
        let Answers { count, overloaded, latencies } = arrivals.run(&self.client, arrivals.rate).await;
        self.answered += count;
        let windows = Windows::after(self.daemon, self.answered, self.window).await;
        let before = std::mem::replace(&mut self.windows, windows);
        Rung {
            learned: windows.learned - before.learned,
            skipped: windows.skipped - before.skipped,
            overloaded,
            lost: arrivals.frames - count,
            percentiles: percentiles(&latencies),
            resident_megabytes: self.daemon.metric("process_resident_memory_bytes") / 1e6,
        }
    }
}

impl Rung {
    fn holds(&self) -> bool {
        self.skipped == 0.0 && self.overloaded + self.lost == 0 && self.percentiles[1] <= BACKLOG_MAX.as_secs_f64() * 1e3
    }

    fn print(&self, arrivals: &Arrivals) {
        let Self { learned, skipped, overloaded, lost, percentiles: [p50, p99, p999], resident_megabytes } = self;
        let Arrivals { rate, frames, .. } = arrivals;
        print!("  {rate:>8} {frames:>8} {p50:>7.2} {p99:>7.2} {p999:>8.2} {learned:>8} {skipped:>8} {overloaded:>11} {lost:>5}");
        println!(" {resident_megabytes:>12.0}");
    }
}

/// The sustained rate, then higher ones, to the first that does not hold.
async fn at_rates(broker: &Broker, mode: &str, demo: &Arc<[Bytes]>) {
    let home = Home::with_shipped_bundle();
    let window = u32::try_from(Config::load(home.config(), &[], std::iter::empty()).expect("it ships").adapt.window).expect("a small one");
    let daemon = daemon(&home, broker, mode, &[NO_RETREAT]).await;
    let mut ladder =
        Ladder { daemon: &daemon, client: broker.client().await, window, answered: 0, windows: Windows { learned: 0.0, skipped: 0.0 } };
    println!("{mode}, frames of the demo at constant rates");
    println!("  frames/s   frames  p50 ms  p99 ms p99.9 ms  learned  skipped  overloaded  lost  resident MB");
    let mut held = 0;
    for rate in (SUSTAINED_RATE..=RATE_MAX).step_by(RATE_STEP as usize) {
        let seconds = if rate == SUSTAINED_RATE { SUSTAINED_SECONDS } else { STEP_SECONDS };
        let arrivals = Arrivals { rate, frames: rate * seconds, payloads: demo.clone() };
        let rung = ladder.step(&arrivals).await;
        rung.print(&arrivals);
        if rate == SUSTAINED_RATE {
            say_sustained(mode, &rung);
        }
        if !rung.holds() {
            break;
        }
        held = rate;
    }
    let ratio = format!("{:.2}", f64::from(held) / f64::from(SUSTAINED_RATE));
    figure(&format!("highest rate that holds, {mode}"), &format!("{held} frames/s"), &format!("{SUSTAINED_RATE} frames/s"), &ratio);
}

fn say_sustained(mode: &str, rung: &Rung) {
    let skipped = format!("{} of {} windows", rung.skipped, rung.learned + rung.skipped);
    let name = format!("skipped at {SUSTAINED_RATE} frames/s for {SUSTAINED_SECONDS} s, {mode}");
    figure(&name, &skipped, "0", if rung.holds() { "holds" } else { "does not hold" });
    let ratio = format!("{:.2}", rung.resident_megabytes / RESIDENT_MAX);
    let (resident, limit) = (format!("{:.0} MB", rung.resident_megabytes), format!("{RESIDENT_MAX:.0} MB"));
    figure(&format!("resident memory then, {mode}"), &resident, &limit, &ratio);
}

/// Frames of the demo, as a camera would send them.
fn demo_frames(count: u32) -> Vec<Bytes> {
    let file = |name: &str| File::open(Path::new(SAMPLE).join(name)).expect("the sample ships");
    let images: Vec<Labelled> =
        dataset::read_pair(file("sample-images-idx3-ubyte.gz"), file("sample-labels-idx1-ubyte.gz")).expect("images with labels");
    let severity = Severity::try_from(5).expect("1 to 5");
    let request = Request { frames: count as usize, severity, seed: 1, visits: 1, walk: None };
    let plan = Plan::new(Stream::Continual, &request, &images).expect("a plan");
    let playback = Playback { plan: &plan, images: &images, table: Table::Tiny, side: SIDE };
    (0..count as usize).into_par_iter().map(|index| encode(&playback.frame(index).image)).collect()
}

fn encode(image: &Image) -> Bytes {
    let mut bytes = Vec::new();
    let side = SIDE as u32;
    PngEncoder::new(&mut bytes).write_image(image.pixels(), side, side, ExtendedColorType::L8).expect("a grey image");
    bytes.into()
}
