//! The one error type of the core. Each variant carries the facts (field, limit, value), so that
//! a caller can say what is wrong and what to do next without parsing text.

use std::path::PathBuf;

/// `Result` with the core's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What the core refuses.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A number from outside is not finite, has the wrong sign, or is out of range.
    #[error("{field}: {reason}")]
    Input {
        /// The argument or column at fault.
        field: &'static str,
        /// What is wrong with it, with the value.
        reason: String,
    },
    /// A model file does not fit: names the tensor or metadata key at fault.
    #[error("model file field `{field}`: {reason}")]
    Model {
        /// Tensor name or metadata key.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file asked for.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A thread of a pool panicked: a defect of this library, reported instead of spread.
    #[error("a worker thread failed: {reason}")]
    Worker {
        /// What it said.
        reason: String,
    },
    /// A prompt leaves no room for an answer.
    #[error("the prompt has {tokens} tokens; the context holds {tokens_max}, the answer included")]
    ContextLength {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens of prompt and answer together, at most.
        tokens_max: usize,
    },
    /// A queue is full; later is fine.
    #[error("{requests} requests are in work or waiting; try again in {retry_after_ms} ms")]
    Busy {
        /// Requests in work, waiting, or not drained.
        requests: usize,
        /// When to try again, ms.
        retry_after_ms: u64,
    },
}

impl Error {
    /// Shorthand for [`Error::Input`].
    pub fn input(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Input { field, reason: reason.into() }
    }

    /// Shorthand for [`Error::Model`].
    pub fn model(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Model { field: field.into(), reason: reason.into() }
    }
}
