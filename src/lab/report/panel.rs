//! A plot area with its axes, and labels at the ends of its lines.

use super::svg::{self, Point, Scale};
use indicatif::HumanFloatCount;
use maud::{Markup, html};

/// Height of a line of text.
pub const LINE: f64 = 14.0;
/// Mean width of a glyph at the size of the labels.
const GLYPH: f64 = 6.4;

/// A plot area; panels above each other share their x scale.
pub struct Panel {
    pub x: Scale,
    pub top: f64,
    pub bottom: f64,
}

impl Panel {
    pub fn left(&self) -> f64 {
        self.x.coordinates().0
    }

    pub fn right(&self) -> f64 {
        self.x.coordinates().1
    }

    pub fn place(&self, y: Scale, curve: &[Point]) -> Vec<Point> {
        curve.iter().map(|(frame, value)| (self.x.at(*frame), y.at(*value))).collect()
    }

    /// Lines across at round values, each with its text.
    pub fn value_axis(&self, y: Scale, text: impl Fn(f64) -> String) -> Markup {
        html! {
            @for tick in y.ticks(6.0) {
                line.grid x1=(px(self.left())) x2=(px(self.right())) y1=(px(y.at(tick))) y2=(px(y.at(tick))) {}
                text.tick.right x=(px(self.left() - 6.0)) y=(px(y.at(tick) + 4.0)) { (text(tick)) }
            }
        }
    }

    /// Numbers of frames below.
    pub fn frame_axis(&self, ticks_max: f64) -> Markup {
        let baseline = self.bottom + LINE + 2.0;
        let ticks = self.x.ticks(ticks_max);
        html! {
            @for tick in ticks.iter().filter(|tick| tick.fract() == 0.0) {
                line.grid x1=(px(self.x.at(*tick))) x2=(px(self.x.at(*tick))) y1=(px(self.bottom)) y2=(px(self.bottom + 4.0)) {}
                text.tick.mid x=(px(self.x.at(*tick))) y=(px(baseline)) { (HumanFloatCount(*tick)) }
            }
            text.tick.right x=(px(self.left() - 8.0)) y=(px(baseline)) { "frame" }
        }
    }

    /// Names the lines at their right ends, instead of in a legend; each has its class, its name, and its points.
    pub fn line_ends(&self, lines: &[(&str, &str, &[Point])]) -> Markup {
        let mut ends: Vec<_> = lines.iter().filter_map(|(class, name, line)| Some((class, name, line.last()?.1))).collect();
        ends.sort_by(|one, other| one.2.total_cmp(&other.2));
        let mut ys: Vec<f64> = ends.iter().map(|(.., y)| *y).collect();
        svg::spread(&mut ys, LINE, self.bottom);
        html! {
            @for ((class, name, _), y) in ends.iter().zip(ys) {
                text.end.(class) x=(px(self.right() + 6.0)) y=(px(y + 4.0)) { (name) }
            }
        }
    }
}

/// As the ticks of an axis of accuracies.
pub fn whole_percent(accuracy: f64) -> String {
    format!("{:.0}\u{a0}%", 100.0 * accuracy)
}

/// Bounds of an axis of shares that holds all `values`: tenths, a little below the least.
pub fn tenths(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let low = values.clone().min_by(f64::total_cmp).map_or(0.0, |least| (10.0 * (least - 0.02)).floor() / 10.0);
    let high = values.max_by(f64::total_cmp).map_or(1.0, |most| (10.0 * most).ceil() / 10.0);
    (low.max(0.0), high)
}

pub fn text_width(text: &str) -> f64 {
    GLYPH * coordinate(text.chars().count())
}

/// A count on an axis; counts of frames are far below 2^53.
pub fn coordinate(count: usize) -> f64 {
    count as f64
}

pub fn px(coordinate: f64) -> String {
    format!("{coordinate:.1}")
}
