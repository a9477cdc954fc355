//! What a window costs against draws, window, classes and tokens: time beside the operation count.
//!
//! `make bench`. One of the sizes varies, the others are those that ship; weights are random. Sizes work by turns, so that what else the
//! machine does meets all alike; the table has medians, on one thread. target/bench/costs.html has a panel for each size: where
//! time is proportional to operations, a curve lies on the dotted line from zero through the shipped sizes.

mod beside;
#[path = "../src/lab/report/panel.rs"]
#[allow(dead_code, reason = "the report takes the rest")]
mod panel;
#[path = "../src/lab/report/svg.rs"]
#[allow(dead_code, unused_imports, reason = "the report takes the rest, and its tests are not run here")]
mod svg;
#[path = "../tests/tiny/mod.rs"]
mod tiny;

mod operations;

use beside::figure;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use panel::{LINE, Panel, px};
use std::path::Path;
use std::time::Instant;
use svg::{Point, Scale};
use undrift::bundle::{Bundle, Statistics};
use undrift::config::Config;
use undrift::frame::WeightsVersion;
use undrift::guard::canary::Canary;
use undrift::learner::{AdaptConfig, Adapter, GateConfig, Judgement, source_state};
use undrift::model::{ClassifierConfig, Dit, DitConfig, ImageShape, TrunkConfig, Vit, VitConfig};
use undrift::noise::NoiseKey;
use undrift::pipeline::{Outcome, WindowFrame};
use undrift::recent::Recent;
use undrift::shell::bundle_reader::read_bundle;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 15;
const WARM_UP: usize = 2;
const CONFIG: &str = "configs/fashion-mnist/undrift.toml";
const PAGE: &str = "target/bench/costs.html";

const DRAWS: [usize; 6] = [1, 2, 4, 8, 16, 32];
const WINDOWS: [usize; 6] = [1, 2, 4, 8, 16, 32];
const CLASSES: [usize; 6] = [2, 5, 10, 20, 50, 100];
/// 16, 36, 64, 144 and 256 tokens.
const SIDES: [usize; 5] = [16, 24, 32, 48, 64];

fn main() {
    let config = Config::load(Path::new(CONFIG), &[], std::iter::empty()).expect("the shipped configuration");
    let shipped = Sizes::shipped(read_bundle(&config).expect("the shipped bundle"), open(config.adapt));
    let axes: [Axis; 4] = [
        ("draws", Sizes::draws, DRAWS.map(|draws| shipped.with_draws(draws)).to_vec()),
        ("window", Sizes::frames, WINDOWS.map(|window| shipped.with_window(window)).to_vec()),
        ("classes", Sizes::classes, CLASSES.map(|classes| shipped.with_classes(classes)).to_vec()),
        ("tokens", Sizes::tokens, SIDES.map(|side| shipped.with_side(side)).to_vec()),
    ];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let curves: Vec<Curve> = axes.into_iter().map(|axis| pool.install(|| Curve::measured(axis, &shipped))).collect();
    curves.iter().for_each(Curve::print);
    println!();
    curves.iter().for_each(Curve::figures);
    std::fs::create_dir_all("target/bench").expect("a directory target");
    std::fs::write(PAGE, page(&curves)).expect("a directory target/bench");
    println!("\n{PAGE}");
}

/// Name of what varies, its value, and what it is to be measured at.
type Axis = (&'static str, fn(&Sizes) -> usize, Vec<Sizes>);

/// Learns from every window.
fn open(adapt: AdaptConfig) -> AdaptConfig {
    let gate = GateConfig { margin: -1.0, diversity_slack: 1.0, tolerance: 1.0, consistency: 0.0, ..adapt.gate };
    AdaptConfig { gate, distance_max: f64::MAX, ..adapt }
}

/// What the cost of a window depends on.
#[derive(Clone)]
struct Sizes {
    vit: VitConfig,
    dit: DitConfig,
    adapt: AdaptConfig,
    statistics: Statistics,
}

impl Sizes {
    fn shipped(bundle: Bundle, adapt: AdaptConfig) -> Self {
        let ClassifierConfig::Vit(vit) = bundle.classifier_config else { panic!("the shipped classifier is a vision transformer") };
        Self { vit, dit: bundle.diffusion_config, adapt, statistics: bundle.statistics }
    }

    fn with_draws(&self, draws: usize) -> Self {
        let timesteps = self.adapt.timesteps.iter().copied().cycle().take(draws).collect();
        Self { adapt: AdaptConfig { timesteps, ..self.adapt.clone() }, ..self.clone() }
    }

    fn with_window(&self, window: usize) -> Self {
        Self { adapt: AdaptConfig { window, ..self.adapt.clone() }, ..self.clone() }
    }

    fn with_classes(&self, classes: usize) -> Self {
        Self { vit: VitConfig { classes, ..self.vit }, dit: DitConfig { classes, ..self.dit }, ..self.clone() }
    }

    fn with_side(&self, side: usize) -> Self {
        let trunk = |trunk: TrunkConfig| TrunkConfig { image: ImageShape { height: side, width: side, ..trunk.image }, ..trunk };
        let (vit, dit) = (VitConfig { trunk: trunk(self.vit.trunk), ..self.vit }, DitConfig { trunk: trunk(self.dit.trunk), ..self.dit });
        Self { vit, dit, ..self.clone() }
    }

    fn draws(&self) -> usize {
        self.adapt.timesteps.len()
    }

    fn frames(&self) -> usize {
        self.adapt.window
    }

    fn classes(&self) -> usize {
        self.dit.classes
    }

    fn tokens(&self) -> usize {
        self.dit.trunk.tokens()
    }

    fn views(&self) -> usize {
        if self.adapt.stretched_view { 2 } else { 1 }
    }

    /// Of the judgement of a window.
    fn judge_operations(&self) -> f64 {
        (self.frames() * self.draws()) as f64 * operations::judgement(&self.dit)
    }

    /// Of learning from it.
    fn learn_operations(&self) -> f64 {
        (self.frames() * self.views()) as f64 * operations::forward_and_backward(&self.vit.trunk)
    }

    /// Random models of these sizes.
    fn bundle(&self) -> Bundle {
        let elements = self.vit.trunk.image.elements();
        Bundle {
            classifier: tiny::shaken(Vit::initialize(&self.vit, 1).expect("a model"), 1),
            diffusion: tiny::shaken(Dit::initialize(&self.dit, 2).expect("a model"), 2),
            classifier_config: ClassifierConfig::Vit(self.vit),
            diffusion_config: self.dit,
            labels: (0..self.vit.classes).map(|class| format!("class-{class}")).collect(),
            statistics: self.statistics.clone(),
            canary: Canary { images: vec![0f32; 16 * elements], labels: vec![0; 16] },
        }
    }

    /// Frames of noise.
    fn window(&self) -> Vec<WindowFrame> {
        let elements = self.vit.trunk.image.elements();
        let frame = |index| {
            let key = NoiseKey::from_seed(1, "bench", index);
            let mut views = vec![0f32; self.views() * elements];
            key.fill_normal(u32::MAX, &mut views);
            let source_logits = vec![vec![0f64; self.vit.classes]; self.views()];
            let prior = Recent::default().prior(self.vit.classes);
            WindowFrame { camera: "cam".to_owned(), key, views, source_logits, verdict: None, prior }
        };
        (0u64..).take(self.frames()).map(frame).collect()
    }
}

/// Operations of a window, and the seconds that they took.
#[derive(Clone, Copy)]
struct Cost {
    operations: f64,
    seconds: f64,
}

impl Cost {
    fn print(self) {
        print!(" {:>9.3} {:>9.4} {:>8.1}", self.seconds * 1e3, self.operations / 1e9, self.operations / self.seconds / 1e9);
    }

    /// Milliseconds over billions of operations.
    fn point(self) -> Point {
        (self.operations / 1e9, self.seconds * 1e3)
    }
}

/// One size, measured at some values.
struct Curve {
    name: &'static str,
    /// The value that ships.
    shipped: usize,
    measured: Vec<Measured>,
}

struct Measured {
    value: usize,
    judge: Cost,
    learn: Cost,
}

impl Curve {
    fn measured((name, value, points): Axis, shipped: &Sizes) -> Self {
        let mut desks: Vec<Desk> = points.iter().map(Desk::new).collect();
        for _ in 0..WARM_UP + ROUNDS {
            desks.iter_mut().for_each(Desk::work);
        }
        let measured = points.iter().zip(desks).map(|(sizes, desk)| {
            let judge = Cost { operations: sizes.judge_operations(), seconds: median(desk.judge) };
            let learn = Cost { operations: sizes.learn_operations(), seconds: median(desk.learn) };
            Measured { value: value(sizes), judge, learn }
        });
        Self { name, shipped: value(shipped), measured: measured.collect() }
    }

    fn print(&self) {
        let of_cost = |name: &str| format!("{:>9} {:>9} {:>8}", format!("{name} ms"), "GFLOP", "GFLOP/s");
        println!("\n{:<10} {} {}", self.name, of_cost("judge"), of_cost("learn"));
        for Measured { value, judge, learn } in &self.measured {
            print!("{value:<10}");
            judge.print();
            learn.print();
            println!();
        }
    }

    fn figures(&self) {
        let (first, last) = (&self.measured[0], &self.measured[self.measured.len() - 1]);
        for (lane, cheap, dear) in [("judge", first.judge, last.judge), ("learn", first.learn, last.learn)] {
            let (time, operations) = (dear.seconds / cheap.seconds, dear.operations / cheap.operations);
            if operations > 1.0 {
                let name = format!("{lane} a window, {} {} against {}", self.name, last.value, first.value);
                figure(&name, &format!("time x {time:.2}"), &format!("operations x {operations:.2}"), &format!("{:.2}", time / operations));
            }
        }
    }

    fn draw(&self) -> Markup {
        let points = |cost: fn(&Measured) -> Cost| self.measured.iter().map(|measured| cost(measured).point()).collect::<Vec<_>>();
        let (judge, learn) = (points(|measured| measured.judge), points(|measured| measured.learn));
        let at = self.measured.iter().position(|measured| measured.value == self.shipped).expect("the shipped value is measured");
        let expected = [proportional(&judge, at), proportional(&learn, at)];
        let all = || judge.iter().chain(&learn).chain(expected.iter().flatten());
        let (operations, milliseconds) = all().fold((0f64, 0f64), |most, point| (most.0.max(point.0), most.1.max(point.1)));
        let panel = Panel { x: Scale::new(0.0..=operations, (LEFT, LEFT + WIDTH)), top: 2.0 * LINE, bottom: 2.0 * LINE + HEIGHT };
        let y = Scale::new(0.0..=milliseconds, (panel.bottom, panel.top));
        let [judged, learned] = [&judge, &learn].map(|curve| panel.place(y, curve));
        html! {
            text.strong x=(px(LEFT)) y=(px(LINE)) { (self.name) }
            (panel.value_axis(y, |tick| format!("{tick} ms")))
            (operation_axis(&panel))
            @for line in &expected { path.line.estimated d=(svg::line(&panel.place(y, line))) {} }
            path.line.source d=(svg::line(&judged)) {}
            path.line.adapted d=(svg::line(&learned)) {}
            @for (line, class) in [(&judged, "source-dot"), (&learned, "adapted-dot")] {
                @for ((x, y), measured) in line.iter().zip(&self.measured) {
                    circle.(class) cx=(px(*x)) cy=(px(*y)) r="3" { title { (self.name) " " (measured.value) } }
                }
            }
            (panel.line_ends(&[("source", "judge", &judged), ("adapted", "learn", &learned)]))
        }
    }
}

/// From zero through point `at` of a curve, as far as the curve goes.
fn proportional(curve: &[Point], at: usize) -> Vec<Point> {
    let (operations, milliseconds) = curve[at];
    let most = curve.iter().map(|point| point.0).fold(0.0, f64::max);
    vec![(0.0, 0.0), (most, most * milliseconds / operations)]
}

fn operation_axis(panel: &Panel) -> Markup {
    let baseline = panel.bottom + LINE + 2.0;
    html! {
        @for tick in panel.x.ticks(5.0) {
            line.grid x1=(px(panel.x.at(tick))) x2=(px(panel.x.at(tick))) y1=(px(panel.bottom)) y2=(px(panel.bottom + 4.0)) {}
            text.tick.mid x=(px(panel.x.at(tick))) y=(px(baseline)) { (format!("{:.3}", tick).trim_end_matches('0').trim_end_matches('.')) }
        }
        text.tick.right x=(px(panel.right() + 60.0)) y=(px(baseline)) { "GFLOP" }
    }
}

const LEFT: f64 = 60.0;
const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 220.0;
/// From one panel to the next.
const ACROSS: f64 = LEFT + WIDTH + 70.0;
const DOWN: f64 = HEIGHT + 5.0 * LINE;
/// The report's colours.
const COLOURS: &str = "\
:root{--ink:#1a1f26;--muted:#5a6472;--grid:#dfe3e8;--source:#87909c;--adapted:#0b5fc0}
body{font:14px system-ui,sans-serif;color:#1a1f26;max-width:66rem;margin:2rem auto;padding:0 1rem}
.source-dot{fill:var(--source)}.adapted-dot{fill:var(--adapted)}";

/// Four panels, in itself complete.
fn page(curves: &[Curve]) -> String {
    let panels = curves.iter().zip([(0.0, 0.0), (ACROSS, 0.0), (0.0, DOWN), (ACROSS, DOWN)]);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { "What a window costs" }
                style { (PreEscaped(include_str!("../src/lab/report/chart.css"))) (PreEscaped(COLOURS)) }
            }
            body {
                h1 { "What a window costs" }
                p {
                    "Milliseconds on one thread over the operations of matrix products, while one size varies and the others are those "
                    "that ship. Dotted: what is proportional to operations, from zero through the shipped size."
                }
                svg viewBox=(format!("0 0 {} {}", 2.0 * ACROSS, 2.0 * DOWN)) role="img" aria-label="Time over operations" {
                    @for (curve, (x, y)) in panels {
                        g transform=(format!("translate({x} {y})")) { (curve.draw()) }
                    }
                }
            }
        }
    };
    page.into_string()
}

/// A window of some sizes, and what it took so far.
struct Desk {
    adapter: Adapter,
    window: Vec<WindowFrame>,
    judgement: Judgement,
    judge: Vec<f64>,
    learn: Vec<f64>,
}

impl Desk {
    fn new(sizes: &Sizes) -> Self {
        let bundle = sizes.bundle();
        let learner = source_state(&bundle.classifier, WeightsVersion(0));
        let adapter = Adapter::new(&bundle, &sizes.adapt, &learner).expect("an adapter");
        Self { adapter, window: sizes.window(), judgement: Judgement::default(), judge: Vec::new(), learn: Vec::new() }
    }

    fn work(&mut self) {
        let started = Instant::now();
        self.adapter.judge_into(&mut self.judgement, &self.window);
        let judged = Instant::now();
        let outcome = self.adapter.learn(&self.window, &self.judgement.verdicts).expect("a step");
        self.learn.push(judged.elapsed().as_secs_f64());
        self.judge.push((judged - started).as_secs_f64());
        assert!(matches!(outcome, Outcome::Learned(_)), "every window is learned from: {outcome:?}");
    }
}

/// Without those of the warm-up.
fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.drain(..WARM_UP);
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
