//! The seam between numerics and engine: one step over several sequences at once.

use crate::Result;
use crate::llm::TokenId;
use crate::llm::kv::{KvPages, KvShape, PageId};

/// What the engine must know of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelShape {
    /// Number of logits of one row.
    pub vocab: usize,
    /// Longest sequence in tokens, prompt and answer together.
    pub context: usize,
    /// Layout of the keys and values.
    pub kv: KvShape,
    /// Most tokens of one step, all segments together.
    pub step_tokens_max: usize,
    /// Most rows of logits of one step.
    pub logits_rows_max: usize,
}

/// Which rows of a segment need logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsFor {
    /// None: the middle of a prompt.
    Nothing,
    /// The last token: the next one is about to be sampled.
    Last,
    /// Every token: a speculative draft, or a perplexity.
    All,
}

/// Consecutive tokens of one sequence in one step. A decode row is a segment of one token.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The tokens to process, at least one.
    pub tokens: &'a [TokenId],
    /// Position of the first of them; keys and values of all earlier positions are in `pages`.
    pub position: usize,
    /// Pages of the sequence from position 0; enough for `position + tokens.len()`.
    pub pages: &'a [PageId],
    /// Which rows of logits to compute.
    pub logits: LogitsFor,
}

/// A model that can take a step. Deterministic: a segment's logits have the same bits whatever
/// else is in the step and however its prompt was cut into steps.
pub trait Forward: Send {
    /// Sizes and limits.
    fn shape(&self) -> &ModelShape;

    /// Process `segments`, append their keys and values to their pages, and return the logits asked
    /// for: rows of `vocab`, in the order of segments and tokens.
    ///
    /// # Errors
    /// [`crate::Error::Input`] if a token is outside the vocabulary, a segment does not fit its
    /// pages or the context, or the step exceeds a limit of [`ModelShape`].
    fn step(&mut self, kv: &mut KvPages, segments: &[Segment<'_>]) -> Result<&[f32]>;
}
