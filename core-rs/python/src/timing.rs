//! `time_events()`: the timing loops of the benchmarks.

use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use qbtc_core::timing;

use crate::error::to_py;
use crate::features::{EventArrays, feature_config};

#[pyfunction]
#[pyo3(signature = (columns, *, block_events, read))]
fn time_events<'py>(
    columns: &Bound<'py, PyAny>,
    block_events: usize,
    read: bool,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let arrays = EventArrays::of(columns)?;
    let (config, events) = (feature_config(columns)?, arrays.columns()?);
    let py = columns.py();
    let ns = py.detach(|| timing::events(config, events, block_events, read)).map_err(to_py)?;
    Ok(ns.into_pyarray(py))
}

/// Adds this file's names to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(time_events, m)?)
}
