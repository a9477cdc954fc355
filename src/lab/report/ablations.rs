//! The page of an ablation: what each change of the configuration makes of the gain, as bars and as a table.

use super::{page, verdict};
use crate::lab::baselines::Passes;
use crate::lab::summary::{WINDOW_FRAMES, percent, points};
use maud::{Markup, html};
use serde::Serialize;

const STYLE: &str = "\
.bar.harm { fill: var(--harm) }
.line.first { stroke: var(--muted); stroke-dasharray: 3 2 }
.dot { fill: var(--ink) }
";

/// What came of a variant; accuracies and differences from 0 to 1.
#[derive(Clone, Debug, Serialize)]
pub struct Ablation {
    pub name: String,
    /// What is changed: keys as `--set` takes them.
    pub set: Vec<String>,
    pub accuracy: f64,
    /// Minus the source's.
    pub gain: f64,
    /// The least gain over any 500 frames in a row.
    pub worst_window_gain: f64,
    pub frames_per_second: f64,
    pub passes_per_frame: Passes,
}

/// The page of `rows` in their order, in itself complete; the first is what the others are held against. `command` is the one that repeats it.
pub fn ablations_html(source_accuracy: f64, rows: &[Ablation], command: &str) -> String {
    let scale = Scale::of(rows);
    let body = html! {
        header {
            h1 { "What each part is worth" }
            p.lead { "The daemon's method with one thing changed at a time, on one stream. The source is right on " (percent(source_accuracy)) "." }
        }
        section {
            p.note {
                "Bars are the gain over the source, in points; the mark is the least gain over " (WINDOW_FRAMES)
                " frames in a row, and the line through all rows the gain of the first."
            }
            table {
                thead { tr { th { "variant" } th.bars {} th { "accuracy" } th { "gain" } th { "worst " (WINDOW_FRAMES) } th.frames { "frames/s" } } }
                tbody { @for row in rows { (table_row(row, rows, &scale)) } }
            }
        }
        section.text {
            h2 { "How to read this" }
            p {
                "This is one stream and one seed: differences of half a point are within what another seed does. "
                "Point at a name to see what was set."
            }
            p { "To repeat it:" }
            pre { code { (command) } }
        }
    };
    page("undrift: what each part is worth", STYLE, &body)
}

/// Of the bars: both ends, in shares of accuracy, and where a value lies between them.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(rows: &[Ablation]) -> Self {
        let values = || rows.iter().flat_map(|row| [row.gain, row.worst_window_gain]).chain([0.0]);
        let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        // Where nothing differs there is still a width.
        Self { low, high: high.max(low + 1e-3) }
    }

    /// In percent of the width.
    fn at(&self, value: f64) -> f64 {
        100.0 * (value - self.low) / (self.high - self.low)
    }
}

fn table_row(row: &Ablation, rows: &[Ablation], scale: &Scale) -> Markup {
    let (zero, gain, worst) = (scale.at(0.0), scale.at(row.gain), scale.at(row.worst_window_gain));
    let first = rows.first().map_or(zero, |first| scale.at(first.gain));
    let share = |share: f64| format!("{share:.2}%");
    html! {
        tr {
            td title=(row.set.join(", ")) { (row.name) }
            td.bars {
                svg aria-hidden="true" {
                    rect.rail width="100%" height="19" {}
                    rect.bar.(verdict(row.gain)) x=(share(zero.min(gain))) y="5" width=(share((gain - zero).abs())) height="9" {}
                    line.grid x1=(share(zero)) x2=(share(zero)) y1="0" y2="19" {}
                    line.line.first x1=(share(first)) x2=(share(first)) y1="0" y2="19" {}
                    circle.dot cx=(share(worst)) cy="9.5" r="3" {}
                }
            }
            td { (percent(row.accuracy)) }
            td.gain.(verdict(row.gain)) { (points(row.gain)) }
            td.(verdict(row.worst_window_gain)) { (points(row.worst_window_gain)) }
            td.frames { (format!("{:.0}", row.frames_per_second)) }
        }
    }
}
