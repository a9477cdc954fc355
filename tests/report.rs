//! Goal: the page of a run is whole, true to the record, and needs nothing but itself.
//! Method: a made-up record with a fall, a shut gate and hostile names; the page and the picture are parsed, and, where there is a
//! Chromium, drawn on a desk and on a phone, light and dark.

use roxmltree::{Document, ParsingOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use undrift::lab::baselines::Passes;
use undrift::lab::report::{Ablation, Theme, ablations_html, plot_svg, report_html};
use undrift::lab::summary::{FramePoint, RunRecord, Summary};

const HOSTILE: &str = "<b>\"fog\" & 'mist'</b>";
/// Name, accuracy of the source model and of the adapted one, drift, reliability.
const DOMAINS: [(&str, f32, f32, f32, f32); 10] = [
    ("clean", 0.91, 0.91, 0.3, 0.95),
    ("gaussian_noise", 0.52, 0.71, 5.1, 0.8),
    ("shot_noise", 0.58, 0.75, 4.2, 0.8),
    ("impulse_noise", 0.41, 0.66, 6.8, 0.7),
    ("defocus_blur", 0.63, 0.69, 2.9, 0.6),
    ("motion_blur", 0.60, 0.56, 3.1, 0.25),
    ("contrast", 0.37, 0.48, 7.9, 0.35),
    ("brightness", 0.80, 0.85, 1.4, 0.9),
    ("elastic_transform", 0.72, 0.74, 1.1, 0.85),
    ("jpeg_compression", 0.77, 0.82, 1.9, 0.9),
];
const FRAMES_PER_DOMAIN: usize = 1_000;

/// Numbers in 0..1 by Knuth's MMIX generator; the seed is the record's.
fn uniform(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    f32::from(u16::try_from(*state >> 48).expect("16 bits are left")) / 65_536.0
}

fn record() -> RunRecord {
    const SEED: u64 = 7;
    println!("seed {SEED}");
    let mut state = SEED;
    let mut points = Vec::new();
    let (mut reliability, mut drift) = (None, 0.0_f32);
    for (domain, source, adapted, drift_goal, reliability_goal) in DOMAINS {
        for frame in 0..FRAMES_PER_DOMAIN {
            let (index, both) = (points.len() as u64, uniform(&mut state));
            drift += 0.01 * (drift_goal - drift) + 0.1 * (uniform(&mut state) - 0.5);
            if index >= 32 && index.is_multiple_of(16) {
                let before = reliability.unwrap_or(0.8);
                reliability = Some((before + 0.1 * (reliability_goal - before) + 0.06 * (uniform(&mut state) - 0.5)).clamp(0.0, 1.0));
            }
            let learned = (frame as f32 / 300.0).min(1.0);
            let point = FramePoint {
                index,
                domain: domain.to_owned(),
                source_hit: both < source,
                adapted_hit: 0.6 * both + 0.4 * uniform(&mut state) < source + learned * (adapted - source),
                reliability,
                drift: drift.abs(),
                estimated: reliability.map(|reliability| 0.55 * (source + learned * (adapted - source)) + 0.35 * reliability),
                weights_version: index / 16,
            };
            points.push(point);
        }
    }
    RunRecord {
        title: "Fashion-MNIST, ten corruptions".to_owned(),
        seed: SEED,
        command: "undrift demo --frames 10000 --seed 7 --out report".to_owned(),
        version: "0.1.0".to_owned(),
        bundle_hash: "b3:5f0c1e".to_owned(),
        frames_per_second: 412.3,
        average_frames: 200,
        points,
    }
}

/// HTML closes `meta` by itself; XML does not.
fn as_xml(html: &str) -> String {
    let mut parts = html.split("<meta");
    let head = parts.next().unwrap_or_default().to_owned();
    parts.fold(head, |xml, part| xml + "<meta" + &part.replacen('>', "/>", 1))
}

fn words(text: &str) -> String {
    let xml = as_xml(text);
    let document = Document::parse_with_options(&xml, ParsingOptions { allow_dtd: true, ..Default::default() }).expect("is well-formed");
    document.descendants().filter_map(|node| node.is_text().then(|| node.text()).flatten()).map(|text| format!("{text} ")).collect()
}

#[test]
fn page_is_well_formed_and_names_every_corruption_with_its_figures() {
    let record = record();
    let words = words(&report_html(&record));
    for domain in Summary::new(&record).domains {
        assert!(words.contains(&domain.name.replace('_', " ")), "{} is missing", domain.name);
        assert!(words.contains(&format!("{:.1}\u{a0}%", 100.0 * domain.adapted_accuracy)), "figure of {} is missing", domain.name);
    }
    assert!(words.contains(&record.command));
}

#[test]
fn page_needs_nothing_from_elsewhere_and_has_both_themes() {
    let page = report_html(&record());
    for forbidden in ["://", "<script", "<link", "<img", "@import", "url(", "src=", "href="] {
        assert!(!page.contains(forbidden), "found {forbidden}");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
    assert!(page.len() < 400_000, "{} bytes", page.len());
}

#[test]
fn pictures_differ_in_colours_alone_and_carry_them() {
    let record = record();
    let [light, dark] = [Theme::Light, Theme::Dark].map(|theme| plot_svg(&record, theme));
    assert_eq!(words(&light).split("</style>").last().map(str::len), words(&dark).split("</style>").last().map(str::len));
    assert_ne!(light, dark);
    assert!(!light.contains("var("));
}

#[test]
fn names_from_outside_are_shown_and_not_obeyed() {
    let mut record = record();
    record.title = HOSTILE.to_owned();
    record.command = HOSTILE.to_owned();
    record.points.iter_mut().take(FRAMES_PER_DOMAIN).for_each(|point| point.domain = HOSTILE.to_owned());
    for text in [report_html(&record), plot_svg(&record, Theme::Light)] {
        assert!(!text.contains("<b>"));
        assert!(words(&text).contains(HOSTILE));
    }
}

#[test]
fn runs_of_any_length_and_order_have_a_page() {
    let whole = record();
    for frames in [0, 1, 2, 33, 1_001] {
        let mut part = whole.clone();
        part.points.truncate(frames);
        words(&report_html(&part));
        assert!(!report_html(&part).contains("NaN"), "at {frames} frames");
    }
    let mut broken = whole.clone();
    (broken.points[5].drift, broken.points[900].drift, broken.points[77].estimated) = (f32::NAN, f32::INFINITY, Some(f32::NAN));
    assert!(!report_html(&broken).contains("NaN") && !report_html(&broken).contains("inf "));
    let mut mixed = whole;
    for (point, (domain, ..)) in mixed.points.iter_mut().zip(DOMAINS.iter().cycle()) {
        point.domain = (*domain).to_owned();
    }
    assert!(report_html(&mixed).len() < 5_000_000);
}

#[test]
fn page_of_ablations_draws_each_gain_from_zero_and_names_what_was_set() {
    let ablation = |name: &str, gain: f64, worst_window_gain: f64| Ablation {
        name: name.to_owned(),
        set: vec!["adapt.window=16".to_owned()],
        accuracy: 0.7 + gain,
        gain,
        worst_window_gain,
        frames_per_second: 100.0,
        passes_per_frame: Passes::default(),
    };
    let rows = [ablation("as shipped", 0.1, 0.02), ablation(HOSTILE, -0.1, -0.3)];
    let page = ablations_html(0.7, &rows, HOSTILE);
    assert!(!page.contains("<b>") && words(&page).contains(HOSTILE) && page.contains("adapt.window=16"));
    // From -0.3 to 0.1: zero lies at three quarters, and each bar takes a quarter on its side.
    let html = as_xml(&page);
    let document = Document::parse_with_options(&html, ParsingOptions { allow_dtd: true, ..ParsingOptions::default() }).expect("a page");
    let bars = document.descendants().filter(|node| node.attribute("class").is_some_and(|class| class.starts_with("bar ")));
    let places: Vec<_> = bars.map(|bar| ["class", "x", "width"].map(|name| bar.attribute(name).unwrap_or_default())).collect();
    assert_eq!(places, [["bar adapted", "75.00%", "25.00%"], ["bar harm", "50.00%", "25.00%"]]);
    for rows in [&rows[..0], &[ablation("nothing", 0.0, 0.0)]] {
        assert!(!ablations_html(0.7, rows, "").contains("NaN"));
    }
}

#[test]
fn summary_equals_the_figures_by_hand() {
    // Source hits 3 of 4, adapted 2 of 4; fewer frames than a window, so that the worst window is the whole run.
    let mut record = record();
    record.points.truncate(4);
    let hits = [(true, true), (true, false), (true, false), (false, true)];
    for (point, (source, adapted)) in record.points.iter_mut().zip(hits) {
        (point.source_hit, point.adapted_hit) = (source, adapted);
    }
    record.points[3].domain = "fog".to_owned();
    let json: serde_json::Value = serde_json::from_str(&Summary::new(&record).to_json()).expect("is JSON");
    let expected = serde_json::json!({
        "frames": 4, "source_accuracy": 0.75, "adapted_accuracy": 0.5, "window_frames": 500, "worst_window_delta": -0.25,
        "frames_per_second": 412.3, "seed": 7, "bundle_hash": record.bundle_hash, "version": "0.1.0", "command": record.command,
        "domains": [
            {"name": "clean", "frames": 3, "source_accuracy": 1.0, "adapted_accuracy": 1.0 / 3.0},
            {"name": "fog", "frames": 1, "source_accuracy": 0.0, "adapted_accuracy": 1.0},
        ],
    });
    assert_eq!(json, expected);
}

#[test]
fn browser_draws_the_page_on_a_desk_and_on_a_phone() {
    let Some(chromium) = chromium() else {
        eprintln!("NOT RUN: browser_draws_the_page_on_a_desk_and_on_a_phone, as there is no chromium on PATH");
        return;
    };
    let scratch = tempfile::tempdir().expect("makes a folder");
    let folder = std::env::var_os("REPORT_SCREENSHOTS").map_or_else(|| scratch.path().to_owned(), PathBuf::from);
    let page = folder.join("report.html");
    std::fs::write(&page, report_html(&record())).expect("writes the page");
    for (theme, name) in [(Theme::Light, "plot-light.svg"), (Theme::Dark, "plot-dark.svg")] {
        std::fs::write(folder.join(name), plot_svg(&record(), theme)).expect("writes the picture");
    }
    for (name, width, height, dark) in [
        ("desk-light", 1200, 1750, false),
        ("desk-dark", 1200, 1750, true),
        ("phone-light", 500, 2100, false),
        ("phone-dark", 500, 2100, true),
    ] {
        let png = folder.join(format!("{name}.png"));
        screenshot(&chromium, scratch.path(), &page, &png, (width, height), dark);
        let drawn = image::open(&png).expect("is a PNG").into_rgb8();
        let darkness = drawn.get_pixel(2, 2).0.map(|value| value < 64);
        assert_eq!(darkness, [dark; 3], "ground of {name}");
        assert!(drawn.pixels().any(|pixel| pixel != drawn.get_pixel(2, 2)), "{name} is empty");
    }
}

fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .flat_map(|folder| ["chromium", "chromium-browser"].map(|name| folder.join(name)))
        .find(|file| file.is_file())
}

fn screenshot(chromium: &Path, scratch: &Path, page: &Path, png: &Path, (width, height): (u32, u32), dark: bool) {
    let status = Command::new(chromium)
        .args("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split(' '))
        .args("--disable-component-update --disable-sync --hide-scrollbars".split(' '))
        .args(dark.then_some("--blink-settings=preferredColorScheme=0"))
        .arg(format!("--user-data-dir={}", scratch.join("profile").display()))
        .arg(format!("--screenshot={}", png.display()))
        .arg(format!("--window-size={width},{height}"))
        .arg(format!("file://{}", page.display()))
        .stderr(Stdio::null())
        .status()
        .expect("starts chromium");
    assert!(status.success(), "{status}");
}
