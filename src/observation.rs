//! What the core saw and did, as values: the telemetry alone knows metric names.

use crate::frame::{ClassIndex, WeightsVersion};

/// Why a window was not learned from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// An operator switched adaptation off.
    Disabled,
    /// Frames wait: adaptation is shed before frames are.
    Overload,
    /// The diffusion model does not know better than the classifier, as far as can be told without labels.
    Unreliable,
    /// What was learned before does not fit these frames: the source agrees better with the diffusion model.
    Misfit,
    /// The gradient was not finite, or the step would have left the bounds.
    Rejected,
}

impl SkipReason {
    pub const ALL: [Self; 5] = [Self::Disabled, Self::Overload, Self::Unreliable, Self::Misfit, Self::Rejected];

    /// Value of the metric label `reason`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Overload => "overload",
            Self::Unreliable => "unreliable",
            Self::Misfit => "misfit",
            Self::Rejected => "rejected",
        }
    }
}

/// What one window's adaptation found; all without labels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WindowReport {
    /// Mean loss of the objective before the step.
    pub loss: f64,
    /// Mean denoising loss of the diffusion model under the best class, per element.
    pub denoising_loss: f64,
    /// Share of frames whose draws name different classes, 0..=1.
    pub draw_disagreement: f64,
    /// How far the diffusion model is believed, 0..=1.
    pub reliability: f64,
    /// Euclidean norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// |weights - source weights| / |source weights|.
    pub weights_distance: f64,
    /// Estimated accuracy of the serving classifier on this window, without labels, 0..=1.
    pub estimated_accuracy: f64,
}

/// State of the drift detector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftState {
    #[default]
    None,
    Warning,
    Drift,
}

/// One thing that the core saw or did.
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// A frame was answered; `truth` travelled with it.
    Answered {
        camera: String,
        label: ClassIndex,
        source_label: ClassIndex,
        confidence: f32,
        entropy: f32,
        truth: Option<ClassIndex>,
        domain: Option<String>,
    },
    /// A label came later and was matched with an answered frame.
    Labelled {
        adapted_hit: bool,
        source_hit: bool,
    },
    /// A label whose frame is not, or no longer, known.
    LabelUnmatched,
    /// Prequential accuracies over the last labelled frames, 0..=1.
    Accuracy {
        adapted: f64,
        source: f64,
    },
    WindowAdapted {
        version: WeightsVersion,
        report: WindowReport,
    },
    /// `report` is there when the decision came after the diffusion model had looked.
    WindowSkipped {
        reason: SkipReason,
        report: Option<WindowReport>,
    },
    /// The weights that answer from now on.
    Serving {
        version: WeightsVersion,
    },
    /// Score: standard deviations between the recent frames and the reference statistics.
    Drift {
        state: DriftState,
        score: f64,
    },
    /// Predictions are concentrated on few classes: entropy of the mean prediction over ln K, 0..=1.
    Collapse {
        is_collapsed: bool,
        diversity: f64,
    },
    AdaptationSwitched {
        enabled: bool,
    },
    WeightsReset,
    RolledBack {
        version: WeightsVersion,
    },
}
