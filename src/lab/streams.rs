//! Seeded streams of labelled frames whose corruption changes as they go.

use super::corruptions::{Corruption, Draws, Severity, Table, corrupt};
use super::dataset::{Labelled, pad};
use crate::frame::{ClassIndex, Frame, FrameSeq, Image};
use crate::noise::NoiseKey;

/// A stretch of a stream under one corruption; `None` is clean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub corruption: Option<(Corruption, Severity)>,
    pub frames: usize,
}

impl Segment {
    /// Name of the domain: the corruption, or "clean".
    pub fn domain(&self) -> &'static str {
        self.corruption.map_or("clean", |(corruption, _)| corruption.name())
    }
}

/// A frame of a stream, with the truth.
#[derive(Clone, Debug)]
pub struct StreamFrame {
    pub image: Image,
    pub label: ClassIndex,
    pub domain: String,
}

/// Images drawn at random, put into a frame of `size` x `size` and corrupted segment by segment.
///
/// Frame i depends on the seed, i and its segment alone.
pub fn frames<'a>(
    images: &'a [Labelled],
    segments: &'a [Segment],
    table: Table,
    size: usize,
    seed: u64,
) -> impl Iterator<Item = StreamFrame> + 'a {
    let of_frames = segments.iter().flat_map(|segment| std::iter::repeat_n(segment, segment.frames));
    let choice = NoiseKey::from_seed(seed, "stream", 0);
    let count = u32::try_from(images.len()).expect("fewer than 2^32 images");
    (0u32..).zip(of_frames).map(move |(i, segment)| {
        let chosen = &images[usize::try_from(choice.uniform_below(i, count)).expect("a u32 fits a usize")];
        let clean = pad(&chosen.image, size);
        let image = match segment.corruption {
            Some((corruption, severity)) => corrupt(&clean, corruption, severity, table, &mut Draws::new(seed, u64::from(i))),
            None => clean,
        };
        StreamFrame { image, label: chosen.label, domain: segment.domain().to_owned() }
    })
}

/// The field's continual stream: the fifteen standard corruptions in their order, `frames` in all, clean first.
pub fn continual(frames: usize, severity: Severity) -> Vec<Segment> {
    let corruptions: Vec<_> = std::iter::once(None).chain(Corruption::STANDARD.iter().map(|&c| Some((c, severity)))).collect();
    let (length, rest) = (frames / corruptions.len(), frames % corruptions.len());
    let segment = |(i, corruption)| Segment { corruption, frames: length + usize::from(i < rest) };
    corruptions.into_iter().enumerate().map(segment).collect()
}

impl StreamFrame {
    /// As a frame of the pipeline: the truth travels with it, for scoring only.
    pub fn into_frame(self, index: u64) -> Frame {
        let payload_hash = self.image.hash();
        Frame {
            camera: "lab".to_owned(),
            frame_id: format!("lab:{index}"),
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
