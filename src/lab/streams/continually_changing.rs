//! Continuously changing corruptions: CCC (Press et al., "RDumb", NeurIPS 2023; github.com/oripress/CCC, `generate.py`).
//!
//! Two corruptions lie over each frame. While one fades, the other grows, along that path through the grid of their severities on which
//! the source's accuracy stays nearest to a target; then the second fades for a third, and so on.
//! Unlike there: severities are whole, as the tables have no constants between; a path begins where the last one ended, so that only one
//! severity changes at a time; and the next corruption is drawn from those whose path keeps near the target, where CCC has a list.

use super::calibration::{Calibration, Part, mix};
use super::scene::Segment;
use crate::lab::corruptions::{Corruption, Draws};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Frames between two changes of a severity.
const HOLD_FRAMES: usize = 50;

/// Mean distance from the target accuracy up to which a path is as good as any.
const NEAR: f64 = 0.1;

const SEVERITY_MAX: u8 = 5;

/// The accuracy at which `ccc` keeps the source classifier.
#[derive(Clone, Copy, Debug)]
pub struct Walk<'a> {
    pub calibration: &'a Calibration,
    /// 0..=1
    pub source_accuracy: f64,
}

/// Severities of the corruption that fades and of the one that grows.
type Point = (u8, u8);

/// A way through the grid of two corruptions.
#[derive(Clone, Default)]
struct Path {
    points: Vec<Point>,
    /// Sum over the points of their distances from the target accuracy.
    deviation: f64,
}

impl Path {
    fn then(mut self, point: Point, deviation: f64) -> Self {
        self.points.push(point);
        self.deviation += deviation;
        self
    }

    fn mean_deviation(&self) -> f64 {
        self.deviation / f64::from(u8::try_from(self.points.len()).expect("a path has at most eleven points"))
    }
}

/// A random walk over pairs of standard corruptions, `frames` long.
pub fn segments(walk: Walk<'_>, frames: usize, draws: &mut Draws) -> Vec<Segment> {
    let (mut fading, mut severity) = walk.first(draws);
    let mut scenes = vec![mix([(fading, severity)])];
    while scenes.len() * HOLD_FRAMES < frames {
        let (growing, path) = walk.next((fading, severity), draws);
        scenes.extend(path.points.iter().skip(1).map(|&(from, to)| mix([(fading, from), (growing, to)])));
        (fading, severity) = (growing, path.points.last().map_or(0, |&(_, to)| to));
    }
    let lengths = (0..frames).step_by(HOLD_FRAMES).map(|start| HOLD_FRAMES.min(frames - start));
    let segment = |(scene, frames)| Segment { scene: Arc::new(scene), frames, is_fresh_start: false };
    scenes.into_iter().zip(lengths).map(segment).collect()
}

impl Walk<'_> {
    fn deviation(&self, parts: [Part; 2]) -> f64 {
        (self.calibration.accuracy(parts) - self.source_accuracy).abs()
    }

    /// One corruption by itself.
    fn first(&self, draws: &mut Draws) -> Part {
        let parts = Corruption::STANDARD.iter().flat_map(|&corruption| (1..=SEVERITY_MAX).map(move |severity| (corruption, severity)));
        choose(parts.map(|part| (part, self.deviation([part, (part.0, 0)]))).collect(), draws)
    }

    /// What grows while `fading` goes, and how.
    fn next(&self, fading: Part, draws: &mut Draws) -> (Corruption, Path) {
        let others = Corruption::STANDARD.iter().filter(|&&other| other != fading.0);
        let paths = others.map(|&growing| (growing, best_path(fading.1, |(from, to)| self.deviation([(fading.0, from), (growing, to)]))));
        choose(paths.map(|(growing, path)| ((growing, path.clone()), path.mean_deviation())).collect(), draws)
    }
}

/// One of the candidates that are near the target, or the nearest. A candidate comes with its distance.
fn choose<T>(candidates: Vec<(T, f64)>, draws: &mut Draws) -> T {
    let (mut near, far): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|&(_, deviation)| deviation <= NEAR);
    let chosen = match near.len() {
        0 => far.into_iter().min_by(|one, other| one.1.total_cmp(&other.1)).expect("there are fifteen corruptions"),
        count => near.swap_remove(draws.below(count)),
    };
    chosen.0
}

/// The path from (`severity`, 0) to (0, any) with the least mean deviation; each of its points lowers the first severity by one or
/// raises the second.
fn best_path(severity: u8, deviation: impl Fn(Point) -> f64) -> Path {
    let mut paths: BTreeMap<Point, Path> = BTreeMap::new();
    for from in (0..=severity).rev() {
        for to in 0..=SEVERITY_MAX {
            let before = [Some((from + 1, to)), to.checked_sub(1).map(|to| (from, to))];
            let before = before.into_iter().flatten().filter_map(|point| paths.get(&point));
            let shortest = before.min_by(|one, other| one.deviation.total_cmp(&other.deviation)).cloned().unwrap_or_default();
            paths.insert((from, to), shortest.then((from, to), deviation((from, to))));
        }
    }
    let ends = (1..=SEVERITY_MAX).filter_map(|to| paths.remove(&(0, to)));
    ends.min_by(|one, other| one.mean_deviation().total_cmp(&other.mean_deviation())).expect("the loop reached every point")
}
