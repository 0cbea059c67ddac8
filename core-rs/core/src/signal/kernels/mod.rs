//! One forward pass per kind and instruction set: row in, (logits, probabilities) out.
//! Each is one function with everything inlined: squash, contraction, softmax.

mod scalar;

use super::logistic::Logistic;
use super::mlp::Mlp;
use super::mps::Hot;
use super::{Isa, PerClass, Row};

/// Logits before the temperature, and probabilities after it.
pub type Output = (PerClass, PerClass);

pub fn mps8(w: &Hot<8, 32>, x: &Row, _isa: Isa) -> Output {
    scalar::mps(w, x)
}

pub fn mps16(w: &Hot<16, 64>, x: &Row, _isa: Isa) -> Output {
    scalar::mps(w, x)
}

pub fn logistic(w: &Logistic, x: &Row) -> Output {
    scalar::logistic(w, x)
}

pub fn mlp(w: &Mlp, x: &Row) -> Output {
    scalar::mlp(w, x)
}
