//! The CUDA kernels give the bits of the CPU: their source, compiled as C++, and a GPU where there is one.
//!
//! Each case has odd sizes, each run starts its buffers at another offset, and every element of every output is compared.
//! Without a C++ compiler (`CXX`, else `c++`) these tests fail.

use candle_core::{Device as TensorDevice, Tensor};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use undrift::diffusion::{Schedule, Timestep};
use undrift::kernels::launch::{Draw, GramSizes, Launch, NormSizes, SampleSizes};
use undrift::kernels::{self, GramTerms};
use undrift::model::{ImageShape, TrunkConfig};
use undrift::noise::NoiseKey;

const SEED: u64 = 4;
/// Values that the cases of one kernel have at least, together.
const ELEMENTS_MIN: usize = 10_000_000;

#[derive(Debug)]
enum Sizes {
    Sample(SampleSizes),
    Gram(GramSizes),
    Norm(NormSizes),
}

/// A kernel's inputs, and what the CPU makes of them.
struct Case {
    sizes: Sizes,
    draws: Vec<Draw>,
    /// In the order of the kernel's arguments, without the draws.
    inputs: Vec<Vec<f32>>,
    /// Bytes of each output.
    expected: Vec<Vec<u8>>,
}

impl Case {
    fn launch(&self) -> Launch {
        match self.sizes {
            Sizes::Sample(sizes) => Launch::q_sample(sizes),
            Sizes::Gram(sizes) => Launch::gram_terms(sizes),
            Sizes::Norm(sizes) => Launch::modulated_norm(sizes),
        }
        .expect("sizes within the limits")
    }
}

fn normal(purpose: &str, index: usize, count: usize) -> Vec<f32> {
    let mut values = vec![0f32; count];
    NoiseKey::from_seed(SEED, purpose, index as u64).fill_normal(0, &mut values);
    values
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &TensorDevice::Cpu).expect("as many values as the shape says")
}

/// `per_image` draws of each image, with their timesteps.
fn draws(images: usize, per_image: usize, schedule: &Schedule) -> (Vec<Draw>, Vec<Timestep>) {
    let draw = |n: usize| {
        let (image, number) = ((n / per_image) as u32, (n % per_image) as u32);
        let key = NoiseKey::from_seed(SEED, "draws", u64::from(image));
        let timestep = Timestep(key.uniform_below(number, schedule.num_timesteps()));
        let (signal, spread) = schedule.signal_and_spread(timestep);
        (Draw { key, number, image, signal, spread }, timestep)
    };
    (0..images * per_image).map(draw).unzip()
}

fn sample_case(images: usize, per_image: usize, elements: usize) -> Case {
    let schedule = Schedule::linear(1000);
    let (draws, timesteps) = draws(images, per_image, &schedule);
    let x_start = normal("x_start", elements, images * elements);
    let (mut noise, mut x_t) = (vec![0f32; elements], vec![0f32; draws.len() * elements]);
    for ((draw, &timestep), x_t) in draws.iter().zip(&timesteps).zip(x_t.chunks_exact_mut(elements)) {
        draw.key.fill_normal(draw.number, &mut noise);
        schedule.q_sample(&x_start[draw.image as usize * elements..][..elements], timestep, &noise, x_t);
    }
    let sizes = Sizes::Sample(SampleSizes { images, draws: draws.len(), elements });
    Case { sizes, draws, inputs: vec![x_start], expected: vec![bytes(&x_t)] }
}

fn sample_cases() -> Vec<Case> {
    [(1, 1, 1), (2, 3, 3), (3, 2, 385), (5, 7, 784), (4, 16, 3442), (2, 5, 1_000_003)].map(|(i, n, e)| sample_case(i, n, e)).into()
}

fn gram_case(per_image: usize, classes: usize, (channels, height, width): (usize, usize, usize), patch: usize) -> Case {
    let image = ImageShape { channels, height, width };
    let trunk = TrunkConfig { image, patch, patch_window: patch, hidden: 4, depth: 1, heads: 1, mlp_ratio: 1 };
    let (draws, _) = draws(2, per_image, &Schedule::linear(1000));
    let mut noise = vec![0f32; draws.len() * image.elements()];
    for (draw, noise) in draws.iter().zip(noise.chunks_exact_mut(image.elements())) {
        draw.key.fill_normal(draw.number, noise);
    }
    let pred_noise = normal("pred_noise", classes, draws.len() * classes * image.elements());
    let of_draw = pred_noise.chunks_exact(classes * image.elements()).zip(noise.chunks_exact(image.elements()));
    let terms = of_draw.map(|(e, noise)| kernels::gram_terms(e, &trunk.patches(noise), classes, trunk.patch_elements()));
    let terms: Vec<GramTerms> = terms.collect();
    let gram = terms.iter().flat_map(|terms| &terms.gram).flat_map(|value| value.to_le_bytes()).collect();
    let cross = terms.iter().flat_map(|terms| &terms.cross).flat_map(|value| value.to_le_bytes()).collect();
    let sizes = Sizes::Gram(GramSizes { draws: draws.len(), classes, channels, height, width, patch });
    Case { sizes, draws, inputs: vec![pred_noise], expected: vec![gram, cross] }
}

fn gram_cases() -> Vec<Case> {
    // The shipped bundle's sizes; patches that share no counter's edges; tiles of one token and of many; many blocks of pairs.
    vec![
        gram_case(1, 1, (1, 1, 1), 1),
        gram_case(40, 10, (1, 32, 32), 4),
        gram_case(3, 7, (3, 15, 21), 3),
        gram_case(1, 3, (3, 72, 108), 36),
        gram_case(2, 5, (1, 99, 96), 3),
        gram_case(2, 4, (2, 35, 20), 5),
        gram_case(1, 130, (4, 16, 16), 2),
        gram_case(3, 10, (3, 224, 224), 16),
    ]
}

fn norm_case(images: usize, tokens: usize, hidden: usize, stride: usize) -> Case {
    let mut x = normal("x", hidden, images * tokens * hidden);
    // Rows of extremes: minus zero, subnormal, large, all alike.
    for (row, row_values) in x.chunks_exact_mut(hidden).enumerate() {
        match row % 9 {
            5 => row_values.fill(-0.0),
            6 => row_values.iter_mut().for_each(|value| *value *= 1e-41),
            7 => row_values.iter_mut().for_each(|value| *value *= 1e15),
            8 => row_values.fill(0.3),
            _ => {}
        }
    }
    let (rows, width) = if stride == 0 { (1, hidden) } else { (images, stride) };
    let modulations = ["shift", "scale"].map(|purpose| normal(purpose, hidden, rows * width));
    let [shift, scale] = modulations.each_ref().map(|values| tensor(values, &[rows, width]).narrow(1, 0, hidden).expect("a part"));
    let y = kernels::modulated_norm(&tensor(&x, &[images, tokens, hidden]), &shift, &scale).expect("a norm");
    let y = y.flatten_all().and_then(|y| y.to_vec1::<f32>()).expect("values");
    // What follows the last row's modulation is not the kernel's to read.
    let [shift, scale] = modulations.map(|values| values[..(rows - 1) * width + hidden].to_vec());
    let sizes = Sizes::Norm(NormSizes { images, tokens, hidden, stride });
    Case { sizes, draws: Vec::new(), inputs: vec![x, shift, scale], expected: vec![bytes(&y)] }
}

fn norm_cases() -> Vec<Case> {
    let sizes =
        [(1, 1, 1, 0), (2, 9, 15, 15), (3, 7, 16, 0), (5, 64, 96, 576), (3, 11, 1153, 2306), (7, 49, 1152, 0), (131, 64, 1201, 1201)];
    sizes.map(|(n, t, d, stride)| norm_case(n, t, d, stride)).into()
}

/// In which the threads of a block take their turns, where they take turns.
#[derive(Clone, Copy)]
enum Order {
    Forward = 0,
    Backward = 1,
}

/// The kernels' source as a program for the CPU.
struct Shim(PathBuf);

impl Shim {
    fn build(name: &str) -> Self {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let mut command = Command::new(&compiler);
        command.args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-I", "src/kernels"]);
        if cfg!(target_arch = "x86_64") {
            command.arg("-mfma");
        }
        let built = command.args(["tests/shim/main.cpp", "-o"]).arg(&program).status();
        let built = built.unwrap_or_else(|error| panic!("these tests need a C++ compiler: failed to run {compiler}: {error}"));
        assert!(built.success(), "{compiler} failed on tests/shim/main.cpp: {built}");
        Self(program)
    }

    /// Buffers start `offset` values into their memory.
    fn run(&self, case: &Case, offset: usize, order: Order) -> Vec<Vec<u8>> {
        let launch = case.launch();
        let mut inputs: Vec<Vec<u8>> = case.inputs.iter().map(|values| bytes(values)).collect();
        if !case.draws.is_empty() {
            inputs.push(case.draws.iter().flat_map(Draw::words).flat_map(u32::to_le_bytes).collect());
        }
        launch.check(&inputs.iter().map(|input| input.len() / 4).collect::<Vec<_>>(), &launch.outputs).expect("inputs of the launch");
        let mut numbers = vec![launch.grid.0 as usize, launch.grid.1 as usize, offset, order as usize];
        let sizes: Vec<usize> = launch.sizes.iter().map(|&size| size as usize).collect();
        for list in [&sizes, &launch.inputs, &launch.outputs] {
            numbers.push(list.len());
            numbers.extend(list);
        }
        let child = Command::new(&self.0).arg(launch.kernel).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("the program that was just built starts");
        // It reads all before it writes, so neither pipe blocks the other.
        let mut stdin = child.stdin.take().expect("a pipe");
        let numbers = numbers.iter().flat_map(|&number| (number as u64).to_le_bytes()).collect();
        for part in std::iter::once(&numbers).chain(&inputs) {
            stdin.write_all(part).expect("the kernel takes its inputs");
        }
        drop(stdin);
        let finished = child.wait_with_output().expect("its outputs");
        assert!(finished.status.success(), "{} {:?}: {}", launch.kernel, case.sizes, finished.status);
        let mut rest = finished.stdout.as_slice();
        case.expected.iter().map(|expected| rest.split_off(..expected.len()).expect("all outputs").to_vec()).collect()
    }
}

/// Runs `cases` in both orders, each run at another offset, and holds all outputs against the CPU's.
fn assert_same_bits(cases: Vec<Case>, run: impl Fn(&Case, usize, Order) -> Vec<Vec<u8>>) {
    let orders = cases.iter().flat_map(|case| [(case, Order::Forward), (case, Order::Backward)]);
    for (index, (case, order)) in orders.enumerate() {
        let outputs = run(case, 1 + index % 3, order);
        for (position, (output, expected)) in outputs.iter().zip(&case.expected).enumerate() {
            let differing: u32 = output.iter().zip(expected).map(|(left, right)| (left ^ right).count_ones()).sum();
            assert_eq!((differing, output.len()), (0, expected.len()), "differing bits of output {position}, {:?}", case.sizes);
        }
    }
    let elements: usize = cases.iter().map(|case| case.inputs[0].len().max(case.expected[0].len() / 4)).sum();
    println!("{}: 0 differing bits, {elements} elements, seed {SEED}", cases[0].launch().kernel);
    assert!(elements >= ELEMENTS_MIN, "{elements} elements");
}

#[test]
fn cuda_source_samples_noise_with_the_bits_of_the_cpu() {
    let shim = Shim::build("sample-shim");
    assert_same_bits(sample_cases(), |case, offset, order| shim.run(case, offset, order));
}

#[test]
fn cuda_source_sums_gram_terms_with_the_bits_of_the_cpu() {
    let shim = Shim::build("gram-shim");
    assert_same_bits(gram_cases(), |case, offset, order| shim.run(case, offset, order));
}

#[test]
fn cuda_source_normalises_with_the_bits_of_the_cpu() {
    let shim = Shim::build("norm-shim");
    assert_same_bits(norm_cases(), |case, offset, order| shim.run(case, offset, order));
}

#[test]
fn checked_in_ptx_rounds_each_operation_as_ieee_754_does() {
    // Without `.rn` the driver may contract a product and a sum; `approx` and `ftz` are other arithmetic.
    for kernel in ["q_sample", "gram_terms", "modulated_norm"] {
        let ptx = std::fs::read_to_string(format!("src/kernels/{kernel}.ptx")).expect("PTX beside its source");
        let operations = ptx.lines().filter_map(|line| line.split_whitespace().next());
        let rounded = ["add", "sub", "mul", "fma", "div", "sqrt", "rcp", "ex2", "lg2", "sin", "cos", "rsqrt", "mad"];
        let mut count = 0;
        for operation in operations {
            let parts: Vec<&str> = operation.trim_end_matches(';').split('.').collect();
            if rounded.contains(&parts[0]) && matches!(parts.last(), Some(&("f32" | "f64"))) {
                assert_eq!((parts.len(), parts[1]), (3, "rn"), "{kernel}: {operation}");
                count += 1;
            }
        }
        assert!(count > 10, "{kernel}: {count} operations on floats");
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use super::{Case, Sizes, assert_same_bits, gram_cases, norm_cases, sample_cases};
    use undrift::kernels::cuda::{Device, DeviceError};

    fn run(device: &Device, case: &Case, offset: usize) -> Result<Vec<Vec<u8>>, DeviceError> {
        let draws = device.upload_draws(&case.draws)?;
        let shifted = |values: &Vec<f32>| device.upload(&[vec![0.0; offset], values.clone()].concat());
        let inputs = case.inputs.iter().map(shifted).collect::<Result<Vec<_>, _>>()?;
        let input = |position: usize| inputs[position].slice(offset..);
        let poisoned = |count: usize| device.upload(&vec![f32::NAN; offset + count]);
        let bytes = |values: Vec<f32>| super::bytes(&values);
        Ok(match case.sizes {
            Sizes::Sample(sizes) => {
                let mut x_t = poisoned(sizes.draws * sizes.elements)?;
                device.q_sample(sizes, &input(0), &draws, &mut x_t.slice_mut(offset..))?;
                vec![bytes(device.download(&x_t.slice(offset..))?)]
            }
            Sizes::Gram(sizes) => {
                let pairs = sizes.classes * sizes.classes;
                let mut gram = device.zeros::<f64>(offset + sizes.draws * pairs)?;
                let mut cross = device.zeros::<f64>(offset + sizes.draws * sizes.classes)?;
                device.gram_terms(sizes, &input(0), &draws, (&mut gram.slice_mut(offset..), &mut cross.slice_mut(offset..)))?;
                let bytes = |values: Vec<f64>| values.iter().flat_map(|value| value.to_le_bytes()).collect();
                vec![bytes(device.download(&gram.slice(offset..))?), bytes(device.download(&cross.slice(offset..))?)]
            }
            Sizes::Norm(sizes) => {
                let mut y = poisoned(sizes.images * sizes.tokens * sizes.hidden)?;
                device.modulated_norm(sizes, &input(0), (&input(1), &input(2)), &mut y.slice_mut(offset..))?;
                vec![bytes(device.download(&y.slice(offset..))?)]
            }
        })
    }

    #[test]
    fn a_gpu_gives_the_bits_of_the_cpu() {
        let device = match Device::open(0) {
            Ok(device) => device,
            Err(error) => {
                eprintln!("NOT RUN: a_gpu_gives_the_bits_of_the_cpu, as there is no GPU: {error}");
                return;
            }
        };
        println!("on {}", device.name().expect("a name"));
        for cases in [sample_cases(), gram_cases(), norm_cases()] {
            assert_same_bits(cases, |case, offset, _| run(&device, case, offset).expect("a run"));
        }
    }
}
