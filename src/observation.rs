//! What the core saw and did, as values: the telemetry alone knows metric names.

use crate::frame::{ClassIndex, WeightsVersion};
use crate::guard::Withheld;

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
    /// The guard let none of its frames through.
    Withheld,
    /// The guard found harm on the canary, and took what was learned back.
    Harmful,
    /// The guard has found harm before, and no operator has switched adaptation on since.
    Frozen,
}

impl SkipReason {
    pub const ALL: [Self; 8] =
        [Self::Disabled, Self::Overload, Self::Unreliable, Self::Misfit, Self::Rejected, Self::Withheld, Self::Harmful, Self::Frozen];

    /// Value of the metric label `reason`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Overload => "overload",
            Self::Unreliable => "unreliable",
            Self::Misfit => "misfit",
            Self::Rejected => "rejected",
            Self::Withheld => "withheld",
            Self::Harmful => "harmful",
            Self::Frozen => "frozen",
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
    Answered {
        camera: String,
        label: ClassIndex,
        confidence: f32,
        entropy: f32,
    },
    /// A label came later and was matched with an answered frame.
    Labelled,
    /// A label whose frame is not, or no longer, known.
    LabelUnmatched,
    WindowAdapted {
        version: WeightsVersion,
        report: WindowReport,
    },
    /// `report` is there when the decision came after the diffusion model had looked.
    WindowSkipped {
        reason: SkipReason,
        report: Option<WindowReport>,
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
    /// Frames of a window that the guard kept out.
    Withheld(Withheld),
    /// The guard took back what was learned, and learning stops; `version` holds the last weights that did no harm.
    Frozen {
        version: WeightsVersion,
    },
    RolledBack {
        version: WeightsVersion,
    },
}
