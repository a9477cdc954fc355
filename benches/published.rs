//! Whole adaptation against the published algorithm: frames a second, and accuracy on the same frames.
//!
//! `make bench`, or `cargo bench --bench published -- PYTHON FRAMES` with an interpreter that has torch and numpy, both optional;
//! `RAYON_NUM_THREADS` says how many threads each side has.
//!
//! The published algorithm is Diffusion-TTA (arXiv 2311.16102): for each frame five steps, in each 180 draws of timestep and noise,
//! the denoising loss under the condition that the classifier's probabilities make, its gradient back into the classifier, one step
//! of SGD; then the answer. It runs in PyTorch eager on the shipped weights, in two ways. The shipped diffusion model takes
//! classes at its readout: there the gradient needs no more than a forward pass for each draw and the backward pass of the readout,
//! and that is all that PyTorch is asked for; so it does in our own faithful mode (`diffusion-tta` of `undrift eval`). The
//! published model takes them at each block (adaLN): there the gradient goes back through all of them. That is the published
//! work, on a model of the same sizes and weights with random class embeddings, so that its answers mean nothing.
//! Before anything is timed, probabilities, predicted noises and gradients must be ours, both ways.
//!
//! A frame of ours is what `Session` does for it: its answer (source, adapted classifier, judge), and its share of a window's
//! adaptation. Sides work by turns, in five rounds, on the frames of the stream `continual`; those in PyTorch take one frame a round, as a
//! frame costs them seconds and the same whatever it shows. Every side is online: it goes on with what it has learned. The table
//! has medians and least times over windows, each by frame: the first window of a round finds caches and pages of other sides, which
//! doubles its time and leaves the median alone.

mod beside;

use beside::{Torch, assert_alike, figure, read_floats, write_floats};
use candle_core::{Tensor, Var};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use undrift::bundle::Bundle;
use undrift::config::Config;
use undrift::diffusion::{Schedule, Timestep, stretch};
use undrift::frame::{ClassIndex, Frame};
use undrift::kernels;
use undrift::lab::corruptions::{Severity, Table};
use undrift::lab::dataset::{self, Split};
use undrift::lab::evaluate::Session;
use undrift::lab::methods::published;
use undrift::lab::streams::{Plan, Playback, Request, Stream};
use undrift::learner::objective::{argmax, softmax};
use undrift::learner::{AdaptConfig, FrozenClassifier};
use undrift::model::{ClassConditioning, ClassifierConfig, Dit, DitConfig, Parameters, Tensors};
use undrift::noise::NoiseKey;
use undrift::shell::bundle_reader::read_bundle;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Two windows of eight for each of the fifteen corruptions.
const FRAMES: usize = 240;
const ROUNDS: usize = 5;
const SEED: u64 = 1;
/// Rest before a side works, in which threads of the other sides stop to spin.
const REST: Duration = Duration::from_millis(20);
/// Of the comparison before the measurement.
const DRAWS: usize = 4;
const CONFIG: &str = "configs/fashion-mnist/undrift.toml";
const DATA: &str = "/usr/share/datasets/fashion-mnist";
const EMBEDDINGS: &str = "target/bench/class_embeddings.f32";
const VIEWS: &str = "target/bench/frames.f32";
const CHECKED_DRAWS: &str = "target/bench/draws.f32";
const CHECKED: &str = "target/bench/checked.f32";

fn main() {
    // Cargo adds --bench of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let python = arguments.first();
    let count = arguments.get(1).map_or(FRAMES, |count| count.parse().expect("a number of frames"));
    std::fs::create_dir_all("target/bench").expect("a directory target");
    let config = Config::load(Path::new(CONFIG), &[], std::iter::empty()).expect("the shipped configuration");
    let bundle = read_bundle(&config).expect("the shipped bundle");
    let frames = frames(count, bundle.classifier_config.image().height);
    let torch = python.map(|python| Mutex::new(prepared(python, &config, &bundle, &frames)));

    let mut sides = vec![
        Side::source(&bundle),
        Side::session("undrift", &bundle, &config.adapt),
        Side::session("published, our own", &bundle, &published(&config.adapt)),
    ];
    if let Some(torch) = &torch {
        sides.push(Side::torch("published, PyTorch", torch, "readout"));
        sides.push(Side::torch("published, PyTorch, through all blocks", torch, "blocks"));
    }
    compare(&mut sides, &frames, config.adapt.window);
    report(&sides, frames.len());
}

/// The first frames of `continual`, whose visits are as short as it needs to show all corruptions.
fn frames(count: usize, side: usize) -> Vec<Frame> {
    let images = dataset::load(Path::new(DATA), Split::Test).expect("the data set");
    let severity = Severity::try_from(5).expect("1 to 5");
    let request = Request { frames: count, severity, seed: SEED, visits: 1, walk: None };
    let plan = Plan::new(Stream::Continual, &request, &images).expect("a plan");
    let frames = Playback { plan: &plan, images: &images, table: Table::Tiny, side }.frames();
    frames.zip(0..).map(|(frame, index)| frame.into_frame(index)).collect()
}

/// Says for each frame whether the answer was right.
type Answer<'a> = Box<dyn FnMut(&[Frame]) -> Vec<bool> + 'a>;

/// A method at work on the stream.
struct Side<'a> {
    name: &'a str,
    /// Most that it takes of a round.
    frames_max: usize,
    answer: Answer<'a>,
    hits: Vec<bool>,
    /// A frame's, one value for each window.
    seconds: Vec<f64>,
}

impl<'a> Side<'a> {
    fn new(name: &'a str, frames_max: usize, answer: impl FnMut(&[Frame]) -> Vec<bool> + 'a) -> Self {
        Self { name, frames_max, answer: Box::new(answer), hits: Vec::new(), seconds: Vec::new() }
    }

    fn source(bundle: &Bundle) -> Self {
        let classifier = FrozenClassifier::new(&bundle.classifier_config, &bundle.classifier).expect("the shipped classifier");
        let label = move |frame: &Frame| argmax(&classifier.logits(&frame.image.planes()).expect("a pass")[0]);
        Self::new("source, never adapted", usize::MAX, move |frames| frames.iter().map(|frame| is_right(frame, label(frame))).collect())
    }

    fn session(name: &'a str, bundle: &Bundle, config: &AdaptConfig) -> Self {
        let mut session = Session::new(bundle, config, SEED).expect("a session");
        Self::new(name, usize::MAX, move |frames| {
            let steps = frames.iter().map(|frame| session.frame(frame.clone()).expect("an answer"));
            let predictions: Vec<_> = steps.flat_map(|step| step.predictions).collect();
            // One for each frame: either mode answers before the next comes.
            frames.iter().zip(&predictions).map(|(frame, prediction)| is_right(frame, prediction.label.index())).collect()
        })
    }

    /// `command` of benches/published.py.
    fn torch(name: &'a str, torch: &'a Mutex<Torch>, command: &'a str) -> Self {
        Self::new(name, 1, move |frames| {
            let answer = |frame: &Frame| torch.lock().ask(&format!("{command} {}", frame.sequence.0 - 1));
            let label = |answer: String| answer.split(' ').nth(1).and_then(|label| label.parse().ok()).expect("a label");
            frames.iter().map(|frame| is_right(frame, label(answer(frame)))).collect()
        })
    }

    fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    fn least(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// Where it has answered all `frames`.
    fn accuracy(&self, frames: usize) -> Option<f64> {
        let right = self.hits.iter().filter(|&&is_right| is_right).count();
        (self.hits.len() == frames).then(|| right as f64 / frames as f64)
    }
}

/// Every side, a round after the other.
fn compare(sides: &mut [Side], frames: &[Frame], window: usize) {
    for round in frames.chunks(frames.len().div_ceil(ROUNDS).next_multiple_of(window)) {
        for side in &mut *sides {
            std::thread::sleep(REST);
            for frames in round[..side.frames_max.min(round.len())].chunks(window) {
                let started = Instant::now();
                side.hits.extend((side.answer)(frames));
                side.seconds.push(started.elapsed().as_secs_f64() / frames.len() as f64);
            }
        }
    }
}

fn report(sides: &[Side], frames: usize) {
    let [_, ours, faithful, ..] = sides else { panic!("the source, ours and our own published algorithm are always there") };
    println!("{} thread(s), {frames} frames of continual, seed {SEED}", rayon::current_num_threads());
    println!("{:<40} {:>10} {:>10} {:>9} {:>9} {:>9}", "", "median ms", "least ms", "frames/s", "ours over", "accuracy");
    for side in sides {
        let (median, ratio) = (side.median(), side.median() / ours.median());
        let accuracy = side.accuracy(frames).map_or("-".to_owned(), percent);
        let (median_ms, least_ms) = (median * 1e3, side.least() * 1e3);
        println!("{:<40} {median_ms:>10.2} {least_ms:>10.2} {:>9.3} {ratio:>9.1} {accuracy:>9}", side.name, 1.0 / median);
    }
    let rate = |side: &Side| format!("{:.3} frames/s", 1.0 / side.median());
    for side in &sides[2..] {
        figure(&format!("adaptation against {}", side.name), &rate(ours), &rate(side), &format!("{:.0}", side.median() / ours.median()));
    }
    let accuracy = |side: &Side| side.accuracy(frames).unwrap_or(f64::NAN);
    let gain = format!("{:+.1} points", 100.0 * (accuracy(ours) - accuracy(faithful)));
    figure("accuracy there against the published algorithm", &percent(accuracy(ours)), &percent(accuracy(faithful)), &gain);
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn is_right(frame: &Frame, label: usize) -> bool {
    frame.label.map(ClassIndex::index) == Some(label)
}

/// As the diffusion model sees it, (C, H, W).
fn x_start(frame: &Frame) -> Vec<f32> {
    let mut planes = frame.image.planes();
    stretch(&mut planes);
    planes
}

/// PyTorch with weights and frames; what it computes is what we compute.
fn prepared(python: &str, config: &Config, bundle: &Bundle, frames: &[Frame]) -> Torch {
    let ClassifierConfig::Vit(vit) = &bundle.classifier_config else { panic!("the shipped classifier is a vision transformer") };
    let (files, trunk) = (&config.bundle.files, &bundle.diffusion_config.trunk);
    let views: Vec<f32> = frames.iter().flat_map(|frame| [frame.image.planes(), x_start(frame)].concat()).collect();
    let embeddings = class_embeddings(&bundle.diffusion_config);
    write_floats(VIEWS, &views);
    write_floats(EMBEDDINGS, &embeddings);
    let mut torch = Torch::start(python, "benches/published.py");
    torch.ask(&format!("threads {}", rayon::current_num_threads()));
    let (classifier, diffusion) = (files.classifier.display(), files.diffusion.display());
    torch.ask(&format!("load {classifier} {} {diffusion} {} {EMBEDDINGS} {VIEWS}", vit.trunk.heads, trunk.heads));
    check(&mut torch, bundle, &frames[0], embeddings);
    torch
}

/// Of random values, as large as those that training of an adaLN model starts from: (K, D).
fn class_embeddings(config: &DitConfig) -> Vec<f32> {
    let mut embeddings = vec![0f32; config.classes * config.trunk.hidden];
    NoiseKey::from_seed(SEED, "bench", 0).fill_normal(0, &mut embeddings);
    embeddings.iter().map(|value| 0.02 * value).collect()
}

/// Asserts that probabilities, predicted noises and gradients of PyTorch are ours.
fn check(torch: &mut Torch, bundle: &Bundle, frame: &Frame, embeddings: Vec<f32>) {
    let config = &bundle.diffusion_config;
    let elements = config.trunk.image.elements();
    let timesteps: Vec<Timestep> = (0u32..).map(|draw| Timestep(37 + 200 * draw)).take(DRAWS).collect();
    let (mut noise, mut x_t) = (vec![0f32; DRAWS * elements], vec![0f32; DRAWS * elements]);
    NoiseKey::from_seed(SEED, "bench", 1).fill_normal(0, &mut noise);
    let schedule = Schedule::linear(config.num_timesteps);
    for ((noise, x_t), timestep) in noise.chunks_exact(elements).zip(x_t.chunks_exact_mut(elements)).zip(&timesteps) {
        schedule.q_sample(&x_start(frame), *timestep, noise, x_t);
    }
    write_floats(CHECKED_DRAWS, &[x_t.as_slice(), &noise].concat());
    let list: Vec<String> = timesteps.iter().map(|timestep| timestep.0.to_string()).collect();
    torch.ask(&format!("check {CHECKED_DRAWS} {CHECKED} {}", list.join(" ")));
    let theirs = read_floats(CHECKED);

    let classifier = FrozenClassifier::new(&bundle.classifier_config, &bundle.classifier).expect("the shipped classifier");
    let probabilities: Vec<f32> =
        softmax(&classifier.logits(&frame.image.planes()).expect("a pass")[0]).iter().map(|&p| p as f32).collect();
    let (of_frame, theirs) = theirs.split_at(config.classes);
    assert_alike("probabilities", &probabilities, of_frame);
    let ways = [("readout", *config, bundle.diffusion.clone()), ("blocks", of_blocks(config), at_blocks(bundle, embeddings))];
    for ((way, config, tensors), theirs) in ways.into_iter().zip(theirs.chunks_exact(DRAWS * elements + config.classes)) {
        let model = Dit::load(&config, &Parameters::frozen(tensors)).expect("a diffusion model");
        let (pred_noise, gradient) = loss_gradient(&model, &x_t, &noise, &timesteps, &probabilities).expect("a pass");
        let (of_pass, of_backward) = theirs.split_at(pred_noise.len());
        assert_alike(&format!("predicted noise, condition at the {way}"), &pred_noise, of_pass);
        assert_alike(&format!("gradient, condition at the {way}"), &gradient, of_backward);
    }
}

fn of_blocks(config: &DitConfig) -> DitConfig {
    DitConfig { conditioning: ClassConditioning::AdaLn, ..*config }
}

/// The shipped diffusion model with its condition at the blocks, and the readout of its first class.
fn at_blocks(bundle: &Bundle, embeddings: Vec<f32>) -> Tensors {
    let (config, mut tensors) = (&bundle.diffusion_config, bundle.diffusion.clone());
    for name in ["readout.weight", "readout.bias"] {
        let one_class = tensors[name].narrow(0, 0, config.trunk.patch_elements()).and_then(|rows| rows.copy());
        tensors.insert(name.to_owned(), one_class.expect("the first rows"));
    }
    let shape = (config.classes, config.trunk.hidden);
    let embeddings = Tensor::from_vec(embeddings, shape, &candle_core::Device::Cpu).expect("a value for each");
    tensors.insert("class_embeddings".to_owned(), embeddings);
    tensors
}

/// Predicted noise (N, T, P) under the mixture of `probabilities`, and the gradient of the denoising loss by them.
fn loss_gradient(
    model: &Dit,
    x_t: &[f32],
    noise: &[f32],
    timesteps: &[Timestep],
    probabilities: &[f32],
) -> candle_core::Result<(Vec<f32>, Vec<f32>)> {
    let condition = Var::from_slice(probabilities, (1, probabilities.len()), &candle_core::Device::Cpu)?;
    let pred_noise = model.pred_noise_of_mixture(x_t, timesteps, &condition)?; // (N, T, P)
    let loss = kernels::class_errors(&pred_noise, Arc::new(model.config().trunk.patches(noise)), 1)?.mean_all()?;
    let gradient = loss.backward()?.remove(&condition).expect("the condition counts");
    Ok((pred_noise.flatten_all()?.to_vec1()?, gradient.flatten_all()?.to_vec1()?))
}
