//! What the configuration says of adaptation: the `[adapt]` table.

use super::optimizer::OptimizerConfig;
use crate::diffusion::stretch;
use crate::model::ImageShape;
use crate::state::Hearing;
use serde::{Deserialize, Serialize};

/// Field, value, whether it is in its range, and the range.
type Check = (&'static str, String, bool, &'static str);

/// Which weights answer a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerTime {
    /// Predict, then adapt: the answer never waits.
    Before,
    /// Adapt on the frame's window, then predict: the paper's protocol.
    After,
}

/// Whose probabilities a frame is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerBy {
    /// The classifier's own: nothing else stands between a frame and its answer.
    Classifier,
    /// Bayes' rule: the classifier's times the diffusion model's likelihood of the frame, which is judged before it is
    /// answered.
    Posterior,
}

/// What the gradient of a window comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveKind {
    /// Cross entropy to the posterior: classifier times the diffusion model's likelihood.
    Posterior,
    /// |sum_k p_k e_k - noise|^2 over predicted noises (DUSA, arXiv 2501.00873), by G and h.
    Score,
    /// Diffusion-TTA as published (arXiv 2311.16102): the classes are mixed in the condition.
    Condition,
}

/// Which parameters of the classifier learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainablePart {
    All,
    /// Scale, shift and gate of the norms.
    Norms,
    /// The head.
    Last,
}

impl TrainablePart {
    /// Whether the parameter `name` learns.
    pub fn contains(self, name: &str) -> bool {
        match self {
            Self::All => !name.contains(".running_"),
            Self::Norms => name.ends_with("modulation") || name.ends_with(".norm.scale") || name.ends_with(".norm.shift"),
            Self::Last => name.starts_with("head."),
        }
    }
}

/// The rule of [`crate::policy`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateConfig {
    /// Frames that the averages reach back, roughly.
    pub memory_frames: f64,
    /// The diffusion model teaches, and counts by `judge_weight` in answers, while its estimated accuracy exceeds the source's by this,
    /// -1..=1: below 0, as two heads are better than one until one is much worse.
    pub margin: f64,
    /// How far the diversity of the diffusion model's answers may fall under the source's, 0..=1; 1 asks nothing.
    pub diversity_slack: f64,
    /// How far the agreement of the adapted classifier with the diffusion model may fall under the source's, 0..=1.
    pub tolerance: f64,
    /// A frame teaches when its target's largest probability is at least this, 0..=1.
    pub confidence_min: f64,
    /// How far the draws must agree with the answers to some view, of the source or of the classifier that learns, as a share of how far
    /// they agree with each other, 0..=1; 0 asks nothing.
    pub consistency: f64,
    /// The source is at home, and answers, while its entropy is at most this times that on clean images; 0 says never.
    pub home_entropy_max: f64,
    /// Each camera has a gate of its own beside that of all.
    pub by_camera: bool,
}

impl GateConfig {
    fn checks(&self) -> [Check; 7] {
        let unit = 0.0..=1.0;
        [
            ("gate.consistency", self.consistency.to_string(), unit.contains(&self.consistency), "0 to 1"),
            ("gate.home_entropy_max", self.home_entropy_max.to_string(), (0.0..=100.0).contains(&self.home_entropy_max), "0 to 100"),
            ("gate.memory_frames", self.memory_frames.to_string(), self.memory_frames >= 1.0, "at least 1"),
            ("gate.margin", self.margin.to_string(), (-1.0..=1.0).contains(&self.margin), "-1 to 1"),
            ("gate.diversity_slack", self.diversity_slack.to_string(), unit.contains(&self.diversity_slack), "0 to 1"),
            ("gate.tolerance", self.tolerance.to_string(), unit.contains(&self.tolerance), "0 to 1"),
            ("gate.confidence_min", self.confidence_min.to_string(), unit.contains(&self.confidence_min), "0 to 1"),
        ]
    }
}

/// The rules of [`crate::guard`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardConfig {
    /// Times that like frames are learned from.
    pub repeats_max: u32,
    /// Times the mean of all cameras that one camera may have moved the weights lately, at least 1.
    pub camera_share_max: f64,
    /// Windows between two looks at the canary.
    pub canary_every_windows: u64,
    /// Images that a look draws.
    pub canary_images: u32,
    /// How much worse than the source on the canary the classifier may be, 0..1.
    pub canary_tolerance: f64,
    /// Evidence of more harm at which what was learned is taken back, above 1: without harm, once in so many images at most.
    pub canary_evidence_max: f64,
}

impl GuardConfig {
    /// Withholds nothing and takes nothing back.
    pub const OPEN: Self = Self {
        repeats_max: u32::MAX,
        camera_share_max: f64::MAX,
        canary_every_windows: 1_000_000,
        canary_images: 1,
        canary_tolerance: 0.0,
        canary_evidence_max: f64::MAX,
    };

    fn checks(&self) -> [Check; 6] {
        let Self { repeats_max, camera_share_max, canary_every_windows, canary_images, canary_tolerance, canary_evidence_max } = *self;
        let (share, every, images) = (1.0..=f64::MAX, 1..=1_000_000, 1..=1024);
        [
            ("guard.repeats_max", repeats_max.to_string(), repeats_max >= 1, "at least 1"),
            ("guard.camera_share_max", camera_share_max.to_string(), share.contains(&camera_share_max), "at least 1, and finite"),
            ("guard.canary_every_windows", canary_every_windows.to_string(), every.contains(&canary_every_windows), "1 to 1000000"),
            ("guard.canary_images", canary_images.to_string(), images.contains(&canary_images), "1 to 1024"),
            ("guard.canary_tolerance", canary_tolerance.to_string(), (0.0..1.0).contains(&canary_tolerance), "from 0, below 1"),
            ("guard.canary_evidence_max", canary_evidence_max.to_string(), canary_evidence_max > 1.0, "above 1"),
        ]
    }
}

/// What the classifier learns of its own sure answers: their entropy falls (EATA, arXiv 2204.02610, Fisher's anchor apart).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntropyConfig {
    /// How far that counts beside the objective, 0..=100; 0: nothing is learned so.
    pub weight: f64,
    /// A frame teaches while the entropy of the classifier's answer is below this share of the largest, ln K; 0..=1.
    pub margin: f64,
    /// A frame teaches while the cosine of its probabilities and the running mean of those that taught is at most this, 0..=1.
    pub cosine_max: f64,
}

impl EntropyConfig {
    fn checks(&self) -> [Check; 3] {
        let Self { weight, margin, cosine_max } = *self;
        [
            ("entropy.weight", weight.to_string(), (0.0..=100.0).contains(&weight), "0 to 100"),
            ("entropy.margin", margin.to_string(), (0.0..=1.0).contains(&margin), "0 to 1"),
            ("entropy.cosine_max", cosine_max.to_string(), (0.0..=1.0).contains(&cosine_max), "0 to 1"),
        ]
    }
}

/// Diffusion-TTA's own numbers; used by the `condition` objective alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConditionConfig {
    /// Adaptation steps for each window (with `window = 1`: for each frame); 5 in the paper.
    pub steps_per_window: u32,
    /// Draws in one forward pass.
    pub draws_per_step: u32,
    /// Passes whose gradients are added up to one step; 180 draws in all in the paper.
    pub accumulation_steps: u32,
    /// The same draws in every step, or fresh ones.
    pub same_noise: bool,
}

impl ConditionConfig {
    fn checks(&self) -> [Check; 3] {
        let Self { steps_per_window, draws_per_step, accumulation_steps, same_noise: _ } = *self;
        let (steps, passes) = (1..=1000, 1..=1024);
        [
            ("condition.steps_per_window", steps_per_window.to_string(), steps.contains(&steps_per_window), "1 to 1000"),
            ("condition.draws_per_step", draws_per_step.to_string(), passes.contains(&draws_per_step), "1 to 1024"),
            ("condition.accumulation_steps", accumulation_steps.to_string(), passes.contains(&accumulation_steps), "1 to 1024"),
        ]
    }
}

/// Adaptation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptConfig {
    /// Whether adaptation is on at the first start; later the operators' last word counts.
    pub enabled: bool,
    /// W: frames that one adaptation step sees.
    pub window: usize,
    /// Windows between the last frame that the weights have learned from and the frame that they answer: 1 is serial.
    pub lag: usize,
    pub answer: AnswerTime,
    pub answer_by: AnswerBy,
    pub objective: ObjectiveKind,
    /// How far the objective counts beside [`EntropyConfig`], 0..=100; `condition` stands alone.
    pub objective_weight: f64,
    pub trainable: TrainablePart,
    /// Timesteps of the draws of a frame, one draw each; at least two, as their agreement tells how good they are.
    pub timesteps: Vec<u32>,
    /// How far the errors of the diffusion model are believed: 1 is their likelihood.
    pub judge_weight: f64,
    /// The same in an answer, while the diffusion model is not listened to.
    pub judge_weight_shut: f64,
    /// The same in an answer that the source gives at home.
    pub judge_weight_home: f64,
    /// How far what a camera has shown lately counts in the answers to it, as a prior over classes: 1 is Bayes' rule for a posterior that is as
    /// sure as it should be, more for one that is too sure.
    pub recent_weight: f64,
    /// How far the classifier's own probabilities count in the posterior that it learns from: 1 is Bayes' rule, 0 leaves
    /// the diffusion model alone.
    pub prior_weight: f64,
    pub learning_rate: f32,
    pub gradient_norm_max: f32,
    /// Share of the way back to the source weights that each window takes.
    pub anchor_pull: f64,
    /// The same while the diffusion model does not know better than the source.
    pub anchor_pull_shut: f64,
    /// The same while what was learned does not fit the frames.
    pub anchor_pull_retreat: f64,
    /// |weights - source| / |source| above which a step is rejected.
    pub distance_max: f64,
    /// Share that each view of a frame has in the statistics of batch norm of its domain; 0: they stay as they are.
    pub norm_pace: f32,
    /// Share of a view's own statistics in those that batch norm takes for it, beside its domain's, 0..=1.
    pub norm_own_share: f32,
    /// How far the statistics of a frame's view, behind the first convolution, may lie from those of a domain that it belongs to, in standard
    /// deviations of a channel: further ones begin a domain of their own.
    pub domain_distance_max: f64,
    /// Whether the classifier looks at each frame a second time, with its intensities stretched to full range, as the diffusion
    /// model sees it. The mean of the logits counts.
    pub stretched_view: bool,
    /// Whether every other draw judges the frame mirrored, and the stretched view is mirrored too: for models that were trained on
    /// mirrored images. What errs one way does not err the other way alike, and it costs no pass. The draws of `condition` stay as they
    /// are. The bundle's statistics are measured with it.
    pub mirrored: bool,
    pub optimizer: OptimizerConfig,
    pub entropy: EntropyConfig,
    pub gate: GateConfig,
    pub guard: GuardConfig,
    pub condition: ConditionConfig,
}

/// A value of `[adapt]` out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("adapt.{field} is {value}, must be {range}")]
pub struct AdaptRangeError {
    pub field: &'static str,
    pub value: String,
    pub range: &'static str,
}

impl AdaptConfig {
    /// How far the diffusion model counts in an answer.
    pub fn answer_weight(&self, hearing: Hearing) -> f64 {
        match hearing {
            Hearing::Full => self.judge_weight,
            Hearing::Little => self.judge_weight_shut,
            Hearing::Home => self.judge_weight_home,
        }
    }

    /// The views of an image (C, H, W), (V, C, H, W): as it was taken and, where that is configured, stretched to full range, and mirrored.
    pub fn views(&self, image: &[f32], shape: ImageShape) -> Vec<f32> {
        let mut views = image.to_vec();
        if self.stretched_view {
            views.extend_from_slice(image);
            let second = &mut views[image.len()..];
            stretch(second);
            if self.mirrored {
                shape.mirror(second);
            }
        }
        views
    }

    /// Checks every range; `num_timesteps` is that of the diffusion model.
    ///
    /// # Errors
    /// The first field that lies outside.
    pub fn check(&self, num_timesteps: u32) -> Result<(), AdaptRangeError> {
        let unit = 0.0..=1.0;
        let checks = [
            ("window", self.window.to_string(), (1..=1024).contains(&self.window), "1 to 1024"),
            ("lag", self.lag.to_string(), (1..=8).contains(&self.lag), "1 to 8"),
            (
                "timesteps",
                format!("{:?}", self.timesteps),
                (2..=64).contains(&self.timesteps.len()),
                "2 to 64 timesteps: with one draw nothing tells when the judge errs",
            ),
            (
                "timesteps",
                format!("{:?}", self.timesteps),
                self.timesteps.iter().all(|&t| t < num_timesteps),
                "below diffusion.num_timesteps",
            ),
            ("objective_weight", self.objective_weight.to_string(), (0.0..=100.0).contains(&self.objective_weight), "0 to 100"),
            ("judge_weight", self.judge_weight.to_string(), (0.0..=100.0).contains(&self.judge_weight), "0 to 100"),
            ("judge_weight_shut", self.judge_weight_shut.to_string(), (0.0..=100.0).contains(&self.judge_weight_shut), "0 to 100"),
            ("judge_weight_home", self.judge_weight_home.to_string(), (0.0..=100.0).contains(&self.judge_weight_home), "0 to 100"),
            ("recent_weight", self.recent_weight.to_string(), (0.0..=10.0).contains(&self.recent_weight), "0 to 10"),
            ("prior_weight", self.prior_weight.to_string(), unit.contains(&self.prior_weight), "0 to 1"),
            ("learning_rate", self.learning_rate.to_string(), self.learning_rate > 0.0 && self.learning_rate <= 1.0, "above 0, at most 1"),
            ("gradient_norm_max", self.gradient_norm_max.to_string(), self.gradient_norm_max > 0.0, "above 0"),
            ("anchor_pull", self.anchor_pull.to_string(), unit.contains(&self.anchor_pull), "0 to 1"),
            ("anchor_pull_shut", self.anchor_pull_shut.to_string(), unit.contains(&self.anchor_pull_shut), "0 to 1"),
            ("anchor_pull_retreat", self.anchor_pull_retreat.to_string(), unit.contains(&self.anchor_pull_retreat), "0 to 1"),
            ("distance_max", self.distance_max.to_string(), self.distance_max > 0.0, "above 0"),
            ("norm_pace", self.norm_pace.to_string(), (0.0..=1.0).contains(&self.norm_pace), "0 to 1"),
            ("norm_own_share", self.norm_own_share.to_string(), unit.contains(&f64::from(self.norm_own_share)), "0 to 1"),
            ("domain_distance_max", self.domain_distance_max.to_string(), self.domain_distance_max > 0.0, "above 0"),
            (
                "stretched_view",
                self.stretched_view.to_string(),
                !(self.stretched_view && self.objective == ObjectiveKind::Condition),
                "false with objective = \"condition\", which learns from the frame as it was taken",
            ),
        ];
        self.check_optimizer()?;
        match checks
            .into_iter()
            .chain(self.entropy.checks())
            .chain(self.gate.checks())
            .chain(self.guard.checks())
            .chain(self.condition.checks())
            .find(|(_, _, is_in_range, _)| !is_in_range)
        {
            Some((field, value, _, range)) => Err(AdaptRangeError { field, value, range }),
            None => Ok(()),
        }
    }

    /// Outside these ranges the first step is not a number, or every step is larger than the last.
    fn check_optimizer(&self) -> Result<(), AdaptRangeError> {
        let below_one = |value: f32| (0.0..1.0).contains(&value);
        let is_adam_w = |beta1, beta2, adam_eps: f32, weight_decay| {
            below_one(beta1) && below_one(beta2) && adam_eps > 0.0 && adam_eps.is_finite() && (0.0..=10.0).contains(&weight_decay)
        };
        let (is_in_range, range) = match self.optimizer {
            OptimizerConfig::Sgd { momentum } => (below_one(momentum), "momentum from 0, below 1"),
            OptimizerConfig::AdamW { beta1, beta2, adam_eps, weight_decay } => {
                (is_adam_w(beta1, beta2, adam_eps, weight_decay), "beta1 and beta2 from 0, below 1; adam_eps above 0; weight_decay 0 to 10")
            }
            OptimizerConfig::Muon { momentum, beta1, beta2, adam_eps, weight_decay } => (
                below_one(momentum) && is_adam_w(beta1, beta2, adam_eps, weight_decay),
                "momentum, beta1 and beta2 from 0, below 1; adam_eps above 0; weight_decay 0 to 10",
            ),
        };
        match is_in_range {
            true => Ok(()),
            false => Err(AdaptRangeError { field: "optimizer", value: format!("{:?}", self.optimizer), range }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny;

    #[test]
    fn the_second_view_is_stretched_and_mirrored_where_that_is_configured() {
        let shape = ImageShape { channels: 1, height: 2, width: 3 };
        let image = [-0.4, 0.0, 0.4, 0.4, 0.0, -0.4];
        let views = |stretched_view, mirrored| AdaptConfig { stretched_view, mirrored, ..tiny::config() }.views(&image, shape);
        let (mut stretched, mut mirrored) = (image, image);
        stretch(&mut stretched);
        mirrored.copy_from_slice(&stretched);
        shape.mirror(&mut mirrored);
        assert_ne!(stretched, mirrored);
        assert_eq!(views(false, true), image);
        assert_eq!(views(true, false), [image, stretched].concat());
        assert_eq!(views(true, true), [image, mirrored].concat());
    }
}
