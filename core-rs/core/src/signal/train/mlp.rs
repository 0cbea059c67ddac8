//! The multilayer perceptron as a network: 26 inputs, two hidden layers of h, `ReLU`, 3 logits.
//!
//! Weights, flat: `w1 (26, h)`, `b1 (h)`, `w2 (h, h)`, `b2 (h)`, `w3 (h, 3)`, `b3 (3)`; a layer is
//! `relu(a w + b)` on row vectors.

use rand_pcg::Pcg64Mcg;

use super::{
    N_CLASSES, N_INPUTS, Network, Real, Start,
    fit::{Tensor, name_tensors},
    seeds::normal,
};
use crate::{Error, Result};

const HIDDEN_MAX: usize = 1024;

/// Scratch of one row and transposed weights.
pub struct Mlp<T> {
    hidden: usize,
    w2_transposed: Vec<T>, // (h, h)
    w3: Vec<T>,            // (h, 3)
    first: Vec<T>,         // (h) after ReLU
    second: Vec<T>,        // (h) after ReLU
    g_first: Vec<T>,       // (h)
    g_second: Vec<T>,      // (h)
}

impl<T: Real> Mlp<T> {
    /// # Errors
    /// `hidden` is 0 or above 1024.
    pub fn new(hidden: usize) -> Result<Self> {
        if !(1..=HIDDEN_MAX).contains(&hidden) {
            return Err(Error::input("hidden", format!("{hidden} is not within 1..{HIDDEN_MAX}")));
        }
        let zeros = || vec![T::ZERO; hidden];
        Ok(Self {
            hidden,
            w2_transposed: vec![T::ZERO; hidden * hidden],
            w3: vec![T::ZERO; hidden * N_CLASSES],
            first: zeros(),
            second: zeros(),
            g_first: zeros(),
            g_second: zeros(),
        })
    }

    /// Weights from N(0, 2 / inputs of the layer) (He et al. 2015), biases 0; decay towards zero.
    ///
    /// # Errors
    /// As [`Mlp::new`].
    pub fn random_start(hidden: usize, rng: &mut Pcg64Mcg) -> Result<Start<T, Self>> {
        let network = Self::new(hidden)?;
        let mut params = vec![T::ZERO; network.n_params()];
        let [w1, _, w2, _, w3, _] = split_mut(hidden, &mut params);
        for (weights, inputs) in [(w1, N_INPUTS), (w2, hidden), (w3, hidden)] {
            let deviation = (2.0 / inputs as f64).sqrt();
            weights.fill_with(|| T::from_f64(deviation * normal(rng)));
        }
        Ok(Start { network, anchor: vec![T::ZERO; params.len()], params, is_model: false })
    }

    /// Weights by the names and shapes of the model file.
    pub fn tensors(hidden: usize, params: &[T]) -> Vec<Tensor<'_, T>> {
        let shapes: [(_, &[usize]); 6] = [
            ("w1", &[N_INPUTS, hidden]),
            ("b1", &[hidden]),
            ("w2", &[hidden, hidden]),
            ("b2", &[hidden]),
            ("w3", &[hidden, N_CLASSES]),
            ("b3", &[N_CLASSES]),
        ];
        name_tensors(&shapes, params)
    }
}

fn sizes(hidden: usize) -> [usize; 6] {
    [N_INPUTS * hidden, hidden, hidden * hidden, hidden, hidden * N_CLASSES, N_CLASSES]
}

fn split<T>(hidden: usize, mut params: &[T]) -> [&[T]; 6] {
    sizes(hidden).map(|size| {
        let (head, rest) = params.split_at(size);
        params = rest;
        head
    })
}

fn split_mut<T>(hidden: usize, mut params: &mut [T]) -> [&mut [T]; 6] {
    sizes(hidden).map(|size| {
        let (head, rest) = std::mem::take(&mut params).split_at_mut(size);
        params = rest;
        head
    })
}

/// `out += a m` with `m (len a, len out)`.
fn add_times<T: Real>(out: &mut [T], a: &[T], m: &[T]) {
    for (&a, row) in a.iter().zip(m.chunks_exact(out.len())) {
        add_scaled(out, a, row);
    }
}

#[inline]
fn add_scaled<T: Real>(out: &mut [T], scale: T, values: &[T]) {
    for (out, &value) in out.iter_mut().zip(values) {
        *out += scale * value;
    }
}

fn relu<T: Real>(values: &mut [T]) {
    for value in values {
        *value = if *value > T::ZERO { *value } else { T::ZERO };
    }
}

/// Zero where the `ReLU` was shut.
fn gate<T: Real>(gradient: &mut [T], activation: &[T]) {
    for (g, &a) in gradient.iter_mut().zip(activation) {
        *g = if a > T::ZERO { *g } else { T::ZERO };
    }
}

/// `gradient += aᵀ b`.
fn add_outer<T: Real>(gradient: &mut [T], a: &[T], b: &[T]) {
    for (row, &a) in gradient.chunks_exact_mut(b.len()).zip(a) {
        add_scaled(row, a, b);
    }
}

impl<T: Real> Network<T> for Mlp<T> {
    fn n_params(&self) -> usize {
        sizes(self.hidden).iter().sum()
    }

    fn prepare(&mut self, params: &[T]) {
        let [_, _, w2, _, w3, _] = split(self.hidden, params);
        for (i, row) in w2.chunks_exact(self.hidden).enumerate() {
            for (j, &value) in row.iter().enumerate() {
                self.w2_transposed[j * self.hidden + i] = value;
            }
        }
        self.w3.copy_from_slice(w3);
    }

    fn forward(&mut self, params: &[T], u: &[T; N_INPUTS]) -> [T; N_CLASSES] {
        let [w1, b1, w2, b2, w3, b3] = split(self.hidden, params);
        self.first.copy_from_slice(b1);
        add_times(&mut self.first, u, w1);
        relu(&mut self.first);
        self.second.copy_from_slice(b2);
        add_times(&mut self.second, &self.first, w2);
        relu(&mut self.second);
        let mut z = [b3[0], b3[1], b3[2]];
        add_times(&mut z, &self.second, w3);
        z
    }

    fn backward(&mut self, u: &[T; N_INPUTS], dz: [T; N_CLASSES], gradient: &mut [T]) {
        let [w1, b1, w2, b2, w3, b3] = split_mut(self.hidden, gradient);
        add_outer(w3, &self.second, &dz);
        add_scaled(b3, T::ONE, &dz);
        for (g, w) in self.g_second.iter_mut().zip(self.w3.chunks_exact(N_CLASSES)) {
            *g = dz[0] * w[0] + dz[1] * w[1] + dz[2] * w[2];
        }
        gate(&mut self.g_second, &self.second);
        add_outer(w2, &self.first, &self.g_second);
        add_scaled(b2, T::ONE, &self.g_second);
        self.g_first.fill(T::ZERO);
        add_times(&mut self.g_first, &self.g_second, &self.w2_transposed);
        gate(&mut self.g_first, &self.first);
        add_outer(w1, u, &self.g_first);
        add_scaled(b1, T::ONE, &self.g_first);
    }
}
