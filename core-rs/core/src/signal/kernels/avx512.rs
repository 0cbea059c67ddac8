//! AVX-512: a bond-8 pair row is two registers, a bond-16 row four.

#![expect(unsafe_code, reason = "loads and stores of vector registers")]

use std::arch::x86_64::{
    __m256, __m512, _CMP_UNORD_Q, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehl_ps,
    _mm_shuffle_ps, _mm256_add_ps, _mm256_castps256_ps128, _mm256_extractf128_ps, _mm512_abs_ps,
    _mm512_add_ps, _mm512_castps512_ps256, _mm512_cmp_ps_mask, _mm512_div_ps,
    _mm512_extractf32x8_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_blend_ps, _mm512_max_ps,
    _mm512_min_ps, _mm512_mul_ps, _mm512_permutexvar_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setr_epi32, _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_storeu_ps, _mm512_sub_ps,
};

use super::{Changes, Output};
use crate::signal::logistic::Logistic;
use crate::signal::mlp::{FIRST_INPUTS, Hidden, LANES_MAX, Lane, Mlp, as_floats};
use crate::signal::mps::{Hot, LEFT_PAIRS, Mps, RIGHT_PAIRS};
use crate::signal::preprocess::{Preprocess, T_MAX};
use crate::signal::softmax::softmax;
use crate::signal::{N_CLASSES, PADDED, PerClass, Row};

/// Sixteen floats of a slice.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(values: &[f32]) -> __m512 {
    assert!(values.len() >= 16, "Invariant: a register holds 16 floats");
    // SAFETY: the slice has at least 16 floats, and the load needs no alignment.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(values: &mut [f32], v: __m512) {
    assert!(values.len() >= 16, "Invariant: a register holds 16 floats");
    // SAFETY: the slice has at least 16 floats, and the store needs no alignment.
    unsafe { _mm512_storeu_ps(values.as_mut_ptr(), v) }
}

/// Sixteen of `u`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
fn squash_half(pre: &Preprocess, x: &Row, at: usize) -> __m512 {
    let t = _mm512_mul_ps(
        _mm512_sub_ps(load(&x[at..]), load(&pre.mu[at..])),
        load(&pre.inv_scale[at..]),
    );
    let missing = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(t, t);
    let bound = _mm512_set1_ps(T_MAX);
    let t = _mm512_max_ps(_mm512_min_ps(t, bound), _mm512_set1_ps(-T_MAX));
    let u = _mm512_div_ps(t, _mm512_add_ps(_mm512_set1_ps(1.0), _mm512_abs_ps(t)));
    _mm512_mask_blend_ps(missing, u, load(&pre.u_mean[at..]))
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
fn squash(pre: &Preprocess, x: &Row) -> Row {
    let mut u = [0.0; PADDED];
    store(&mut u, squash_half(pre, x, 0));
    store(&mut u[16..], squash_half(pre, x, 16));
    u
}

/// Sum of eight.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
fn sum8(v: __m256) -> f32 {
    let q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps::<1>(q, q)))
}

/// Sum of sixteen.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
fn sum16(v: __m512) -> f32 {
    sum8(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)))
}

/// Applies `$each!` to 0, 1, 2 and 3: unrolled by hand, since a rolled loop would keep the sums in
/// memory.
macro_rules! four {
    ($each:ident) => {
        $each!(0);
        $each!(1);
        $each!(2);
        $each!(3);
    };
}

/// Horner over sixteen registers of terms: bit 3 of the register's
/// number goes with `u[3]`, ..., bit 0 with `u[0]`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
fn horner16(terms: &[f32; 256], u: [__m512; 4]) -> __m512 {
    macro_rules! pair {
        ($i:expr) => {
            _mm512_fmadd_ps(u[3], load(&terms[16 * ($i + 8)..]), load(&terms[16 * ($i)..]))
        };
    }
    macro_rules! quad {
        ($i:expr) => {
            _mm512_fmadd_ps(u[2], pair!($i + 4), pair!($i))
        };
    }
    macro_rules! eight {
        ($i:expr) => {
            _mm512_fmadd_ps(u[1], quad!($i + 2), quad!($i))
        };
    }
    _mm512_fmadd_ps(u[0], eight!(1), eight!(0))
}

/// One end at bond 8, the same eight floats in both halves. A register holds two terms, so bits
/// 1 to 4 of the term are those of the register in its block of sixteen.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
fn end8(w: &Hot<8>, end: usize, u: &Row) -> __m512 {
    let [u0, u1, u2, u3, u4, u5] = w.end_inputs(end, u);
    let inner = [u1, u2, u3, u4].map(|x| _mm512_set1_ps(x));
    let (blocks, _) = w.ends[end].as_flattened().as_chunks::<256>();
    let odd_even = _mm512_fmadd_ps(
        _mm512_set1_ps(u5),
        horner16(&blocks[1], inner),
        horner16(&blocks[0], inner),
    );
    _mm512_fmadd_ps(
        _mm512_set1_ps(u0),
        _mm512_shuffle_f32x4::<0b11_10_11_10>(odd_even, odd_even),
        _mm512_shuffle_f32x4::<0b01_00_01_00>(odd_even, odd_even),
    )
}

/// One end at bond 16.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
fn end16(w: &Hot<16>, end: usize, u: &Row) -> __m512 {
    let [inner @ .., u4, u5] = w.end_inputs(end, u).map(|x| _mm512_set1_ps(x));
    let (blocks, _) = w.ends[end].as_flattened().as_chunks::<256>();
    let low = _mm512_fmadd_ps(u4, horner16(&blocks[1], inner), horner16(&blocks[0], inner));
    let high = _mm512_fmadd_ps(u4, horner16(&blocks[3], inner), horner16(&blocks[2], inner));
    _mm512_fmadd_ps(u5, high, low)
}

/// Sixteen floats of `M00 + u1 M10 + u2 (M01 + u1 M11)`, from float `at` on.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
fn combine<const X: usize>(m: &[[[f32; X]; X]; 4], at: usize, u1: __m512, u2: __m512) -> __m512 {
    let part = |k: usize| load(&m[k].as_flattened()[at..]);
    let constant = _mm512_fmadd_ps(u1, part(1), part(0));
    _mm512_fmadd_ps(u2, _mm512_fmadd_ps(u1, part(3), part(2)), constant)
}

/// Elements 2j and 2j + 1 of `v`, eight times each.
#[inline]
#[target_feature(enable = "avx512f")]
fn spread2<const J: i32>(v: __m512) -> __m512 {
    let (a, b) = (2 * J, 2 * J + 1);
    let index = _mm512_setr_epi32(a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b);
    _mm512_permutexvar_ps(index, v)
}

/// Element `I` of `v` in all lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn spread<const I: i32>(v: __m512) -> __m512 {
    _mm512_permutexvar_ps(_mm512_set1_epi32(I), v)
}

/// One fused pair at bond 8: two rows of the matrix to a register. `v` has its eight floats in
/// both halves, and so has the result.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
fn step8(v: __m512, m: &[[[f32; 8]; 8]; 4], [u1, u2]: [f32; 2]) -> __m512 {
    let (u1, u2) = (_mm512_set1_ps(u1), _mm512_set1_ps(u2));
    let rows = |j: usize| combine(m, 16 * j, u1, u2);
    let y = _mm512_add_ps(
        _mm512_fmadd_ps(spread2::<0>(v), rows(0), _mm512_mul_ps(spread2::<1>(v), rows(1))),
        _mm512_fmadd_ps(spread2::<2>(v), rows(2), _mm512_mul_ps(spread2::<3>(v), rows(3))),
    );
    _mm512_add_ps(y, _mm512_shuffle_f32x4::<0b01_00_11_10>(y, y))
}

#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
pub fn mps8(w: &Hot<8>, x: &Row) -> Output {
    let u = squash(&w.pre, x);
    let (mut left, mut right) = (end8(w, 0, &u), end8(w, 1, &u));
    for p in 0..RIGHT_PAIRS {
        left = step8(left, &w.pairs[p], w.pair_inputs(p, &u));
        let q = LEFT_PAIRS + p;
        right = step8(right, &w.pairs[q], w.pair_inputs(q, &u));
    }
    for p in RIGHT_PAIRS..LEFT_PAIRS {
        left = step8(left, &w.pairs[p], w.pair_inputs(p, &u));
    }
    let spread = [spread2::<0>(left), spread2::<1>(left), spread2::<2>(left), spread2::<3>(left)];
    let mut z = w.bias;
    for c in 0..N_CLASSES {
        let rows = |j: usize| load(&w.head[c].as_flattened()[16 * j..]);
        let y = _mm512_add_ps(
            _mm512_fmadd_ps(spread[0], rows(0), _mm512_mul_ps(spread[1], rows(1))),
            _mm512_fmadd_ps(spread[2], rows(2), _mm512_mul_ps(spread[3], rows(3))),
        );
        z[c] += sum16(_mm512_mul_ps(y, right));
    }
    (z, softmax::<true>(z, w.inv_temperature))
}

/// One fused pair at bond 16: four chains of four rows.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
fn step16(v: __m512, m: &[[[f32; 16]; 16]; 4], [u1, u2]: [f32; 2]) -> __m512 {
    let (u1, u2) = (_mm512_set1_ps(u1), _mm512_set1_ps(u2));
    let zero = _mm512_setzero_ps();
    let (mut a, mut b, mut c, mut d) = (zero, zero, zero, zero);
    macro_rules! rows {
        ($i:literal) => {
            let row = |k: usize| combine(m, 16 * (4 * $i + k), u1, u2);
            a = _mm512_fmadd_ps(spread::<{ 4 * $i }>(v), row(0), a);
            b = _mm512_fmadd_ps(spread::<{ 4 * $i + 1 }>(v), row(1), b);
            c = _mm512_fmadd_ps(spread::<{ 4 * $i + 2 }>(v), row(2), c);
            d = _mm512_fmadd_ps(spread::<{ 4 * $i + 3 }>(v), row(3), d);
        };
    }
    four!(rows);
    _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d))
}

#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
pub fn mps16(w: &Hot<16>, x: &Row) -> Output {
    let u = squash(&w.pre, x);
    let (mut left, mut right) = (end16(w, 0, &u), end16(w, 1, &u));
    for p in 0..RIGHT_PAIRS {
        left = step16(left, &w.pairs[p], w.pair_inputs(p, &u));
        let q = LEFT_PAIRS + p;
        right = step16(right, &w.pairs[q], w.pair_inputs(q, &u));
    }
    for p in RIGHT_PAIRS..LEFT_PAIRS {
        left = step16(left, &w.pairs[p], w.pair_inputs(p, &u));
    }
    let zero = _mm512_setzero_ps();
    let (mut down, mut flat, mut up) = ([zero; 2], [zero; 2], [zero; 2]);
    macro_rules! rows {
        ($i:literal) => {
            rows!($i, 0, 0);
            rows!($i, 1, 1);
            rows!($i, 2, 0);
            rows!($i, 3, 1);
        };
        ($i:literal, $k:literal, $chain:literal) => {
            let s = spread::<{ 4 * $i + $k }>(left);
            let row = |c: usize| load(&w.head[c][4 * $i + $k]);
            down[$chain] = _mm512_fmadd_ps(s, row(0), down[$chain]);
            flat[$chain] = _mm512_fmadd_ps(s, row(1), flat[$chain]);
            up[$chain] = _mm512_fmadd_ps(s, row(2), up[$chain]);
        };
    }
    four!(rows);
    let mut z = w.bias;
    for (z, y) in z.iter_mut().zip([down, flat, up]) {
        *z += sum16(_mm512_mul_ps(_mm512_add_ps(y[0], y[1]), right));
    }
    (z, softmax::<true>(z, w.inv_temperature))
}

#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
pub fn logistic(w: &Logistic, x: &Row) -> Output {
    let (low, high) = (squash_half(&w.pre, x, 0), squash_half(&w.pre, x, 16));
    let mut z = w.bias;
    for c in 0..N_CLASSES {
        let sum = _mm512_mul_ps(low, load(&w.weight[c]));
        z[c] += sum16(_mm512_fmadd_ps(high, load(&w.weight[c][16..]), sum));
    }
    (z, softmax::<true>(z, w.inv_temperature))
}

/// One dense layer with `ReLU`: `inputs` (n, a multiple of 4) times (n, lanes) plus bias, two
/// lanes at a time and each in four chains, which the latency of the multiply-add needs.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
fn dense(inputs: &[f32], weight: &[Lane], lanes: usize, bias: &Hidden, out: &mut Hidden) {
    let zero = _mm512_setzero_ps();
    for lane in (0..lanes).step_by(2) {
        let second = (lane + 1).min(lanes - 1);
        let mut sums = [[zero; 2]; 4];
        sums[0] = [load(&bias[lane].0), load(&bias[second].0)];
        let (inputs, _) = inputs.as_chunks::<4>();
        for (inputs, rows) in inputs.iter().zip(weight.chunks_exact(4 * lanes)) {
            macro_rules! chain {
                ($k:literal) => {
                    let s = _mm512_set1_ps(inputs[$k]);
                    let row = &rows[$k * lanes..($k + 1) * lanes];
                    sums[$k][0] = _mm512_fmadd_ps(s, load(&row[lane].0), sums[$k][0]);
                    sums[$k][1] = _mm512_fmadd_ps(s, load(&row[second].0), sums[$k][1]);
                };
            }
            four!(chain);
        }
        let total = |k: usize| {
            let sum = |a: usize, b: usize| _mm512_add_ps(sums[a][k], sums[b][k]);
            _mm512_max_ps(zero, _mm512_add_ps(sum(0, 1), sum(2, 3)))
        };
        store(&mut out[lane].0, total(0));
        store(&mut out[second].0, total(1));
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
pub fn mlp(w: &Mlp, x: &Row) -> Output {
    let u = squash(&w.pre, x);
    let (mut first, mut second) = ([Lane::default(); LANES_MAX], [Lane::default(); LANES_MAX]);
    dense(&u[..FIRST_INPUTS], &w.w1, w.lanes, &w.b1, &mut first);
    dense(as_floats(&first[..w.lanes]), &w.w2, w.lanes, &w.b2, &mut second);
    let z: PerClass = std::array::from_fn(|c| {
        let row = &w.w3[c * w.lanes..(c + 1) * w.lanes];
        let mut sum = _mm512_setzero_ps();
        for (hidden, weight) in second.iter().zip(row) {
            sum = _mm512_fmadd_ps(load(&hidden.0), load(&weight.0), sum);
        }
        sum16(sum) + w.b3[c]
    });
    (z, softmax::<true>(z, w.inv_temperature))
}

#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
pub fn explain8(w: &Mps<8>, x: &Row) -> Changes {
    w.explain_generic(x)
}

#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
pub fn explain16(w: &Mps<16>, x: &Row) -> Changes {
    w.explain_generic(x)
}
