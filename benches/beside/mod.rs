//! What benches share: PyTorch as a process beside them, and the lines that `make bench` collects.

#![allow(dead_code, reason = "each bench takes what it needs")]

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// PyTorch, behind the lines of a script: each command is answered by one line.
pub struct Torch {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Torch {
    pub fn start(python: &str, script: &str) -> Self {
        let mut child =
            Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a Python interpreter");
        let (commands, answers) = (child.stdin.take().expect("piped"), BufReader::new(child.stdout.take().expect("piped")));
        Self { child, commands, answers }
    }

    pub fn ask(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").expect("an open pipe");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("an open pipe");
        assert!(!answer.is_empty(), "PyTorch ended at {command:?}: see above");
        answer.trim().to_owned()
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        self.child.kill().expect("a running child");
        self.child.wait().expect("a killed child");
    }
}

pub fn write_floats(path: &str, values: &[f32]) {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(path, bytes).unwrap_or_else(|error| panic!("{path}: {error}"));
}

pub fn read_floats(path: &str) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// # Panics
/// Where two values are further apart than 1e-4 of the largest: f32, and sums of some hundred terms.
pub fn assert_alike(what: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{what}: number of values");
    let largest = theirs.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert!((ours - theirs).abs() <= 1e-4 * largest, "{what}, value {index}: {ours}, PyTorch {theirs}, largest {largest}");
    }
}

/// A line of the table at the end of `make bench`: what was measured, what it is held against, and their ratio.
pub fn figure(name: &str, figure: &str, against: &str, ratio: &str) {
    println!("= {name} | {figure} | {against} | {ratio}");
}
