//! The frame that is being worked on, in a file that outlives the process: a frame that ends the process each time it comes is put
//! aside, so that the stream goes on behind it.
//!
//! Written before and after each frame, and not synced: it is for the death of the process, not for that of the machine.
//! Invariant: a file that cannot be read means nothing; a frame is put aside only by a written decision (`decision_log.rs`).

use super::store::{self, StoreError};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const FILE: &str = "in-hand";
/// Deaths over one frame before it is put aside.
const DEATHS_MAX: u8 = 3;
const BYTES: usize = 17;

/// What the file says: incarnation of the stream (as a hash), frame, and count of the lives that took it in hand and did not
/// put it down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Record {
    incarnation: [u8; 8],
    sequence: u64,
    lives: u8,
}

/// The file.
#[derive(Debug)]
pub struct InHand {
    file: File,
    incarnation: [u8; 8],
    /// As an earlier process left it.
    left: Record,
}

impl InHand {
    /// # Errors
    /// `Io`
    pub fn open(dir: &Path, incarnation: &str) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&path).map_err(StoreError::io("open", &path))?;
        let left = store::read_regular(&path).ok().and_then(|bytes| Record::parse(&bytes)).unwrap_or_default();
        let hash = blake3::hash(incarnation.as_bytes());
        let incarnation = *hash.as_bytes().first_chunk().expect("a hash is longer");
        Ok(Self { file, incarnation, left })
    }

    /// Whether the frame has ended so many processes that it must not be touched again.
    pub fn is_deadly(&self, sequence: u64) -> bool {
        self.is_left(sequence) && self.left.lives >= DEATHS_MAX
    }

    /// The frame is worked on from now on.
    pub fn take(&self, sequence: u64) {
        let lives = if self.is_left(sequence) { self.left.lives.saturating_add(1) } else { 1 };
        self.write(Record { incarnation: self.incarnation, sequence, lives });
    }

    /// The frame is done with. What an earlier process left stays in mind until its frame has come by.
    pub fn put_down(&mut self, sequence: u64) {
        if self.is_left(sequence) {
            self.left = Record::default();
        }
        self.write(self.left);
    }

    fn is_left(&self, sequence: u64) -> bool {
        self.left.lives > 0 && (self.left.incarnation, self.left.sequence) == (self.incarnation, sequence)
    }

    fn write(&self, record: Record) {
        // A disk that does not take it costs this protection, not the frame.
        let _ = self.file.write_all_at(&record.bytes(), 0);
    }
}

impl Record {
    fn bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&self.incarnation);
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16] = self.lives;
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BYTES] = bytes.try_into().ok()?;
        let (incarnation, rest) = bytes.split_first_chunk()?;
        let (sequence, lives) = rest.split_first_chunk()?;
        Some(Self { incarnation: *incarnation, sequence: u64::from_le_bytes(*sequence), lives: lives[0] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that dies over frame `sequence`, after it has done with the frames before.
    fn die_over(dir: &Path, incarnation: &str, sequence: u64) {
        let mut in_hand = InHand::open(dir, incarnation).expect("a folder");
        for done in sequence.saturating_sub(3)..sequence {
            in_hand.take(done);
            in_hand.put_down(done);
        }
        assert!(!in_hand.is_deadly(sequence));
        in_hand.take(sequence);
    }

    #[test]
    fn a_frame_is_deadly_after_three_deaths_in_a_row_over_it() {
        let dir = tempfile::TempDir::new().expect("a folder");
        let is_deadly = |incarnation| InHand::open(dir.path(), incarnation).expect("a folder").is_deadly(9);
        for _ in 0..3 {
            assert!(!is_deadly("a"));
            die_over(dir.path(), "a", 9);
        }
        assert!(is_deadly("a") && !is_deadly("b"), "frame 9 of another stream is another frame");
    }

    #[test]
    fn deaths_over_other_frames_and_frames_that_were_done_do_not_count() {
        let dir = tempfile::TempDir::new().expect("a folder");
        for sequence in [9, 9, 10, 9, 9] {
            die_over(dir.path(), "a", sequence);
        }
        let mut in_hand = InHand::open(dir.path(), "a").expect("a folder");
        assert!(!in_hand.is_deadly(9));
        in_hand.take(9);
        in_hand.put_down(9);
        assert_eq!(InHand::open(dir.path(), "a").expect("a folder").left, Record::default());
    }
}
