//! Maps `qbtc_core::Error` to Python: `CoreInputError` (with `CoreContextError`) and
//! `CoreModelError`, all `ValueError`s, and `CoreBusyError`, a `RuntimeError`.

use pyo3::create_exception;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use qbtc_core::Error;

create_exception!(_core, CoreInputError, PyValueError);
create_exception!(_core, CoreContextError, CoreInputError);
create_exception!(_core, CoreModelError, PyValueError);
create_exception!(_core, CoreBusyError, PyRuntimeError);

/// The Python exception for a core error.
#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` takes")]
pub fn to_py(error: Error) -> PyErr {
    match error {
        Error::Input { .. } => CoreInputError::new_err(error.to_string()),
        Error::ContextLength { .. } => CoreContextError::new_err(error.to_string()),
        Error::Model { .. } => CoreModelError::new_err(error.to_string()),
        Error::Busy { retry_after_ms, .. } => busy(&error.to_string(), retry_after_ms),
        Error::Io { .. } => PyOSError::new_err(error.to_string()),
        Error::Worker { .. } => PyRuntimeError::new_err(error.to_string()),
    }
}

/// A `CoreBusyError` that says when to try again.
fn busy(message: &str, retry_after_ms: u64) -> PyErr {
    let error = CoreBusyError::new_err(message.to_owned());
    let seconds = std::time::Duration::from_millis(retry_after_ms).as_secs_f64();
    Python::attach(|py| match error.value(py).setattr("retry_after_s", seconds) {
        Ok(()) => error,
        Err(failure) => failure,
    })
}

/// Adds this file's names to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("CoreBusyError", m.py().get_type::<CoreBusyError>())?;
    m.add("CoreContextError", m.py().get_type::<CoreContextError>())?;
    m.add("CoreInputError", m.py().get_type::<CoreInputError>())?;
    m.add("CoreModelError", m.py().get_type::<CoreModelError>())
}
