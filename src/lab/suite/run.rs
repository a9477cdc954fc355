//! Cells become records, as many at a time as there are workers.

use super::cell::{Cell, Materials, Scenario, Subject};
use super::record::Record;
use crate::frame::Frame;
use crate::lab::corruptions::Severity;
use crate::lab::evaluate::SessionError;
use crate::lab::methods::{self, Answers, Trial};
use crate::lab::streams::{Calibration, Plan, PlanError, Playback, Request, Walk};
use rayon::{ThreadPoolBuildError, ThreadPoolBuilder};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A cell that could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// Accuracy at which `ccc` keeps the source.
const SOURCE_ACCURACY: f64 = 0.5;

/// Plays the scenario of `cell` to its method; calls `shown` after each frame.
///
/// # Errors
/// When the stream cannot be planned, or the method comes to a fatal end.
pub fn run_cell(
    cell: &Cell,
    subject: &Subject,
    materials: &Materials,
    calibration: Option<&Calibration>,
    shown: impl Fn(),
) -> Result<Record, RunError> {
    let runs = frames(&cell.scenario, subject, materials, calibration)?;
    let mut answers = Answers::default();
    for frames in &runs {
        let trial = Trial {
            bundle: &subject.bundle,
            config: &subject.adapt,
            window: cell.window(),
            frames,
            seed: cell.scenario.seed,
            source_images: &materials.source_images,
            importance: &subject.importance,
            tuning: materials.tuning,
            clock: methods::processor_seconds,
        };
        answers.append(methods::evaluate(cell.method, &trial, &shown)?);
    }
    let fingerprint = cell.fingerprint(subject, materials, calibration);
    Ok(Record::new(cell, fingerprint, &answers, runs.iter().flatten()))
}

/// All frames, parted where adaptation starts afresh.
fn frames(
    scenario: &Scenario,
    subject: &Subject,
    materials: &Materials,
    calibration: Option<&Calibration>,
) -> Result<Vec<Vec<Frame>>, RunError> {
    let &Scenario { table, stream, frames, visits, seed } = scenario;
    let walk = calibration.map(|calibration| Walk { calibration, source_accuracy: SOURCE_ACCURACY });
    let request = Request { frames, severity: Severity::ALL[4], seed, visits, walk };
    let plan = Plan::new(stream, &request, &materials.images)?;
    let side = subject.bundle.classifier_config.image().height;
    let mut runs = Vec::new();
    for (index, frame) in (0..).zip(Playback { plan: &plan, images: &materials.images, table, side }.frames()) {
        if frame.is_fresh_start || runs.is_empty() {
            runs.push(Vec::new());
        }
        runs.last_mut().expect("one was pushed").push(frame.into_frame(index));
    }
    Ok(runs)
}

/// Does `work` on all `items`, in order, on `jobs` threads; whatever it splits stays on its thread, so that times are of one core.
///
/// # Errors
/// The first; work that has begun is finished, no other is begun.
///
/// # Panics
/// When `work` does.
pub fn in_parallel<T: Sync, E: Send + From<ThreadPoolBuildError>>(
    jobs: NonZeroUsize,
    items: &[T],
    work: impl Fn(&T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let worker = || -> Result<(), E> {
        let pool = ThreadPoolBuilder::new().num_threads(1).build()?;
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            // A failure moves the counter to the end, where nobody finds more.
            pool.install(|| work(item)).inspect_err(|_| next.store(items.len(), Ordering::Relaxed))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.get().min(items.len())).map(|_| scope.spawn(worker)).collect();
        let results: Vec<Result<(), E>> = workers.into_iter().map(|worker| worker.join().expect("work panicked")).collect();
        results.into_iter().collect()
    })
}
