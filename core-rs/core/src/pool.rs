//! Threads that take one job together: the caller is the first of them, the others wait for it.
//!
//! A job is one closure that every worker runs with its own index; [`Worker::barrier`] lets all
//! of them finish a phase before any begins the next. A step of a language model is one job with
//! a hundred barriers or more, microseconds apart, so a waiting worker first spins (at most
//! [`SPIN_NS_MAX`]), then gives its time slice away (at most [`YIELD_NS_MAX`]), then sleeps in the
//! kernel: quick on a quiet machine, and no load on a busy one.
//!
//! On a machine that has no processor to spare, a second thread is worse than none: whoever is
//! scheduled waits for whoever is not. So the pool watches how long the caller waits for others,
//! and when that is most of the time, jobs run on the caller's thread alone for a while
//! ([`SOLO_NS_MIN`] to [`SOLO_NS_MAX`]), until a few of them have tried company again. Jobs must
//! therefore go by [`Worker::count`], which differs from job to job.
//!
//! Which worker may touch which memory is the job's business; a barrier orders all writes before
//! it ahead of all reads after it.
#![expect(unsafe_code, reason = "lends a closure to threads that outlive it, and calls futex")]

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// Longest time a waiting worker keeps its processor busy, ns.
pub const SPIN_NS_MAX: u64 = 20_000;

/// Longest time a waiting worker yields before it sleeps, ns since it began to wait.
pub const YIELD_NS_MAX: u64 = 200_000;

/// Jobs are judged together over at least this time, ns.
pub const WATCH_NS: u64 = 10_000_000;

/// Shortest time that jobs run on one thread because the others kept it waiting, ns.
pub const SOLO_NS_MIN: u64 = 50_000_000;

/// Longest such time, ns: it doubles while the others still keep it waiting.
pub const SOLO_NS_MAX: u64 = 800_000_000;

/// Most threads of a pool.
pub const THREADS_MAX: usize = 256;

/// How the pool's own threads are scheduled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolOptions {
    /// Added to the niceness of the pool's own threads (0 to 19); the caller's thread keeps its.
    pub nice: u8,
    /// Ask for `SCHED_BATCH`: no wake-up preempts another program's thread.
    pub batch: bool,
}

/// A counter that threads can sleep on until it changes.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Epoch {
    value: AtomicU32,
    sleepers: AtomicU32,
}

impl Epoch {
    fn get(&self) -> u32 {
        self.value.load(Ordering::Acquire)
    }

    /// Go to the next value and wake whoever sleeps on this one.
    fn advance(&self) {
        // Sequentially consistent with the sleeper's pair (count, then look again): one of the
        // two sees the other, so no sleeper is missed.
        self.value.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            wake_all(&self.value);
        }
    }

    /// Wait until the value is no longer `seen`: spin, yield, sleep. Returns how long, ns, as far
    /// as that is longer than a spin.
    fn wait_past(&self, seen: u32) -> u64 {
        for _ in 0..64 {
            if self.get() != seen {
                return 0;
            }
            std::hint::spin_loop();
        }
        let start = Instant::now();
        loop {
            let waited = ns_since(start);
            if waited < SPIN_NS_MAX {
                for _ in 0..32 {
                    if self.get() != seen {
                        return 0;
                    }
                    std::hint::spin_loop();
                }
            } else if waited < YIELD_NS_MAX {
                if self.get() != seen {
                    return waited;
                }
                std::thread::yield_now();
            } else {
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                while self.value.load(Ordering::SeqCst) == seen {
                    sleep_while(&self.value, seen);
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
                return ns_since(start);
            }
        }
    }
}

fn ns_since(start: Instant) -> u64 {
    start.elapsed().as_nanos() as u64
}

#[cfg(target_os = "linux")]
fn sleep_while(word: &AtomicU32, value: u32) {
    // SAFETY: FUTEX_WAIT reads the word, which lives as long as the borrow; a null timeout waits
    // for a wake-up. Early returns (EINTR, EAGAIN) are allowed: the caller looks again.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            value,
            std::ptr::null::<libc::timespec>(),
        );
    }
}

#[cfg(target_os = "linux")]
fn wake_all(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE only uses the word's address.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            i32::MAX,
        );
    }
}

#[cfg(not(target_os = "linux"))]
fn sleep_while(_: &AtomicU32, _: u32) {
    std::thread::sleep(std::time::Duration::from_micros(50));
}

#[cfg(not(target_os = "linux"))]
fn wake_all(_: &AtomicU32) {}

/// A job as the threads see it. The lifetime is erased: [`Pool::run`] returns only after every
/// worker has left the closure.
type Job = *const (dyn Fn(&Worker<'_>) + Sync);

struct Shared {
    threads: u32,
    /// Advanced once a job, after `job` was written.
    start: Epoch,
    job: UnsafeCell<Option<Job>>,
    /// Workers that have left the current job; the last one advances `finish`.
    left: AtomicU32,
    finish: Epoch,
    /// Workers that have come to the current barrier; the last one advances `phase`.
    arrived: AtomicU32,
    phase: Epoch,
    /// A worker panicked: nobody waits any more, the job ends.
    poisoned: AtomicBool,
    /// How long the caller has waited for others in this job, ns.
    waited_ns: AtomicU64,
    /// What the first of them said.
    failure: Mutex<Option<String>>,
    stop: AtomicBool,
}

// SAFETY: `job` is written by the caller only while no worker runs one (before `start` advances,
// after `finish` did), and read by workers only in between; the closure it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only followed while `Pool::run` keeps the closure alive.
unsafe impl Send for Shared {}

/// Unwinds a worker whose barrier can never be complete.
struct Abandoned;

/// One of the threads of a running job.
pub struct Worker<'a> {
    /// Which one: 0 is the caller's thread.
    pub index: usize,
    /// How many there are: all of the pool's, or one. It may differ from job to job.
    pub count: usize,
    shared: &'a Shared,
}

impl Worker<'_> {
    /// Wait until every worker of the job is here. All must come equally often.
    pub fn barrier(&self) {
        let shared = self.shared;
        if self.count == 1 {
            return;
        }
        let phase = shared.phase.get();
        // A worker that panics sets the mark before it advances the phase for the last time: who
        // reads that phase also reads the mark.
        if shared.poisoned.load(Ordering::Acquire) {
            resume_unwind(Box::new(Abandoned));
        }
        if shared.arrived.fetch_add(1, Ordering::AcqRel) + 1 == shared.threads {
            shared.arrived.store(0, Ordering::Relaxed);
            shared.phase.advance();
        } else {
            let waited = shared.phase.wait_past(phase);
            if self.index == 0 && waited > 0 {
                shared.waited_ns.fetch_add(waited, Ordering::Relaxed);
            }
        }
        if shared.poisoned.load(Ordering::Acquire) {
            resume_unwind(Box::new(Abandoned));
        }
    }

    /// This worker's part of `total` equal pieces: contiguous, in order, complete.
    pub fn share(&self, total: usize) -> std::ops::Range<usize> {
        total * self.index / self.count..total * (self.index + 1) / self.count
    }
}

impl Shared {
    /// Run the current job as worker `index`, and take leave of it.
    fn work(&self, index: usize, job: &(dyn Fn(&Worker<'_>) + Sync)) {
        let worker = Worker { index, count: self.threads as usize, shared: self };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(&worker))) {
            if !panic.is::<Abandoned>() {
                self.failure().get_or_insert_with(|| text(panic.as_ref()));
            }
            self.poisoned.store(true, Ordering::Release);
            // Whoever waits in a barrier must come out of it.
            self.phase.advance();
        }
        if self.left.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.left.store(0, Ordering::Relaxed);
            self.finish.advance();
        }
    }

    fn failure(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a panic said.
fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let message = panic.downcast_ref::<&str>().map(ToString::to_string);
    message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".into())
}

/// A fixed number of threads.
pub struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    company: Company,
}

/// Whether the other threads are a help. Jobs are watched together for [`WATCH_NS`].
#[derive(Debug)]
struct Company {
    /// Time in jobs since the last verdict, ns, and how much of it was waiting.
    worked_ns: u64,
    waited_ns: u64,
    /// How long the next time alone will be, ns.
    solo_ns: u64,
    /// Until when jobs run alone.
    solo_until: Option<Instant>,
}

impl Default for Company {
    fn default() -> Self {
        Self { worked_ns: 0, waited_ns: 0, solo_ns: SOLO_NS_MIN, solo_until: None }
    }
}

impl Company {
    /// Whether to do without it now.
    fn solo(&mut self) -> bool {
        let solo = self.solo_until.is_some_and(|until| Instant::now() < until);
        if !solo {
            self.solo_until = None;
        }
        solo
    }

    /// Take a shared job into account. Alone, the caller would have worked for as long as all of
    /// them did together, or somewhat less where memory is the limit: so waiting for more than two
    /// thirds of the others' share of the time is worse than doing it alone.
    fn judge(&mut self, threads: u64, worked_ns: u64, waited_ns: u64) {
        self.worked_ns += worked_ns;
        self.waited_ns += waited_ns.min(worked_ns);
        if self.worked_ns < WATCH_NS {
            return;
        }
        if 3 * self.waited_ns * threads > 2 * self.worked_ns * (threads - 1) {
            self.solo_until = Some(Instant::now() + Duration::from_nanos(self.solo_ns));
            self.solo_ns = (2 * self.solo_ns).min(SOLO_NS_MAX);
        } else {
            self.solo_ns = SOLO_NS_MIN;
        }
        self.worked_ns = 0;
        self.waited_ns = 0;
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

impl Pool {
    /// `threads` workers: the caller's thread and `threads - 1` of its own.
    ///
    /// # Errors
    /// [`Error::Input`] if `threads` is 0 or above [`THREADS_MAX`], or a thread is refused.
    pub fn new(threads: usize) -> Result<Self> {
        Self::with_options(threads, PoolOptions::default())
    }

    /// The same, with a say in how the threads are scheduled.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_options(threads: usize, options: PoolOptions) -> Result<Self> {
        if threads == 0 || threads > THREADS_MAX {
            return Err(Error::input("threads", format!("{threads} is not in 1..={THREADS_MAX}")));
        }
        let shared = Arc::new(Shared {
            threads: threads as u32,
            start: Epoch::default(),
            job: UnsafeCell::new(None),
            left: AtomicU32::new(0),
            finish: Epoch::default(),
            arrived: AtomicU32::new(0),
            phase: Epoch::default(),
            poisoned: AtomicBool::new(false),
            waited_ns: AtomicU64::new(0),
            failure: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self { shared, handles: Vec::new(), company: Company::default() };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let handle = std::thread::Builder::new()
                .name(format!("qbtc-pool-{index}"))
                .spawn(move || serve(&shared, index, options))
                .map_err(|source| Error::input("threads", format!("no thread: {source}")))?;
            pool.handles.push(handle);
        }
        Ok(pool)
    }

    /// Workers of a job.
    pub fn threads(&self) -> usize {
        self.shared.threads as usize
    }

    /// Run `job` on every worker, or on the caller's thread alone if the others have lately been
    /// no help, and return when all have left it.
    ///
    /// # Errors
    /// [`Error::Worker`] if one of them panicked; the pool is usable again afterwards.
    pub fn run<F: Fn(&Worker<'_>) + Sync>(&mut self, job: F) -> Result<()> {
        let threads = self.threads();
        if threads == 1 || self.company.solo() {
            let worker = Worker { index: 0, count: 1, shared: &self.shared };
            return catch_unwind(AssertUnwindSafe(|| job(&worker)))
                .map_err(|panic| Error::Worker { reason: text(panic.as_ref()) });
        }
        let start = Instant::now();
        self.shared.waited_ns.store(0, Ordering::Relaxed);
        let waited = self.run_together(&job)? + self.shared.waited_ns.load(Ordering::Relaxed);
        self.company.judge(threads as u64, ns_since(start), waited);
        Ok(())
    }

    /// Run `job` on every worker, whatever was seen before. Returns how long the caller waited at
    /// the end, ns.
    pub(crate) fn run_together(&mut self, job: &(dyn Fn(&Worker<'_>) + Sync)) -> Result<u64> {
        let shared = &*self.shared;
        let finish = shared.finish.get();
        // SAFETY: only the lifetime changes. Workers follow the pointer between the two epochs
        // below, and this function returns only after the second; `&mut self` keeps runs apart.
        let erased: Job = unsafe { std::mem::transmute::<&(dyn Fn(&Worker<'_>) + Sync), Job>(job) };
        // SAFETY: no worker reads the cell before `start` advances.
        unsafe { *shared.job.get() = Some(erased) };
        shared.start.advance();
        shared.work(0, job);
        let waited = shared.finish.wait_past(finish);
        // SAFETY: every worker has left the job.
        unsafe { *shared.job.get() = None };
        if shared.poisoned.swap(false, Ordering::AcqRel) {
            shared.arrived.store(0, Ordering::Release);
            let reason = shared.failure().take().unwrap_or_else(|| "ended early".into());
            return Err(Error::Worker { reason });
        }
        Ok(waited)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.start.advance();
        for handle in self.handles.drain(..) {
            // Workers catch the panics of jobs; there is nothing to report here.
            drop(handle.join());
        }
    }
}

/// Life of one of the pool's own threads.
fn serve(shared: &Shared, index: usize, options: PoolOptions) {
    schedule(options);
    let mut seen = 0;
    loop {
        shared.start.wait_past(seen);
        seen = seen.wrapping_add(1);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: written before `start` advanced; the closure lives until `finish` advances,
        // which takes this worker's leave.
        let job = unsafe { (*shared.job.get()).map(|job| &*job) };
        let Some(job) = job else { return };
        shared.work(index, job);
    }
}

/// Best effort: a system that refuses leaves the thread as it is.
#[cfg(target_os = "linux")]
fn schedule(options: PoolOptions) {
    if options.batch {
        let parameter = libc::sched_param { sched_priority: 0 };
        // SAFETY: pid 0 is this thread; the parameter outlives the call.
        unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameter) };
    }
    if options.nice > 0 {
        // SAFETY: on Linux this changes this thread alone.
        unsafe { libc::nice(i32::from(options.nice.min(19))) };
    }
}

#[cfg(not(target_os = "linux"))]
fn schedule(_: PoolOptions) {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn every_worker_runs_every_job_once() {
        let mut pool = Pool::new(3).unwrap();
        let calls: [AtomicUsize; 3] = Default::default();
        for _ in 0..200 {
            pool.run_together(&|worker| {
                calls[worker.index].fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
        }
        assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 200));
    }

    #[test]
    fn a_barrier_separates_phases() {
        let mut pool = Pool::new(4).unwrap();
        let arrivals = AtomicUsize::new(0);
        pool.run(|worker| {
            for phase in 1..=500 {
                arrivals.fetch_add(1, Ordering::Relaxed);
                worker.barrier();
                assert_eq!(arrivals.load(Ordering::Relaxed), phase * worker.count);
                worker.barrier();
            }
        })
        .unwrap();
    }

    #[test]
    fn workers_that_slept_wake_up() {
        let mut pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(2));
            pool.run(|worker| {
                if worker.index == 0 {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                worker.barrier();
            })
            .unwrap();
        }
    }

    #[test]
    fn a_panic_becomes_an_error_and_the_pool_goes_on() {
        let mut pool = Pool::new(3).unwrap();
        for guilty in 0..3 {
            let error = pool
                .run_together(&|worker| {
                    worker.barrier();
                    assert!(worker.index != guilty, "worker {guilty} is done for");
                    worker.barrier();
                    worker.barrier();
                })
                .unwrap_err();
            assert!(error.to_string().contains("done for"), "{error}");
            let count = AtomicUsize::new(0);
            pool.run_together(&|worker| {
                count.fetch_add(1, Ordering::Relaxed);
                worker.barrier();
            })
            .unwrap();
            assert_eq!(count.into_inner(), 3);
        }
    }

    #[test]
    fn jobs_run_alone_while_others_keep_the_caller_waiting() {
        let mut pool = Pool::new(2).unwrap();
        let mut job = |sleep_ms: u64| {
            let count = AtomicUsize::new(0);
            pool.run(|worker| {
                count.store(worker.count, Ordering::Relaxed);
                if worker.index == 1 {
                    std::thread::sleep(Duration::from_millis(sleep_ms));
                }
                worker.barrier();
            })
            .unwrap();
            count.into_inner()
        };
        while job(WATCH_NS / 1_000_000) == 2 {}
        while job(0) == 1 {}
    }

    #[test]
    fn a_caller_that_seldom_waits_keeps_its_company() {
        let mut company = Company::default();
        company.judge(2, WATCH_NS, WATCH_NS / 3);
        assert!(!company.solo());
        company.judge(2, WATCH_NS, 2 * WATCH_NS / 3);
        assert!(company.solo());
        assert_eq!(company.solo_ns, 2 * SOLO_NS_MIN);
    }

    #[test]
    fn shares_are_contiguous_and_complete() {
        let mut pool = Pool::new(3).unwrap();
        let seen = Mutex::new(Vec::new());
        pool.run_together(&|worker| {
            seen.lock().unwrap().push((worker.index, worker.share(10)));
        })
        .unwrap();
        let mut seen = seen.into_inner().unwrap();
        seen.sort_by_key(|(index, _)| *index);
        assert_eq!(seen, [(0, 0..3), (1, 3..6), (2, 6..10)]);
    }

    #[test]
    fn zero_threads_are_refused() {
        assert!(Pool::new(0).is_err());
        assert!(Pool::new(THREADS_MAX + 1).is_err());
    }
}
