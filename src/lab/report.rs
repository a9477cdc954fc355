//! A run as people see it: one page without scripts and without anything from elsewhere, and its main picture for a README.
//!
//! The page is light or dark as the reader's system is, fits a phone, and prints light. Colours come from [`PALETTE`] alone: blue
//! stands for adaptation, orange for harm and alarm, grey for the source model, violet and green for competitors; blue and orange stay
//! apart for colour-blind readers, every difference also has its sign in print, and competitors have their own dashes.
//! Invariant: all text of the record goes through maud, which escapes it.

mod ablations;
mod chart;
mod curve;
mod panel;
mod suite;
mod svg;

pub use ablations::{Ablation, ablations_html};
pub use suite::suite_html;

use crate::lab::summary::{DomainSummary, RunRecord, Summary, WINDOW_FRAMES, count, percent, points, spoken};
use chart::{Chart, Layout, NARROW, WIDE, stream_chart, verdict};
use indicatif::HumanCount;
use maud::{DOCTYPE, Markup, PreEscaped, html};

#[derive(Clone, Copy, Debug)]
pub enum Theme {
    Light,
    Dark,
}

/// Name, light, dark. Text has a contrast of at least 4.5 to its ground in both.
const PALETTE: [(&str, &str, &str); 11] = [
    ("page", "#ffffff", "#0f1216"),
    ("surface", "#ffffff", "#0f1216"),
    ("ink", "#1a1f26", "#e9ecf0"),
    ("muted", "#5a6472", "#9aa5b3"),
    ("grid", "#dfe3e8", "#2b323b"),
    ("band", "#f3f5f8", "#171c22"),
    ("source", "#87909c", "#8a95a3"),
    ("adapted", "#0b5fc0", "#66b0ff"),
    ("harm", "#b9500a", "#f6a04d"),
    ("rival-one", "#7b3fb0", "#c79bf2"),
    ("rival-two", "#0c7a5a", "#4cc9a0"),
];

const CHART_STYLE: &str = include_str!("report/chart.css");
const PAGE_STYLE: &str = include_str!("report/page.css");

/// The page of a run, in itself complete.
pub fn report_html(run: &RunRecord) -> String {
    let summary = Summary::new(run);
    let body = html! {
        (header(run, &summary))
        (stream(run, &summary))
        (domains(&summary))
        (reading(run, &summary))
    };
    page(&run.title, "", &body)
}

/// A whole page, with `style` behind that of all pages.
fn page(title: &str, style: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(page_style())) (PreEscaped(style)) }
            }
            body { main { (body) } }
        }
    };
    page.into_string()
}

/// The main picture alone, as an SVG file that carries its colours.
pub fn plot_svg(run: &RunRecord, theme: Theme) -> String {
    const MARGIN: f64 = 24.0;
    const HEADLINE: f64 = 58.0;
    let summary = Summary::new(run);
    let Chart { body, height } = stream_chart(run, &WIDE);
    let (width, height) = (WIDE.width + MARGIN, height + HEADLINE + MARGIN);
    let picture = html! {
        svg xmlns="http://www.w3.org/2000/svg" role="img" width=(width) height=(format!("{height:.0}"))
            viewBox=(format!("0 0 {width} {height:.0}")) {
            title { (run.title) }
            style { (PreEscaped(coloured(CHART_STYLE, theme))) }
            rect.surface width="100%" height="100%" rx="8" {}
            g transform=(format!("translate({} 0)", MARGIN / 2.0)) {
                text.headline x=(MARGIN / 2.0) y="30" {
                    "Source " (percent(summary.source_accuracy)) ", adapted " (percent(summary.adapted_accuracy)) ": "
                    tspan.(verdict(summary.gain())) { (points(summary.gain())) " points" } " without labels"
                }
                text.subline x=(MARGIN / 2.0) y="49" { (stream_note(run)) }
            }
            g transform=(format!("translate({} {})", MARGIN / 2.0, HEADLINE + MARGIN / 2.0)) { (body) }
        }
    };
    picture.into_string()
}

fn page_style() -> String {
    let colours = |pick: fn(&(&str, &'static str, &'static str)) -> &'static str| -> String {
        PALETTE.iter().map(|colour| format!("--{}:{};", colour.0, pick(colour))).collect()
    };
    let (light, dark) = (colours(|colour| colour.1), colours(|colour| colour.2));
    // Print stays light, whatever the screen is.
    format!(":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}\n{CHART_STYLE}{PAGE_STYLE}")
}

/// The style with its colours filled in: viewers of SVG files other than browsers do not know `var()`.
fn coloured(style: &str, theme: Theme) -> String {
    PALETTE.iter().fold(style.to_owned(), |style, (name, light, dark)| {
        let colour = match theme {
            Theme::Light => light,
            Theme::Dark => dark,
        };
        style.replace(&format!("var(--{name})"), colour)
    })
}

fn header(run: &RunRecord, summary: &Summary) -> Markup {
    html! {
        header {
            h1 { (run.title) }
            p.lead {
                "One image classifier on a stream whose corruption changes, before and with adaptation. "
                "Adaptation sees no labels and is never reset."
            }
            div.figures {
                div.hero {
                    strong.(verdict(summary.gain())) { (points(summary.gain())) }
                    span { "points of accuracy, adapted against source" }
                }
                dl {
                    (figure("adapted accuracy", percent(summary.adapted_accuracy)))
                    (figure("source accuracy", percent(summary.source_accuracy)))
                    (figure(&format!("worst {WINDOW_FRAMES} frames in a row"), format!("{} points", points(summary.worst_window_delta))))
                    (figure("frames", count(summary.frames)))
                    (figure("frames a second", format!("{:.0}", summary.frames_per_second)))
                    (figure("seed", summary.seed.to_string()))
                }
            }
        }
    }
}

fn figure(name: &str, value: String) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

fn stream_note(run: &RunRecord) -> String {
    format!("Accuracy over the stream, mean of the {} frames around; above each corruption, the gain in points.", run.average_frames)
}

fn stream(run: &RunRecord, summary: &Summary) -> Markup {
    html! {
        section {
            h2 { "Over the stream" }
            p.note { (stream_note(run)) }
            (inline_chart(run, summary, &WIDE, "wide"))
            (inline_chart(run, summary, &NARROW, "narrow"))
        }
    }
}

fn inline_chart(run: &RunRecord, summary: &Summary, layout: &Layout, class: &str) -> Markup {
    let Chart { body, height } = stream_chart(run, layout);
    let spoken = format!("Source {}, adapted {} over the stream", percent(summary.source_accuracy), percent(summary.adapted_accuracy));
    html! { svg.(class) viewBox=(format!("0 0 {} {height:.0}", layout.width)) role="img" aria-label=(spoken) { (body) } }
}

fn domains(summary: &Summary) -> Markup {
    html! {
        section {
            h2 { "By corruption" }
            p.note { "In the order of the stream; grey is the source model, blue the adapted one, from 0 to 100 %." }
            table {
                thead { tr { th { "corruption" } th.bars {} th { "source" } th { "adapted" } th { "gain" } th.frames { "frames" } } }
                tbody { @for domain in &summary.domains { (domain_row(domain)) } }
                tfoot { (domain_row(&summary.total())) }
            }
        }
    }
}

/// Bars are SVG and not backgrounds, which printers leave out.
fn domain_row(domain: &DomainSummary) -> Markup {
    let width = |accuracy: f64| format!("{:.1}%", 100.0 * accuracy);
    html! {
        tr {
            td { (spoken(&domain.name)) }
            td.bars {
                svg aria-hidden="true" {
                    rect.rail width="100%" height="19" {}
                    rect.bar.source y="2" width=(width(domain.source_accuracy)) height="6" {}
                    rect.bar.adapted y="9" width=(width(domain.adapted_accuracy)) height="8" {}
                }
            }
            td { (percent(domain.source_accuracy)) }
            td { (percent(domain.adapted_accuracy)) }
            td.gain.(verdict(domain.gain())) { (points(domain.gain())) }
            td.frames { (count(domain.frames)) }
        }
    }
}

fn reading(run: &RunRecord, summary: &Summary) -> Markup {
    let versions = run.points.last().map_or(0, |point| point.weights_version);
    html! {
        section.text {
            h2 { "How to read this" }
            p {
                "Every frame was answered twice: by the source model, whose weights never change, and by the adapted model, which goes on "
                "learning from the frames themselves across every change of corruption. The labels and the names of the corruptions are "
                "known to this page alone, to score the answers; adaptation never sees them."
            }
            p {
                "The gate says how far the diffusion model, from which the classifier learns, was believed (0 to 1); it is shut where the "
                "diffusion model seems to know no better. Drift is the distance of the recent frames from the reference, in standard "
                "deviations. "
                @if run.points.iter().any(|point| point.estimated.is_some()) {
                    "The dotted line is the accuracy as estimated without labels. "
                }
                "The weights changed " (HumanCount(versions)) " times."
            }
            p {
                "This is one run: one seed and one order of corruptions. Another seed moves the figures. Means over "
                (run.average_frames) " frames blur the borders between corruptions; the table does not."
            }
            p { "To repeat it:" }
            pre { code { (run.command) } }
            footer { "undrift " (run.version) " · weights " (run.bundle_hash) " · seed " (summary.seed) }
        }
    }
}
