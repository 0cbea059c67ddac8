//! Which vector instructions the kernels use: chosen once, when a model is loaded.

use crate::{Error, Result};

/// Environment variable that forces an instruction set: `scalar`, `avx2` or `avx512`.
pub const ISA_VARIABLE: &str = "QBTC_ISA";

/// An instruction set the kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, any processor.
    Scalar,
    /// AVX2 with FMA (Haswell, Zen and later).
    Avx2,
    /// AVX-512 F/DQ/VL with FMA (Skylake-X, Zen 4 and later).
    Avx512,
}

impl Isa {
    /// All of them, slowest first.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// Whether this processor (and operating system) runs it.
    pub fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            match self {
                Self::Scalar => true,
                Self::Avx2 => avx2,
                Self::Avx512 => {
                    avx2 && is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vl")
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Scalar
        }
    }

    /// Its name in `QBTC_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// The instruction set called `name`.
    ///
    /// # Errors
    /// [`Error::Input`] if the name is unknown or this processor does not have it.
    pub fn parse(name: &str) -> Result<Self> {
        let isa = Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
            Error::input("isa", format!("`{name}` is unknown; use scalar, avx2 or avx512"))
        })?;
        if isa.available() {
            Ok(isa)
        } else {
            Err(Error::input("isa", format!("this processor does not have `{name}`")))
        }
    }

    /// The best this processor has, or what `QBTC_ISA` asks for.
    ///
    /// # Errors
    /// [`Error::Input`] if `QBTC_ISA` is unknown or not available.
    pub fn detect() -> Result<Self> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) => Self::parse(&name),
            Err(_) => Ok(Self::best()),
        }
    }

    /// The fastest one this processor has.
    pub fn best() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.available()).unwrap_or(Self::Scalar)
    }
}
