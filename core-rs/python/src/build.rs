//! `build_info()`: what this binary was built from.

use pyo3::prelude::*;
use pyo3::types::PyDict;

#[pyfunction]
fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("version", env!("CARGO_PKG_VERSION"))?;
    info.set_item("profile", env!("QBTC_PROFILE"))?;
    info.set_item("source_hash", env!("QBTC_SOURCE_HASH"))?;
    Ok(info)
}

/// Adds this file's names to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(build_info, m)?)
}
