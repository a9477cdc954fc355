//! What the diffusion model may see in training beside the images themselves: other shapes, other tones, parts that are hidden or covered,
//! and what lies over an image.
//!
//! A judge that has seen nothing but clean images agrees with itself on nonsense where a picture is unlike them. No noise, blur or weather
//! is among this. Where both slants are opposite they are a turn, of up to 14 degrees and mostly less than 6: so a turned mounting and an
//! oblique view are not new in kind to the judge, nor are blocks that are missing; the broadest waves are uneven light, and the finest are
//! like the raw mosaic; bars are like wires, cracks and rain, and small ellipses like insects and the mud of spatter. [`distortion`] says
//! what its own are like.

mod distortion;

use super::dice::Dice;
use super::warp::{Outside, Place, warp};
use crate::model::ImageShape;
use crate::noise::NoiseKey;
use std::f64::consts::TAU;

const BLACK: f32 = -1.0;

/// What may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Augmentation {
    /// Shape and tone, and parts are hidden
    Shapes,
    /// The same, and another image or waves lie over it
    Overlays,
    /// The same, and ellipses, rectangles and bars of any slant cover parts
    Covers,
    /// Half of the images the same; in the others lines move, tones go up and down, edges are filtered, light and shade fall
    Distortions,
}

/// How often an image changes its shape, and how far: the logarithm of its size and of its aspect ratio, and the tangent of its slant.
const SHAPE_PROBABILITY: f64 = 0.7;
const SIZE_MAX: f64 = 0.25;
const ASPECT_MAX: f64 = 0.2;
const SLANT_MAX: f64 = 0.25;

/// How often it changes its tone, and the logarithm of the exponent.
const TONE_PROBABILITY: f64 = 0.5;
const TONE_MAX: f64 = 0.8;

/// How often parts are hidden behind rectangles of one level each (random erasing, arXiv 1708.04896): at most so many, their sides as
/// shares of the image's.
const ERASING_PROBABILITY: f64 = 0.6;
const ERASED_MAX: u32 = 3;
const ERASED_SIDE: (f64, f64) = (0.06, 0.4);

/// How often another image shines through, and up to which share of what is seen (as mixup, arXiv 1710.09412, under the label of the one
/// that is seen more of).
const GHOST_PROBABILITY: f64 = 0.3;
const GHOST_SHARE_MAX: f64 = 0.4;

/// How often plane waves lie over an image (arXiv 2403.01944), how many at most, their waves across an image, and the largest
/// amplitude.
const WAVES_PROBABILITY: f64 = 0.4;
const WAVES_MAX: u32 = 2;
const WAVES_ACROSS: (f64, f64) = (1.0, 16.0);
const AMPLITUDE_MAX: f64 = 0.6;

/// How often parts are covered, by how many covers at most, half their length and width as shares of the image's sides, how much of a cover
/// is seen, and how often it shows another image (as CutMix, arXiv 1905.04899, under the label of the one that is covered).
const COVER_PROBABILITY: f64 = 0.5;
const COVERS_MAX: u32 = 4;
const COVER_HALF: (f64, f64) = (0.02, 0.3);
const COVER_OPACITY: (f64, f64) = (0.3, 1.0);
const GHOST_COVER_PROBABILITY: f64 = 0.5;

/// How often an image is distorted in place of overlays, covers and hidden parts: what a camera meets is seldom all at once.
const DISTORTION_PROBABILITY: f64 = 0.5;

/// An image (C, H, W) in -1..=1 as `key` changes it; `ghost` is another one.
pub fn augmented(image: &[f32], ghost: &[f32], shape: ImageShape, augmentation: Augmentation, key: NoiseKey) -> Vec<f32> {
    let mut dice = Dice::new(key);
    let mut image = if dice.happens(SHAPE_PROBABILITY) { reshaped(image, shape, &mut dice) } else { image.to_vec() };
    if dice.happens(TONE_PROBABILITY) {
        let exponent = dice.between(-TONE_MAX, TONE_MAX).exp() as f32;
        image.iter_mut().for_each(|value| *value = 2.0 * ((*value + 1.0) / 2.0).clamp(0.0, 1.0).powf(exponent) - 1.0);
    }
    if augmentation == Augmentation::Distortions && dice.happens(DISTORTION_PROBABILITY) {
        distortion::distort(&mut image, shape, &mut dice);
        return image;
    }
    if augmentation != Augmentation::Shapes {
        overlay(&mut image, ghost, shape, &mut dice);
    }
    if matches!(augmentation, Augmentation::Covers | Augmentation::Distortions) && dice.happens(COVER_PROBABILITY) {
        (0..=dice.below(COVERS_MAX)).for_each(|_| cover(&mut image, ghost, shape, &mut dice));
    }
    if dice.happens(ERASING_PROBABILITY) {
        (0..=dice.below(ERASED_MAX)).for_each(|_| erase(&mut image, shape, &mut dice));
    }
    image
}

/// Larger or smaller, wider or higher, and slanting.
fn reshaped(image: &[f32], shape: ImageShape, dice: &mut Dice) -> Vec<f32> {
    let (size, aspect) = (dice.between(-SIZE_MAX, SIZE_MAX), dice.between(-ASPECT_MAX, ASPECT_MAX));
    let (across, down) = ((size + aspect).exp(), (size - aspect).exp());
    let mut slant = || dice.between(-SLANT_MAX, SLANT_MAX);
    let matrix = [across, across * slant(), down * slant(), down];
    warp(image, shape, &Place { matrix, shift: [0.0; 2] }, Outside::Flat(BLACK))
}

/// Lets `ghost` shine through, and lays waves over it.
fn overlay(image: &mut [f32], ghost: &[f32], shape: ImageShape, dice: &mut Dice) {
    if dice.happens(GHOST_PROBABILITY) {
        let share = dice.between(0.0, GHOST_SHARE_MAX) as f32;
        image.iter_mut().zip(ghost).for_each(|(value, ghost)| *value += share * (ghost - *value));
    }
    if dice.happens(WAVES_PROBABILITY) {
        (0..=dice.below(WAVES_MAX)).for_each(|_| add_wave(image, shape, dice));
    }
}

/// Adds a plane wave of any direction and phase.
fn add_wave(image: &mut [f32], shape: ImageShape, dice: &mut Dice) {
    let across = dice.between(WAVES_ACROSS.0.ln(), WAVES_ACROSS.1.ln()).exp();
    let (direction, phase) = (dice.between(0.0, TAU), dice.between(0.0, TAU));
    let amplitude = dice.between(0.0, AMPLITUDE_MAX);
    let (along_x, along_y) = (direction.cos() * across * TAU / shape.width as f64, direction.sin() * across * TAU / shape.height as f64);
    for plane in image.chunks_exact_mut(shape.height * shape.width) {
        for (y, row) in plane.chunks_exact_mut(shape.width).enumerate() {
            for (x, value) in row.iter_mut().enumerate() {
                let wave = amplitude * (along_x * x as f64 + along_y * y as f64 + phase).sin();
                *value = (*value + wave as f32).clamp(-1.0, 1.0);
            }
        }
    }
}

/// Covers an ellipse, a rectangle or a bar through the whole image, of any slant, with one level or with what `ghost` has there.
fn cover(image: &mut [f32], ghost: &[f32], shape: ImageShape, dice: &mut Dice) {
    let from_middle = slanted(shape, COVER_HALF, dice);
    let outline = dice.below(3);
    let level = (!dice.happens(GHOST_COVER_PROBABILITY)).then(|| dice.between(-1.0, 1.0) as f32);
    let opacity = dice.between(COVER_OPACITY.0, COVER_OPACITY.1) as f32;
    let is_covered = |place: usize| {
        let (along, across) = from_middle(place);
        match outline {
            0 => along * along + across * across <= 1.0,
            1 => along.abs() <= 1.0 && across.abs() <= 1.0,
            _ => across.abs() <= 1.0,
        }
    };
    for (_, (value, ghost)) in image.iter_mut().zip(ghost).enumerate().filter(|(place, _)| is_covered(*place)) {
        *value += opacity * (level.unwrap_or(*ghost) - *value);
    }
}

/// Draws a middle, a slant, a length and a width; gives how far along and across from that middle a value of the image lies, in lengths
/// and widths. These are between `sizes`, as shares of the image's sides.
fn slanted(shape: ImageShape, sizes: (f64, f64), dice: &mut Dice) -> impl Fn(usize) -> (f64, f64) + use<> {
    let [length, width] = [(); 2].map(|()| dice.between(sizes.0.ln(), sizes.1.ln()).exp());
    let [middle_x, middle_y] = [(); 2].map(|()| dice.between(0.0, 1.0));
    let (sine, cosine) = dice.between(0.0, TAU).sin_cos();
    move |index| {
        let place = index % (shape.height * shape.width);
        let x = (place % shape.width) as f64 / (shape.width - 1) as f64 - middle_x;
        let y = (place / shape.width) as f64 / (shape.height - 1) as f64 - middle_y;
        ((cosine * x + sine * y) / length, (cosine * y - sine * x) / width)
    }
}

/// Hides a rectangle behind one level, anywhere but in the last row and column.
fn erase(image: &mut [f32], shape: ImageShape, dice: &mut Dice) {
    let mut range = |length: usize| {
        let side = (length as f64 * dice.between(ERASED_SIDE.0, ERASED_SIDE.1)).ceil();
        // A position that is not negative, within the image.
        let start = dice.between(0.0, length as f64 - side) as usize;
        start..start + side as usize
    };
    let (rows, columns) = (range(shape.height), range(shape.width));
    let level = dice.between(-1.0, 1.0) as f32;
    for plane in image.chunks_exact_mut(shape.height * shape.width) {
        plane.chunks_exact_mut(shape.width).take(rows.end).skip(rows.start).for_each(|row| row[columns.clone()].fill(level));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ImageShape = ImageShape { channels: 2, height: 9, width: 7 };

    fn dice(index: u64) -> Dice {
        Dice::new(NoiseKey::from_seed(1, "augmentation test", index))
    }

    #[test]
    fn an_augmented_image_stays_in_range_and_follows_its_key() {
        let image: Vec<f32> = (0..126u8).map(|i| f32::from(i) / 62.5 - 1.0).collect();
        let key = |index| NoiseKey::from_seed(1, "augmentation test", index);
        let ghost: Vec<f32> = image.iter().map(|value| -value).collect();
        // Of four thousand, those whose shape and tone stay and of which nothing is hidden: 0.3 x 0.5 x 0.4, of these without a ghost and
        // waves 0.7 x 0.6, and of these without covers 0.5; five standard deviations to each side. A cover may lie beside the image. Half
        // of those that are distorted have the same chance, and the others 0.3 x 0.5 x 0.6^4; but lines may move by nothing.
        let kinds = [
            (Augmentation::Shapes, 165..=315),
            (Augmentation::Overlays, 52..=150),
            (Augmentation::Covers, 16..=105),
            (Augmentation::Distortions, 20..=120),
        ];
        for (augmentation, as_they_were) in kinds {
            let of_key = |index| augmented(&image, &ghost, SHAPE, augmentation, key(index));
            for index in 0..100 {
                let changed = of_key(index);
                assert!(changed.iter().all(|value| (-1.0..=1.0).contains(value)), "{index}: {changed:?}");
                assert_eq!(changed, of_key(index));
            }
            let kept = (0..4000).filter(|&index| of_key(index) == image).count();
            assert!(as_they_were.contains(&kept), "{augmentation:?}: {kept} of 4000 images are as they were");
        }
    }

    #[test]
    fn overlays_are_a_ghost_and_waves_over_the_whole_image() {
        let flat = vec![0.0; SHAPE.elements()];
        let with = |ghost: f32, index| {
            let mut image = flat.clone();
            overlay(&mut image, &vec![ghost; SHAPE.elements()], SHAPE, &mut dice(index));
            image
        };
        for index in 0..100 {
            let (waves, both) = (with(0.0, index), with(0.5, index));
            assert!(waves.iter().all(|value| value.abs() <= 1.0), "{index}: {waves:?}");
            assert_eq!(waves[..63], waves[63..], "{index}: each plane has the same waves");
            let is_cut = |(both, waves): &(&f32, &f32)| both.abs() == 1.0 || waves.abs() == 1.0;
            let shares: Vec<f32> = both.iter().zip(&waves).filter(|pair| !is_cut(pair)).map(|(both, waves)| (both - waves) / 0.5).collect();
            assert!(shares.iter().all(|share| (share - shares[0]).abs() < 1e-5 && (0.0..=0.4).contains(share)), "{index}: {shares:?}");
        }
        let changed = |ghost| (0..1000).filter(|&index| with(ghost, index) != flat).count();
        // 0.4 and 0.3 + 0.7 x 0.4 of a thousand; five standard deviations are 78.
        assert!((322..=478).contains(&changed(0.0)) && (502..=658).contains(&changed(0.5)), "{} and {}", changed(0.0), changed(0.5));
    }

    #[test]
    fn a_rectangle_of_one_level_is_hidden_and_nothing_else() {
        for index in 0..100 {
            let mut image = vec![2.0; SHAPE.elements()];
            erase(&mut image, SHAPE, &mut dice(index));
            let places: Vec<usize> = (0..image.len()).filter(|&place| image[place] != 2.0).collect();
            let (rows, columns) = (places.iter().map(|p| p / 7 % 9), places.iter().map(|p| p % 7));
            let extent = |of: &mut dyn Iterator<Item = usize>| {
                let (low, high) = of.fold((usize::MAX, 0), |(low, high), at| (low.min(at), high.max(at)));
                high - low + 1
            };
            let (high, wide) = (extent(&mut rows.into_iter()), extent(&mut columns.into_iter()));
            assert_eq!(places.len(), SHAPE.channels * high * wide, "{index}: one rectangle, in each plane");
            assert!(high <= 4 && wide <= 3, "{index}: {high} by {wide}, of 9 by 7 at most 0.4, rounded up");
            assert!(places.iter().all(|&place| image[place] == image[places[0]]), "{index}: one level");
        }
    }

    #[test]
    fn a_cover_has_one_level_or_is_part_of_the_other_image_and_lets_as_much_of_the_first_through_everywhere() {
        let (image, ghost) = (vec![-0.5; SHAPE.elements()], (0..126u8).map(|i| f32::from(i % 63) / 62.0).collect::<Vec<f32>>());
        let (mut flat, mut of_ghost) = (0, 0);
        for index in 0..200 {
            let mut changed = image.clone();
            cover(&mut changed, &ghost, SHAPE, &mut dice(index));
            assert_eq!(changed[..63], changed[63..], "{index}: each plane is covered alike");
            assert!(changed.iter().all(|value| value.abs() <= 1.0), "{index}: {changed:?}");
            let covered: Vec<usize> = (0..63).filter(|&place| changed[place] != -0.5).collect();
            // Too few to tell one from the other.
            if covered.len() < 3 {
                continue;
            }
            let opacity = |place: usize| (changed[place] + 0.5) / (ghost[place] + 0.5);
            let is_flat = covered.iter().all(|&place| changed[place] == changed[covered[0]]);
            let is_of_ghost =
                covered.iter().all(|&place| (opacity(place) - opacity(covered[0])).abs() < 1e-5 && (0.3..=1.0).contains(&opacity(place)));
            assert!(is_flat != is_of_ghost, "{index}: {changed:?}");
            *(if is_flat { &mut flat } else { &mut of_ghost }) += 1;
        }
        assert!(flat.min(of_ghost) > 40, "{flat} covers of one level, {of_ghost} of the other image");
    }

    #[test]
    fn black_stays_black_when_a_shape_changes() {
        let flat = vec![BLACK; SHAPE.elements()];
        assert!((0..20).all(|index| reshaped(&flat, SHAPE, &mut dice(index)) == flat));
    }
}
