//! Sixteen f32 lanes, three times: AVX-512, AVX2 (two registers), plain Rust.
//!
//! Kernels are written once over [`Vector`] and compiled once per instruction set by
//! `dispatched!`. The lanes mean the same everywhere, so the sets differ only in the rounding of
//! `mul_add` (fused, except in plain Rust).
#![expect(unsafe_code, reason = "vector registers are loaded and stored through pointers")]
#![expect(
    clippy::inline_always,
    reason = "a kernel is only fast when inlined where its features are on"
)]

use std::f32::consts::LN_2;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// 2^r on [-1/2, 1/2] is `1 + r * q(r)`: interpolated at the Chebyshev nodes; with r exact the
/// relative error is below 2.1e-7, and 2^0 is exactly 1.
const EXP2: [f32; 5] = [LN_2, 0.240_223_5, 0.055_503_81, 0.009_666_368, 0.001_338_130_2];
/// Below this `exp2` is zero: results stay normal numbers.
const EXP2_MIN: f32 = -126.0;
/// From here on `exp2` is infinite.
const EXP2_MAX: f32 = 128.0;

/// Sixteen f32.
///
/// # Safety
/// Every function: the processor has the instruction set of the implementor, pointers are valid for
/// sixteen numbers (no alignment needed). To be called only inside a function compiled with that
/// instruction set.
pub trait Vector: Copy {
    /// Thirty-two registers: wide tiles pay.
    const WIDE: bool;
    /// Ask for the cache line at `from`, which need not be valid.
    fn prefetch(from: *const u16);
    /// Sixteen numbers.
    unsafe fn load(from: *const f32) -> Self;
    /// Sixteen half-precision numbers, exactly.
    unsafe fn load_f16(from: *const u16) -> Self;
    /// Store all lanes.
    unsafe fn store(self, to: *mut f32);
    /// Store all lanes rounded to half precision, ties to even.
    unsafe fn store_f16(self, to: *mut u16);
    /// The same number in all lanes.
    unsafe fn splat(value: f32) -> Self;
    /// Sum of lanes of two.
    unsafe fn add(self, other: Self) -> Self;
    /// Difference.
    unsafe fn sub(self, other: Self) -> Self;
    /// Product.
    unsafe fn mul(self, other: Self) -> Self;
    /// Quotient.
    unsafe fn div(self, other: Self) -> Self;
    /// `self * b + c`.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// The larger of two.
    unsafe fn max(self, other: Self) -> Self;
    /// All lanes added, in a fixed order (halves, quarters, ...).
    unsafe fn sum(self) -> f32;
    /// The largest lane.
    unsafe fn largest(self) -> f32;
    /// The first `count` lanes; the others become `other`.
    unsafe fn keep_first(self, count: usize, other: f32) -> Self;
    /// 2 to the power of each lane: relative error below 1e-6 where the result is normal, exactly 1
    /// at 0, 0 below -126 (also at minus infinity), infinity from 128; NaN is not kept.
    unsafe fn exp2(self) -> Self;
}

/// The polynomial of `exp2`.
#[inline(always)]
unsafe fn exp2_fraction<V: Vector>(r: V) -> V {
    // SAFETY: the caller keeps the contract of `Vector`.
    unsafe {
        let mut p = V::splat(EXP2[4]);
        p = p.mul_add(r, V::splat(EXP2[3]));
        p = p.mul_add(r, V::splat(EXP2[2]));
        p = p.mul_add(r, V::splat(EXP2[1]));
        p = p.mul_add(r, V::splat(EXP2[0]));
        p.mul_add(r, V::splat(1.0))
    }
}

/// Plain Rust: what the others are compared with.
#[derive(Clone, Copy)]
pub struct Scalar([f32; LANES]);

impl Scalar {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }

    /// Halves against each other until one lane is left, as a register would be folded.
    #[inline(always)]
    fn fold(mut self, f: impl Fn(f32, f32) -> f32) -> f32 {
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                self.0[i] = f(self.0[i], self.0[i + half]);
            }
        }
        self.0[0]
    }
}

impl Vector for Scalar {
    const WIDE: bool = false;

    #[inline(always)]
    fn prefetch(_: *const u16) {}

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: valid for sixteen numbers, by the contract of `Vector`.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: valid for sixteen numbers, by the contract of `Vector`.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Self(bits.map(|bits| half::f16::from_bits(bits).to_f32_const()))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: valid for sixteen numbers, by the contract of `Vector`.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        let bits = self.0.map(|value| half::f16::from_f32_const(value).to_bits());
        // SAFETY: valid for sixteen numbers, by the contract of `Vector`.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(bits) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        self.fold(|a, b| a + b)
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.fold(|a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn keep_first(self, count: usize, other: f32) -> Self {
        Self(std::array::from_fn(|i| if i < count { self.0[i] } else { other }))
    }

    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        // Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
        const ROUND: f32 = 12_582_912.0;
        let x = self.0.map(|x| x.clamp(EXP2_MIN, EXP2_MAX));
        let n = x.map(|x| (x + ROUND) - ROUND);
        let r = Self(std::array::from_fn(|i| x[i] - n[i]));
        // SAFETY: plain Rust runs anywhere.
        let p = unsafe { exp2_fraction(r) }.0;
        Self(std::array::from_fn(|i| {
            // n = 128 gives the bits of infinity.
            let scale = f32::from_bits(((n[i] as i32 + 127) as u32) << 23);
            if self.0[i] >= EXP2_MIN { p[i] * scale } else { 0.0 }
        }))
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[cfg_attr(
        not(test),
        expect(clippy::wildcard_imports, reason = "sixty intrinsics, all with prefixes")
    )]
    use std::arch::x86_64::*;

    use super::{EXP2_MAX, EXP2_MIN, Vector, exp2_fraction};

    const ROUND: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

    /// One register.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    // SAFETY (all blocks below): the caller keeps the contract of `Vector`.
    impl Vector for Avx512 {
        const WIDE: bool = true;

        #[inline(always)]
        fn prefetch(from: *const u16) {
            // SAFETY: a prefetch has no effect but on caches, wherever it points.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: see above.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn store_f16(self, to: *mut u16) {
            // SAFETY: see above.
            unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<ROUND>(self.0)) }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_div_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
        }

        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_max_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: see above.
            unsafe {
                Avx2(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0)).sum()
            }
        }

        #[inline(always)]
        unsafe fn largest(self) -> f32 {
            // SAFETY: see above.
            unsafe {
                Avx2(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0)).largest()
            }
        }

        #[inline(always)]
        unsafe fn keep_first(self, count: usize, other: f32) -> Self {
            let mask = if count >= 16 { 0xffff } else { (1_u16 << count) - 1 };
            // SAFETY: see above.
            Self(unsafe { _mm512_mask_blend_ps(mask, _mm512_set1_ps(other), self.0) })
        }

        #[inline(always)]
        unsafe fn exp2(self) -> Self {
            // SAFETY: see above.
            unsafe {
                let normal = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(self.0, _mm512_set1_ps(EXP2_MIN));
                let x = _mm512_min_ps(self.0, _mm512_set1_ps(EXP2_MAX));
                let n = _mm512_roundscale_ps::<ROUND>(x);
                let p = exp2_fraction(Self(_mm512_sub_ps(x, n)));
                Self(_mm512_maskz_scalef_ps(normal, p.0, n))
            }
        }
    }

    /// Two registers: lanes 0 to 7, lanes 8 to 15.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    impl Vector for Avx2 {
        const WIDE: bool = false;

        #[inline(always)]
        fn prefetch(from: *const u16) {
            Avx512::prefetch(from);
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            // SAFETY: see above.
            unsafe {
                Self(
                    _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
                )
            }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: see above.
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }

        #[inline(always)]
        unsafe fn store_f16(self, to: *mut u16) {
            // SAFETY: see above.
            unsafe {
                _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
                _mm_storeu_si128(
                    to.add(8).cast(),
                    _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1),
                );
            }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
        }

        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: see above.
            unsafe {
                let a = _mm256_add_ps(self.0, self.1);
                let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
                _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps::<1>(a, a)))
            }
        }

        #[inline(always)]
        unsafe fn largest(self) -> f32 {
            // SAFETY: see above.
            unsafe {
                let a = _mm256_max_ps(self.0, self.1);
                let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
                _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps::<1>(a, a)))
            }
        }

        #[inline(always)]
        unsafe fn keep_first(self, count: usize, other: f32) -> Self {
            // SAFETY: see above.
            unsafe {
                let count = _mm256_set1_epi32(count.min(16) as i32);
                let low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                let high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
                let other = _mm256_set1_ps(other);
                let blend = |x, lane| {
                    let keep = _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, lane));
                    _mm256_blendv_ps(other, x, keep)
                };
                Self(blend(self.0, low), blend(self.1, high))
            }
        }

        #[inline(always)]
        unsafe fn exp2(self) -> Self {
            // SAFETY: see above.
            unsafe {
                let least = _mm256_set1_ps(EXP2_MIN);
                let clamp = |x| _mm256_min_ps(_mm256_max_ps(x, least), _mm256_set1_ps(EXP2_MAX));
                let x = Self(clamp(self.0), clamp(self.1));
                let n = Self(_mm256_round_ps::<ROUND>(x.0), _mm256_round_ps::<ROUND>(x.1));
                let p = exp2_fraction(x.sub(n));
                let scale = |p, n, x| {
                    let bias = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                    // n = 128 gives the bits of infinity.
                    let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(bias));
                    let normal = _mm256_cmp_ps::<_CMP_GE_OQ>(x, least);
                    _mm256_and_ps(_mm256_mul_ps(p, power), normal)
                };
                Self(scale(p.0, n.0, self.0), scale(p.1, n.1, self.1))
            }
        }
    }
}

/// Compiles a generic kernel `generic::<V: Vector>` for every instruction set and chooses at run
/// time: `dispatched! { /// doc  unsafe fn name(a: A) -> R = generic; }`.
macro_rules! dispatched {
    ($($(#[$doc:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $type:ty),* $(,)?)
        $(-> $ret:ty)? = $generic:ident;)*) => {$(
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name(isa: $crate::signal::isa::Isa, $($arg: $type),*) $(-> $ret)? {
            use $crate::signal::isa::Isa;
            use $crate::llm::ops::vector;
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx512($($arg: $type),*) $(-> $ret)? {
                    // SAFETY: the features are on; the rest is the caller's contract.
                    unsafe { $generic::<vector::Avx512>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx2($($arg: $type),*) $(-> $ret)? {
                    // SAFETY: the features are on; the rest is the caller's contract.
                    unsafe { $generic::<vector::Avx2>($($arg),*) }
                }
                // SAFETY: a set is only chosen where the processor has it; the rest is the
                // caller's contract.
                unsafe {
                    match isa {
                        Isa::Avx512 => avx512($($arg),*),
                        Isa::Avx2 => avx2($($arg),*),
                        Isa::Scalar => $generic::<vector::Scalar>($($arg),*),
                    }
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                let _ = isa;
                // SAFETY: plain Rust runs anywhere; the rest is the caller's contract.
                unsafe { $generic::<vector::Scalar>($($arg),*) }
            }
        }
    )*};
}
pub(crate) use dispatched;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::isa::Isa;

    #[inline(always)]
    unsafe fn exp2_of<V: Vector>(x: &[f32; LANES], to: &mut [f32; LANES]) {
        // SAFETY: arrays of sixteen.
        unsafe { V::load(x.as_ptr()).exp2().store(to.as_mut_ptr()) }
    }

    #[inline(always)]
    unsafe fn folds_of<V: Vector>(x: &[f32; LANES], keep: usize) -> [f32; 2] {
        // SAFETY: an array of sixteen.
        unsafe {
            let v = V::load(x.as_ptr());
            [v.sum(), v.keep_first(keep, f32::NEG_INFINITY).largest()]
        }
    }

    #[inline(always)]
    unsafe fn halves_of<V: Vector>(x: &[f32; LANES], to: &mut [u16; LANES]) -> f32 {
        // SAFETY: arrays of sixteen.
        unsafe {
            V::load(x.as_ptr()).store_f16(to.as_mut_ptr());
            V::load_f16(to.as_ptr()).largest()
        }
    }

    dispatched! {
        unsafe fn exp2(x: &[f32; LANES], to: &mut [f32; LANES]) = exp2_of;
        unsafe fn folds(x: &[f32; LANES], keep: usize) -> [f32; 2] = folds_of;
        unsafe fn halves(x: &[f32; LANES], to: &mut [u16; LANES]) -> f32 = halves_of;
    }

    fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.available())
    }

    #[test]
    fn exp2_is_accurate_to_a_millionth_and_exact_at_its_ends() {
        for isa in available() {
            let mut worst = 0.0_f64;
            for i in 0..20_000 {
                let x: [f32; LANES] =
                    std::array::from_fn(|lane| -125.9 + (i * 16 + lane) as f32 * 7.9e-4);
                let mut y = [0.0; LANES];
                // SAFETY: the set is available.
                unsafe { exp2(isa, &x, &mut y) };
                for (&x, &y) in x.iter().zip(&y) {
                    worst = worst.max((f64::from(y) / f64::from(x).exp2() - 1.0).abs());
                }
            }
            assert!(worst < 1e-6, "{} {worst:e}", isa.name());
            let mut x = [0.0; LANES];
            x[..5].copy_from_slice(&[0.0, f32::NEG_INFINITY, -126.5, 200.0, f32::INFINITY]);
            let mut y = [7.0; LANES];
            // SAFETY: the set is available.
            unsafe { exp2(isa, &x, &mut y) };
            assert_eq!(y[..5], [1.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY], "{}", isa.name());
        }
    }

    #[test]
    fn every_set_folds_in_the_same_order() {
        let x: [f32; LANES] = std::array::from_fn(|i| (i as f32 * 1.7).sin() * 1e3);
        for keep in 1..=LANES {
            let largest = x[..keep].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // SAFETY: plain Rust runs anywhere.
            let expected = unsafe { folds(Isa::Scalar, &x, keep) };
            assert_eq!(expected[1], largest);
            for isa in available() {
                // SAFETY: the set is available.
                assert_eq!(unsafe { folds(isa, &x, keep) }, expected, "{}", isa.name());
            }
        }
    }

    #[test]
    fn half_precision_rounds_to_even_on_every_set() {
        let x: [f32; LANES] = std::array::from_fn(|i| (i as f32 - 8.0) * 0.333_3 + 1e-5);
        let expected = x.map(|x| half::f16::from_f32(x).to_bits());
        for isa in available() {
            let mut bits = [0; LANES];
            // SAFETY: the set is available.
            let largest = unsafe { halves(isa, &x, &mut bits) };
            assert_eq!(bits, expected, "{}", isa.name());
            assert_eq!(largest, half::f16::from_bits(expected[15]).to_f32());
        }
    }
}
