//! `FeatureEngine` (event path), `bulk_features` (columns) and the generated table.

use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use qbtc_core::features::{
    self, Aggressor, Columns, FeatureConfig, N_FEATURES, NOTATION, PADDED, Side, TABLE,
};

use crate::error::to_py;

/// Level changes as Python writes them: `(side, price, size)`, side 0 bid, 1 ask.
pub type Level = (u8, f64, f64);

/// Side of the book by number.
pub fn side(number: u8) -> PyResult<Side> {
    match number {
        0 => Ok(Side::Bid),
        1 => Ok(Side::Ask),
        _ => Err(PyValueError::new_err(format!("side: must be 0 (bid) or 1 (ask), got {number}"))),
    }
}

/// Aggressor by number.
pub fn aggressor(number: u8) -> PyResult<Aggressor> {
    match number {
        0 => Ok(Aggressor::Buy),
        1 => Ok(Aggressor::Sell),
        _ => Err(PyValueError::new_err(format!(
            "aggressor: must be 0 (buy) or 1 (sell), got {number}"
        ))),
    }
}

#[pyclass(module = "qbtc._core")]
struct FeatureEngine {
    inner: features::FeatureEngine,
}

#[pymethods]
impl FeatureEngine {
    #[new]
    fn new(price_increment: f64, size_increment: f64) -> PyResult<Self> {
        let config = FeatureConfig { price_increment, size_increment };
        Ok(Self { inner: features::FeatureEngine::new(config).map_err(to_py)? })
    }

    fn on_quote(
        &mut self,
        ts: i64,
        bid: f64,
        bid_size: f64,
        ask: f64,
        ask_size: f64,
    ) -> PyResult<()> {
        self.inner.on_quote(ts, bid, bid_size, ask, ask_size).map_err(to_py)
    }

    #[pyo3(name = "on_trade")]
    fn trade(&mut self, ts: i64, price: f64, size: f64, aggressor_side: u8) -> PyResult<()> {
        self.inner.on_trade(ts, price, size, aggressor(aggressor_side)?).map_err(to_py)
    }

    fn on_depth(&mut self, ts: i64, book_side: u8, price: f64, size: f64) -> PyResult<()> {
        self.inner.on_depth(ts, side(book_side)?, price, size).map_err(to_py)
    }

    #[expect(clippy::needless_pass_by_value, reason = "Python's list arrives as an owned vector")]
    fn on_depth_batch(&mut self, ts: i64, levels: Vec<Level>) -> PyResult<()> {
        for &(number, ..) in &levels {
            side(number)?;
        }
        let levels = levels.iter().map(|&(number, price, size)| {
            (if number == 0 { Side::Bid } else { Side::Ask }, price, size)
        });
        self.inner.on_depth_batch(ts, levels).map_err(to_py)
    }

    fn on_depth_clear(&mut self, ts: i64) -> PyResult<()> {
        self.inner.on_depth_clear(ts).map_err(to_py)
    }

    fn on_lead_quote(&mut self, ts: i64, bid: f64, ask: f64) -> PyResult<()> {
        self.inner.on_lead_quote(ts, bid, ask).map_err(to_py)
    }

    fn is_warm(&self) -> bool {
        self.inner.is_warm()
    }

    fn values<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        let mut row = [0.0; PADDED];
        self.inner.write(&mut row);
        PyArray1::from_slice(py, &row[..N_FEATURES])
    }

    #[getter]
    fn now(&self) -> i64 {
        self.inner.now_ns()
    }

    #[getter]
    fn mid(&self) -> f64 {
        self.inner.mid()
    }

    #[getter]
    fn far_levels(&self) -> u64 {
        self.inner.far_levels()
    }
}

/// Borrowed `NumPy` columns, kept alive while a bulk call reads them.
pub struct EventArrays<'py> {
    ts: PyReadonlyArray1<'py, i64>,
    kind: PyReadonlyArray1<'py, u8>,
    side: PyReadonlyArray1<'py, u8>,
    values: [PyReadonlyArray1<'py, f64>; 4],
}

impl<'py> EventArrays<'py> {
    /// Takes the seven attributes of an `EventColumns`.
    pub fn of(columns: &Bound<'py, PyAny>) -> PyResult<Self> {
        let value = |name: &str| -> PyResult<PyReadonlyArray1<'py, f64>> {
            columns.getattr(name)?.extract()
        };
        Ok(Self {
            ts: columns.getattr("ts")?.extract()?,
            kind: columns.getattr("kind")?.extract()?,
            side: columns.getattr("side")?.extract()?,
            values: [value("a")?, value("b")?, value("c")?, value("d")?],
        })
    }

    /// The columns as slices; all arrays must be contiguous.
    pub fn columns(&self) -> PyResult<Columns<'_>> {
        let [a, b, c, d] = &self.values;
        Ok(Columns {
            ts: self.ts.as_slice()?,
            kind: self.kind.as_slice()?,
            side: self.side.as_slice()?,
            a: a.as_slice()?,
            b: b.as_slice()?,
            c: c.as_slice()?,
            d: d.as_slice()?,
        })
    }
}

/// The instrument's grid from the attributes of an `EventColumns`.
pub fn feature_config(columns: &Bound<'_, PyAny>) -> PyResult<FeatureConfig> {
    Ok(FeatureConfig {
        price_increment: columns.getattr("price_increment")?.extract()?,
        size_increment: columns.getattr("size_increment")?.extract()?,
    })
}

/// X, ts, mid, warm.
type BulkArrays<'py> = (
    Bound<'py, PyArray2<f32>>,
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<bool>>,
);

#[pyfunction]
fn bulk_features<'py>(columns: &Bound<'py, PyAny>) -> PyResult<BulkArrays<'py>> {
    let py = columns.py();
    let arrays = EventArrays::of(columns)?;
    let (config, events) = (feature_config(columns)?, arrays.columns()?);
    let (x, ts, mid, warm) = py
        .detach(|| {
            let n = events.n_quotes();
            let mut x = Vec::with_capacity(n * N_FEATURES);
            let (mut ts, mut mid) = (Vec::with_capacity(n), Vec::with_capacity(n));
            let mut warm = Vec::with_capacity(n);
            features::bulk_rows(config, events, |rows| {
                for row in rows {
                    x.extend_from_slice(&row.features[..N_FEATURES]);
                    ts.push(row.ts_ns);
                    mid.push(row.mid);
                    warm.push(row.warm);
                }
            })?;
            Ok((x, ts, mid, warm))
        })
        .map_err(to_py)?;
    let n = ts.len();
    Ok((
        PyArray1::from_vec(py, x).reshape([n, N_FEATURES])?,
        PyArray1::from_vec(py, ts),
        PyArray1::from_vec(py, mid),
        PyArray1::from_vec(py, warm),
    ))
}

/// Name, group, unit, formula, update class, warm-up and staleness limit in seconds.
type TableRow = (&'static str, &'static str, &'static str, &'static str, &'static str, f64, f64);

#[pyfunction]
fn feature_table() -> Vec<TableRow> {
    TABLE
        .iter()
        .map(|info| {
            let class = info.update_class;
            let (warm_up_s, stale_s) = (class.warm_up_s(), class.stale_s());
            (info.name, info.group, info.unit, info.formula, class.name(), warm_up_s, stale_s)
        })
        .collect()
}

#[pyfunction]
fn feature_notation() -> &'static str {
    NOTATION
}

#[pyfunction]
fn feature_schema_sha256() -> String {
    features::schema_sha256()
}

/// Adds this file's names to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<FeatureEngine>()?;
    m.add_function(wrap_pyfunction!(bulk_features, m)?)?;
    m.add_function(wrap_pyfunction!(feature_table, m)?)?;
    m.add_function(wrap_pyfunction!(feature_notation, m)?)?;
    m.add_function(wrap_pyfunction!(feature_schema_sha256, m)?)
}
