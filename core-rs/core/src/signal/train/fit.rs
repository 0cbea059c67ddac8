//! One fit of one network: minibatches, schedule, weight average, early stopping.

use std::{
    f64::consts::PI,
    sync::atomic::{AtomicBool, Ordering},
};

use rand_pcg::Pcg64Mcg;

use super::{
    N_CLASSES, N_INPUTS, Real, Rows, Start,
    optimizer::{AdamW, clip_factor},
    seeds::shuffle,
};
use crate::{Error, Result};

/// A differentiable model over a flat vector of weights, with its scratch memory.
pub trait Network<T>: Send {
    /// Length of the weight and gradient vectors.
    fn n_params(&self) -> usize;
    /// Called when the weights have changed (transposed copies).
    fn prepare(&mut self, params: &[T]);
    /// Logits of a row; keeps what [`Network::backward`] needs.
    fn forward(&mut self, params: &[T], u: &[T; N_INPUTS]) -> [T; N_CLASSES];
    /// Adds the gradient of the last forward row, given the loss's gradient by the logits.
    fn backward(&mut self, u: &[T; N_INPUTS], dz: [T; N_CLASSES], gradient: &mut [T]);
}

/// The recipe of a fit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Passes over the rows at most.
    pub epochs: usize,
    /// Rows per step.
    pub batch: usize,
    /// Peak rate; rises over `warm_up_steps`, falls as a cosine.
    pub learning_rate: f64,
    /// Decay towards the anchor, per unit of rate.
    pub decay: f64,
    /// Weight of the past in the moving average of the weights.
    pub ema: f64,
    /// Epochs without a better validation loss before stopping.
    pub patience: usize,
    /// Limit of the gradient's norm.
    pub clip: f64,
    /// Steps of linearly rising rate.
    pub warm_up_steps: usize,
}

impl Schedule {
    /// # Errors
    /// A value that cannot train: zero counts, a rate that is not positive, an average outside
    /// [0, 1), a negative decay.
    pub fn check(&self) -> Result<()> {
        let bad = |field, reason: &str| Err(Error::input(field, reason));
        match *self {
            Self { epochs: 0, .. } => bad("epochs", "0; give at least 1"),
            Self { batch: 0, .. } => bad("batch_size", "0; give at least 1"),
            Self { patience: 0, .. } => bad("patience", "0; give at least 1"),
            s if !(s.learning_rate > 0.0 && s.learning_rate < 10.0) => {
                bad("learning_rate", "not within (0, 10)")
            }
            s if !(s.decay >= 0.0 && s.decay * s.learning_rate < 1.0) => {
                bad("decay", "negative, NaN, or as large as one over the learning rate")
            }
            s if !(0.0..1.0).contains(&s.ema) => bad("ema", "not within [0, 1)"),
            s if s.clip.is_nan() || s.clip <= 0.0 => bad("clip", "not positive"),
            _ => Ok(()),
        }
    }

    fn rate(&self, step: usize, steps: usize) -> f64 {
        let rise = ((step + 1) as f64 / self.warm_up_steps.max(1) as f64).min(1.0);
        self.learning_rate * rise * 0.5 * (1.0 + (PI * step as f64 / steps as f64).cos())
    }
}

/// Mean cross-entropy (nats) after an epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EpochLoss {
    /// Over the epoch's minibatches, before each step; NaN for epoch 0 (the start).
    pub train: f64,
    /// Of the averaged weights on the validation rows.
    pub validation: f64,
}

/// The averaged weights that were best on the validation rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit<T> {
    /// Weights in the network's order.
    pub params: Vec<T>,
    /// Epoch they are from; 0 is the start itself (never of a random one).
    pub best_epoch: usize,
    /// Loss by epoch, the start first.
    pub curve: Vec<EpochLoss>,
}

/// A view of trained weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor<'a, T> {
    /// Name in the model file.
    pub name: &'static str,
    /// Its shape, row-major.
    pub shape: Vec<usize>,
    /// Its numbers.
    pub values: &'a [T],
}

/// Cuts flat weights into tensors of these shapes, in order.
pub fn name_tensors<'a, T>(
    shapes: &[(&'static str, &[usize])],
    mut params: &'a [T],
) -> Vec<Tensor<'a, T>> {
    let cut = |&(name, shape): &(&'static str, &[usize])| {
        let (values, rest) = params.split_at(shape.iter().product());
        params = rest;
        Tensor { name, shape: shape.to_vec(), values }
    };
    shapes.iter().map(cut).collect()
}

/// Loss and its gradient by the logits, for one row.
#[inline]
pub fn softmax_loss<T: Real>(z: [T; N_CLASSES], class: usize) -> (f64, [T; N_CLASSES]) {
    let top = if z[0] > z[1] { z[0] } else { z[1] };
    let top = if top > z[2] { top } else { z[2] };
    let e = z.map(|z| (z - top).exp());
    let sum = e[0] + e[1] + e[2];
    let mut dz = e.map(|e| e / sum);
    dz[class] = dz[class] - T::ONE;
    (sum.to_f64().ln() - (z[class] - top).to_f64(), dz)
}

/// Mean cross-entropy of `params` on `rows`, in nats.
pub fn cross_entropy<T: Real>(
    network: &mut impl Network<T>,
    params: &[T],
    rows: Rows<'_, T>,
) -> f64 {
    network.prepare(params);
    let total: f64 =
        rows.iter().map(|(u, class)| softmax_loss(network.forward(params, u), class).0).sum();
    total / rows.len() as f64
}

/// Gradient of the mean loss over `batch` into `gradient`; returns the summed loss.
fn batch_gradient<T: Real>(
    network: &mut impl Network<T>,
    params: &[T],
    rows: Rows<'_, T>,
    batch: &[u32],
    gradient: &mut [T],
) -> f64 {
    network.prepare(params);
    gradient.fill(T::ZERO);
    let weight = T::from_f64(1.0 / batch.len() as f64);
    let mut total = 0.0;
    for &index in batch {
        let (u, class) = rows.row(index as usize);
        let (loss, dz) = softmax_loss(network.forward(params, u), class);
        network.backward(u, dz.map(|g| g * weight), gradient);
        total += loss;
    }
    total
}

/// Fits from `start`; the best validation loss over the epochs wins, with the start among them
/// if it is a model.
/// Returns `None` when `stop` was set. Allocates per call, not per step.
///
/// # Errors
/// The loss stopped being finite (names the learning rate as the remedy).
pub fn fit<T: Real, N: Network<T>>(
    start: Start<T, N>,
    train: Rows<'_, T>,
    validation: Rows<'_, T>,
    schedule: &Schedule,
    rng: &mut Pcg64Mcg,
    stop: &AtomicBool,
    mut observe: impl FnMut(EpochLoss),
) -> Result<Option<Fit<T>>> {
    let Start { mut network, mut params, anchor, is_model } = start;
    debug_assert_eq!(params.len(), network.n_params());
    let mut average = params.clone();
    let mut gradient = vec![T::ZERO; params.len()];
    let mut optimizer = AdamW::new(anchor);
    let mut order: Vec<u32> = (0..train.len() as u32).collect();
    let steps = schedule.epochs * train.len().div_ceil(schedule.batch);
    let mut step = 0;

    let first = EpochLoss {
        train: f64::NAN,
        validation: cross_entropy(&mut network, &average, validation),
    };
    let mut best = Fit { params: average.clone(), best_epoch: 0, curve: vec![first] };
    let mut best_loss = if is_model { first.validation } else { f64::INFINITY };
    for epoch in 1..=schedule.epochs {
        shuffle(rng, &mut order);
        let mut total = 0.0;
        for batch in order.chunks(schedule.batch) {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            total += batch_gradient(&mut network, &params, train, batch, &mut gradient);
            let scale = T::from_f64(clip_factor(&gradient, schedule.clip));
            let rate = schedule.rate(step, steps);
            optimizer.step(&mut params, &gradient, scale, rate, schedule.decay);
            step += 1;
            // A young average forgets faster, so that it does not hang on the start.
            let keep = schedule.ema.min((step + 1) as f64 / (step + 10) as f64);
            blend(&mut average, &params, T::from_f64(1.0 - keep));
        }
        let loss = EpochLoss {
            train: total / train.len() as f64,
            validation: cross_entropy(&mut network, &average, validation),
        };
        if !(loss.train.is_finite() && loss.validation.is_finite()) {
            let reason = format!("training diverged in epoch {epoch}; give a smaller one");
            return Err(Error::input("learning_rate", reason));
        }
        observe(loss);
        best.curve.push(loss);
        if loss.validation < best_loss - 1e-5 {
            best_loss = loss.validation;
            best.best_epoch = epoch;
            best.params.copy_from_slice(&average);
        } else if epoch - best.best_epoch >= schedule.patience {
            break;
        }
    }
    Ok(Some(best))
}

fn blend<T: Real>(average: &mut [T], params: &[T], share: T) {
    for (a, &p) in average.iter_mut().zip(params) {
        *a += share * (p - *a);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_linearly_and_falls_as_a_cosine_to_zero() {
        let schedule = Schedule {
            epochs: 1,
            batch: 1,
            learning_rate: 0.2,
            decay: 0.0,
            ema: 0.0,
            patience: 1,
            clip: 1.0,
            warm_up_steps: 10,
        };
        let near = |step, want: f64| {
            let found = schedule.rate(step, 1000);
            assert!((found - want).abs() < 1e-12, "step {step}: {found}, not {want}");
        };
        near(0, 0.02);
        near(250, 0.1 * (1.0 + 0.5_f64.sqrt()));
        near(500, 0.1);
        near(1000, 0.0);
    }
}
