//! The pictures of a comparison.

use crate::lab::methods::Method;
use crate::lab::report::curve::{column_means, moving_average};
use crate::lab::report::panel::{LINE, Panel, coordinate, px, tenths, text_width, whole_percent};
use crate::lab::report::svg::{self, Point, Scale};
use crate::lab::suite::{Difference, Record, Records, Setup};
use crate::lab::summary::{WINDOW_FRAMES, points, spoken};
use maud::{Markup, html};

/// Lines of the charts over time: a class, a method.
pub struct StreamCurves<'a> {
    setup: &'a Setup,
    lines: Vec<(&'static str, String)>,
    records: Vec<&'a Record>,
    window: usize,
}

impl<'a> StreamCurves<'a> {
    /// Source, daemon, and the two competitors with the best means.
    pub fn new(setup: &'a Setup, records: &'a Records) -> Self {
        let rivals = setup.best_competitors(2).into_iter().map(str::to_owned);
        let ours = [("source", Method::Source.name().to_owned()), ("adapted", Method::Undrift.name().to_owned())];
        let of_setup = |record: &&Record| record.model == setup.model && record.table == setup.table && record.frames == setup.frames;
        Self {
            setup,
            lines: ours.into_iter().chain(["rival-one", "rival-two"].into_iter().zip(rivals)).collect(),
            records: records.values().filter(of_setup).collect(),
            window: WINDOW_FRAMES.min(setup.frames / 5).max(1),
        }
    }

    pub fn note(&self) -> String {
        format!(
            "Mean of the {} frames around and over the seeds: the source, undrift, and the two competitors with the best means. The dotted \
             line is undrift's own estimate, made without labels.",
            self.window
        )
    }

    pub fn legend(&self) -> Markup {
        let swatch = |class: &str, name: &str| {
            html! { span { svg viewBox="0 0 26 10" { path.line.(class) d="M0 5L26 5" {} } (name) } }
        };
        html! {
            div.legend {
                @for (class, method) in &self.lines { (swatch(class, method)) }
                (swatch("estimated", "undrift, estimated"))
            }
        }
    }

    fn of<'b>(&'b self, stream: &'b str, method: &'b str) -> impl Iterator<Item = &'a Record> + 'b {
        self.records.iter().copied().filter(move |record| record.stream == stream && record.method == method)
    }
}

/// Share of hits over the seeds, by frame.
fn mean_hits<'a>(records: impl Iterator<Item = &'a Record>, frames: usize) -> Vec<f64> {
    let (mut hits, mut seeds) = (vec![0.0; frames], 0.0);
    for record in records {
        hits.iter_mut().zip(record.hits()).for_each(|(sum, is_hit)| *sum += f64::from(u8::from(is_hit)));
        seeds += 1.0;
    }
    if seeds > 0.0 { hits.iter().map(|sum| sum / seeds).collect() } else { Vec::new() }
}

/// Bands thinner than this are not drawn.
const BAND_DRAWN_MIN: f64 = 3.0;

/// One stream.
pub fn stream_chart(curves: &StreamCurves, stream: &str) -> Markup {
    let frames = curves.setup.frames;
    let panel = Panel { x: Scale::new(0.0..=coordinate(frames), (42.0, 590.0)), top: 24.0, bottom: 194.0 };
    let curve = |method: &str| moving_average(&mean_hits(curves.of(stream, method), frames), curves.window, |hit| *hit);
    let lines: Vec<(&str, Vec<Point>)> = curves.lines.iter().map(|(class, method)| (*class, curve(method))).collect();
    let estimates: Vec<Vec<Option<f64>>> = curves.of(stream, Method::Undrift.name()).map(|record| record.estimates().collect()).collect();
    let estimated = column_means(&(0..frames).collect::<Vec<_>>(), |&frame| {
        let known: Vec<f64> = estimates.iter().filter_map(|of_seed| of_seed[frame]).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / coordinate(known.len()))
    });
    let (low, high) = tenths(lines.iter().flat_map(|(_, line)| line).chain(&estimated).map(|(_, value)| *value));
    let y = Scale::new(low..=high, (panel.bottom, panel.top));
    html! {
        svg viewBox="0 0 600 216" role="img" aria-label=(format!("accuracy over time, {stream}")) {
            text.strong x="0" y="12" { (stream) }
            @if let Some(record) = curves.of(stream, Method::Source.name()).next() { (bands(&panel, record)) }
            (panel.value_axis(y, whole_percent))
            path.line.estimated d=(svg::line(&panel.place(y, &estimated))) {}
            @for (class, line) in &lines { path.line.(class) d=(svg::line(&panel.place(y, line))) {} }
            (panel.frame_axis(6.0))
        }
    }
}

/// Every second stretch of one corruption is shaded, and says its name when pointed at.
fn bands(panel: &Panel, record: &Record) -> Markup {
    let place = |(name, first, end)| (name, panel.x.at(coordinate(first)), panel.x.at(coordinate(end)));
    let drawn: Vec<(&str, f64, f64)> = record.stretches().map(place).collect();
    let is_drawn = drawn.iter().all(|(_, left, right)| right - left >= BAND_DRAWN_MIN);
    html! {
        @for (name, left, right) in drawn.iter().filter(|_| is_drawn).step_by(2) {
            rect.band x=(px(*left)) y=(px(panel.top)) width=(px(right - left)) height=(px(panel.bottom - panel.top)) {
                title { (spoken(name)) }
            }
        }
    }
}

/// Widths of the pictures that have a wide and a narrow form, and their classes.
const FORMS: [(f64, &str); 2] = [(1040.0, "wide"), (360.0, "narrow")];

pub fn pareto_chart(setup: &Setup) -> Markup {
    html! { @for (width, class) in FORMS { (pareto(setup, width, class)) } }
}

/// A method in the plane of cost and accuracy.
struct Dot<'a> {
    method: &'a str,
    at: Point,
    is_front: bool,
}

fn pareto(setup: &Setup, width: f64, class: &str) -> Markup {
    let rows = || setup.rows.iter().filter_map(|row| Some((row.method.as_str(), row.milliseconds_per_frame, row.mean?.mean)));
    let is_beaten =
        |cost: f64, mean: f64| rows().any(|(_, other, accuracy)| other <= cost && accuracy > mean || other < cost && accuracy >= mean);
    let cost = |pick: fn(f64, f64) -> f64, start| rows().map(|(_, cost, _)| cost.log10()).fold(start, pick);
    let (least, most) = (cost(f64::min, f64::INFINITY), cost(f64::max, f64::NEG_INFINITY));
    if !(least.is_finite() && most.is_finite()) {
        return html! {};
    }
    let panel = Panel { x: Scale::new(least - 0.1..=most + 0.2, (46.0, width - 20.0)), top: 12.0, bottom: 320.0 };
    let accuracies = || rows().map(|(.., mean)| mean);
    let (low, high) = (accuracies().fold(1.0, f64::min), accuracies().fold(0.0, f64::max));
    let y = Scale::new((100.0 * low - 1.0).floor() / 100.0..=(100.0 * high + 1.0).ceil() / 100.0, (panel.bottom, panel.top));
    let mut dots: Vec<Dot> = rows()
        .map(|(method, cost, mean)| Dot { method, at: (panel.x.at(cost.log10()), y.at(mean)), is_front: !is_beaten(cost, mean) })
        .collect();
    dots.sort_by(|one, other| one.at.0.total_cmp(&other.at.0));
    let front: Vec<Point> = dots.iter().filter(|dot| dot.is_front).map(|dot| dot.at).collect();
    html! {
        svg.(class) viewBox=(format!("0 0 {width} 356")) role="img" aria-label="accuracy against cost" {
            (panel.value_axis(y, whole_percent))
            (cost_axis(&panel, least - 0.1, most + 0.2))
            path.line.front d=(svg::line(&front)) {}
            @for dot in &dots {
                circle.dot.front[dot.is_front].adapted[dot.method == Method::Undrift.name()] cx=(px(dot.at.0)) cy=(px(dot.at.1)) r="4.5" {}
            }
            @for (dot, (x, y)) in dots.iter().zip(label_places(&dots, width)) {
                text.strong[dot.is_front].adapted[dot.method == Method::Undrift.name()] x=(px(x)) y=(px(y)) { (dot.method) }
            }
        }
    }
}

/// 1, 2 and 5 times the powers of ten, in milliseconds.
fn cost_axis(panel: &Panel, low: f64, high: f64) -> Markup {
    let ticks = (-3..6).flat_map(|power| [1.0, 2.0, 5.0].map(|factor| factor * 10f64.powi(power)));
    html! {
        @for tick in ticks.filter(|tick| (low..=high).contains(&tick.log10())) {
            @let x = px(panel.x.at(tick.log10()));
            line.grid x1=(x) x2=(x) y1=(px(panel.top)) y2=(px(panel.bottom)) {}
            text.tick.mid x=(x) y=(px(panel.bottom + LINE + 2.0)) { (tick) " ms" }
        }
        text.tick.right x=(px(panel.right())) y=(px(panel.bottom + 2.0 * LINE + 4.0)) { "milliseconds of one core for a frame" }
    }
}

/// Where the names of the dots begin: right of them, or left where the picture ends, and moved down past names that are there already.
fn label_places(dots: &[Dot], width: f64) -> Vec<Point> {
    let mut taken: Vec<(f64, f64, f64)> = Vec::new();
    for dot in dots {
        // Some names are bold, and none should touch the next.
        let length = 1.15 * text_width(dot.method) + 6.0;
        let left = if dot.at.0 + 9.0 + length < width { dot.at.0 + 9.0 } else { dot.at.0 - 9.0 - length };
        let mut y = dot.at.1 + 4.0;
        while taken.iter().any(|(other, end, line)| left < *end && *other < left + length && (line - y).abs() < LINE - 1.0) {
            y += 1.0;
        }
        taken.push((left, left + length, y));
    }
    taken.into_iter().map(|(left, _, y)| (left, y)).collect()
}

pub fn long_chart(runs: &[&Difference]) -> Markup {
    html! { @for (width, class) in FORMS { (long(runs, width, class)) } }
}

/// Dashes of the competitors' lines.
const DASHES: [&str; 5] = ["other", "other dash-1", "other dash-2", "other dash-3", "other dash-4"];

fn long(runs: &[&Difference], width: f64, class: &str) -> Markup {
    let Some(first) = runs.first() else { return html! {} };
    let panel = Panel { x: Scale::new(0.0..=coordinate(first.frames), (46.0, width - 84.0)), top: 12.0, bottom: 272.0 };
    let values = || runs.iter().flat_map(|run| &run.windows).copied();
    let (low, high) = (values().fold(0.0, f64::min), values().fold(0.0, f64::max));
    let y = Scale::new(low - 0.01..=high + 0.01, (panel.bottom, panel.top));
    let middle = |index: usize| coordinate(index * first.window_frames + first.window_frames / 2).min(coordinate(first.frames));
    let curve = |run: &&Difference| -> Vec<Point> {
        panel.place(y, &run.windows.iter().enumerate().map(|(index, value)| (middle(index), *value)).collect::<Vec<_>>())
    };
    let ours = Method::Undrift.name();
    let rivals = runs.iter().filter(|run| run.method != ours).zip(DASHES.iter().cycle());
    let lines: Vec<(&str, &str, Vec<Point>)> = rivals
        .map(|(run, dash)| (*dash, run.method.as_str(), curve(run)))
        .chain(runs.iter().filter(|run| run.method == ours).map(|run| ("adapted", ours, curve(run))))
        .collect();
    let ends: Vec<(&str, &str, &[Point])> = lines.iter().map(|(class, name, line)| (*class, *name, line.as_slice())).collect();
    html! {
        svg.(class) viewBox=(format!("0 0 {width} 300")) role="img" aria-label="accuracy minus the source's over the stream" {
            (panel.value_axis(y, points))
            line.line.zero x1=(px(panel.left())) x2=(px(panel.right())) y1=(px(y.at(0.0))) y2=(px(y.at(0.0))) {}
            @for (class, _, line) in &lines { path.line.(class) d=(svg::line(line)) {} }
            (panel.line_ends(&ends))
            (panel.frame_axis(if width > 500.0 { 10.0 } else { 3.0 }))
        }
    }
}
