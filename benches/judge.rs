//! The judge against PyTorch, on the shipped weights and the same inputs, and against the rate of a large matrix product; the
//! classifier that answers against the same model with tensors, and the one that learns, forward and backward, against PyTorch.
//!
//! `make bench`, or `cargo bench --bench judge -- PYTHON` with an interpreter that has torch and numpy. In each round every side
//! works once, so that what else the machine does meets all alike; the table has medians, and minimums beside them.

mod beside;
mod operations;

use beside::{Torch, assert_alike, figure, read_floats, write_floats};
use operations::{forward, forward_and_backward};
use parking_lot::Mutex;
use rayon::prelude::*;
use std::path::Path;
use std::time::{Duration, Instant};
use undrift::bundle::Bundle;
use undrift::config::Config;
use undrift::diffusion::{Schedule, Timestep};
use undrift::kernels::{self, Matrix, Write};
use undrift::learner::{Classifier, Forward, FrozenClassifier, Judge, TrainablePart};
use undrift::model::parameters::read;
use undrift::model::{ClassifierConfig, Dit, DitConfig, DitWorkspace, Gradients, InferenceDit, NormStatistics, Parameters, Vit, VitConfig};
use undrift::noise::NoiseKey;
use undrift::shell::bundle_reader::read_bundle;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 40;
const WARM_UP: usize = 3;
/// Rest before a side works, in which threads of the other sides stop to spin.
const REST: Duration = Duration::from_millis(3);
/// Side of the matrix product.
const CUBE: usize = 2048;
/// Draws that a thread takes at a time: one takes no longer than to wake a thread for it.
const DRAWS_EACH: usize = 16;
const SCRIPT: &str = "benches/judge.py";
const CONFIG: &str = "configs/fashion-mnist/undrift.toml";
const WEIGHTS: &str = "configs/fashion-mnist/diffusion.safetensors";
const PRODUCT: &str = "gemm, 2048 x 2048 x 2048";
const CLASSIFIER_WEIGHTS: &str = "configs/fashion-mnist/classifier.safetensors";
const INPUT: &str = "target/bench-x_t.f32";
const IMAGES: &str = "target/bench-images.f32";
const OUTPUT: &str = "target/bench-pred_noise.f32";

/// One side of a comparison.
struct Side<'a> {
    name: &'a str,
    /// Multiplications and additions of its matrix products.
    operations: f64,
    /// Gives the seconds that it worked.
    work: Box<dyn FnMut() -> f64 + 'a>,
}

impl<'a> Side<'a> {
    fn timed(name: &'a str, operations: f64, mut work: impl FnMut() + 'a) -> Self {
        let work = Box::new(move || {
            let started = Instant::now();
            work();
            started.elapsed().as_secs_f64()
        });
        Self { name, operations, work }
    }

    /// `command` of benches/judge.py.
    fn torch(name: &'a str, operations: f64, torch: &'a Mutex<Torch>, command: &'a str) -> Self {
        Self { name, operations, work: Box::new(move || torch.lock().ask(command).parse().expect("seconds")) }
    }
}

/// Lets all sides work in turns, and prints a line for each: its times, as multiples of the first's, and its rate, of that of the last.
/// Then the first is held against those of PyTorch, and against the rate of a large product.
fn compare(title: &str, mut sides: Vec<Side>) {
    let mut times = vec![Vec::new(); sides.len()];
    for round in 0..ROUNDS + WARM_UP {
        for (side, times) in sides.iter_mut().zip(&mut times) {
            std::thread::sleep(REST);
            let seconds = (side.work)();
            if round >= WARM_UP {
                times.push(seconds);
            }
        }
    }
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    let (median, least) = (|times: &[f64]| times[times.len() / 2], |times: &[f64]| times[0]);
    println!("{title:<44} {:>10} {:>10} {:>7} {:>7} {:>8} {:>7}", "median ms", "least ms", "ratio", "least", "GFLOP/s", "of last");
    let last = sides.last().zip(times.last()).map_or(0.0, |(side, times)| side.operations / median(times));
    for (side, of_side) in sides.iter().zip(&times) {
        let (median_ms, least_ms) = (median(of_side) * 1e3, least(of_side) * 1e3);
        let (ratio, of_least) = (median(of_side) / median(&times[0]), least(of_side) / least(&times[0]));
        print!("  {:<42} {median_ms:>10.3} {least_ms:>10.3} {ratio:>7.2} {of_least:>7.2}", side.name);
        match side.operations / median(of_side) {
            0.0 => println!(),
            rate => println!(" {:>8.1} {:>5.0} %", rate / 1e9, 100.0 * rate / last),
        }
    }
    let milliseconds = |times: &[f64]| format!("{:.3} ms", median(times) * 1e3);
    let name = |against: &str| format!("{}: {} against {against}", title.trim(), sides[0].name);
    for (side, of_side) in sides.iter().zip(&times).filter(|(side, _)| side.name.starts_with("PyTorch")) {
        let ratio = format!("{:.2}", median(of_side) / median(&times[0]));
        figure(&name(side.name), &milliseconds(&times[0]), &milliseconds(of_side), &ratio);
    }
    if sides.last().is_some_and(|side| side.name == PRODUCT) {
        let rate = sides[0].operations / median(&times[0]);
        let gigaflops = |rate: f64| format!("{:.1} GFLOP/s", rate / 1e9);
        figure(&name(PRODUCT), &gigaflops(rate), &gigaflops(last), &format!("{:.0} %", 100.0 * rate / last));
    }
}

/// What all sides work on: the shipped diffusion model, and noised images.
struct Subject {
    judge: Judge,
    inference: InferenceDit,
    workspaces: Mutex<Vec<DitWorkspace>>,
    config: DitConfig,
    schedule: Schedule,
    keys: Vec<NoiseKey>,
    timesteps: Vec<Timestep>,
}

impl Subject {
    fn load(frames: u64) -> Self {
        let config = Config::load(Path::new(CONFIG), &[], std::iter::empty()).expect("the shipped configuration");
        let bundle = read_bundle(&config).expect("the shipped bundle");
        let parameters = Parameters::frozen(bundle.diffusion.clone());
        Self {
            judge: Judge::of(&bundle, &config.adapt).expect("the shipped judge"),
            inference: InferenceDit::load(&bundle.diffusion_config, &parameters).expect("the shipped judge"),
            workspaces: Mutex::default(),
            config: bundle.diffusion_config,
            schedule: Schedule::linear(bundle.diffusion_config.num_timesteps),
            keys: (0..frames).map(|frame| NoiseKey::from_seed(1, "bench", frame)).collect(),
            timesteps: config.adapt.timesteps.iter().map(|&timestep| Timestep(timestep)).collect(),
        }
    }

    fn elements(&self) -> usize {
        self.config.trunk.image.elements()
    }

    /// Timestep of each draw of each frame.
    fn draws(&self) -> Vec<Timestep> {
        self.keys.iter().flat_map(|_| self.timesteps.iter().copied()).collect()
    }

    /// Images (N, C, H, W), here of noise.
    fn images(&self) -> Vec<f32> {
        let mut images = vec![0f32; self.keys.len() * self.elements()];
        images.chunks_exact_mut(self.elements()).zip(&self.keys).for_each(|(image, key)| key.fill_normal(u32::MAX, image));
        images
    }

    fn sample(&self, images: &[f32], noise: &mut [f32], x_t: &mut [f32]) {
        let elements = self.elements();
        let draws = noise.par_chunks_exact_mut(elements).zip(x_t.par_chunks_exact_mut(elements)).enumerate();
        draws.with_min_len(DRAWS_EACH).for_each(|(index, (noise, x_t))| {
            let (n, draw) = (index / self.timesteps.len(), index % self.timesteps.len());
            let (key, image) = (self.keys[n], &images[n * elements..(n + 1) * elements]);
            self.schedule.sample(key, u32::try_from(draw).expect("few draws"), self.timesteps[draw], image, noise, x_t);
        });
    }

    /// Predicted noise of each draw, read by `read`.
    fn forward(&self, x_t: &[f32], timesteps: &[Timestep], read: impl Fn(usize, &[f32]) + Sync) {
        let images = x_t.par_chunks_exact(self.elements()).zip(timesteps).enumerate().with_max_len(1);
        images.for_each(|(index, (x_t, &timestep))| {
            let mut workspace = self.workspaces.lock().pop().unwrap_or_else(|| DitWorkspace::new(&self.config));
            read(index, self.inference.pred_noise_of_classes(x_t, timestep, &mut workspace));
            self.workspaces.lock().push(workspace);
        });
    }
}

fn main() {
    // Cargo adds --bench of its own.
    let python = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| compare_classifiers(threads));
        pool.install(|| compare_learning(threads, python.as_deref()));
        pool.install(|| compare_all(threads, python.as_deref()));
    }
}

/// The shipped classifier on the two views of a frame, and on those of a window.
fn compare_classifiers(threads: usize) {
    let (bundle, vit) = shipped_classifier();
    let classifier = FrozenClassifier::new(&bundle.classifier_config, &bundle.classifier).expect("the shipped classifier");
    let tensors = Vit::load(&vit, &Parameters::frozen(bundle.classifier)).expect("the shipped classifier");
    for views in [2, 16] {
        let mut images = vec![0f32; views * vit.trunk.image.elements()];
        NoiseKey::from_seed(1, "bench", 0).fill_normal(u32::MAX, &mut images);
        let with_tensors = || drop(tensors.features(&images).and_then(|features| tensors.head(&features)).expect("a pass"));
        let total = views as f64 * forward(&vit.trunk, 0);
        let sides = vec![
            Side::timed("forward", total, || drop(classifier.logits(&images).expect("a pass"))),
            Side::timed("forward with tensors", total, with_tensors),
        ];
        compare(&format!("\n{threads} thread(s), classifier, {views} views"), sides);
    }
}

fn shipped_classifier() -> (Bundle, VitConfig) {
    let config = Config::load(Path::new(CONFIG), &[], std::iter::empty()).expect("the shipped configuration");
    let bundle = read_bundle(&config).expect("the shipped bundle");
    let ClassifierConfig::Vit(vit) = bundle.classifier_config else { panic!("the shipped classifier is a vision transformer") };
    (bundle, vit)
}

/// The shipped classifier forward and backward, all weights learning, on a window of 16.
fn compare_learning(threads: usize, python: Option<&str>) {
    const WINDOW: usize = 16;
    let (bundle, vit) = shipped_classifier();
    let mut images = vec![0f32; WINDOW * vit.trunk.image.elements()];
    NoiseKey::from_seed(1, "bench", 0).fill_normal(u32::MAX, &mut images);
    let classifier = Classifier::trainable(&bundle.classifier_config, &bundle.classifier, TrainablePart::All).expect("the classifier");
    let parameters = classifier.parameters();
    let model = Vit::load(&vit, parameters).expect("the shipped classifier");
    // The gradient of the sum of all logits.
    let rows = vec![vec![1.0; vit.classes]; WINDOW];
    let (mut pass, mut gradients) = (Forward::default(), Gradients::new());
    let mut learn = || {
        classifier.forward_into(&mut pass, &images, NormStatistics::Running).expect("a pass");
        classifier.gradients_into(&mut gradients, &pass, &rows).expect("gradients");
    };
    let with_tensors = || {
        let logits = model.features(&images).and_then(|features| model.head(&features)).expect("a pass");
        drop(logits.sum_all().and_then(|sum| sum.backward()).expect("a backward pass"));
    };
    learn();
    let torch = python.map(|python| Mutex::new(learning_torch(python, threads, &vit, &images)));
    if let Some(torch) = &torch {
        torch.lock().ask(&format!("write_gradients {OUTPUT}"));
        let mut theirs = &read_floats(OUTPUT)[..];
        for (name, ours) in &gradients_of(&classifier, &images, &rows) {
            let (of_parameter, rest) = theirs.split_at(ours.len());
            assert_alike(name, ours, of_parameter);
            theirs = rest;
        }
    }
    let total = WINDOW as f64 * forward_and_backward(&vit.trunk);
    let mut sides = vec![Side::timed("forward and backward", total, learn), Side::timed("with tensors", total, with_tensors)];
    sides.extend(torch.iter().map(|torch| Side::torch("PyTorch eager", total, torch, "learn")));
    compare(&format!("\n{threads} thread(s), classifier, window of {WINDOW}"), sides);
}

/// By name.
fn gradients_of(classifier: &Classifier, images: &[f32], rows: &[Vec<f64>]) -> Gradients {
    let forward = classifier.forward(images).expect("a pass");
    classifier.gradients(&forward, rows).expect("gradients")
}

/// PyTorch with the shipped classifier and `images`.
fn learning_torch(python: &str, threads: usize, vit: &VitConfig, images: &[f32]) -> Torch {
    write_floats(IMAGES, images);
    let mut torch = Torch::start(python, SCRIPT);
    torch.ask(&format!("threads {threads}"));
    torch.ask(&format!("load_classifier {CLASSIFIER_WEIGHTS} {} {IMAGES}", vit.trunk.heads));
    torch
}

fn compare_all(threads: usize, python: Option<&str>) {
    let (left, right, mut cube) = (vec![0.5f32; CUBE * CUBE], vec![0.25f32; CUBE * CUBE], vec![0f32; CUBE * CUBE]);
    for frames in [1, 8] {
        let subject = Subject::load(frames);
        let (images, timesteps) = (subject.images(), subject.draws());
        let mut noise = vec![0f32; timesteps.len() * subject.elements()];
        let mut x_t = noise.clone();
        subject.sample(&images, &mut noise, &mut x_t);
        let torch = python.map(|python| Mutex::new(prepared(python, threads, &subject, &x_t)));
        let parameters = Parameters::frozen(read(&std::fs::read(WEIGHTS).expect("weights")).expect("weights"));
        let tensors = Dit::load(&subject.config, &parameters).expect("the shipped model");
        let total = timesteps.len() as f64 * forward(&subject.config.trunk, subject.config.outputs());
        let verdicts = || drop(subject.judge.verdicts(&images, &subject.keys, &subject.timesteps).expect("verdicts"));

        let mut sides = vec![
            Side::timed("forward", total, || subject.forward(&x_t, &timesteps, |_, _| ())),
            Side::timed("verdicts: noise, forward, G, h", total, verdicts),
            Side::timed("forward with tensors", total, || drop(tensors.pred_noise_of_classes(&x_t, &timesteps).expect("a pass"))),
        ];
        if let Some(torch) = &torch {
            sides.push(Side::torch("PyTorch eager", total, torch, "eager"));
            sides.push(Side::torch("PyTorch compiled", total, torch, "compiled"));
        }
        let product = || multiply(&mut cube, &left, &right, threads);
        sides.push(Side::timed(PRODUCT, 2.0 * (CUBE as f64).powi(3), product));
        compare(&format!("\n{threads} thread(s), {frames} frame(s), {} draws", timesteps.len()), sides);

        let mut sides = vec![Side::timed("noise sampling", 0.0, || subject.sample(&images, &mut noise, &mut x_t))];
        sides.extend(torch.iter().map(|torch| Side::torch("PyTorch randn and q_sample", 0.0, torch, "sampling")));
        compare(&format!("{threads} thread(s), {} draws", timesteps.len()), sides);
    }
}

/// One large product, a share of the rows for each thread.
fn multiply(into: &mut [f32], left: &[f32], right: &[f32], threads: usize) {
    let share = CUBE * CUBE / threads;
    into.par_chunks_mut(share).zip(left.par_chunks(share)).for_each(|(into, left)| {
        let (left, right) = (Matrix::rows_of(left, CUBE / threads, CUBE, CUBE), Matrix::rows_of(right, CUBE, CUBE, CUBE));
        kernels::matmul(into, CUBE, left, right, Write::Replace);
    });
}

/// PyTorch with the weights and inputs of `subject`; its predictions must be ours.
fn prepared(python: &str, threads: usize, subject: &Subject, x_t: &[f32]) -> Torch {
    let timesteps = subject.draws();
    write_floats(INPUT, x_t);
    let mut torch = Torch::start(python, SCRIPT);
    torch.ask(&format!("threads {threads}"));
    let list: Vec<String> = timesteps.iter().map(|timestep| timestep.0.to_string()).collect();
    torch.ask(&format!("load {WEIGHTS} {} {INPUT} {}", subject.config.trunk.heads, list.join(" ")));
    torch.ask(&format!("write {OUTPUT}"));
    let theirs = read_floats(OUTPUT);
    let each = theirs.len() / timesteps.len();
    subject.forward(x_t, &timesteps, |index, ours| {
        assert_alike(&format!("prediction {index}"), ours, &theirs[index * each..][..each]);
    });
    torch
}
