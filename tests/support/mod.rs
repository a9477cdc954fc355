//! Small values for tests.

use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;
use undrift::by_camera::ByCamera;
use undrift::checkpoint::Meta;
use undrift::frame::{ClassIndex, Frame, FrameMark, FrameSeq, Image, WeightsVersion};
use undrift::guard::GuardState;
use undrift::learner::OptimizerState;
use undrift::model::{ImageShape, Tensors};
use undrift::noise::NoiseKey;
use undrift::recent::Recent;
use undrift::state::{Control, DurableState, Gate, Good, Hearing, LearnerState, MonitorState, OpenFrame, PolicyState, Served};

/// A state after `frames` frames with one pending window and weights of `rows` x 8 and 3; equal arguments give equal bits.
pub fn state(frames: u64, rows: usize) -> DurableState {
    let served = |version| Served {
        version: WeightsVersion(version),
        window: version.checked_sub(1),
        weights: weights(frames + version, rows),
        hearing: by_camera("door", if version == 1 { Hearing::Full } else { Hearing::Home }),
    };
    let moments = |seed: u64| BTreeMap::from([("head.weight".to_owned(), normal(seed, 8 * rows))]);
    let optimizer = |seed: u64| OptimizerState { steps: frames / 16, first_moments: moments(seed), second_moments: moments(seed + 1) };
    let average = |name: &str, value: f64| BTreeMap::from([(name.to_owned(), value)]);
    let gate = || Gate { averages: average("draw_agreement", 0.1 + 0.2), hearing: Hearing::Full, is_teaching: true };
    let policy = || PolicyState { averages: average("estimated_accuracy", 0.5), common: gate(), gates: by_camera("door", gate()) };
    DurableState {
        incarnation: "FRAMES 2024-01-01T00:00:00Z".to_owned(),
        sequence: FrameSeq(frames + 3),
        frames,
        input_chain: *blake3::hash(&frames.to_le_bytes()).as_bytes(),
        mark: Some(FrameMark { payload_hash: *blake3::hash(b"frame").as_bytes(), broker_time_ns: Some(1_700_000_000_000_000_001) }),
        birth: 7,
        control: Control { adapt_enabled: true, generation: 2 },
        serving: served(0),
        pending: vec![served(1)],
        learner: Arc::new(LearnerState {
            version: WeightsVersion(2),
            weights: weights(frames + 2, rows),
            optimizer: optimizer(frames + 3),
            policy: policy(),
            guard: guard(),
            good: Some(Arc::new(Good { weights: weights(frames + 5, rows), optimizer: optimizer(frames + 6), policy: policy() })),
        }),
        recent: by_camera("door", Recent::default()),
        open: vec![OpenFrame { frame: frame(), is_judged: true, input_chain: [7; 32], prior: vec![0.4, 0.6] }],
        monitor: MonitorState { averages: average("entropy", -0.0), hits: [(true, false), (false, false)].into() },
    }
}

/// As of a window with one camera.
pub fn by_camera<T: Clone + Default>(camera: &str, value: T) -> ByCamera<T> {
    let mut by_camera = ByCamera::default();
    by_camera.see(std::iter::once(camera));
    by_camera.values_mut().for_each(|of_camera| *of_camera = value.clone());
    by_camera
}

fn frame() -> Frame {
    Frame {
        camera: "door".to_owned(),
        frame_id: "door:1".to_owned(),
        sequence: FrameSeq(1),
        capture_time_ns: Some(-1),
        broker_time_ns: None,
        label: Some(ClassIndex(2)),
        domain: None,
        payload_hash: [3; 32],
        image: Image::new(3, 2, 1, (0..6).collect()),
    }
}

/// A guard that has seen a frame, a camera and harm.
fn guard() -> GuardState {
    let mut guard = GuardState { is_frozen: true, ..GuardState::default() };
    guard.evidence.add(true, false, 0.05);
    guard.shares.see(std::iter::once("door"));
    guard.shares.charge(std::iter::once("door"), 0.25, 0.0);
    guard.repeats.is_repeat(&[0.5; 64], ImageShape { channels: 1, height: 8, width: 8 }, 1);
    guard
}

/// What is written with it.
pub fn meta() -> Meta {
    Meta { created_ns: 1_700_000_000_123_456_789, fingerprints: [("model".to_owned(), "00ff".to_owned())].into() }
}

fn weights(seed: u64, rows: usize) -> Tensors {
    let mut weight = normal(seed, 8 * rows);
    // Values whose bits a detour through decimal text or another type would lose.
    weight[..3].copy_from_slice(&[-0.0, f32::MIN_POSITIVE / 2.0, f32::MAX]);
    let tensor =
        |values: Vec<f32>, shape: &[usize]| Tensor::from_vec(values, shape, &Device::Cpu).expect("as many values as the shape says");
    [("head.bias".to_owned(), tensor(normal(seed + 1, 3), &[3])), ("head.weight".to_owned(), tensor(weight, &[rows, 8]))].into()
}

fn normal(seed: u64, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    NoiseKey::from_seed(seed, "test", 0).fill_normal(0, &mut values);
    values
}
