//! Nothing grows: heap, resident memory, descriptors, threads and metric series are after many frames what they were after few.
//!
//! Method: frames as fast as they are answered, a sample at equal distances, what grows in every quarter of them.
//! UNDRIFT_FRAMES sets how many frames each run takes (`make soak`).

mod harness;
mod heap;
mod tiny;

use harness::{Broker, Daemon, Home, Predictions, png, servers};
use heap::live_heap;
use parking_lot::Mutex;
use undrift::learner::{AdaptConfig, Adapter, GuardConfig};
use undrift::model::ClassConditioning;
use undrift::noise::NoiseSecret;
use undrift::pipeline::{Effect, Event, OutputShape, Pipeline, Start};

/// Of each run.
const SAMPLES: u64 = 20;
/// Frames before the first sample: until the memory for the labels that may come is full.
const WARM: u64 = 8192;
/// Frames that may wait for their answers.
const AHEAD: u64 = 32;
/// Bytes of resident memory that may be gained in a whole run: the allocator takes and gives back a few MiB at a time.
const RESIDENT_GROWTH_MAX: f64 = (4 << 20) as f64;

/// The heap is counted for the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn frames(default: u64) -> u64 {
    std::env::var("UNDRIFT_FRAMES").map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("UNDRIFT_FRAMES is a number")))
}

/// Gained over all samples by what grows steadily: four times the smallest rise from one quarter's median to the next one's. What grows with
/// the frames rises in each; a step that the allocator takes, in one.
fn growth(samples: &[f64]) -> f64 {
    let medians: Vec<f64> = samples
        .chunks_exact(samples.len() / 4)
        .map(|quarter| {
            let mut sorted = quarter.to_vec();
            sorted.sort_by(f64::total_cmp);
            sorted[sorted.len() / 2]
        })
        .collect();
    4.0 * medians.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min)
}

#[test]
fn the_core_holds_at_each_border_what_it_held_at_the_first() {
    let _alone = ALONE.lock();
    // One thread: another that takes part for the first time brings scratch memory of its own.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let frames = frames(10_000);
    let held = pool.install(|| heap_at_borders(frames));
    println!("{frames} frames, bytes on the heap at {} borders: {held:?}", held.len());
    assert_eq!(held.len() as u64, SAMPLES);
    assert!(held.iter().all(|bytes| bytes == &held[0]), "{held:?}");
}

fn heap_at_borders(frames: u64) -> Vec<usize> {
    // It goes on learning, whatever the canary of noise says.
    let guard = GuardConfig { canary_evidence_max: f64::MAX, ..tiny::config().guard };
    let (bundle, config) = (tiny::bundle(1, ClassConditioning::Readout), AdaptConfig { guard, ..tiny::config() });
    let shape = OutputShape { top_k: 2, checkpoint_windows: 8 };
    let start = Start::Source { incarnation: "test".to_owned(), birth: 0 };
    let mut pipeline = Pipeline::new(&bundle, &config, shape, NoiseSecret::from_seed(1), start).expect("a bundle that fits");
    let mut adapter = Adapter::new(&bundle, &config, pipeline.learner()).expect("a bundle that fits");
    // Its own memory is there before the first sample.
    let mut held = Vec::with_capacity(usize::try_from(SAMPLES).expect("few"));
    let (warm, distance) = (WARM, frames / SAMPLES);
    for index in 0..warm + frames {
        let frame = tiny::frame(1, index, "cam");
        let mut effects = pipeline.apply(Event::Frame { frame: Box::new(frame), is_overloaded: false }).expect("no fatal error");
        while let Some(effect) = effects.pop() {
            if let Effect::Adapt(job) = effect
                && let Some(adapted) = adapter.run(job).expect("no fatal error")
            {
                effects.extend(pipeline.apply(Event::Adapted(Box::new(adapted))).expect("no fatal error"));
            }
        }
        drop(effects);
        if index >= warm && (index + 1) % config.window as u64 == 0 && (index - warm) / distance >= held.len() as u64 {
            held.push(live_heap());
        }
    }
    held
}

/// What is measured of a daemon.
#[derive(Debug)]
struct Sample {
    resident: f64,
    descriptors: f64,
    threads: f64,
    series: usize,
}

impl Sample {
    fn of(daemon: &Daemon) -> Self {
        let (_, text) = daemon.get("/metrics").expect("the daemon answers HTTP");
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} is in\n{text}")).parse().expect("metrics are numbers")
        };
        Self {
            resident: value("process_resident_memory_bytes"),
            descriptors: value("process_open_fds"),
            threads: value("process_threads"),
            series: text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count(),
        }
    }
}

#[test]
fn the_daemon_holds_after_many_frames_what_it_held_after_few() {
    let _alone = ALONE.lock();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for server in servers() {
        for mode in ["core", "jetstream"] {
            runtime.block_on(async {
                let (home, broker) = (Home::new(), Broker::start(&server).await);
                let daemon = Daemon::start(&home, &broker, &[&format!("nats.mode={mode}")]).await;
                soak(&daemon, &broker, mode, frames(6000)).await;
            });
        }
    }
}

async fn soak(daemon: &Daemon, broker: &Broker, mode: &str, frames: u64) {
    let client = broker.client().await;
    let mut predictions = Predictions::of(&client).await;
    let payloads: Vec<Vec<u8>> = (0..97).map(png).collect();
    let (warm, distance) = (WARM, frames / SAMPLES);
    let (mut samples, mut answered) = (Vec::new(), 0);
    let began = std::time::Instant::now();
    for index in 0..warm + frames {
        let payload = payloads[(index % 97) as usize].clone();
        client.publish(format!("undrift.v1.frames.cam{}", index % 5), payload.into()).await.expect("the connection is open");
        while index + 1 - answered >= AHEAD {
            predictions.next().await;
            answered += 1;
        }
        if index >= warm && (index - warm) % distance == distance - 1 {
            samples.push(Sample::of(daemon));
        }
    }
    let rate = (warm + frames) as f64 / began.elapsed().as_secs_f64();
    let resident: Vec<f64> = samples.iter().map(|sample| sample.resident).collect();
    let (first, second) = samples.split_at(samples.len() / 2);
    let most = |half: &[Sample], of: fn(&Sample) -> f64| half.iter().map(of).fold(0.0, f64::max);
    println!(
        "{mode}: {frames} frames at {rate:.0} a second; resident {:.1} MiB at first, growth {:.0} KiB; {} descriptors, {} threads, {} series",
        resident[0] / f64::from(1 << 20),
        growth(&resident) / 1024.0,
        most(second, |sample| sample.descriptors),
        most(second, |sample| sample.threads),
        samples[0].series
    );
    assert!(growth(&resident) <= RESIDENT_GROWTH_MAX, "{resident:?}");
    // A scrape and a checkpoint have one each while they last.
    assert!(most(second, |sample| sample.descriptors) <= most(first, |sample| sample.descriptors) + 2.0, "{samples:?}");
    assert!(most(second, |sample| sample.threads) <= most(first, |sample| sample.threads), "{samples:?}");
    assert!(samples.iter().all(|sample| sample.series == samples[0].series), "{samples:?}");
}
