//! The planted bugs of `tests/planted` are bugs of this tree: each still applies, and names a test that is there to catch it.
//!
//! `make planted` plants them and runs those tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files below `folder` whose names end with `ending`.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder is there").map(|entry| entry.expect("the folder can be read").path());
    let of_entry = |path: PathBuf| if path.is_dir() { files(&path, ending) } else { vec![path] };
    entries.flat_map(of_entry).filter(|path| path.to_string_lossy().ends_with(ending)).collect()
}

#[test]
fn each_planted_bug_applies_and_names_a_test_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let patches = files(&root.join("tests/planted"), ".patch");
    let mut kill_loops = 0;
    for patch in &patches {
        let name = patch.display();
        let text = fs::read_to_string(patch).expect("a patch is text");
        let (head, _) = text.split_once("\n--- a/src/").unwrap_or_else(|| panic!("{name} changes src"));
        let caught_by = head.lines().last().and_then(|line| line.strip_prefix("Caught by: "));
        let mut words = caught_by.unwrap_or_else(|| panic!("{name} says who catches it")).split(' ');
        let (program, test) = (words.next().expect("a program"), words.next().expect("a test"));
        let sources = if program == "lib" { files(&root.join("src"), ".rs") } else { vec![root.join(format!("tests/{program}.rs"))] };
        let is_there = |path: &PathBuf| fs::read_to_string(path).is_ok_and(|source| source.contains(&format!("fn {test}()")));
        assert!(sources.iter().any(is_there), "{name}: there is no test {program} {test}");
        kill_loops += usize::from(program == "recovery");
        let mut dry_run = Command::new("patch");
        dry_run.args(["--dry-run", "--force", "--strip=1", "--fuzz=0", "--input"]).arg(patch).current_dir(root);
        let output = dry_run.output().expect("patch is installed, which `make servers` sees to");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
    println!("{} planted bugs, {kill_loops} of them for the kill loop", patches.len());
    assert!(patches.len() >= 20 && kill_loops >= 6);
}
