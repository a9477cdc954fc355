//! Gradients: every fused operation against finite differences, every trainable parameter reached, no frozen one moved.

mod tiny;

use candle_core::{Device, Tensor, Var};
use std::sync::Arc;
use undrift::bundle::Bundle;
use undrift::frame::WeightsVersion;
use undrift::kernels::{self, NormMoments};
use undrift::learner::objective::{entropy, softmax};
use undrift::learner::{
    AdaptConfig, Adapter, Classifier, EntropyConfig, FrozenClassifier, GateConfig, Judgement, ObjectiveKind, OptimizerConfig,
    TrainablePart, source_state,
};
use undrift::model::{ClassConditioning, ClassifierConfig, Dit, ImageShape, Parameters, ResNetConfig, Tensors};
use undrift::noise::NoiseKey;
use undrift::pipeline::{Job, Outcome, WindowFrame};
use undrift::recent::Recent;
use undrift::state::LearnerState;

fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut values = vec![0f32; shape.iter().product()];
    NoiseKey::from_seed(seed, "gradient test", 0).fill_normal(0, &mut values);
    Tensor::from_vec(values, shape, &Device::Cpu).expect("a shape of its values")
}

/// sum(weights * y) in f64: a loss whose rounding stays below that of the operation.
fn loss(y: &Tensor, weights: &[f32]) -> f64 {
    let y = y.flatten_all().and_then(|y| y.to_vec1::<f32>()).expect("a tensor");
    y.iter().zip(weights).map(|(&y, &w)| f64::from(y) * f64::from(w)).sum()
}

/// Compares the gradients of `operation` with fourth-order central differences, for each argument.
///
/// The bound comes from f32: an operation's result is off by some 1e-6, over a span of 12 steps of 0.02, that is 1e-5 to
/// 1e-4 of the gradient's scale, and the differences' own error is of the order of the step to the fourth, 2e-7.
fn assert_gradients(name: &str, arguments: &[Tensor], operation: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>) {
    const STEP: f64 = 0.02;
    const BOUND: f64 = 2e-3;
    let variables: Vec<Var> = arguments.iter().map(|tensor| Var::from_tensor(tensor).expect("a tensor")).collect();
    let tracked: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let y = operation(&tracked).expect("the operation");
    let weights = random(99, &[y.elem_count()]).to_vec1::<f32>().expect("a vector");
    let weighted = y.flatten_all().and_then(|y| y.mul(&Tensor::from_slice(&weights, weights.len(), &Device::Cpu)?)).expect("a product");
    let store = weighted.sum_all().and_then(|sum| sum.backward()).expect("a backward pass");
    for (which, argument) in arguments.iter().enumerate() {
        let analytic = store.get(&variables[which]).unwrap_or_else(|| panic!("{name}: no gradient for argument {which}"));
        let analytic = analytic.flatten_all().and_then(|g| g.to_vec1::<f32>()).expect("a gradient");
        let values = argument.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("values");
        let scale = analytic.iter().map(|g| f64::from(g.abs())).fold(1e-3, f64::max);
        for i in (0..values.len()).step_by(values.len().div_ceil(40)) {
            let at = |shift: f64| {
                let mut moved = values.clone();
                moved[i] = (f64::from(moved[i]) + shift) as f32;
                let mut all = arguments.to_vec();
                all[which] = Tensor::from_vec(moved, argument.shape(), &Device::Cpu).expect("a shape of its values");
                loss(&operation(&all).expect("the operation"), &weights)
            };
            let numeric = (8.0 * (at(STEP) - at(-STEP)) - (at(2.0 * STEP) - at(-2.0 * STEP))) / (12.0 * STEP);
            let error = (f64::from(analytic[i]) - numeric).abs() / scale;
            assert!(error < BOUND, "{name}, argument {which}, element {i}: {} against {numeric}", analytic[i]);
        }
    }
}

#[test]
fn fused_operations_have_the_gradients_of_finite_differences() {
    // Odd sizes on purpose: no dimension is a multiple of the vector width.
    let x = random(1, &[3, 5, 6]);
    assert_gradients("linear", &[x.clone(), random(2, &[7, 6]), random(3, &[7])], |a| kernels::linear(&a[0], &a[1], &a[2]));
    assert_gradients("gelu", std::slice::from_ref(&x), |a| kernels::gelu(&a[0]));
    for rows in [1, 3] {
        let (shift, scale) = (random(4, &[rows, 6]), random(5, &[rows, 6]));
        assert_gradients("modulated norm", &[x.clone(), shift, scale], |a| kernels::modulated_norm(&a[0], &a[1], &a[2]));
        let (gate, h) = (random(6, &[rows, 6]), random(7, &[3, 5, 6]));
        assert_gradients("gated residual", &[x.clone(), gate, h], |a| kernels::gated_residual(&a[0], &a[1], &a[2]));
    }
    let neighbours = [random(11, &[2, 6, 5]), random(12, &[kernels::NEIGHBOURS, 5])];
    assert_gradients("neighbour mix", &neighbours, |a| kernels::neighbour_mix(&a[0], &a[1], (2, 3)));
    let (scale, shift) = (random(14, &[6]), random(15, &[6]));
    let given = kernels::ChannelMoments { mean: vec![0.1, -0.2, 0.3, 0.0, 0.5, -1.0], variance: vec![0.5, 1.0, 2.0, 0.3, 1.5, 0.8] };
    let others = kernels::ChannelMoments { mean: vec![-0.3, 0.4, 0.0, 1.0, -0.5, 0.2], variance: vec![1.2, 0.4, 0.7, 2.5, 0.6, 1.1] };
    for given in [&[&given][..], &[&given, &others, &given]] {
        for moments in [NormMoments::Batch, NormMoments::Mixed { given, share: 0.0 }, NormMoments::Mixed { given, share: 0.3 }] {
            let arguments = [x.clone(), scale.clone(), shift.clone()];
            assert_gradients("batch norm", &arguments, |a| kernels::batch_norm(&a[0], &a[1], &a[2], moments));
        }
    }
    assert_gradients("unfold", &[random(13, &[2, 15, 3])], |a| kernels::unfold(&a[0], (5, 3), 2));
    assert_gradients("attention", &[random(8, &[2, 5, 18])], |a| kernels::attention(&a[0], 2));
    let noise = Arc::new(random(9, &[2 * 3 * 4]).to_vec1::<f32>().expect("a vector"));
    assert_gradients("class errors", &[random(10, &[2, 3, 12])], |a| kernels::class_errors(&a[0], noise.clone(), 3));
}

#[test]
fn a_frozen_linear_layer_passes_the_gradient_of_its_input_only() {
    let (weight, bias) = (random(2, &[7, 6]), random(3, &[7]));
    assert_gradients("frozen linear", &[random(1, &[3, 5, 6])], |a| kernels::linear(&a[0], &weight, &bias));
}

#[test]
fn gram_terms_are_the_inner_products_of_the_predictions() {
    let (pred_noise, noise) = (random(1, &[1, 3, 8]), random(2, &[12]).to_vec1::<f32>().expect("a vector"));
    let terms = kernels::gram_terms(&pred_noise.flatten_all().and_then(|e| e.to_vec1::<f32>()).expect("a vector"), &noise, 2, 4);
    let errors = kernels::class_errors(&pred_noise, Arc::new(noise.clone()), 2).and_then(|e| e.to_vec2::<f32>()).expect("errors");
    let energy = noise.iter().map(|&n| f64::from(n) * f64::from(n)).sum::<f64>() / 12.0;
    for (with_constant, without) in errors[0].iter().zip(terms.errors()) {
        assert!((f64::from(*with_constant) - without - energy).abs() < 1e-5);
    }
    assert_eq!(terms.gram[1], terms.gram[2]);
}

fn window(channels: usize) -> Vec<WindowFrame> {
    let frame = |index| {
        let mut views = vec![0f32; 64 * channels];
        tiny::image(channels, index).write_planes(&mut views);
        WindowFrame {
            camera: "cam".to_owned(),
            key: NoiseKey::from_seed(5, "window", index),
            views,
            source_logits: vec![vec![0.0; tiny::CLASSES]],
            verdict: None,
            prior: Recent::default().prior(tiny::CLASSES),
        }
    };
    (0..4).map(frame).collect()
}

/// What came of a window that was learned from.
fn learned(adapter: &mut Adapter, channels: usize) -> Arc<LearnerState> {
    let adapted = adapter.run(Job::Window { index: 0, frames: window(channels) }).expect("a window").expect("an answer");
    assert!(matches!(adapted.outcome, Outcome::Learned(_)), "{:?}", adapted.outcome);
    adapted.learner
}

/// Names of parameters that one window's adaptation moved.
fn moved(bundle: &Bundle, channels: usize, config: &AdaptConfig) -> Vec<String> {
    let mut adapter = Adapter::new(bundle, config, &source_state(&bundle.classifier, WeightsVersion(0))).expect("an adapter");
    let is_moved = |(name, after): (&String, &Tensor)| (values(after) != values(&bundle.classifier[name])).then(|| name.clone());
    learned(&mut adapter, channels).weights.iter().filter_map(is_moved).collect()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("values")
}

#[test]
fn statistics_of_batch_norm_follow_the_frames_and_are_part_of_the_state() {
    let mut bundle = tiny::bundle(1, ClassConditioning::Readout);
    let network = ResNetConfig { image: bundle.classifier_config.image(), width: 3, blocks: 1, classes: tiny::CLASSES };
    bundle.classifier_config = ClassifierConfig::ResNet(network);
    bundle.classifier = tiny::shaken(bundle.classifier_config.initialize(1).expect("a model"), 1);
    let config = AdaptConfig { trainable: TrainablePart::Last, ..tiny::config() };
    let is_of_domains = |name: &&String| name.starts_with("domains.") || name.ends_with("_means") || name.ends_with("_variances");
    let statistics: Vec<String> = bundle.classifier.keys().filter(is_of_domains).cloned().collect();
    let followed = moved(&bundle, 1, &config);
    assert!(statistics.iter().all(|name| followed.contains(name)), "{followed:?}");
    let held = moved(&bundle, 1, &AdaptConfig { norm_pace: 0.0, ..config.clone() });
    assert!(!statistics.iter().any(|name| held.contains(name)), "{held:?}");

    let source = source_state(&bundle.classifier, WeightsVersion(0));
    let mut adapter = Adapter::new(&bundle, &config, &source).expect("an adapter");
    let first = learned(&mut adapter, 1);
    let mut restarted = Adapter::new(&bundle, &config, &first).expect("an adapter");
    let (went_on, began_again) = (learned(&mut adapter, 1), learned(&mut restarted, 1));
    assert!(undrift::model::parameters::are_equal(&went_on.weights, &began_again.weights).expect("tensors"));
}

#[test]
fn every_trainable_parameter_moves_and_no_frozen_one_does() {
    let all: Vec<String> = tiny::bundle(1, ClassConditioning::Readout).classifier.keys().cloned().collect();
    for part in [TrainablePart::All, TrainablePart::Norms, TrainablePart::Last] {
        for objective in [ObjectiveKind::Posterior, ObjectiveKind::Score, ObjectiveKind::Condition] {
            for (channels, conditioning) in [(1, ClassConditioning::Readout), (3, ClassConditioning::AdaLn)] {
                let config = AdaptConfig { trainable: part, objective, anchor_pull: 0.0, ..tiny::config() };
                let expected: Vec<String> = all.iter().filter(|name| part.contains(name)).cloned().collect();
                assert_eq!(
                    moved(&tiny::bundle(channels, conditioning), channels, &config),
                    expected,
                    "{part:?} {objective:?} {conditioning:?}"
                );
            }
        }
    }
}

#[test]
fn steps_on_sure_answers_make_them_surer_without_the_judge() {
    let of_entropy = EntropyConfig { weight: 1.0, margin: 1.0, cosine_max: 1.0 };
    let gate = GateConfig { margin: 1.0, home_entropy_max: 0.0, ..tiny::config().gate };
    let optimizer = OptimizerConfig::Sgd { momentum: 0.0 };
    let config = AdaptConfig { entropy: of_entropy, gate, optimizer, learning_rate: 1e-3, anchor_pull: 0.0, lag: 1, ..tiny::config() };
    let mut bundle = tiny::bundle(1, ClassConditioning::Readout);
    bundle.statistics.judge_accuracy = 0.0;
    let (frames, mut judgement) = (window(1), Judgement::default());
    for weight in [1.0, 0.0] {
        let config = AdaptConfig { entropy: EntropyConfig { weight, ..of_entropy }, ..config.clone() };
        let mut adapter = Adapter::new(&bundle, &config, &source_state(&bundle.classifier, WeightsVersion(0))).expect("an adapter");
        adapter.judge_into(&mut judgement, &frames);
        let mut step = || {
            let outcome = adapter.learn(&frames, &judgement.verdicts).expect("a window");
            assert_eq!(matches!(outcome, Outcome::Learned(_)), weight > 0.0, "{outcome:?}");
            let learned = FrozenClassifier::new(&bundle.classifier_config, &adapter.state().expect("a state").weights).expect("a model");
            let entropy_of = |frame: &WindowFrame| entropy_of(&learned.logits(&frame.views).expect("logits")[0]);
            frames.iter().map(entropy_of).sum::<f64>()
        };
        let entropies = [(); 4].map(|()| step());
        let falls = entropies.windows(2).all(|pair| pair[1] < pair[0]);
        let stands = entropies.windows(2).all(|pair| pair[1] == pair[0]);
        assert!(if weight > 0.0 { falls } else { stands }, "{entropies:?}");
    }
}

/// Nats.
fn entropy_of(logits: &[f64]) -> f64 {
    entropy(softmax(logits))
}

#[test]
fn the_condition_reaches_the_logits_through_either_kind_of_diffusion_model() {
    // The gradient by the mixture's probabilities, against finite differences through the whole model.
    for conditioning in [ClassConditioning::Readout, ClassConditioning::AdaLn] {
        let bundle = tiny::bundle(1, conditioning);
        let model = Dit::load(&bundle.diffusion_config, &Parameters::frozen(bundle.diffusion)).expect("a model");
        let x_t = random(3, &[2 * 64]).to_vec1::<f32>().expect("a vector");
        let timesteps = [undrift::diffusion::Timestep(10), undrift::diffusion::Timestep(50)];
        let logits = random(4, &[1, tiny::CLASSES]);
        assert_gradients("mixture", &[logits], |a| {
            let probabilities = candle_nn::ops::softmax(&a[0], 1)?;
            model.pred_noise_of_mixture(&x_t, &timesteps, &probabilities)
        });
    }
}

#[test]
fn mixing_conditions_and_mixing_predictions_agree_where_classes_enter_at_the_readout() {
    let bundle = tiny::bundle(1, ClassConditioning::Readout);
    let model = Dit::load(&bundle.diffusion_config, &Parameters::frozen(bundle.diffusion)).expect("a model");
    let x_t = random(3, &[64]).to_vec1::<f32>().expect("a vector");
    let timesteps = [undrift::diffusion::Timestep(10)];
    let p = [0.2f32, 0.5, 0.3];
    let mixed = model.pred_noise_of_mixture(&x_t, &timesteps, &Tensor::new(&[p], &Device::Cpu).expect("a row")).expect("a pass");
    let all = model.pred_noise_of_classes(&x_t, &timesteps).expect("a pass").flatten_all().and_then(|t| t.to_vec1::<f32>());
    let (mixed, all) = (mixed.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("values"), all.expect("values"));
    for (token, mixed) in mixed.chunks_exact(16).enumerate() {
        for (i, &mixed) in mixed.iter().enumerate() {
            let expected: f32 = (0..3).map(|k| p[k] * all[token * 48 + k * 16 + i]).sum();
            assert!((mixed - expected).abs() < 1e-5, "token {token}, value {i}: {mixed} against {expected}");
        }
    }
}

#[test]
fn gradients_do_not_depend_on_how_a_window_is_cut() {
    // Twelve images make two shards; each image's gradient alone, added up, must be the window's.
    let bundle = tiny::bundle(1, ClassConditioning::Readout);
    let classifier = Classifier::trainable(&bundle.classifier_config, &bundle.classifier, TrainablePart::All).expect("a model");
    let images = random(7, &[12 * 64]).to_vec1::<f32>().expect("a vector");
    let rows: Vec<Vec<f64>> = (0..12).map(|i| vec![0.1 * f64::from(i), -0.2, 0.3]).collect();
    let of = |images: &[f32], rows: &[Vec<f64>]| {
        let forward = classifier.forward(images).expect("a pass");
        classifier.gradients(&forward, rows).expect("gradients")
    };
    let whole = of(&images, &rows);
    let mut sum = undrift::model::Gradients::new();
    for (image, row) in images.chunks_exact(64).zip(rows.chunks(1)) {
        undrift::learner::accumulate(&mut sum, &of(image, row));
    }
    for (name, whole) in &whole {
        let scale = whole.iter().map(|g| g.abs()).fold(1e-6, f32::max);
        for (a, b) in whole.iter().zip(&sum[name]) {
            // Sums of 12 terms of f32 in another order.
            assert!((a - b).abs() <= 1e-5 * scale, "{name}: {a} against {b}");
        }
    }
}

#[test]
fn every_trainable_part_of_the_residual_network_gets_a_gradient_that_its_differences_confirm() {
    let image = ImageShape { channels: 1, height: 8, width: 8 };
    let config = ClassifierConfig::ResNet(ResNetConfig { image, width: 3, blocks: 1, classes: 3 });
    let own_share = |share: f32| Tensor::new(&[share], &Device::Cpu).expect("a tensor");
    // Statistics that are shaken would be none.
    let (statistics, weights): (Tensors, Tensors) =
        config.initialize(1).expect("a model").into_iter().partition(|(name, _)| name.contains("running_"));
    let weights: Tensors = tiny::shaken(weights, 1).into_iter().chain(statistics).collect();
    let images = random(7, &[3 * 64]).to_vec1::<f32>().expect("a vector");
    let rows: Vec<Vec<f64>> = (0..3).map(|i| vec![0.5 + f64::from(i), -0.7, 0.3]).collect();
    let loss = |weights: &Tensors| -> f64 {
        let logits = FrozenClassifier::new(&config, weights).and_then(|c| c.logits(&images)).expect("a pass");
        logits.iter().flatten().zip(rows.iter().flatten()).map(|(z, g)| z * g).sum()
    };
    let parts = [(TrainablePart::All, 9 * 4 + 2), (TrainablePart::Norms, 9 * 2), (TrainablePart::Last, 2)];
    for ((part, parameters), share) in parts.into_iter().flat_map(|part| [(part, 0.0), (part, 0.3)]) {
        let weights: Tensors = weights.clone().into_iter().chain([("domains.running_own_share".to_owned(), own_share(share))]).collect();
        let classifier = Classifier::trainable(&config, &weights, part).expect("a model");
        let forward = classifier.forward(&images).expect("a pass");
        let gradients = classifier.gradients(&forward, &rows).expect("no gradient is cut");
        assert_eq!(gradients.len(), parameters, "{part:?}");
        for (name, gradient) in &gradients {
            // Along the gradient the loss rises by its squared norm; a small step, as ReLU has corners.
            let squared: f64 = gradient.iter().map(|&g| f64::from(g).powi(2)).sum();
            let step = 1e-3 / squared.sqrt().max(1e-9);
            let moved = |by: f64| {
                let mut moved = weights.clone();
                let direction = Tensor::from_slice(gradient, weights[name].shape(), &Device::Cpu).expect("a tensor");
                let tensor = (&weights[name] + (direction * by).expect("a tensor")).expect("a tensor");
                moved.insert(name.clone(), tensor);
                loss(&moved)
            };
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            assert!((slope - squared).abs() <= 0.01 * squared, "{name}, share {share}: {squared} against {slope}");
        }
    }
}
