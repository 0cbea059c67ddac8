//! `time_events()` and `time_inference()`: the timing loops of the benchmarks.

#![expect(clippy::needless_pass_by_value, reason = "pyo3 hands extracted arguments over by value")]

use std::sync::Arc;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use qbtc_core::signal::{N_FEATURES, PADDED, Row};
use qbtc_core::{Error, timing};

use crate::error::to_py;
use crate::features::{EventArrays, feature_config};
use crate::signal::SignalModel;

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

#[pyfunction]
#[pyo3(signature = (model, x, *, blocks, block_calls))]
fn time_inference<'py>(
    model: &Bound<'py, SignalModel>,
    x: PyReadonlyArray2<'py, f32>,
    blocks: usize,
    block_calls: usize,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let values = x
        .as_slice()
        .ok()
        .filter(|_| x.as_array().ncols() == N_FEATURES)
        .ok_or_else(|| to_py(Error::input("x", "must be C-contiguous of shape (n, 26)")))?;
    let rows: Vec<Row> = values
        .chunks_exact(N_FEATURES)
        .map(|values| {
            let mut row = [0.0; PADDED];
            row[..N_FEATURES].copy_from_slice(values);
            row
        })
        .collect();
    let (py, model) = (model.py(), Arc::clone(&model.get().model));
    let ns = py.detach(|| timing::inference(model, &rows, blocks, block_calls)).map_err(to_py)?;
    Ok(ns.into_pyarray(py))
}

/// Adds this file's names to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(time_events, m)?)?;
    m.add_function(wrap_pyfunction!(time_inference, m)?)
}
