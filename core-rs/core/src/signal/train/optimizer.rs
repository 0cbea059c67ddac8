//! `AdamW` (Loshchilov & Hutter 2019, arXiv 1711.05101) with the decay towards an anchor instead of
//! zero (L2-SP, Li et al. 2018, arXiv 1802.01483).

use super::Real;

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// Moments of one fit, allocated once.
pub struct AdamW<T> {
    anchor: Vec<T>,
    first: Vec<T>,
    second: Vec<T>,
    steps: i32,
}

impl<T: Real> AdamW<T> {
    pub fn new(anchor: Vec<T>) -> Self {
        let n = anchor.len();
        Self { anchor, first: vec![T::ZERO; n], second: vec![T::ZERO; n], steps: 0 }
    }

    /// One update in place; `scale` multiplies the gradient (clipping).
    pub fn step(&mut self, params: &mut [T], gradient: &[T], scale: T, rate: f64, decay: f64) {
        self.steps += 1;
        let correct_1 = 1.0 / (1.0 - BETA_1.powi(self.steps));
        let correct_2 = 1.0 / (1.0 - BETA_2.powi(self.steps));
        let (beta_1, rest_1) = (T::from_f64(BETA_1), T::from_f64(1.0 - BETA_1));
        let (beta_2, rest_2) = (T::from_f64(BETA_2), T::from_f64(1.0 - BETA_2));
        let (correct_2, epsilon) = (T::from_f64(correct_2), T::from_f64(EPSILON));
        let (rate, pull) = (T::from_f64(rate * correct_1), T::from_f64(rate * decay));
        let moments = self.first.iter_mut().zip(&mut self.second).zip(&self.anchor);
        for ((p, &g), ((m, v), &anchor)) in params.iter_mut().zip(gradient).zip(moments) {
            let g = scale * g;
            *m = beta_1 * *m + rest_1 * g;
            *v = beta_2 * *v + rest_2 * g * g;
            *p = *p - rate * *m / ((correct_2 * *v).sqrt() + epsilon) - pull * (*p - anchor);
        }
    }
}

/// Factor that brings a gradient to at most `limit` in Euclidean norm.
pub fn clip_factor<T: Real>(gradient: &[T], limit: f64) -> f64 {
    // Eight partial sums: a fixed order that still vectorises.
    let mut sums = [T::ZERO; 8];
    let (chunks, rest) = gradient.as_chunks::<8>();
    for chunk in chunks {
        for (sum, &g) in sums.iter_mut().zip(chunk) {
            *sum += g * g;
        }
    }
    let tail = rest.iter().map(|g| g.to_f64() * g.to_f64()).sum::<f64>();
    let norm = (sums.iter().map(|s| s.to_f64()).sum::<f64>() + tail).sqrt();
    if norm > limit { limit / norm } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The update as published, written out for one weight.
    #[test]
    fn steps_equal_the_published_update() {
        let (anchor, rate, decay) = (0.3, 0.01, 2.0);
        let mut optimizer = AdamW::new(vec![anchor]);
        let mut params = vec![1.0_f64];
        let (mut want, mut first, mut second) = (1.0_f64, 0.0, 0.0);
        for (t, g) in [4.0, -1.0, 0.5, 0.5, -3.0].into_iter().enumerate() {
            let t = t as i32 + 1;
            let clipped = 0.5 * g;
            first = 0.9 * first + 0.1 * clipped;
            second = 0.999 * second + 0.001 * clipped * clipped;
            let (m, v) = (first / (1.0 - 0.9_f64.powi(t)), second / (1.0 - 0.999_f64.powi(t)));
            want = want - rate * m / (v.sqrt() + 1e-8) - rate * decay * (want - anchor);
            optimizer.step(&mut params, &[g], 0.5, rate, decay);
            assert!((params[0] - want).abs() < 1e-12, "step {t}");
        }
    }

    #[test]
    fn without_a_gradient_weights_return_to_the_anchor() {
        let mut optimizer = AdamW::new(vec![0.3, -2.0]);
        let mut params = vec![1.0_f64, 0.0];
        for _ in 0..2000 {
            optimizer.step(&mut params, &[0.0, 0.0], 1.0, 0.01, 1.0);
        }
        assert!((params[0] - 0.3).abs() < 1e-6 && (params[1] + 2.0).abs() < 1e-6);
    }

    #[test]
    fn long_gradients_are_shortened_to_the_limit() {
        let long: Vec<f64> = (0..11).map(f64::from).collect(); // norm sqrt(385)
        assert!((clip_factor(&long, 2.0) - 2.0 / 385.0_f64.sqrt()).abs() < 1e-15);
        assert!((clip_factor(&long, 20.0) - 1.0).abs() < 1e-15);
        assert!((clip_factor(&[0.0_f32; 9], 1.0) - 1.0).abs() < 1e-15);
    }
}
