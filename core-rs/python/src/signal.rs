//! `SignalModel` and `SignalBuffer`: a model file from Python.

#![expect(clippy::needless_pass_by_value, reason = "pyo3 hands extracted arguments over by value")]

use std::path::PathBuf;
use std::sync::Arc;

use numpy::ndarray::{Array1, Array2, s};
use numpy::{
    PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use qbtc_core::Error;
use qbtc_core::signal::{Isa, Model, N_CLASSES, N_FEATURES, PADDED, Row};

use crate::error::to_py;

/// Threads of a batch: the machine's, at most this many.
const BATCH_THREADS_MAX: usize = 16;

/// A checked model, shared with the sessions made from it.
#[pyclass(frozen, module = "qbtc._core")]
pub struct SignalModel {
    /// The model itself.
    pub model: Arc<Model>,
}

/// A row in core layout from the 26 values of a `NumPy` array.
fn row(x: &PyReadonlyArray1<'_, f32>) -> PyResult<Row> {
    let values = x.as_slice().ok().filter(|v| v.len() == N_FEATURES).ok_or_else(|| {
        let reason = format!("has shape ({}), not contiguous (26)", x.len());
        to_py(Error::input("x", reason))
    })?;
    let mut row = [0.0; PADDED];
    row[..N_FEATURES].copy_from_slice(values);
    Ok(row)
}

#[pymethods]
impl SignalModel {
    #[new]
    #[pyo3(signature = (path, *, isa=None))]
    fn new(path: PathBuf, isa: Option<&str>) -> PyResult<Self> {
        let isa = isa.map_or_else(Isa::detect, Isa::parse).map_err(to_py)?;
        let model = Model::load_with(&path, isa).map_err(to_py)?;
        Ok(Self { model: Arc::new(model) })
    }

    #[getter]
    fn kind(&self) -> &'static str {
        self.model.kind().name()
    }

    #[getter]
    fn isa(&self) -> &'static str {
        self.model.isa().name()
    }

    #[getter]
    fn metadata(&self) -> std::collections::BTreeMap<String, String> {
        self.model.metadata().clone()
    }

    fn infer(&self, x: PyReadonlyArray1<'_, f32>) -> PyResult<(f32, f32, f32)> {
        let p = self.model.infer(&row(&x)?);
        Ok((p.down, p.flat, p.up))
    }

    fn logits(&self, x: PyReadonlyArray1<'_, f32>) -> PyResult<(f32, f32, f32)> {
        Ok(self.model.logits(&row(&x)?).into())
    }

    fn ood(&self, x: PyReadonlyArray1<'_, f32>) -> PyResult<f32> {
        Ok(self.model.ood(&row(&x)?))
    }

    fn explain<'py>(
        &self,
        py: Python<'py>,
        x: PyReadonlyArray1<'py, f32>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let changes = self.model.explain(&row(&x)?);
        let array = Array2::from_shape_fn((N_FEATURES, N_CLASSES), |(i, c)| changes[i][c]);
        Ok(PyArray2::from_owned_array(py, array))
    }

    #[pyo3(signature = (x, *, threads=None))]
    fn infer_batch<'py>(
        &self,
        py: Python<'py>,
        x: PyReadonlyArray2<'py, f32>,
        threads: Option<usize>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let shape = x.shape();
        if shape[1] != N_FEATURES {
            let reason = format!("has shape ({}, {}), not (n, 26)", shape[0], shape[1]);
            return Err(to_py(Error::input("x", reason)));
        }
        let values = x.as_slice().map_err(|_| {
            to_py(Error::input("x", "is not C-contiguous; use np.ascontiguousarray"))
        })?;
        let mut out = vec![0.0; shape[0] * N_CLASSES];
        let threads = threads.unwrap_or_else(available_threads);
        py.detach(|| self.model.infer_batch(values, &mut out, threads)).map_err(to_py)?;
        PyArray1::from_vec(py, out).reshape([shape[0], N_CLASSES])
    }
}

/// A model and the row it reads, shared with Python as a `NumPy` array: the quickest way to infer
/// from Python.
#[pyclass(module = "qbtc._core")]
pub struct SignalBuffer {
    model: Arc<Model>,
    /// (32): 26 features, then zeros.
    row: Array1<f32>,
}

#[pymethods]
impl SignalBuffer {
    #[new]
    fn new(model: &Bound<'_, SignalModel>) -> Self {
        let mut row = Array1::zeros(PADDED);
        row.slice_mut(s![..N_FEATURES]).fill(f32::NAN);
        Self { model: Arc::clone(&model.get().model), row }
    }

    #[getter]
    #[expect(unsafe_code, reason = "the array is a view of this object's row")]
    fn x(this: Bound<'_, Self>) -> Bound<'_, PyArray1<f32>> {
        let buffer = this.borrow();
        let view = buffer.row.slice(s![..N_FEATURES]);
        // SAFETY: the array keeps `this` alive, and nothing ever replaces or resizes `row`, so its
        // memory outlives the view. Rust reads it only in `infer`, and holds the GIL meanwhile.
        unsafe { PyArray1::borrow_from_array(&view, this.clone().into_any()) }
    }

    fn infer(&self) -> (f32, f32, f32) {
        let mut row: Row = [0.0; PADDED];
        for (to, from) in row.iter_mut().zip(&self.row) {
            *to = *from;
        }
        let p = self.model.infer(&row);
        (p.down, p.flat, p.up)
    }
}

/// Threads this process may use, at most [`BATCH_THREADS_MAX`].
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(BATCH_THREADS_MAX))
}

/// Adds this file's names to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<SignalBuffer>()?;
    m.add_class::<SignalModel>()
}
