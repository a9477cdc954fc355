//! Right of way: work that can wait rests between two products while work that cannot is under way, and leaves its core at once to any
//! thread that wakes.
//!
//! A niceness alone gives neither: it says how much of a core each thread gets in the long run, and not when.
//! Invariant: who has taken the right of way never waits for one who rests, and loses it with the value that it holds, also by a panic.

use parking_lot::{Condvar, Mutex};
use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    static GIVES_WAY_TO: OnceCell<Arc<RightOfWay>> = const { OnceCell::new() };
}

/// What one side takes, and the other gives way to.
#[derive(Debug, Default)]
pub struct RightOfWay {
    is_taken: AtomicBool,
    lock: Mutex<()>,
    is_free: Condvar,
}

/// Who holds it has the right of way.
#[derive(Debug)]
pub struct Taken<'a>(&'a RightOfWay);

impl RightOfWay {
    /// One at a time.
    pub fn take(&self) -> Taken<'_> {
        self.is_taken.store(true, Ordering::Relaxed);
        Taken(self)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let _nobody_is_about_to_rest = self.0.lock.lock();
        self.0.is_taken.store(false, Ordering::Relaxed);
        self.0.is_free.notify_all();
    }
}

/// From now on the calling thread rests before each product while `way` is taken, and gives way to all that wakes.
pub fn give_way_to(way: Arc<RightOfWay>) {
    // A thread gives way to one alone.
    let _ = GIVES_WAY_TO.with(|to| to.set(way));
    leave_core_to_wakers();
}

/// Asks Linux for long turns at a low weight. Of two threads the one with the shorter turns may take the other's core as soon as it wakes
/// (`PREEMPT_SHORT` of kernel/sched/fair.c, Linux 6.12); with turns of one length it waits for the next tick, up to 4 ms.
/// An older Linux knows the weight alone.
fn leave_core_to_wakers() {
    const NICENESS: i32 = 10;
    /// The longest turn that there is.
    const TURN_NS: u64 = 100_000_000;
    let nice = rustix::process::getpriority_process(None).map_or(NICENESS, |own| own.max(NICENESS));
    let attributes = SchedAttr { size: size_of::<SchedAttr>() as u32, nice, runtime: TURN_NS, ..SchedAttr::default() };
    // SAFETY: the call reads `size` bytes from the pointer, which is valid for as many, and keeps nothing of them; 0 is the calling thread,
    // and the last argument holds flags, of which there are none. A call that is refused changes nothing: others wait a little longer.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

/// `struct sched_attr` of sched_setattr(2), in its first version; policy 0 is `SCHED_OTHER`.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Where a product begins.
pub(super) fn rest_while_taken() {
    GIVES_WAY_TO.with(|to| {
        let Some(way) = to.get().filter(|way| way.is_taken.load(Ordering::Relaxed)) else { return };
        let mut lock = way.lock.lock();
        while way.is_taken.load(Ordering::Relaxed) {
            way.is_free.wait(&mut lock);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Finish, Matrix, Panels, Write, matmul, product, transposed_product};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc::{self, RecvTimeoutError};
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_millis(50);

    fn products() -> [(&'static str, fn()); 3] {
        const ONE: Matrix = Matrix::rows_of(&[1.0], 1, 1, 1);
        [
            ("matmul", || matmul(&mut [0.0], 1, ONE, ONE, Write::Replace)),
            ("transposed_product", || transposed_product(&mut [0.0], 1, ONE, ONE, Write::Replace)),
            ("product", || {
                let mut panels = Panels::default();
                panels.pack(ONE);
                product(&mut [0.0], 1, ONE, &panels, Finish::Replace);
            }),
        ]
    }

    #[test]
    fn each_product_waits_on_a_thread_that_gives_way_and_on_no_other() {
        for (name, run) in products() {
            let way = Arc::new(RightOfWay::default());
            let taken = way.take();
            run();
            let (done, is_done) = mpsc::channel();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    give_way_to(Arc::clone(&way));
                    run();
                    done.send(()).expect("the test listens");
                });
                assert_eq!(is_done.recv_timeout(PATIENCE), Err(RecvTimeoutError::Timeout), "{name} while the way is taken");
                drop(taken);
            });
            assert_eq!(is_done.try_recv(), Ok(()), "{name} afterwards");
        }
    }

    #[test]
    fn a_thread_that_gives_way_is_nice_to_others() {
        let niceness = || rustix::process::getpriority_process(None).expect("a niceness");
        let before = niceness();
        let of_other = std::thread::spawn(move || {
            give_way_to(Arc::default());
            niceness()
        });
        assert_eq!(of_other.join().expect("a niceness"), before.max(10));
        assert_eq!(niceness(), before, "of the thread that does not give way");
    }

    #[test]
    fn a_panic_gives_the_right_of_way_back() {
        let way = Arc::new(RightOfWay::default());
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _taken = way.take();
            panic!("as it may");
        }));
        assert!(panicked.is_err());
        give_way_to(way);
        rest_while_taken();
    }
}
