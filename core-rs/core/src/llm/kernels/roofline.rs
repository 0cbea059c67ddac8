//! What this machine can do at best: integer products a second, bytes read a second. A speed of
//! the kernels means little without them, so benchmarks measure both in the same run.
//!
//! Both take the best of many short slices: on a shared machine a slice is either disturbed or it
//! is not, and the best one is what the processor can do.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::Simd;
use super::arena::Arena;
use crate::Result;
use crate::pool::Pool;

/// Dot-product instructions of one slice and thread.
const SLICE_INSTRUCTIONS: usize = 320_000;

/// Best rate of 8-bit multiplications and additions (two operations a product) of `pool` with
/// `simd`'s instructions, all workers at once, operations per second; tried for `time`.
///
/// # Errors
/// As [`Pool::run`]; [`crate::Error::Input`] if the processor does not have `simd`.
pub fn int8_peak(pool: &mut Pool, simd: Simd, time: Duration) -> Result<f64> {
    if !simd.available() {
        return Err(crate::Error::input("simd", format!("no {} here", simd.name())));
    }
    let operations = match simd {
        Simd::Scalar => 2,
        Simd::Avx2 | Simd::Avx2Vnni => 64,
        Simd::Avx512Vnni => 128,
    };
    let operations = |workers| (operations * SLICE_INSTRUCTIONS * workers) as f64;
    best_rate(pool, time, operations, |_| match simd {
        // SAFETY: availability was checked.
        #[cfg(target_arch = "x86_64")]
        Simd::Avx512Vnni => unsafe { super::avx512::products(SLICE_INSTRUCTIONS) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Simd::Avx2 => unsafe { super::avx2::products(SLICE_INSTRUCTIONS) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Simd::Avx2Vnni => unsafe { super::avx2::products_vnni(SLICE_INSTRUCTIONS) },
        _ => products(SLICE_INSTRUCTIONS),
    })
}

/// Best rate of reading `bytes` in sequence, each worker its own part, bytes per second; over and
/// over for `time`. What fits into a cache is read from there: pass the weights' size.
///
/// # Errors
/// As [`Pool::run`]; [`crate::Error::Input`] if there is no memory.
pub fn read_bandwidth(pool: &mut Pool, bytes: usize, time: Duration) -> Result<f64> {
    let mut memory = Arena::default().piece(bytes.max(1 << 12))?;
    memory.bytes_mut().fill(1);
    let (words, _) = memory.bytes().as_chunks::<64>();
    let read = (words.len() * 64) as f64;
    best_rate(
        pool,
        time,
        |_| read,
        |(index, count)| {
            let part = words.len() * index / count..words.len() * (index + 1) / count;
            let mut sums = [0_u8; 64];
            for line in &words[part] {
                ahead(line.as_ptr());
                for (sum, byte) in sums.iter_mut().zip(line) {
                    *sum ^= byte;
                }
            }
            black_box(sums);
        },
    )
}

/// Fetch what lies ahead of `line`, as the kernels do.
fn ahead(line: *const u8) {
    // SAFETY: a prefetch may name any address.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(super::PREFETCH_BYTES).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Best rate of `slice`, on all workers at once: `work(workers)` per second.
fn best_rate(
    pool: &mut Pool,
    time: Duration,
    work: impl Fn(usize) -> f64,
    slice: impl Fn((usize, usize)) + Sync,
) -> Result<f64> {
    let begin = Instant::now();
    let mut best = 0.0_f64;
    while begin.elapsed() < time || best == 0.0 {
        let start = Instant::now();
        pool.run_together(&|worker| slice((worker.index, worker.count)))?;
        best = best.max(work(pool.threads()) / start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// `count` scalar products.
fn products(count: usize) {
    let mut sums = [0_i32; 8];
    let (a, b) = (black_box(3_i8), black_box(5_u8));
    for _ in 0..count / sums.len() {
        for sum in &mut sums {
            *sum = black_box(*sum).wrapping_add(i32::from(a) * i32::from(b));
        }
    }
    black_box(sums);
}
