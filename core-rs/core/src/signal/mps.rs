//! `mps`: the matrix-product-state classifier, pair-blocked.
//!
//! Two neighbouring sites with inputs u1, u2 multiply a row vector by
//! `(B0 + u1 B1)(B0' + u2 B1') = M00 + u1 M10 + u2 M01 + u1 u2 M11`, where `B0 = I + A[k,0]` and
//! `B1 = A[k,1]`. The four products are formed once, at load, in f64. Flops and bytes stay the
//! same (d = 2), the chain of dependent steps is halved: 7 from the left beside 6 from the right.
//! Size: 13 pairs of 4 X^2 f32 = 13 KiB at bond 8, 52 KiB at bond 16.

use super::file::LOGIT_BOUND_MAX;
use super::preprocess::Preprocess;
use super::{Isa, Kind, LEFT_SITES, N_CLASSES, N_FEATURES, PerClass, Predictor, Row, kernels};
use crate::{Error, Result};

/// Fused pairs: 7 on the left, then 6 on the right, each chain from its end to the centre.
pub const PAIRS: usize = N_FEATURES / 2;
/// Pairs of the left chain.
pub const LEFT_PAIRS: usize = LEFT_SITES / 2;

/// What one inference reads. `X` = bond, `Y` = 4 X.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Hot<const X: usize, const Y: usize> {
    /// (13, X, 4X): row a of a pair is `[M00[a] | M10[a] | M01[a] | M11[a]]`.
    pub pairs: [[[f32; Y]; X]; PAIRS],
    /// (X, 4X): row a is `[W_0[a] | W_1[a] | W_2[a] | 0]`.
    pub head: [[f32; Y]; X],
    pub left: [f32; X],
    pub right: [f32; X],
    pub pre: Preprocess,
    pub bias: PerClass,
    pub inv_temperature: f32,
    /// (13, 2) features read by the first and second site of each pair.
    pub reads: [[u8; 2]; PAIRS],
}

/// What `explain` reads beside it.
#[derive(Clone, Debug)]
struct Sites<const X: usize> {
    /// (26, X, X) `I + A[k,0]`, in contraction order: 14 left sites, then 12 right sites.
    constant: [[[f32; X]; X]; N_FEATURES],
    /// (26, X, X) `A[k,1]`.
    linear: [[[f32; X]; X]; N_FEATURES],
    /// (3, X, X)
    head: [[[f32; X]; X]; N_CLASSES],
    /// (26) feature read by each.
    reads: [u8; N_FEATURES],
}

/// Weights of one model.
#[derive(Clone, Debug)]
pub struct Mps<const X: usize, const Y: usize> {
    hot: Box<Hot<X, Y>>,
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

impl<const X: usize, const Y: usize> Mps<X, Y> {
    /// Lays out the file's tensors.
    pub fn new(pre: Preprocess, t: &Tensors, temperature: f32, isa: Isa) -> Result<Self> {
        assert!(Y == 4 * X, "Invariant: a row holds four matrices");
        let sites = Box::new(Sites::new(t));
        let bound = sites.logit_bound(t) / f64::from(temperature);
        if bound > LOGIT_BOUND_MAX {
            return Err(Error::model("A", "so large that a logit could overflow"));
        }
        let mut hot = Box::new(Hot {
            pairs: [[[0.0; Y]; X]; PAIRS],
            head: [[0.0; Y]; X],
            left: std::array::from_fn(|a| t.l[a]),
            right: std::array::from_fn(|a| t.r[a]),
            pre,
            bias: [t.b[0], t.b[1], t.b[2]],
            inv_temperature: 1.0 / temperature,
            reads: std::array::from_fn(|p| [sites.reads[2 * p], sites.reads[2 * p + 1]]),
        });
        for p in 0..PAIRS {
            sites.fuse(2 * p, &mut hot.pairs[p]);
        }
        for a in 0..X {
            for c in 0..N_CLASSES {
                hot.head[a][c * X..(c + 1) * X].copy_from_slice(&sites.head[c][a]);
            }
        }
        Ok(Self { hot, sites, isa })
    }
}

impl<const X: usize> Sites<X> {
    fn new(t: &Tensors) -> Self {
        let order = contraction_order();
        let matrix = |values: &[f32], at: usize| -> [[f32; X]; X] {
            std::array::from_fn(|a| std::array::from_fn(|b| values[(at * X + a) * X + b]))
        };
        let mut constant = order.map(|k| matrix(t.a, 2 * k));
        for site in &mut constant {
            for (a, row) in site.iter_mut().enumerate() {
                row[a] += 1.0;
            }
        }
        Self {
            constant,
            linear: order.map(|k| matrix(t.a, 2 * k + 1)),
            head: std::array::from_fn(|c| matrix(t.w, c)),
            reads: order.map(|k| t.perm[k]),
        }
    }

    /// The four products of sites `s` and `s + 1`, summed in f64.
    fn fuse<const Y: usize>(&self, s: usize, out: &mut [[f32; Y]; X]) {
        let first = [&self.constant[s], &self.linear[s]];
        let second = [&self.constant[s + 1], &self.linear[s + 1]];
        for (block, (i, j)) in [(0, 0), (1, 0), (0, 1), (1, 1)].into_iter().enumerate() {
            for a in 0..X {
                for b in 0..X {
                    let sum: f64 = (0..X)
                        .map(|m| f64::from(first[i][a][m]) * f64::from(second[j][m][b]))
                        .sum();
                    out[a][block * X + b] = sum as f32;
                }
            }
        }
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

impl<const X: usize, const Y: usize> Mps<X, Y> {
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
            for c in 0..N_CLASSES {
                out[feature][c] = step * dot(&linear[s], &g[c]);
                let mut back = [0.0; X];
                for a in 0..X {
                    back[a] = dot(&self.sites.constant[s][a], &g[c])
                        + x * dot(&self.sites.linear[s][a], &g[c]);
                }
                g[c] = back;
            }
        }
    }

    #[inline(always)]
    fn explain_generic(&self, x: &Row) -> [PerClass; N_FEATURES] {
        let u = self.hot.pre.squash(x);
        let mut linear = [[0.0; X]; N_FEATURES];
        let (on_left, on_right) = linear.split_at_mut(LEFT_SITES);
        let l = self.sweep(&self.hot.left, 0..LEFT_SITES, &u, on_left);
        let r = self.sweep(&self.hot.right, LEFT_SITES..N_FEATURES, &u, on_right);
        let head = &self.sites.head;
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

impl Predictor for Mps<8, 32> {
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
        self.explain_generic(x)
    }
}

impl Predictor for Mps<16, 64> {
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
        self.explain_generic(x)
    }
}
