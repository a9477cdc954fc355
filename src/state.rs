//! All that the next bit depends on, as one value.
//!
//! [`DurableState`] is what a checkpoint holds. It is taken at the border of a window, where it needs no frame, or at an orderly stop,
//! where it has those of the window that is open: restarting from it and applying the frames after `sequence` gives what an
//! uninterrupted run would have given.
//! It splits into [`Scalars`], which serde writes, and named tensors.

use crate::by_camera::ByCamera;
use crate::frame::{Frame, FrameMark, FrameSeq, WeightsVersion};
use crate::guard::GuardState;
use crate::learner::OptimizerState;
use crate::model::Tensors;
use crate::recent::Recent;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Weights that answer, or will.
#[derive(Clone, Debug)]
pub struct Served {
    pub version: WeightsVersion,
    /// Index of the window that they came out of; the source weights have none.
    pub window: Option<u64>,
    pub weights: Tensors,
    /// How the answers to a camera are made.
    pub hearing: ByCamera<Hearing>,
}

impl Served {
    /// The learner's weights, from the next frame on.
    pub fn now(learner: &LearnerState) -> Self {
        Self { version: learner.version, window: None, weights: learner.weights.clone(), hearing: learner.policy.hearing() }
    }
}

/// What the adapter goes on from.
#[derive(Clone, Debug)]
pub struct LearnerState {
    pub version: WeightsVersion,
    pub weights: Tensors,
    pub optimizer: OptimizerState,
    pub policy: PolicyState,
    pub guard: GuardState,
    /// What the guard goes back to: the last state of which nothing on the canary spoke for harm; none is the source.
    pub good: Option<Arc<Good>>,
}

/// What was learned, without harm.
#[derive(Clone, Debug)]
pub struct Good {
    pub weights: Tensors,
    pub optimizer: OptimizerState,
    pub policy: PolicyState,
}

/// What the policy remembers from window to window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyState {
    /// Of all cameras together, by name.
    pub averages: BTreeMap<String, f64>,
    /// Of the frames of all cameras: what a camera's own begins as.
    pub common: Gate,
    pub gates: ByCamera<Gate>,
}

impl PolicyState {
    /// The judge counts in full for a camera where both its frames and those of all speak for it. Whether it is at home is told by its own
    /// frames alone.
    pub fn hearing(&self) -> ByCamera<Hearing> {
        self.gates.map(|gate| self.hearing_by(gate))
    }

    /// The same for one camera.
    pub fn hearing_at(&self, camera: &str) -> Hearing {
        self.gates.get(camera).map_or_else(Hearing::default, |gate| self.hearing_by(gate))
    }

    /// The same for all cameras, in memory that is there already.
    pub fn hearings(&self) -> impl Iterator<Item = Hearing> {
        self.gates.values().map(|gate| self.hearing_by(gate))
    }

    fn hearing_by(&self, gate: &Gate) -> Hearing {
        match gate.hearing {
            Hearing::Full if self.common.hearing != Hearing::Full => Hearing::Little,
            of_camera => of_camera,
        }
    }
}

/// Who speaks in the answers to a camera.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hearing {
    /// The classifier that learns, or the source while others teach, and the judge by `judge_weight_shut`.
    #[default]
    Little,
    /// The classifier that learns, and the judge in full.
    Full,
    /// The source is where it was trained, and the judge counts a little beside it.
    Home,
}

impl Hearing {
    /// Whether the source's answer counts, not that of the classifier that learns: at home, and where the judge is not heard while it teaches
    /// at another of the cameras. Where it is heard nowhere, the weights themselves go back to the source's.
    pub fn is_of_source(self, mut of_cameras: impl Iterator<Item = Self>) -> bool {
        self == Self::Home || self == Self::Little && of_cameras.any(|there| there == Self::Full)
    }
}

/// How far the judge is to be believed on the frames of one camera, whose weather and light are its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// Label-free, by name.
    pub averages: BTreeMap<String, f64>,
    /// As of the last window with a frame of the camera.
    pub hearing: Hearing,
    /// Whether the frames of that window are learned from.
    pub is_teaching: bool,
}

/// A frame of a window that is not full yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenFrame {
    pub frame: Frame,
    /// Whether the diffusion model has looked at it; not where too many frames waited.
    pub is_judged: bool,
    /// Of all frames up to this one.
    pub input_chain: [u8; 32],
    /// [`crate::pipeline::WindowFrame::prior`]
    pub prior: Vec<f64>,
}

/// What operators have set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    pub adapt_enabled: bool,
    /// Number of the last decision that was applied, from 1; 0 before the first.
    pub generation: u64,
}

/// What the monitor (accuracy, drift, collapse) remembers: averages by name, and the recent hits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MonitorState {
    pub averages: BTreeMap<String, f64>,
    /// (adapted hit, source hit) of the last labelled frames, oldest first.
    pub hits: VecDeque<(bool, bool)>,
}

/// All that the next bit depends on.
#[derive(Clone, Debug)]
pub struct DurableState {
    /// Name and creation time of the stream; "core" where there is none.
    pub incarnation: String,
    /// Last frame that was applied.
    pub sequence: FrameSeq,
    /// Frames applied since the source weights.
    pub frames: u64,
    /// Hash chain over all applied frames: H = BLAKE3(H, sequence, payload hash, broker's time).
    pub input_chain: [u8; 32],
    /// Of the last applied frame, to know it again; none before the first.
    pub mark: Option<FrameMark>,
    /// Last number in the stream of predictions when this history began at the source weights; 0 without a stream.
    pub birth: u64,
    pub control: Control,
    pub serving: Served,
    /// Weights that are ready and not yet serving, oldest first.
    pub pending: Vec<Served>,
    /// Shared, as states are copied at each border and its moments are as large as the weights.
    pub learner: Arc<LearnerState>,
    pub monitor: MonitorState,
    /// What the cameras have shown lately.
    pub recent: ByCamera<Recent>,
    /// The window that is open, oldest first; empty at a border.
    pub open: Vec<OpenFrame>,
}

/// The part of [`DurableState`] that is not tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scalars {
    incarnation: String,
    pub sequence: FrameSeq,
    frames: u64,
    input_chain: [u8; 32],
    mark: Option<FrameMark>,
    birth: u64,
    pub control: Control,
    serving: (WeightsVersion, Option<u64>),
    pending: Vec<(WeightsVersion, Option<u64>)>,
    /// Of the serving weights, then of the pending.
    hearing: Vec<ByCamera<Hearing>>,
    pub learner_version: WeightsVersion,
    optimizer_steps: u64,
    policy: PolicyState,
    guard: GuardState,
    /// Steps and policy of the good state, where there is one.
    good: Option<(u64, PolicyState)>,
    monitor: MonitorState,
    recent: ByCamera<Recent>,
    open: Vec<OpenFrame>,
}

/// Parts that do not make a state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the state lacks {prefix:?}")]
    Missing { prefix: String },
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl DurableState {
    /// The state as scalars and named tensors.
    pub fn to_parts(&self) -> Result<(Scalars, Tensors), StateError> {
        let scalars = Scalars {
            incarnation: self.incarnation.clone(),
            sequence: self.sequence,
            frames: self.frames,
            input_chain: self.input_chain,
            mark: self.mark,
            birth: self.birth,
            control: self.control,
            serving: (self.serving.version, self.serving.window),
            pending: self.pending.iter().map(|served| (served.version, served.window)).collect(),
            hearing: [&self.serving].into_iter().chain(&self.pending).map(|served| served.hearing.clone()).collect(),
            learner_version: self.learner.version,
            optimizer_steps: self.learner.optimizer.steps,
            policy: self.learner.policy.clone(),
            guard: self.learner.guard.clone(),
            good: self.learner.good.as_ref().map(|good| (good.optimizer.steps, good.policy.clone())),
            monitor: self.monitor.clone(),
            recent: self.recent.clone(),
            open: self.open.clone(),
        };
        let mut tensors = Tensors::new();
        let mut put = |prefix: &str, part: &Tensors| {
            tensors.extend(part.iter().map(|(name, tensor)| (format!("{prefix}/{name}"), tensor.clone())));
        };
        put("serving", &self.serving.weights);
        for (i, served) in self.pending.iter().enumerate() {
            put(&format!("pending.{i}"), &served.weights);
        }
        put("learner", &self.learner.weights);
        put("first_moments", &moments_as_tensors(&self.learner.optimizer.first_moments)?);
        put("second_moments", &moments_as_tensors(&self.learner.optimizer.second_moments)?);
        if let Some(good) = &self.learner.good {
            put("good", &good.weights);
            put("good.first_moments", &moments_as_tensors(&good.optimizer.first_moments)?);
            put("good.second_moments", &moments_as_tensors(&good.optimizer.second_moments)?);
        }
        Ok((scalars, tensors))
    }

    /// # Errors
    /// `Missing` where the tensors lack a part that the scalars speak of.
    pub fn from_parts(scalars: Scalars, tensors: &Tensors) -> Result<Self, StateError> {
        let part = |prefix: &str| -> Tensors {
            let prefix = format!("{prefix}/");
            tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(&prefix)?.to_owned(), tensor.clone()))).collect()
        };
        let weights = |prefix: &str| match part(prefix) {
            part if part.is_empty() => Err(StateError::Missing { prefix: prefix.to_owned() }),
            part => Ok(part),
        };
        let hearing = |prefix: &str, position: usize| {
            scalars.hearing.get(position).cloned().ok_or_else(|| StateError::Missing { prefix: prefix.to_owned() })
        };
        let served = |prefix: &str, position, (version, window)| {
            Ok::<_, StateError>(Served { version, window, weights: weights(prefix)?, hearing: hearing(prefix, position)? })
        };
        let optimizer = |prefix: &str, steps| {
            let moments = |name: &str| tensors_as_moments(part(&format!("{prefix}{name}")));
            Ok::<_, StateError>(OptimizerState {
                steps,
                first_moments: moments("first_moments")?,
                second_moments: moments("second_moments")?,
            })
        };
        let good = scalars.good.map(|(steps, policy)| {
            Ok::<_, StateError>(Arc::new(Good { weights: weights("good")?, optimizer: optimizer("good.", steps)?, policy }))
        });
        let pending = scalars.pending.iter().enumerate().map(|(i, &key)| served(&format!("pending.{i}"), i + 1, key));
        Ok(Self {
            serving: served("serving", 0, scalars.serving)?,
            pending: pending.collect::<Result<_, _>>()?,
            learner: Arc::new(LearnerState {
                version: scalars.learner_version,
                weights: weights("learner")?,
                optimizer: optimizer("", scalars.optimizer_steps)?,
                policy: scalars.policy,
                guard: scalars.guard,
                good: good.transpose()?,
            }),
            incarnation: scalars.incarnation,
            sequence: scalars.sequence,
            frames: scalars.frames,
            input_chain: scalars.input_chain,
            mark: scalars.mark,
            birth: scalars.birth,
            control: scalars.control,
            monitor: scalars.monitor,
            recent: scalars.recent,
            open: scalars.open,
        })
    }
}

fn moments_as_tensors(moments: &BTreeMap<String, Vec<f32>>) -> Result<Tensors, StateError> {
    let tensor = |(name, values): (&String, &Vec<f32>)| Ok((name.clone(), Tensor::from_slice(values, values.len(), &Device::Cpu)?));
    moments.iter().map(tensor).collect()
}

fn tensors_as_moments(tensors: Tensors) -> Result<BTreeMap<String, Vec<f32>>, StateError> {
    tensors.into_iter().map(|(name, tensor)| Ok((name, tensor.to_vec1::<f32>()?))).collect()
}
