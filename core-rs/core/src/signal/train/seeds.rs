//! Several fits that differ by their seed, in parallel, and the random numbers they use.

use std::{
    f64::consts::TAU,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::{EpochLoss, Fit, Network, Real, Rows, Schedule, fit::fit};
use crate::{Error, Result};

const TICK: Duration = Duration::from_millis(100);

/// Uniform in [0, 1), 53 bits.
pub fn uniform(rng: &mut Pcg64Mcg) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// Standard normal (Box-Muller, one of the pair).
pub fn normal(rng: &mut Pcg64Mcg) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
    radius * (TAU * uniform(rng)).cos()
}

/// Fisher-Yates.
pub fn shuffle(rng: &mut Pcg64Mcg, order: &mut [u32]) {
    for i in (1..order.len()).rev() {
        order.swap(i, (uniform(rng) * (i + 1) as f64) as usize);
    }
}

/// Where a fit starts.
pub struct Start<T, N> {
    /// The network, with its scratch memory.
    pub network: N,
    /// First weights.
    pub params: Vec<T>,
    /// What the decay pulls to.
    pub anchor: Vec<T>,
    /// The start is a model in its own right and is kept if no epoch betters it.
    pub is_model: bool,
}

/// What an observer of [`fit_seeds`] hears, on its own thread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// A fit finished an epoch (1 is the first).
    Epoch {
        /// Index into the seeds.
        fit: usize,
        /// Epochs done.
        epoch: usize,
        /// Its losses.
        loss: EpochLoss,
    },
    /// A fit is done (early or not).
    Done {
        /// Index into the seeds.
        fit: usize,
    },
    /// Nothing new for 100 ms: time to look for an interrupt.
    Tick,
}

/// Fits once per seed on up to `threads` threads. `start` draws the first weights from the seed's
/// generator. The result does not depend on `threads`.
///
/// `observe` runs on the calling thread; when it returns `false` every fit stops and the result is
/// `None`.
///
/// # Errors
/// An impossible schedule, no seeds, a start that failed, or a loss that diverged.
///
/// # Panics
/// A network panicked on its thread.
pub fn fit_seeds<T: Real, N: Network<T>>(
    start: impl Fn(&mut Pcg64Mcg) -> Result<Start<T, N>> + Sync,
    train: Rows<'_, T>,
    validation: Rows<'_, T>,
    schedule: &Schedule,
    seeds: &[u64],
    threads: usize,
    mut observe: impl FnMut(Event) -> bool,
) -> Result<Option<Vec<Fit<T>>>> {
    schedule.check()?;
    if seeds.is_empty() || train.len() > u32::MAX as usize {
        return Err(Error::input("seeds", "none given, or more than 4 billion rows"));
    }
    let stop = AtomicBool::new(false);
    let next = AtomicUsize::new(0);
    let fits: Mutex<Vec<Option<Fit<T>>>> = Mutex::new(seeds.iter().map(|_| None).collect());
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let (sender, receiver) = mpsc::channel();

    let work = |sender: mpsc::Sender<Event>| {
        while let Some((index, &seed)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            seeds.get(index).map(|seed| (index, seed))
        } {
            let mut rng = Pcg64Mcg::seed_from_u64(seed);
            let mut epoch = 0;
            let tell = |loss| {
                epoch += 1;
                // The receiver outlives the workers; a lost message is only a lost progress line.
                let _ = sender.send(Event::Epoch { fit: index, epoch, loss });
            };
            let done = start(&mut rng)
                .and_then(|start| fit(start, train, validation, schedule, &mut rng, &stop, tell));
            match done {
                Ok(done) => fits.lock().expect("a worker panicked")[index] = done,
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    failure.lock().expect("a worker panicked").get_or_insert(error);
                }
            }
            let _ = sender.send(Event::Done { fit: index });
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, seeds.len()) {
            let sender = sender.clone();
            scope.spawn(|| work(sender));
        }
        drop(sender);
        loop {
            let event = match receiver.recv_timeout(TICK) {
                Ok(event) => event,
                Err(mpsc::RecvTimeoutError::Timeout) => Event::Tick,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            };
            if !stop.load(Ordering::Relaxed) && !observe(event) {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    if let Some(error) = failure.into_inner().expect("a worker panicked") {
        return Err(error);
    }
    Ok(fits.into_inner().expect("a worker panicked").into_iter().collect())
}
