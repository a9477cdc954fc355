//! Intensity normalisation: the diffusion model sees every image with the same black and the same white.
//!
//! A stretch between two quantiles takes back what light and exposure add and scale (brightness, contrast, haze) and
//! leaves a picture with full range as it is. It is what lets the diffusion model judge frames whose intensities it was
//! never trained on; the classifier sees the frame as the camera took it, too.

/// Values up to this quantile become black.
const LOW_QUANTILE: f64 = 0.05;
/// Values from this quantile on become white.
const HIGH_QUANTILE: f64 = 0.99;
/// A range narrower than two levels of 8 bit is noise of quantisation, and is not stretched further.
const RANGE_MIN: f32 = 4.0 / 255.0;

/// Stretches one image, values -1..=1 in any order of planes, so that its quantiles lie at -1 and 1.
pub fn stretch(image: &mut [f32]) {
    let original = image.to_vec();
    stretch_into(image, &original);
}

/// The same, to another place, which has as many values; they are sorted there first.
pub fn stretch_into(stretched: &mut [f32], image: &[f32]) {
    stretched.copy_from_slice(image);
    let mut quantile = |share: f64| {
        // A position below the length of a slice: exact in f64, and the cast only cuts off the fraction.
        let position = ((image.len() - 1) as f64 * share) as usize;
        *stretched.select_nth_unstable_by(position, f32::total_cmp).1
    };
    let (low, high) = (quantile(LOW_QUANTILE), quantile(HIGH_QUANTILE));
    let scale = 2.0 / (high - low).max(RANGE_MIN);
    for (stretched, value) in stretched.iter_mut().zip(image) {
        *stretched = ((value - low) * scale - 1.0).clamp(-1.0, 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ramp from black to white with broad ends, so that the quantiles lie on the ends.
    fn picture() -> Vec<f32> {
        (0..100i8).map(|i| (f32::from(i - 10) / 40.0 - 1.0).clamp(-1.0, 1.0)).collect()
    }

    #[test]
    fn a_picture_of_full_range_stays_as_it_is() {
        let mut stretched = picture();
        stretch(&mut stretched);
        assert_eq!(stretched, picture());
    }

    #[test]
    fn dimmed_and_brightened_pictures_come_out_alike() {
        let mut changed: Vec<f32> = picture().iter().map(|value| 0.2 * value + 0.5).collect();
        stretch(&mut changed);
        for (changed, original) in changed.iter().zip(picture()) {
            assert!((changed - original).abs() < 1e-5, "{changed} against {original}");
        }
    }

    #[test]
    fn what_the_place_held_before_changes_no_value() {
        let dimmed: Vec<f32> = picture().iter().map(|value| 0.2 * value + 0.5).collect();
        let (mut stretched, mut in_place) = (vec![0.9f32; dimmed.len()], dimmed.clone());
        stretch_into(&mut stretched, &dimmed);
        stretch(&mut in_place);
        assert_eq!(stretched, in_place);
    }

    #[test]
    fn a_flat_picture_is_not_divided_by_nothing() {
        let mut flat = vec![0.3f32; 64];
        stretch(&mut flat);
        assert!(flat.iter().all(|value| value.is_finite()));
    }
}
