//! Checked training rows: after [`Rows::new`] every number is finite and every label a class.

use super::{N_CLASSES, N_INPUTS, Real};
use crate::{Error, Result};

/// Labelled rows, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, T> {
    inputs: &'a [[T; N_INPUTS]], // (n, 26)
    labels: &'a [u8],            // (n)
}

impl<'a, T: Real> Rows<'a, T> {
    /// Checks shapes and values once.
    ///
    /// # Errors
    /// No rows, lengths that differ, an input outside [-1, 1] or NaN, a label above 2.
    pub fn new(inputs: &'a [T], labels: &'a [u8]) -> Result<Self> {
        let (inputs, rest) = inputs.as_chunks::<N_INPUTS>();
        if labels.is_empty() {
            return Err(Error::input("u", "no rows; give at least one"));
        }
        if !rest.is_empty() || inputs.len() != labels.len() {
            let reason = format!("{} rows of 26 for {} labels", inputs.len(), labels.len());
            return Err(Error::input("u", reason));
        }
        let inside = |u: &T| -T::ONE <= *u && *u <= T::ONE;
        if let Some(row) = inputs.iter().position(|row| !row.iter().all(inside)) {
            return Err(Error::input("u", format!("row {row} is not within [-1, 1]; squash it")));
        }
        if let Some(row) = labels.iter().position(|&y| usize::from(y) >= N_CLASSES) {
            return Err(Error::input("y", format!("row {row}: class {} is not 0..2", labels[row])));
        }
        Ok(Self { inputs, labels })
    }

    /// Number of rows, at least one.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Inputs `(26)` and class of one row.
    #[inline]
    pub fn row(&self, index: usize) -> (&'a [T; N_INPUTS], usize) {
        (&self.inputs[index], usize::from(self.labels[index]))
    }

    /// Every row in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [T; N_INPUTS], usize)> + use<'a, T> {
        self.inputs.iter().zip(self.labels.iter().map(|&y| usize::from(y)))
    }
}
