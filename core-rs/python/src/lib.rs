//! The binding `qbtc._core`: a table of contents. Each exported class has a file of its own that
//! checks arguments, releases the GIL for long work, calls `qbtc_core` and maps the error.
//! The manual is `python/qbtc/_core.pyi`.

use pyo3::prelude::*;

mod build;
mod embedding;
mod error;
mod features;
mod language;
mod session;
mod signal;
mod synth;
mod timing;
mod train;

#[pymodule]
fn _core(m: &Bound<'_, PyModule>) -> PyResult<()> {
    build::register(m)?;
    embedding::register(m)?;
    error::register(m)?;
    features::register(m)?;
    language::register(m)?;
    synth::register(m)?;
    timing::register(m)?;
    train::register(m)?;
    session::register(m)?;
    signal::register(m)?;
    Ok(())
}
