//! The tables of a comparison.

use super::mean_cell;
use crate::lab::methods::Method;
use crate::lab::report::verdict;
use crate::lab::suite::{Corruptions, Difference, Estimate, Mean, Row, Setup};
use crate::lab::summary::{points, spoken};
use maud::{Markup, html};

/// A column, and for each row the value that is compared and what is shown.
struct Column<'a> {
    name: &'a str,
    cells: Vec<(Option<f64>, Markup)>,
}

impl Column<'_> {
    /// Whether no row of the column is better.
    fn is_best(&self, row: usize) -> bool {
        let best = self.cells.iter().filter_map(|cell| cell.0).max_by(f64::total_cmp);
        best.is_some() && self.cells[row].0 == best
    }
}

/// One row for each method, the best of each column in bold.
pub fn setup_table(setup: &Setup) -> Markup {
    let columns = columns(setup);
    html! {
        div.scroll {
            table {
                thead {
                    tr { th { "method" } @for column in &columns { th { (column.name) } } th { "ms a frame" } th { "diffusion passes" } }
                }
                tbody {
                    @for (index, row) in setup.rows.iter().enumerate() {
                        tr.ours[row.method == Method::Undrift.name()] {
                            td { (row.method) }
                            @for column in &columns { td.best[column.is_best(index)] { (column.cells[index].1) } }
                            td { (format!("{:.1}", row.milliseconds_per_frame)) }
                            td { (passes(row)) }
                        }
                    }
                }
            }
        }
    }
}

/// Accuracies by stream, their mean where there are more, the gain, the worst window.
fn columns(setup: &Setup) -> Vec<Column<'_>> {
    fn column<'a>(setup: &Setup, name: &'a str, cell: impl Fn(&Row) -> (Option<f64>, Markup)) -> Column<'a> {
        Column { name, cells: setup.rows.iter().map(cell).collect() }
    }
    let shown = |mean: Option<Mean>| (mean.map(|mean| mean.mean), mean.map_or_else(dash, mean_cell));
    let gain = |row: &Row| match row.gain {
        Some(gain) => (Some(gain.mean), signed(gain.mean, gain.standard_error)),
        None => (None, dash()),
    };
    // The source loses nothing against itself, and is no winner for it.
    let worst = |row: &Row| match row.worst_window_delta {
        Some(worst) if row.method != Method::Source.name() => (Some(worst), signed(worst, None)),
        _ => (None, dash()),
    };
    let streams = setup.streams.iter().map(|name| column(setup, name, |row| shown(row.streams.get(name).copied())));
    let mean = (setup.streams.len() > 1).then(|| column(setup, "mean", |row| shown(row.mean)));
    streams.chain(mean).chain([column(setup, "gain", gain), column(setup, "worst 500", worst)]).collect()
}

fn dash() -> Markup {
    html! { "–" }
}

/// A difference with its sign, coloured where it is not nothing.
fn signed(difference: f64, standard_error: Option<f64>) -> Markup {
    html! {
        strong.(verdict(difference)) style="font-weight:inherit" { (points(difference)) }
        @if let Some(error) = standard_error { small { " ±" (format!("{:.1}", 100.0 * error)) } }
    }
}

/// Forward passes through the diffusion model for each frame, and backward passes where there are any.
fn passes(row: &Row) -> String {
    let passes = row.passes_per_frame;
    match passes.diffusion_backward > 0.0 {
        true => format!("{:.0} + {:.0} back", passes.diffusion_forward, passes.diffusion_backward),
        false => format!("{:.0}", passes.diffusion_forward),
    }
}

/// Difference from the source at which a cell has its full colour.
const FULL: f64 = 0.3;

pub fn corruptions(table: &Corruptions) -> Markup {
    let source = table.methods.iter().position(|method| method == Method::Source.name());
    let shade = |accuracy: f64, accuracies: &[f64]| {
        let difference = accuracy - accuracies[source?];
        let colour = if difference < 0.0 { "harm" } else { "adapted" };
        let share = 55.0 * (difference.abs() / FULL).min(1.0);
        (share >= 0.5).then(|| format!("background:color-mix(in srgb,var(--{colour}) {share:.0}%,transparent)"))
    };
    html! {
        div.scroll.heat {
            table {
                thead { tr { th { "corruption" } @for method in &table.methods { th { (method) } } } }
                tbody {
                    @for row in &table.rows {
                        tr {
                            td { (spoken(&row.corruption)) }
                            @for &accuracy in &row.accuracies {
                                td style=[shade(accuracy, &row.accuracies)] { (format!("{:.1}", 100.0 * accuracy)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

pub fn estimate_table(estimates: &[&Estimate]) -> Markup {
    html! {
        div.scroll.slim {
            table {
                thead { tr { th { "stream" } th { "frames" } th { "mean absolute error" } th { "bias" } } }
                tbody {
                    @for estimate in estimates {
                        tr {
                            td { (estimate.stream) }
                            td { (estimate.frames) }
                            td { (mean_cell(estimate.absolute_error)) }
                            td { (points(estimate.bias.mean)) }
                        }
                    }
                }
            }
        }
    }
}

pub fn difference_table(runs: &[&Difference]) -> Markup {
    html! {
        div.scroll.slim {
            table {
                thead { tr { th { "method" } th { "first tenth" } th { "last tenth" } th { "change" } th { "worst window" } } }
                tbody {
                    @for run in runs {
                        tr.ours[run.method == Method::Undrift.name()] {
                            td { (run.method) }
                            @for gain in [run.first_tenth, run.last_tenth, run.change] { td { (signed(gain.mean, gain.standard_error)) } }
                            td { (signed(run.worst, None)) }
                        }
                    }
                }
            }
        }
    }
}
