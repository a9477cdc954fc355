//! Augmentations: the jitter of CoTTA, RoTTA and ROID, and the AugMix of MEMO.
//!
//! Pure, by key. Images are planes (C, H, W) in -1..=1; in here they are in 0..=1.
//! Departures: hue and saturation stay, as frames may be grey; colour is jittered plane by plane.

use crate::lab::dice::Dice;
use crate::lab::warp::{Outside, Place, warp};
use crate::model::ImageShape;
use crate::noise::NoiseKey;
use rayon::prelude::*;

/// Which jitter of the public codes (`get_tta_transforms`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jitter {
    /// CoTTA's (qinenergy/cotta, `cifar/cotta.py`, with `soft = False`): light and contrast, a small turn, shift and zoom, blur,
    /// a mirror by chance, noise.
    Cotta,
    /// ROID's (mariodoebler/test-time-adaptation, `augmentations/transforms_cotta.py`, with `cotta_augs = False`): without blur
    /// and noise.
    Roid,
}

/// The images of a window, all jittered alike but for the noise, as the public codes transform a batch at once.
pub fn jittered_window(images: &[f32], shape: ImageShape, jitter: Jitter, key: NoiseKey) -> Vec<f32> {
    let images = images.par_chunks(shape.elements()).enumerate();
    images.map(|(position, image)| jittered(image, shape, jitter, key, position)).collect::<Vec<_>>().concat()
}

fn jittered(image: &[f32], shape: ImageShape, jitter: Jitter, key: NoiseKey, position: usize) -> Vec<f32> {
    let mut dice = Dice::new(key);
    let outside = if jitter == Jitter::Cotta { Outside::Edge } else { Outside::Reflect };
    let mut values = jitter_light(to_unit(image), &mut dice);
    values = warp(&values, shape, &jitter_of_place(shape, &mut dice), outside);
    let sigma = dice.between(0.001, 0.5);
    if dice.happens(0.5) {
        shape.mirror(&mut values);
    }
    if jitter == Jitter::Cotta {
        values = blur(&values, shape, sigma);
        let mut noise = vec![0f32; values.len()];
        // From the other end than the dice.
        key.fill_normal(u32::MAX - u32::try_from(position).expect("a window has few frames"), &mut noise);
        values.iter_mut().zip(noise).for_each(|(value, noise)| *value += 0.005 * noise);
    }
    from_unit(&values)
}

fn to_unit(image: &[f32]) -> Vec<f32> {
    image.iter().map(|value| (value + 1.0) / 2.0).collect()
}

fn from_unit(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| 2.0 * value.clamp(0.0, 1.0) - 1.0).collect()
}

/// Brightness, contrast and gamma, in random order.
fn jitter_light(mut values: Vec<f32>, dice: &mut Dice) -> Vec<f32> {
    let mut order = [0, 1, 2];
    order.swap(0, dice.below(3) as usize);
    order.swap(1, 1 + dice.below(2) as usize);
    for which in order {
        match which {
            0 => {
                let factor = dice.between(0.6, 1.4) as f32;
                values.iter_mut().for_each(|value| *value = (factor * *value).clamp(0.0, 1.0));
            }
            1 => {
                let factor = dice.between(0.7, 1.3) as f32;
                let mean = values.iter().sum::<f32>() / values.len() as f32;
                values.iter_mut().for_each(|value| *value = (mean + factor * (*value - mean)).clamp(0.0, 1.0));
            }
            _ => {
                let gamma = dice.between(0.7, 1.3) as f32;
                values.iter_mut().for_each(|value| *value = value.max(1e-8).powf(gamma));
            }
        }
    }
    values
}

/// Up to 15 degrees, a tenth of zoom, and a sixteenth of the padded side, which is twice the image's.
fn jitter_of_place(shape: ImageShape, dice: &mut Dice) -> Place {
    let mut shift = |side: usize| {
        let limit = side as f64 / 8.0;
        dice.between(-limit, limit).round()
    };
    let shift = [shift(shape.width), shift(shape.height)];
    Place::turn(dice.between(-15.0, 15.0), dice.between(0.9, 1.1), shift)
}

/// Gaussian blur over 5 x 5 pixels, edges continued.
fn blur(values: &[f32], shape: ImageShape, sigma: f64) -> Vec<f32> {
    let weight = |offset: f64| (-0.5 * (offset / sigma).powi(2)).exp();
    let offsets = [-2.0, -1.0, 0.0, 1.0, 2.0];
    let total: f64 = offsets.into_iter().map(weight).sum();
    let along = |values: &[f32], x: f64, y: f64| {
        let mut blurred = vec![0f32; values.len()];
        for offset in offsets {
            let share = (weight(offset) / total) as f32;
            let moved = warp(values, shape, &Place::shift([x * offset, y * offset]), Outside::Edge);
            blurred.iter_mut().zip(moved).for_each(|(sum, value)| *sum += share * value);
        }
        blurred
    };
    along(&along(values, 1.0, 0.0), 0.0, 1.0)
}

/// AugMix as MEMO uses it (zhangmarvin/memo, `cifar-10-exps/utils/third_party.py`): a random crop and mirror, mixed with
/// three chains of one to three mild operations.
///
/// Departure: shears are about the centre, not about a corner.
pub fn augmix(image: &[f32], shape: ImageShape, key: NoiseKey) -> Vec<f32> {
    let mut dice = Dice::new(key);
    let start = crop_and_mirror(&to_unit(image), shape, &mut dice);
    let chains = dice.shares();
    let kept = dice.between(0.0, 1.0) as f32;
    let mut mixed: Vec<f32> = start.iter().map(|value| kept * value).collect();
    for share in chains {
        let mut chain = start.clone();
        for _ in 0..=dice.below(3) {
            chain = mild_operation(&chain, shape, &mut dice);
        }
        let share = (1.0 - kept) * share as f32;
        mixed.iter_mut().zip(chain).for_each(|(mixed, value)| *mixed += share * value);
    }
    from_unit(&mixed)
}

/// The image cut out of itself with four black pixels around.
fn crop_and_mirror(values: &[f32], shape: ImageShape, dice: &mut Dice) -> Vec<f32> {
    let shift = [f64::from(dice.below(9)) - 4.0, f64::from(dice.below(9)) - 4.0];
    let mut cropped = warp(values, shape, &Place::shift(shift), Outside::Flat(0.0));
    if dice.happens(0.5) {
        shape.mirror(&mut cropped);
    }
    cropped
}

/// One of AugMix's nine operations at level 1.
fn mild_operation(values: &[f32], shape: ImageShape, dice: &mut Dice) -> Vec<f32> {
    const GREY: Outside = Outside::Flat(128.0 / 255.0);
    let area = shape.height * shape.width;
    let which = dice.below(9);
    let level = dice.between(0.1, 1.0);
    let shear = dice.sign() * 0.03 * level;
    let pixels = |side: usize| (level * side as f64 / 30.0).floor();
    match which {
        0 => by_plane(values, area, spread),
        1 => by_plane(values, area, equalize),
        2 => warp(values, shape, &Place::turn(dice.sign() * (3.0 * level).floor(), 1.0, [0.0; 2]), GREY),
        3 => {
            let threshold = 256.0 - (25.6 * level).floor() as f32;
            values.iter().map(|&v| if 255.0 * v >= threshold { 1.0 - v } else { v }).collect()
        }
        4 => warp(values, shape, &Place { matrix: [1.0, shear, 0.0, 1.0], shift: [0.0; 2] }, GREY),
        5 => warp(values, shape, &Place { matrix: [1.0, 0.0, shear, 1.0], shift: [0.0; 2] }, GREY),
        6 => warp(values, shape, &Place::shift([dice.sign() * pixels(shape.width), 0.0]), GREY),
        7 => warp(values, shape, &Place::shift([0.0, dice.sign() * pixels(shape.height)]), GREY),
        // Four bits are left.
        _ => values.iter().map(|&value| f32::from(byte(value) & 0xf0) / 255.0).collect(),
    }
}

fn by_plane(values: &[f32], area: usize, operation: impl Fn(&[f32]) -> Vec<f32>) -> Vec<f32> {
    values.chunks_exact(area).flat_map(operation).collect()
}

/// Of a value from 0 to 1.
fn byte(value: f32) -> u8 {
    (255.0 * value).round() as u8
}

/// Stretches a plane to the full range (Pillow's `autocontrast`).
fn spread(plane: &[f32]) -> Vec<f32> {
    let (low, high) = plane.iter().fold((f32::MAX, f32::MIN), |(low, high), &value| (low.min(value), high.max(value)));
    let range = if high > low { high - low } else { 1.0 };
    let base = if high > low { low } else { 0.0 };
    plane.iter().map(|value| (value - base) / range).collect()
}

/// Gives all levels of a plane the same share (Pillow's `equalize`).
fn equalize(plane: &[f32]) -> Vec<f32> {
    let mut histogram = [0usize; 256];
    plane.iter().for_each(|&value| histogram[usize::from(byte(value))] += 1);
    let brightest = histogram.iter().rev().find(|count| **count > 0).copied().unwrap_or(0);
    let pixels_of_a_level = (plane.len() - brightest) / 255;
    if pixels_of_a_level == 0 {
        return plane.to_vec();
    }
    let mut below = pixels_of_a_level / 2;
    let levels = histogram.map(|count| {
        let level = (below / pixels_of_a_level).min(255);
        below += count;
        level as f32 / 255.0
    });
    plane.iter().map(|&value| levels[usize::from(byte(value))]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ImageShape = ImageShape { channels: 1, height: 6, width: 6 };

    fn ramp() -> Vec<f32> {
        (0..36u8).map(|i| f32::from(i) / 35.0).collect()
    }

    #[test]
    fn blur_keeps_a_flat_image_and_lowers_a_point() {
        assert!(blur(&[0.3; 36], SHAPE, 0.5).iter().all(|value| (value - 0.3).abs() < 1e-6));
        let mut point = vec![0.0; 36];
        point[14] = 1.0;
        let blurred = blur(&point, SHAPE, 0.5);
        assert!(blurred[14] < 0.8 && blurred[13] > 0.05, "{blurred:?}");
    }

    #[test]
    fn augmentations_stay_in_range_and_follow_their_key() {
        assert_augments(|image, key| jittered_window(image, SHAPE, Jitter::Cotta, key));
        assert_augments(|image, key| jittered_window(image, SHAPE, Jitter::Roid, key));
        assert_augments(|image, key| augmix(image, SHAPE, key));
    }

    fn assert_augments(augment: impl Fn(&[f32], NoiseKey) -> Vec<f32>) {
        let image = from_unit(&ramp());
        for index in 0..100 {
            let key = NoiseKey::from_seed(1, "augmentation test", index);
            let augmented = augment(&image, key);
            assert!(augmented.iter().all(|value| (-1.0..=1.0).contains(value)), "{index}: {augmented:?}");
            assert_eq!(augmented, augment(&image, key));
            assert_ne!(augmented, augment(&image, NoiseKey::from_seed(2, "augmentation test", index)));
        }
    }

    #[test]
    fn the_images_of_a_window_differ_by_noise_alone() {
        let (image, key) = (from_unit(&ramp()), NoiseKey::from_seed(1, "window test", 0));
        let window = [image.clone(), image].concat();
        let halves = |jitter| {
            let jittered = jittered_window(&window, SHAPE, jitter, key);
            (jittered[..36].to_vec(), jittered[36..].to_vec())
        };
        let (first, second) = halves(Jitter::Roid);
        assert_eq!(first, second);
        let (first, second) = halves(Jitter::Cotta);
        assert_ne!(first, second);
        // Ten standard deviations, of values that lie in -1..=1.
        assert!(first.iter().zip(&second).all(|(a, b)| (a - b).abs() < 0.1), "{first:?} and {second:?}");
    }

    #[test]
    fn equalizing_an_even_ramp_of_levels_keeps_it() {
        let ramp: Vec<f32> = (0..1024u16).map(|i| f32::from(i / 4) / 255.0).collect();
        assert_eq!(equalize(&ramp), ramp);
    }
}
