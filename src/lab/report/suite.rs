//! The page of a comparison: its tables and pictures, from records and nothing else.

mod charts;
mod tables;

use super::page;
use crate::lab::methods::Method;
use crate::lab::suite::{Figures, Mean, Records, Section, Setup};
use crate::lab::summary::{percent, points};
use charts::{StreamCurves, long_chart, pareto_chart, stream_chart};
use maud::{Markup, html};
use tables::{corruptions, difference_table, estimate_table, setup_table};

const STYLE: &str = include_str!("suite/suite.css");

/// The page of `figures` and of the curves in `records`, in itself complete; `command` is the one that repeats the comparison.
pub fn suite_html(figures: &Figures, records: &Records, command: &str) -> String {
    let main: Vec<&Setup> = of(figures, Section::Streams).collect();
    let body = html! {
        (header(&main))
        @for setup in &main { (model(setup, figures, records)) }
        (others(figures))
        (long(figures))
        (reading(command))
    };
    page("undrift: methods side by side", STYLE, &body)
}

fn of(figures: &Figures, section: Section) -> impl Iterator<Item = &Setup> {
    figures.setups.iter().filter(move |setup| setup.section == section)
}

fn header(main: &[&Setup]) -> Markup {
    let cards = main.iter().filter_map(|setup| card(setup));
    html! {
        header {
            h1 { "Methods of test-time adaptation, side by side" }
            p.lead {
                "The same frames, classifier and diffusion model for every method. No method sees a label; accuracy is against the truth. "
                "undrift is this daemon, as configured for all streams alike."
            }
            @for card in cards { (card) }
        }
    }
}

/// The main figures of one model; none before the daemon has run.
fn card(setup: &Setup) -> Option<Markup> {
    let ours = setup.row(Method::Undrift)?;
    let (mean, gain) = (ours.mean?, ours.gain?);
    let best = setup.best_competitors(1).first().and_then(|name| setup.rows.iter().find(|row| row.method == **name));
    let source = setup.row(Method::Source).and_then(|row| row.mean);
    Some(html! {
        div.figures {
            div.hero {
                strong.(super::verdict(gain.mean)) { (points(gain.mean)) }
                span { "points of accuracy against the source, " (setup.model) ", mean of " (setup.mean_streams) " streams" }
            }
            dl {
                (super::figure("undrift", percent(mean.mean)))
                (super::figure("source", source.map_or("–".to_owned(), |source| percent(source.mean))))
                @if let Some((best, best_mean)) = best.and_then(|row| Some((row, row.mean?))) {
                    (super::figure(&format!("best other: {}", best.method), percent(best_mean.mean)))
                }
                (super::figure("worst 500 frames", ours.worst_window_delta.map_or("–".to_owned(), |worst| format!("{} points", points(worst)))))
                (super::figure("cost", format!("{:.1} ms a frame", ours.milliseconds_per_frame)))
                (super::figure("seeds", mean.seeds.to_string()))
            }
        }
    })
}

/// All that the main comparison says of one model.
fn model(setup: &Setup, figures: &Figures, records: &Records) -> Markup {
    let name = &setup.model;
    let curves = StreamCurves::new(setup, records);
    let estimates: Vec<_> = figures.estimates.iter().filter(|estimate| estimate.model == *name).collect();
    html! {
        section {
            h2 { (name) ": accuracy on every stream" }
            p.note { (setup_note(setup)) }
            (setup_table(setup))
        }
        section {
            h2 { (name) ": accuracy against cost" }
            p.note {
                "Mean accuracy over the streams against milliseconds of one core for a frame, on a logarithmic axis. "
                "The line joins the methods that no other beats in both."
            }
            (pareto_chart(setup))
        }
        section {
            h2 { (name) ": accuracy over time" }
            p.note { (curves.note()) }
            (curves.legend())
            div.grid2 { @for stream in &setup.streams { (stream_chart(&curves, stream)) } }
        }
        @for table in figures.corruptions.iter().filter(|table| table.model == *name) {
            section {
                h2 { (name) ": by corruption, " (table.stream) }
                p.note { "Percent; blue where the method is ahead of the source, orange where it is behind, full at 30 points." }
                (corruptions(table))
            }
        }
        @if !estimates.is_empty() {
            section {
                h2 { (name) ": accuracy as estimated without labels" }
                p.note {
                    "undrift's estimate of its own accuracy against the truth, over windows of " (estimates[0].window_frames)
                    " frames, in points. A bias above zero says that the estimate is too high."
                }
                (estimate_table(&estimates))
            }
        }
    }
}

fn setup_note(setup: &Setup) -> String {
    let seeds = setup.rows.iter().filter_map(|row| row.mean).map(|mean| mean.seeds).max().unwrap_or(1);
    format!(
        "Percent; {} frames of each stream, severity 5, constants of {}, mean of {seeds} seed{}{}. The mean is that of all streams but clean \
         frames. Bold: the best of a column. Worst 500: the least accuracy against the source over any 500 frames in a row (over a whole \
         stream where it is shorter), of all streams and seeds. Milliseconds are of one core. Windows of 16 frames for the competitors; \
         one frame in single.",
        setup.frames,
        setup.table,
        if seeds == 1 { "" } else { "s" },
        if seeds == 1 { "" } else { ", with the standard error of that mean" },
    )
}

/// Tables beside the main ones.
fn others(figures: &Figures) -> Markup {
    let titled = [
        (Section::OtherConstants, "the other constants", ""),
        (Section::HeldOut, "corruptions outside the nineteen", ""),
        (Section::Slow, "slow methods", " Fewer frames, as these methods are slow; all methods of a table saw the same ones."),
    ];
    html! {
        @for (section, title, more) in titled {
            @for setup in of(figures, section) {
                section {
                    h2 { (setup.model) ": " (title) ", " (setup.frames) " frames" }
                    p.note { (setup_note(setup)) (more) }
                    (setup_table(setup))
                }
            }
        }
    }
}

fn long(figures: &Figures) -> Markup {
    let mut streams: Vec<(&str, &str)> = figures.long.iter().map(|run| (run.model.as_str(), run.stream.as_str())).collect();
    streams.dedup();
    html! {
        @for (model, stream) in streams {
            @let runs: Vec<_> = figures.long.iter().filter(|run| run.model == model && run.stream == stream).collect();
            section {
                h2 { (model) ": " (stream) " for " (crate::lab::summary::count(runs[0].frames)) " frames" }
                p.note {
                    "Accuracy minus that of the source, in points, window by window of " (runs[0].window_frames) " frames: means over the "
                    "seeds. The worst window is the worst of any seed."
                }
                (long_chart(&runs))
                (difference_table(&runs))
            }
        }
    }
}

fn reading(command: &str) -> Markup {
    html! {
        section.text {
            h2 { "How to read this" }
            p {
                "A stream is a sequence of Fashion-MNIST test images under corruptions that change. Adaptation starts from the source "
                "weights at the start of each stream (in separate, of each corruption) and is never reset by the harness. The competitors "
                "have their published constants for CIFAR-10, on the same classifier; they are run by this program, and not by their "
                "authors' code."
            }
            p {
                "The standard error is over seeds, which change the images, the order where it is random, and the noise. Costs are processor "
                "time of one core while as many methods run as there are cores."
            }
            p { "To repeat it:" }
            pre { code { (command) } }
            footer { "undrift " (env!("CARGO_PKG_VERSION")) }
        }
    }
}

/// `73.5 ±0.2`.
fn mean_cell(mean: Mean) -> Markup {
    html! {
        (format!("{:.1}", 100.0 * mean.mean))
        @if let Some(error) = mean.standard_error { small { " ±" (format!("{:.1}", 100.0 * error)) } }
    }
}
