//! What operators have decided, and when: one file beside the checkpoints, written before a decision takes effect.
//!
//! A checkpoint holds the decisions up to its own number; a restart makes the later ones again, each at its place among the
//! frames, and so comes to the same bits. The file is kept whole: it is also the record of who was told what.
//! Invariants: the file is replaced as a whole, so a crash leaves it with a decision or without; its last line is the BLAKE3
//! of the lines before; what a roll-back went to is kept under the decision's number.

use super::store::{self, DECISIONS_FILE, Generation, StoreError};
use crate::frame::FrameSeq;
use crate::pipeline::{Decision, Scheduled};
use crate::state::DurableState;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

const HASH_LINE: &str = "blake3 ";

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    Adapt { enabled: bool },
    Reset {},
    RollBack { generation: Generation },
}

impl Action {
    /// The generation that a roll-back goes to.
    pub fn target(self) -> Option<Generation> {
        match self {
            Self::RollBack { generation } => Some(generation),
            Self::Adapt { .. } | Self::Reset {} => None,
        }
    }
}

/// What an operator decided, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decided {
    /// Counts from 1.
    pub number: u64,
    /// Stream that `after` counts in.
    pub incarnation: String,
    /// Last frame that was applied before it.
    pub after: FrameSeq,
    pub action: Action,
}

/// A frame that is passed over, because it ended the process each time it came: the daemon's own decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PutAside {
    incarnation: String,
    frame: FrameSeq,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Decided(Decided),
    PutAside(PutAside),
}

/// The decisions so far, as they are on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Decisions {
    by_operators: Vec<Decided>,
    put_aside: Vec<PutAside>,
}

/// The file.
#[derive(Debug)]
pub struct DecisionLog {
    dir: PathBuf,
    decisions: Decisions,
}

impl DecisionLog {
    /// Reads the file of the folder `dir`; without one there are no decisions.
    ///
    /// # Errors
    /// `Decisions` for a file that is not as it was written, `Io`.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(DECISIONS_FILE);
        let text = match store::read_regular(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => Vec::new(),
            Err(error) => return Err(error),
        };
        let decisions = parse(&text).ok_or(StoreError::Decisions { path })?;
        Ok(Self { dir: dir.to_owned(), decisions })
    }

    /// Those with a number above `number`, oldest first.
    pub fn after(&self, number: u64) -> &[Decided] {
        let decisions = &self.decisions.by_operators;
        &decisions[decisions.partition_point(|decided| decided.number <= number)..]
    }

    /// What was decided after `state`: at its place among the frames, or before all of them where it was decided on another
    /// stream, or `at_once`. `fingerprints` are those of the bundle that goes on.
    ///
    /// # Errors
    /// Those of [`store::load_pinned`].
    pub fn scheduled(
        &self,
        state: &DurableState,
        at_once: bool,
        fingerprints: &BTreeMap<String, String>,
    ) -> Result<Vec<Scheduled>, StoreError> {
        let scheduled = |decided: &Decided| {
            let decision = match decided.action {
                Action::Adapt { enabled } => Decision::Adapt { enabled },
                Action::Reset {} => Decision::Reset,
                Action::RollBack { .. } => {
                    let (pinned, meta) = store::load_pinned(&self.dir, decided.number)?;
                    if meta.is_of_bundle(fingerprints) {
                        Decision::RollBack(pinned.learner)
                    } else {
                        tracing::warn!(number = decided.number, "a roll-back went to another bundle's weights: the source weights instead");
                        Decision::Reset
                    }
                }
            };
            let is_elsewhere = at_once || decided.incarnation != state.incarnation;
            Ok(Scheduled { after: if is_elsewhere { FrameSeq(0) } else { decided.after }, decision })
        };
        self.after(state.control.generation).iter().map(scheduled).collect()
    }

    /// Adds a decision; when this returns, it is on the disk, and with it what a roll-back goes to.
    ///
    /// # Errors
    /// `Io`, and nothing is decided.
    pub fn append(&mut self, decided: Decided) -> Result<(), StoreError> {
        if let Action::RollBack { generation } = decided.action {
            store::pin(&self.dir, generation, decided.number)?;
        }
        let mut decisions = self.decisions.clone();
        decisions.by_operators.push(decided);
        self.replace(decisions)
    }

    /// Passes over a frame from now on; when this returns, it is on the disk.
    ///
    /// # Errors
    /// `Io`, and nothing is decided.
    pub fn put_aside(&mut self, incarnation: &str, frame: FrameSeq) -> Result<(), StoreError> {
        let mut decisions = self.decisions.clone();
        decisions.put_aside.push(PutAside { incarnation: incarnation.to_owned(), frame });
        self.replace(decisions)
    }

    /// Whether a frame is passed over.
    pub fn is_put_aside(&self, incarnation: &str, frame: FrameSeq) -> bool {
        self.decisions.put_aside.iter().any(|aside| aside.frame == frame && aside.incarnation == incarnation)
    }

    fn replace(&mut self, decisions: Decisions) -> Result<(), StoreError> {
        store::replace_file(&self.dir, DECISIONS_FILE, &encode(&decisions)).inspect_err(|_| {
            // The new file may be in place, with only its durability in doubt.
            let _ = store::replace_file(&self.dir, DECISIONS_FILE, &encode(&self.decisions));
        })?;
        self.decisions = decisions;
        Ok(())
    }
}

fn encode(decisions: &Decisions) -> Vec<u8> {
    let by_operators = decisions.by_operators.iter().cloned().map(Line::Decided);
    let lines = by_operators.chain(decisions.put_aside.iter().cloned().map(Line::PutAside));
    let mut text = String::new();
    for line in lines {
        text.push_str(&serde_json::to_string(&line).expect("a decision is JSON"));
        text.push('\n');
    }
    let hash = blake3::hash(text.as_bytes()).to_hex();
    writeln!(text, "{HASH_LINE}{hash}").expect("text grows");
    text.into_bytes()
}

fn parse(bytes: &[u8]) -> Option<Decisions> {
    let mut decisions = Decisions::default();
    if bytes.is_empty() {
        return Some(decisions);
    }
    let text = str::from_utf8(bytes).ok()?;
    let lines = &text[..text.strip_suffix('\n')?.rfind('\n').map_or(0, |end| end + 1)];
    for line in lines.lines() {
        match serde_json::from_str(line).ok()? {
            Line::Decided(decided) => decisions.by_operators.push(decided),
            Line::PutAside(aside) => decisions.put_aside.push(aside),
        }
    }
    // What is read must be what would be written: hash, order of the keys, and all.
    let is_increasing = decisions.by_operators.windows(2).all(|pair| pair[0].number < pair[1].number);
    (is_increasing && encode(&decisions) == bytes).then_some(decisions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(number: u64, action: Action) -> Decided {
        Decided { number, incarnation: "FRAMES@1".to_owned(), after: FrameSeq(number * 10), action }
    }

    #[test]
    fn what_was_appended_is_there_after_a_restart_and_every_changed_bit_is_noticed() {
        let dir = tempfile::TempDir::new().expect("a folder");
        let all = [decided(1, Action::Adapt { enabled: false }), decided(3, Action::Reset {})];
        let mut log = DecisionLog::open(dir.path()).expect("an empty folder");
        all.iter().for_each(|decided| log.append(decided.clone()).expect("a disk"));
        log.put_aside("FRAMES@1", FrameSeq(7)).expect("a disk");
        let log = DecisionLog::open(dir.path()).expect("what was written");
        assert_eq!((log.after(0), log.after(1), log.after(3)), (&all[..], &all[1..], &[][..]));
        assert!(log.is_put_aside("FRAMES@1", FrameSeq(7)) && !log.is_put_aside("FRAMES@2", FrameSeq(7)));
        let path = dir.path().join(DECISIONS_FILE);
        let bytes = std::fs::read(&path).expect("the file");
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&changed), None, "bit {bit}");
        }
        for length in 1..bytes.len() {
            assert_eq!(parse(&bytes[..length]), None, "cut to {length}");
        }
    }

    #[test]
    fn a_decision_that_cannot_be_written_is_none() {
        let dir = tempfile::TempDir::new().expect("a folder");
        let mut log = DecisionLog::open(dir.path()).expect("an empty folder");
        let missing = decided(1, Action::RollBack { generation: Generation(7) });
        assert!(log.append(missing).is_err_and(|error| error.is_not_found()));
        drop(dir);
        assert!(log.append(decided(1, Action::Reset {})).is_err());
        assert_eq!(log.after(0), []);
    }
}
