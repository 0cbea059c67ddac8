//! The plain twin of the vector kernels: any processor, and the oracle they are tested against.

use super::Output;
use crate::signal::logistic::Logistic;
use crate::signal::mlp::Mlp;
use crate::signal::mps::{Hot, LEFT_PAIRS, PAIRS};
use crate::signal::softmax::softmax;
use crate::signal::{N_CLASSES, PADDED, Row};

/// Row vector times one fused pair (Horner in u2, then u1).
fn step<const X: usize, const Y: usize>(v: &mut [f32; X], m: &[[f32; Y]; X], u1: f32, u2: f32) {
    let mut y = [0.0; Y];
    for (&s, row) in v.iter().zip(m) {
        for (y, &m) in y.iter_mut().zip(row) {
            *y += s * m;
        }
    }
    for b in 0..X {
        let constant = y[b] + u2 * y[2 * X + b];
        let linear = y[X + b] + u2 * y[3 * X + b];
        v[b] = constant + u1 * linear;
    }
}

pub fn mps<const X: usize, const Y: usize>(w: &Hot<X, Y>, x: &Row) -> Output {
    let u = w.pre.squash(x);
    let (mut left, mut right) = (w.left, w.right);
    for p in 0..PAIRS {
        let [first, second] = w.reads[p];
        let v = if p < LEFT_PAIRS { &mut left } else { &mut right };
        step(v, &w.pairs[p], u[first as usize], u[second as usize]);
    }
    let mut y = [0.0; Y];
    for (&s, row) in left.iter().zip(&w.head) {
        for (y, &m) in y.iter_mut().zip(row) {
            *y += s * m;
        }
    }
    let mut z = w.bias;
    for c in 0..N_CLASSES {
        for b in 0..X {
            z[c] += y[c * X + b] * right[b];
        }
    }
    (z, softmax::<false>(z, w.inv_temperature))
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
