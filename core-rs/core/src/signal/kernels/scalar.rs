//! The plain twin of the vector kernels: any processor, and the oracle they are tested against.

use super::{Changes, Output};
use crate::signal::logistic::Logistic;
use crate::signal::mlp::Mlp;
use crate::signal::mps::{END_SITES, END_TERMS, Hot, LEFT_PAIRS, Mps, RIGHT_PAIRS};
use crate::signal::softmax::softmax;
use crate::signal::{N_CLASSES, PADDED, Row};

/// The environment after one end's sites: Horner from the last site's input to the first's, over
/// flat runs of floats, which the compiler turns into vectors.
fn end<const X: usize>(w: &Hot<X>, end: usize, u: &Row) -> [f32; X] {
    let inputs = w.end_inputs(end, u);
    let mut terms = [[0.0; X]; END_TERMS / 2];
    let sums = terms.as_flattened_mut();
    let mut half = sums.len();
    let (low, high) = w.ends[end].as_flattened().split_at(half);
    for ((sum, low), high) in sums.iter_mut().zip(low).zip(high) {
        *sum = low + inputs[END_SITES - 1] * high;
    }
    for &x in inputs[..END_SITES - 1].iter().rev() {
        half /= 2;
        let (low, high) = sums.split_at_mut(half);
        for (low, high) in low.iter_mut().zip(high) {
            *low += x * *high;
        }
    }
    terms[0]
}

/// Row vector times a matrix.
fn times<const X: usize>(v: &[f32; X], m: &[[f32; X]; X]) -> [f32; X] {
    let mut y = [0.0; X];
    for a in 0..X {
        for b in 0..X {
            y[b] += v[a] * m[a][b];
        }
    }
    y
}

/// One fused pair applied to `v`.
fn step<const X: usize>(v: &[f32; X], m: &[[[f32; X]; X]; 4], [u1, u2]: [f32; 2]) -> [f32; X] {
    let [y00, y10, y01, y11] = m.each_ref().map(|m| times(v, m));
    std::array::from_fn(|b| (y00[b] + u1 * y10[b]) + u2 * (y01[b] + u1 * y11[b]))
}

fn mps<const X: usize>(w: &Hot<X>, x: &Row) -> Output {
    let u = w.pre.squash(x);
    let (mut left, mut right) = (end(w, 0, &u), end(w, 1, &u));
    for p in 0..LEFT_PAIRS {
        left = step(&left, &w.pairs[p], w.pair_inputs(p, &u));
    }
    for p in LEFT_PAIRS..LEFT_PAIRS + RIGHT_PAIRS {
        right = step(&right, &w.pairs[p], w.pair_inputs(p, &u));
    }
    let mut z = w.bias;
    for c in 0..N_CLASSES {
        for (y, r) in times(&left, &w.head[c]).iter().zip(&right) {
            z[c] += y * r;
        }
    }
    (z, softmax::<false>(z, w.inv_temperature))
}

pub fn mps8(w: &Hot<8>, x: &Row) -> Output {
    mps(w, x)
}

pub fn mps16(w: &Hot<16>, x: &Row) -> Output {
    mps(w, x)
}

pub fn logistic(w: &Logistic, x: &Row) -> Output {
    let u = w.pre.squash(x);
    let mut z = w.bias;
    for c in 0..N_CLASSES {
        for i in 0..PADDED {
            z[c] += u[i] * w.weight[c][i];
        }
    }
    (z, softmax::<false>(z, w.inv_temperature))
}

pub fn mlp(w: &Mlp, x: &Row) -> Output {
    let z = w.rest(&w.first(&w.pre.squash(x)));
    (z, softmax::<false>(z, w.inv_temperature))
}

pub fn explain8(w: &Mps<8>, x: &Row) -> Changes {
    w.explain_generic(x)
}

pub fn explain16(w: &Mps<16>, x: &Row) -> Changes {
    w.explain_generic(x)
}
