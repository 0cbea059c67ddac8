//! One forward pass per kind and instruction set: row in, (logits, probabilities) out.
//! Each is one function with everything inlined: squash, contraction, softmax.
//!
//! Sketch, in cycles of dependent work at bond 8 with 512-bit registers: squash 50, ends 24, 4
//! pair steps of 22 (permute 4, two products 8, adds 10), head 40, softmax 60: about 260 cycles,
//! 65 ns at 4 GHz. Bond 16 is bound by 700 multiply-adds and as many loads: about 350 cycles more.
//! The `mlp` at h = 32 is bound by 210 loads: about 250 cycles.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use super::logistic::Logistic;
use super::mlp::Mlp;
use super::mps::{Hot, Mps};
use super::{Isa, N_FEATURES, PerClass, Row};

/// Logits before the temperature, and probabilities after it.
pub type Output = (PerClass, PerClass);

/// Calls `$name` of the instruction set's module.
macro_rules! dispatch {
    ($isa:expr, $name:ident, $w:expr, $x:expr) => {
        match $isa {
            // SAFETY: a model refuses, when it is made, an instruction set that the processor
            // does not have (`Model::new`), and `isa` never changes afterwards.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512::$name($w, $x) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2::$name($w, $x) },
            _ => scalar::$name($w, $x),
        }
    };
}

#[expect(unsafe_code, reason = "calls functions compiled for the detected instruction set")]
#[inline]
pub fn mps8(w: &Hot<8>, x: &Row, isa: Isa) -> Output {
    dispatch!(isa, mps8, w, x)
}

#[expect(unsafe_code, reason = "calls functions compiled for the detected instruction set")]
#[inline]
pub fn mps16(w: &Hot<16>, x: &Row, isa: Isa) -> Output {
    dispatch!(isa, mps16, w, x)
}

#[expect(unsafe_code, reason = "calls functions compiled for the detected instruction set")]
#[inline]
pub fn logistic(w: &Logistic, x: &Row) -> Output {
    dispatch!(w.isa, logistic, w, x)
}

#[expect(unsafe_code, reason = "calls functions compiled for the detected instruction set")]
#[inline]
pub fn mlp(w: &Mlp, x: &Row) -> Output {
    dispatch!(w.isa, mlp, w, x)
}

/// Logit changes by feature.
pub type Changes = [PerClass; N_FEATURES];

#[expect(unsafe_code, reason = "calls functions compiled for the detected instruction set")]
pub fn explain8(w: &Mps<8>, x: &Row, isa: Isa) -> Changes {
    dispatch!(isa, explain8, w, x)
}

#[expect(unsafe_code, reason = "calls functions compiled for the detected instruction set")]
pub fn explain16(w: &Mps<16>, x: &Row, isa: Isa) -> Changes {
    dispatch!(isa, explain16, w, x)
}
