//! The figures on a terminal.

use super::figures::{Figures, Mean, Row, Setup};
use super::trends::Difference;
use std::fmt::Write;

/// All tables.
pub fn figures_text(figures: &Figures) -> String {
    let mut text = String::new();
    for setup in &figures.setups {
        text += &setup_text(setup);
    }
    if !figures.long.is_empty() {
        text += &long_text(&figures.long);
    }
    text
}

fn setup_text(setup: &Setup) -> String {
    let Setup { model, table, frames, streams, .. } = setup;
    let width = |name: &str| name.len().max(5) + 2;
    let named = |row: &Row| row.method.len();
    let left = setup.rows.iter().map(named).max().unwrap_or(0);
    let names: String = streams.iter().map(|name| format!("{name:>0$}", width(name))).collect();
    let mut text = format!("{model}, constants of {table}, {frames} frames of each stream; accuracy, percent\n");
    let costs = format!("{:>8}{:>8}{:>11}{:>10}{:>11}", "mean", "gain", "worst 500", "frames/s", "diffusion");
    text += &format!("{:<left$}{names}{costs}\n", "");
    for row in &setup.rows {
        let cells: String = streams.iter().map(|name| number(row.streams.get(name).map(|mean| mean.mean), width(name), Sign::No)).collect();
        let mean = |mean: Option<Mean>| mean.map(|mean| mean.mean);
        let (mean, gain) = (number(mean(row.mean), 8, Sign::No), number(mean(row.gain), 8, Sign::Yes));
        let worst = number(row.worst_window_delta, 11, Sign::Yes);
        let (speed, passes) = (row.frames_per_second, row.passes_per_frame.diffusion_forward);
        writeln!(text, "{:<left$}{cells}{mean}{gain}{worst}{speed:>10.1}{passes:>11.1}", row.method).expect("a String takes all");
    }
    text + "\n"
}

fn long_text(long: &[Difference]) -> String {
    let columns = format!("{:>12}{:>12}{:>9}{:>8}", "first tenth", "last tenth", "change", "worst");
    let mut text = format!("{:<40}{columns}\n", "accuracy minus the source's, points");
    for run in long {
        let name = format!("{} {} {}", run.model, run.stream, run.method);
        let [first, last] = [run.first_tenth, run.last_tenth].map(|gain| number(Some(gain.mean), 12, Sign::Yes));
        let (change, worst) = (number(Some(run.change.mean), 9, Sign::Yes), number(Some(run.worst), 8, Sign::Yes));
        writeln!(text, "{name:<40}{first}{last}{change}{worst}").expect("a String takes all");
    }
    text
}

/// Whether a number is a difference.
#[derive(Clone, Copy)]
enum Sign {
    Yes,
    No,
}

/// Percent or points, or a dash.
fn number(value: Option<f64>, width: usize, sign: Sign) -> String {
    let Some(value) = value.map(|value| 100.0 * value) else { return format!("{:>width$}", "-") };
    match sign {
        Sign::Yes => format!("{value:>+width$.1}"),
        Sign::No => format!("{value:>width$.1}"),
    }
}
