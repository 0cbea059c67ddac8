//! `mps`: the matrix-product-state classifier, contracted in blocks.
//!
//! *Pairs.* Two neighbouring sites with inputs u1, u2 multiply a row vector by
//! `(B0 + u1 B1)(B0' + u2 B1') = M00 + u1 M10 + u2 M01 + u1 u2 M11`, where `B0 = I + A[k,0]` and
//! `B1 = A[k,1]`. The four products are formed once, at load, in f64. The sum over the four does
//! not depend on the vector, so it is off the critical path: one step is one vector-matrix product.
//!
//! *Ends.* The six sites next to each end meet a constant vector, so their product is a
//! multilinear polynomial with 2^6 constant vectors as coefficients; Horner evaluates it in six
//! dependent steps. What remains in series is 4 pairs from the left beside 3 from the right.
//!
//! Size: 2 * 64 X + 7 * 4 X^2 + 3 X^2 f32 = 12 KiB at bond 8, 39 KiB at bond 16: both fit a
//! first-level cache of 48 KiB, which plain pairs at bond 16 (55 KiB) do not.

use super::file::LOGIT_BOUND_MAX;
use super::preprocess::Preprocess;
use super::{
    Isa, Kind, LEFT_SITES, N_CLASSES, N_FEATURES, PADDED, PerClass, Predictor, Row, kernels,
};
use crate::{Error, Result};

/// Sites of each end that are evaluated as one polynomial.
pub const END_SITES: usize = 6;
/// Its coefficients.
pub const END_TERMS: usize = 1 << END_SITES;
/// Pairs of the left chain.
pub const LEFT_PAIRS: usize = (LEFT_SITES - END_SITES) / 2;
/// Pairs of the right chain.
pub const RIGHT_PAIRS: usize = (N_FEATURES - LEFT_SITES - END_SITES) / 2;
/// An X by X matrix, row major.
type Matrix<const X: usize> = [[f32; X]; X];

/// What one inference reads; `X` = bond. Every array is a whole number of cache lines.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Hot<const X: usize> {
    /// (2, 64, X) left and right: coefficient t belongs to the product of the inputs of those
    /// sites j (counted from the end) whose bit j is set in t.
    pub ends: [[[f32; X]; END_TERMS]; 2],
    /// (7, 4, X, X) `M00, M10, M01, M11`: first the left chain, then the right one.
    pub pairs: [[Matrix<X>; 4]; LEFT_PAIRS + RIGHT_PAIRS],
    /// (3, X, X)
    pub head: [Matrix<X>; N_CLASSES],
    pub pre: Preprocess,
    pub bias: PerClass,
    pub inv_temperature: f32,
    /// (2, 6) features read by the ends.
    pub end_reads: [[u8; END_SITES]; 2],
    /// (7, 2) features read by the first and second site of each pair.
    pub pair_reads: [[u8; 2]; LEFT_PAIRS + RIGHT_PAIRS],
}

impl<const X: usize> Hot<X> {
    /// Inputs of one end's sites.
    #[inline(always)]
    pub fn end_inputs(&self, end: usize, u: &Row) -> [f32; END_SITES] {
        self.end_reads[end].map(|feature| u[feature as usize % PADDED])
    }

    /// Inputs of a pair's sites.
    #[inline(always)]
    pub fn pair_inputs(&self, pair: usize, u: &Row) -> [f32; 2] {
        self.pair_reads[pair].map(|feature| u[feature as usize % PADDED])
    }
}

/// What `explain` reads beside it.
#[derive(Clone, Debug)]
struct Sites<const X: usize> {
    left: [f32; X],
    right: [f32; X],
    /// (26, X, X) `I + A[k,0]`, in contraction order: 14 left sites, then 12 right sites.
    constant: [Matrix<X>; N_FEATURES],
    /// (26, X, X) `A[k,1]`.
    linear: [Matrix<X>; N_FEATURES],
    /// (2, 26, X, X) the transposes of both, for the way back.
    transposed: [[Matrix<X>; N_FEATURES]; 2],
    /// (26) feature read by each.
    reads: [u8; N_FEATURES],
}

/// Weights of one model.
#[derive(Clone, Debug)]
pub struct Mps<const X: usize> {
    hot: Box<Hot<X>>,
    sites: Box<Sites<X>>,
    isa: Isa,
}

/// File tensors of an `mps`, row major.
pub struct Tensors<'a> {
    pub a: &'a [f32],
    pub w: &'a [f32],
    pub l: &'a [f32],
    pub r: &'a [f32],
    pub b: &'a [f32],
    pub perm: &'a [u8; N_FEATURES],
}

/// Sites in contraction order: 0..14 from the left, then 25 down to 14.
fn contraction_order() -> [usize; N_FEATURES] {
    std::array::from_fn(|i| if i < LEFT_SITES { i } else { N_FEATURES - 1 - (i - LEFT_SITES) })
}

impl<const X: usize> Mps<X> {
    /// Lays out the file's tensors.
    pub fn new(pre: Preprocess, t: &Tensors, temperature: f32, isa: Isa) -> Result<Self> {
        let sites = Box::new(Sites::new(t));
        if sites.logit_bound(t) / f64::from(temperature) > LOGIT_BOUND_MAX {
            return Err(Error::model("A", "so large that a logit could overflow"));
        }
        let first_pair = |p: usize| {
            if p < LEFT_PAIRS { END_SITES + 2 * p } else { 2 * END_SITES + 2 * p }
        };
        let reads = |s: usize| sites.reads[s];
        let mut hot = Box::new(Hot {
            ends: [sites.end(&sites.left, 0), sites.end(&sites.right, LEFT_SITES)],
            pairs: [[[[0.0; X]; X]; 4]; LEFT_PAIRS + RIGHT_PAIRS],
            head: std::array::from_fn(|c| matrix(t.w, c)),
            pre,
            bias: [t.b[0], t.b[1], t.b[2]],
            inv_temperature: 1.0 / temperature,
            end_reads: [0, LEFT_SITES].map(|from| std::array::from_fn(|j| reads(from + j))),
            pair_reads: std::array::from_fn(|p| [0, 1].map(|j| reads(first_pair(p) + j))),
        });
        for (p, pair) in hot.pairs.iter_mut().enumerate() {
            *pair = sites.fuse(first_pair(p));
        }
        Ok(Self { hot, sites, isa })
    }
}

/// Matrix number `at` of a row-major tensor.
fn matrix<const X: usize>(values: &[f32], at: usize) -> Matrix<X> {
    std::array::from_fn(|a| std::array::from_fn(|b| values[(at * X + a) * X + b]))
}

impl<const X: usize> Sites<X> {
    fn new(t: &Tensors) -> Self {
        let order = contraction_order();
        let mut constant: [Matrix<X>; N_FEATURES] = order.map(|k| matrix(t.a, 2 * k));
        for site in &mut constant {
            for (a, row) in site.iter_mut().enumerate() {
                row[a] += 1.0;
            }
        }
        let linear: [Matrix<X>; N_FEATURES] = order.map(|k| matrix(t.a, 2 * k + 1));
        let transpose = |m: &Matrix<X>| -> Matrix<X> {
            std::array::from_fn(|a| std::array::from_fn(|b| m[b][a]))
        };
        Self {
            transposed: [&constant, &linear].map(|m| m.each_ref().map(transpose)),
            constant,
            linear,
            left: std::array::from_fn(|a| t.l[a]),
            right: std::array::from_fn(|a| t.r[a]),
            reads: order.map(|k| t.perm[k]),
        }
    }

    /// The four products of sites `s` and `s + 1`, summed in f64.
    fn fuse(&self, s: usize) -> [Matrix<X>; 4] {
        let first = [&self.constant[s], &self.linear[s]];
        let second = [&self.constant[s + 1], &self.linear[s + 1]];
        let product = |i: usize, j: usize, a: usize, b: usize| -> f64 {
            (0..X).map(|m| f64::from(first[i][a][m]) * f64::from(second[j][m][b])).sum()
        };
        [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(i, j)| {
            std::array::from_fn(|a| std::array::from_fn(|b| product(i, j, a, b) as f32))
        })
    }

    /// Coefficient vectors of the six sites from `first` on, applied to `start`, in f64.
    fn end(&self, start: &[f32; X], first: usize) -> [[f32; X]; END_TERMS] {
        std::array::from_fn(|term| {
            let mut v = start.map(f64::from);
            for j in 0..END_SITES {
                let chosen = term >> j & 1 == 1;
                let site = if chosen { &self.linear[first + j] } else { &self.constant[first + j] };
                v = std::array::from_fn(|b| (0..X).map(|a| v[a] * f64::from(site[a][b])).sum());
            }
            v.map(|x| x as f32)
        })
    }

    /// No |logit| is larger, for |u| <= 1: products of 1-norms and row-sum norms.
    fn logit_bound(&self, t: &Tensors) -> f64 {
        let l1 = |v: &[f32]| v.iter().map(|x| f64::from(x.abs())).sum::<f64>();
        let rows = |m: &[[f32; X]; X]| m.iter().map(|row| l1(row)).fold(0.0, f64::max);
        let step = |s: usize| rows(&self.constant[s]) + rows(&self.linear[s]);
        let left = (0..LEFT_SITES).map(step).product::<f64>() * l1(t.l);
        let right = (LEFT_SITES..N_FEATURES).map(step).product::<f64>() * l1(t.r);
        // Each environment alone must fit in f32 too, so small factors do not excuse large ones.
        left.max(1.0) * right.max(1.0) * l1(t.w).max(1.0) + l1(t.b)
    }
}

impl<const X: usize> Mps<X> {
    /// Row vector times `matrix`.
    #[inline(always)]
    fn times(v: &[f32; X], matrix: &[[f32; X]; X]) -> [f32; X] {
        let mut out = [0.0; X];
        for (&s, row) in v.iter().zip(matrix) {
            for (o, &m) in out.iter_mut().zip(row) {
                *o += s * m;
            }
        }
        out
    }

    /// All `v_s A[s,1]` (X) along one chain, and the environment after its last site.
    #[inline(always)]
    fn sweep(
        &self,
        from: &[f32; X],
        sites: std::ops::Range<usize>,
        u: &Row,
        out: &mut [[f32; X]],
    ) -> [f32; X] {
        let mut v = *from;
        for (s, out) in sites.zip(out) {
            let linear = Self::times(&v, &self.sites.linear[s]);
            let constant = Self::times(&v, &self.sites.constant[s]);
            let x = u[self.sites.reads[s] as usize];
            for b in 0..X {
                v[b] = constant[b] + x * linear[b];
            }
            *out = linear;
        }
        v
    }

    /// From `g[c]` = d `z_c` / d(environment after the chain's last site) back to its first site,
    /// writing each site's logit change.
    #[inline(always)]
    fn ablate(
        &self,
        sites: std::ops::Range<usize>,
        mut g: [[f32; X]; N_CLASSES],
        u: &Row,
        linear: &[[f32; X]; N_FEATURES],
        out: &mut [PerClass; N_FEATURES],
    ) {
        for s in sites.rev() {
            let feature = self.sites.reads[s] as usize;
            let x = u[feature];
            let step = self.hot.pre.u_mean[feature] - x;
            let [mut site, slope] = [0, 1].map(|part: usize| self.sites.transposed[part][s]);
            for a in 0..X {
                for b in 0..X {
                    site[a][b] += x * slope[a][b];
                }
            }
            for c in 0..N_CLASSES {
                out[feature][c] = step * dot(&linear[s], &g[c]);
                g[c] = Self::times(&g[c], &site);
            }
        }
    }

    /// The body of `explain`, to be compiled once for each instruction set.
    #[inline(always)]
    pub fn explain_generic(&self, x: &Row) -> [PerClass; N_FEATURES] {
        let u = self.hot.pre.squash(x);
        let mut linear = [[0.0; X]; N_FEATURES];
        let (on_left, on_right) = linear.split_at_mut(LEFT_SITES);
        let l = self.sweep(&self.sites.left, 0..LEFT_SITES, &u, on_left);
        let r = self.sweep(&self.sites.right, LEFT_SITES..N_FEATURES, &u, on_right);
        let head = &self.hot.head;
        let mut out = [[0.0; N_CLASSES]; N_FEATURES];
        let g_left = std::array::from_fn(|c| head[c].each_ref().map(|row| dot(row, &r)));
        self.ablate(0..LEFT_SITES, g_left, &u, &linear, &mut out);
        let g_right = std::array::from_fn(|c| Self::times(&l, &head[c]));
        self.ablate(LEFT_SITES..N_FEATURES, g_right, &u, &linear, &mut out);
        out
    }
}

#[inline(always)]
fn dot<const X: usize>(a: &[f32; X], b: &[f32; X]) -> f32 {
    let mut product = [0.0; X];
    for i in 0..X {
        product[i] = a[i] * b[i];
    }
    let mut width = X / 2;
    while width > 0 {
        for i in 0..width {
            product[i] += product[i + width];
        }
        width /= 2;
    }
    product[0]
}

impl Predictor for Mps<8> {
    fn kind(&self) -> Kind {
        Kind::Mps { bond: 8 }
    }

    fn logits(&self, x: &Row) -> PerClass {
        kernels::mps8(&self.hot, x, self.isa).0
    }

    fn probabilities(&self, x: &Row) -> PerClass {
        kernels::mps8(&self.hot, x, self.isa).1
    }

    fn explain(&self, x: &Row) -> [PerClass; N_FEATURES] {
        kernels::explain8(self, x, self.isa)
    }
}

impl Predictor for Mps<16> {
    fn kind(&self) -> Kind {
        Kind::Mps { bond: 16 }
    }

    fn logits(&self, x: &Row) -> PerClass {
        kernels::mps16(&self.hot, x, self.isa).0
    }

    fn probabilities(&self, x: &Row) -> PerClass {
        kernels::mps16(&self.hot, x, self.isa).1
    }

    fn explain(&self, x: &Row) -> [PerClass; N_FEATURES] {
        kernels::explain16(self, x, self.isa)
    }
}
