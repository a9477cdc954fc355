//! The main picture: both accuracies over the stream, with the gate and the drift score in strips below.
//!
//! All panels share one x scale, so that a fall in accuracy, a shut gate and a rise of the drift score line up. The picture is drawn
//! in classes, never in colours: the page colours it by its own style sheet, a standalone file by the one it carries.
//! Text keeps its size, so that a phone gets a picture of its own ([`NARROW`]) instead of a wide one made small.

use super::curve::{column_means, columns, moving_average};
use super::panel::{LINE, Panel, coordinate, px, tenths, text_width, whole_percent};
use super::svg::{self, Point, Scale};
use crate::lab::summary::{FramePoint, RunRecord, Tally, percent, points as signed, spoken};
use maud::{Markup, html};

/// Sizes in SVG user units.
pub struct Layout {
    pub width: f64,
    left: f64,
    right: f64,
    plot: f64,
    strip: f64,
    x_ticks: f64,
}

pub const WIDE: Layout = Layout { width: 1040.0, left: 46.0, right: 72.0, plot: 300.0, strip: 42.0, x_ticks: 10.0 };
pub const NARROW: Layout = Layout { width: 360.0, left: 40.0, right: 66.0, plot: 220.0, strip: 36.0, x_ticks: 4.0 };

/// What goes inside an `svg` of this height.
pub struct Chart {
    pub body: Markup,
    pub height: f64,
}

/// Between panels.
const GAP: f64 = 20.0;
/// Bands thinner than this are left out: a stream that mixes its corruptions has one for each frame.
const BAND_DRAWN_MIN: f64 = 1.0;
/// Bands thinner than this get no name: it would not fit even upright.
const BAND_NAMED_MIN: f64 = 12.0;

pub fn stream_chart(run: &RunRecord, layout: &Layout) -> Chart {
    let points = run.points.as_slice();
    let frames = coordinate(points.len());
    let x = Scale::new(0.0..=frames, (layout.left, layout.width - layout.right));
    let bands = bands(points, x);
    let names = BandNames::fit(&bands);
    let plot = Panel { x, top: names.height(), bottom: names.height() + layout.plot };
    let gate = below(&plot, layout.strip);
    let drift = below(&gate, layout.strip);
    let body = html! {
        (shade(&bands, drift.bottom))
        (names.draw(&bands))
        (accuracies(&plot, run))
        (strip(&gate, "gate", &column_means(points, |point| point.reliability.map(f64::from))))
        (strip(&drift, "drift", &drift_curve(points)))
        (drift.frame_axis(layout.x_ticks))
        (tips(&bands, drift.bottom))
    };
    Chart { body, height: drift.bottom + 2.0 * LINE + 8.0 }
}

/// A panel under another.
fn below(panel: &Panel, height: f64) -> Panel {
    Panel { x: panel.x, top: panel.bottom + GAP, bottom: panel.bottom + GAP + height }
}

/// Consecutive frames of one corruption.
struct Band<'a> {
    domain: &'a str,
    tally: Tally,
    left: f64,
    right: f64,
}

impl Band<'_> {
    fn middle(&self) -> f64 {
        f64::midpoint(self.left, self.right)
    }

    fn width(&self) -> f64 {
        self.right - self.left
    }
}

fn bands(points: &[FramePoint], x: Scale) -> Vec<Band<'_>> {
    let mut start = 0;
    let band = |run| {
        let tally = Tally::of(run);
        let (left, right) = (x.at(coordinate(start)), x.at(coordinate(start + tally.frames)));
        start += tally.frames;
        Band { domain: &run[0].domain, tally, left, right }
    };
    let all = points.chunk_by(|one, next| one.domain == next.domain).map(band);
    all.filter(|band| band.width() >= BAND_DRAWN_MIN).collect()
}

fn shade(bands: &[Band], bottom: f64) -> Markup {
    html! {
        @for band in bands.iter().step_by(2) {
            rect.band x=(px(band.left)) y="0" width=(px(band.width())) height=(px(bottom)) {}
        }
    }
}

/// Invisible surfaces in front, which say a band's figures when pointed at.
fn tips(bands: &[Band], bottom: f64) -> Markup {
    html! {
        @for band in bands {
            rect.tip x=(px(band.left)) y="0" width=(px(band.width())) height=(px(bottom)) {
                title {
                    (spoken(band.domain)) ": source " (percent(band.tally.source_accuracy())) ", adapted "
                    (percent(band.tally.adapted_accuracy())) " (" (signed(band.tally.gain())) " points, " (band.tally.frames) " frames)"
                }
            }
        }
    }
}

fn named<'a>(bands: &'a [Band<'a>]) -> impl Iterator<Item = &'a Band<'a>> {
    bands.iter().filter(|band| band.width() >= BAND_NAMED_MIN)
}

/// How the names of the bands are written above them.
enum BandNames {
    /// A word a line, the gain below; the number of lines is that of the name with most words.
    Level { lines: f64 },
    /// Turned by a quarter, the gain behind.
    Upright { height: f64 },
}

impl BandNames {
    fn fit(bands: &[Band]) -> Self {
        let fits = |band: &Band| spoken(band.domain).split(' ').all(|word| text_width(word) < band.width());
        if named(bands).all(fits) {
            let lines = named(bands).map(|band| spoken(band.domain).split(' ').count()).max();
            Self::Level { lines: coordinate(lines.unwrap_or(0)) }
        } else {
            let longest = named(bands).map(|band| text_width(band.domain)).fold(0.0, f64::max);
            Self::Upright { height: longest + text_width("+00.0 ") }
        }
    }

    fn height(&self) -> f64 {
        match self {
            Self::Level { lines } => (lines + 1.0) * LINE + GAP,
            Self::Upright { height } => height + GAP,
        }
    }

    fn draw(&self, bands: &[Band]) -> Markup {
        html! { @for band in named(bands) { (self.draw_one(band)) } }
    }

    fn draw_one(&self, band: &Band) -> Markup {
        let (name, gain, class) = (spoken(band.domain), signed(band.tally.gain()), verdict(band.tally.gain()));
        let bottom = self.height() - GAP / 2.0;
        match self {
            Self::Level { .. } => html! {
                @for (above, word) in name.split(' ').rev().enumerate() {
                    text.name.mid x=(px(band.middle())) y=(px(bottom - coordinate(above + 1) * LINE)) { (word) }
                }
                text.strong.mid.(class) x=(px(band.middle())) y=(px(bottom)) { (gain) }
            },
            Self::Upright { .. } => html! {
                text.name transform={ "translate(" (px(band.middle() + 4.0)) " " (px(bottom)) ") rotate(-90)" } {
                    tspan.strong.(class) { (gain) } " " (name)
                }
            },
        }
    }
}

/// The class that colours a difference; its sign is written too, so that colour is never alone.
pub fn verdict(gain: f64) -> &'static str {
    if gain < 0.0 { "harm" } else { "adapted" }
}

fn accuracies(panel: &Panel, run: &RunRecord) -> Markup {
    let average = |value: fn(&FramePoint) -> f64| moving_average(&run.points, run.average_frames, value);
    let source = average(|point| f64::from(u8::from(point.source_hit)));
    let adapted = average(|point| f64::from(u8::from(point.adapted_hit)));
    let estimated = column_means(&run.points, |point| point.estimated.map(f64::from));
    let all = || source.iter().chain(&adapted).chain(&estimated).map(|(_, value)| *value);
    let (low, high) = tenths(all());
    let y = Scale::new(low..=high, (panel.bottom, panel.top));
    let [source, adapted, estimated] = [source, adapted, estimated].map(|curve| panel.place(y, &curve));
    let bound = |pick: fn(f64, f64) -> f64| -> Vec<Point> {
        adapted.iter().zip(&source).map(|((x, adapted), (_, source))| (*x, pick(*adapted, *source))).collect()
    };
    html! {
        (panel.value_axis(y, whole_percent))
        path.gain-area d=(svg::area(&bound(f64::min), &source)) {}
        path.harm-area d=(svg::area(&bound(f64::max), &source)) {}
        path.line.estimated d=(svg::line(&estimated)) {}
        path.line.source d=(svg::line(&source)) {}
        path.line.adapted d=(svg::line(&adapted)) {}
        (panel.line_ends(&[("source", "source", &source), ("adapted", "adapted", &adapted), ("estimated", "estimated", &estimated)]))
    }
}

/// A curve from zero to at least one, filled down to the ground.
fn strip(panel: &Panel, name: &'static str, curve: &[Point]) -> Markup {
    let high = curve.iter().map(|(_, value)| *value).fold(1.0, f64::max);
    let y = Scale::new(0.0..=high, (panel.bottom, panel.top));
    let line = panel.place(y, curve);
    let ground: Vec<Point> = line.iter().map(|(x, _)| (*x, panel.bottom)).collect();
    html! {
        line.grid x1=(px(panel.left())) x2=(px(panel.right())) y1=(px(panel.bottom)) y2=(px(panel.bottom)) {}
        path.(format!("{name}-area")) d=(svg::area(&line, &ground)) {}
        path.line.(name) d=(svg::line(&line)) {}
        text.tick.right x=(px(panel.left() - 6.0)) y=(px(panel.top + 8.0)) { (format!("{high:.0}")) }
        text.tick.right x=(px(panel.left() - 6.0)) y=(px(panel.bottom + 2.0)) { "0" }
        text.end.(name) x=(px(panel.right() + 6.0)) y=(px(f64::midpoint(panel.top, panel.bottom) + 4.0)) { (name) }
    }
}

/// The highest score of each column: a short alarm must not be averaged away.
fn drift_curve(points: &[FramePoint]) -> Vec<Point> {
    columns(points, |column| column.iter().map(|point| f64::from(point.drift)).filter(|score| score.is_finite()).max_by(f64::total_cmp))
}
