//! The few things that a line chart needs: a scale, ticks, paths, and labels that do not sit on each other.
//!
//! Coordinates are SVG user units, written with one digit after the point.

use std::fmt::Write;
use std::ops::RangeInclusive;

pub type Point = (f64, f64);

/// A linear map from values to coordinates; the target may run backwards, as y does.
#[derive(Clone, Copy)]
pub struct Scale {
    values: (f64, f64),
    coordinates: (f64, f64),
}

impl Scale {
    /// A range of values without extent is widened, so that the map exists.
    pub fn new(values: RangeInclusive<f64>, coordinates: (f64, f64)) -> Self {
        let (low, high) = values.into_inner();
        Self { values: (low, if high > low { high } else { low + 1.0 }), coordinates }
    }

    /// Where the scale starts and ends.
    pub fn coordinates(&self) -> (f64, f64) {
        self.coordinates
    }

    pub fn at(&self, value: f64) -> f64 {
        let ((low, high), (start, end)) = (self.values, self.coordinates);
        start + (value - low) / (high - low) * (end - start)
    }

    /// Round values, at most `count_max` steps of them, of which each step is 1, 2 or 5 times a power of ten.
    pub fn ticks(&self, count_max: f64) -> Vec<f64> {
        let (low, high) = self.values;
        let least = (high - low) / count_max;
        let power = 10f64.powf(least.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= least).unwrap_or(least);
        let first = (low / step - 1e-9).ceil();
        (0..).map(|n| (first + f64::from(n)) * step).take_while(|tick| *tick <= high + 1e-9 * step).collect()
    }
}

/// The `d` of a line through the points.
pub fn line(points: &[Point]) -> String {
    let mut d = String::with_capacity(12 * points.len());
    for (index, (x, y)) in points.iter().enumerate() {
        write!(d, "{}{x:.1} {y:.1}", if index == 0 { 'M' } else { 'L' }).expect("a String takes all");
    }
    d
}

/// The `d` of the surface between two lines.
pub fn area(there: &[Point], back: &[Point]) -> String {
    let around: Vec<Point> = there.iter().chain(back.iter().rev()).copied().collect();
    if around.is_empty() { String::new() } else { line(&around) + "Z" }
}

/// Moves labels, sorted from the top down, apart to at least `gap`, and up again where the last would pass `bottom`.
pub fn spread(ys: &mut [f64], gap: f64, bottom: f64) {
    for index in 1..ys.len() {
        ys[index] = ys[index].max(ys[index - 1] + gap);
    }
    let mut limit = bottom;
    for y in ys.iter_mut().rev() {
        *y = y.min(limit);
        limit = *y - gap;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(Scale::new(0.0..=1200.0, (0.0, 1.0)).ticks(6.0), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0, 1200.0]);
        assert_eq!(Scale::new(35.0..=92.0, (0.0, 1.0)).ticks(5.0), [40.0, 60.0, 80.0]);
    }

    #[test]
    fn scale_without_extent_still_maps() {
        assert_eq!(Scale::new(3.0..=3.0, (0.0, 10.0)).at(3.0), 0.0);
    }

    #[test]
    fn paths_open_once_and_areas_close() {
        assert_eq!(line(&[(0.0, 1.0), (2.0, 3.25)]), "M0.0 1.0L2.0 3.2");
        assert_eq!(area(&[(0.0, 1.0), (2.0, 1.0)], &[(0.0, 4.0), (2.0, 4.0)]), "M0.0 1.0L2.0 1.0L2.0 4.0L0.0 4.0Z");
        assert_eq!(area(&[], &[]), "");
    }

    #[test]
    fn labels_keep_their_distance_and_stay_inside() {
        let mut ys = [95.0, 96.0, 99.0];
        spread(&mut ys, 10.0, 100.0);
        assert_eq!(ys, [80.0, 90.0, 100.0]);
    }
}
