//! Notices that frames wait and none is finished, and says which lane keeps them.
//!
//! A thread that is stuck, a broker that stores nothing, a stream that says it has frames and delivers none: each shows as silence, and
//! silence is also what an idle daemon shows. So it is asked every second whether frames wait, and whether one was finished since.
//! A frame that is rejected is finished too, and one of a replay.
//! Invariant: nothing is done about it here but to say so: readiness is withdrawn, with one line and one event, until frames move again.

use super::engine::Lines;
use super::queue::Outgoing;
use super::telemetry;
use crate::frame::FrameSeq;
use crate::wire::{EventRecord, Lane, Subjects};
use std::time::{Duration, Instant};

const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Why the daemon is not ready.
pub fn obstacle(lane: Lane) -> &'static str {
    match lane {
        Lane::Stream => "stalled: the stream has frames and delivers none",
        Lane::Device => "stalled: the device thread does not finish a frame",
        Lane::Adapter => "stalled: frames wait for the adapter",
        Lane::Publisher => "stalled: NATS does not take predictions",
    }
}

/// What is seen of the frames at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// Frames that were finished since the start.
    pub finished: u64,
    /// Where the next one is kept; none where no frame waits.
    pub waits_in: Option<Lane>,
}

/// Whether the frames have stopped.
#[derive(Debug)]
pub struct StallWatch {
    patience: Duration,
    finished: u64,
    /// When frames moved last, or none waited.
    moved: Instant,
}

impl StallWatch {
    pub fn new(patience: Duration, now: Instant) -> Self {
        Self { patience, finished: 0, moved: now }
    }

    /// The lane that has kept frames for longer than is put up with.
    pub fn look(&mut self, sight: Sight, now: Instant) -> Option<Lane> {
        if sight.waits_in.is_none() || sight.finished != self.finished {
            (self.finished, self.moved) = (sight.finished, now);
        }
        sight.waits_in.filter(|_| now - self.moved >= self.patience)
    }
}

/// Looks every second, for ever.
pub async fn watch(lines: Lines, subjects: Subjects, patience: Duration) {
    let mut watch = StallWatch::new(patience, Instant::now());
    let mut ticks = tokio::time::interval(LOOK_INTERVAL);
    loop {
        ticks.tick().await;
        let sight = lines.shared.sight(lines.inbox.has_frames());
        let stalled = watch.look(sight, Instant::now());
        if !lines.shared.set_stalled(stalled) {
            continue;
        }
        match stalled {
            Some(lane) => {
                let sequence = FrameSeq(lines.shared.sequence());
                tracing::error!(?lane, sequence = sequence.0, "{}", obstacle(lane));
                telemetry::STALLS.count_by(lane.name());
                lines.outbox.push(Outgoing::event(&subjects, &EventRecord::Stall { lane }, sequence));
            }
            None => tracing::info!("frames move again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// The lanes found stalled, for sights a second apart.
    fn stalls(sights: impl IntoIterator<Item = (u64, Option<Lane>)>) -> Vec<Option<Lane>> {
        let start = Instant::now();
        let mut watch = StallWatch::new(PATIENCE, start);
        let times = (0..).map(|second| start + Duration::from_secs(second));
        sights.into_iter().zip(times).map(|((finished, waits_in), now)| watch.look(Sight { finished, waits_in }, now)).collect()
    }

    #[test]
    fn frames_that_wait_while_none_is_finished_are_a_stall_of_the_lane_that_has_them() {
        let found = stalls((0..9).map(|second| (7, Some(if second < 7 { Lane::Device } else { Lane::Adapter }))));
        // The first look sees that frames were finished before.
        assert_eq!(found, [&[None; 5][..], &[Some(Lane::Device); 2], &[Some(Lane::Adapter); 2]].concat());
    }

    #[test]
    fn neither_silence_nor_slow_progress_is_a_stall() {
        assert!(stalls((0..100).map(|_| (3, None))).iter().all(Option::is_none));
        assert!(stalls((0..100).map(|second| (second / 4, Some(Lane::Adapter)))).iter().all(Option::is_none));
    }

    #[test]
    fn one_frame_that_moves_ends_it() {
        let found = stalls([(0, Some(Lane::Publisher)); 7].into_iter().chain([(1, Some(Lane::Publisher)), (1, None)]));
        assert_eq!(found, [&[None; 5][..], &[Some(Lane::Publisher); 2], &[None; 2]].concat());
    }
}
