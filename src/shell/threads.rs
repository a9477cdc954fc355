//! The threads of the two lanes, and the cores that they run on.
//!
//! A frame is worked on by one thread for each core, each of which stays on its own: that takes a third off a frame's time, likely
//! because the scheduler puts threads that wake together on one core at times. What is learned is worked on by half as many, on the last of those cores. They give
//! way to a frame that is worked on, and to all that other threads do ([`RightOfWay`]): in one pool with the frames' work, a frame would
//! wait behind a window.
//! Where the process has not one thread for each core that it may use (`RAYON_NUM_THREADS`, a quota), the scheduler places them.

use crate::kernels::{self, RightOfWay};
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::sync::Arc;

/// Both lanes' threads.
pub struct Threads {
    /// The device thread is one of them.
    pub frames: ThreadPool,
    pub adapter: ThreadPool,
}

impl Threads {
    /// # Errors
    /// Where the system gives no more threads.
    pub fn start(way: &Arc<RightOfWay>) -> Result<Self, ThreadPoolBuildError> {
        let frames = ThreadPoolBuilder::new().thread_name(|thread| format!("frames-{thread}")).build()?;
        let count = frames.current_num_threads();
        let adapter = ThreadPoolBuilder::new().thread_name(|thread| format!("adapter-{thread}")).num_threads((count / 2).max(1)).build()?;
        adapter.broadcast(|_| kernels::give_way_to(Arc::clone(way)));
        let cores = cores();
        if cores.len() == count {
            frames.broadcast(|thread| stay_on(cores[thread.index()]));
            adapter.broadcast(|thread| stay_on(cores[count - 1 - thread.index()]));
        }
        Ok(Self { frames, adapter })
    }
}

/// Those that the process may use; none where the system does not say.
fn cores() -> Vec<usize> {
    let may_use = |set: CpuSet| (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect();
    sched_getaffinity(None).map_or(Vec::new(), may_use)
}

/// Keeps the calling thread on a core. Where that is not allowed, the scheduler goes on placing it.
fn stay_on(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    let _ = sched_setaffinity(None, &set);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_of_a_frame_has_a_core_and_those_of_the_adapter_share_the_last() {
        let cores_of = |pool: &ThreadPool| pool.broadcast(|_| cores());
        let all = cores();
        let Threads { frames, adapter } = Threads::start(&Arc::default()).expect("threads");
        let count = frames.current_num_threads();
        assert_eq!(adapter.current_num_threads(), (count / 2).max(1));
        match all.len() == count {
            true => {
                assert_eq!(cores_of(&frames).concat(), all);
                assert_eq!(cores_of(&adapter).concat(), all.iter().rev().take((count / 2).max(1)).copied().collect::<Vec<_>>());
            }
            false => assert!(cores_of(&frames).iter().chain(&cores_of(&adapter)).all(|cores| *cores == all)),
        }
        assert_eq!(cores(), all, "of the thread that started them");
    }
}
