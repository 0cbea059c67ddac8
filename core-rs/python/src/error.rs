//! Maps `qbtc_core::Error` to Python: `CoreInputError` and `CoreModelError`, both `ValueError`s.

use pyo3::create_exception;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use qbtc_core::Error;

create_exception!(_core, CoreInputError, PyValueError);
create_exception!(_core, CoreModelError, PyValueError);

/// The Python exception for a core error.
#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` takes")]
pub fn to_py(error: Error) -> PyErr {
    match error {
        Error::Input { .. } => CoreInputError::new_err(error.to_string()),
        Error::Model { .. } => CoreModelError::new_err(error.to_string()),
        Error::Io { .. } => PyOSError::new_err(error.to_string()),
    }
}

/// Adds this file's names to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("CoreInputError", m.py().get_type::<CoreInputError>())?;
    m.add("CoreModelError", m.py().get_type::<CoreModelError>())
}
