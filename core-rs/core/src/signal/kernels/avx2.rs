//! AVX2 with FMA: sixteen registers of eight floats.

#![expect(unsafe_code, reason = "loads and stores of vector registers")]

use std::arch::x86_64::{
    __m256, _CMP_UNORD_Q, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehl_ps, _mm_shuffle_ps,
    _mm256_add_ps, _mm256_andnot_ps, _mm256_blendv_ps, _mm256_castps256_ps128, _mm256_cmp_ps,
    _mm256_div_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps,
    _mm256_min_ps, _mm256_mul_ps, _mm256_permutevar8x32_ps, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_storeu_ps, _mm256_sub_ps,
};

use super::{Changes, Output};
use crate::signal::logistic::Logistic;
use crate::signal::mlp::{FIRST_INPUTS, Hidden, LANES_MAX, Lane, Mlp, as_floats};
use crate::signal::mps::{Hot, LEFT_PAIRS, Mps, RIGHT_PAIRS};
use crate::signal::preprocess::{Preprocess, T_MAX};
use crate::signal::softmax::softmax;
use crate::signal::{N_CLASSES, PADDED, PerClass, Row};

/// Eight floats of a slice.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn load(values: &[f32]) -> __m256 {
    assert!(values.len() >= 8, "Invariant: a register holds 8 floats");
    // SAFETY: the slice has at least 8 floats, and the load needs no alignment.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn store(values: &mut [f32], v: __m256) {
    assert!(values.len() >= 8, "Invariant: a register holds 8 floats");
    // SAFETY: the slice has at least 8 floats, and the store needs no alignment.
    unsafe { _mm256_storeu_ps(values.as_mut_ptr(), v) }
}

/// Eight of `u`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn squash_quarter(pre: &Preprocess, x: &Row, at: usize) -> __m256 {
    let t = _mm256_mul_ps(
        _mm256_sub_ps(load(&x[at..]), load(&pre.mu[at..])),
        load(&pre.inv_scale[at..]),
    );
    let missing = _mm256_cmp_ps::<_CMP_UNORD_Q>(t, t);
    let bound = _mm256_set1_ps(T_MAX);
    let t = _mm256_max_ps(_mm256_min_ps(t, bound), _mm256_set1_ps(-T_MAX));
    let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), t);
    let u = _mm256_div_ps(t, _mm256_add_ps(_mm256_set1_ps(1.0), magnitude));
    _mm256_blendv_ps(u, load(&pre.u_mean[at..]), missing)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn squash(pre: &Preprocess, x: &Row) -> Row {
    let mut u = [0.0; PADDED];
    for at in (0..PADDED).step_by(8) {
        store(&mut u[at..], squash_quarter(pre, x, at));
    }
    u
}

/// Sum of eight.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn sum(v: __m256) -> f32 {
    let q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps::<1>(q, q)))
}

/// Horner over eight registers `apart` floats from one to the next: bit 2 of the register's number
/// goes with `u[2]`, bit 1 with `u[1]`, bit 0 with `u[0]`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn horner8(terms: &[f32], apart: usize, u: [__m256; 3]) -> __m256 {
    macro_rules! term {
        ($i:expr) => {
            load(&terms[apart * ($i)..])
        };
    }
    macro_rules! pair {
        ($i:expr) => {
            _mm256_fmadd_ps(u[2], term!($i + 4), term!($i))
        };
    }
    macro_rules! quad {
        ($i:expr) => {
            _mm256_fmadd_ps(u[1], pair!($i + 2), pair!($i))
        };
    }
    _mm256_fmadd_ps(u[0], quad!(1), quad!(0))
}

/// One end: `R` = X / 8 registers.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn end<const R: usize, const X: usize>(w: &Hot<X>, end: usize, u: &Row) -> [__m256; R] {
    let [u0, u1, u2, u3, u4, u5] = w.end_inputs(end, u).map(|x| _mm256_set1_ps(x));
    let terms = w.ends[end].as_flattened();
    let mut out = [_mm256_setzero_ps(); R];
    for k in 0..R {
        macro_rules! pair {
            ($i:expr) => {{
                let low = horner8(&terms[8 * X * $i + 8 * k..], X, [u0, u1, u2]);
                let high = horner8(&terms[8 * X * ($i + 1) + 8 * k..], X, [u0, u1, u2]);
                _mm256_fmadd_ps(u3, high, low)
            }};
        }
        let low = _mm256_fmadd_ps(u4, pair!(2), pair!(0));
        let high = _mm256_fmadd_ps(u4, pair!(6), pair!(4));
        out[k] = _mm256_fmadd_ps(u5, high, low);
    }
    out
}

/// Element `I` of eight in all lanes.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn spread<const I: i32>(v: __m256) -> __m256 {
    _mm256_permutevar8x32_ps(v, _mm256_set1_epi32(I))
}

/// Applies `$each!` to 0..8: unrolled by hand, since a rolled loop would keep the sums in memory.
/// (Macros, not closures: the compiler does not always inline those.)
macro_rules! eight {
    ($each:ident) => {
        $each!(0);
        $each!(1);
        $each!(2);
        $each!(3);
        $each!(4);
        $each!(5);
        $each!(6);
        $each!(7);
    };
}

/// One fused pair: Horner over the four products, each summed in one chain. With sixteen
/// registers there is no room to combine the matrices first.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn step<const R: usize, const X: usize>(
    v: &[__m256; R],
    m: &[[[f32; X]; X]; 4],
    u: [f32; 2],
) -> [__m256; R] {
    let [u1, u2] = u.map(|x| _mm256_set1_ps(x));
    let mut out = [_mm256_setzero_ps(); R];
    for k in 0..R {
        let mut y = [_mm256_setzero_ps(); 4];
        for half in 0..R {
            macro_rules! rows {
                ($i:literal) => {
                    let s = spread::<$i>(v[half]);
                    y[0] = _mm256_fmadd_ps(s, load(&m[0][8 * half + $i][8 * k..]), y[0]);
                    y[1] = _mm256_fmadd_ps(s, load(&m[1][8 * half + $i][8 * k..]), y[1]);
                    y[2] = _mm256_fmadd_ps(s, load(&m[2][8 * half + $i][8 * k..]), y[2]);
                    y[3] = _mm256_fmadd_ps(s, load(&m[3][8 * half + $i][8 * k..]), y[3]);
                };
            }
            eight!(rows);
        }
        let constant = _mm256_fmadd_ps(u1, y[1], y[0]);
        out[k] = _mm256_fmadd_ps(u2, _mm256_fmadd_ps(u1, y[3], y[2]), constant);
    }
    out
}

/// `R` = X / 8 registers hold an environment.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn mps<const R: usize, const X: usize>(w: &Hot<X>, x: &Row) -> Output {
    let u = squash(&w.pre, x);
    let (mut left, mut right) = (end::<R, X>(w, 0, &u), end::<R, X>(w, 1, &u));
    for p in 0..RIGHT_PAIRS {
        left = step(&left, &w.pairs[p], w.pair_inputs(p, &u));
        let q = LEFT_PAIRS + p;
        right = step(&right, &w.pairs[q], w.pair_inputs(q, &u));
    }
    for p in RIGHT_PAIRS..LEFT_PAIRS {
        left = step(&left, &w.pairs[p], w.pair_inputs(p, &u));
    }
    let mut products = [_mm256_setzero_ps(); N_CLASSES];
    for half in 0..R {
        macro_rules! rows {
            ($i:literal) => {
                let s = spread::<$i>(left[half]);
                for c in 0..N_CLASSES {
                    for k in 0..R {
                        let row = load(&w.head[c][8 * half + $i][8 * k..]);
                        let weighted = _mm256_mul_ps(row, right[k]);
                        products[c] = _mm256_fmadd_ps(s, weighted, products[c]);
                    }
                }
            };
        }
        eight!(rows);
    }
    let mut z = w.bias;
    for c in 0..N_CLASSES {
        z[c] += sum(products[c]);
    }
    (z, softmax::<true>(z, w.inv_temperature))
}

#[target_feature(enable = "avx2,fma")]
pub fn mps8(w: &Hot<8>, x: &Row) -> Output {
    mps::<1, 8>(w, x)
}

#[target_feature(enable = "avx2,fma")]
pub fn mps16(w: &Hot<16>, x: &Row) -> Output {
    mps::<2, 16>(w, x)
}

#[target_feature(enable = "avx2,fma")]
pub fn logistic(w: &Logistic, x: &Row) -> Output {
    let mut sums = [_mm256_setzero_ps(); N_CLASSES];
    for at in (0..PADDED).step_by(8) {
        let u = squash_quarter(&w.pre, x, at);
        for c in 0..N_CLASSES {
            sums[c] = _mm256_fmadd_ps(u, load(&w.weight[c][at..]), sums[c]);
        }
    }
    let mut z = w.bias;
    for c in 0..N_CLASSES {
        z[c] += sum(sums[c]);
    }
    (z, softmax::<true>(z, w.inv_temperature))
}

/// One dense layer with `ReLU`, one lane of 16 at a time in two chains of two registers.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn dense(inputs: &[f32], weight: &[Lane], lanes: usize, bias: &Hidden, out: &mut Hidden) {
    let zero = _mm256_setzero_ps();
    for lane in (0..lanes).step_by(2) {
        let second = (lane + 1).min(lanes - 1);
        let mut sums = [[zero; 4]; 2];
        let halves = |l: &[Lane]| {
            [load(&l[lane].0), load(&l[lane].0[8..]), load(&l[second].0), load(&l[second].0[8..])]
        };
        sums[0] = halves(bias);
        let (inputs, _) = inputs.as_chunks::<2>();
        for (inputs, rows) in inputs.iter().zip(weight.chunks_exact(2 * lanes)) {
            let (first, next) = rows.split_at(lanes);
            for (chain, row) in [halves(first), halves(next)].into_iter().enumerate() {
                let s = _mm256_set1_ps(inputs[chain]);
                for k in 0..4 {
                    sums[chain][k] = _mm256_fmadd_ps(s, row[k], sums[chain][k]);
                }
            }
        }
        for k in 0..4 {
            let at = if k < 2 { lane } else { second };
            let relu = _mm256_max_ps(zero, _mm256_add_ps(sums[0][k], sums[1][k]));
            store(&mut out[at].0[8 * (k % 2)..], relu);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
pub fn mlp(w: &Mlp, x: &Row) -> Output {
    let u = squash(&w.pre, x);
    let (mut first, mut second) = ([Lane::default(); LANES_MAX], [Lane::default(); LANES_MAX]);
    dense(&u[..FIRST_INPUTS], &w.w1, w.lanes, &w.b1, &mut first);
    dense(as_floats(&first[..w.lanes]), &w.w2, w.lanes, &w.b2, &mut second);
    let z: PerClass = std::array::from_fn(|c| {
        let row = &w.w3[c * w.lanes..(c + 1) * w.lanes];
        let mut product = _mm256_setzero_ps();
        for (hidden, weight) in second.iter().zip(row) {
            product = _mm256_fmadd_ps(load(&hidden.0), load(&weight.0), product);
            product = _mm256_fmadd_ps(load(&hidden.0[8..]), load(&weight.0[8..]), product);
        }
        sum(product) + w.b3[c]
    });
    (z, softmax::<true>(z, w.inv_temperature))
}

#[target_feature(enable = "avx2,fma")]
pub fn explain8(w: &Mps<8>, x: &Row) -> Changes {
    w.explain_generic(x)
}

#[target_feature(enable = "avx2,fma")]
pub fn explain16(w: &Mps<16>, x: &Row) -> Changes {
    w.explain_generic(x)
}
