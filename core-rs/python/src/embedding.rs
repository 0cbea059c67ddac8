//! `Embedder`: texts to vectors from Python.

#![expect(clippy::needless_pass_by_value, reason = "pyo3 hands extracted arguments over by value")]

use std::path::PathBuf;

use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use qbtc_core::Result;
use qbtc_core::llm::bert;

use crate::error::to_py;
use crate::signal::available_threads;

#[pyclass(frozen, module = "qbtc._core")]
struct Embedder {
    inner: bert::Embedder,
}

/// Vectors (n, dimensions), tokens read of each text, and whether its end was not read.
type Embedded<'py> = (Bound<'py, PyArray2<f32>>, Vec<usize>, Vec<bool>);

#[pymethods]
impl Embedder {
    #[new]
    #[pyo3(signature = (folder, *, threads=None))]
    fn new(py: Python<'_>, folder: PathBuf, threads: Option<usize>) -> PyResult<Self> {
        let threads = threads.unwrap_or_else(available_threads);
        let inner = py.detach(|| bert::Embedder::load(&folder, threads)).map_err(to_py)?;
        Ok(Self { inner })
    }

    #[getter]
    fn dimensions(&self) -> usize {
        self.inner.dim()
    }

    #[getter]
    fn context_tokens(&self) -> usize {
        self.inner.tokens_max()
    }

    #[pyo3(signature = (texts, /))]
    fn count_tokens(&self, py: Python<'_>, texts: Vec<String>) -> PyResult<Vec<usize>> {
        let count = || -> Result<Vec<usize>> {
            texts.iter().map(|text| self.inner.count_tokens(text)).collect()
        };
        py.detach(count).map_err(to_py)
    }

    #[pyo3(signature = (texts, /))]
    fn embed<'py>(&self, py: Python<'py>, texts: Vec<String>) -> PyResult<Embedded<'py>> {
        let found = py
            .detach(|| {
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                self.inner.embed(&texts)
            })
            .map_err(to_py)?;
        let (n, dimensions) = (found.tokens.len(), self.inner.dim());
        let vectors = PyArray1::from_vec(py, found.vectors).reshape([n, dimensions])?;
        Ok((vectors, found.tokens, found.truncated))
    }
}

/// Adds this file's names to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Embedder>()
}
