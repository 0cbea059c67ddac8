//! Multinomial logistic regression by Newton's method in `f64`: the start of the MPS and its first
//! rival.
//!
//! Minimises mean cross-entropy + l2/2 |weight|². Biases carry a ridge of 1e-9 that fixes the one
//! direction the softmax does not see. A step costs n·6·27²/2 multiply-adds and an 81×81 Cholesky;
//! about six steps converge.

use super::{N_CLASSES, N_INPUTS, Rows, fit::softmax_loss};
use crate::{Error, Result};

const N_TERMS: usize = N_INPUTS + 1; // the bias is the last term, with input 1
const N_PARAMS: usize = N_TERMS * N_CLASSES;
const BIAS_RIDGE: f64 = 1e-9;
const STEPS_MAX: usize = 100;
const GRADIENT_TOLERANCE: f64 = 1e-9;

/// A converged fit.
#[derive(Debug, Clone, PartialEq)]
pub struct Logistic {
    /// `(26, 3)` row-major.
    pub weight: Vec<f64>,
    /// `(3)`
    pub bias: [f64; N_CLASSES],
    /// Newton steps taken.
    pub steps: usize,
    /// Largest entry of the final gradient.
    pub gradient_max: f64,
}

/// Fits to convergence. `check` is asked before each step; `false` ends with `None`.
///
/// # Errors
/// `l2` is not positive, or Newton's method did not converge.
pub fn train_logistic(
    rows: Rows<'_, f64>,
    l2: f64,
    mut check: impl FnMut() -> bool,
) -> Result<Option<Logistic>> {
    if !(l2 > 0.0 && l2.is_finite()) {
        return Err(Error::input("l2", format!("{l2} is not positive; give at least 1e-8")));
    }
    let mut params = vec![0.0; N_PARAMS]; // (3, 27)
    for steps in 0..STEPS_MAX {
        if !check() {
            return Ok(None);
        }
        let point = Point::at(&params, rows, l2);
        let gradient_max = point.gradient.iter().fold(0.0_f64, |max, g| max.max(g.abs()));
        if gradient_max < GRADIENT_TOLERANCE {
            return Ok(Some(unpack(&params, steps, gradient_max)));
        }
        let direction = solve(point.hessian, &point.gradient)?;
        params = line_search(&params, &direction, point.loss, rows, l2)?;
    }
    Err(Error::input("l2", format!("{l2}: no convergence in {STEPS_MAX} steps; give a larger one")))
}

fn unpack(params: &[f64], steps: usize, gradient_max: f64) -> Logistic {
    let at = |term: usize, c: usize| params[c * N_TERMS + term];
    let weight = (0..N_INPUTS * N_CLASSES).map(|i| at(i / N_CLASSES, i % N_CLASSES)).collect();
    let bias = std::array::from_fn(|c| at(N_INPUTS, c));
    Logistic { weight, bias, steps, gradient_max }
}

/// Loss, gradient `(3, 27)` and Hessian `(81, 81)` (lower triangle) at one set of weights.
struct Point {
    loss: f64,
    gradient: Vec<f64>,
    hessian: Vec<f64>,
}

impl Point {
    fn at(params: &[f64], rows: Rows<'_, f64>, l2: f64) -> Self {
        let mut gradient = vec![0.0; N_PARAMS];
        let mut hessian = vec![0.0; N_PARAMS * N_PARAMS];
        let mut loss = 0.0;
        for (u, class) in rows.iter() {
            let x = terms(u);
            let (row_loss, dz) = softmax_loss(logits(params, &x), class);
            let p: [f64; N_CLASSES] =
                std::array::from_fn(|c| dz[c] + if c == class { 1.0 } else { 0.0 });
            loss += row_loss;
            for c in 0..N_CLASSES {
                for (g, x) in gradient[c * N_TERMS..].iter_mut().zip(&x) {
                    *g += dz[c] * x;
                }
                for d in 0..=c {
                    let weight = if c == d { p[c] * (1.0 - p[c]) } else { -p[c] * p[d] };
                    add_block(&mut hessian, c, d, weight, &x);
                }
            }
        }
        let n = rows.len() as f64;
        for sum in gradient.iter_mut().chain(&mut hessian) {
            *sum /= n;
        }
        for i in 0..N_PARAMS {
            gradient[i] += ridge(i, l2) * params[i];
            hessian[i * N_PARAMS + i] += ridge(i, l2);
        }
        Self { loss: loss / n + penalty(params, l2), gradient, hessian }
    }
}

fn terms(u: &[f64; N_INPUTS]) -> [f64; N_TERMS] {
    let mut x = [1.0; N_TERMS];
    x[..N_INPUTS].copy_from_slice(u);
    x
}

fn logits(params: &[f64], x: &[f64; N_TERMS]) -> [f64; N_CLASSES] {
    std::array::from_fn(|c| params[c * N_TERMS..].iter().zip(x).map(|(w, x)| w * x).sum())
}

/// `hessian[c, d] += weight x xᵀ`, all of the block below the diagonal, half of it on it.
fn add_block(hessian: &mut [f64], c: usize, d: usize, weight: f64, x: &[f64; N_TERMS]) {
    for (i, &xi) in x.iter().enumerate() {
        let start = (c * N_TERMS + i) * N_PARAMS + d * N_TERMS;
        let length = if c == d { i + 1 } else { N_TERMS };
        for (h, xj) in hessian[start..][..length].iter_mut().zip(x) {
            *h += weight * xi * xj;
        }
    }
}

fn ridge(param: usize, l2: f64) -> f64 {
    if param % N_TERMS == N_INPUTS { BIAS_RIDGE } else { l2 }
}

fn penalty(params: &[f64], l2: f64) -> f64 {
    params.iter().enumerate().map(|(i, p)| 0.5 * ridge(i, l2) * p * p).sum()
}

fn loss(params: &[f64], rows: Rows<'_, f64>, l2: f64) -> f64 {
    let total: f64 =
        rows.iter().map(|(u, class)| softmax_loss(logits(params, &terms(u)), class).0).sum();
    total / rows.len() as f64 + penalty(params, l2)
}

/// Halves the Newton step until the loss does not rise (beyond rounding).
fn line_search(
    params: &[f64],
    direction: &[f64],
    loss_now: f64,
    rows: Rows<'_, f64>,
    l2: f64,
) -> Result<Vec<f64>> {
    let mut length = 1.0;
    for _ in 0..40 {
        let next: Vec<f64> = params.iter().zip(direction).map(|(p, d)| p - length * d).collect();
        if loss(&next, rows, l2) <= loss_now + 1e-14 {
            return Ok(next);
        }
        length *= 0.5;
    }
    Err(Error::input("l2", format!("{l2}: the loss does not fall any more; give a larger one")))
}

/// Solves `h x = g` by Cholesky; reads the lower triangle of `h`.
fn solve(mut h: Vec<f64>, g: &[f64]) -> Result<Vec<f64>> {
    const N: usize = N_PARAMS;
    for j in 0..N {
        for i in j..N {
            let dot: f64 = (0..j).map(|k| h[i * N + k] * h[j * N + k]).sum();
            let rest = h[i * N + j] - dot;
            if i == j && (rest.is_nan() || rest <= 0.0) {
                return Err(Error::input("l2", "the Hessian is singular; give a larger one"));
            }
            h[i * N + j] = if i == j { rest.sqrt() } else { rest / h[j * N + j] };
        }
    }
    let mut x = g.to_vec();
    for i in 0..N {
        let dot: f64 = (0..i).map(|k| h[i * N + k] * x[k]).sum();
        x[i] = (x[i] - dot) / h[i * N + i];
    }
    for i in (0..N).rev() {
        let dot: f64 = (i + 1..N).map(|k| h[k * N + i] * x[k]).sum();
        x[i] = (x[i] - dot) / h[i * N + i];
    }
    Ok(x)
}
