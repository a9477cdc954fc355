//! Curves over the frames of a stream, thinned to what a picture can show.

use super::panel::coordinate;
use super::svg::Point;

/// Columns that a curve is drawn with: about two user units each on a wide page.
const COLUMNS: usize = 480;

/// At evenly spread frames, the mean of `value` over the `window` frames around (fewer at the ends of the stream).
pub fn moving_average<T>(frames: &[T], window: usize, value: impl Fn(&T) -> f64) -> Vec<Point> {
    let mut sums = vec![0.0];
    sums.extend(frames.iter().scan(0.0, |sum, frame| {
        *sum += value(frame);
        Some(*sum)
    }));
    let mean = |at: usize| {
        let (start, end) = (at.saturating_sub(window / 2), (at + window.div_ceil(2).max(1)).min(frames.len()));
        (coordinate(at), (sums[end] - sums[start]) / coordinate(end - start))
    };
    let stride = frames.len().div_ceil(COLUMNS).max(1);
    (0..frames.len()).step_by(stride).chain(frames.len().checked_sub(1)).map(mean).collect()
}

/// Means over the frames of each column; columns that know nothing are left out, and values that are no numbers.
pub fn column_means<T>(frames: &[T], value: impl Fn(&T) -> Option<f64>) -> Vec<Point> {
    columns(frames, |column| {
        let known: Vec<f64> = column.iter().filter_map(&value).filter(|value| value.is_finite()).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / coordinate(known.len()))
    })
}

/// One value for each column, where it has one.
pub fn columns<T>(frames: &[T], value: impl Fn(&[T]) -> Option<f64>) -> Vec<Point> {
    let stride = frames.len().div_ceil(COLUMNS).max(1);
    let starts = (0..frames.len()).step_by(stride);
    starts.zip(frames.chunks(stride)).filter_map(|(start, column)| Some((coordinate(start), value(column)?))).collect()
}
