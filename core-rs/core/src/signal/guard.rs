//! Out-of-distribution guard: Gaussian-copula Mahalanobis distance, as a tail quantile.
//!
//! Each feature becomes a normal score by its training quantiles (`knots` at the scores `levels`;
//! ties get the middle of their run; beyond the end knots the score goes on linearly in robust
//! standard deviations, at most [`SCORE_MAX`]). With z the scores of the observed features and S
//! their covariance block, `d2 = z^T S^-1 z`: missing features are marginalised exactly, by
//! minimising over them. Wilson & Hilferty's cube root makes distances with different numbers of
//! observed features k comparable: `w = ((d2/k)^(1/3) - (1 - 2/(9k))) / sqrt(2/(9k))`. The result
//! is the share of training rows with a smaller w: 0.5 is ordinary, 0.999 is farther out than
//! 99.9 % of the training rows, 1 is farther out than all, or nothing was observed.
//!
//! On demand, not in the hot path: about 0.5 µs; with m missing features O(m^3) more. No allocation.

use super::file::GuardParts;
use super::{N_FEATURES, Row};
use crate::{Error, Result};

/// Largest |normal score| of a single feature.
pub const SCORE_MAX: f64 = 8.0;
/// `inv_scale` is 1.6 / (q95 - q05); for a normal feature that is 1.6 / 3.29 per standard
/// deviation, so one unit of `x * inv_scale` is 2.056 of them.
pub const DEVIATIONS_PER_T: f64 = 3.289_707_253_902_945 / 1.6;

/// A symmetric 26 x 26 matrix.
type Matrix = [[f64; N_FEATURES]; N_FEATURES];

/// The guard of one model.
#[derive(Clone, Debug)]
pub struct Guard {
    parts: GuardParts,
    precision: Box<Matrix>,
    inv_scale: Row,
}

impl Guard {
    /// Takes checked tensors and the preprocess scale.
    ///
    /// # Errors
    /// [`Error::Model`] if the precision is not symmetric positive definite.
    pub fn new(parts: GuardParts, inv_scale: Row) -> Result<Self> {
        let at = |i: usize, j: usize| f64::from(parts.precision[i * N_FEATURES + j]);
        let mut precision: Box<Matrix> = Box::new([[0.0; N_FEATURES]; N_FEATURES]);
        for i in 0..N_FEATURES {
            for j in 0..N_FEATURES {
                let (a, b) = (at(i, j), at(j, i));
                if (a - b).abs() > 1e-4 * at(i, i).abs().max(at(j, j).abs()) {
                    return Err(Error::model("guard_precision", "not symmetric"));
                }
                precision[i][j] = f64::midpoint(a, b);
            }
        }
        let mut factor = precision.clone();
        if !cholesky(&mut factor, N_FEATURES) {
            return Err(Error::model("guard_precision", "not positive definite"));
        }
        Ok(Self { parts, precision, inv_scale })
    }

    /// Share of training rows nearer to the centre, 0 to 1.
    pub fn score(&self, x: &Row) -> f32 {
        let (d2, k) = self.distance(x);
        if k == 0 {
            return 1.0;
        }
        self.tail_level(standardise(d2, k)) as f32
    }

    /// Squared Mahalanobis distance over the observed features, and how many they are.
    pub fn distance(&self, x: &Row) -> (f64, usize) {
        let mut z = [0.0; N_FEATURES];
        let mut missing = [0_usize; N_FEATURES];
        let mut m = 0;
        for i in 0..N_FEATURES {
            if x[i].is_nan() {
                missing[m] = i;
                m += 1;
            } else {
                z[i] = self.normal_score(i, x[i]);
            }
        }
        // g = P z; d2 = z'P z - g_M' (P_MM)^-1 g_M, the minimum over the missing scores.
        // Column by column, so that the sums of one column are independent of each other.
        let mut g = [0.0; N_FEATURES];
        for (column, z) in self.precision.iter().zip(&z) {
            for (g, p) in g.iter_mut().zip(column) {
                *g += p * z;
            }
        }
        let full: f64 = g.iter().zip(&z).map(|(g, z)| g * z).sum();
        let d2 = full - self.explained_by_missing(&g, &missing[..m]);
        (d2.max(0.0), N_FEATURES - m)
    }

    fn explained_by_missing(&self, g: &[f64; N_FEATURES], missing: &[usize]) -> f64 {
        let m = missing.len();
        if m == 0 {
            return 0.0;
        }
        let mut factor = [[0.0; N_FEATURES]; N_FEATURES];
        for (a, &i) in missing.iter().enumerate() {
            for (b, &j) in missing.iter().enumerate() {
                factor[a][b] = self.precision[i][j];
            }
        }
        let positive = cholesky(&mut factor, m);
        debug_assert!(positive, "Invariant: blocks of a positive definite matrix are too");
        let mut sum = 0.0;
        let mut y = [0.0; N_FEATURES];
        for a in 0..m {
            let known: f64 = (0..a).map(|b| factor[a][b] * y[b]).sum();
            y[a] = (g[missing[a]] - known) / factor[a][a];
            sum += y[a] * y[a];
        }
        sum
    }

    /// Normal score of one observed value.
    fn normal_score(&self, feature: usize, x: f32) -> f64 {
        let levels = &self.parts.levels;
        let k = levels.len();
        let knots = &self.parts.knots[feature * k..(feature + 1) * k];
        let below = knots.partition_point(|&q| q < x);
        let level = |i: usize| f64::from(levels[i]);
        let beyond = |end: usize| {
            let t = (f64::from(x) - f64::from(knots[end])) * f64::from(self.inv_scale[feature]);
            level(end) + t * DEVIATIONS_PER_T
        };
        let score = if knots.get(below) == Some(&x) {
            let run = knots[below..].partition_point(|&q| q <= x);
            f64::midpoint(level(below), level(below + run - 1))
        } else if below == 0 {
            beyond(0)
        } else if below == k {
            beyond(k - 1)
        } else {
            interpolate(f64::from(x), knots, levels, below)
        };
        score.clamp(-SCORE_MAX, SCORE_MAX)
    }

    fn tail_level(&self, w: f64) -> f64 {
        let (tail, level) = (&self.parts.tail, &self.parts.tail_level);
        let below = tail.partition_point(|&q| f64::from(q) < w);
        match below {
            0 => 0.0,
            n if n == tail.len() => 1.0,
            _ => interpolate(w, tail, level, below),
        }
    }
}

/// Wilson–Hilferty: a chi-squared distance with k degrees of freedom to a standard normal.
fn standardise(d2: f64, k: usize) -> f64 {
    let v = 2.0 / (9.0 * k as f64);
    ((d2 / k as f64).cbrt() - (1.0 - v)) / v.sqrt()
}

/// Linear between `(xs[at-1], ys[at-1])` and `(xs[at], ys[at])`, where `xs[at-1] < x < xs[at]`.
fn interpolate(x: f64, xs: &[f32], ys: &[f32], at: usize) -> f64 {
    let (x0, x1) = (f64::from(xs[at - 1]), f64::from(xs[at]));
    let (y0, y1) = (f64::from(ys[at - 1]), f64::from(ys[at]));
    y0 + (y1 - y0) * ((x - x0) / (x1 - x0))
}

/// Lower Cholesky factor in place, of the leading n x n block; false if not positive definite.
fn cholesky(m: &mut Matrix, n: usize) -> bool {
    for j in 0..n {
        for i in j..n {
            let known: f64 = (0..j).map(|k| m[i][k] * m[j][k]).sum();
            let rest = m[i][j] - known;
            if i == j {
                if !(rest > 0.0 && rest.is_finite()) {
                    return false;
                }
                m[j][j] = rest.sqrt();
            } else {
                m[i][j] = rest / m[j][j];
            }
        }
    }
    true
}
