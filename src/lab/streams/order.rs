//! Which scene comes when.

use super::scene::{Layer, Segment};
use crate::lab::corruptions::{Corruption, Draws, HeldOut, Severity};

/// Sizes of `parts` parts of `frames`, which differ by at most one; the larger ones come first.
fn shares(frames: usize, parts: usize) -> impl Iterator<Item = usize> {
    (0..parts).map(move |part| frames / parts + usize::from(part < frames % parts))
}

/// Clean, then each layer by itself.
fn in_turn(layers: impl IntoIterator<Item = Layer>, frames: usize) -> Vec<Segment> {
    each_in_turn(layers.into_iter().map(|layer| vec![layer]), frames)
}

/// Clean, then what each of `scenes` lays over the image.
fn each_in_turn(scenes: impl IntoIterator<Item = Vec<Layer>>, frames: usize) -> Vec<Segment> {
    let scenes: Vec<_> = std::iter::once(Vec::new()).chain(scenes).collect();
    let lengths = shares(frames, scenes.len());
    scenes.into_iter().zip(lengths).map(|(layers, frames)| Segment::of(layers, frames)).collect()
}

/// Clean, then each corruption by itself.
pub fn corruptions(corruptions: &[Corruption], frames: usize, severity: Severity) -> Vec<Segment> {
    in_turn(corruptions.iter().map(|&corruption| Layer::Corruption(corruption, severity)), frames)
}

/// Clean, then each set of corruptions laid over one another.
pub fn sets(corruptions: &[Corruption], frames: usize, severity: Severity) -> Vec<Segment> {
    let has = |set: usize, position: usize| set >> position & 1 == 1;
    let members = |set| corruptions.iter().enumerate().filter(move |&(position, _)| has(set, position));
    let layers = |set| members(set).map(|(_, &corruption)| Layer::Corruption(corruption, severity)).collect();
    each_in_turn((1..1 << corruptions.len()).map(layers), frames)
}

pub fn held_out(corruptions: &[HeldOut], frames: usize) -> Vec<Segment> {
    in_turn(corruptions.iter().copied().map(Layer::HeldOut), frames)
}

/// Each domain is met with the source weights.
pub fn separate(frames: usize, severity: Severity) -> Vec<Segment> {
    let domains = corruptions(&Corruption::ALL, frames, severity).into_iter();
    domains.map(|segment| Segment { is_fresh_start: true, ..segment }).collect()
}

/// Each corruption rises from severity 1 to `peak` and falls again (CoTTA, arXiv 2203.13591, section 5.3).
pub fn gradual(frames: usize, peak: Severity) -> Vec<Segment> {
    let rising = Severity::ALL.into_iter().filter(|&severity| severity < peak);
    let ramp: Vec<_> = rising.clone().chain([peak]).chain(rising.rev()).collect();
    let ramps = |segment: Segment| match segment.scene.layers[..] {
        [Layer::Corruption(corruption, _)] => ramp
            .iter()
            .zip(shares(segment.frames, ramp.len()))
            .map(|(&severity, frames)| Segment::of([Layer::Corruption(corruption, severity)], frames))
            .collect(),
        _ => vec![segment],
    };
    corruptions(Corruption::STANDARD, frames, peak).into_iter().flat_map(ramps).collect()
}

/// As many frames of each domain as in the continual stream, shuffled.
pub fn mixed(frames: usize, severity: Severity, draws: &mut Draws) -> Vec<Segment> {
    let domains = corruptions(Corruption::STANDARD, frames, severity).into_iter();
    let mut single: Vec<_> =
        domains.flat_map(|segment| std::iter::repeat_n(Segment { frames: 1, ..segment.clone() }, segment.frames)).collect();
    draws.shuffle(&mut single);
    single
}

/// The continual order `visits` times (PeTTA, arXiv 2311.18193, recurring test-time adaptation).
pub fn recurring(frames: usize, severity: Severity, visits: usize) -> Vec<Segment> {
    let pass = |frames| corruptions(Corruption::STANDARD, frames, severity);
    shares(frames, visits).flat_map(pass).collect()
}
