//! The slow version: models in f64, site by site, for any number of sites, bond and classes.
//! Oracle of the kernels; [`MpsReference::brute_force`] is the oracle of this one.

/// A matrix product state of any size; layouts as in the file.
#[derive(Clone, Debug)]
pub struct MpsReference {
    /// Sites n; the first `left_sites` are contracted from the left.
    pub sites: usize,
    /// Sites contracted from the left.
    pub left_sites: usize,
    /// Bond X.
    pub bond: usize,
    /// (n, 2, X, X)
    pub a: Vec<f64>,
    /// (C, X, X)
    pub w: Vec<f64>,
    /// (X)
    pub l: Vec<f64>,
    /// (X)
    pub r: Vec<f64>,
    /// (C)
    pub b: Vec<f64>,
    /// (n) feature read by each site.
    pub perm: Vec<usize>,
}

impl MpsReference {
    /// Element (i, j) of `I + A[k,0] + u A[k,1]`.
    fn site(&self, k: usize, u: f64, i: usize, j: usize) -> f64 {
        self.constant(k, i, j) + u * self.a[((2 * k + 1) * self.bond + i) * self.bond + j]
    }

    fn constant(&self, k: usize, i: usize, j: usize) -> f64 {
        f64::from(u8::from(i == j)) + self.a[(2 * k * self.bond + i) * self.bond + j]
    }

    fn chain(&self, from: &[f64], sites: impl Iterator<Item = usize>, u: &[f64]) -> Vec<f64> {
        let mut v = from.to_vec();
        for k in sites {
            let x = u[self.perm[k]];
            v = (0..self.bond)
                .map(|j| (0..self.bond).map(|i| v[i] * self.site(k, x, i, j)).sum())
                .collect();
        }
        v
    }

    fn head(&self, left: &[f64], right: &[f64]) -> Vec<f64> {
        let x = self.bond;
        let z = |c: usize| {
            let w = &self.w[c * x * x..(c + 1) * x * x];
            let terms = (0..x * x).map(|ij| left[ij / x] * w[ij] * right[ij % x]);
            terms.sum::<f64>() + self.b[c]
        };
        (0..self.b.len()).map(z).collect()
    }

    /// Logits for `u`, shape (n), by the definition.
    pub fn logits(&self, u: &[f64]) -> Vec<f64> {
        let left = self.chain(&self.l, 0..self.left_sites, u);
        let right = self.chain(&self.r, (self.left_sites..self.sites).rev(), u);
        self.head(&left, &right)
    }

    /// Logits as the sum over all 2^n monomials `prod_{k in S} u_k`, each coefficient contracted
    /// on its own: no step is shared with [`MpsReference::logits`].
    ///
    /// # Panics
    /// If there are more than 16 sites.
    pub fn brute_force(&self, u: &[f64]) -> Vec<f64> {
        assert!(self.sites <= 16, "2^n terms: use at most 16 sites");
        let mut z = self.b.clone();
        for subset in 0..1_usize << self.sites {
            let chosen = |k: usize| subset >> k & 1 == 1;
            let monomial: f64 =
                (0..self.sites).filter(|&k| chosen(k)).map(|k| u[self.perm[k]]).product();
            for (z, coefficient) in z.iter_mut().zip(self.coefficients(&chosen)) {
                *z += monomial * coefficient;
            }
        }
        z
    }

    /// Coefficient of one monomial in each class: at each site either the constant or the linear
    /// matrix.
    fn coefficients(&self, chosen: &dyn Fn(usize) -> bool) -> Vec<f64> {
        let x = self.bond;
        let element = |k: usize, i: usize, j: usize| {
            if chosen(k) { self.a[((2 * k + 1) * x + i) * x + j] } else { self.constant(k, i, j) }
        };
        let chain = |from: &[f64], sites: Vec<usize>| {
            sites.into_iter().fold(from.to_vec(), |v, k| {
                (0..x).map(|j| (0..x).map(|i| v[i] * element(k, i, j)).sum()).collect()
            })
        };
        let left: Vec<f64> = chain(&self.l, (0..self.left_sites).collect());
        let right: Vec<f64> = chain(&self.r, (self.left_sites..self.sites).rev().collect());
        let z = self.head(&left, &right);
        z.iter().zip(&self.b).map(|(z, b)| z - b).collect()
    }
}

/// Softmax in f64.
pub fn softmax(z: &[f64], temperature: f64) -> Vec<f64> {
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = z.iter().map(|z| ((z - top) / temperature).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

/// `u` in f64 with missing values replaced by their mean.
pub fn squash(x: &[f32], mu: &[f32], inv_scale: &[f32], u_mean: &[f32]) -> Vec<f64> {
    (0..x.len())
        .map(|i| {
            let t = (f64::from(x[i]) - f64::from(mu[i])) * f64::from(inv_scale[i]);
            if x[i].is_nan() { f64::from(u_mean[i]) } else { t / (1.0 + t.abs()) }
        })
        .collect()
}
