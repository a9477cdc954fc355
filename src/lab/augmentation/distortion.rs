//! Distortions that have no name: lines move, tones go up and down, filters that do not blur, and soft light and shade.
//!
//! They are drawn from wide families rather than made after faults that are known: what a camera does next is in no list. Still, rolled
//! pictures, combing, held lines and unmatched taps move lines or change their levels, an overflow folds tones, and a lost level is such
//! a filter: the held-out sets up to the sixth are not new in kind to a judge that has seen these.

use super::slanted;
use crate::lab::dice::Dice;
use crate::model::ImageShape;
use std::f64::consts::TAU;

/// How often each kind happens.
const PROBABILITY: f64 = 0.4;

/// How far lines move at most, as shares of the image's sides, and by how much their levels change (of a range of 2).
const MOVED_ACROSS_MAX: f64 = 0.5;
const MOVED_ALONG_MAX: f64 = 0.3;
const LEVEL_MAX: f64 = 1.0;
/// Where each line goes its own way, it goes so much less far.
const OWN_WAY: f64 = 0.4;
/// Steps among the lines at most, and the waves over all of them.
const STEPS_MAX: u32 = 6;
const WAVES: (f64, f64) = (0.3, 8.0);

/// Knots of a tone curve: fewer would be a straight line, as contrast and brightness are.
const KNOTS: (u32, u32) = (3, 7);
/// How often a curve is flat from knot to knot.
const FLAT_PROBABILITY: f64 = 0.3;

/// How much of a filter's answer is seen: a step from black to white by a kernel of unit length is about 1.
const FILTER_GAIN: (f64, f64) = (0.3, 1.5);

/// Lights and shades at most, their deviations as shares of the image's sides.
const LIGHTS_MAX: u32 = 6;
const LIGHT_DEVIATION: (f64, f64) = (0.04, 0.5);

/// Distorts an image (C, H, W) in -1..=1, each plane alike.
pub fn distort(image: &mut [f32], shape: ImageShape, dice: &mut Dice) {
    if dice.happens(PROBABILITY) {
        change_lines(image, shape, dice);
    }
    if dice.happens(PROBABILITY) {
        bend_tones(image, dice);
    }
    if dice.happens(PROBABILITY) {
        filter(image, shape, dice);
    }
    if dice.happens(PROBABILITY) {
        (0..=dice.below(LIGHTS_MAX)).for_each(|_| light(image, shape, dice));
    }
}

/// What differs from line to line, in -1..=1: steps, a wave, or each line goes its own way.
fn profile(lines: usize, dice: &mut Dice) -> Vec<f64> {
    match dice.below(3) {
        0 => {
            let steps: Vec<(usize, f64)> =
                (0..=dice.below(STEPS_MAX)).map(|_| (dice.below(lines as u32) as usize, dice.between(-1.0, 1.0))).collect();
            (0..lines)
                .map(|line| steps.iter().filter(|(from, _)| *from <= line).max_by_key(|(from, _)| from).map_or(0.0, |step| step.1))
                .collect()
        }
        1 => {
            let (waves, phase) = (dice.between(WAVES.0.ln(), WAVES.1.ln()).exp(), dice.between(0.0, TAU));
            (0..lines).map(|line| (TAU * waves * line as f64 / lines as f64 + phase).sin()).collect()
        }
        _ => (0..lines).map(|_| OWN_WAY * dice.between(-1.0, 1.0)).collect(),
    }
}

/// Rows or columns show others instead, or move along, around the end; or their levels change.
fn change_lines(image: &mut [f32], shape: ImageShape, dice: &mut Dice) {
    let (height, width) = (shape.height, shape.width);
    let is_row = dice.happens(0.5);
    let (lines, length) = if is_row { (height, width) } else { (width, height) };
    let at = |line: usize, along: usize| if is_row { line * width + along } else { along * width + line };
    let profile = profile(lines, dice);
    let (kind, strength) = (dice.below(3), dice.between(0.0, 1.0));
    let around = |place: usize, by: f64, of: usize| (place as i64 + by.round() as i64).rem_euclid(of as i64) as usize;
    for plane in image.chunks_exact_mut(height * width) {
        let before = plane.to_vec();
        for (line, &profile) in profile.iter().enumerate() {
            let by = strength * profile;
            for along in 0..length {
                let place = at(line, along);
                plane[place] = match kind {
                    0 => before[at(around(line, by * MOVED_ACROSS_MAX * lines as f64, lines), along)],
                    1 => before[at(line, around(along, by * MOVED_ALONG_MAX * length as f64, length))],
                    _ => (before[place] + (by * LEVEL_MAX) as f32).clamp(-1.0, 1.0),
                };
            }
        }
    }
}

/// Tones follow a curve through random knots, as far as it is mixed with what they were.
fn bend_tones(image: &mut [f32], dice: &mut Dice) {
    let knots: Vec<f32> = (0..KNOTS.0 + dice.below(KNOTS.1 - KNOTS.0 + 1)).map(|_| dice.between(-1.0, 1.0) as f32).collect();
    let (is_flat, share) = (dice.happens(FLAT_PROBABILITY), dice.between(0.0, 1.0) as f32);
    let last = (knots.len() - 1) as f32;
    for value in image {
        let place = (*value + 1.0) / 2.0 * last;
        let knot = place.floor().min(last - 1.0);
        let between = if is_flat { (place - knot).round() } else { place - knot };
        let (low, high) = (knots[knot as usize], knots[knot as usize + 1]);
        *value += share * (low + between * (high - low) - *value);
    }
}

/// A kernel of 3 or 5 pixels whose values are random and sum to zero: it answers to edges, and blurs nothing. Its answer is mixed with the
/// image.
fn filter(image: &mut [f32], shape: ImageShape, dice: &mut Dice) {
    let reach = 1 + i64::from(dice.below(2));
    let side = 2 * reach + 1;
    let drawn: Vec<f64> = (0..side * side).map(|_| dice.between(-1.0, 1.0)).collect();
    let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
    let norm = drawn.iter().map(|value| (value - mean).powi(2)).sum::<f64>().sqrt();
    let kernel: Vec<f32> = drawn.iter().map(|value| ((value - mean) / norm) as f32).collect();
    let (share, gain) = (dice.between(0.0, 1.0) as f32, dice.between(FILTER_GAIN.0, FILTER_GAIN.1) as f32);
    for plane in image.chunks_exact_mut(shape.height * shape.width) {
        let before = plane.to_vec();
        let pixel = |y: i64, x: i64| {
            before[(y.clamp(0, shape.height as i64 - 1) * shape.width as i64 + x.clamp(0, shape.width as i64 - 1)) as usize]
        };
        for (place, value) in plane.iter_mut().enumerate() {
            let (y, x) = ((place / shape.width) as i64, (place % shape.width) as i64);
            let answer: f32 = kernel.iter().zip(0..).map(|(weight, n)| weight * pixel(y + n / side - reach, x + n % side - reach)).sum();
            *value = ((1.0 - share) * *value + gain * answer).clamp(-1.0, 1.0);
        }
    }
}

/// Light or shade that falls off as a bell, of any slant.
fn light(image: &mut [f32], shape: ImageShape, dice: &mut Dice) {
    let from_middle = slanted(shape, LIGHT_DEVIATION, dice);
    let (level, strength) = (dice.sign() as f32, dice.between(0.0, 1.0));
    for (place, value) in image.iter_mut().enumerate() {
        let (along, across) = from_middle(place);
        *value += (strength * (-0.5 * (along * along + across * across)).exp()) as f32 * (level - *value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::NoiseKey;

    const SHAPE: ImageShape = ImageShape { channels: 2, height: 9, width: 7 };

    /// What `distortion` makes of an image whose planes are alike, for so many keys; their planes stay alike, and in range.
    fn distorted(image: &[f32], distortion: impl Fn(&mut [f32], &mut Dice)) -> Vec<Vec<f32>> {
        let of = |index| {
            let mut image = [image, image].concat();
            distortion(&mut image, &mut Dice::new(NoiseKey::from_seed(1, "distortion test", index)));
            assert!(image.iter().all(|value| (-1.0..=1.0).contains(value)), "{index}: {image:?}");
            assert_eq!(image[..63], image[63..], "{index}: each plane alike");
            image.truncate(63);
            image
        };
        (0..300).map(of).collect()
    }

    /// 63 tones, none like another.
    fn ramp() -> Vec<f32> {
        (0..63u8).map(|n| f32::from(n) / 62.0 * 1.8 - 0.9).collect()
    }

    #[test]
    fn rows_or_columns_show_others_or_go_around_or_change_their_level_as_a_whole() {
        let image = ramp();
        let line = |image: &[f32], is_row, line: usize| -> Vec<f32> {
            if is_row { image[line * 7..][..7].to_vec() } else { image.iter().skip(line).step_by(7).copied().collect() }
        };
        let is_around = |a: &[f32], b: &[f32]| (0..a.len()).any(|by| [&a[by..], &a[..by]].concat() == b);
        let is_level = |a: &[f32], b: &[f32]| {
            let by = |(a, b): (&f32, &f32)| (b.abs() < 1.0).then(|| b - a);
            let mut all = a.iter().zip(b).filter_map(by);
            let first = all.next();
            all.all(|other| (other - first.expect("there is a first")).abs() < 1e-5)
        };
        let mut seen = [[0; 4]; 2];
        for changed in distorted(&image, |image, dice| change_lines(image, SHAPE, dice)) {
            let holds = |is_row: bool| {
                let lines = if is_row { 9 } else { 7 };
                let each = |is: &dyn Fn(usize) -> bool| (0..lines).all(is);
                let (before, after) = (|n| line(&image, is_row, n), |n| line(&changed, is_row, n));
                [
                    each(&|n| (0..lines).any(|other| before(other) == after(n))),
                    each(&|n| is_around(&before(n), &after(n))),
                    each(&|n| is_level(&before(n), &after(n))),
                ]
            };
            let both = [false, true].map(holds);
            assert!(both.iter().flatten().any(|&holds| holds), "{changed:?}");
            for (seen, holds) in seen.iter_mut().zip(both) {
                // What holds for no other kind and not for the other direction; the last: the image as it was.
                match (changed == image, holds.iter().position(|&holds| holds)) {
                    (true, _) => seen[3] += 1,
                    (false, Some(kind)) => seen[kind] += 1,
                    (false, None) => {}
                }
            }
        }
        assert!(seen.iter().flatten().all(|&count| count > 10), "columns and rows: {seen:?}");
    }

    #[test]
    fn tones_change_by_what_they_were_alone_and_seldom_keep_their_order() {
        let image: Vec<f32> = ramp()[..21].repeat(3);
        let all = distorted(&image, bend_tones);
        assert!(all.iter().all(|bent| bent[..21] == bent[21..42] && bent[..21] == bent[42..]), "the same tone, the same change");
        let keeps_order = |bent: &&Vec<f32>| bent[..21].is_sorted();
        let kept = all.iter().filter(keeps_order).count();
        assert!((1..150).contains(&kept), "{kept} of 300 keep the order of tones");
    }

    #[test]
    fn a_filter_answers_nothing_where_an_image_is_flat() {
        for flat in distorted(&[0.5; 63], |image, dice| filter(image, SHAPE, dice)) {
            assert!(flat.iter().all(|value| (value - flat[0]).abs() < 1e-5 && (-1e-5..=0.50001).contains(value)), "{flat:?}");
        }
        let edge: Vec<f32> = (0..63).map(|place| if place % 7 < 3 { -0.1 } else { 0.1 }).collect();
        for filtered in distorted(&edge, |image, dice| filter(image, SHAPE, dice)) {
            assert!(filtered.iter().any(|value| (value - filtered[0]).abs() > 1e-3), "an edge is seen: {filtered:?}");
        }
    }

    #[test]
    fn light_brightens_and_shade_darkens_and_most_in_one_place() {
        let mut lights = 0;
        for lit in distorted(&[0.25; 63], |image, dice| light(image, SHAPE, dice)) {
            let (brightens, darkens) = (lit.iter().all(|&value| value >= 0.25), lit.iter().all(|&value| value <= 0.25));
            assert!(brightens || darkens, "{lit:?}");
            lights += u32::from(brightens);
            let most = |row: &[f32]| row.iter().map(|value| (value - 0.25).abs()).collect::<Vec<f32>>();
            for row in lit.chunks_exact(7).map(most) {
                let peak = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("a row").0;
                assert!(row[..peak].is_sorted() && row[peak..].iter().rev().is_sorted(), "a bell along each row: {row:?}");
            }
        }
        assert!((100..=200).contains(&lights), "{lights} of 300 are lights");
    }
}
