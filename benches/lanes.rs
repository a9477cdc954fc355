//! What each layer of the two lanes costs, with the shipped bundle: one group a layer, from a draw's noise to a window's step.
//!
//! `make bench`, or `cargo bench --bench lanes -- FILTER`. Criterion keeps the last run below target/criterion and says what has changed.
//! The layers of the diffusion model are of one draw, on the calling thread; classifier, judge and adapter work on rayon's pool.
//! What is held against something else is measured by the other benches, whose sides work by turns.

use candle_core::Tensor;
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;
use undrift::bundle::Bundle;
use undrift::config::Config;
use undrift::diffusion::{Schedule, Timestep};
use undrift::frame::WeightsVersion;
use undrift::kernels::{self, AttentionWorkspace, Finish, Matrix, Panels};
use undrift::learner::{AdaptConfig, Adapter, FrozenClassifier, GateConfig, Judgement, source_state};
use undrift::model::DitConfig;
use undrift::noise::NoiseKey;
use undrift::pipeline::{Outcome, WindowFrame};
use undrift::recent::Recent;
use undrift::shell::bundle_reader::read_bundle;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

criterion_group! {
    name = lanes;
    config = Criterion::default().sample_size(40).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4));
    targets = noise, embedding, norm, attention, mlp, readout, classifier, judge, learn
}
criterion_main!(lanes);

fn shipped() -> (Bundle, AdaptConfig) {
    let config = Config::load(Path::new("configs/fashion-mnist/undrift.toml"), &[], std::iter::empty()).expect("the shipped configuration");
    (read_bundle(&config).expect("the shipped bundle"), config.adapt)
}

/// Standard normal values.
fn normal(count: usize) -> Vec<f32> {
    let mut values = vec![0f32; count];
    NoiseKey::from_seed(1, "bench", 0).fill_normal(u32::MAX, &mut values);
    values
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|tensor| tensor.to_vec1()).expect("f32 values")
}

/// A linear layer of the diffusion model.
struct Layer {
    panels: Panels,
    bias: Vec<f32>,
}

impl Layer {
    fn of(bundle: &Bundle, name: &str) -> Self {
        let bias = values(&bundle.diffusion[&format!("{name}.bias")]);
        let weight = values(&bundle.diffusion[&format!("{name}.weight")]);
        let inputs = weight.len() / bias.len();
        let mut panels = Panels::default();
        panels.pack(Matrix::rows_of(&weight, bias.len(), inputs, inputs).transposed());
        Self { panels, bias }
    }

    fn apply(&self, y: &mut [f32], x: &[f32], finish: Finish) {
        let rows = y.len() / self.bias.len();
        let inputs = x.len() / rows;
        kernels::product(y, self.bias.len(), Matrix::rows_of(x, rows, inputs, inputs), &self.panels, finish);
    }
}

/// Noise and noised image of each draw of a frame.
fn noise(criterion: &mut Criterion) {
    let (bundle, adapt) = shipped();
    let DitConfig { trunk, num_timesteps, .. } = bundle.diffusion_config;
    let (schedule, key) = (Schedule::linear(num_timesteps), NoiseKey::from_seed(1, "bench", 0));
    let x_start = normal(trunk.image.elements());
    let (mut noise, mut x_t, mut copied) = (x_start.clone(), x_start.clone(), x_start.clone());
    let mut sample = || {
        for (draw, &timestep) in (0u32..).zip(&adapt.timesteps) {
            schedule.sample(key, draw, Timestep(timestep), &x_start, &mut noise, &mut x_t);
        }
    };
    let mut group = criterion.benchmark_group("noise");
    group.bench_function("draws of a frame", |bencher| bencher.iter(&mut sample));
    // What writing the noised images takes at least.
    let mut copy = || adapt.timesteps.iter().for_each(|_| black_box(&mut copied).copy_from_slice(black_box(&x_start)));
    group.bench_function("a copy of as many values", |bencher| bencher.iter(&mut copy));
}

/// What each token sees, and its embedding.
fn embedding(criterion: &mut Criterion) {
    let (bundle, _) = shipped();
    let trunk = bundle.diffusion_config.trunk;
    let (image, embed) = (normal(trunk.image.elements()), Layer::of(&bundle, "embed"));
    let (mut windows, mut x) = (vec![0f32; trunk.tokens() * trunk.window_elements()], vec![0f32; trunk.tokens() * trunk.hidden]);
    let mut group = criterion.benchmark_group("embedding");
    group.bench_function("windows", |bencher| bencher.iter(|| trunk.windows_into(&image, &mut windows)));
    group.bench_function("product", |bencher| bencher.iter(|| embed.apply(&mut x, &windows, Finish::Residual(&embed.bias))));
}

fn norm(criterion: &mut Criterion) {
    let (bundle, _) = shipped();
    let trunk = bundle.diffusion_config.trunk;
    let (x, shift, scale) = (normal(trunk.tokens() * trunk.hidden), normal(trunk.hidden), normal(trunk.hidden));
    let mut y = x.clone();
    let mut group = criterion.benchmark_group("norm");
    group.bench_function("modulated", |bencher| bencher.iter(|| kernels::modulate(&mut y, &x, &shift, &scale)));
}

/// Of one block.
fn attention(criterion: &mut Criterion) {
    let (bundle, _) = shipped();
    let trunk = bundle.diffusion_config.trunk;
    let (qkv, projection) = (Layer::of(&bundle, "blocks.00.qkv"), Layer::of(&bundle, "blocks.00.projection"));
    let (h, gate) = (normal(trunk.tokens() * trunk.hidden), normal(trunk.hidden));
    let (mut packed, mut attended, mut x) = (vec![0f32; 3 * h.len()], h.clone(), h.clone());
    let mut workspace = AttentionWorkspace::default();
    let mut group = criterion.benchmark_group("attention");
    group.bench_function("query, key, value", |bencher| bencher.iter(|| qkv.apply(&mut packed, &h, Finish::Bias(&qkv.bias))));
    let mut attend = || kernels::attend(&mut attended, &packed, trunk.hidden, trunk.heads, &mut workspace);
    group.bench_function("heads", |bencher| bencher.iter(&mut attend));
    let finish = Finish::GatedResidual { bias: &projection.bias, gate: &gate };
    group.bench_function("projection", |bencher| bencher.iter(|| projection.apply(&mut x, &attended, finish)));
}

/// Of one block.
fn mlp(criterion: &mut Criterion) {
    let (bundle, _) = shipped();
    let trunk = bundle.diffusion_config.trunk;
    let (expand, contract) = (Layer::of(&bundle, "blocks.00.expand"), Layer::of(&bundle, "blocks.00.contract"));
    let neighbours = values(&bundle.diffusion["blocks.00.neighbours"]);
    let (h, gate) = (normal(trunk.tokens() * trunk.hidden), normal(trunk.hidden));
    let mut expanded = vec![0f32; trunk.mlp_ratio * h.len()];
    let (mut mixed, mut x) = (expanded.clone(), h.clone());
    let mut group = criterion.benchmark_group("mlp");
    group.bench_function("expand", |bencher| bencher.iter(|| expand.apply(&mut expanded, &h, Finish::Bias(&expand.bias))));
    let mut mix = || kernels::mixed_gelu(&mut mixed, &expanded, &neighbours, trunk.grid());
    group.bench_function("neighbours and gelu", |bencher| bencher.iter(&mut mix));
    let finish = Finish::GatedResidual { bias: &contract.bias, gate: &gate };
    group.bench_function("contract", |bencher| bencher.iter(|| contract.apply(&mut x, &mixed, finish)));
}

/// Predicted noise under each class, and what the verdict needs of it.
fn readout(criterion: &mut Criterion) {
    let (bundle, _) = shipped();
    let DitConfig { trunk, classes, .. } = bundle.diffusion_config;
    let (readout, h, noise) = (Layer::of(&bundle, "readout"), normal(trunk.tokens() * trunk.hidden), normal(trunk.image.elements()));
    let mut pred_noise = vec![0f32; trunk.tokens() * bundle.diffusion_config.outputs()];
    let mut group = criterion.benchmark_group("readout");
    group.bench_function("product", |bencher| bencher.iter(|| readout.apply(&mut pred_noise, &h, Finish::Bias(&readout.bias))));
    let gram_terms = || kernels::gram_terms(&pred_noise, &noise, classes, trunk.patch_elements());
    group.bench_function("gram terms", |bencher| bencher.iter(gram_terms));
}

/// The one that answers.
fn classifier(criterion: &mut Criterion) {
    let (bundle, _) = shipped();
    let load = || FrozenClassifier::new(&bundle.classifier_config, &bundle.classifier).expect("a classifier");
    let (classifier, views) = (load(), normal(2 * bundle.classifier_config.image().elements()));
    let mut group = criterion.benchmark_group("classifier");
    group.bench_function("two views of a frame", |bencher| bencher.iter(|| classifier.logits(&views).expect("logits")));
    group.bench_function("let other weights serve", |bencher| bencher.iter(load));
}

fn judge(criterion: &mut Criterion) {
    let (bundle, adapt) = shipped();
    let (adapter, window) = (adapter(&bundle, &adapt), window(&bundle, &adapt));
    let mut judgement = Judgement::default();
    let mut group = criterion.benchmark_group("judge");
    group.bench_function("a frame", |bencher| bencher.iter(|| adapter.judge_into(&mut judgement, &window[..1])));
    group.bench_function("a window", |bencher| bencher.iter(|| adapter.judge_into(&mut judgement, &window)));
}

fn learn(criterion: &mut Criterion) {
    let (bundle, adapt) = shipped();
    // The gate is open: a window of noise is learned from, too.
    let gate = GateConfig { margin: -1.0, diversity_slack: 1.0, tolerance: 1.0, consistency: 0.0, ..adapt.gate };
    let adapt = AdaptConfig { gate, ..adapt };
    let (mut adapter, window) = (adapter(&bundle, &adapt), window(&bundle, &adapt));
    let mut judgement = Judgement::default();
    adapter.judge_into(&mut judgement, &window);
    let mut learn = || {
        let outcome = adapter.learn(&window, &judgement.verdicts).expect("a step");
        assert!(matches!(outcome, Outcome::Learned(_)), "the gate is open: {outcome:?}");
    };
    criterion.benchmark_group("learn").bench_function("a window", |bencher| bencher.iter(&mut learn));
}

fn adapter(bundle: &Bundle, adapt: &AdaptConfig) -> Adapter {
    Adapter::new(bundle, adapt, &source_state(&bundle.classifier, WeightsVersion(0))).expect("an adapter")
}

/// Frames of noise.
fn window(bundle: &Bundle, adapt: &AdaptConfig) -> Vec<WindowFrame> {
    let classifier = FrozenClassifier::new(&bundle.classifier_config, &bundle.classifier).expect("a classifier");
    let shape = bundle.classifier_config.image();
    let frame = |index| {
        let key = NoiseKey::from_seed(1, "bench", index);
        let mut image = vec![0f32; shape.elements()];
        key.fill_normal(u32::MAX, &mut image);
        let views = adapt.views(&image, shape);
        let source_logits = classifier.logits(&views).expect("logits");
        let prior = Recent::default().prior(bundle.labels.len());
        WindowFrame { camera: "cam".to_owned(), key, views, source_logits, verdict: None, prior }
    };
    (0u64..).take(adapt.window).map(frame).collect()
}
