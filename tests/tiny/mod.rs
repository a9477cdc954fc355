//! A bundle of tiny models with random weights, for tests that need models and not accuracy.

#![allow(dead_code, reason = "each test takes what it needs")]

use candle_core::Tensor;
use undrift::bundle::{Bundle, Calibration, Moments, Statistics};
use undrift::frame::{Frame, FrameSeq, Image};
use undrift::guard::canary::Canary;
use undrift::learner::{
    AdaptConfig, AnswerBy, AnswerTime, ConditionConfig, EntropyConfig, GateConfig, GuardConfig, ObjectiveKind, OptimizerConfig,
    TrainablePart,
};
use undrift::model::{ClassConditioning, ClassifierConfig, Dit, DitConfig, ImageShape, Tensors, TrunkConfig, Vit, VitConfig};
use undrift::noise::NoiseKey;

pub const CLASSES: usize = 3;

pub fn trunk(channels: usize) -> TrunkConfig {
    let image = ImageShape { channels, height: 8, width: 8 };
    TrunkConfig { image, patch: 4, patch_window: 6, hidden: 16, depth: 2, heads: 2, mlp_ratio: 2 }
}

/// `tensors` with noise added, so that no layer that starts at zero hides a cut gradient.
pub fn shaken(tensors: Tensors, seed: u64) -> Tensors {
    let shake = |(name, tensor): (String, Tensor)| {
        let mut noise = vec![0f32; tensor.elem_count()];
        NoiseKey::from_seed(seed, &name, 1).fill_normal(0, &mut noise);
        let noise = Tensor::from_vec(noise, tensor.shape(), tensor.device()).and_then(|noise| noise.affine(0.1, 0.0));
        let shaken = noise.and_then(|noise| tensor.add(&noise)).expect("tensors of one shape");
        (name, shaken)
    };
    tensors.into_iter().map(shake).collect()
}

pub fn bundle(channels: usize, conditioning: ClassConditioning) -> Bundle {
    let classifier_config = VitConfig { trunk: trunk(channels), classes: CLASSES };
    let diffusion_config = DitConfig { trunk: trunk(channels), classes: CLASSES, conditioning, num_timesteps: 100 };
    Bundle {
        classifier: shaken(Vit::initialize(&classifier_config, 1).expect("a model"), 1),
        diffusion: shaken(Dit::initialize(&diffusion_config, 2).expect("a model"), 2),
        classifier_config: ClassifierConfig::Vit(classifier_config),
        diffusion_config,
        labels: ["shirt", "shoe", "bag"].map(str::to_owned).to_vec(),
        statistics: Statistics {
            judge_accuracy: 0.8,
            draw_agreement: 0.8,
            calibration: Calibration { intercept: 0.1, slope: 0.9 },
            entropy: Moments { mean: 0.5, standard_deviation: 0.3 },
            ..Statistics::default()
        },
        canary: canary(channels),
    }
}

/// Images of noise, with labels that mean as little.
fn canary(channels: usize) -> Canary {
    let mut images = vec![0f32; 16 * 64 * channels];
    images.chunks_exact_mut(64 * channels).zip(1000..).for_each(|(planes, seed)| image(channels, seed).write_planes(planes));
    Canary { images, labels: (0..16).map(|n| n % CLASSES).collect() }
}

/// Windows of four frames, lag 2, a gate that is open.
pub fn config() -> AdaptConfig {
    AdaptConfig {
        enabled: true,
        window: 4,
        lag: 2,
        answer: AnswerTime::Before,
        answer_by: AnswerBy::Posterior,
        objective: ObjectiveKind::Posterior,
        trainable: TrainablePart::All,
        timesteps: vec![10, 40],
        judge_weight: 1.0,
        judge_weight_shut: 0.4,
        judge_weight_home: 0.2,
        objective_weight: 1.0,
        recent_weight: 1.0,
        prior_weight: 1.0,
        learning_rate: 1e-2,
        gradient_norm_max: 1.0,
        anchor_pull: 0.01,
        anchor_pull_shut: 0.1,
        anchor_pull_retreat: 0.5,
        distance_max: 10.0,
        norm_pace: 0.05,
        norm_own_share: 0.2,
        domain_distance_max: 0.35,
        stretched_view: true,
        mirrored: true,
        optimizer: OptimizerConfig::ADAM_W,
        entropy: EntropyConfig { weight: 0.0, margin: 0.4, cosine_max: 0.4 },
        gate: GateConfig {
            memory_frames: 16.0,
            margin: -1.0,
            diversity_slack: 1.0,
            tolerance: 1.0,
            confidence_min: 0.0,
            consistency: 0.0,
            home_entropy_max: 0.0,
            by_camera: true,
        },
        guard: GuardConfig {
            repeats_max: 4,
            camera_share_max: 2.0,
            canary_every_windows: 3,
            canary_images: 4,
            canary_tolerance: 0.1,
            canary_evidence_max: 1e6,
        },
        condition: ConditionConfig { steps_per_window: 2, draws_per_step: 3, accumulation_steps: 2, same_noise: false },
    }
}

pub fn image(channels: usize, seed: u64) -> Image {
    let key = NoiseKey::from_seed(seed, "image", 0);
    let pixels = (0..64 * channels).map(|i| key.uniform_below(i as u32, 256) as u8).collect();
    Image::new(channels, 8, 8, pixels)
}

/// Frame `index` of a fixed stream, as a camera that says nothing else sends it; sequences start at 1, and ids have one length, so that
/// none takes more memory than another.
pub fn frame(channels: usize, index: u64, camera: &str) -> Frame {
    let image = image(channels, index);
    Frame {
        camera: camera.to_owned(),
        frame_id: format!("{camera}:{:012}", index + 1),
        sequence: FrameSeq(index + 1),
        capture_time_ns: None,
        broker_time_ns: None,
        label: None,
        domain: None,
        payload_hash: image.hash(),
        image,
    }
}
