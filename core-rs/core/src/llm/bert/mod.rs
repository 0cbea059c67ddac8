//! Sentence embeddings: texts in, unit vectors out (`all-MiniLM-L6-v2` and models of its kind).
//!
//! A folder as `sentence-transformers` writes it: `config.json`, `tokenizer.json` (`WordPiece`),
//! `model.safetensors`, and optionally `sentence_bert_config.json` (how many tokens of a text are
//! read) and `1_Pooling/config.json`. The vector of a text is the mean of its tokens' last layer,
//! made one long.
//!
//! Weights and activations of the matrices are 8-bit with a scale per 32 numbers, as in the
//! language models; everything else is f32. Texts are packed without padding into pieces of
//! about [`PIECE_TOKENS`] tokens, and each worker of the pool takes one piece after the other
//! through all layers on its own, so nobody waits for anybody. A text's vector has the same bits
//! whatever else is in the call.

mod graph;
mod math;
mod weights;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokenizers::Tokenizer;

use crate::pool::Pool;
use crate::signal::Isa;
use crate::{Error, Result};
use graph::Workspace;
use weights::Weights;

pub use weights::BertConfig;

/// Tokens a worker takes through all layers at once, unless one text has more: what it keeps of
/// them fits the second-level cache, and the weights are read once for all of them.
pub const PIECE_TOKENS: usize = 128;
/// Longest text, bytes. Most of so long a text is cut off anyway; this bounds the cutting.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Most texts of one call.
pub const TEXTS_MAX: usize = 1 << 16;
/// Most tokens of a text that are read, whatever a model has positions for.
pub const TOKENS_MAX: usize = 1 << 13;
/// Most numbers of the widest row of all workers together: half a GB of f32.
const WORKSPACE_NUMBERS_MAX: usize = 1 << 27;

/// Vectors of some texts, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    /// (texts, dim), each row of length 1.
    pub vectors: Vec<f32>,
    /// Tokens read of each text, the two around it included.
    pub tokens: Vec<usize>,
    /// Whether a text had more than [`Embedder::tokens_max`], so that its end was not read.
    pub truncated: Vec<bool>,
}

/// A model and the threads that run it. Calls from several threads take turns.
pub struct Embedder {
    weights: Weights,
    tokenizer: Tokenizer,
    tokens_max: usize,
    state: Mutex<State>,
}

struct State {
    pool: Pool,
    /// One for each worker.
    workspaces: Vec<Mutex<Workspace>>,
}

/// A text as tokens.
#[derive(Clone, Debug, Default)]
struct Encoded {
    ids: Vec<u32>,
    truncated: bool,
}

impl Embedder {
    /// Load a folder, with the best instructions of this processor (or what `QBTC_ISA` says).
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read, [`Error::Model`] naming what is missing, damaged or
    /// not supported, [`Error::Input`] if `threads` is out of range.
    pub fn load(folder: &Path, threads: usize) -> Result<Self> {
        Self::load_for(folder, threads, Isa::detect()?)
    }

    /// The same with instructions of the caller's choice.
    ///
    /// # Errors
    /// As [`Embedder::load`].
    pub fn load_for(folder: &Path, threads: usize, isa: Isa) -> Result<Self> {
        if !isa.available() {
            return Err(Error::input("isa", format!("no `{}` on this processor", isa.name())));
        }
        let weights = Weights::load(folder, isa)?;
        let tokenizer = load_tokenizer(&folder.join("tokenizer.json"), &weights.config)?;
        let tokens_max = weights::tokens_max(folder, &weights.config)?.min(TOKENS_MAX);
        weights::check_pooling(folder)?;
        let pool = Pool::new(threads)?;
        let room = PIECE_TOKENS.max(tokens_max);
        check_room(weights.config.ffn.max(weights.config.dim), room, threads)?;
        let workspaces =
            (0..threads).map(|_| Mutex::new(Workspace::new(&weights.config, room))).collect();
        Ok(Self { weights, tokenizer, tokens_max, state: Mutex::new(State { pool, workspaces }) })
    }

    /// Sizes of the model.
    pub fn config(&self) -> &BertConfig {
        &self.weights.config
    }

    /// Numbers of a vector.
    pub fn dim(&self) -> usize {
        self.weights.config.dim
    }

    /// Most tokens of a text that are read, the two around it included.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// Tokens of a text, the two around it included, before any are cut off.
    ///
    /// # Errors
    /// [`Error::Input`] if the text is too long or cannot be read.
    pub fn count_tokens(&self, text: &str) -> Result<usize> {
        Ok(self.ids(text)?.len())
    }

    /// Vectors of `texts`.
    ///
    /// # Errors
    /// [`Error::Input`] if there are too many texts or one is too long.
    pub fn embed(&self, texts: &[&str]) -> Result<Embeddings> {
        if texts.len() > TEXTS_MAX {
            return Err(Error::input(
                "texts",
                format!("{} texts, at most {TEXTS_MAX}", texts.len()),
            ));
        }
        let mut state = lock(&self.state);
        let State { pool, workspaces } = &mut *state;
        let encoded = self.encode_all(pool, texts)?;
        let pieces = pieces(&encoded, pool.threads());
        let next = AtomicUsize::new(0);
        pool.run(|worker| {
            let mut workspace = lock(&workspaces[worker.index]);
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                let texts = encoded[piece.clone()].iter().map(|text| text.ids.as_slice());
                workspace.run(&self.weights, texts, piece.start);
            }
        })?;
        let dim = self.dim();
        let mut vectors = vec![0.0; texts.len() * dim];
        for workspace in workspaces {
            for (text, vector) in lock(workspace).results.drain(..) {
                vectors[text * dim..][..dim].copy_from_slice(&vector);
            }
        }
        if let Some(bad) = vectors.iter().position(|x| !x.is_finite()) {
            let reason = format!("the vector of text {} is not finite", bad / dim);
            return Err(Error::model("model.safetensors", reason));
        }
        Ok(Embeddings {
            vectors,
            tokens: encoded.iter().map(|text| text.ids.len()).collect(),
            truncated: encoded.iter().map(|text| text.truncated).collect(),
        })
    }

    /// Tokens of all texts; workers take turns at them.
    fn encode_all(&self, pool: &mut Pool, texts: &[&str]) -> Result<Vec<Encoded>> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(vec![Encoded::default(); texts.len()]);
        let failure = Mutex::new(None);
        pool.run(|_| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(text) = texts.get(index) else { return };
                match self.encode(text) {
                    Ok(encoded) => lock(&done)[index] = encoded,
                    Err(error) => drop(lock(&failure).get_or_insert(error)),
                }
            }
        })?;
        match lock(&failure).take() {
            Some(error) => Err(error),
            None => Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn encode(&self, text: &str) -> Result<Encoded> {
        let mut ids = self.ids(text)?;
        let truncated = ids.len() > self.tokens_max;
        if truncated && let Some(&last) = ids.last() {
            // The closing token stays.
            ids.truncate(self.tokens_max - 1);
            ids.push(last);
        }
        Ok(Encoded { ids, truncated })
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(Error::input(
                "texts",
                format!("a text of {} bytes, at most {TEXT_BYTES_MAX} are read", text.len()),
            ));
        }
        let encoding = self
            .tokenizer
            .encode_fast(text, true)
            .map_err(|source| Error::input("texts", source.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }
}

impl std::fmt::Debug for Embedder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Embedder")
            .field("config", &self.weights.config)
            .field("tokens_max", &self.tokens_max)
            .finish_non_exhaustive()
    }
}

/// Refuse sizes whose buffers could not be had: a failed allocation ends the process.
fn check_room(widest: usize, room: usize, threads: usize) -> Result<()> {
    if room.saturating_mul(widest).saturating_mul(threads) > WORKSPACE_NUMBERS_MAX {
        let reason = format!(
            "{room} tokens of {widest} numbers for {threads} threads take too much memory; use fewer threads"
        );
        return Err(Error::model("config.json", reason));
    }
    Ok(())
}

/// A panic of a job is reported by the pool; what it left behind is overwritten by the next call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Consecutive texts of together about [`PIECE_TOKENS`], fewer where that leaves a worker idle.
fn pieces(texts: &[Encoded], threads: usize) -> Vec<std::ops::Range<usize>> {
    let total: usize = texts.iter().map(|text| text.ids.len()).sum();
    let wanted = total.div_ceil(threads).min(PIECE_TOKENS);
    let mut pieces = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (index, text) in texts.iter().enumerate() {
        if index > start && tokens + text.ids.len() > wanted {
            pieces.push(start..index);
            (start, tokens) = (index, 0);
        }
        tokens += text.ids.len();
    }
    if start < texts.len() {
        pieces.push(start..texts.len());
    }
    pieces
}

fn load_tokenizer(path: &PathBuf, config: &BertConfig) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.clone(), source })?;
    let damaged = |reason: String| Error::model("tokenizer.json", reason);
    let mut tokenizer =
        Tokenizer::from_bytes(bytes).map_err(|source| damaged(source.to_string()))?;
    // Texts are cut by the model's limit and never padded, whatever the file says.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|source| damaged(source.to_string()))?;
    let around = tokenizer.encode_fast("", true).map_err(|source| damaged(source.to_string()))?;
    if around.get_ids().len() != 2 {
        return Err(damaged("does not put one token before and one behind a text".into()));
    }
    let vocab = tokenizer.get_vocab(true);
    // What is put around a text need not be in the list of tokens.
    let ids = vocab.values().chain(around.get_ids());
    match ids.into_iter().find(|&&id| id as usize >= config.vocab) {
        None => Ok(tokenizer),
        Some(id) => Err(damaged(format!("has a token {id}, the model only {}", config.vocab))),
    }
}

#[cfg(test)]
mod tests;
