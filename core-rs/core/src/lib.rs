//! The inference core of QBTC, in pure Rust: 26 streaming market features, the signal models that
//! read them, their training, a synthetic market to try them on, and language models. No Python, no
//! network; the only I/O is reading model files and keeping a cache.
//!
//! Units: time is UNIX nanoseconds (`i64`), prices are quote currency, sizes base currency,
//! returns basis points.

pub mod error;
pub mod features;
pub mod llm;
pub mod pool;
pub mod signal;
pub mod synth;
pub mod timing;

pub use error::{Error, Result};
