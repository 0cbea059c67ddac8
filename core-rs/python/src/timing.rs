//! `time_events()`, `time_inference()`, `ForwardTimer`, `read_bandwidth()` and `int8_peak()`: the
//! timing loops of the benchmarks.

#![expect(clippy::needless_pass_by_value, reason = "pyo3 hands extracted arguments over by value")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use qbtc_core::llm::config::ModelConfig;
use qbtc_core::llm::graph::LoadOptions;
use qbtc_core::llm::kernels::{Simd, roofline};
use qbtc_core::llm::model::LanguageModel;
use qbtc_core::pool::Pool;
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

/// A language model's forward pass alone.
#[pyclass(module = "qbtc._core", frozen)]
struct ForwardTimer {
    timer: Mutex<timing::ForwardTimer>,
    #[pyo3(get)]
    weight_bytes: usize,
    #[pyo3(get)]
    prompt_operations: usize,
}

/// 8-bit multiplications and additions that one token of a prompt needs: all matrices but the head.
fn prompt_operations(config: &ModelConfig) -> usize {
    let queries = config.heads * config.head_dim;
    let keys_and_values = 2 * config.kv_heads * config.head_dim;
    let attention = config.dim * (queries + keys_and_values) + queries * config.dim;
    2 * config.layers * (attention + 3 * config.dim * config.ffn)
}

impl ForwardTimer {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut timing::ForwardTimer) -> qbtc_core::Result<T> + Send,
    ) -> PyResult<T> {
        let timer = &self.timer;
        py.detach(|| call(&mut timer.lock().unwrap_or_else(PoisonError::into_inner))).map_err(to_py)
    }
}

#[pymethods]
impl ForwardTimer {
    #[new]
    #[pyo3(signature = (path, *, threads, tokens_max = 8192))]
    fn new(py: Python<'_>, path: PathBuf, threads: usize, tokens_max: usize) -> PyResult<Self> {
        let options = LoadOptions { threads, ..LoadOptions::default() };
        py.detach(|| {
            let forward = LanguageModel::load(&path, &options)?.forward;
            let (weight_bytes, operations) =
                (forward.weight_bytes(), prompt_operations(forward.config()));
            let timer = Mutex::new(timing::ForwardTimer::new(Box::new(forward), tokens_max)?);
            Ok(Self { timer, weight_bytes, prompt_operations: operations })
        })
        .map_err(to_py)
    }

    fn prompt(&self, py: Python<'_>, tokens: usize) -> PyResult<f64> {
        self.with(py, |timer| timer.prompt(tokens))
    }

    fn decode<'py>(
        &self,
        py: Python<'py>,
        depth: usize,
        steps: usize,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        Ok(self.with(py, |timer| timer.decode(depth, steps))?.into_pyarray(py))
    }

    fn verify<'py>(
        &self,
        py: Python<'py>,
        depth: usize,
        rows: usize,
        repeats: usize,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        Ok(self.with(py, |timer| timer.verify(depth, rows, repeats))?.into_pyarray(py))
    }
}

/// Longest measurement of a limit, seconds.
const LIMIT_S_MAX: f64 = 60.0;

fn duration(seconds: f64) -> PyResult<Duration> {
    if (0.0..=LIMIT_S_MAX).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(to_py(Error::input("seconds", format!("{seconds} is not in 0..={LIMIT_S_MAX}"))))
}

#[pyfunction]
#[pyo3(signature = (*, threads, bytes, seconds = 0.2))]
fn read_bandwidth(py: Python<'_>, threads: usize, bytes: usize, seconds: f64) -> PyResult<f64> {
    let time = duration(seconds)?;
    py.detach(|| roofline::read_bandwidth(&mut Pool::new(threads)?, bytes, time)).map_err(to_py)
}

#[pyfunction]
#[pyo3(signature = (*, threads, seconds = 0.2))]
fn int8_peak(py: Python<'_>, threads: usize, seconds: f64) -> PyResult<f64> {
    let time = duration(seconds)?;
    py.detach(|| roofline::int8_peak(&mut Pool::new(threads)?, Simd::detect()?, time))
        .map_err(to_py)
}

/// Adds this file's names to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(time_events, m)?)?;
    m.add_function(wrap_pyfunction!(time_inference, m)?)?;
    m.add_function(wrap_pyfunction!(read_bandwidth, m)?)?;
    m.add_function(wrap_pyfunction!(int8_peak, m)?)?;
    m.add_class::<ForwardTimer>()
}
