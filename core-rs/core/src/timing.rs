//! The timing loops of the benchmarks: kernels as a market meets them, one event after the other
//! on one thread, with no Python between the calls. Only `make bench` calls them.

use std::{hint::black_box, sync::Arc, time::Instant};

use crate::llm::TokenId;
use crate::llm::forward::{Forward, LogitsFor, Segment};
use crate::llm::kv::{KvPages, PAGE_TOKENS, PageId};
use crate::{
    Error, Result,
    features::{
        Columns, FeatureConfig, FeatureEngine, PADDED,
        bulk::{apply, kind},
    },
    signal::{Model, Row, Session},
};

/// Feeds the events to a fresh engine, in order, and returns ns per event of each full block of
/// `block_events`; with `read`, the features are also written out at every quote.
///
/// # Errors
/// [`Error::Input`] for columns of unequal length, an empty block, or an event that is refused.
pub fn events(
    config: FeatureConfig,
    columns: Columns<'_>,
    block_events: usize,
    read: bool,
) -> Result<Vec<f64>> {
    columns.check_lengths()?;
    if block_events == 0 {
        return Err(Error::input("block_events", "must be at least 1"));
    }
    let mut engine = FeatureEngine::new(config)?;
    let mut row = [0.0; PADDED];
    let blocks = columns.ts.len() / block_events;
    let mut ns = Vec::with_capacity(blocks);
    for block in 0..blocks {
        let start = Instant::now();
        for i in block * block_events..(block + 1) * block_events {
            let values = [columns.a[i], columns.b[i], columns.c[i], columns.d[i]];
            apply(&mut engine, columns.ts[i], columns.kind[i], columns.side[i], values)?;
            if read && columns.kind[i] == kind::QUOTE {
                engine.write(&mut row);
                black_box(&row);
            }
        }
        ns.push(ns_per(start, block_events));
    }
    Ok(ns)
}

/// Infers `blocks` blocks of `block_calls` rows each, going round in `rows`, and returns ns per
/// call of each block.
///
/// Each call waits for the one before: zero times its result is added to the first feature. The
/// processor would else overlap neighbouring calls, which a market event never lets it do.
///
/// # Errors
/// [`Error::Input`] for no rows or an empty block.
pub fn inference(
    model: Arc<Model>,
    rows: &[Row],
    blocks: usize,
    block_calls: usize,
) -> Result<Vec<f64>> {
    if rows.is_empty() || block_calls == 0 {
        return Err(Error::input("rows", "needs at least one row and one call per block"));
    }
    let mut session = Session::new(model);
    let mut next = rows.iter().cycle();
    let mut ns = Vec::with_capacity(blocks);
    let mut last = 0.0;
    for _ in 0..blocks {
        let start = Instant::now();
        for row in next.by_ref().take(block_calls) {
            session.x = *row;
            session.x[0] += 0.0 * last;
            last = session.infer().up;
        }
        ns.push(ns_per(start, block_calls));
    }
    black_box(last);
    Ok(ns)
}

/// A language model's forward pass alone: no tokenizer, no sampling, no engine around it.
pub struct ForwardTimer {
    forward: Box<dyn Forward>,
    kv: KvPages,
    pages: Vec<PageId>,
    /// Leading positions that hold keys and values.
    filled: usize,
}

impl ForwardTimer {
    /// A timer with memory for one sequence of `tokens_max`.
    ///
    /// # Errors
    /// [`Error::Input`] if that is more than the model's context, or the memory is refused.
    pub fn new(forward: Box<dyn Forward>, tokens_max: usize) -> Result<Self> {
        let shape = forward.shape();
        if tokens_max > shape.context {
            let reason = format!("{tokens_max} is more than the context of {}", shape.context);
            return Err(Error::input("tokens_max", reason));
        }
        let count = tokens_max.div_ceil(PAGE_TOKENS);
        let mut kv = KvPages::new(shape.kv, count * shape.kv.page_bytes())?;
        let pages = (0..count).filter_map(|_| kv.allocate()).collect();
        Ok(Self { forward, kv, pages, filled: 0 })
    }

    /// Reads a prompt of `tokens` tokens from the start, in steps of the model's largest size, and
    /// computes the logits of the last one; ns.
    ///
    /// # Errors
    /// [`Error::Input`] if the prompt does not fit.
    pub fn prompt(&mut self, tokens: usize) -> Result<f64> {
        self.filled = 0;
        let start = Instant::now();
        self.read(tokens)?;
        Ok(ns_per(start, 1))
    }

    /// Takes `steps` steps of one token each after `depth` tokens; ns of each step.
    ///
    /// # Errors
    /// [`Error::Input`] if they do not fit.
    pub fn decode(&mut self, depth: usize, steps: usize) -> Result<Vec<f64>> {
        self.read(depth.saturating_sub(self.filled))?;
        (depth..depth + steps)
            .map(|position| self.timed_step(position, 1, LogitsFor::Last))
            .collect()
    }

    /// Takes `repeats` steps of `rows` tokens with all their logits after `depth` tokens, as a
    /// speculative draft does; ns of each.
    ///
    /// # Errors
    /// [`Error::Input`] if they do not fit.
    pub fn verify(&mut self, depth: usize, rows: usize, repeats: usize) -> Result<Vec<f64>> {
        self.read(depth.saturating_sub(self.filled))?;
        (0..repeats).map(|_| self.timed_step(depth, rows, LogitsFor::All)).collect()
    }

    /// Appends `tokens` tokens in steps as large as the model takes.
    fn read(&mut self, tokens: usize) -> Result<()> {
        let end = self.filled + tokens;
        while self.filled < end {
            let count = (end - self.filled).min(self.forward.shape().step_tokens_max);
            let last = self.filled + count == end;
            let logits = if last { LogitsFor::Last } else { LogitsFor::Nothing };
            self.step(self.filled, count, logits)?;
            self.filled += count;
        }
        Ok(())
    }

    fn timed_step(&mut self, position: usize, count: usize, logits: LogitsFor) -> Result<f64> {
        let start = Instant::now();
        self.step(position, count, logits)?;
        Ok(ns_per(start, 1))
    }

    fn step(&mut self, position: usize, count: usize, logits: LogitsFor) -> Result<()> {
        let vocab = self.forward.shape().vocab;
        // Any tokens will do, as long as they differ: a multiplicative walk over the vocabulary.
        let tokens: Vec<TokenId> =
            (position..position + count).map(|at| ((at * 7919 + 13) % vocab) as TokenId).collect();
        let segment = Segment { tokens: &tokens, position, pages: &self.pages, logits };
        black_box(self.forward.step(&mut self.kv, &[segment])?);
        Ok(())
    }
}

/// Nanoseconds since `start` for each of `calls`.
fn ns_per(start: Instant, calls: usize) -> f64 {
    start.elapsed().as_nanos() as f64 / calls as f64
}
