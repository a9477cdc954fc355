//! What a window takes of memory once the buffers are there.

mod heap;

use std::path::Path;
use undrift::bundle::Bundle;
use undrift::config::Config;
use undrift::frame::WeightsVersion;
use undrift::learner::{Adapter, FrozenClassifier, Judgement, source_state};
use undrift::noise::NoiseKey;
use undrift::pipeline::{Outcome, WindowFrame};
use undrift::recent::Recent;
use undrift::shell::bundle_reader::read_bundle;

/// The shipped bundle, with a gate that is open.
fn shipped() -> (Config, Bundle) {
    let open = ["adapt.gate.margin=-1", "adapt.gate.diversity_slack=1", "adapt.gate.consistency=0", "adapt.gate.tolerance=1"];
    let sets: Vec<String> = open.map(str::to_owned).to_vec();
    let config = Config::load(Path::new("configs/fashion-mnist/undrift.toml"), &sets, std::iter::empty()).expect("a configuration");
    let bundle = read_bundle(&config).expect("the shipped bundle");
    (config, bundle)
}

/// Frames of noise that no answer has asked the judge about.
fn unjudged(config: &Config, bundle: &Bundle) -> Vec<WindowFrame> {
    let source = FrozenClassifier::new(&bundle.classifier_config, &bundle.classifier).expect("a classifier");
    let shape = bundle.classifier_config.image();
    let frame = |index| {
        let key = NoiseKey::from_seed(1, "steady", index);
        let mut image = vec![0f32; shape.elements()];
        key.fill_normal(u32::MAX, &mut image);
        let views = config.adapt.views(&image, shape);
        let source_logits = source.logits(&views).expect("logits");
        let prior = Recent::default().prior(bundle.labels.len());
        WindowFrame { camera: "cam".to_owned(), key, views, source_logits, verdict: None, prior }
    };
    (0..config.adapt.window as u64).map(frame).collect()
}

#[test]
fn judging_and_learning_take_no_memory_of_their_own_once_their_buffers_are_there() {
    // Goal: a steady state without requests. Method: the shipped bundle with an open gate, on one thread, whose requests are counted;
    // frames that the answer has judged already, and frames that it has not.
    let (config, bundle) = shipped();
    let mut window = unjudged(&config, &bundle);
    let weights: usize = bundle.classifier.values().map(|tensor| 4 * tensor.elem_count()).sum();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    for is_judged in [false, true] {
        let mut adapter = Adapter::new(&bundle, &config.adapt, &source_state(&bundle.classifier, WeightsVersion(0))).expect("an adapter");
        let mut judgement = Judgement::default();
        let mut learn = || {
            let before = heap::requests();
            let (outcome, peak) = heap::peak_heap(|| {
                adapter.judge_into(&mut judgement, &window);
                adapter.learn(&window, &judgement.verdicts).expect("a window")
            });
            assert!(matches!(outcome, Outcome::Learned(_)), "{outcome:?}");
            (heap::requests() - before, peak)
        };
        let taken = pool.install(|| [(); 6].map(|()| learn()));
        println!("frames judged before: {is_judged}; requests and bytes of the first windows: {taken:?}");
        // The first fills the buffers; the second that of the moments, which are there after the first step; with the first answers that
        // teach, here in the fourth, their mean begins.
        assert!(taken[0].1 > weights, "{taken:?}");
        assert!(taken[4..].iter().all(|&(requests, _)| requests == 0), "{taken:?}");
        for (frame, verdict) in window.iter_mut().zip(judgement.verdicts) {
            frame.verdict = Some(verdict);
        }
    }
}
