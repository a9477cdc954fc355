//! Power may go at any instant: what the daemon was told is on the disk is there, or what was on its way; never anything older,
//! never a mix, never an error.
//!
//! Method: a life of the store (opening, checkpoints and their pruning, the noise key, decisions, roll-backs and their pins) runs
//! under strace, which says what really happened below its folder. After each of those operations a model of the disk gives all
//! that may be left of it, and the code of a start opens each of them:
//! - A name shows any of the entries that it has had since its folder was synced, whatever other names show. That is every subset
//!   and every order of what was created, renamed, linked and removed, and halves of renames too.
//! - A file has what it had when it was synced. What was written since may end at any block or at the end of any write, and any
//!   of those blocks may be zeros.
//!
//! Some lives are killed first and followed by another, which builds on what the first has left unsynced.
//! Absent on purpose: disks that lose what they confirmed; `checkpoint.rs` has them.

mod support;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Mutex};
use support::{meta, state};
use tempfile::TempDir;
use undrift::checkpoint::state_hash;
use undrift::config::NoiseConfig;
use undrift::frame::FrameSeq;
use undrift::shell::decision_log::{Action, Decided, DecisionLog};
use undrift::shell::store::{self, Generation, Store};
use undrift::state::DurableState;

/// Generations that are kept: few, so that each write prunes.
const KEEP: usize = 2;
/// Carries a [`Life`] to the process that leads it.
const LIFE_VARIABLE: &str = "UNDRIFT_TEST_LIFE";
/// What is in this file says nothing to a start, which only locks it: the model leaves it out.
const LOCK_FILE: &str = "lock";
/// The smallest unit that a disk writes as a whole.
const SECTOR_BYTES: usize = 512;
/// States after one operation that are tried, if there are so many.
const STATES_MAX: u64 = 1 << 17;

/// Calls that change nothing on the disk; any other that names the folder must be known to [`operation`].
const READING_CALLS: [&str; 15] = [
    "access",
    "close",
    "faccessat2",
    "fcntl",
    "flock",
    "fstat",
    "getdents64",
    "ioctl",
    "lstat",
    "newfstatat",
    "pread64",
    "read",
    "readlink",
    "stat",
    "statx",
];

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Act {
    /// Asks for the noise key, which is made.
    Key,
    /// Writes the next generation.
    Write,
    /// Switches adaptation.
    Switch,
    /// Rolls back to the newest generation, which is pinned.
    RollBack,
}

/// What a process does with a folder.
#[derive(Serialize, Deserialize)]
struct Life {
    dir: PathBuf,
    /// File for what the process was told, line by line; see [`Told`].
    told: PathBuf,
    acts: Vec<Act>,
}

/// What a start must find.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Standing {
    /// Number and state hash of the newest checkpoint.
    newest: Option<(Generation, [u8; 32])>,
    decisions: Vec<Decided>,
    /// Of the noise key, once it was used.
    key: Option<String>,
}

impl Standing {
    /// As a start finds it; the key is not looked at, since that would make one.
    fn of(dir: &Path, store: &mut Store) -> Self {
        let recovery = store.latest().expect("the newest checkpoint can be read");
        assert!(recovery.quarantined.is_empty(), "a damaged checkpoint: {:?}", recovery.quarantined);
        let newest = recovery.newest.map(|restored| (restored.generation, hash(&restored.state)));
        Self { newest, decisions: decisions(dir), key: None }
    }

    fn generation(&self) -> u64 {
        self.newest.map_or(0, |(generation, _)| generation.0)
    }

    /// What will stand when `act` is through.
    fn after(&self, act: Act) -> Self {
        let mut after = self.clone();
        match act {
            // Which key it will be is not known before.
            Act::Key => {}
            Act::Write => after.newest = Some((Generation(self.generation() + 1), hash_of(self.generation() + 1))),
            Act::Switch => after.decide(Action::Adapt { enabled: self.decisions.len() % 2 == 1 }),
            Act::RollBack => after.decide(Action::RollBack { generation: Generation(self.generation()) }),
        }
        after
    }

    fn decide(&mut self, action: Action) {
        let number = self.decisions.len() as u64 + 1;
        self.decisions.push(Decided { number, incarnation: "FRAMES@1".to_owned(), after: FrameSeq(number), action });
    }
}

/// A line that a life writes down.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Told {
    /// From now on, this is promised.
    Stands(Standing),
    /// From now on until the next line, this may be there instead.
    OnItsWay(Standing),
}

/// The state that is written as this generation: in a file of ten sectors, whose subsets are not too many to try.
fn state_of(generation: u64) -> DurableState {
    state(16 * generation, 7)
}

fn hash(state: &DurableState) -> [u8; 32] {
    state_hash(state).expect("tensors of f32")
}

fn hash_of(generation: u64) -> [u8; 32] {
    static HASHES: LazyLock<Vec<[u8; 32]>> = LazyLock::new(|| (0..32).map(|generation| hash(&state_of(generation))).collect());
    HASHES[usize::try_from(generation).expect("a small number")]
}

fn decisions(dir: &Path) -> Vec<Decided> {
    DecisionLog::open(dir).expect("the decisions can be read").after(0).to_vec()
}

/// A folder in memory, where there is one: the model says what a disk would do.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.expect("a temporary folder")
}

/// Opens the folder and acts; says before and after each act what a power cut may leave.
fn live(dir: &Path, acts: &[Act], mut tell: impl FnMut(Told)) -> Standing {
    let mut store = Store::open(dir, KEEP).expect("a folder of one's own");
    let mut standing = Standing::of(dir, &mut store);
    let mut log = DecisionLog::open(dir).expect("decisions of our own");
    tell(Told::Stands(standing.clone()));
    for &act in acts {
        let mut after = standing.after(act);
        tell(Told::OnItsWay(after.clone()));
        match act {
            Act::Key => after.key = Some(key(&store)),
            Act::Write => {
                let written = store.write(&state_of(after.generation()), &meta()).expect("a writable folder");
                assert_eq!(Some((written.generation, written.state_hash)), after.newest);
            }
            Act::Switch | Act::RollBack => log.append(after.decisions.last().expect("one was added").clone()).expect("a writable folder"),
        }
        tell(Told::Stands(after.clone()));
        standing = after;
    }
    standing
}

fn key(store: &Store) -> String {
    store.noise_key(&NoiseConfig::Generated).expect("a key that is there, or can be made").id()
}

/// The process under strace; without a life in its environment there is nothing to do.
#[test]
fn a_life_is_led_as_its_environment_says() {
    let Ok(life) = std::env::var(LIFE_VARIABLE) else { return };
    let life: Life = serde_json::from_str(&life).expect("a life is JSON");
    let mut told = fs::OpenOptions::new().append(true).open(&life.told).expect("the file was made before");
    live(&life.dir, &life.acts, |line| {
        let line = serde_json::to_vec(&line).expect("what is told is JSON");
        told.write_all(&line).expect("a writable file");
    });
}

/// A change to what is on the disk, or to what must be; paths are relative to the folder of the recording.
#[derive(Debug)]
enum Operation {
    Create(PathBuf),
    Append(PathBuf, Vec<u8>),
    /// Of a file or a folder.
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Remove(PathBuf),
    MakeFolder(PathBuf),
    Told(Told),
}

/// What lives in one folder did, one after the other.
struct Recording {
    /// What was there before, all of it synced, and promised.
    disk: Disk,
    standing: Standing,
    operations: Vec<Operation>,
    /// The folder of the store.
    dir: PathBuf,
    root: TempDir,
}

impl Recording {
    /// Of a folder that `acts` were done in long ago; without any, it is yet to be made.
    fn new(dir: &str, acts: &[Act]) -> Self {
        let root = folder();
        fs::create_dir(root.path().join("disk")).and_then(|()| fs::write(root.path().join("told"), "")).expect("a writable folder");
        let dir = Path::new(dir);
        let standing = if acts.is_empty() { Standing::default() } else { live(&root.path().join("disk").join(dir), acts, drop) };
        let disk = Disk::synced(&root.path().join("disk"));
        Self { disk, standing, operations: Vec::new(), dir: dir.to_owned(), root }
    }

    /// Records a life; `kill` is the call, and which of them, that it does not survive. Returns whether it was killed.
    fn live(&mut self, acts: &[Act], kill: Option<(&str, usize)>) -> bool {
        let root = self.root.path().canonicalize().expect("a folder of one's own");
        let life = Life { dir: root.join("disk").join(&self.dir), told: root.join("told"), acts: acts.to_vec() };
        let traces = folder();
        let mut strace = Command::new("strace");
        strace.args(["-ff", "-y", "-xx", "-s", "10000000", "-e", "trace=%file,%desc", "-o"]).arg(traces.path().join("trace"));
        strace.args(kill.map(|(call, nth)| format!("--inject={call}:signal=SIGKILL:when={nth}")));
        strace.arg(std::env::current_exe().expect("the test's own path"));
        strace.args(["--exact", "a_life_is_led_as_its_environment_says", "--nocapture", "--test-threads=1"]);
        strace.env(LIFE_VARIABLE, serde_json::to_string(&life).expect("a life is JSON"));
        let status = strace.stdout(Stdio::null()).status().expect("strace is installed, which `make servers` sees to");
        let is_killed = status.signal() == Some(libc::SIGKILL);
        assert!(is_killed || status.success(), "{status}");
        // One file for each thread; of those, the life is led by one.
        let traces = fs::read_dir(traces.path()).expect("a folder of one's own").map(|entry| entry.expect("a readable folder").path());
        let traces = traces.map(|path| fs::read_to_string(path).expect("a trace is text"));
        let threads: Vec<Vec<Operation>> = traces.map(|trace| trace.lines().filter_map(|line| operation(line, &root)).collect()).collect();
        let mut threads = threads.into_iter().filter(|operations| !operations.is_empty());
        let operations = threads.next().unwrap_or_default();
        assert!(is_killed || !operations.is_empty(), "a whole life leaves a trace");
        self.operations.extend(operations);
        assert!(threads.next().is_none(), "two threads write, and the traces do not say in what order");
        is_killed
    }
}

/// What a line of strace says was done below `root`; none for a call that failed, only read, or was elsewhere.
fn operation(line: &str, root: &Path) -> Option<Operation> {
    let (call, rest) = line.split_once('(')?;
    // What a signal has ended was not done, and what failed had no effect.
    let (arguments, result) = rest.rsplit_once(" = ")?;
    let result: usize = result.split(['<', ' ']).next()?.parse().ok()?;
    let texts = quoted(arguments);
    let paths: Vec<&Path> = texts.iter().filter_map(|text| Path::new(str::from_utf8(text).ok()?).strip_prefix(root).ok()).collect();
    let on_disk = |i: usize| paths[i].strip_prefix("disk").expect("below the root there is only the disk").to_owned();
    let is_reading_open = call == "openat" && !["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"].iter().any(|flag| arguments.contains(flag));
    if paths.is_empty() || is_reading_open || READING_CALLS.contains(&call) || paths[0].ends_with(LOCK_FILE) {
        return None;
    }
    let is_told = paths[0] == Path::new("told");
    Some(match call {
        "openat" if is_told => return None,
        "write" if is_told => Operation::Told(serde_json::from_slice(&texts[1]).expect("a line in one call")),
        "openat" if arguments.contains("O_CREAT|O_EXCL") => Operation::Create(on_disk(0)),
        "write" => Operation::Append(on_disk(0), texts[1][..result].to_vec()),
        // The data, and the length that it needs, are all that matters here of a file.
        "fsync" | "fdatasync" => Operation::Sync(on_disk(0)),
        "rename" | "renameat" | "renameat2" => Operation::Rename(on_disk(0), on_disk(1)),
        "link" | "linkat" => Operation::Link(on_disk(0), on_disk(1)),
        "unlink" | "unlinkat" => Operation::Remove(on_disk(0)),
        "mkdir" | "mkdirat" => Operation::MakeFolder(on_disk(0)),
        _ => unreachable!("the model does not know what this does: {line}"),
    })
}

/// The texts between quotes or angle brackets, which strace gives as `\x` and two digits for each byte.
fn quoted(arguments: &str) -> Vec<Vec<u8>> {
    let texts = arguments.split(['"', '<', '>']).filter(|text| text.starts_with("\\x"));
    let byte = |digits: &str| u8::from_str_radix(digits, 16).expect("strace writes two digits");
    texts.map(|text| text.split("\\x").skip(1).map(byte).collect()).collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Entry {
    Absent,
    Folder,
    /// Place in [`Disk::files`].
    File(usize),
}

#[derive(Clone, Debug)]
struct FileData {
    bytes: Vec<u8>,
    /// How many of them are sure to be there.
    synced: usize,
    /// Where each write since then ended.
    ends: Vec<usize>,
}

impl FileData {
    /// All that a power cut may leave, in blocks of `block_bytes`; last the whole file.
    fn contents(&self, block_bytes: usize) -> Vec<Vec<u8>> {
        let blocks = (0..self.bytes.len()).step_by(block_bytes);
        let mut cuts: Vec<usize> = blocks.filter(|&cut| cut > self.synced).chain(self.ends.iter().copied()).chain([self.synced]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        cuts.iter().flat_map(|&cut| with_zeros(&self.bytes[..cut], self.synced, block_bytes)).collect()
    }
}

/// `bytes` with zeros in each subset of the blocks from `synced` on; last with none.
fn with_zeros(bytes: &[u8], synced: usize, block_bytes: usize) -> Vec<Vec<u8>> {
    let count = (bytes.len() - synced).div_ceil(block_bytes);
    assert!(count <= 12, "{count} blocks have too many subsets");
    let zeroed = |lost: u32| {
        let mut content = bytes.to_vec();
        for (_, block) in content[synced..].chunks_mut(block_bytes).enumerate().filter(|(i, _)| lost >> i & 1 == 1) {
            block.fill(0);
        }
        content
    };
    (0..1u32 << count).rev().map(zeroed).collect()
}

/// The model of the disk.
#[derive(Clone, Debug, Default)]
struct Disk {
    /// What each name has shown since its folder was synced, last what it shows now.
    names: BTreeMap<PathBuf, Vec<Entry>>,
    files: Vec<FileData>,
}

/// Files and, without content, folders; folders come before what they hold.
type Layout<'a> = Vec<(&'a Path, Option<&'a [u8]>)>;

impl Disk {
    /// What lies in `root`, all of it safe.
    fn synced(root: &Path) -> Self {
        let mut disk = Self::default();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder of one's own") {
                let path = entry.expect("a readable folder").path();
                let name = path.strip_prefix(root).expect("it lies below").to_owned();
                if path.is_dir() {
                    disk.names.insert(name, vec![Entry::Folder]);
                    folders.push(path);
                } else if !name.ends_with(LOCK_FILE) {
                    disk.names.insert(name, vec![Entry::File(disk.files.len())]);
                    let bytes = fs::read(&path).expect("a file of one's own");
                    disk.files.push(FileData { synced: bytes.len(), bytes, ends: Vec::new() });
                }
            }
        }
        disk
    }

    fn entry(&self, path: &Path) -> Entry {
        self.names.get(path).and_then(|entries| entries.last().copied()).unwrap_or(Entry::Absent)
    }

    fn file(&mut self, path: &Path) -> Option<&mut FileData> {
        match self.entry(path) {
            Entry::File(index) => Some(&mut self.files[index]),
            Entry::Folder | Entry::Absent => None,
        }
    }

    fn show(&mut self, path: &Path, entry: Entry) {
        let entries = self.names.entry(path.to_owned()).or_insert_with(|| vec![Entry::Absent]);
        entries.retain(|&earlier| earlier != entry);
        entries.push(entry);
    }

    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Create(path) => {
                self.show(path, Entry::File(self.files.len()));
                self.files.push(FileData { bytes: Vec::new(), synced: 0, ends: Vec::new() });
            }
            Operation::Append(path, bytes) => {
                let file = self.file(path).expect("what is written to was created");
                file.bytes.extend(bytes);
                file.ends.push(file.bytes.len());
            }
            Operation::Sync(path) => match self.file(path) {
                Some(file) => (file.synced, file.ends) = (file.bytes.len(), Vec::new()),
                None => self.sync_folder(path),
            },
            Operation::Rename(from, to) => {
                self.show(to, self.entry(from));
                self.show(from, Entry::Absent);
            }
            Operation::Link(from, to) => self.show(to, self.entry(from)),
            Operation::Remove(path) => self.show(path, Entry::Absent),
            Operation::MakeFolder(path) => self.show(path, Entry::Folder),
            Operation::Told(_) => {}
        }
    }

    fn sync_folder(&mut self, folder: &Path) {
        for (_, entries) in self.names.iter_mut().filter(|(name, _)| name.parent() == Some(folder)) {
            entries.drain(..entries.len() - 1);
        }
        self.names.retain(|_, entries| *entries != [Entry::Absent]);
    }

    /// Names and files that are there and may be lost.
    fn unsure(&self) -> Vec<&Path> {
        let is_unsure = |entries: &[Entry]| match entries[entries.len() - 1] {
            Entry::Absent => false,
            Entry::Folder => entries.len() > 1,
            Entry::File(index) => entries.len() > 1 || self.files[index].synced < self.files[index].bytes.len(),
        };
        self.names.iter().filter(|(_, entries)| is_unsure(entries)).map(|(name, _)| name.as_path()).collect()
    }
}

/// One of the ways in which the names of a disk may be left, and all that may be left of the files that it leads to, by number.
struct Remains<'a> {
    names: Vec<(&'a Path, Entry)>,
    /// Of each file; empty for one that no name leads to.
    contents: &'a [Vec<Vec<u8>>],
}

impl<'a> Remains<'a> {
    /// All ways of the names.
    fn all(disk: &'a Disk, contents: &'a [Vec<Vec<u8>>]) -> Vec<Self> {
        let mut ways: Vec<Vec<(&Path, Entry)>> = vec![Vec::new()];
        for (name, entries) in &disk.names {
            let with = |way: &Vec<(&'a Path, Entry)>, entry| way.iter().copied().chain([(name.as_path(), entry)]).collect();
            ways = ways.iter().flat_map(|way| entries.iter().map(move |&entry| with(way, entry))).collect();
        }
        ways.into_iter().map(|names| Self { names: reachable(names), contents }).collect()
    }

    fn count(&self) -> u64 {
        self.names.iter().map(|(_, entry)| self.contents_of(*entry).len().max(1) as u64).fold(1, u64::saturating_mul)
    }

    fn contents_of(&self, entry: Entry) -> &'a [Vec<u8>] {
        if let Entry::File(index) = entry { &self.contents[index] } else { &[] }
    }

    fn layout(&self, mut number: u64) -> Layout<'a> {
        let mut content = |entry| {
            let contents = self.contents_of(entry);
            let ways = contents.len().max(1) as u64;
            let digit = usize::try_from(number % ways).expect("a place in a list");
            number /= ways;
            contents.get(digit).map(Vec::as_slice)
        };
        self.names.iter().map(|&(name, entry)| (name, content(entry))).collect()
    }
}

/// Those of the names, folders first, that are there and whose folders are.
fn reachable(names: Vec<(&Path, Entry)>) -> Vec<(&Path, Entry)> {
    let mut reachable: Vec<(&Path, Entry)> = Vec::new();
    for (name, entry) in names {
        let parent = name.parent().expect("a name is not the root");
        let has_parent = parent == Path::new("") || reachable.contains(&(parent, Entry::Folder));
        if has_parent && entry != Entry::Absent {
            reachable.push((name, entry));
        }
    }
    reachable
}

fn lay_out(root: &Path, layout: &Layout) {
    fs::remove_dir_all(root).and_then(|()| fs::create_dir(root)).expect("a folder of one's own");
    // Private, as a start wants the noise key.
    let create = |path: &Path| fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    for &(name, content) in layout {
        let path = root.join(name);
        let made = content.map_or_else(|| fs::create_dir(&path), |content| create(&path)?.write_all(content));
        made.expect("a writable folder");
    }
}

/// Starts on what is left in `dir`, and goes on from there.
fn check(dir: &Path, stands: &Standing, on_its_way: Option<&Standing>) {
    let mut store = Store::open(dir, KEEP).expect("a folder of one's own");
    let found = Standing::of(dir, &mut store);
    let is_as = |expected: &Standing| expected.newest == found.newest && expected.decisions == found.decisions;
    assert!(is_as(stands) || on_its_way.is_some_and(is_as), "found {found:?} instead of {stands:?} or {on_its_way:?}");
    let key = key(&store);
    assert!(stands.key.as_ref().is_none_or(|expected| *expected == key), "another noise key");
    // A roll-back that the checkpoint does not hold is made again.
    let held = found.newest.map_or(0, |(generation, _)| state_of(generation.0).control.generation);
    for decided in found.decisions.iter().filter(|decided| decided.number > held) {
        if let Action::RollBack { generation } = decided.action {
            let (pinned, _) = store::load_pinned(dir, decided.number).expect("what a decision needs");
            assert_eq!(hash(&pinned), hash_of(generation.0), "pin {}", decided.number);
        }
    }
    let after = found.after(Act::Write).after(Act::Switch);
    store.write(&state_of(after.generation()), &meta()).expect("what is left is not in the way");
    let mut log = DecisionLog::open(dir).expect("it was opened before");
    log.append(after.decisions.last().expect("one was added").clone()).expect("what is left is not in the way");
    assert_eq!(Standing::of(dir, &mut store), after);
}

/// Hashes of the layouts that were tried, each with that of what had to be found.
type Tried = HashSet<([u8; 32], [u8; 32])>;

fn digest(value: &impl Debug) -> [u8; 32] {
    *blake3::hash(format!("{value:?}").as_bytes()).as_bytes()
}

fn digest_of_layout(layout: &Layout) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for (name, content) in layout {
        hasher.update(format!("{name:?} {:?} ", content.map(<[u8]>::len)).as_bytes()).update(content.unwrap_or_default());
    }
    *hasher.finalize().as_bytes()
}

/// Tries all that a power cut may leave after each operation of a recording.
fn try_all(recording: &Recording, block_bytes: usize, tried: &Mutex<Tried>) {
    let mut disk = recording.disk.clone();
    let (mut stands, mut on_its_way) = (recording.standing.clone(), None);
    for operation in &recording.operations {
        disk.apply(operation);
        match operation {
            Operation::Told(Told::Stands(standing)) => (stands, on_its_way) = (standing.clone(), None),
            Operation::Told(Told::OnItsWay(standing)) => on_its_way = Some(standing.clone()),
            _ => {}
        }
        let expected = digest(&(&stands, &on_its_way));
        let contents: Vec<_> = disk.files.iter().map(|file| file.contents(block_bytes)).collect();
        let remains = Remains::all(&disk, &contents);
        let count = remains.iter().map(Remains::count).fold(0, u64::saturating_add);
        let layouts = remains
            .par_iter()
            .flat_map(|remains| (0..remains.count().min(STATES_MAX)).into_par_iter().map(|number| remains.layout(number)));
        // Ends with the first that fails; others would go on without end where much is not synced.
        let outcome = layouts.try_for_each_init(folder, |root, layout| {
            if tried.lock().expect("no thread panics with it").insert((digest_of_layout(&layout), expected)) {
                lay_out(root.path(), &layout);
                let check = || check(&root.path().join(&recording.dir), &stands, on_its_way.as_ref());
                return catch_unwind(AssertUnwindSafe(check));
            }
            Ok(())
        });
        outcome.unwrap_or_else(|panic| {
            println!("power went after {:.300}", format!("{operation:?}"));
            resume_unwind(panic)
        });
        assert!(count <= STATES_MAX, "too much is not synced to try all that may be left of it: {:?}", disk.unsure());
    }
}

/// A life from the first start on, in a folder whose parents are missing too.
fn first_life() -> Recording {
    use Act::{Key, RollBack, Switch, Write};
    let mut recording = Recording::new("made/with/parents", &[]);
    recording.live(&[Key, Write, Switch, Write, RollBack, Write, Switch, RollBack, Write, Write], None);
    recording
}

/// A life with so many pins that old ones are deleted.
fn life_with_many_pins() -> Recording {
    let before: Vec<Act> = [Act::Write].into_iter().chain([Act::RollBack; 65]).collect();
    let mut recording = Recording::new("state", &before);
    recording.live(&[Act::RollBack, Act::Write, Act::RollBack, Act::Write], None);
    let is_pin = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"rollback-"));
    let is_deleted = |operation: &Operation| matches!(operation, Operation::Remove(path) if is_pin(path));
    assert!(recording.operations.iter().any(is_deleted), "there are not as many pins as it takes");
    recording
}

/// Lives that are killed at each of their calls of `call`, and those that follow them.
fn killed_lives(call: &str) -> Vec<Recording> {
    use Act::{RollBack, Switch, Write};
    let mut recordings = Vec::new();
    loop {
        let mut recording = Recording::new("state", &[Write, Switch, RollBack]);
        if !recording.live(&[Write, Switch, Write, RollBack], Some((call, recordings.len() + 1))) {
            return recordings;
        }
        recording.live(&[Switch, Write], None);
        recordings.push(recording);
    }
}

#[test]
fn nothing_has_its_name_before_its_data_or_stands_before_its_name_is_synced() {
    for recording in [first_life(), life_with_many_pins()].iter().chain(&killed_lives("fsync")) {
        let mut disk = recording.disk.clone();
        let mut renames = 0;
        for operation in &recording.operations {
            if let Operation::Rename(from, to) = operation {
                let file = disk.file(from).expect("files are renamed");
                assert_eq!(file.synced, file.bytes.len(), "{to:?} gets its name with bytes that are not synced");
                renames += 1;
            }
            disk.apply(operation);
            if let Operation::Told(Told::Stands(_)) = operation {
                assert_eq!(disk.unsure(), Vec::<&Path>::new(), "{operation:?}");
            }
        }
        assert!(renames > 0);
    }
}

#[test]
fn whenever_power_goes_the_newest_of_all_that_stood_is_found() {
    let tried = Mutex::new(Tried::new());
    let recordings = [(first_life(), SECTOR_BYTES), (life_with_many_pins(), 8 * SECTOR_BYTES)];
    let killed = ["fsync", "rename"].into_iter().flat_map(killed_lives).map(|recording| (recording, 2 * SECTOR_BYTES));
    let mut operations = 0;
    for (recording, block_bytes) in recordings.into_iter().chain(killed) {
        try_all(&recording, block_bytes, &tried);
        operations += recording.operations.len();
    }
    let states = tried.into_inner().expect("no thread panicked");
    let layouts: HashSet<_> = states.iter().map(|(layout, _)| layout).collect();
    println!("{} states of the disk, {} with what had to be found, after {operations} operations", layouts.len(), states.len());
    assert!(layouts.len() >= 10_000);
}
