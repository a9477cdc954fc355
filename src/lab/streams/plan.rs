//! From a stream's name to its frames.

use super::continually_changing::{self, Walk};
use super::name::Stream;
use super::scene::{Layer, Scene, Segment};
use super::{choice, day, order};
use crate::frame::{ClassIndex, Frame, FrameSeq, Image};
use crate::lab::corruptions::{Corruption, Draws, HeldOut, Severity, Table};
use crate::lab::dataset::{Labelled, pad};
use std::sync::Arc;

/// Frames draw from the streams that their indices number; the plan draws from the last.
const PLAN_DRAWS: u64 = u64::MAX;

/// What is asked of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Below 2^32.
    pub frames: usize,
    /// Of each corruption; in `gradual` the highest. Held-out corruptions and `ccc` have their own.
    pub severity: Severity,
    pub seed: u64,
    /// Of each domain, in `recurring`.
    pub visits: usize,
    /// For `ccc` alone.
    pub walk: Option<Walk<'a>>,
}

/// A frame of a stream, not yet drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedFrame {
    /// Index of the image.
    pub image: usize,
    /// Shared by the frames of a stretch.
    pub scene: Arc<Scene>,
    /// Whether the consumer goes back to its source weights before this frame.
    pub is_fresh_start: bool,
}

/// All frames of a stream, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub frames: Vec<PlannedFrame>,
    seed: u64,
}

/// A stream that cannot be planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("plan ccc: the source's accuracies under the corruptions are not given")]
    Uncalibrated,
    #[error("plan a stream: there are no images")]
    NoImages,
    #[error("plan a stream: {frames} frames, expected fewer than 2^32")]
    TooLong { frames: usize },
}

impl Plan {
    /// Plans exactly as many frames as are asked for.
    ///
    /// # Errors
    /// `Uncalibrated` for `ccc` without a walk, `NoImages` for no images, `TooLong` for more frames than can be numbered.
    pub fn new(stream: Stream, request: &Request<'_>, images: &[Labelled]) -> Result<Self, PlanError> {
        if images.is_empty() {
            return Err(PlanError::NoImages);
        }
        let draws = &mut Draws::new(request.seed, PLAN_DRAWS);
        let segments = segments(stream, request, draws)?;
        let chosen = match stream {
            Stream::Correlated => choice::in_runs(images, &segments, request.seed, draws),
            Stream::LabelShift => choice::drifting(images, request.frames, draws),
            _ => choice::at_random(images, request.frames, request.seed),
        };
        let places = segments.iter().flat_map(|segment| (0..segment.frames).map(move |frame| (segment, frame)));
        let frame = |(image, (segment, frame)): (usize, (&Segment, usize))| PlannedFrame {
            image,
            scene: segment.scene.clone(),
            is_fresh_start: segment.is_fresh_start && frame == 0,
        };
        Ok(Self { frames: chosen.into_iter().zip(places).map(frame).collect(), seed: request.seed })
    }
}

fn segments(stream: Stream, request: &Request<'_>, draws: &mut Draws) -> Result<Vec<Segment>, PlanError> {
    let &Request { frames, severity, .. } = request;
    let numbered = u32::try_from(frames).map_err(|_| PlanError::TooLong { frames })?;
    Ok(match stream {
        Stream::Clean => vec![Segment::of([], frames)],
        Stream::OfCorruption(corruption) => vec![Segment::of([Layer::Corruption(corruption, severity)], frames)],
        Stream::OfHeldOut(held_out) => vec![Segment::of([Layer::HeldOut(held_out)], frames)],
        Stream::Continual | Stream::Single | Stream::Correlated | Stream::LabelShift => {
            order::corruptions(Corruption::STANDARD, frames, severity)
        }
        Stream::Extra => order::corruptions(Corruption::EXTRA, frames, severity),
        Stream::ExtraSets => order::sets(Corruption::EXTRA, frames, severity),
        Stream::HeldOut => order::held_out(HeldOut::FIRST, frames),
        Stream::HeldOutAgain => order::held_out(HeldOut::AGAIN, frames),
        Stream::HeldOutThird => order::held_out(HeldOut::THIRD, frames),
        Stream::HeldOutFourth => order::held_out(HeldOut::FOURTH, frames),
        Stream::HeldOutFifth => order::held_out(HeldOut::FIFTH, frames),
        Stream::HeldOutSixth => order::held_out(HeldOut::SIXTH, frames),
        Stream::HeldOutSeventh => order::held_out(HeldOut::SEVENTH, frames),
        Stream::Separate => order::separate(frames, severity),
        Stream::Gradual => order::gradual(frames, severity),
        Stream::Mixed => order::mixed(frames, severity, draws),
        Stream::Recurring => order::recurring(frames, severity, request.visits),
        Stream::Ccc => continually_changing::segments(request.walk.ok_or(PlanError::Uncalibrated)?, frames, draws),
        Stream::Day => day::day(numbered, severity),
    })
}

/// A plan and what its frames are drawn from.
#[derive(Clone, Copy, Debug)]
pub struct Playback<'a> {
    pub plan: &'a Plan,
    /// Those of the plan, grey or RGB.
    pub images: &'a [Labelled],
    pub table: Table,
    /// Of a frame, in pixels: 16 or more, and no less than an image's; what is left is black.
    pub side: usize,
}

/// A frame of a stream, with the truth.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamFrame {
    pub image: Image,
    pub label: ClassIndex,
    pub domain: String,
    /// Where the stream has more than one.
    pub camera: Option<&'static str>,
    /// Whether the consumer goes back to its source weights before this frame.
    pub is_fresh_start: bool,
}

impl<'a> Playback<'a> {
    /// Draws one frame; they may be drawn in any order.
    ///
    /// # Panics
    /// When the plan has no frame `index`, or the images are not those of the plan.
    pub fn frame(&self, index: usize) -> StreamFrame {
        let PlannedFrame { image, scene, is_fresh_start } = &self.plan.frames[index];
        let Labelled { image, label } = &self.images[*image];
        let draws = &mut Draws::new(self.plan.seed, u64::try_from(index).expect("a usize fits a u64"));
        StreamFrame {
            image: scene.render(&pad(image, self.side), self.table, draws),
            label: *label,
            domain: scene.domain.clone(),
            camera: scene.camera,
            is_fresh_start: *is_fresh_start,
        }
    }

    /// All frames, in order, each drawn when it is asked for.
    pub fn frames(self) -> impl Iterator<Item = StreamFrame> + 'a {
        (0..self.plan.frames.len()).map(move |index| self.frame(index))
    }
}

impl StreamFrame {
    /// As a frame of the pipeline: the truth travels with it, for scoring only.
    pub fn into_frame(self, index: u64) -> Frame {
        let payload_hash = self.image.hash();
        let camera = self.camera.unwrap_or("lab").to_owned();
        Frame {
            frame_id: format!("{camera}:{index}"),
            camera,
            sequence: FrameSeq(index + 1),
            capture_time_ns: None,
            broker_time_ns: None,
            label: Some(self.label),
            domain: Some(self.domain),
            payload_hash,
            image: self.image,
        }
    }
}
