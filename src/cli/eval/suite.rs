//! `undrift eval --suite`: the comparison in full, its table and its report.

use super::{Eval, calibrate, say, source_images};
use crate::bundle::Bundle;
use crate::config::{self, Config};
use crate::lab::corruptions::Table;
use crate::lab::dataset::Labelled;
use crate::lab::methods::Method;
use crate::lab::report::suite_html;
use crate::lab::streams::{Calibration, Stream};
use crate::lab::suite::{
    Archive, Block, Cell, Figures, Found, Materials, Records, Section, Subject, Suite, figures_text, in_parallel, run_cell,
};
use crate::model::ClassifierConfig;
use crate::shell::bundle_reader::read_bundle;
use clap::Args;
use indicatif::{HumanCount, ProgressBar, ProgressState, ProgressStyle};
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

const HEADING: &str = "Suite";

/// Arguments that belong to a suite.
#[derive(Args)]
#[command(next_help_heading = HEADING)]
pub struct SuiteArguments {
    /// Run all that is compared, cell by cell; a cell that --out has is not run again
    #[arg(long, value_enum, conflicts_with_all = [
        "frames", "stream", "length", "from", "severity", "table", "visits", "calibration", "source_accuracy", "seed", "config",
    ])]
    pub suite: Option<Suite>,
    /// Seeds 1 to N
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000), requires = "suite")]
    seeds: u64,
    /// Only these of the suite's streams, separated by commas; so --methods
    #[arg(long, value_enum, value_delimiter = ',', requires = "suite")]
    streams: Vec<Stream>,
    /// Only these parts of the suite
    #[arg(long, value_enum, value_delimiter = ',', requires = "suite")]
    sections: Vec<Section>,
    /// Configurations of the bundles, separated by commas [default: the shipped ones]
    #[arg(long, value_name = "FILE", value_delimiter = ',', requires = "suite")]
    models: Vec<PathBuf>,
    /// Cells that run at once, each on a core of its own [default: one for each core]
    #[arg(long, value_name = "N", requires = "suite")]
    jobs: Option<NonZeroUsize>,
    /// Folder of the cells and of report.html
    #[arg(long, value_name = "DIR", default_value = "results", requires = "suite")]
    out: PathBuf,
    /// Run nothing: the figures and the report of what --out has
    #[arg(long, requires = "suite")]
    report_only: bool,
}

/// Bundles that ship; the first must be there.
const MODELS: [&str; 2] = ["configs/fashion-mnist/undrift.toml", "configs/fashion-mnist-resnet/undrift.toml"];

/// Of the draws that a calibration is measured with.
const CALIBRATION_SEED: u64 = 1;

/// All that cells are run from.
struct Laboratory {
    archive: Archive,
    subjects: Vec<Subject>,
    materials: Materials,
    /// By model and table.
    calibrations: Vec<(String, Table, Calibration)>,
}

pub fn run(eval: &Eval, suite: Suite) -> Result<(), Box<dyn Error>> {
    let arguments = &eval.suite;
    let mut laboratory = Laboratory::open(eval)?;
    let models: Vec<String> = laboratory.subjects.iter().map(|subject| subject.name.clone()).collect();
    let seeds: Vec<u64> = (1..=arguments.seeds).collect();
    let blocks = suite.blocks();
    let all: Vec<Cell> = blocks.iter().flat_map(|block| block.cells(&models, &seeds)).collect();
    let is_named = |block: &&Block| arguments.sections.is_empty() || arguments.sections.contains(&block.section);
    let chosen = blocks.iter().filter(is_named).flat_map(|block| block.cells(&models, &seeds));
    let chosen: Vec<Cell> = chosen.filter(|cell| is_chosen(cell, &arguments.streams, &eval.methods)).collect();
    if chosen.is_empty() {
        return Err("the suite has none of these methods on any of these streams in these sections".into());
    }
    laboratory.find_calibrations(&all)?;
    if !arguments.report_only {
        laboratory.measure_calibrations(&chosen, &eval.source.calibration_images()?)?;
        laboratory.run_missing(chosen, arguments.jobs)?;
    }
    let records = laboratory.records(&all)?;
    let figures = Figures::new(suite, &models, &seeds, &records);
    let command = format!("undrift eval --suite {} --seeds {}", suite.name(), arguments.seeds);
    laboratory.archive.write("report.html", &suite_html(&figures, &records, &command))?;
    say(eval, &figures, &figures_text(&figures))?;
    eprintln!("{}", arguments.out.join("report.html").display());
    Ok(())
}

fn is_chosen(cell: &Cell, streams: &[Stream], methods: &[Method]) -> bool {
    (streams.is_empty() || streams.contains(&cell.scenario.stream)) && (methods.is_empty() || methods.contains(&cell.method))
}

fn subject(path: &Path, sets: &[String]) -> Result<Subject, Box<dyn Error>> {
    let config = Config::load(path, sets, config::environment())?;
    let bundle = read_bundle(&config)?;
    let hash_of = |path: &Path| match std::fs::read(path) {
        Ok(bytes) => Ok(blake3::hash(&bytes).to_hex().to_string()),
        Err(error) => Err(format!("file {}: {error}", path.display())),
    };
    let (hash, classifier_hash) = (hash_of(&config.bundle.files.hashes)?, hash_of(&config.bundle.files.classifier)?);
    let name = architecture(&bundle).to_owned();
    Ok(Subject { name, bundle, adapt: config.adapt, hash, classifier_hash, importance: OnceLock::new() })
}

fn architecture(bundle: &Bundle) -> &'static str {
    match bundle.classifier_config {
        ClassifierConfig::Vit(_) => "vit",
        ClassifierConfig::ResNet(_) => "resnet",
    }
}

impl Laboratory {
    fn open(eval: &Eval) -> Result<Self, Box<dyn Error>> {
        let shipped = MODELS.iter().map(PathBuf::from).enumerate().filter(|(index, path)| *index == 0 || path.exists());
        let models = if eval.suite.models.is_empty() { shipped.map(|(_, path)| path).collect() } else { eval.suite.models.clone() };
        let mut subjects: Vec<Subject> = Vec::new();
        for path in models {
            let subject = subject(&path, &eval.sets)?;
            if subjects.iter().any(|other| other.name == subject.name) {
                return Err(format!("{}: another model of the suite is a {}, too", path.display(), subject.name).into());
            }
            subjects.push(subject);
        }
        let shape = subjects.first().ok_or("name a model by --models")?.bundle.classifier_config.image();
        let source_images = source_images(&eval.source_images, shape)?;
        Ok(Self {
            archive: Archive::open(&eval.suite.out)?,
            subjects,
            materials: Materials::new(eval.source.test_images()?, source_images, eval.tuning),
            calibrations: Vec::new(),
        })
    }

    fn subject(&self, name: &str) -> &Subject {
        self.subjects.iter().find(|subject| subject.name == name).expect("cells are planned for the models that were read")
    }

    fn calibration(&self, cell: &Cell) -> Option<&Calibration> {
        let is_its = |(model, table, _): &&(String, Table, Calibration)| *model == cell.model && *table == cell.scenario.table;
        self.calibrations.iter().find(is_its).map(|(_, _, calibration)| calibration).filter(|_| cell.scenario.is_calibrated())
    }

    /// Models and tables of which a calibration is still to be had for `cells`.
    fn uncalibrated(&self, cells: &[Cell]) -> Vec<(String, Table)> {
        let missing = cells.iter().filter(|cell| cell.scenario.is_calibrated() && self.calibration(cell).is_none());
        let mut missing: Vec<_> = missing.map(|cell| (cell.model.clone(), cell.scenario.table)).collect();
        missing.dedup();
        missing
    }

    fn find_calibrations(&mut self, cells: &[Cell]) -> Result<(), Box<dyn Error>> {
        for (model, table) in self.uncalibrated(cells) {
            if let Some(calibration) = self.archive.calibration(self.subject(&model), table, &self.materials.images_hash)? {
                self.calibrations.push((model, table, calibration));
            }
        }
        Ok(())
    }

    fn measure_calibrations(&mut self, cells: &[Cell], images: &[Labelled]) -> Result<(), Box<dyn Error>> {
        for (model, table) in self.uncalibrated(cells) {
            let subject = self.subject(&model);
            let calibration = calibrate(&subject.bundle, images, table, CALIBRATION_SEED)?;
            self.archive.keep_calibration(subject, table, &self.materials.images_hash, calibration.clone())?;
            self.calibrations.push((model, table, calibration));
        }
        Ok(())
    }

    fn find(&self, cell: &Cell) -> Result<Found, Box<dyn Error>> {
        // Without its calibration, a cell of `ccc` cannot be told from that of another.
        if cell.scenario.is_calibrated() && self.calibration(cell).is_none() {
            return Ok(Found::Missing);
        }
        let fingerprint = cell.fingerprint(self.subject(&cell.model), &self.materials, self.calibration(cell));
        Ok(self.archive.find(&cell.name(), &fingerprint)?)
    }

    /// Runs those of `cells` that the archive does not have, the longest first.
    fn run_missing(&self, cells: Vec<Cell>, jobs: Option<NonZeroUsize>) -> Result<(), Box<dyn Error>> {
        let mut missing = Vec::new();
        for cell in cells {
            match self.find(&cell)? {
                Found::Record(_) => continue,
                Found::Missing => {}
                Found::Outdated => eprintln!("{}: of other models, images or settings; runs again", cell.name()),
                Found::Damaged => eprintln!("{}: damaged; runs again", cell.name()),
            }
            missing.push(cell);
        }
        missing.sort_by_key(|cell| std::cmp::Reverse(cell.weight()));
        let jobs = jobs.map_or_else(std::thread::available_parallelism, Ok)?;
        let progress = Progress::new(&missing)?;
        let work = |cell: &Cell| self.run(cell, &progress).map_err(|error| format!("cell {}: {error}", cell.name()).into());
        in_parallel(jobs, &missing, work).map_err(|error: Box<dyn Error + Send + Sync>| -> Box<dyn Error> { error })?;
        progress.bar.finish();
        Ok(())
    }

    fn run(&self, cell: &Cell, progress: &Progress) -> Result<(), Box<dyn Error>> {
        let shown = || progress.frame(cell);
        let record = run_cell(cell, self.subject(&cell.model), &self.materials, self.calibration(cell), shown)?;
        self.archive.keep(&cell.name(), &record)?;
        progress.cell(cell, record.frames as f64 / record.seconds);
        Ok(())
    }

    fn records(&self, cells: &[Cell]) -> Result<Records, Box<dyn Error>> {
        let mut records = BTreeMap::new();
        let mut unusable = 0;
        for cell in cells {
            match self.find(cell)? {
                Found::Record(record) => drop(records.insert(cell.name(), *record)),
                Found::Missing => {}
                Found::Outdated | Found::Damaged => unusable += 1,
            }
        }
        if unusable > 0 {
            eprintln!("left out: {unusable} cells that are damaged or of other models, images or settings");
        }
        Ok(records)
    }
}

/// One bar over all cells. Its unit is the time that a frame is known to take about, so that the time left is believable though methods
/// differ a thousandfold.
struct Progress {
    bar: ProgressBar,
    frames: Arc<AtomicU64>,
    cells: Arc<AtomicU64>,
}

impl Progress {
    fn new(cells: &[Cell]) -> Result<Self, Box<dyn Error>> {
        let bar = ProgressBar::new(cells.iter().map(Cell::weight).sum());
        let (frames_all, cells_all) = (cells.iter().map(|cell| cell.scenario.frames as u64).sum::<u64>(), cells.len());
        let (frames, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (frames_shown, done_shown) = (Arc::clone(&frames), Arc::clone(&done));
        let counts = move |_: &ProgressState, text: &mut dyn Write| {
            let (frames, cells) = (frames_shown.load(Ordering::Relaxed), done_shown.load(Ordering::Relaxed));
            // A progress bar that cannot be written is no reason to stop.
            let _ = write!(text, "{}/{} frames, {cells}/{cells_all} cells", HumanCount(frames), HumanCount(frames_all));
        };
        let style = ProgressStyle::with_template("{bar:30} {percent}% {counts}, {eta} left")?;
        bar.set_style(style.with_key("counts", counts));
        Ok(Self { bar, frames, cells: done })
    }

    fn frame(&self, cell: &Cell) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bar.inc(cell.frame_weight());
    }

    /// Without a terminal, a line for each cell tells how far a run is.
    fn cell(&self, cell: &Cell, frames_per_second: f64) {
        let done = self.cells.fetch_add(1, Ordering::Relaxed) + 1;
        if self.bar.is_hidden() {
            let part = 100.0 * self.bar.position() as f64 / self.bar.length().unwrap_or(1).max(1) as f64;
            eprintln!("{part:5.1} % {done:5} cells  {} {frames_per_second:.0} frames/s", cell.name());
        }
    }
}
