//! `train_logistic`, `train_mlp`, `train_mps`: the GIL is released while they fit; the progress
//! callback and the check for Ctrl-C run on the calling thread.

use numpy::{
    PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods, ToPyArray,
};
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use qbtc_core::signal::train::{
    self, Event, Fit, Mlp, Mps, N_CLASSES, N_INPUTS, Network, Rows, Schedule, Start, Tensor,
    WarmStart,
};
use qbtc_core::{Error, Result};
use rand_pcg::Pcg64Mcg;

use crate::error::to_py;

type Inputs<'py> = PyReadonlyArray2<'py, f32>;
type Labels<'py> = PyReadonlyArray1<'py, u8>;

const CLIP: f64 = 1.0;
const WARM_UP_STEPS: usize = 100;

/// The recipe, as keyword arguments common to both networks.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Recipe {
    epochs: usize,
    batch_size: usize,
    learning_rate: f64,
    decay: f64,
    ema: f64,
    patience: usize,
    seeds: Vec<u64>,
    threads: usize,
}

impl Recipe {
    fn schedule(&self) -> Schedule {
        Schedule {
            epochs: self.epochs,
            batch: self.batch_size,
            learning_rate: self.learning_rate,
            decay: self.decay,
            ema: self.ema,
            patience: self.patience,
            clip: CLIP,
            warm_up_steps: WARM_UP_STEPS,
        }
    }
}

#[pyfunction]
#[pyo3(signature = (u, y, *, l2))]
#[expect(clippy::needless_pass_by_value, reason = "pyo3 hands over owned borrows")]
fn train_logistic<'py>(
    py: Python<'py>,
    u: Inputs<'py>,
    y: Labels<'py>,
    l2: f64,
) -> PyResult<Bound<'py, PyDict>> {
    check_width(&u)?;
    let wide: Vec<f64> = u.as_slice()?.iter().copied().map(f64::from).collect();
    let labels = y.as_slice()?;
    let mut interrupt = None;
    let fit = py.detach(|| {
        let rows = Rows::new(&wide, labels)?;
        train::train_logistic(rows, l2, || no_interrupt(&mut interrupt, |_| Ok(())))
    });
    let fit = fit.map_err(to_py)?.ok_or_else(|| stopped(interrupt))?;
    let result = PyDict::new(py);
    let weight = PyArray1::from_vec(py, fit.weight).reshape([N_INPUTS, N_CLASSES])?;
    result.set_item("weight", weight)?;
    result.set_item("bias", fit.bias.to_pyarray(py))?;
    result.set_item("steps", fit.steps)?;
    result.set_item("gradient_max", fit.gradient_max)?;
    Ok(result)
}

#[pyfunction]
#[pyo3(signature = (u, y, u_validation, y_validation, *, hidden, recipe, progress=None))]
#[expect(clippy::needless_pass_by_value, reason = "pyo3 hands over owned borrows")]
#[expect(clippy::too_many_arguments, reason = "keyword arguments in Python")]
fn train_mlp<'py>(
    py: Python<'py>,
    u: Inputs<'py>,
    y: Labels<'py>,
    u_validation: Inputs<'py>,
    y_validation: Labels<'py>,
    hidden: usize,
    recipe: Recipe,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyList>> {
    let start = |rng: &mut Pcg64Mcg| Mlp::random_start(hidden, rng);
    let slices = Slices { u, y, u_validation, y_validation };
    let fits = fit(py, &slices, &recipe, progress.as_ref(), start)?;
    to_list(py, &fits, |params| Mlp::tensors(hidden, params))
}

#[pyfunction]
#[pyo3(signature = (
    u, y, u_validation, y_validation, *, weight, bias, perm, bond, noise, recipe, progress=None
))]
#[expect(clippy::needless_pass_by_value, reason = "pyo3 hands over owned borrows")]
#[expect(clippy::too_many_arguments, reason = "keyword arguments in Python")]
fn train_mps<'py>(
    py: Python<'py>,
    u: Inputs<'py>,
    y: Labels<'py>,
    u_validation: Inputs<'py>,
    y_validation: Labels<'py>,
    weight: PyReadonlyArray2<'py, f64>,
    bias: PyReadonlyArray1<'py, f64>,
    perm: PyReadonlyArray1<'py, i32>,
    bond: usize,
    noise: f64,
    recipe: Recipe,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyList>> {
    let (weight, bias, perm) = (weight.as_slice()?, bias.as_slice()?, perm.as_slice()?);
    let warm = WarmStart { weight, bias, perm, noise };
    let slices = Slices { u, y, u_validation, y_validation };
    let progress = progress.as_ref();
    match bond {
        8 => fit_mps::<8>(py, &slices, &recipe, progress, &warm),
        16 => fit_mps::<16>(py, &slices, &recipe, progress, &warm),
        _ => Err(to_py(Error::input("bond", format!("{bond}; give 8 or 16")))),
    }
}

fn fit_mps<'py, const CHI: usize>(
    py: Python<'py>,
    slices: &Slices<'py>,
    recipe: &Recipe,
    progress: Option<&Py<PyAny>>,
    warm: &WarmStart<'_>,
) -> PyResult<Bound<'py, PyList>> {
    let start = |rng: &mut Pcg64Mcg| Mps::<f32, CHI>::warm_start(warm, rng);
    let fits = fit(py, slices, recipe, progress, start)?;
    to_list(py, &fits, Mps::<f32, CHI>::tensors)
}

struct Slices<'py> {
    u: Inputs<'py>,
    y: Labels<'py>,
    u_validation: Inputs<'py>,
    y_validation: Labels<'py>,
}

fn fit<N: Network<f32>>(
    py: Python<'_>,
    slices: &Slices<'_>,
    recipe: &Recipe,
    progress: Option<&Py<PyAny>>,
    start: impl Fn(&mut Pcg64Mcg) -> Result<Start<f32, N>> + Sync + Send,
) -> PyResult<Vec<Fit<f32>>> {
    check_width(&slices.u)?;
    check_width(&slices.u_validation)?;
    let (u, y) = (slices.u.as_slice()?, slices.y.as_slice()?);
    let (u_later, y_later) = (slices.u_validation.as_slice()?, slices.y_validation.as_slice()?);
    let mut interrupt = None;
    let observe = |event| {
        no_interrupt(&mut interrupt, |py| match (event, progress) {
            (Event::Epoch { fit, epoch, loss }, Some(progress)) => {
                progress.call1(py, (fit, epoch, loss.train, loss.validation)).map(|_| ())
            }
            _ => Ok(()),
        })
    };
    let fits = py.detach(|| {
        let (train, later) = (Rows::new(u, y)?, Rows::new(u_later, y_later)?);
        let (seeds, threads) = (&recipe.seeds, recipe.threads);
        train::fit_seeds(start, train, later, &recipe.schedule(), seeds, threads, observe)
    });
    fits.map_err(to_py)?.ok_or_else(|| stopped(interrupt))
}

/// Runs `tell` and looks for Ctrl-C with the GIL held; keeps what went wrong.
fn no_interrupt(
    interrupt: &mut Option<PyErr>,
    tell: impl FnOnce(Python<'_>) -> PyResult<()>,
) -> bool {
    let heard = Python::attach(|py| py.check_signals().and_then(|()| tell(py)));
    heard.map_err(|error| *interrupt = Some(error)).is_ok()
}

fn stopped(interrupt: Option<PyErr>) -> PyErr {
    interrupt.unwrap_or_else(|| PyKeyboardInterrupt::new_err("training stopped"))
}

fn check_width(u: &Inputs<'_>) -> PyResult<()> {
    if u.shape()[1] == N_INPUTS {
        return Ok(());
    }
    let reason = format!("{} columns; give {N_INPUTS}", u.shape()[1]);
    Err(to_py(Error::input("u", reason)))
}

fn to_list<'py>(
    py: Python<'py>,
    fits: &[Fit<f32>],
    tensors: impl for<'a> Fn(&'a [f32]) -> Vec<Tensor<'a, f32>>,
) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for fit in fits {
        let named = PyDict::new(py);
        for tensor in tensors(&fit.params) {
            named.set_item(tensor.name, tensor.values.to_pyarray(py).reshape(tensor.shape)?)?;
        }
        let curve: Vec<(f64, f64)> =
            fit.curve.iter().map(|loss| (loss.train, loss.validation)).collect();
        let result = PyDict::new(py);
        result.set_item("tensors", named)?;
        result.set_item("best_epoch", fit.best_epoch)?;
        result.set_item("curve", curve)?;
        list.append(result)?;
    }
    Ok(list)
}

/// Adds this file's names to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(train_logistic, m)?)?;
    m.add_function(wrap_pyfunction!(train_mlp, m)?)?;
    m.add_function(wrap_pyfunction!(train_mps, m)?)
}
