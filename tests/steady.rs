//! What a window takes of memory once the buffers are there.

mod heap;

use std::path::Path;
use undrift::config::Config;
use undrift::diffusion::stretch;
use undrift::frame::WeightsVersion;
use undrift::learner::{Adapter, FrozenClassifier, source_state};
use undrift::noise::NoiseKey;
use undrift::pipeline::{Outcome, WindowFrame};
use undrift::shell::bundle_reader::read_bundle;

/// Rows of logits and of terms, the ruling, names: nothing that grows with weights, activations or draws' images.
const SMALL: usize = 128 << 10;

#[test]
fn judging_and_learning_take_no_memory_for_weights_or_activations() {
    // Goal: a steady state without large requests. Method: the shipped bundle with an open gate, on one thread, whose peak is counted.
    let open = ["adapt.gate.margin=-1", "adapt.gate.diversity_slack=1", "adapt.gate.consistency=0", "adapt.gate.tolerance=1"];
    let sets: Vec<String> = open.map(str::to_owned).to_vec();
    let config = Config::load(Path::new("configs/fashion-mnist/undrift.toml"), &sets, std::iter::empty()).expect("a configuration");
    let bundle = read_bundle(&config).expect("the shipped bundle");
    let source = FrozenClassifier::new(&bundle.classifier_config, &bundle.classifier).expect("a classifier");
    let mut adapter = Adapter::new(&bundle, &config.adapt, source_state(&bundle.classifier, WeightsVersion(0))).expect("an adapter");
    let elements = bundle.classifier_config.image().elements();
    let frame = |index| {
        let key = NoiseKey::from_seed(1, "steady", index);
        let mut views = vec![0f32; 2 * elements];
        key.fill_normal(u32::MAX, &mut views);
        stretch(&mut views[elements..]);
        let source_logits = source.logits(&views).expect("logits");
        WindowFrame { camera: "cam".to_owned(), key, views, source_logits, verdict: None }
    };
    let window: Vec<WindowFrame> = (0..config.adapt.window as u64).map(frame).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let peaks = pool.install(|| {
        let mut peak = || {
            let (outcome, peak) = heap::peak_heap(|| {
                let verdicts = adapter.judge(&window).expect("verdicts");
                adapter.learn(&window, &verdicts).expect("a window")
            });
            assert!(matches!(outcome, Outcome::Learned(_)), "{outcome:?}");
            peak
        };
        [peak(), peak(), peak(), peak()]
    });
    println!("bytes of the heap that the first windows take: {peaks:?}");
    let weights: usize = bundle.classifier.values().map(|tensor| 4 * tensor.elem_count()).sum();
    // The first fills the buffers; the second that of the moments, which are there after the first step.
    assert!(peaks[0] > weights, "{peaks:?}");
    assert!(peaks[2..].iter().all(|&peak| peak < SMALL), "windows take {peaks:?} bytes, weights are {weights}");
}
