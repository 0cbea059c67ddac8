//! `mlp`: 26-h-h-3 with `ReLU`, the strong simple rival. Rows are padded to 16 lanes.

use super::file::{HIDDEN_MAX, LOGIT_BOUND_MAX};
use super::preprocess::Preprocess;
use super::{Isa, Kind, N_CLASSES, N_FEATURES, PerClass, Predictor, Row, kernels};
use crate::{Error, Result};

/// Sixteen f32 on a cache line of their own: one AVX-512 register, two AVX2 ones.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Lane(pub [f32; 16]);

/// Rows of the first layer: the features, padded with zeros to a multiple of 4.
pub const FIRST_INPUTS: usize = N_FEATURES.next_multiple_of(4);
/// Lanes that hold the widest hidden layer.
pub const LANES_MAX: usize = HIDDEN_MAX / 16;
/// A hidden layer on the stack.
pub type Hidden = [Lane; LANES_MAX];

/// Weights laid out by lanes; `lanes` = ceil(h / 16).
#[derive(Clone, Debug)]
pub struct Mlp {
    pub pre: Preprocess,
    pub hidden: usize,
    pub lanes: usize,
    /// (28, lanes): two rows of zeros
    pub w1: Vec<Lane>,
    pub b1: Hidden,
    /// (16 lanes, lanes): rows of padded inputs are zero
    pub w2: Vec<Lane>,
    pub b2: Hidden,
    /// (3, lanes)
    pub w3: Vec<Lane>,
    pub b3: PerClass,
    pub inv_temperature: f32,
    pub isa: Isa,
}

/// File tensors of an `mlp`, row major.
pub struct Tensors<'a> {
    pub w1: &'a [f32],
    pub b1: &'a [f32],
    pub w2: &'a [f32],
    pub b2: &'a [f32],
    pub w3: &'a [f32],
    pub b3: &'a [f32],
}

/// The lanes as one run of floats.
#[expect(unsafe_code, reason = "an array of arrays of floats is an array of floats")]
#[inline(always)]
pub fn as_floats(lanes: &[Lane]) -> &[f32] {
    const { assert!(size_of::<Lane>() == 16 * size_of::<f32>()) }
    // SAFETY: a `Lane` is `repr(C)` with sixteen floats and, by the assertion, nothing else.
    unsafe { std::slice::from_raw_parts(lanes.as_ptr().cast(), 16 * lanes.len()) }
}

/// (rows, columns) row major to (rows, lanes), zeros after the columns.
fn by_lanes(values: &[f32], columns: usize, lanes: usize) -> Vec<Lane> {
    let mut out = Vec::new();
    for row in values.chunks(columns) {
        for lane in 0..lanes {
            let get = |i| row.get(16 * lane + i).copied().unwrap_or(0.0);
            out.push(Lane(std::array::from_fn(get)));
        }
    }
    out
}

fn hidden_row(values: &[f32], lanes: usize) -> Hidden {
    let mut out = [Lane::default(); LANES_MAX];
    out[..lanes].copy_from_slice(&by_lanes(values, values.len(), lanes));
    out
}

impl Mlp {
    /// Lays out the file's tensors; `hidden` is at most [`HIDDEN_MAX`].
    pub fn new(
        pre: Preprocess,
        hidden: usize,
        t: &Tensors,
        temperature: f32,
        isa: Isa,
    ) -> Result<Self> {
        let norm = |v: &[f32]| v.iter().map(|x| f64::from(x.abs())).sum::<f64>().max(1.0);
        let first = norm(t.w1) + norm(t.b1);
        let second = norm(t.w2) * first + norm(t.b2);
        if (norm(t.w3) * second + norm(t.b3)) / f64::from(temperature) > LOGIT_BOUND_MAX {
            return Err(Error::model("w2", "so large that a logit could overflow"));
        }
        let lanes = hidden.div_ceil(16);
        let mut w1 = by_lanes(t.w1, hidden, lanes);
        w1.resize(FIRST_INPUTS * lanes, Lane::default());
        let mut w2 = by_lanes(t.w2, hidden, lanes);
        w2.resize(16 * lanes * lanes, Lane::default());
        let transposed: Vec<f32> =
            (0..N_CLASSES).flat_map(|c| t.w3.iter().skip(c).step_by(N_CLASSES).copied()).collect();
        Ok(Self {
            pre,
            hidden,
            lanes,
            w1,
            b1: hidden_row(t.b1, lanes),
            w2,
            b2: hidden_row(t.b2, lanes),
            w3: by_lanes(&transposed, hidden, lanes),
            b3: [t.b3[0], t.b3[1], t.b3[2]],
            inv_temperature: 1.0 / temperature,
            isa,
        })
    }

    /// First-layer sums before the `ReLU`.
    #[inline(always)]
    pub fn first(&self, u: &Row) -> Hidden {
        let mut h = self.b1;
        for i in 0..N_FEATURES {
            for lane in 0..self.lanes {
                add_scaled(&mut h[lane], u[i], &self.w1[i * self.lanes + lane]);
            }
        }
        h
    }

    /// Logits from first-layer sums.
    #[inline(always)]
    pub fn rest(&self, first: &Hidden) -> PerClass {
        let mut h = self.b2;
        for (i, row) in self.w2.chunks_exact(self.lanes).enumerate() {
            let x = first[i / 16].0[i % 16].max(0.0);
            for (h, w) in h.iter_mut().zip(row) {
                add_scaled(h, x, w);
            }
        }
        std::array::from_fn(|c| {
            let w3 = &self.w3[c * self.lanes..(c + 1) * self.lanes];
            let mut sum = Lane::default();
            for (h, w) in h.iter().zip(w3) {
                for j in 0..16 {
                    sum.0[j] += h.0[j].max(0.0) * w.0[j];
                }
            }
            sum.0.iter().sum::<f32>() + self.b3[c]
        })
    }
}

#[inline(always)]
fn add_scaled(sum: &mut Lane, x: f32, w: &Lane) {
    for j in 0..16 {
        sum.0[j] += x * w.0[j];
    }
}

impl Predictor for Mlp {
    fn kind(&self) -> Kind {
        Kind::Mlp { hidden: self.hidden }
    }

    fn logits(&self, x: &Row) -> PerClass {
        kernels::mlp(self, x).0
    }

    fn probabilities(&self, x: &Row) -> PerClass {
        kernels::mlp(self, x).1
    }

    /// One rank-1 update of the first layer per feature, then the rest of the network.
    fn explain(&self, x: &Row) -> [PerClass; N_FEATURES] {
        let u = self.pre.squash(x);
        let first = self.first(&u);
        let z = self.rest(&first);
        std::array::from_fn(|i| {
            let mut changed = first;
            for lane in 0..self.lanes {
                let step = self.pre.u_mean[i] - u[i];
                add_scaled(&mut changed[lane], step, &self.w1[i * self.lanes + lane]);
            }
            let ablated = self.rest(&changed);
            std::array::from_fn(|c| ablated[c] - z[c])
        })
    }
}
