//! What a frame and a window cost, by stage, with the shipped bundle: median and 99th percentile.
//!
//! `make bench`. Fixed seed and sizes, warm-up first, all stages on the threads of rayon's pool.

use std::path::Path;
use std::time::{Duration, Instant};
use undrift::config::Config;
use undrift::diffusion::stretch;
use undrift::frame::WeightsVersion;
use undrift::learner::{Adapter, FrozenClassifier, source_state};
use undrift::noise::NoiseKey;
use undrift::pipeline::WindowFrame;
use undrift::shell::bundle_reader::read_bundle;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const REPETITIONS: usize = 60;

/// Prints how long `work` takes, for each of `frames` frames and in all.
fn measure(name: &str, frames: usize, mut work: impl FnMut()) {
    for _ in 0..REPETITIONS / 10 {
        work();
    }
    let mut times: Vec<Duration> = (0..REPETITIONS)
        .map(|_| {
            let started = Instant::now();
            work();
            started.elapsed()
        })
        .collect();
    times.sort();
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    let per_frame = p50.as_secs_f64() * 1e3 / frames as f64;
    println!("{name:<44} p50 {:>8.3} ms  p99 {:>8.3} ms  {per_frame:>7.3} ms a frame", p50.as_secs_f64() * 1e3, p99.as_secs_f64() * 1e3);
}

fn main() {
    let config = Config::load(Path::new("configs/fashion-mnist/undrift.toml"), &[], std::iter::empty()).expect("the shipped configuration");
    let bundle = read_bundle(&config).expect("the shipped bundle");
    let classifier = FrozenClassifier::new(&bundle.classifier_config, &bundle.classifier).expect("a classifier");
    let learner = source_state(&bundle.classifier, WeightsVersion(0));
    let mut adapter = Adapter::new(&bundle, &config.adapt, learner).expect("an adapter");
    let elements = bundle.classifier_config.image().elements();
    let frame = |index| {
        let key = NoiseKey::from_seed(1, "bench", index);
        let mut views = vec![0f32; 2 * elements];
        key.fill_normal(u32::MAX, &mut views);
        stretch(&mut views[elements..]);
        let source_logits = classifier.logits(&views).expect("logits");
        WindowFrame { camera: "cam".to_owned(), key, views, source_logits, verdict: None }
    };
    let window: Vec<WindowFrame> = (0..16).map(frame).collect();
    let verdicts = adapter.judge(&window).expect("verdicts");
    println!("{} threads, {} draws a frame, window of {}", rayon::current_num_threads(), config.adapt.timesteps.len(), window.len());
    measure("noise of one draw", 1, || window[0].key.fill_normal(0, &mut vec![0f32; elements]));
    let load = || drop(FrozenClassifier::new(&bundle.classifier_config, &bundle.classifier).expect("a classifier"));
    measure("let other weights serve", 1, load);
    measure("predict one view", 1, || drop(classifier.logits(&window[0].views[..elements])));
    measure("judge a window (diffusion forward, G, h)", 16, || drop(adapter.judge(&window)));
    measure("learn from a window (forward, backward, step)", 16, || drop(adapter.learn(&window, &verdicts)));
}
