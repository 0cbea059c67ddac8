//! The matrix product state as a network, warm-started exactly from logistic regression.
//!
//! Weights, flat: `A (26, 2, χ, χ)`, `W (3, χ, χ)`, `l (χ)`, `r (χ)`, `b (3)`. Site k reads input
//! `perm[k]`; left row vector `L <- L (I + A[k,0] + u A[k,1])` over k = 0..13 from `l`, right row
//! vector over k = 25..14 from `r` in the same orientation, `z_c = Lᵀ W_c R + b_c`.
//!
//! Gradient of a row: with G = dloss/dz, the left environment is `g = Σ_c G_c W_c R`; per site
//! `dA[k,s] += φ_s(u) Lᵀ g`, then `g <- (I + A[k,0] + u A[k,1]) g`; the right half mirrored. A row
//! costs about three forwards: 26·6·χ² multiply-adds.

use rand_pcg::Pcg64Mcg;

use super::{
    N_CLASSES, N_INPUTS, Network, Real, Start,
    fit::{Tensor, name_tensors},
    seeds::normal,
};
use crate::{Error, Result};

const N_LEFT: usize = 14;
const N_RIGHT: usize = N_INPUTS - N_LEFT;
const N_MATRICES: usize = 2 * N_INPUTS + N_CLASSES;
/// The channels that carry the logistic model: one constant, one per class.
const N_BLOCK: usize = 1 + N_CLASSES;
/// Boundary value on the free channels.
const FREE_BOUNDARY: f64 = 0.3;

type Matrix<T, const CHI: usize> = [[T; CHI]; CHI];

/// Scratch of one row and transposed weights. `CHI` is the bond dimension, at least 4.
pub struct Mps<T, const CHI: usize> {
    perm: [usize; N_INPUTS],
    transposed: Vec<Matrix<T, CHI>>, // (55): A then W, each transposed
    weights: Vec<Matrix<T, CHI>>,    // (55): A then W
    left: [[T; CHI]; N_LEFT + 1],    // row vectors before and after each left site
    right: [[T; CHI]; N_RIGHT + 1],
    head: [[T; CHI]; N_CLASSES], // W_c R
}

/// Logistic weights and how far the free channels start from silence.
#[derive(Debug, Clone, Copy)]
pub struct WarmStart<'a> {
    /// `(26, 3)` row-major, by feature.
    pub weight: &'a [f64],
    /// `(3)`
    pub bias: &'a [f64],
    /// Feature read by each site.
    pub perm: &'a [i32],
    /// Standard deviation of the entries outside the logistic block.
    pub noise: f64,
}

impl<T: Real, const CHI: usize> Mps<T, CHI> {
    const N_PARAMS: usize = (N_MATRICES * CHI + 2) * CHI + N_CLASSES;

    /// # Errors
    /// `perm` is not a permutation of 0..25.
    pub fn new(perm: &[i32]) -> Result<Self> {
        const { assert!(CHI >= N_BLOCK, "the logistic block needs bond 4") };
        let mut sorted = perm.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..N_INPUTS as i32) {
            return Err(Error::input("perm", "not a permutation of 0..25"));
        }
        Ok(Self {
            perm: std::array::from_fn(|k| perm[k] as usize),
            transposed: vec![[[T::ZERO; CHI]; CHI]; N_MATRICES],
            weights: vec![[[T::ZERO; CHI]; CHI]; N_MATRICES],
            left: [[T::ZERO; CHI]; N_LEFT + 1],
            right: [[T::ZERO; CHI]; N_RIGHT + 1],
            head: [[T::ZERO; CHI]; N_CLASSES],
        })
    }

    /// First weights whose logits equal the logistic model's: channel 0 carries one, channel 1+c
    /// sums the logit of class c. The free channels run (noise in their cores, boundary 0.3) but
    /// nothing leads from them to the block or, through `W`, to a logit, so any noise is exact.
    ///
    /// # Errors
    /// Shapes that do not fit, or numbers that are not finite.
    pub fn warm_start(warm: &WarmStart<'_>, rng: &mut Pcg64Mcg) -> Result<Start<T, Self>> {
        let network = Self::new(warm.perm)?;
        if warm.weight.len() != N_INPUTS * N_CLASSES || warm.bias.len() != N_CLASSES {
            return Err(Error::input("weight", "not (26, 3) with a bias (3)"));
        }
        let finite = |values: &[f64]| values.iter().all(|v| v.is_finite());
        if !(finite(warm.weight) && finite(warm.bias) && warm.noise.is_finite()) {
            return Err(Error::input("weight", "weights, bias or noise are not finite"));
        }
        let mut params = vec![T::ZERO; Self::N_PARAMS];
        let (rows, bias) = params.as_chunks_mut::<CHI>();
        let (cores, rest) = rows.split_at_mut(2 * N_INPUTS * CHI);
        for (index, row) in cores.iter_mut().enumerate() {
            let (site, phi, from) = (index / (2 * CHI), index / CHI % 2, index % CHI);
            for entry in &mut row[N_BLOCK..] {
                *entry = T::from_f64(warm.noise * normal(rng));
            }
            if phi == 1 && from == 0 {
                let feature = network.perm[site];
                for c in 0..N_CLASSES {
                    row[1 + c] = T::from_f64(warm.weight[feature * N_CLASSES + c]);
                }
            }
        }
        for c in 0..N_CLASSES {
            rest[c * CHI + 1 + c][0] = T::ONE;
            rest[c * CHI][1 + c] = T::ONE;
        }
        for boundary in &mut rest[N_CLASSES * CHI..] {
            boundary[0] = T::ONE;
            boundary[N_BLOCK..].fill(T::from_f64(FREE_BOUNDARY));
        }
        for (b, &value) in bias.iter_mut().zip(warm.bias) {
            *b = T::from_f64(value);
        }
        Ok(Start { network, anchor: params.clone(), params, is_model: true })
    }

    /// Weights by the names and shapes of the model file.
    pub fn tensors(params: &[T]) -> Vec<Tensor<'_, T>> {
        let shapes: [(_, &[usize]); 5] = [
            ("A", &[N_INPUTS, 2, CHI, CHI]),
            ("W", &[N_CLASSES, CHI, CHI]),
            ("l", &[CHI]),
            ("r", &[CHI]),
            ("b", &[N_CLASSES]),
        ];
        name_tensors(&shapes, params)
    }

    fn site(&self, matrices: &[Matrix<T, CHI>], v: &[T; CHI], site: usize, u: T) -> [T; CHI] {
        debug_assert!(site < N_INPUTS && self.perm[site] < N_INPUTS);
        step(v, &matrices[2 * site], &matrices[2 * site + 1], u)
    }
}

/// `v (I + m0 + u m1)`.
#[inline]
fn step<T: Real, const CHI: usize>(
    v: &[T; CHI],
    m0: &Matrix<T, CHI>,
    m1: &Matrix<T, CHI>,
    u: T,
) -> [T; CHI] {
    let (y0, y1) = (times(v, m0), times(v, m1));
    std::array::from_fn(|j| v[j] + y0[j] + u * y1[j])
}

/// `v m`.
#[inline]
fn times<T: Real, const CHI: usize>(v: &[T; CHI], m: &Matrix<T, CHI>) -> [T; CHI] {
    let mut out = [T::ZERO; CHI];
    for i in 0..CHI {
        for j in 0..CHI {
            out[j] += v[i] * m[i][j];
        }
    }
    out
}

/// `gradient += scale aᵀ b`, rows of length χ.
#[inline]
fn add_outer<T: Real, const CHI: usize>(
    gradient: &mut [[T; CHI]],
    scale: T,
    a: &[T; CHI],
    b: &[T; CHI],
) {
    for (row, &a) in gradient.iter_mut().zip(a) {
        let a = scale * a;
        for j in 0..CHI {
            row[j] += a * b[j];
        }
    }
}

impl<T: Real, const CHI: usize> Network<T> for Mps<T, CHI> {
    fn n_params(&self) -> usize {
        Self::N_PARAMS
    }

    fn prepare(&mut self, params: &[T]) {
        let (matrices, _) = params.as_chunks::<CHI>().0.as_chunks::<CHI>();
        for ((matrix, weights), transposed) in
            matrices.iter().zip(&mut self.weights).zip(&mut self.transposed)
        {
            *weights = *matrix;
            *transposed = std::array::from_fn(|i| std::array::from_fn(|j| matrix[j][i]));
        }
    }

    fn forward(&mut self, params: &[T], u: &[T; N_INPUTS]) -> [T; N_CLASSES] {
        let (rows, bias) = params.as_chunks::<CHI>();
        self.left[0] = rows[N_MATRICES * CHI];
        self.right[0] = rows[N_MATRICES * CHI + 1];
        for k in 0..N_LEFT {
            self.left[k + 1] = self.site(&self.weights, &self.left[k], k, u[self.perm[k]]);
        }
        for k in 0..N_RIGHT {
            let site = N_INPUTS - 1 - k;
            self.right[k + 1] = self.site(&self.weights, &self.right[k], site, u[self.perm[site]]);
        }
        std::array::from_fn(|c| {
            self.head[c] = times(&self.right[N_RIGHT], &self.transposed[2 * N_INPUTS + c]);
            let mut z = bias[c];
            for j in 0..CHI {
                z += self.left[N_LEFT][j] * self.head[c][j];
            }
            z
        })
    }

    fn backward(&mut self, u: &[T; N_INPUTS], dz: [T; N_CLASSES], gradient: &mut [T]) {
        let (rows, bias) = gradient.as_chunks_mut::<CHI>();
        let (cores, rest) = rows.split_at_mut(2 * N_INPUTS * CHI);
        let (head, boundary) = rest.split_at_mut(N_CLASSES * CHI);
        let (mut g_left, mut g_right) = ([T::ZERO; CHI], [T::ZERO; CHI]);
        for c in 0..N_CLASSES {
            let from_left = times(&self.left[N_LEFT], &self.weights[2 * N_INPUTS + c]);
            for j in 0..CHI {
                g_left[j] += dz[c] * self.head[c][j];
                g_right[j] += dz[c] * from_left[j];
            }
            let w = &mut head[c * CHI..][..CHI];
            add_outer(w, dz[c], &self.left[N_LEFT], &self.right[N_RIGHT]);
            bias[c] += dz[c];
        }
        for k in (0..N_LEFT).rev() {
            let u = u[self.perm[k]];
            let core = &mut cores[2 * k * CHI..][..2 * CHI];
            add_outer(&mut core[..CHI], T::ONE, &self.left[k], &g_left);
            add_outer(&mut core[CHI..], u, &self.left[k], &g_left);
            g_left = self.site(&self.transposed, &g_left, k, u);
        }
        for k in (0..N_RIGHT).rev() {
            let site = N_INPUTS - 1 - k;
            let u = u[self.perm[site]];
            let core = &mut cores[2 * site * CHI..][..2 * CHI];
            add_outer(&mut core[..CHI], T::ONE, &self.right[k], &g_right);
            add_outer(&mut core[CHI..], u, &self.right[k], &g_right);
            g_right = self.site(&self.transposed, &g_right, site, u);
        }
        for j in 0..CHI {
            boundary[0][j] += g_left[j];
            boundary[1][j] += g_right[j];
        }
    }
}
