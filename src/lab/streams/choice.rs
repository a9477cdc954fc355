//! Which image comes when: at random, in runs of one class, or with class frequencies that drift.

use super::scene::Segment;
use crate::frame::ClassIndex;
use crate::lab::corruptions::Draws;
use crate::lab::dataset::Labelled;
use crate::noise::NoiseKey;
use std::collections::BTreeMap;
use std::f64::consts::TAU;

/// Concentration of the classes: the lower, the longer the runs. RoTTA (arXiv 2303.13899) and NOTE (arXiv 2208.05117) use 0.1.
const DIRICHLET_CONCENTRATION: f64 = 0.1;

/// How far class frequencies swing: exp(+-2) around their middle, so that of ten classes the most frequent has about a third.
const SHIFT_SWING: f64 = 2.0;

/// Indices of images drawn at random: that of frame i depends on the seed and i alone.
pub fn at_random(images: &[Labelled], frames: usize, seed: u64) -> Vec<usize> {
    let choice = NoiseKey::from_seed(seed, "stream", 0);
    let count = u32::try_from(images.len()).expect("fewer than 2^32 images");
    let draw = |i| usize::try_from(choice.uniform_below(i, count)).expect("a u32 fits a usize");
    (0u32..).take(frames).map(draw).collect()
}

/// The same images in each segment as [`at_random`], in runs of one class.
pub fn in_runs(images: &[Labelled], segments: &[Segment], seed: u64, draws: &mut Draws) -> Vec<usize> {
    let frames = segments.iter().map(|segment| segment.frames).sum();
    let mut chosen = at_random(images, frames, seed).into_iter();
    segments.iter().flat_map(|segment| runs(images, chosen.by_ref().take(segment.frames), draws)).collect()
}

/// RoTTA's order of a domain (`LabelDirichletDomainSequence`): each class is spread unevenly over as many slots as there are classes; slot
/// comes after slot, and in each, class after class in random order. Here each image draws its slot; there, the class is cut.
fn runs(images: &[Labelled], chosen: impl Iterator<Item = usize>, draws: &mut Draws) -> Vec<usize> {
    let classes = by_class(images, chosen);
    let mut slots = vec![Vec::new(); classes.len()];
    for of_class in classes.into_values() {
        let weights: Vec<f64> = slots.iter().map(|_| draws.gamma(DIRICHLET_CONCENTRATION)).collect();
        let mut pieces = vec![Vec::new(); slots.len()];
        of_class.into_iter().for_each(|index| pieces[draws.weighted(&weights)].push(index));
        slots.iter_mut().zip(pieces).for_each(|(slot, piece)| slot.push(piece));
    }
    slots.iter_mut().for_each(|slot| draws.shuffle(slot));
    slots.into_iter().flatten().flatten().collect()
}

/// Over the stream, each class is at its most frequent once, in random order of the classes.
pub fn drifting(images: &[Labelled], frames: usize, draws: &mut Draws) -> Vec<usize> {
    let mut classes: Vec<Vec<usize>> = by_class(images, 0..images.len()).into_values().collect();
    draws.shuffle(&mut classes);
    let share = |part: usize, whole: usize| count(part) / count(whole);
    let choose = |frame| {
        let weight = |class| (SHIFT_SWING * (TAU * (share(frame, frames) - share(class, classes.len()))).cos()).exp();
        let weights: Vec<f64> = (0..classes.len()).map(weight).collect();
        let of_class = &classes[draws.weighted(&weights)];
        of_class[draws.below(of_class.len())]
    };
    (0..frames).map(choose).collect()
}

fn by_class(images: &[Labelled], chosen: impl Iterator<Item = usize>) -> BTreeMap<ClassIndex, Vec<usize>> {
    let mut classes: BTreeMap<_, Vec<_>> = BTreeMap::new();
    chosen.for_each(|index| classes.entry(images[index].label).or_default().push(index));
    classes
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).expect("fewer than 2^32 frames"))
}
