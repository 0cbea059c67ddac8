//! The small steps between matrix products: norms, rotations, activations, half precision.
//!
//! All work on one token's row. A row's result has the same bits whatever the rest of the step is.
#![expect(unsafe_code, reason = "kernels are compiled per instruction set and take raw rows")]
#![expect(
    clippy::inline_always,
    reason = "a kernel is only fast when inlined where its features are on"
)]

pub mod vector;

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::f32::consts::LOG2_E;
use std::ptr::NonNull;

use crate::llm::config::{Rope, RopeStyle};
use crate::signal::isa::Isa;
use vector::{LANES, Vector, dispatched};

/// Largest magnitude that half precision rounds to a finite number, exclusive.
pub const F16_BOUND: f32 = 65_520.0;

#[inline(always)]
unsafe fn rms_norm_of<V: Vector>(x: &[f32], weight: &[f32], epsilon: f32, to: &mut [f32]) -> f32 {
    let (x_at, weight_at, to_at) = (x.as_ptr(), weight.as_ptr(), to.as_mut_ptr());
    // SAFETY: `rms_norm` has checked that the three have one length, whole vectors.
    unsafe {
        let mut squares = V::splat(0.0);
        for i in (0..x.len()).step_by(LANES) {
            let v = V::load(x_at.add(i));
            squares = v.mul_add(v, squares);
        }
        let mean = squares.sum() / x.len() as f32;
        let scale = V::splat(1.0 / (mean + epsilon).sqrt());
        for i in (0..x.len()).step_by(LANES) {
            let v = V::load(x_at.add(i)).mul(scale).mul(V::load(weight_at.add(i)));
            v.store(to_at.add(i));
        }
        mean
    }
}

#[inline(always)]
unsafe fn swiglu_of<V: Vector>(gate: &mut [f32], up: &[f32]) {
    let (gate_at, up_at) = (gate.as_mut_ptr(), up.as_ptr());
    // SAFETY: `swiglu` has checked that both have one length, whole vectors.
    unsafe {
        for i in (0..gate.len()).step_by(LANES) {
            let g = V::load(gate_at.add(i));
            let e = g.mul(V::splat(-LOG2_E)).exp2();
            let silu = g.div(V::splat(1.0).add(e));
            silu.mul(V::load(up_at.add(i))).store(gate_at.add(i));
        }
    }
}

#[inline(always)]
unsafe fn to_f16_of<V: Vector>(from: &[f32], to: &mut [u16]) {
    // SAFETY: `to_f16` has checked that both have one length, whole vectors.
    unsafe {
        for i in (0..from.len()).step_by(LANES) {
            V::load(from.as_ptr().add(i)).store_f16(to.as_mut_ptr().add(i));
        }
    }
}

/// Whether all are finite: `x - x` is 0 for a finite number and NaN for any other.
#[inline(always)]
unsafe fn finite_of<V: Vector>(x: &[f32]) -> bool {
    // SAFETY: whole vectors first, then single numbers; all inside the slice.
    unsafe {
        let mut zero = V::splat(0.0);
        let whole = x.len() / LANES * LANES;
        for i in (0..whole).step_by(LANES) {
            let v = V::load(x.as_ptr().add(i));
            zero = zero.add(v.sub(v));
        }
        zero.sum() == 0.0 && x[whole..].iter().all(|x| x.is_finite())
    }
}

dispatched! {
    unsafe fn rms_norm_on(x: &[f32], weight: &[f32], epsilon: f32, to: &mut [f32]) -> f32 = rms_norm_of;
    unsafe fn swiglu_on(gate: &mut [f32], up: &[f32]) = swiglu_of;
    unsafe fn to_f16_on(from: &[f32], to: &mut [u16]) = to_f16_of;
    unsafe fn finite_on(x: &[f32]) -> bool = finite_of;
}

/// `x / sqrt(mean(x^2) + epsilon) * weight`; returns the mean of the squares, which is not finite
/// if any number of `x` is not.
pub(crate) fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], epsilon: f32, to: &mut [f32]) -> f32 {
    assert!(x.len().is_multiple_of(LANES), "Invariant: rows are whole vectors");
    assert!(weight.len() == x.len() && to.len() == x.len(), "Invariant: one length");
    // SAFETY: lengths are checked; the model was loaded for a set this processor has.
    unsafe { rms_norm_on(isa, x, weight, epsilon, to) }
}

/// `gate = silu(gate) * up`.
pub(crate) fn swiglu(isa: Isa, gate: &mut [f32], up: &[f32]) {
    assert!(gate.len().is_multiple_of(LANES), "Invariant: rows are whole vectors");
    assert!(gate.len() == up.len(), "Invariant: one length");
    // SAFETY: lengths are checked; the model was loaded for a set this processor has.
    unsafe { swiglu_on(isa, gate, up) }
}

/// Round to half precision, ties to even.
pub(crate) fn to_f16(isa: Isa, from: &[f32], to: &mut [u16]) {
    assert!(from.len().is_multiple_of(LANES), "Invariant: rows are whole vectors");
    assert!(from.len() == to.len(), "Invariant: one length");
    // SAFETY: lengths are checked; the model was loaded for a set this processor has.
    unsafe { to_f16_on(isa, from, to) }
}

/// Whether all numbers are finite.
pub(crate) fn finite(isa: Isa, x: &[f32]) -> bool {
    // SAFETY: any slice will do; the model was loaded for a set this processor has.
    unsafe { finite_on(isa, x) }
}

/// Whether all numbers stay finite in half precision.
pub(crate) fn fits_f16(x: &[f32]) -> bool {
    x.iter().fold(true, |fits, x| fits & (x.abs() < F16_BOUND))
}

/// Positions of a block of [`RopeTable`].
const ROPE_BLOCK: usize = 256;

/// Angles of every position: those of its block plus those within the block, so that a long
/// context needs no long table. In f64; a row is rounded once.
#[derive(Debug)]
pub(crate) struct RopeTable {
    style: RopeStyle,
    /// Pairs of a head.
    half: usize,
    /// `(cos, sin)` of `ROPE_BLOCK * block`, `(blocks, half)`.
    blocks: Vec<(f64, f64)>,
    /// `(cos, sin)` of positions below `ROPE_BLOCK`, `(ROPE_BLOCK, half)`.
    within: Vec<(f64, f64)>,
}

impl RopeTable {
    /// For sequences of up to `context` tokens.
    pub(crate) fn new(rope: &Rope, context: usize) -> Self {
        let table = |rows: usize, step: usize| {
            let angle = |row: usize, rate: &f64| ((row * step) as f64 * rate).sin_cos();
            let row = |row| rope.frequencies.iter().map(move |rate| angle(row, rate));
            (0..rows).flat_map(row).map(|(sin, cos)| (cos, sin)).collect()
        };
        Self {
            style: rope.style,
            half: rope.dims / 2,
            blocks: table(context.div_ceil(ROPE_BLOCK), ROPE_BLOCK),
            within: table(ROPE_BLOCK, 1),
        }
    }

    /// Numbers of a row of angles.
    pub(crate) fn row_len(&self) -> usize {
        2 * self.half
    }

    /// The cosines, then the sines, of a position's angles.
    pub(crate) fn angles(&self, position: usize, to: &mut [f32]) {
        let far = &self.blocks[position / ROPE_BLOCK * self.half..][..self.half];
        let near = &self.within[position % ROPE_BLOCK * self.half..][..self.half];
        let (cos, sin) = to.split_at_mut(self.half);
        for (i, ((c1, s1), (c2, s2))) in far.iter().zip(near).enumerate() {
            cos[i] = (c1 * c2 - s1 * s2) as f32;
            sin[i] = (s1 * c2 + c1 * s2) as f32;
        }
    }

    /// Rotate a head of one token in place by its row of angles; numbers beyond the rotated ones
    /// stay.
    pub(crate) fn rotate(&self, head: &mut [f32], angles: &[f32]) {
        let (cos, sin) = angles.split_at(self.half);
        let rotated = &mut head[..2 * self.half];
        match self.style {
            RopeStyle::Interleaved => {
                let (pairs, _) = rotated.as_chunks_mut::<2>();
                for ((pair, cos), sin) in pairs.iter_mut().zip(cos).zip(sin) {
                    let [a, b] = *pair;
                    *pair = [a * cos - b * sin, a * sin + b * cos];
                }
            }
            RopeStyle::Halves => {
                let (first, second) = rotated.split_at_mut(self.half);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }
}

/// Numbers at addresses that are multiples of a cache line; the system gives the memory as it is
/// used.
#[derive(Debug)]
pub(crate) struct Aligned {
    first: NonNull<f32>,
    len: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Aligned {}
// SAFETY: as above; shared borrows only read.
unsafe impl Sync for Aligned {}

impl Aligned {
    fn layout(len: usize) -> Layout {
        Layout::array::<f32>(len.max(1))
            .and_then(|layout| layout.align_to(64))
            .expect("fits the address space")
    }

    /// `len` zeros.
    pub(crate) fn new(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the size is not 0.
        let first = unsafe { alloc_zeroed(layout) };
        let first = NonNull::new(first.cast()).unwrap_or_else(|| handle_alloc_error(layout));
        Self { first, len }
    }

    /// All numbers.
    pub(crate) fn as_slice(&self) -> &[f32] {
        // SAFETY: `len` numbers were allocated and are initialised.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }

    /// All numbers.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: `len` numbers were allocated and are initialised; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.first.as_ptr().cast(), Self::layout(self.len)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: usize, seed: f32) -> Vec<f32> {
        (0..n).map(|i| ((i as f32 + seed) * 0.731).sin() * 3.0).collect()
    }

    fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.available())
    }

    #[test]
    fn rms_norm_divides_by_the_root_mean_square() {
        let (x, weight) = (row(64, 0.3), row(64, 5.0));
        let mean = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / 64.0;
        for isa in available() {
            let mut y = vec![0.0; 64];
            rms_norm(isa, &x, &weight, 1e-5, &mut y);
            for ((&x, &w), &y) in x.iter().zip(&weight).zip(&y) {
                let expected = f64::from(x) / (mean + 1e-5).sqrt() * f64::from(w);
                assert!((f64::from(y) - expected).abs() < 1e-6 * expected.abs().max(1e-3));
            }
            let mut bad = x.clone();
            bad[17] = f32::NAN;
            assert!(!rms_norm(isa, &bad, &weight, 1e-5, &mut y).is_finite());
        }
    }

    #[test]
    fn swiglu_is_silu_of_the_gate_times_up_also_far_from_zero() {
        let mut gate = row(64, 0.1);
        gate[3] = -200.0;
        gate[4] = 200.0;
        let up = row(64, 9.0);
        for isa in available() {
            let mut y = gate.clone();
            swiglu(isa, &mut y, &up);
            for ((&g, &u), &y) in gate.iter().zip(&up).zip(&y) {
                let expected = f64::from(g) / (1.0 + (-f64::from(g)).exp()) * f64::from(u);
                assert!((f64::from(y) - expected).abs() <= 2e-6 * expected.abs() + 1e-30, "{g}");
            }
        }
    }

    #[test]
    fn a_number_that_is_not_finite_is_seen_wherever_it_is() {
        for isa in available() {
            for n in [1, 15, 16, 50] {
                let mut x = row(n, 1.0);
                assert!(finite(isa, &x));
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    for at in 0..n {
                        let good = std::mem::replace(&mut x[at], bad);
                        assert!(!finite(isa, &x) && !fits_f16(&x));
                        x[at] = good;
                    }
                }
            }
        }
        assert!(fits_f16(&[65_519.0, -65_519.0]) && !fits_f16(&[65_520.0]));
        assert!(
            half::f16::from_f32(65_519.0).is_finite()
                && half::f16::from_f32(65_520.0).is_infinite()
        );
    }

    #[test]
    fn rotation_turns_pairs_by_position_and_leaves_the_rest() {
        let frequencies: Vec<f64> = (0..4).map(|i| 10_000_f64.powf(-f64::from(i) / 4.0)).collect();
        for style in [RopeStyle::Interleaved, RopeStyle::Halves] {
            let rope = Rope { style, dims: 8, frequencies: frequencies.clone() };
            let table = RopeTable::new(&rope, 1000);
            let mut angles = vec![0.0; table.row_len()];
            let head = row(12, 2.0);
            for position in [3, 255, 256, 999] {
                let mut turned = head.clone();
                table.angles(position, &mut angles);
                table.rotate(&mut turned, &angles);
                assert_eq!(turned[8..], head[8..]);
                for (i, frequency) in frequencies.iter().enumerate() {
                    let (a, b) = match style {
                        RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                        RopeStyle::Halves => (i, i + 4),
                    };
                    let angle = position as f64 * frequency;
                    let (x, y) = (f64::from(head[a]), f64::from(head[b]));
                    let expected = x * angle.cos() - y * angle.sin();
                    assert!((f64::from(turned[a]) - expected).abs() < 1e-6);
                    let expected = x * angle.sin() + y * angle.cos();
                    assert!((f64::from(turned[b]) - expected).abs() < 1e-6);
                }
            }
            let mut still = head.clone();
            table.angles(0, &mut angles);
            table.rotate(&mut still, &angles);
            assert_eq!(still, head);
        }
    }
}
