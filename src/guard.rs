//! What keeps a stream from doing harm: frames that teach too often, cameras that teach too much, and what was learned amiss.
//!
//! Whoever can publish frames can try to teach nonsense, and the gate ([`crate::policy`]) only knows what both models say of the
//! frames. Three things do not depend on that. Like frames are learned from a few times only ([`repeats`]). A camera accounts for a
//! few times its equal share of the change at most ([`shares`]). And the weights are looked at on labelled images that no camera has
//! sent ([`canary`]): where they answer those worse than the source, as far as a sequential test can tell, they are taken back to
//! the last that did not, and learning stops until an operator switches it on again.
//!
//! Pure. Invariant: all that is remembered is in [`GuardState`], so a replay withholds and takes back the same.

pub mod canary;
pub mod repeats;
pub mod shares;

use crate::learner::GuardConfig;
use crate::model::ImageShape;
use crate::pipeline::WindowFrame;
use canary::Evidence;
use repeats::Repeats;
use serde::{Deserialize, Serialize};
use shares::CameraShares;

/// What the guard remembers from window to window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardState {
    /// What was learned was taken back, and nothing is learned until an operator says so.
    pub is_frozen: bool,
    pub evidence: Evidence,
    pub repeats: Repeats,
    pub shares: CameraShares,
}

/// Frames of a window that are not learned from, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Withheld {
    /// Their like was learned from often enough.
    pub repeated: u32,
    /// Their camera has taught more than its share.
    pub over_share: u32,
}

impl GuardState {
    /// Leaves the frames of a window that may be learned from; `shape` is that of their views.
    pub fn admit(&mut self, frames: &mut Vec<WindowFrame>, shape: ImageShape, config: &GuardConfig) -> Withheld {
        let mut withheld = Withheld::default();
        self.shares.see(frames.iter().map(|frame| frame.camera.as_str()));
        frames.retain(|frame| {
            let is_over_share = !self.shares.admits(&frame.camera, config.camera_share_max);
            // The last view is the one that brightness changes least.
            let view = &frame.views[frame.views.len() - shape.elements()..];
            let is_repeated = !is_over_share && self.repeats.is_repeat(view, shape, config.repeats_max);
            withheld.over_share += u32::from(is_over_share);
            withheld.repeated += u32::from(is_repeated);
            !is_over_share && !is_repeated
        });
        withheld
    }

    /// What is remembered once an operator has looked at the harm: the frames and cameras, not the evidence.
    pub fn thawed(self) -> Self {
        Self { is_frozen: false, evidence: Evidence::default(), ..self }
    }
}
