//! A checkpoint is the newest complete one or the one before, whatever happened to the disk; and damage never passes for state.

mod support;

use rayon::prelude::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use support::{meta, state};
use tempfile::TempDir;
use undrift::by_camera::ByCamera;
use undrift::checkpoint::{BUNDLE_FINGERPRINT, CheckpointError, FORMAT_VERSION, Meta, decode, encode, state_hash};
use undrift::config::NoiseConfig;
use undrift::frame::FrameSeq;
use undrift::noise::NoiseKey;
use undrift::pipeline::Decision;
use undrift::shell::decision_log::{Action, Decided, DecisionLog};
use undrift::shell::store::{self, Generation, Store, StoreError};
use undrift::state::{DurableState, Hearing, LearnerState};

/// What the adapter goes on from, to be changed.
fn learner(state: &mut DurableState) -> &mut LearnerState {
    Arc::make_mut(&mut state.learner)
}

fn hash(state: &DurableState) -> [u8; 32] {
    state_hash(state).expect("tensors of f32")
}

fn encoded(frames: u64) -> Vec<u8> {
    encode(&state(frames, 1), &meta()).expect("finite values")
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn open(dir: &Path) -> Store {
    Store::open(dir, 3).expect("a folder of one's own")
}

/// The generation and sequence that a start goes on from.
fn newest(dir: &Path) -> Option<(u64, u64)> {
    let recovery = open(dir).latest().expect("a readable generation, or none at all");
    recovery.newest.map(|restored| (restored.generation.0, restored.state.sequence.0))
}

fn path(dir: &Path, generation: u64) -> std::path::PathBuf {
    dir.join(Generation(generation).file_name())
}

#[test]
fn decode_gives_back_every_bit_that_encode_was_given() {
    let before = state(32, 2);
    let bytes = encode(&before, &meta()).expect("finite values");
    let (after, meta_after) = decode(&bytes).expect("bytes of our own");
    assert_eq!((hash(&after), meta_after), (hash(&before), meta()));
    assert_eq!(encode(&after, &meta()).expect("finite values"), bytes);
    let bits = |state: &DurableState| -> Vec<u32> {
        state.serving.weights["head.weight"]
            .flatten_all()
            .and_then(|t| t.to_vec1::<f32>())
            .expect("f32")
            .iter()
            .map(|v| v.to_bits())
            .collect()
    };
    assert_eq!(bits(&after), bits(&before));
    assert_eq!(after.monitor.averages["entropy"].to_bits(), (-0.0f64).to_bits());
}

#[test]
fn the_state_hash_sees_every_part_of_the_state_and_not_the_time() {
    let changes: [fn(&mut DurableState); 29] = [
        |s| s.incarnation.push('x'),
        |s| s.sequence = FrameSeq(s.sequence.0 + 1),
        |s| s.frames += 1,
        |s| s.input_chain[31] ^= 1,
        |s| s.mark = None,
        |s| s.birth += 1,
        |s| s.control.adapt_enabled = false,
        |s| s.control.generation += 1,
        |s| s.serving.version.0 += 1,
        |s| s.serving.window = Some(7),
        |s| s.serving.weights = s.learner.weights.clone(),
        |s| s.serving.hearing.values_mut().for_each(|hearing| *hearing = Hearing::Little),
        |s| s.pending.clear(),
        |s| s.pending[0].weights = s.learner.weights.clone(),
        |s| s.pending[0].hearing.values_mut().for_each(|hearing| *hearing = Hearing::Little),
        |s| learner(s).version.0 += 1,
        |s| learner(s).weights = s.serving.weights.clone(),
        |s| learner(s).optimizer.steps += 1,
        |s| learner(s).optimizer.first_moments.values_mut().for_each(|values| values[0] += 1.0),
        |s| learner(s).optimizer.second_moments.values_mut().for_each(|values| values[0] += 1.0),
        |s| learner(s).policy.averages.clear(),
        |s| learner(s).policy.common.averages.clear(),
        |s| learner(s).policy.gates = ByCamera::default(),
        |s| learner(s).policy.gates.see(std::iter::once("yard")),
        |s| learner(s).policy.gates.values_mut().for_each(|gate| gate.averages.clear()),
        |s| learner(s).policy.gates.values_mut().for_each(|gate| gate.hearing = Hearing::Home),
        |s| learner(s).policy.gates.values_mut().for_each(|gate| gate.is_teaching ^= true),
        |s| s.monitor.averages.clear(),
        |s| s.monitor.hits.swap(0, 1),
    ];
    let original = hash(&state(32, 2));
    for (i, change) in changes.iter().enumerate() {
        let mut changed = state(32, 2);
        change(&mut changed);
        assert_ne!(hash(&changed), original, "change {i}");
    }
    let later = Meta { created_ns: 0, ..meta() };
    let (restored, _) = decode(&encode(&state(32, 2), &later).expect("finite values")).expect("bytes of our own");
    assert_eq!(hash(&restored), original);
}

#[test]
fn every_flipped_bit_is_detected() {
    let bytes = encode(&state(32, 250), &meta()).expect("finite values");
    println!("{} bits", 8 * bytes.len());
    assert!(bytes.len() >= 64 << 10, "{} bytes", bytes.len());
    let accepted = (0..bytes.len()).into_par_iter().map_with(bytes.clone(), |copy, at| {
        let passes = |bit: &u32| {
            copy[at] ^= 1 << bit;
            let passed = decode(copy).is_ok();
            copy[at] ^= 1 << bit;
            passed
        };
        (0..8).filter(passes).count()
    });
    assert_eq!(accepted.sum::<usize>(), 0, "flips out of {}", 8 * bytes.len());
}

#[test]
fn every_shorter_or_longer_file_is_detected() {
    let bytes = encoded(32);
    for length in 0..bytes.len() {
        assert!(decode(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(matches!(decode(&longer), Err(CheckpointError::Length { .. })));
}

#[test]
fn no_random_edit_passes_or_panics() {
    let (seed, cases) = (20_240_607, 20_000);
    println!("seed {seed}, {cases} cases");
    let (one, other) = (encoded(32), encoded(48));
    (0..cases).into_par_iter().for_each(|case| {
        let key = NoiseKey::from_seed(seed, "edits", case);
        let draw = |index: u32, limit: usize| key.uniform_below(index, u32::try_from(limit).expect("a small file")) as usize;
        let mut bytes = one.clone();
        let shorter = one.len().min(other.len());
        let at = draw(0, shorter);
        let end = (at + 1 + draw(1, 64)).min(shorter);
        match draw(2, 4) {
            0 => bytes[at..end].iter_mut().zip(3..).for_each(|(byte, i)| *byte = draw(i, 256) as u8),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.splice(at..at, other[at..end].to_vec()).for_each(drop),
            // Halves of two generations, as a lost write in the middle would mix them.
            _ => bytes = [&one[..at], &other[at..]].concat(),
        }
        if bytes != one && bytes != other {
            assert!(decode(&bytes).is_err(), "case {case}");
        }
    });
}

#[test]
fn a_checkpoint_of_another_version_is_refused_and_left_alone() {
    let dir = folder();
    let mut bytes = encoded(32);
    let other = FORMAT_VERSION + 1;
    bytes[8..12].copy_from_slice(&other.to_le_bytes());
    fs::write(path(dir.path(), 1), &bytes).expect("a writable folder");
    let refused = open(dir.path()).latest();
    assert!(matches!(refused, Err(StoreError::Unreadable { source: CheckpointError::Version { got }, .. }) if got == other));
    assert!(path(dir.path(), 1).exists());
}

#[test]
fn a_state_that_is_not_finite_is_not_written() {
    let mut broken = state(32, 1);
    learner(&mut broken).optimizer.first_moments.insert("head.bias".to_owned(), vec![f32::NAN]);
    assert!(encode(&broken, &meta()).is_err());
    let mut broken = state(32, 1);
    learner(&mut broken).policy.averages.insert("reliability".to_owned(), f64::INFINITY);
    assert!(matches!(encode(&broken, &meta()), Err(CheckpointError::NotFinite { .. })));
    let mut broken = state(32, 1);
    learner(&mut broken).policy.gates.values_mut().flat_map(|gate| gate.averages.values_mut()).for_each(|average| *average = f64::NAN);
    assert!(matches!(encode(&broken, &meta()), Err(CheckpointError::NotFinite { .. })));
    let mut broken = state(32, 1);
    broken.recent.see(std::iter::once("door"));
    broken.recent.get_mut("door").expect("it was seen").see(&[f64::NAN, 0.5]);
    assert!(matches!(encode(&broken, &meta()), Err(CheckpointError::NotFinite { name, .. }) if name == "recent"));
    let mut broken = state(32, 1);
    broken.open[0].prior[1] = f64::NAN;
    assert!(matches!(encode(&broken, &meta()), Err(CheckpointError::NotFinite { name, .. }) if name == "prior"));
}

/// What one file of `bytes` may hold when power is lost before its fsync has returned: a prefix, or whole blocks of zeros.
fn torn_contents(bytes: &[u8], blocks: usize) -> Vec<Vec<u8>> {
    let prefixes = (0..bytes.len()).map(|length| bytes[..length].to_vec());
    let block = bytes.len().div_ceil(blocks);
    let holes = (1u32..1 << blocks).map(|lost| {
        let mut torn = bytes.to_vec();
        for (_, block) in torn.chunks_mut(block).enumerate().filter(|(i, _)| lost >> i & 1 == 1) {
            block.fill(0);
        }
        torn
    });
    prefixes.chain(holes).collect()
}

/// Goal: power may go at any instant of a write. Method: every state that the file system may be in then, each opened.
#[test]
fn after_an_interrupted_write_the_newest_complete_generation_is_loaded() {
    let (older, newer) = (encoded(32), encoded(48));
    let temporary = |dir: &Path| dir.join(format!("{}.tmp", Generation(2).file_name()));
    let mut torn = torn_contents(&newer, 12);
    torn.push(newer.clone());
    let states: Vec<(bool, Option<&Vec<u8>>, bool)> = [false, true]
        .into_iter()
        // Nothing yet, the file under its temporary name in any condition, or complete under its own.
        .flat_map(|has_older| {
            torn.iter().map(move |content| (has_older, Some(content), false)).chain([(has_older, None, false), (has_older, None, true)])
        })
        .collect();
    println!("{} states", states.len());
    states.par_iter().for_each_init(folder, |dir, &(has_older, temporary_content, is_renamed)| {
        let dir = dir.path();
        fs::remove_dir_all(dir).and_then(|()| fs::create_dir(dir)).expect("a folder of one's own");
        let write = |path, bytes: &[u8]| fs::write(path, bytes).expect("a writable folder");
        has_older.then(|| write(path(dir, 1), &older));
        is_renamed.then(|| write(path(dir, 2), &newer));
        temporary_content.into_iter().for_each(|content| write(temporary(dir), content));
        let expected = if is_renamed { Some((2, 51)) } else { has_older.then_some((1, 35)) };
        assert_eq!(newest(dir), expected);
        assert!(!temporary(dir).exists());
    });
}

/// Goal: even a disk that breaks its word (the name is there, the synced bytes are not) costs one generation, and no more.
#[test]
fn a_torn_file_is_quarantined_and_the_generation_before_is_loaded() {
    let (older, newer) = (encoded(32), encoded(48));
    let torn = torn_contents(&newer, 8);
    println!("{} states", torn.len());
    torn.par_iter().for_each_init(folder, |dir, content| {
        let dir = dir.path();
        fs::remove_dir_all(dir).and_then(|()| fs::create_dir(dir)).expect("a folder of one's own");
        fs::write(path(dir, 1), &older).and_then(|()| fs::write(path(dir, 2), content)).expect("a writable folder");
        let recovery = open(dir).latest().expect("the older generation");
        assert_eq!(recovery.newest.map(|restored| restored.generation), Some(Generation(1)));
        assert_eq!(recovery.quarantined.len(), 1);
        assert!(recovery.quarantined[0].path.starts_with(dir.join("quarantine")) && !path(dir, 2).exists());
    });
}

#[test]
fn with_all_generations_damaged_a_start_is_refused_until_someone_has_looked() {
    let dir = folder();
    fs::write(path(dir.path(), 4), b"UNDRIFT").expect("a writable folder");
    for _ in 0..2 {
        assert!(matches!(open(dir.path()).latest(), Err(StoreError::AllDamaged { count: 1, .. })));
    }
    fs::remove_dir_all(dir.path().join("quarantine")).expect("a folder of one's own");
    assert_eq!(newest(dir.path()), None);
}

#[test]
fn links_pipes_and_folders_are_not_read() {
    let (dir, elsewhere) = (folder(), folder());
    let target = elsewhere.path().join("planted");
    fs::write(&target, encoded(48)).expect("a writable folder");
    fs::write(path(dir.path(), 1), encoded(32)).expect("a writable folder");
    symlink(&target, path(dir.path(), 2)).expect("a link");
    fs::create_dir(path(dir.path(), 3)).expect("a folder");
    let pipe = std::process::Command::new("mkfifo").arg(path(dir.path(), 4)).status().expect("mkfifo is part of coreutils");
    assert!(pipe.success());
    let recovery = open(dir.path()).latest().expect("the older generation");
    assert_eq!(recovery.newest.map(|restored| restored.generation), Some(Generation(1)));
    assert_eq!(recovery.quarantined.len(), 3);
}

#[test]
fn a_second_daemon_is_refused_while_the_first_lives() {
    let dir = folder();
    let first = open(dir.path());
    let holder = match Store::open(dir.path(), 3) {
        Err(StoreError::Locked { holder, .. }) => holder,
        other => unreachable!("{other:?}"),
    };
    assert_eq!(holder, std::process::id().to_string());
    drop(first);
    open(dir.path());
}

#[test]
fn the_newest_generations_are_kept_and_no_number_comes_twice() {
    let dir = folder();
    let mut store = open(dir.path());
    for frames in 1..=5 {
        let written = store.write(&state(frames, 1), &meta()).expect("a writable folder");
        assert_eq!((written.generation, written.state_hash), (Generation(frames), hash(&state(frames, 1))));
    }
    drop(store);
    fs::write(path(dir.path(), 5), b"").expect("a writable folder");
    let mut store = open(dir.path());
    assert_eq!(store.latest().expect("generation 4").quarantined.len(), 1);
    drop(store);
    let mut store = open(dir.path());
    assert_eq!(store.write(&state(6, 1), &meta()).expect("a writable folder").generation, Generation(6));
    let listed = store::list(dir.path()).expect("a readable folder");
    let listed: Vec<_> =
        listed.into_iter().map(|l| l.expect("complete files")).map(|l| (l.generation.0, l.header.scalars.sequence.0)).collect();
    assert_eq!(listed, [(6, 9), (4, 7), (3, 6)]);
    let mode = |path: &Path| fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode(&path(dir.path(), 6)), 0o600);
}

#[test]
fn a_file_that_cannot_be_written_costs_an_attempt_and_not_the_checkpoint() {
    let dir = folder();
    let mut store = open(dir.path());
    let block = |generation| fs::create_dir(dir.path().join(format!("{}.tmp", Generation(generation).file_name()))).expect("a folder");
    (1..=2).for_each(block);
    assert_eq!(store.write(&state(32, 1), &meta()).expect("the third attempt").generation, Generation(3));
    (4..=6).for_each(block);
    assert!(matches!(store.write(&state(48, 1), &meta()), Err(StoreError::Io { .. })));
    assert_eq!(store.latest().expect("generation 3").newest.map(|restored| restored.generation), Some(Generation(3)));
}

#[test]
fn a_folder_that_everyone_may_write_to_is_refused() {
    let dir = folder();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("a folder of one's own");
    assert!(matches!(Store::open(dir.path(), 3), Err(StoreError::Mode { mode: 0o777, .. })));
}

#[test]
fn a_restart_makes_of_a_roll_back_to_another_bundles_weights_a_reset() {
    let dir = folder();
    let of_bundle = |hash: &str| [(BUNDLE_FINGERPRINT.to_owned(), hash.to_owned())].into();
    let written = open(dir.path()).write(&state(32, 1), &Meta { fingerprints: of_bundle("old"), ..meta() }).expect("a writable folder");
    let mut log = DecisionLog::open(dir.path()).expect("no decisions");
    let action = Action::RollBack { generation: written.generation };
    let number = state(32, 1).control.generation + 1;
    log.append(Decided { number, incarnation: "FRAMES@1".to_owned(), after: FrameSeq(9), action }).expect("a writable folder");
    let made = |bundle: &str| log.scheduled(&state(32, 1), true, &of_bundle(bundle)).expect("what is pinned").remove(0).decision;
    assert!(matches!(made("old"), Decision::RollBack(_)));
    assert!(matches!(made("new"), Decision::Reset));
}

#[test]
fn the_noise_key_is_made_once_and_read_only_from_a_private_file() {
    let dir = folder();
    let store = open(&dir.path().join("made/with/parents"));
    let first = store.noise_key(&NoiseConfig::Generated).expect("random bytes").id();
    assert_eq!(store.noise_key(&NoiseConfig::Generated).expect("the same file").id(), first);

    let key = dir.path().join("key");
    fs::write(&key, format!(" {}\n", "0f".repeat(32))).expect("a writable folder");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("a file of one's own");
    let config = NoiseConfig::File(key.clone());
    assert!(matches!(store.noise_key(&config), Err(StoreError::Mode { mode: 0o640, .. })));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).expect("a file of one's own");
    assert_ne!(store.noise_key(&config).expect("64 hex digits").id(), first);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a file of one's own");
    fs::write(&key, "0f".repeat(31)).expect("a writable file");
    assert!(matches!(store.noise_key(&config), Err(StoreError::NoiseKey { .. })));
}
