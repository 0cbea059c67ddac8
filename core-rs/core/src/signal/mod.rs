//! Signal models: 26 features of one market to the probabilities of down, flat and up.
//!
//! Three kinds behind one trait, [`Predictor`]: `mps` (a matrix-product-state classifier, bond 8
//! or 16), `logistic` and `mlp` (26-h-h-3, `ReLU`). All share the file format ([`file`]), the
//! squash `u = t / (1 + |t|)` of `t = (x - mu) * inv_scale` ([`preprocess`]), the temperature and
//! the out-of-distribution guard ([`guard`]).
//!
//! A missing feature (NaN) enters as its training mean `u_mean`. For `mps` and `logistic` the
//! logits are affine in every single `u_i`, so this is the exact expectation of the logits under
//! independent marginals: the feature is integrated out. For `mlp` it is mean imputation, no more.
//!
//! Weights are read-only and shared ([`Model`] in an `Arc`). Inference allocates nothing and
//! cannot fail: what could go wrong is checked once, when the file is read.
//!
//! Mathematics (d = 2): with site `k` reading feature `perm[k]`,
//! `L <- L (I + A[k,0] + u A[k,1])` for k = 0..13 from `l`, `R` likewise for k = 25..14 from `r`,
//! logits `z_c = L^T W_c R + b_c`, probabilities `softmax(z / temperature)`.
//! Stoudenmire & Schwab 2016 (arXiv 1605.05775); Novikov et al., "Exponential machines".

#![expect(
    clippy::inline_always,
    clippy::needless_range_loop,
    reason = "kernels are one inlined function each; index notation is that of the equations"
)]

use std::fmt::Debug;

pub mod file;
pub mod guard;
pub mod isa;
mod kernels;
mod logistic;
mod mlp;
mod model;
mod mps;
pub mod preprocess;
pub mod reference;
mod replay;
mod session;
mod softmax;
pub mod train;

pub use guard::Guard;
pub use isa::{ISA_VARIABLE, Isa};
pub use model::{Model, Session};
pub use replay::Replay;
pub use session::{Counts, Signal, SignalSession, bulk_signals};

pub use crate::features::{N_FEATURES, PADDED};

/// Classes: down, flat, up.
pub const N_CLASSES: usize = 3;
/// Sites contracted from the left; the other 12 come from the right.
pub const LEFT_SITES: usize = 14;

/// One row of features, shape (32): 26 used, the rest zero. NaN = missing; ±inf is read as its
/// limit (u = ±1).
pub type Row = [f32; PADDED];
/// One number per class: down, flat, up.
pub type PerClass = [f32; N_CLASSES];

/// Which mathematics a model file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Matrix product state with this bond dimension (8 or 16).
    Mps {
        /// Bond dimension.
        bond: usize,
    },
    /// Multinomial logistic regression on the squashed features.
    Logistic,
    /// Two hidden `ReLU` layers of this width.
    Mlp {
        /// Hidden width.
        hidden: usize,
    },
}

impl Kind {
    /// The name in the file's metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mps { .. } => "mps",
            Self::Logistic => "logistic",
            Self::Mlp { .. } => "mlp",
        }
    }
}

/// What every kind of model can do with one row. Pure functions of weights and row: no allocation,
/// no error, the same bits for the same input on the same instruction set.
pub trait Predictor: Debug + Send + Sync {
    /// Which mathematics this is.
    fn kind(&self) -> Kind;
    /// Logits z before the temperature.
    fn logits(&self, x: &Row) -> PerClass;
    /// `softmax(z / temperature)`, within 1e-6 of the f64 value for the same logits.
    fn probabilities(&self, x: &Row) -> PerClass;
    /// Per feature, the change of the three logits when that feature alone is replaced by its
    /// training mean. Exact (one contraction from cached environments), not a sample.
    fn explain(&self, x: &Row) -> [PerClass; N_FEATURES];
}

/// Probabilities of the three classes, and what follows from them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probabilities {
    /// P(mid falls by more than the label's threshold over its horizon).
    pub down: f32,
    /// P(neither).
    pub flat: f32,
    /// P(mid rises by more than the threshold).
    pub up: f32,
}

impl Probabilities {
    /// Shannon entropy in nats: 0 (certain) to ln 3 (knows nothing).
    pub fn entropy(&self) -> f32 {
        [self.down, self.flat, self.up]
            .iter()
            .filter(|&&p| p > 0.0)
            .map(|&p| -p * p.ln())
            .sum::<f32>()
            .max(0.0)
    }

    /// Largest probability minus the second largest.
    pub fn margin(&self) -> f32 {
        let mut p = [self.down, self.flat, self.up];
        p.sort_by(f32::total_cmp);
        p[2] - p[1]
    }
}

impl From<PerClass> for Probabilities {
    fn from([down, flat, up]: PerClass) -> Self {
        Self { down, flat, up }
    }
}
