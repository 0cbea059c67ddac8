//! `SignalSession`: one Rust call per market event, features and inference together. `Signal`: its
//! answer, with everything beyond the probabilities computed when it is asked for.

use std::sync::Arc;

use numpy::ndarray::Array2;
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};
use qbtc_core::Error;
use qbtc_core::features::{Aggressor, FeatureConfig, Side};
use qbtc_core::signal::{self, Model, N_CLASSES, N_FEATURES, PADDED};

use crate::error::to_py;
use crate::features::{EventArrays, Level, aggressor, feature_config, side};
use crate::signal::SignalModel;

/// The host's numbers for sides and book actions.
mod host {
    pub const BUY: u8 = 1;
    pub const SELL: u8 = 2;
    pub const DELETE: u8 = 3;
    pub const CLEAR: u8 = 4;
}

#[pyclass(frozen, freelist = 64, module = "qbtc._core")]
struct Signal {
    inner: signal::Signal,
    model: Arc<Model>,
}

#[pymethods]
impl Signal {
    #[getter]
    fn ts_event(&self) -> i64 {
        self.inner.ts_ns
    }

    #[getter]
    fn mid(&self) -> f64 {
        self.inner.mid
    }

    #[getter]
    fn p_down(&self) -> f32 {
        self.inner.probabilities.down
    }

    #[getter]
    fn p_flat(&self) -> f32 {
        self.inner.probabilities.flat
    }

    #[getter]
    fn p_up(&self) -> f32 {
        self.inner.probabilities.up
    }

    #[getter]
    fn entropy(&self) -> f32 {
        self.inner.probabilities.entropy()
    }

    #[getter]
    fn margin(&self) -> f32 {
        self.inner.probabilities.margin()
    }

    #[getter]
    fn ood(&self) -> f32 {
        self.model.ood(&self.inner.x)
    }

    #[getter]
    fn features<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        PyArray1::from_slice(py, &self.inner.x[..N_FEATURES])
    }

    fn explain<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray2<f32>> {
        let changes = self.model.explain(&self.inner.x);
        let array = Array2::from_shape_fn((N_FEATURES, N_CLASSES), |(i, c)| changes[i][c]);
        PyArray2::from_owned_array(py, array)
    }

    fn __repr__(&self) -> String {
        let (ts, p) = (self.inner.ts_ns, self.inner.probabilities);
        format!("Signal(ts_event={ts}, p_down={}, p_flat={}, p_up={})", p.down, p.flat, p.up)
    }
}

/// Signals kept in columns until someone drains them: 28 bytes each, where a list of `Signal`
/// objects costs 200 bytes and a Python call per attribute.
#[derive(Default)]
struct Kept {
    /// Signals before this time are not kept; `None` keeps nothing.
    from_ns: Option<i64>,
    ts: Vec<i64>,
    p: Vec<f32>,
    mid: Vec<f64>,
    /// Features of the last one, for its score.
    last: Option<[f32; PADDED]>,
}

impl Kept {
    fn push(&mut self, signal: &signal::Signal) {
        if self.from_ns.is_some_and(|from| signal.ts_ns >= from) {
            let p = signal.probabilities;
            self.ts.push(signal.ts_ns);
            self.p.extend_from_slice(&[p.down, p.flat, p.up]);
            self.mid.push(signal.mid);
            self.last = Some(signal.x);
        }
    }

    /// The answer for Python, kept on the way if it is to be kept.
    fn give(
        &mut self,
        session: &signal::SignalSession,
        signal: Option<signal::Signal>,
    ) -> Option<Signal> {
        let inner = signal?;
        self.push(&inner);
        Some(Signal { inner, model: Arc::clone(session.model()) })
    }

    fn drain<'py>(&mut self, py: Python<'py>, model: &Model) -> PyResult<Drained<'py>> {
        let empty = Self { from_ns: self.from_ns, ..Self::default() };
        let Self { ts, p, mid, last, .. } = std::mem::replace(self, empty);
        let (p, ts, mid) = bulk_arrays(py, ts, p, mid)?;
        Ok((p, ts, mid, last.map(|x| model.ood(&x))))
    }
}

#[pyclass(module = "qbtc._core")]
struct SignalSession {
    inner: signal::SignalSession,
    kept: Kept,
    /// Level changes of one host event, kept between calls so as not to allocate.
    levels: Vec<(Side, f64, f64)>,
}

/// Attribute of a host object as a double (its number protocol) or an integer.
fn number(object: &Bound<'_, PyAny>, name: &Bound<'_, PyString>) -> PyResult<f64> {
    object.getattr(name)?.extract()
}

fn time(object: &Bound<'_, PyAny>) -> PyResult<i64> {
    object.getattr(intern!(object.py(), "ts_init"))?.extract()
}

/// Bid, bid size, ask, ask size.
fn quote(tick: &Bound<'_, PyAny>) -> PyResult<[f64; 4]> {
    let py = tick.py();
    Ok([
        number(tick, intern!(py, "bid_price"))?,
        number(tick, intern!(py, "bid_size"))?,
        number(tick, intern!(py, "ask_price"))?,
        number(tick, intern!(py, "ask_size"))?,
    ])
}

/// `value` of an enum attribute.
fn code(object: &Bound<'_, PyAny>, name: &Bound<'_, PyString>) -> PyResult<u8> {
    object.getattr(name)?.getattr(intern!(object.py(), "value"))?.extract()
}

/// (side, price, size) of a book delta that is not a clear.
fn level(delta: &Bound<'_, PyAny>, action: u8) -> PyResult<(Side, f64, f64)> {
    let py = delta.py();
    let order = delta.getattr(intern!(py, "order"))?;
    let side = match code(&order, intern!(py, "side"))? {
        host::BUY => Side::Bid,
        host::SELL => Side::Ask,
        other => return Err(to_py(Error::input("side", format!("{other} is no side of a book")))),
    };
    let size = match action {
        host::DELETE => 0.0,
        _ => number(&order, intern!(py, "size"))?,
    };
    Ok((side, number(&order, intern!(py, "price"))?, size))
}

#[pymethods]
impl SignalSession {
    #[new]
    #[pyo3(signature = (model, price_increment, size_increment, keep_from_ns = None))]
    fn new(
        model: &Bound<'_, SignalModel>,
        price_increment: f64,
        size_increment: f64,
        keep_from_ns: Option<i64>,
    ) -> PyResult<Self> {
        let config = FeatureConfig { price_increment, size_increment };
        let model = Arc::clone(&model.get().model);
        let inner = signal::SignalSession::new(model, config).map_err(to_py)?;
        let kept = Kept { from_ns: keep_from_ns, ..Kept::default() };
        Ok(Self { inner, kept, levels: Vec::with_capacity(64) })
    }

    #[pyo3(signature = (ts, bid, bid_size, ask, ask_size, /))]
    fn on_quote(
        &mut self,
        ts: i64,
        bid: f64,
        bid_size: f64,
        ask: f64,
        ask_size: f64,
    ) -> PyResult<Option<Signal>> {
        let signal = self.inner.on_quote(ts, bid, bid_size, ask, ask_size).map_err(to_py)?;
        Ok(self.kept.give(&self.inner, signal))
    }

    #[pyo3(signature = (tick, /))]
    fn on_quote_tick(&mut self, tick: &Bound<'_, PyAny>) -> PyResult<Option<Signal>> {
        let [bid, bid_size, ask, ask_size] = quote(tick)?;
        self.on_quote(time(tick)?, bid, bid_size, ask, ask_size)
    }

    #[pyo3(signature = (ts, price, size, aggressor_side, /))]
    fn on_trade(&mut self, ts: i64, price: f64, size: f64, aggressor_side: u8) -> PyResult<()> {
        self.inner.on_trade(ts, price, size, aggressor(aggressor_side)?).map_err(to_py)
    }

    #[pyo3(signature = (tick, /))]
    fn on_trade_tick(&mut self, tick: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = tick.py();
        let price = number(tick, intern!(py, "price"))?;
        let size = number(tick, intern!(py, "size"))?;
        let taker = match code(tick, intern!(py, "aggressor_side"))? {
            host::BUY => Aggressor::Buy,
            host::SELL => Aggressor::Sell,
            _ => return Err(to_py(Error::input("aggressor_side", "the trade has none"))),
        };
        self.inner.on_trade(time(tick)?, price, size, taker).map_err(to_py)
    }

    #[pyo3(signature = (ts, book_side, price, size, /))]
    fn on_depth(&mut self, ts: i64, book_side: u8, price: f64, size: f64) -> PyResult<()> {
        self.inner.on_depth(ts, side(book_side)?, price, size).map_err(to_py)
    }

    #[pyo3(signature = (ts, levels, /))]
    fn on_depth_batch(&mut self, ts: i64, levels: Vec<Level>) -> PyResult<()> {
        self.levels.clear();
        for (number, price, size) in levels {
            self.levels.push((side(number)?, price, size));
        }
        self.inner.on_depth_batch(ts, &self.levels).map_err(to_py)
    }

    #[pyo3(signature = (ts, /))]
    fn on_depth_clear(&mut self, ts: i64) -> PyResult<()> {
        self.inner.on_depth_clear(ts).map_err(to_py)
    }

    #[pyo3(signature = (deltas, /))]
    fn on_book_deltas(&mut self, deltas: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = deltas.py();
        let ts = time(deltas)?;
        self.levels.clear();
        let mut clear = false;
        for delta in deltas.getattr(intern!(py, "deltas"))?.cast_into::<PyList>()? {
            let action = code(&delta, intern!(py, "action"))?;
            if action == host::CLEAR {
                // What came before it is void too.
                clear = true;
                self.levels.clear();
            } else {
                self.levels.push(level(&delta, action)?);
            }
        }
        if clear {
            self.inner.on_depth_clear(ts).map_err(to_py)?;
        }
        self.inner.on_depth_batch(ts, &self.levels).map_err(to_py)
    }

    #[pyo3(signature = (ts, bid, ask, /))]
    fn on_lead_quote(&mut self, ts: i64, bid: f64, ask: f64) -> PyResult<()> {
        self.inner.on_lead_quote(ts, bid, ask).map_err(to_py)
    }

    fn signal(&mut self) -> Option<Signal> {
        let signal = self.inner.signal();
        self.kept.give(&self.inner, signal)
    }

    fn drain<'py>(&mut self, py: Python<'py>) -> PyResult<Drained<'py>> {
        self.kept.drain(py, self.inner.model())
    }

    fn is_warm(&self) -> bool {
        self.inner.features().is_warm()
    }

    #[getter]
    fn mid(&self) -> f64 {
        self.inner.features().mid()
    }

    #[getter]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        counts_dict(py, self.inner.counts())
    }
}

fn counts_dict(py: Python<'_>, counts: signal::Counts) -> PyResult<Bound<'_, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("quotes", counts.quotes)?;
    out.set_item("trades", counts.trades)?;
    out.set_item("depth", counts.depth)?;
    out.set_item("lead_quotes", counts.lead_quotes)?;
    out.set_item("rejected", counts.rejected)?;
    out.set_item("signals", counts.signals)?;
    Ok(out)
}

/// Every so many quotes a replay compares its columns with the host's event.
const COMPARE_EVERY: u64 = 256;

#[pyclass(module = "qbtc._core")]
struct ReplaySession {
    inner: signal::Replay,
    kept: Kept,
}

#[pymethods]
impl ReplaySession {
    #[new]
    #[pyo3(signature = (model, columns, keep_from_ns = None))]
    fn new(
        model: &Bound<'_, SignalModel>,
        columns: &Bound<'_, PyAny>,
        keep_from_ns: Option<i64>,
    ) -> PyResult<Self> {
        let arrays = EventArrays::of(columns)?;
        let (config, events) = (feature_config(columns)?, arrays.columns()?);
        let model = Arc::clone(&model.get().model);
        let inner = signal::Replay::new(model, config, events).map_err(to_py)?;
        Ok(Self { inner, kept: Kept { from_ns: keep_from_ns, ..Kept::default() } })
    }

    #[pyo3(signature = (tick, /))]
    fn on_quote_tick(&mut self, tick: &Bound<'_, PyAny>) -> PyResult<Option<Signal>> {
        let signal = self.inner.on_quote(time(tick)?).map_err(to_py)?;
        let session = self.inner.session();
        if session.counts().quotes % COMPARE_EVERY == 1 && quote(tick)? != self.inner.quote() {
            let reason = "the host's quote is not the one in the columns";
            return Err(to_py(Error::input("columns", reason)));
        }
        Ok(self.kept.give(session, signal))
    }

    fn drain<'py>(&mut self, py: Python<'py>) -> PyResult<Drained<'py>> {
        self.kept.drain(py, self.inner.session().model())
    }

    #[getter]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        counts_dict(py, self.inner.session().counts())
    }
}

/// Probabilities (n, 3), ts (n), mid (n), and the last one's out-of-distribution score.
type Drained<'py> =
    (Bound<'py, PyArray2<f32>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f64>>, Option<f32>);

/// Probabilities (n, 3), ts (n), mid (n).
type BulkArrays<'py> =
    (Bound<'py, PyArray2<f32>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f64>>);

#[pyfunction]
fn bulk_signals<'py>(
    columns: &Bound<'py, PyAny>,
    model: &Bound<'py, SignalModel>,
) -> PyResult<BulkArrays<'py>> {
    let py = columns.py();
    let arrays = EventArrays::of(columns)?;
    let (config, events) = (feature_config(columns)?, arrays.columns()?);
    let model = Arc::clone(&model.get().model);
    let (p, ts, mid) = py
        .detach(|| {
            let n = events.n_quotes();
            let mut p = Vec::with_capacity(n * N_CLASSES);
            let (mut ts, mut mid) = (Vec::with_capacity(n), Vec::with_capacity(n));
            signal::bulk_signals(config, events, &model, |t, m, q| {
                p.extend_from_slice(&[q.down, q.flat, q.up]);
                ts.push(t);
                mid.push(m);
            })?;
            Ok((p, ts, mid))
        })
        .map_err(to_py)?;
    bulk_arrays(py, ts, p, mid)
}

fn bulk_arrays(
    py: Python<'_>,
    ts: Vec<i64>,
    p: Vec<f32>,
    mid: Vec<f64>,
) -> PyResult<BulkArrays<'_>> {
    Ok((
        PyArray1::from_vec(py, p).reshape([ts.len(), N_CLASSES])?,
        PyArray1::from_vec(py, ts),
        PyArray1::from_vec(py, mid),
    ))
}

/// Adds this file's names to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Signal>()?;
    m.add_class::<SignalSession>()?;
    m.add_class::<ReplaySession>()?;
    m.add_function(wrap_pyfunction!(bulk_signals, m)?)
}
