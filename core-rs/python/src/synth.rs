//! `simulate_market()`: the synthetic market as `NumPy` columns.

use numpy::IntoPyArray;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use qbtc_core::Error;
use qbtc_core::synth::{SimConfig, simulate};

use crate::error::to_py;

#[pyfunction]
#[pyo3(signature = (*, seed, duration_s, start_ns, edge=1.0, price=60_000.0, price_increment=0.1, size_increment=0.001))]
#[expect(clippy::too_many_arguments, reason = "keyword-only on the Python side")]
fn simulate_market(
    py: Python<'_>,
    seed: i64,
    duration_s: f64,
    start_ns: i64,
    edge: f64,
    price: f64,
    price_increment: f64,
    size_increment: f64,
) -> PyResult<Bound<'_, PyDict>> {
    let seed = u64::try_from(seed)
        .map_err(|_| to_py(Error::input("seed", format!("must be 0 or more, got {seed}"))))?;
    let config =
        SimConfig { seed, duration_s, edge, start_ns, price, price_increment, size_increment };
    let events = py.detach(|| simulate(&config)).map_err(to_py)?;
    let columns = PyDict::new(py);
    columns.set_item("ts", events.ts.into_pyarray(py))?;
    columns.set_item("kind", events.kind.into_pyarray(py))?;
    columns.set_item("side", events.side.into_pyarray(py))?;
    columns.set_item("a", events.a.into_pyarray(py))?;
    columns.set_item("b", events.b.into_pyarray(py))?;
    columns.set_item("c", events.c.into_pyarray(py))?;
    columns.set_item("d", events.d.into_pyarray(py))?;
    columns.set_item("latent", events.latent.into_pyarray(py))?;
    Ok(columns)
}

/// Adds this file's names to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(simulate_market, m)?)
}
