//! Goal: a comparison that is stopped, changed or damaged is never wrong, only unfinished, and its figures are those of its cells.
//! Method: a tiny bundle, made-up images, a few cells in a folder; figures of records that were written by hand.

mod tiny;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use undrift::bundle::Bundle;
use undrift::frame::ClassIndex;
use undrift::guard::canary::Canary;
use undrift::lab::baselines::{Passes, Tuning};
use undrift::lab::corruptions::Table;
use undrift::lab::dataset::Labelled;
use undrift::lab::methods::Method;
use undrift::lab::report::suite_html;
use undrift::lab::streams::{Calibration, Stream};
use undrift::lab::suite::{
    Archive, Cell, Extent, Figures, Found, Materials, Mean, Record, Records, RunError, Scenario, Section, Subject, Suite, figures_text,
    in_parallel, run_cell,
};
use undrift::learner::AdaptConfig;
use undrift::model::{ClassConditioning, ClassifierConfig, Dit, DitConfig, ImageShape, TrunkConfig, Vit, VitConfig};

/// The tiny models with images of the least size that the corruptions take.
fn subject(adapt: AdaptConfig) -> Subject {
    let tiny = tiny::bundle(1, ClassConditioning::Readout);
    let trunk = TrunkConfig { image: ImageShape { channels: 1, height: 16, width: 16 }, ..tiny::trunk(1) };
    let (classifier, diffusion) = (VitConfig { trunk, classes: tiny::CLASSES }, DitConfig { trunk, ..tiny.diffusion_config });
    let bundle = Bundle {
        classifier: tiny::shaken(Vit::initialize(&classifier, 1).expect("a model"), 1),
        diffusion: tiny::shaken(Dit::initialize(&diffusion, 2).expect("a model"), 2),
        classifier_config: ClassifierConfig::Vit(classifier),
        diffusion_config: diffusion,
        canary: Canary::default(),
        ..tiny
    };
    let [hash, classifier_hash] = ["a bundle", "a classifier"].map(str::to_owned);
    Subject { name: "vit".to_owned(), bundle, adapt, hash, classifier_hash, importance: OnceLock::new() }
}

fn materials() -> Materials {
    let image = |index: u32| Labelled { image: tiny::image(1, u64::from(index)), label: ClassIndex(index % 3) };
    Materials::new((0..12).map(image).collect(), Vec::new(), Tuning::default())
}

fn cells() -> Vec<Cell> {
    let cell = |(stream, method)| {
        let scenario = Scenario { table: Table::Tiny, stream, frames: 24, visits: 1, seed: 1 };
        Cell { model: "vit".to_owned(), scenario, method }
    };
    let methods = [Method::Source, Method::Undrift, Method::Tent];
    [Stream::Mixed, Stream::Single].into_iter().flat_map(|stream| methods.map(|method| (stream, method))).map(cell).collect()
}

/// Runs what `archive` lacks of `cells()`; the names of what was run.
fn run_missing(archive: &Archive, subject: &Subject, materials: &Materials) -> Vec<String> {
    let is_missing = |cell: &Cell| !matches!(find(archive, cell, subject, materials), Found::Record(_));
    let missing: Vec<Cell> = cells().into_iter().filter(is_missing).collect();
    let ran = Mutex::new(Vec::new());
    let work = |cell: &Cell| {
        let record = run_cell(cell, subject, materials, None, || {})?;
        archive.keep(&cell.name(), &record).expect("writes a cell");
        ran.lock().expect("no thread panicked").push(cell.name());
        Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    };
    in_parallel(NonZeroUsize::new(2).expect("is not zero"), &missing, work).expect("cells run");
    let mut ran = ran.into_inner().expect("no thread panicked");
    ran.sort();
    ran
}

fn find(archive: &Archive, cell: &Cell, subject: &Subject, materials: &Materials) -> Found {
    archive.find(&cell.name(), &cell.fingerprint(subject, materials, None)).expect("reads a cell")
}

/// All cells of the folder, without the time that they took.
fn kept(dir: &Path) -> BTreeMap<String, Record> {
    let files = std::fs::read_dir(dir).expect("reads the folder").map(|entry| entry.expect("is there").path());
    let record = |path: std::path::PathBuf| {
        let record = Record::from_json(&std::fs::read(&path).expect("reads a cell")).expect("is a record");
        (path.file_name().expect("has a name").to_string_lossy().into_owned(), Record { seconds: 0.0, ..record })
    };
    files.map(record).collect()
}

fn names(is_chosen: impl Fn(&Cell) -> bool) -> Vec<String> {
    let mut names: Vec<String> = cells().iter().filter(|cell| is_chosen(cell)).map(Cell::name).collect();
    names.sort();
    names
}

#[test]
fn resumed_run_equals_uninterrupted_run() {
    let (dir, subject, materials) = (tempfile::tempdir().expect("makes a folder"), subject(tiny::config()), materials());
    let archive = Archive::open(dir.path()).expect("opens the folder");
    assert_eq!(run_missing(&archive, &subject, &materials), names(|_| true));
    let whole = kept(dir.path());
    assert!(whole.values().all(|record| record.frames == 24 && record.hits.len() == 24));
    let is_lost = |cell: &Cell| cell.method == Method::Undrift || cell.scenario.stream == Stream::Single;
    for name in names(is_lost) {
        std::fs::remove_file(dir.path().join(format!("{name}.json"))).expect("removes a cell");
    }
    assert_eq!(run_missing(&archive, &subject, &materials), names(is_lost));
    assert_eq!(kept(dir.path()), whole);
    assert_eq!(run_missing(&archive, &subject, &materials), names(|_| false));
}

#[test]
fn changed_configuration_runs_only_its_methods_again() {
    let (dir, materials) = (tempfile::tempdir().expect("makes a folder"), materials());
    let archive = Archive::open(dir.path()).expect("opens the folder");
    run_missing(&archive, &subject(tiny::config()), &materials);
    let changed = subject(AdaptConfig { learning_rate: 2e-2, ..tiny::config() });
    assert_eq!(run_missing(&archive, &changed, &materials), names(|cell| cell.method == Method::Undrift));
    let tuned = Materials { tuning: Tuning { learning_rate: Some(1e-3), ..Tuning::default() }, ..materials };
    assert_eq!(run_missing(&archive, &changed, &tuned), names(|cell| cell.method == Method::Tent));
    let other_judge = Subject { hash: "another bundle".to_owned(), ..changed };
    assert_eq!(run_missing(&archive, &other_judge, &tuned), names(|cell| cell.method == Method::Undrift));
    let other_classifier = Subject { classifier_hash: "another classifier".to_owned(), ..other_judge };
    assert_eq!(run_missing(&archive, &other_classifier, &tuned), names(|_| true));
}

#[test]
fn a_calibration_holds_for_its_classifier_whatever_the_judge() {
    let (dir, of_one, images_hash) = (tempfile::tempdir().expect("makes a folder"), subject(tiny::config()), materials().images_hash);
    let archive = Archive::open(dir.path()).expect("opens the folder");
    let calibration = Calibration::measure(|_| Ok::<_, Infallible>(0.5)).unwrap_or_else(|never| match never {});
    archive.keep_calibration(&of_one, Table::Tiny, &images_hash, calibration.clone()).expect("keeps it");
    let found = |subject: &Subject| archive.calibration(subject, Table::Tiny, &images_hash).expect("reads it");
    let other_judge = Subject { hash: "another bundle".to_owned(), ..of_one };
    assert_eq!(found(&other_judge), Some(calibration));
    assert_eq!(found(&Subject { classifier_hash: "another classifier".to_owned(), ..other_judge }), None);
}

#[test]
fn damaged_cell_is_run_again() {
    let (dir, subject, materials) = (tempfile::tempdir().expect("makes a folder"), subject(tiny::config()), materials());
    let archive = Archive::open(dir.path()).expect("opens the folder");
    run_missing(&archive, &subject, &materials);
    let whole = kept(dir.path());
    let cell = &cells()[0];
    let path = dir.path().join(format!("{}.json", cell.name()));
    let text = std::fs::read_to_string(&path).expect("reads a cell");
    let damages = [
        String::new(),
        text[..text.len() / 2].to_owned(),
        text.replacen("\"hits\":\"", "\"hits\":\"2", 1),
        text.replacen("\"frames\":24", "\"frames\":23", 1),
        text.replacen("[[0,", "[[5,", 1),
    ];
    for damage in damages {
        std::fs::write(&path, &damage).expect("writes a damaged cell");
        assert!(matches!(find(&archive, cell, &subject, &materials), Found::Damaged), "taken for whole: {damage}");
        assert_eq!(run_missing(&archive, &subject, &materials), [cell.name()]);
    }
    assert_eq!(kept(dir.path()), whole);
}

#[test]
fn first_error_stops_the_run() {
    let done = Mutex::new(0);
    let work = |item: &u32| {
        *done.lock().expect("no thread panicked") += 1;
        if *item == 3 { Err(format!("item {item}").into()) } else { Ok(()) }
    };
    let result: Result<(), Box<dyn std::error::Error + Send + Sync>> =
        in_parallel(NonZeroUsize::MIN, &(0..1000).collect::<Vec<u32>>(), work);
    assert_eq!(result.map_err(|error| error.to_string()), Err("item 3".to_owned()));
    assert_eq!(*done.lock().expect("no thread panicked"), 4);
}

#[test]
fn ccc_without_its_calibration_is_an_error() {
    let scenario = Scenario { table: Table::Tiny, stream: Stream::Ccc, frames: 8, visits: 1, seed: 1 };
    let cell = Cell { model: "vit".to_owned(), scenario, method: Method::Source };
    let result = run_cell(&cell, &subject(tiny::config()), &materials(), None, || {});
    assert!(matches!(result, Err(RunError::Plan(_))));
}

#[test]
fn suites_name_each_cell_once_and_hold_what_they_promise() {
    let (models, seeds) = (["vit".to_owned(), "resnet".to_owned()], [1, 2, 3]);
    for suite in [Suite::Full, Suite::Quick] {
        let cells: Vec<Cell> = suite.blocks().iter().flat_map(|block| block.cells(&models, &seeds)).collect();
        let names: std::collections::BTreeSet<String> = cells.iter().map(Cell::name).collect();
        assert_eq!(names.len(), cells.len());
        for stream in [
            Stream::HeldOut,
            Stream::HeldOutAgain,
            Stream::HeldOutThird,
            Stream::HeldOutFourth,
            Stream::HeldOutFifth,
            Stream::HeldOutSixth,
            Stream::HeldOutSeventh,
        ] {
            assert_eq!(cells.iter().any(|cell| cell.scenario.stream == stream), suite == Suite::Full, "{}", stream.name());
        }
        let slow = [Method::Cotta, Method::Memo, Method::DiffusionTta];
        assert!(cells.iter().all(|cell| !slow.contains(&cell.method) || cell.scenario.frames <= 1500));
    }
    let long = Suite::Full.blocks().into_iter().find(|block| block.section == Section::Long).expect("has long streams");
    assert_eq!((long.models, long.seeds, long.frames, long.visits), (Extent::First, Extent::All, 75_000, 20));
}

/// Records of the quick suite on two streams; `hits` by stream, seed and method.
fn written(hits: &[(Stream, u64, Method, &str)]) -> Records {
    let of_quick = |stream, seed| Scenario { table: Table::Tiny, stream, frames: 300, visits: 2, seed };
    hits.iter().map(|&(stream, seed, method, hits)| record(of_quick(stream, seed), method, hits)).collect()
}

/// What a run left, and its name.
fn record(scenario: Scenario, method: Method, hits: &str) -> (String, Record) {
    let cell = Cell { model: "vit".to_owned(), scenario, method };
    let record = Record {
        fingerprint: String::new(),
        model: "vit".to_owned(),
        table: "tiny".to_owned(),
        stream: scenario.stream.name().to_owned(),
        seed: scenario.seed,
        method: method.name().to_owned(),
        frames: hits.len(),
        seconds: 2.0,
        passes: Passes { diffusion_forward: 8.0, ..Passes::default() },
        hits: hits.to_owned(),
        domains: vec![(0, "clean".to_owned()), (2, "<b>fog".to_owned())],
        estimates: vec![(0, 0.5)],
    };
    (cell.name(), record)
}

fn by_hand() -> Records {
    written(&[
        (Stream::Continual, 1, Method::Source, "1000"),
        (Stream::Continual, 2, Method::Source, "1100"),
        (Stream::Mixed, 1, Method::Source, "0000"),
        (Stream::Mixed, 2, Method::Source, "1000"),
        (Stream::Clean, 1, Method::Source, "1111"),
        (Stream::Clean, 2, Method::Source, "1111"),
        (Stream::Continual, 1, Method::Undrift, "1110"),
        (Stream::Continual, 2, Method::Undrift, "1110"),
        (Stream::Mixed, 1, Method::Undrift, "1000"),
        (Stream::Mixed, 2, Method::Undrift, "1100"),
        (Stream::Clean, 1, Method::Undrift, "0111"),
        (Stream::Clean, 2, Method::Undrift, "1111"),
        (Stream::Continual, 1, Method::Tent, "0000"),
    ])
}

fn figures(records: &Records) -> Figures {
    Figures::new(Suite::Quick, &["vit".to_owned()], &[1, 2], records)
}

#[test]
fn figures_equal_those_by_hand() {
    let figures = figures(&by_hand());
    let setup = &figures.setups[0];
    assert_eq!((setup.streams.len(), setup.mean_streams), (3, 2));
    let of = |mean, standard_error, seeds| Some(Mean { mean, standard_error, seeds });
    // Source by seed: (1/4 + 0) / 2 = 1/8, (2/4 + 1/4) / 2 = 3/8. Ours: (3/4 + 1/4) / 2 = 1/2, (3/4 + 2/4) / 2 = 5/8.
    // Of two values, the standard error is half their distance.
    let [source, ours, tent] = [Method::Source, Method::Undrift, Method::Tent].map(|method| setup.row(method).expect("has a row"));
    assert_eq!((source.mean, source.gain), (of(0.25, Some(0.125), 2), of(0.0, Some(0.0), 2)));
    assert_eq!((ours.mean, ours.gain), (of(0.5625, Some(0.0625), 2), of(0.3125, Some(0.0625), 2)));
    assert_eq!(ours.streams.get("clean").copied(), of(0.875, Some(0.125), 2));
    // The worst run is the clean one of seed 1, of four frames.
    assert_eq!(ours.worst_window_delta, Some(-0.25));
    // Six runs of four frames, two seconds and eight passes each.
    assert_eq!((ours.milliseconds_per_frame, ours.passes_per_frame.diffusion_forward), (500.0, 2.0));
    // One stream of two: an accuracy, but no mean.
    assert_eq!((tent.streams.get("continual").copied(), tent.mean), (of(0.0, None, 1), None));
    let estimate = figures.estimates.iter().find(|estimate| estimate.stream == "mixed").expect("has an estimate");
    assert_eq!((estimate.absolute_error.mean, estimate.bias.mean), (0.125, 0.125));
}

/// Figures of these runs of one long stream.
fn long_figures(runs: &[(u64, Method, &str)]) -> Figures {
    let of = |&(seed, method, hits): &(u64, Method, &str)| {
        record(Scenario { table: Table::Tiny, stream: Stream::Ccc, frames: 75_000, visits: 20, seed }, method, hits)
    };
    Figures::new(Suite::Full, &["vit".to_owned()], &[1, 2, 3], &runs.iter().map(of).collect())
}

#[test]
fn the_change_along_a_long_stream_is_taken_seed_by_seed() {
    // Two windows of 5000 frames, in tenths of 1000. The source is always wrong; ours is right in the first and last tenth, or in all but the
    // last.
    let (none, all) = ("0".repeat(1000), "1".repeat(1000));
    let (wrong, ends, start) = (none.repeat(10), [all.clone(), none.repeat(8), all.clone()].concat(), [all.repeat(9), none].concat());
    let figures = long_figures(&[
        (1, Method::Source, &wrong),
        (2, Method::Source, &wrong),
        (1, Method::Undrift, &ends),
        (2, Method::Undrift, &start),
        // Its source was not run.
        (3, Method::Undrift, &ends),
    ]);
    let [run] = figures.long.as_slice() else { panic!("one method on one stream, not {:?}", figures.long) };
    let of = |mean, standard_error| Mean { mean, standard_error: Some(standard_error), seeds: 2 };
    assert_eq!((run.first_tenth, run.last_tenth, run.change), (of(1.0, 0.0), of(0.5, 0.5), of(-0.5, 0.5)));
    // By seed: 1/5 and 1/5, 1 and 4/5.
    assert_eq!((run.windows.as_slice(), run.worst), ([0.6, 0.5].as_slice(), 0.2));
    assert!(figures_text(&figures).contains("+100.0       +50.0    -50.0   +20.0"), "{}", figures_text(&figures));
}

#[test]
fn a_run_that_is_shorter_than_others_of_its_stream_counts_as_far_as_it_goes() {
    let (wrong, right) = ("0".repeat(10_000), "1".repeat(10_000));
    let figures = long_figures(&[
        (1, Method::Source, &wrong),
        (2, Method::Source, &wrong[..5000]),
        (1, Method::Undrift, &right),
        (2, Method::Undrift, &wrong[..5000]),
    ]);
    assert_eq!(figures.long[0].windows, [0.5, 1.0]);
}

#[test]
fn report_is_well_formed_and_says_the_figures() {
    let records = by_hand();
    let page = suite_html(&figures(&records), &records, "undrift eval --suite quick");
    let mut parts = page.split("<meta");
    let head = parts.next().unwrap_or_default().to_owned();
    let xml = parts.fold(head, |xml, part| xml + "<meta" + &part.replacen('>', "/>", 1));
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(&xml, options).expect("is well-formed");
    let text: String = document.descendants().filter_map(|node| node.text()).collect();
    for expected in ["undrift eval --suite quick", "56.2", "+31.3", "<b>fog", "diffusion passes"] {
        assert!(text.contains(expected), "{expected} is missing");
    }
    for forbidden in ["://", "<script", "<link", "<img", "url(", "NaN", "inf "] {
        assert!(!page.contains(forbidden), "found {forbidden}");
    }
    assert!(figures_text(&figures(&records)).contains("56.2"));
}

#[test]
fn comparison_that_has_not_begun_has_a_report() {
    let records = Records::new();
    assert!(suite_html(&figures(&records), &records, "undrift eval").ends_with("</html>"));
    assert_eq!(figures_text(&figures(&records)), "");
}
