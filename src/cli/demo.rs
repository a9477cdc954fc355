//! `undrift demo`: a stream whose corruption changes, without server, network or data set.

use super::live::{Live, Volume, table};
use crate::config::{self, Config};
use crate::frame::Frame;
use crate::lab::corruptions::{Severity, Table};
use crate::lab::dataset::{self, Labelled};
use crate::lab::evaluate::Session;
use crate::lab::report::{self, Theme};
use crate::lab::streams::{Plan, Playback, Request, Stream};
use crate::lab::summary::{FramePoint, RunRecord, Summary};
use crate::prediction::Prediction;
use crate::shell::bundle_reader::read_bundle;
use clap::Args;
use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What the demo plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DemoStream {
    /// Clean frames, then the fifteen standard corruptions one after the other
    Continual,
    /// Clean frames only: nothing to learn, nothing to lose
    Clean,
}

#[derive(Args)]
pub struct Demo {
    /// Frames to play
    #[arg(long, default_value_t = 6000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    frames: u64,
    /// Seed of the stream and of the noise
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder for report.html, plot-light.svg, plot-dark.svg and summary.json
    #[arg(long, default_value = "demo")]
    out: PathBuf,
    #[arg(long, value_enum, default_value_t = DemoStream::Continual)]
    stream: DemoStream,
    /// Strength of the corruptions
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=5))]
    severity: u8,
    /// The bundle's configuration; a sample of labelled images lies beside it
    #[arg(long, default_value = CONFIG)]
    config: PathBuf,
    /// Change one key of the configuration, key.path=value
    #[arg(long = "set")]
    sets: Vec<String>,
    /// Print summary.json instead of a table
    #[arg(long)]
    json: bool,
    /// No progress
    #[arg(long)]
    quiet: bool,
}

const CONFIG: &str = "configs/fashion-mnist/undrift.toml";

pub fn run(demo: &Demo) -> Result<(), Box<dyn Error>> {
    let config = Config::load(&demo.config, &demo.sets, config::environment())?;
    let bundle = read_bundle(&config)?;
    let images = sample(&config.bundle.files.labels)?;
    let plan = plan(demo, &images)?;
    let side = bundle.classifier_config.image().height;
    let frames = Playback { plan: &plan, images: &images, table: Table::Tiny, side }.frames();
    let mut session = Session::new(&bundle, &config.adapt, demo.seed)?;
    let mut live = Live::new(demo.frames, if demo.quiet { Volume::Quiet } else { Volume::Normal });
    let mut points = Vec::new();
    let mut seconds = 0.0;
    // Frames without an answer yet: more than one only with `answer = "after"`.
    let mut unanswered = BTreeMap::new();
    for (index, frame) in (0u64..).zip(frames) {
        let frame = frame.into_frame(index);
        // The camera's work, drawing and corrupting a frame, is not the daemon's.
        let started = Instant::now();
        let step = session.frame(frame.clone())?;
        seconds += started.elapsed().as_secs_f64();
        unanswered.insert(frame.sequence, frame);
        for prediction in step.predictions {
            let frame = unanswered.remove(&prediction.sequence).expect("each frame is answered once");
            let point = point(&frame, &prediction, &session);
            live.show(&point);
            points.push(point);
        }
    }
    live.finish();
    let record = RunRecord {
        title: "One classifier, a changing world, no labels".to_owned(),
        seed: demo.seed,
        command: command(demo),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        bundle_hash: blake3::hash(&std::fs::read(&config.bundle.files.hashes)?).to_hex()[..16].to_owned(),
        frames_per_second: demo.frames as f64 / seconds,
        average_frames: 200,
        points,
    };
    write(demo, &record)
}

/// Labelled test images that ship with the bundle, beside its `labels`.
fn sample(labels: &Path) -> Result<Vec<Labelled>, Box<dyn Error>> {
    let dir = labels.parent().unwrap_or(Path::new("."));
    let open = |name: &str| {
        let path = dir.join(name);
        File::open(&path).map_err(|error| format!("{}: {error}; the demo needs the sample images of its bundle", path.display()))
    };
    Ok(dataset::read_pair(open("sample-images-idx3-ubyte.gz")?, open("sample-labels-idx1-ubyte.gz")?)?)
}

fn plan(demo: &Demo, images: &[Labelled]) -> Result<Plan, Box<dyn Error>> {
    let stream = match demo.stream {
        DemoStream::Continual => Stream::Continual,
        DemoStream::Clean => Stream::Clean,
    };
    let (frames, severity) = (usize::try_from(demo.frames)?, Severity::try_from(demo.severity)?);
    Ok(Plan::new(stream, &Request { frames, severity, seed: demo.seed, visits: 1, walk: None }, images)?)
}

fn point(frame: &Frame, prediction: &Prediction, session: &Session) -> FramePoint {
    let status = session.status();
    FramePoint {
        index: frame.sequence.0 - 1,
        domain: frame.domain.clone().unwrap_or_default(),
        source_hit: frame.label == Some(prediction.source_label),
        adapted_hit: frame.label == Some(prediction.label),
        reliability: status.reliability.map(|value| value as f32),
        drift: status.drift_score as f32,
        estimated: status.estimated_accuracy.map(|value| value as f32),
        weights_version: prediction.weights_version.0,
    }
}

/// The command line that repeats the run.
fn command(demo: &Demo) -> String {
    let stream = match demo.stream {
        DemoStream::Continual => String::new(),
        DemoStream::Clean => " --stream clean".to_owned(),
    };
    let severity = if demo.severity == 5 { String::new() } else { format!(" --severity {}", demo.severity) };
    let config = match demo.config.to_str() {
        None | Some(CONFIG) => String::new(),
        Some(path) => format!(" --config '{path}'"),
    };
    let sets: String = demo.sets.iter().map(|set| format!(" --set '{set}'")).collect();
    format!("cargo run --release -- demo --frames {} --seed {}{stream}{severity}{config}{sets}", demo.frames, demo.seed)
}

fn write(demo: &Demo, record: &RunRecord) -> Result<(), Box<dyn Error>> {
    let summary = Summary::new(record);
    std::fs::create_dir_all(&demo.out).map_err(|error| format!("folder {}: {error}", demo.out.display()))?;
    let files = [
        ("summary.json", summary.to_json()),
        ("report.html", report::report_html(record)),
        ("plot-light.svg", report::plot_svg(record, Theme::Light)),
        ("plot-dark.svg", report::plot_svg(record, Theme::Dark)),
    ];
    for (name, text) in files {
        let path = demo.out.join(name);
        std::fs::write(&path, text).map_err(|error| format!("file {}: {error}", path.display()))?;
    }
    if demo.json {
        println!("{}", summary.to_json());
    } else {
        println!("{}\n{}", table(&summary), demo.out.join("report.html").display());
    }
    Ok(())
}
