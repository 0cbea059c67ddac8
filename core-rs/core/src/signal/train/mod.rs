//! Training of the signal models: logistic regression to convergence, MLP and MPS by stochastic
//! gradients with early stopping. No data handling: rows come squashed and labelled.
//!
//! The recipe is the same for both networks: `AdamW` with decay towards an anchor (the warm start
//! for the MPS, zero for the MLP), 100 warm-up steps, cosine rate, gradient clipping, an
//! exponential moving average of the weights, and the average that is best on validation rows.
//!
//! Gradients are written by hand over a small float trait [`Real`]: `f32` trains, `f64` is checked
//! against finite differences. One thread per seed and a fixed order of sums make a fit the same
//! bit for bit whatever the number of threads.
//!
//! Shapes: rows `u (n, 26)` row-major with |u| <= 1, labels `y (n)` in 0 down, 1 flat, 2 up.

mod fit;
mod logistic;
mod mlp;
mod mps;
mod optimizer;
mod real;
mod rows;
mod seeds;

pub use fit::{EpochLoss, Fit, Network, Schedule, Tensor, cross_entropy};
pub use logistic::{Logistic, train_logistic};
pub use mlp::Mlp;
pub use mps::{Mps, WarmStart};
pub use real::Real;
pub use rows::Rows;
pub use seeds::{Event, Start, fit_seeds};

/// Inputs of every model.
pub const N_INPUTS: usize = 26;
/// Classes: 0 down, 1 flat, 2 up.
pub const N_CLASSES: usize = 3;
