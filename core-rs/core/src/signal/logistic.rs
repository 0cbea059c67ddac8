//! `logistic`: z = weight^T u + bias.

use super::file::LOGIT_BOUND_MAX;
use super::preprocess::{Preprocess, padded};
use super::{Isa, Kind, N_CLASSES, N_FEATURES, PerClass, Predictor, Row, kernels};
use crate::{Error, Result};

/// Weights by class, padded to whole registers.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Logistic {
    pub pre: Preprocess,
    /// (3, 32)
    pub weight: [Row; N_CLASSES],
    pub bias: PerClass,
    pub inv_temperature: f32,
    pub isa: Isa,
}

impl Logistic {
    /// Lays out file tensors `weight (26,3)` and `bias (3)`.
    pub fn new(pre: Preprocess, weight: &[f32], bias: &[f32], t: f32, isa: Isa) -> Result<Self> {
        let by_class = |c| {
            let column: Vec<f32> = weight.iter().skip(c).step_by(N_CLASSES).copied().collect();
            padded(&column)
        };
        let bound = weight.iter().chain(bias).map(|w| f64::from(w.abs())).sum::<f64>();
        if bound / f64::from(t) > LOGIT_BOUND_MAX {
            return Err(Error::model("weight", "so large that a logit could overflow"));
        }
        let bias = [bias[0], bias[1], bias[2]];
        Ok(Self { pre, weight: std::array::from_fn(by_class), bias, inv_temperature: 1.0 / t, isa })
    }
}

impl Predictor for Logistic {
    fn kind(&self) -> Kind {
        Kind::Logistic
    }

    fn logits(&self, x: &Row) -> PerClass {
        kernels::logistic(self, x).0
    }

    fn probabilities(&self, x: &Row) -> PerClass {
        kernels::logistic(self, x).1
    }

    fn explain(&self, x: &Row) -> [PerClass; N_FEATURES] {
        let u = self.pre.squash(x);
        std::array::from_fn(|i| {
            let step = self.pre.u_mean[i] - u[i];
            std::array::from_fn(|c| step * self.weight[c][i])
        })
    }
}
