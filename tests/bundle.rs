//! The shipped bundles: they load and are what their hashes say, and the first helps where it says so.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Command;
use undrift::config::Config;
use undrift::shell::bundle_reader::read_bundle;

fn shipped() -> Vec<PathBuf> {
    let folders = std::fs::read_dir("configs").expect("the folder of shipped bundles");
    folders.map(|folder| folder.expect("a shipped folder").path()).collect()
}

#[test]
fn each_shipped_bundle_loads_and_fits_its_hashes() {
    assert!(shipped().len() >= 2, "{:?}", shipped());
    for folder in shipped() {
        let config = Config::load(&folder.join("undrift.toml"), &[], std::iter::empty()).expect("the shipped configuration is valid");
        let bundle = read_bundle(&config).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        assert_eq!(bundle.labels.len(), 10);
        let measured = &bundle.statistics.timesteps;
        assert_eq!(measured, &config.adapt.timesteps, "{}: statistics are of other draws", folder.display());
    }
}

#[test]
fn weights_that_ship_are_small_and_lie_in_one_place() {
    let files =
        shipped().into_iter().flat_map(|folder| ["classifier", "diffusion"].map(|name| folder.join(name).with_extension("safetensors")));
    let bytes: u64 = files.filter(|file| file.exists()).map(|file| std::fs::metadata(file).expect("a shipped file").len()).sum();
    assert!(bytes < 20 << 20, "{bytes} bytes of weights");
}

/// Runs a short demo; gives summary.json.
fn demo(arguments: &[&str]) -> serde_json::Value {
    let out = tempfile::tempdir().expect("a folder");
    let output = Command::new(env!("CARGO_BIN_EXE_undrift"))
        .args(["demo", "--quiet", "--json", "--out"])
        .arg(out.path())
        .args(arguments)
        .output()
        .expect("the demo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for file in ["report.html", "summary.json", "plot-light.svg", "plot-dark.svg"] {
        assert!(out.path().join(file).exists(), "{file}");
    }
    serde_json::from_slice(&output.stdout).expect("--json prints JSON")
}

#[test]
fn the_demo_gains_and_no_stretch_of_it_loses_much() {
    // A third of the default length; the bounds are those that the whole run is held to.
    let summary = demo(&["--frames", "2000", "--seed", "1"]);
    println!("seed 1: {summary}");
    let figure = |name: &str| summary[name].as_f64().unwrap_or_else(|| panic!("{name} is not a number"));
    let gain = figure("adapted_accuracy") - figure("source_accuracy");
    assert!(gain >= 0.02, "gain {gain}");
    assert!(figure("worst_window_delta") >= -0.03, "worst window {}", figure("worst_window_delta"));
    assert_eq!(summary["frames"], 2000);
}

#[test]
fn on_clean_frames_nothing_is_lost() {
    let summary = demo(&["--frames", "1000", "--seed", "1", "--stream", "clean"]);
    let figure = |name: &str| summary[name].as_f64().unwrap_or_else(|| panic!("{name} is not a number"));
    assert!(figure("adapted_accuracy") >= figure("source_accuracy") - 0.005, "{summary}");
}

#[test]
fn the_same_seed_gives_the_same_answers() {
    let (first, second) = (demo(&["--frames", "320", "--seed", "4"]), demo(&["--frames", "320", "--seed", "4"]));
    assert_eq!(first["domains"], second["domains"]);
}

#[test]
fn a_variable_that_is_no_text_ends_no_command() {
    for command in [&["demo"][..], &["eval", "--stream", "continual"], &["eval", "--stream", "continual", "--poison"]] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_undrift"));
        program.args(command).args(["--set", "nonsense"]).env("STRANGE", OsStr::from_bytes(b"\xff"));
        let output = program.output().expect("the program starts");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && text.contains("\"nonsense\" is not of the form"), "{command:?}: {text}");
    }
}
