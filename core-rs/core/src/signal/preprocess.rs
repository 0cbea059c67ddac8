//! From feature units to `u` in (-1, 1): what every kind of model does first.

use super::{N_FEATURES, PADDED, Row};

/// |t| is held below this, so that `t / (1 + |t|)` is ±1 and never `inf / inf`.
pub const T_MAX: f32 = 1e30;

/// Centre, scale and mean of each feature, padded with zeros. All arrays have shape (32).
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Preprocess {
    /// Training median, in the feature's unit.
    pub mu: Row,
    /// 1.6 / (q95 - q05) of the training rows, per unit.
    pub inv_scale: Row,
    /// Training mean of `u`; stands in for a missing feature.
    pub u_mean: Row,
}

impl Preprocess {
    /// Pads the three tensors of a file. Lengths are checked by the caller.
    pub fn new(mu: &[f32], inv_scale: &[f32], u_mean: &[f32]) -> Self {
        Self { mu: padded(mu), inv_scale: padded(inv_scale), u_mean: padded(u_mean) }
    }

    /// `u`, shape (32); padding gives 0. The scalar twin of the vector kernels' first step.
    #[inline(always)]
    pub fn squash(&self, x: &Row) -> Row {
        let mut u = [0.0; PADDED];
        for i in 0..PADDED {
            let t = (x[i] - self.mu[i]) * self.inv_scale[i];
            let bounded = t.clamp(-T_MAX, T_MAX);
            u[i] = if t.is_nan() { self.u_mean[i] } else { bounded / (1.0 + bounded.abs()) };
        }
        u
    }
}

/// A row with zeros after the features.
///
/// # Panics
/// If there are not 26 values.
pub fn padded(values: &[f32]) -> Row {
    assert_eq!(values.len(), N_FEATURES, "Invariant: one value per feature");
    let mut row = [0.0; PADDED];
    row[..N_FEATURES].copy_from_slice(values);
    row
}
