//! Where a pipeline starts: with the source weights, or with the state of a checkpoint.
//!
//! Invariant: a state that does not fit the bundle is refused whole. Of one that fits, only what belongs to another configuration is
//! left out: an open window that cannot be gone on with, and indices of windows of another length.

use super::{Pipeline, PipelineError, Start, Taken, Tally, WindowFrame};
use crate::bundle::Bundle;
use crate::by_camera::ByCamera;
use crate::diffusion::Timestep;
use crate::frame::{FrameSeq, WeightsVersion};
use crate::learner::{AdaptConfig, AnswerBy, FrozenClassifier, Judge, source_state};
use crate::model::{ParameterError, Tensors, parameters};
use crate::monitor::Monitor;
use crate::noise::NoiseSecret;
use crate::state::{Control, DurableState, MonitorState, OpenFrame, Served};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What the configuration says of answers and checkpoints.
#[derive(Clone, Copy, Debug)]
pub struct OutputShape {
    /// Classes that a prediction names.
    pub top_k: usize,
    /// Windows between two checkpoints, at least 1.
    pub checkpoint_windows: u64,
}

impl Pipeline {
    /// `checkpoint_windows`: windows between two checkpoints.
    ///
    /// # Errors
    /// `Parameters` where the bundle's or the state's weights are not those of the configured classifier.
    pub fn new(
        bundle: &Bundle,
        config: &AdaptConfig,
        output: OutputShape,
        secret: NoiseSecret,
        start: Start,
    ) -> Result<Self, PipelineError> {
        let (mut state, decisions) = match start {
            Start::Source { incarnation, birth } => (first_state(bundle, config, incarnation, birth), Vec::new()),
            Start::Resume { state, decisions } => (*state, decisions),
        };
        check_weights(&state, bundle)?;
        fit_to(&mut state, bundle, config);
        let classifier = |weights: &Tensors| FrozenClassifier::new(&bundle.classifier_config, weights);
        let mut pipeline = Self {
            config: config.clone(),
            classifier_config: bundle.classifier_config,
            labels: bundle.labels.clone(),
            top_k: output.top_k,
            checkpoint_windows: output.checkpoint_windows,
            secret,
            source_weights: bundle.classifier.clone(),
            source: classifier(&bundle.classifier)?,
            serving: classifier(&state.serving.weights)?,
            prepared: BTreeMap::new(),
            judge: match config.answer_by {
                AnswerBy::Classifier => None,
                AnswerBy::Posterior => Some(Judge::of(bundle, config)?),
            },
            timesteps: config.timesteps.iter().map(|&timestep| Timestep(timestep)).collect(),
            is_source_serving: parameters::are_equal(&state.serving.weights, &bundle.classifier)?,
            monitor: Monitor::new(bundle.statistics.clone(), bundle.labels.len(), state.monitor.clone()),
            whole: state.clone(),
            current: DurableState { open: Vec::new(), ..state },
            borders: VecDeque::new(),
            window: Vec::new(),
            awaited: VecDeque::new(),
            held: Vec::new(),
            decisions: decisions.into(),
            tally: Tally::default(),
        };
        for OpenFrame { frame, is_judged, input_chain, prior } in pipeline.whole.open.clone() {
            // By now the camera has shown what came after it, too.
            let studied = WindowFrame { prior, ..pipeline.study(&frame, !is_judged)? };
            pipeline.window.push(Taken { frame, studied, input_chain });
        }
        // Nobody has seen anything of the time before yet, so nobody needs to be told.
        let next = FrameSeq(pipeline.current.sequence.0 + 1);
        pipeline.catch_up(next, &mut Vec::new())?;
        Ok(pipeline)
    }
}

/// Leaves out of a state what another configuration has left in it.
fn fit_to(state: &mut DurableState, bundle: &Bundle, config: &AdaptConfig) {
    // A window that is full by now, or of images of another size, cannot be gone on with.
    let shape = bundle.classifier_config.image();
    let fits = |open: &OpenFrame| {
        let image = &open.frame.image;
        (image.channels(), image.height(), image.width()) == (shape.channels, shape.height, shape.width)
    };
    if state.open.len() >= config.window || !state.open.iter().all(fits) {
        state.open.clear();
    }
    // Indices of another `window` mean nothing here: what is pending came out of windows before the next one.
    let last = (state.frames / u64::try_from(config.window).expect("at most 1024")).saturating_sub(1);
    state.pending.iter_mut().for_each(|served| served.window = served.window.map(|window| window.min(last)));
}

/// Checks that all weights of a state are those of the bundle's classifier.
pub fn check_weights(state: &DurableState, bundle: &Bundle) -> Result<(), ParameterError> {
    let pending = state.pending.iter().map(|served| &served.weights);
    let mut all = [&state.serving.weights, &state.learner.weights].into_iter().chain(pending);
    all.try_for_each(|tensors| parameters::check(tensors, &bundle.classifier))
}

/// The state before the first frame: the source weights serve.
pub fn first_state(bundle: &Bundle, config: &AdaptConfig, incarnation: String, birth: u64) -> DurableState {
    let learner = source_state(&bundle.classifier, WeightsVersion(0));
    DurableState {
        incarnation,
        sequence: FrameSeq(0),
        frames: 0,
        input_chain: [0; 32],
        mark: None,
        birth,
        control: Control { adapt_enabled: config.enabled, generation: 0 },
        serving: Served::now(&learner),
        pending: Vec::new(),
        learner: Arc::new(learner),
        monitor: MonitorState::default(),
        recent: ByCamera::default(),
        open: Vec::new(),
    }
}
