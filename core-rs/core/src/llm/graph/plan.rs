//! What a step does, worked out once before its layers: which token is where, which pages it
//! writes, and how the attention is cut into units of work.

use crate::llm::TokenId;
use crate::llm::attention::{Tile, partial_len, tile_tokens_max};
use crate::llm::forward::{LogitsFor, ModelShape, Segment};
use crate::llm::kv::{KvPages, PAGE_TOKENS};
use crate::{Error, Result};

/// Numbers that unmerged spans may take; with more, tiles stay whole.
pub(super) const PARTIALS_LEN_MAX: usize = 1 << 20;

/// Below so many units a thread, tiles are cut into spans.
const UNITS_PER_THREAD_MIN: usize = 4;

/// A token of the step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) token: TokenId,
    pub(super) position: usize,
    pub(super) segment: usize,
    pub(super) tile: usize,
}

/// Tokens that attend together.
#[derive(Clone, Copy)]
pub(super) struct PlannedTile {
    pub(super) tile: Tile,
    pub(super) segment: usize,
    /// Its first token among the step's rows.
    pub(super) row: usize,
    /// Where its spans are left, if they are worked on apart: `(kv_heads, spans, partial_len)`.
    pub(super) partials: Option<usize>,
}

/// A piece of attention for one thread: a tile and a key/value head, or one span of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unit {
    pub(super) tile: usize,
    pub(super) head: usize,
    pub(super) span: Option<usize>,
}

/// A checked step. Its vectors keep their memory from step to step.
pub(super) struct Plan {
    group: usize,
    threads: usize,
    pub(super) rows: Vec<Row>,
    pub(super) tiles: Vec<PlannedTile>,
    /// Long ones first, so that threads end together.
    pub(super) units: Vec<Unit>,
    /// Rows whose logits are asked for.
    pub(super) logits: Vec<usize>,
    /// Step in which a page was last written.
    written: Vec<u64>,
    step: u64,
}

impl Plan {
    pub(super) fn new(shape: &ModelShape, group: usize, threads: usize) -> Self {
        let spans = crate::llm::attention::spans(shape.context);
        let units =
            shape.step_tokens_max * shape.kv.kv_heads + UNITS_PER_THREAD_MIN * threads * spans;
        Self {
            group,
            threads,
            rows: Vec::with_capacity(shape.step_tokens_max),
            tiles: Vec::with_capacity(shape.step_tokens_max),
            units: Vec::with_capacity(units),
            logits: Vec::with_capacity(shape.logits_rows_max),
            written: Vec::new(),
            step: 0,
        }
    }

    /// Check `segments` against the model and the pool, and plan their step.
    ///
    /// # Errors
    /// [`Error::Input`] as [`crate::llm::forward::Forward::step`] says.
    pub(super) fn build(
        &mut self,
        shape: &ModelShape,
        kv: &KvPages,
        segments: &[Segment<'_>],
    ) -> Result<()> {
        if *kv.shape() != shape.kv {
            return Err(Error::input("kv", "the pages are laid out for another model"));
        }
        self.rows.clear();
        self.tiles.clear();
        self.units.clear();
        self.logits.clear();
        self.written.resize(kv.capacity(), 0);
        self.step += 1;
        for (index, segment) in segments.iter().enumerate() {
            self.check(shape, kv, segment)?;
            self.add(shape, index, segment)?;
        }
        self.cut(shape);
        Ok(())
    }

    fn check(&mut self, shape: &ModelShape, kv: &KvPages, segment: &Segment<'_>) -> Result<()> {
        let Segment { tokens, position, pages, .. } = *segment;
        if tokens.is_empty() {
            return Err(Error::input("tokens", "a segment has no token"));
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= shape.vocab) {
            let reason = format!("{token} is not in the vocabulary of {}", shape.vocab);
            return Err(Error::input("tokens", reason));
        }
        let end = position.saturating_add(tokens.len());
        if end > shape.context {
            let reason = format!("{end} tokens, but the context is {}", shape.context);
            return Err(Error::input("position", reason));
        }
        if end > pages.len() * PAGE_TOKENS {
            let reason = format!("{end} tokens do not fit {} pages", pages.len());
            return Err(Error::input("pages", reason));
        }
        if let Some(page) = pages.iter().find(|page| page.0 as usize >= kv.capacity()) {
            return Err(Error::input("pages", format!("page {} is not of this pool", page.0)));
        }
        for page in &pages[position / PAGE_TOKENS..end.div_ceil(PAGE_TOKENS)] {
            let written = &mut self.written[page.0 as usize];
            if kv.references(*page) != 1 || *written == self.step {
                let reason = format!("page {} is shared, so it cannot be written", page.0);
                return Err(Error::input("pages", reason));
            }
            *written = self.step;
        }
        Ok(())
    }

    fn add(&mut self, shape: &ModelShape, index: usize, segment: &Segment<'_>) -> Result<()> {
        let first = self.rows.len();
        let count = segment.tokens.len();
        if first + count > shape.step_tokens_max {
            let reason = format!("more than {} in one step", shape.step_tokens_max);
            return Err(Error::input("tokens", reason));
        }
        let mut done = 0;
        while done < count {
            let position = segment.position + done;
            let tokens = (count - done)
                .min(PAGE_TOKENS - position % PAGE_TOKENS)
                .min(tile_tokens_max(self.group));
            let tile = self.tiles.len();
            self.tiles.push(PlannedTile {
                tile: Tile { position, tokens },
                segment: index,
                row: first + done,
                partials: None,
            });
            let tokens = segment.tokens[done..done + tokens].iter().enumerate();
            self.rows.extend(tokens.map(|(i, &token)| Row {
                token,
                position: position + i,
                segment: index,
                tile,
            }));
            done = self.rows.len() - first;
        }
        let asked = match segment.logits {
            LogitsFor::Nothing => count..count,
            LogitsFor::Last => count - 1..count,
            LogitsFor::All => 0..count,
        };
        if self.logits.len() + asked.len() > shape.logits_rows_max {
            let reason = format!("more than {} rows in one step", shape.logits_rows_max);
            return Err(Error::input("logits", reason));
        }
        self.logits.extend(asked.map(|row| first + row));
        Ok(())
    }

    /// Cut tiles into units; into spans where whole tiles would leave threads idle.
    fn cut(&mut self, shape: &ModelShape) {
        let heads = shape.kv.kv_heads;
        let few = self.tiles.len() * heads < UNITS_PER_THREAD_MIN * self.threads;
        let mut partials = 0;
        for (index, planned) in self.tiles.iter_mut().enumerate() {
            let spans = planned.tile.spans();
            let rows = planned.tile.tokens * self.group;
            let len = heads * spans * partial_len(rows, shape.kv.head_dim);
            let apart = self.threads > 1 && few && spans > 1 && partials + len <= PARTIALS_LEN_MAX;
            let unit = |head, span| Unit { tile: index, head, span };
            if apart {
                planned.partials = Some(partials);
                partials += len;
                let spans = (0..spans).map(Some);
                self.units.extend(spans.flat_map(|span| (0..heads).map(move |h| unit(h, span))));
            } else {
                self.units.extend((0..heads).map(|head| unit(head, None)));
            }
        }
        let tiles = &self.tiles;
        let cost = |unit: &Unit| {
            let tile = &tiles[unit.tile].tile;
            tile.tokens * if unit.span.is_some() { 1 } else { tile.page() + 1 }
        };
        // Equal ones by number, for the same order on every machine.
        self.units.sort_unstable_by_key(|unit| {
            (std::cmp::Reverse(cost(unit)), unit.tile, unit.head, unit.span)
        });
    }
}
