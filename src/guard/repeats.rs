//! Like frames: from a camera that stands still, or that sends one frame again and again.
//!
//! What is wrong on one frame would be learned with each repeat (arXiv 2412.01154). So a frame is remembered by the means of 8 x 8
//! cells, and frames that are like one of the last that were remembered are learned from a few times in all.

use crate::model::ImageShape;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Cells of a side.
const CELLS: usize = 8;
/// Frames that are remembered.
const MEMORY: usize = 256;
/// Mean distance of the cells, in 255ths of the full range, up to which two frames are alike: noise of a sensor, another compression.
const DISTANCE_MAX: u32 = 3;

/// The frames that were learned from lately.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repeats {
    /// The one that was seen last comes last; at most [`MEMORY`].
    seen: VecDeque<Seen>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    #[serde(with = "serde_bytes")]
    cells: Vec<u8>,
    /// How often the frame or its like were learned from.
    times: u32,
}

impl Repeats {
    /// Whether the like of this view, (C, H, W) from -1 to 1, was learned from `times_max` times; remembers it.
    pub fn is_repeat(&mut self, view: &[f32], shape: ImageShape, times_max: u32) -> bool {
        let cells = cells(view, shape);
        let known = self.seen.iter().position(|seen| are_alike(&seen.cells, &cells));
        // The cells stay those of the first, so that a slow change is not taken for a repeat.
        let mut seen = known.and_then(|position| self.seen.remove(position)).unwrap_or(Seen { cells, times: 0 });
        let is_repeat = seen.times >= times_max;
        seen.times += u32::from(!is_repeat);
        if self.seen.len() == MEMORY {
            self.seen.pop_front();
        }
        self.seen.push_back(seen);
        is_repeat
    }
}

/// Means of the cells over all channels, 0..=255.
fn cells(view: &[f32], shape: ImageShape) -> Vec<u8> {
    let ImageShape { height, width, .. } = shape;
    let (mut sums, mut counts) = ([0f32; CELLS * CELLS], [0f32; CELLS * CELLS]);
    for plane in view.chunks_exact(height * width) {
        for (y, row) in plane.chunks_exact(width).enumerate() {
            for (x, value) in row.iter().enumerate() {
                let cell = y * CELLS / height * CELLS + x * CELLS / width;
                sums[cell] += value;
                counts[cell] += 1.0;
            }
        }
    }
    // -1..=1 to 0..=255; of a frame smaller than the cells, some hold nothing.
    sums.iter().zip(counts).map(|(sum, count)| ((sum / count.max(1.0) + 1.0) * 127.5).round() as u8).collect()
}

fn are_alike(a: &[u8], b: &[u8]) -> bool {
    let distance: u32 = a.iter().zip(b).map(|(&a, &b)| u32::from(a.abs_diff(b))).sum();
    distance <= DISTANCE_MAX * (CELLS * CELLS) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::NoiseKey;

    const SHAPE: ImageShape = ImageShape { channels: 1, height: 32, width: 32 };

    fn view(seed: u64) -> Vec<f32> {
        let key = NoiseKey::from_seed(seed, "view", 0);
        let cell = |y: usize, x: usize| (y / 4 * 8 + x / 4) as u32;
        (0..1024).map(|i| key.uniform_below(cell(i / 32, i % 32), 256) as f32 / 127.5 - 1.0).collect()
    }

    #[test]
    fn a_frame_and_its_noisy_likes_are_learned_from_so_often_and_no_more() {
        let mut repeats = Repeats::default();
        let noisy = |n: u64| {
            let (mut view, mut noise) = (view(1), [0f32; 1024]);
            NoiseKey::from_seed(n, "noise", 0).fill_normal(0, &mut noise);
            view.iter_mut().zip(noise).for_each(|(value, noise)| *value = (*value + 0.03 * noise).clamp(-1.0, 1.0));
            view
        };
        let learned = (0..50).filter(|&n| !repeats.is_repeat(&noisy(n), SHAPE, 4)).count();
        assert_eq!(learned, 4);
    }

    #[test]
    fn other_frames_are_learned_from_and_push_out_the_oldest() {
        let mut repeats = Repeats::default();
        assert!((0..1000).all(|seed| !repeats.is_repeat(&view(seed), SHAPE, 1)), "no two of them are alike");
        assert_eq!(repeats.seen.len(), MEMORY);
        assert!(repeats.is_repeat(&view(999), SHAPE, 1));
        assert!(!repeats.is_repeat(&view(0), SHAPE, 1), "it was pushed out");
    }

    #[test]
    fn frames_of_any_size_have_cells() {
        for (height, width) in [(1, 1), (3, 50), (8, 8), (9, 17)] {
            let shape = ImageShape { channels: 3, height, width };
            assert_eq!(cells(&vec![1.0; shape.elements()], shape).len(), CELLS * CELLS);
        }
    }
}
