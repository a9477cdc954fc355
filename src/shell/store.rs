//! The folder of checkpoints: written so that a crash at any instant leaves the newest complete generation, or the one before.
//!
//! End of the path: the state of a window's border goes into a new file beside the others (write, fsync, rename, fsync of the
//! folder); older generations are deleted only after that. A write that failed is repeated from memory into a file of another
//! generation: after a failed fsync the kernel may call lost pages clean, so the same file is never synced twice.
//! Invariants: one daemon has the folder (a lock that the kernel gives up with the process); a generation's number is never
//! used again; links are not followed.
//! Reading by others ([`list`], [`load`]) takes no lock: files are complete before they have their name.

use crate::checkpoint::{self, CheckpointError, Header, Meta, Prefix};
use crate::config::{NoiseConfig, parse_noise_key};
use crate::noise::NoiseSecret;
use crate::state::DurableState;
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Files that one state is tried in before the write is given up.
const WRITE_ATTEMPTS: u32 = 3;

const LOCK_FILE: &str = "lock";
const NOISE_KEY_FILE: &str = "noise.key";
/// What operators decided; see `decision_log.rs`.
pub const DECISIONS_FILE: &str = "decisions.log";
const QUARANTINE: &str = "quarantine";
/// States that operators rolled back to, kept so that their history can be computed again.
const PINS_MAX: usize = 64;
const PIN_PREFIX: &str = "rollback-";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// Count of checkpoint files written into a folder; the newest has the highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Generation {
    /// Numbers above are no work of ours: nobody writes so many.
    const MAX: u64 = 1 << 62;

    pub fn file_name(self) -> String {
        format!("checkpoint-{:020}.undrift", self.0)
    }

    fn of_file_name(name: &str) -> Option<Self> {
        let number = name.strip_prefix("checkpoint-")?.strip_suffix(".undrift")?.parse().ok()?;
        Some(Self(number)).filter(|generation| number <= Self::MAX && generation.file_name() == name)
    }
}

/// A folder that cannot be used, or a checkpoint that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{dir} is in use by another daemon (process {holder}): two must not write one state")]
    Locked { dir: PathBuf, holder: String },
    #[error("mode of {path} is {mode:03o}: {advice}")]
    Mode { path: PathBuf, mode: u32, advice: &'static str },
    #[error("{path} is not a regular file")]
    NotRegular { path: PathBuf },
    #[error("{path}: {source}")]
    Unreadable { path: PathBuf, source: CheckpointError },
    #[error("no checkpoint in {dir} can be read; {count} lie in its folder {QUARANTINE}: move them away to start from the source weights")]
    AllDamaged { dir: PathBuf, count: usize },
    #[error(
        "{path} is not as it was written: without it, what operators decided since the checkpoints is lost; move it away to go on without"
    )]
    Decisions { path: PathBuf },
    #[error(
        "{path} is not there, which an operator rolled back to: what was decided cannot be made again; move {DECISIONS_FILE} away to go on without"
    )]
    Unpinned { path: PathBuf },
    #[error("{path} must hold 64 hex digits")]
    NoiseKey { path: PathBuf },
    #[error("the system gave no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    #[error("failed to encode the state: {0}")]
    Encode(#[from] CheckpointError),
    #[error("failed to {action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl StoreError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether the file itself is at fault, so that an earlier one may stand in.
    fn is_damage(&self) -> bool {
        match self {
            Self::NotRegular { .. } => true,
            Self::Unreadable { source, .. } => source.is_damage(),
            _ => false,
        }
    }
}

/// The folder, held by this process.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// Generations that are kept.
    keep: usize,
    /// Number of the next file.
    next: u64,
    /// Held, never read: dropping it gives the folder up.
    _lock: File,
}

/// A checkpoint that is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub generation: Generation,
    pub bytes: u64,
    pub state_hash: [u8; 32],
}

/// A checkpoint to go on from.
#[derive(Debug)]
pub struct Restored {
    pub generation: Generation,
    pub state: DurableState,
    pub meta: Meta,
}

/// A file that could not be read and was moved out of the way.
#[derive(Debug)]
pub struct Quarantined {
    pub generation: Generation,
    /// Where it lies now.
    pub path: PathBuf,
    pub reason: String,
}

/// What a start finds.
#[derive(Debug)]
pub struct Recovery {
    /// None at the very first start alone.
    pub newest: Option<Restored>,
    /// Newer ones than `newest`, which were damaged.
    pub quarantined: Vec<Quarantined>,
}

impl Store {
    /// Takes the folder, which is made if need be, and removes what an interrupted write has left.
    ///
    /// # Errors
    /// `Locked` while another daemon has it, `Mode` where everyone may write to it, `Io`.
    pub fn open(dir: &Path, keep: usize) -> Result<Self, StoreError> {
        make_folder(dir)?;
        let mode = dir.metadata().map_err(StoreError::io("inspect", dir))?.permissions().mode() & 0o777;
        if mode & 0o002 != 0 {
            return Err(StoreError::Mode { path: dir.to_owned(), mode, advice: "anyone could plant a checkpoint (chmod o-w)" });
        }
        let lock = lock(dir)?;
        remove_temporary_files(dir)?;
        // A process that was killed may have given names that it did not sync. They are built upon from here on.
        sync_folder(dir).map_err(StoreError::io("write", dir))?;
        let newest = generations(dir)?.into_iter().chain(quarantined(dir)?).max().map_or(0, |generation| generation.0);
        Ok(Self { dir: dir.to_owned(), keep: keep.max(1), next: newest + 1, _lock: lock })
    }

    /// The newest checkpoint that can be read; those that cannot are moved to the folder `quarantine`.
    ///
    /// # Errors
    /// `AllDamaged` where there are checkpoints and none can be read, now or at an earlier start; `Unreadable` for one that
    /// another version of the daemon wrote; `Io`.
    pub fn latest(&mut self) -> Result<Recovery, StoreError> {
        let mut moved = Vec::new();
        for generation in generations(&self.dir)?.into_iter().rev() {
            match load(&self.dir, generation) {
                Ok((state, meta)) => return Ok(Recovery { newest: Some(Restored { generation, state, meta }), quarantined: moved }),
                Err(error) if error.is_damage() => {
                    moved.push(Quarantined { generation, path: self.quarantine(generation)?, reason: error.to_string() });
                }
                Err(error) => return Err(error),
            }
        }
        match quarantined(&self.dir)?.len() {
            0 => Ok(Recovery { newest: None, quarantined: moved }),
            count => Err(StoreError::AllDamaged { dir: self.dir.clone(), count }),
        }
    }

    fn quarantine(&self, generation: Generation) -> Result<PathBuf, StoreError> {
        let folder = self.dir.join(QUARANTINE);
        make_folder(&folder)?;
        let path = folder.join(generation.file_name());
        std::fs::rename(self.dir.join(generation.file_name()), &path).map_err(StoreError::io("move a file to", &path))?;
        prune(&folder, self.keep);
        Ok(path)
    }

    /// Makes `state` the one that the next start goes on from; when this returns, it is on the disk.
    ///
    /// # Errors
    /// `Encode` for a state that must not be kept, `Io` where several files could not be written; earlier ones are untouched.
    pub fn write(&mut self, state: &DurableState, meta: &Meta) -> Result<Written, StoreError> {
        let bytes = checkpoint::encode(state, meta)?;
        let state_hash = Header::of(&bytes)?.state_hash;
        let mut attempts_left = WRITE_ATTEMPTS;
        loop {
            let generation = Generation(self.next);
            self.next += 1;
            attempts_left -= 1;
            match write_durably(&self.dir, &generation.file_name(), &bytes) {
                Ok(()) => {
                    prune(&self.dir, self.keep);
                    return Ok(Written { generation, bytes: bytes.len() as u64, state_hash });
                }
                Err(error) if attempts_left > 0 => tracing::warn!(%generation, attempts_left, %error, "checkpoint not written"),
                Err(error) => return Err(StoreError::io("write a checkpoint to", &self.dir)(error)),
            }
        }
    }

    /// The secret behind the noise: from where it is configured, else from `noise.key` beside the checkpoints, which is made
    /// once.
    ///
    /// # Errors
    /// `NoiseKey` for anything but 64 hex digits, `Mode` for a file that others may read, `Io`, `Random`.
    pub fn noise_key(&self, config: &NoiseConfig) -> Result<NoiseSecret, StoreError> {
        let path = self.dir.join(NOISE_KEY_FILE);
        let is_made = path.try_exists().map_err(StoreError::io("inspect", &path))?;
        if matches!(config, NoiseConfig::Generated) && !is_made {
            let mut secret = [0; 32];
            getrandom::fill(&mut secret)?;
            let text = format!("{}\n", blake3::Hash::from_bytes(secret).to_hex());
            replace_file(&self.dir, NOISE_KEY_FILE, text.as_bytes())?;
        }
        noise_key(&self.dir, config)
    }
}

/// The secret behind the noise of a folder that a daemon has, or had.
///
/// # Errors
/// As [`Store::noise_key`].
pub fn noise_key(dir: &Path, config: &NoiseConfig) -> Result<NoiseSecret, StoreError> {
    match config {
        NoiseConfig::Environment(secret) => Ok(secret.clone()),
        NoiseConfig::File(path) => read_noise_key(path),
        NoiseConfig::Generated => read_noise_key(&dir.join(NOISE_KEY_FILE)),
    }
}

/// A checkpoint as `undrift checkpoint ls` shows it.
#[derive(Debug)]
pub struct Listed {
    pub generation: Generation,
    /// Length of the file.
    pub bytes: u64,
    pub header: Header,
}

/// The checkpoints of a folder, newest first, by their headers alone; with each, the error of one that cannot be read.
///
/// Takes no lock: a file that a running daemon deletes meanwhile is left out.
pub fn list(dir: &Path) -> Result<Vec<Result<Listed, StoreError>>, StoreError> {
    let listed = generations(dir)?.into_iter().rev().map(|generation| read_header(dir, generation));
    Ok(listed.filter(|listed| !listed.as_ref().is_err_and(StoreError::is_not_found)).collect())
}

/// One checkpoint of a folder, with or without a daemon running on it.
///
/// # Errors
/// `NotRegular` and `Unreadable` for what is not a complete checkpoint, `Io`.
pub fn load(dir: &Path, generation: Generation) -> Result<(DurableState, Meta), StoreError> {
    load_file(&dir.join(generation.file_name()))
}

/// The state that the roll-back with this number went to.
///
/// # Errors
/// `Unpinned` where it is gone, and those of [`load`].
pub fn load_pinned(dir: &Path, number: u64) -> Result<(DurableState, Meta), StoreError> {
    let path = dir.join(pin_name(number));
    load_file(&path).map_err(|error| if error.is_not_found() { StoreError::Unpinned { path } } else { error })
}

/// Keeps the file of `generation` under the number of the decision that needs it.
///
/// # Errors
/// `Io`, also where there is no such generation any more.
pub fn pin(dir: &Path, generation: Generation, number: u64) -> Result<(), StoreError> {
    let (from, to) = (dir.join(generation.file_name()), dir.join(pin_name(number)));
    // One that a crash kept from being decided upon.
    let _ = std::fs::remove_file(&to);
    std::fs::hard_link(&from, &to).map_err(StoreError::io("keep", &from))?;
    sync_folder(dir).map_err(StoreError::io("write", dir))
}

fn pin_name(number: u64) -> String {
    format!("{PIN_PREFIX}{number:020}.undrift")
}

fn load_file(path: &Path) -> Result<(DurableState, Meta), StoreError> {
    let unreadable = |source| StoreError::Unreadable { path: path.to_owned(), source };
    let (file, size) = open_regular(path)?;
    let mut bytes = read_at_most(&file, path, checkpoint::PREFIX_BYTES as u64)?;
    // Nothing is allocated for a length that the file does not have.
    Prefix::parse(&bytes, size).map_err(unreadable)?;
    bytes.extend(read_at_most(&file, path, size - bytes.len() as u64)?);
    checkpoint::decode(&bytes).map_err(unreadable)
}

/// The header of one checkpoint.
pub fn read_header(dir: &Path, generation: Generation) -> Result<Listed, StoreError> {
    let path = dir.join(generation.file_name());
    let unreadable = |source| StoreError::Unreadable { path: path.clone(), source };
    let (file, size) = open_regular(&path)?;
    let prefix = read_at_most(&file, &path, checkpoint::PREFIX_BYTES as u64)?;
    let prefix = Prefix::parse(&prefix, size).map_err(unreadable)?;
    let header = read_at_most(&file, &path, prefix.header_bytes() as u64)?;
    Ok(Listed { generation, bytes: size, header: prefix.header(&header).map_err(unreadable)? })
}

fn read_at_most(file: &File, path: &Path, limit: u64) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(StoreError::io("read", path))?;
    Ok(bytes)
}

/// Opens a file for reading that is a file: not a link, and not a pipe, whose opening would wait for a writer.
fn open_regular(path: &Path) -> Result<(File, u64), StoreError> {
    let not_regular = || StoreError::NotRegular { path: path.to_owned() };
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|error| match path.symlink_metadata() {
        Ok(metadata) if !metadata.is_file() => not_regular(),
        _ => StoreError::io("open", path)(error),
    })?;
    let metadata = file.metadata().map_err(StoreError::io("inspect", path))?;
    if metadata.is_file() { Ok((file, metadata.len())) } else { Err(not_regular()) }
}

/// Makes `dir` and what is missing above it, for this user alone, and the entry of each in the folder above durable: a lost entry
/// loses all that was synced beneath.
fn make_folder(dir: &Path) -> Result<(), StoreError> {
    if dir.is_dir() {
        return Ok(());
    }
    // The last parent of a relative path is empty, and there.
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_folder(parent)?;
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    let synced = made.and_then(|()| sync_folder(&dir.join("..")));
    synced.map_err(StoreError::io("make the folder", dir))
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK_FILE);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(&path).map_err(StoreError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = String::from_utf8_lossy(&read_at_most(&file, &path, 20)?).trim().to_owned();
            return Err(StoreError::Locked { dir: dir.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(StoreError::io("lock", &path)(source)),
    }
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(StoreError::io("write", &path))?;
    Ok(file)
}

/// The bytes of a small file that is a file.
///
/// # Errors
/// `NotRegular`, `Io`.
pub fn read_regular(path: &Path) -> Result<Vec<u8>, StoreError> {
    let (file, size) = open_regular(path)?;
    read_at_most(&file, path, size)
}

/// Gives the file `name` these bytes; when this returns, it has them.
///
/// # Errors
/// `Io`
pub fn replace_file(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    write_durably(dir, name, bytes).map_err(|error| StoreError::io("write", &dir.join(name))(error))
}

/// Writes `bytes` so that whatever happens, `name` has all of them or what it had; when this returns, it has them.
fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}{TEMPORARY_SUFFIX}"));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, dir.join(name))
    };
    write().inspect_err(|_| {
        // On a full disk the space is wanted back; what cannot be removed now goes at the next start.
        let _ = std::fs::remove_file(&temporary);
    })?;
    sync_folder(dir)
}

/// Makes the names in `dir` durable.
fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn remove_temporary_files(dir: &Path) -> Result<(), StoreError> {
    for name in file_names(dir)? {
        let target = name.strip_suffix(TEMPORARY_SUFFIX);
        if target.is_some_and(|target| [NOISE_KEY_FILE, DECISIONS_FILE].contains(&target) || Generation::of_file_name(target).is_some()) {
            let path = dir.join(name);
            std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Deletes all but the newest `keep` generations, and of what was rolled back to all but the last, unless a kept generation needs
/// it. What cannot be deleted is tried again after the next write.
fn prune(dir: &Path, keep: usize) {
    let remove = |name: String| {
        let path = dir.join(name);
        std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))
    };
    let pruned = generations(dir).and_then(|generations| {
        let (old, kept) = generations.split_at(generations.len().saturating_sub(keep));
        old.iter().try_for_each(|generation| remove(generation.file_name()))?;
        let Some(oldest) = kept.first() else { return Ok(()) };
        let mut pins: Vec<u64> = file_names(dir)?.iter().filter_map(|name| pin_number(name)).collect();
        pins.sort_unstable();
        let old = pins.len().saturating_sub(PINS_MAX);
        if old == 0 {
            return Ok(());
        }
        let decided = read_header(dir, *oldest)?.header.scalars.control.generation;
        pins[..old].iter().filter(|&&number| number <= decided).try_for_each(|&number| remove(pin_name(number)))
    });
    if let Err(error) = pruned {
        tracing::warn!(%error, "old checkpoint kept");
    }
}

fn pin_number(name: &str) -> Option<u64> {
    let number = name.strip_prefix(PIN_PREFIX)?.strip_suffix(".undrift")?.parse().ok()?;
    Some(number).filter(|&number| pin_name(number) == name)
}

/// Generations that have a file in `dir`, oldest first.
fn generations(dir: &Path) -> Result<Vec<Generation>, StoreError> {
    let mut generations: Vec<_> = file_names(dir)?.iter().filter_map(|name| Generation::of_file_name(name)).collect();
    generations.sort_unstable();
    Ok(generations)
}

fn quarantined(dir: &Path) -> Result<Vec<Generation>, StoreError> {
    match generations(&dir.join(QUARANTINE)) {
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

fn file_names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let entries = std::fs::read_dir(dir).map_err(StoreError::io("list", dir))?;
    let mut names = Vec::new();
    for entry in entries {
        // A name that is not UTF-8 is none of ours.
        names.extend(entry.map_err(StoreError::io("list", dir))?.file_name().into_string().ok());
    }
    Ok(names)
}

fn read_noise_key(path: &Path) -> Result<NoiseSecret, StoreError> {
    let file = File::open(path).map_err(StoreError::io("open", path))?;
    let mode = file.metadata().map_err(StoreError::io("inspect", path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StoreError::Mode { path: path.to_owned(), mode, advice: "others may read the noise key (chmod 600)" });
    }
    let text = String::from_utf8(read_at_most(&file, path, 1024)?).ok();
    text.and_then(|text| parse_noise_key(&text)).ok_or_else(|| StoreError::NoiseKey { path: path.to_owned() })
}
