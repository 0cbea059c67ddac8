//! Attention of a few queries of one sequence over its pages, one key/value head at a time.
//!
//! A *tile* is up to [`rows_max`]`/ group` consecutive tokens that lie in one page, with all query
//! heads that share a key/value head: `rows = tokens * group`. Each page of keys and values is read
//! once for all rows of the tile.
//!
//! The pages of a sequence are cut into *spans* of [`SPAN_PAGES`], counted from position 0. Inside a
//! span the softmax runs online over the pages in order; spans are then merged in order. A row's
//! numbers therefore depend only on the sequence: not on the tile it is in, nor on which threads
//! took which spans.
//!
//! Queries come scaled by `log2(e) / sqrt(head_dim)`, so the softmax is a power of two.
#![expect(unsafe_code, reason = "kernels read pages and rows through pointers")]
#![expect(
    clippy::inline_always,
    reason = "a kernel is only fast when inlined where its features are on"
)]

mod kernel;

use std::ops::Range;

use crate::llm::kv::{KvShape, PAGE_TOKENS, PageId};
use crate::llm::ops::Aligned;
use crate::signal::isa::Isa;

/// Pages of a span: how finely one row's attention is split over threads.
pub(crate) const SPAN_PAGES: usize = 8;

/// Rows a tile aims at: enough that the conversion of a page is paid once, few enough that queries
/// and results stay near the processor.
const TILE_ROWS: usize = 96;

/// Tokens of a tile when `group` query heads share a key/value head.
pub(crate) fn tile_tokens_max(group: usize) -> usize {
    (TILE_ROWS / group).clamp(1, PAGE_TOKENS)
}

/// Most rows of a tile.
pub(crate) fn rows_max(group: usize) -> usize {
    tile_tokens_max(group) * group
}

/// Spans that cover `tokens` tokens.
pub(crate) fn spans(tokens: usize) -> usize {
    tokens.div_ceil(SPAN_PAGES * PAGE_TOKENS)
}

/// Keys and values of one layer and head, in the pages of one sequence.
#[derive(Clone, Copy)]
pub(crate) struct HeadPages<'a> {
    /// Begin of the pool.
    pub(crate) pool: *const u16,
    /// Pages from position 0; all of them are in the pool.
    pub(crate) pages: &'a [PageId],
    /// Layout.
    pub(crate) shape: KvShape,
    /// Layer and key/value head.
    pub(crate) layer: usize,
    pub(crate) head: usize,
}

impl HeadPages<'_> {
    /// First key of the sequence's page `index`.
    #[inline(always)]
    fn keys(&self, index: usize) -> *const u16 {
        let page = self.pages[index].0 as usize * self.shape.page_len();
        // SAFETY: the page is in the pool, the head in the page.
        unsafe { self.pool.add(page + self.shape.keys_at(self.layer, self.head)) }
    }
}

/// Consecutive tokens of one sequence in one page.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// Position of the first token.
    pub(crate) position: usize,
    /// Tokens, at least one.
    pub(crate) tokens: usize,
}

impl Tile {
    /// The page all its tokens lie in.
    pub(crate) fn page(&self) -> usize {
        self.position / PAGE_TOKENS
    }

    /// Spans its tokens look at.
    pub(crate) fn spans(&self) -> usize {
        spans(self.position + self.tokens)
    }

    /// Pages of a span, up to the tile's own.
    fn span_pages(&self, span: usize) -> Range<usize> {
        span * SPAN_PAGES..((span + 1) * SPAN_PAGES).min(self.page() + 1)
    }
}

/// What a row has seen so far: the largest score `m`, the sum `l` of `2^(score - m)`, and the values
/// weighted by the same, `(rows, head_dim)`.
#[derive(Debug)]
pub(crate) struct Running {
    largest: Vec<f32>,
    sum: Vec<f32>,
    values: Aligned,
}

impl Running {
    fn new(rows: usize, head_dim: usize) -> Self {
        Self {
            largest: vec![0.0; rows],
            sum: vec![0.0; rows],
            values: Aligned::new(rows * head_dim),
        }
    }
}

/// A thread's memory for attention.
#[derive(Debug)]
pub(crate) struct Scratch {
    head_dim: usize,
    /// Queries `(rows, head_dim)`.
    queries: Aligned,
    /// A page's keys `(head_dim, PAGE_TOKENS)` and values `(PAGE_TOKENS, head_dim)`.
    keys: Aligned,
    values: Aligned,
    /// Scores, then weights, `(rows, PAGE_TOKENS)`.
    scores: Aligned,
    /// Sums by lane, `(rows, LANES)`.
    lanes: Aligned,
    span: Running,
    whole: Running,
}

impl Scratch {
    /// For heads of `head_dim` numbers, shared by `group` query heads.
    pub(crate) fn new(head_dim: usize, group: usize) -> Self {
        let rows = rows_max(group);
        Self {
            head_dim,
            queries: Aligned::new(rows * head_dim),
            keys: Aligned::new(PAGE_TOKENS * head_dim),
            values: Aligned::new(PAGE_TOKENS * head_dim),
            scores: Aligned::new(rows * PAGE_TOKENS),
            lanes: Aligned::new(rows * crate::llm::ops::vector::LANES),
            span: Running::new(rows, head_dim),
            whole: Running::new(rows, head_dim),
        }
    }
}

/// Rows of a tile in a `(tokens, heads, head_dim)` array: the first row, and numbers from one token
/// to the next. The `group` heads of a token follow each other.
#[derive(Clone, Copy)]
pub(crate) struct Rows<T> {
    first: T,
    token_stride: usize,
    group: usize,
}

impl<T> Rows<T> {
    pub(crate) fn new(first: T, token_stride: usize, group: usize) -> Self {
        Self { first, token_stride, group }
    }
}

/// Numbers of one span's result: values, largest and sum of every row.
pub(crate) fn partial_len(rows: usize, head_dim: usize) -> usize {
    rows * (head_dim + 2)
}

/// Attention of a whole tile: all spans, merged and divided by the sum, into `to`.
///
/// # Safety
/// The processor has `isa`; pages, queries and results are valid for the tile, nobody writes what is
/// read, and `scratch` was made for this `head_dim` and `group`.
pub(crate) unsafe fn attend(
    isa: Isa,
    pages: &HeadPages<'_>,
    tile: Tile,
    queries: Rows<*const f32>,
    to: Rows<*mut f32>,
    scratch: &mut Scratch,
) {
    let rows = tile.tokens * queries.group;
    // SAFETY: by the contract above.
    unsafe {
        gather(queries, tile.tokens, scratch);
        for span in 0..tile.spans() {
            kernel::span(isa, pages, tile, queries.group, tile.span_pages(span), scratch);
            let Scratch { span: part, whole, .. } = scratch;
            for row in 0..rows {
                let (largest, sum) = (part.largest[row], part.sum[row]);
                let values = part.values.as_slice().as_ptr().add(row * scratch.head_dim);
                merge_row(isa, whole, row, scratch.head_dim, span == 0, largest, sum, values);
            }
        }
        finish(isa, &scratch.whole, tile.tokens, scratch.head_dim, to);
    }
}

/// One span of a tile, left unmerged in `to` ([`partial_len`] numbers).
///
/// # Safety
/// As [`attend`].
pub(crate) unsafe fn attend_span(
    isa: Isa,
    pages: &HeadPages<'_>,
    tile: Tile,
    span: usize,
    queries: Rows<*const f32>,
    to: *mut f32,
    scratch: &mut Scratch,
) {
    let rows = tile.tokens * queries.group;
    // SAFETY: by the contract above.
    unsafe {
        gather(queries, tile.tokens, scratch);
        kernel::span(isa, pages, tile, queries.group, tile.span_pages(span), scratch);
        let (part, values) = (&scratch.span, rows * scratch.head_dim);
        to.copy_from_nonoverlapping(part.values.as_slice().as_ptr(), values);
        to.add(values).copy_from_nonoverlapping(part.largest.as_ptr(), rows);
        to.add(values + rows).copy_from_nonoverlapping(part.sum.as_ptr(), rows);
    }
}

/// Merge one token's rows of all spans left by [`attend_span`] and divide by the sum, into `to`
/// (`group` heads). `partials` is the first span's.
///
/// # Safety
/// As [`attend`]; all spans of the tile have been left, one after the other.
pub(crate) unsafe fn merge_token(
    isa: Isa,
    partials: *const f32,
    tile: Tile,
    token: usize,
    to: &mut [f32],
    scratch: &mut Scratch,
) {
    let head_dim = scratch.head_dim;
    let group = to.len() / head_dim;
    let rows = tile.tokens * group;
    // SAFETY: by the contract above.
    unsafe {
        for span in 0..tile.spans() {
            let part = partials.add(span * partial_len(rows, head_dim));
            for row in 0..group {
                let from = token * group + row;
                let largest = *part.add(rows * head_dim + from);
                let sum = *part.add(rows * head_dim + rows + from);
                let values = part.add(from * head_dim);
                merge_row(isa, &mut scratch.whole, row, head_dim, span == 0, largest, sum, values);
            }
        }
        let to = Rows { first: to.as_mut_ptr(), token_stride: 0, group };
        finish(isa, &scratch.whole, 1, head_dim, to);
    }
}

/// Copy the queries of a tile together.
unsafe fn gather(queries: Rows<*const f32>, tokens: usize, scratch: &mut Scratch) {
    let len = queries.group * scratch.head_dim;
    for (token, to) in scratch.queries.as_mut_slice().chunks_exact_mut(len).take(tokens).enumerate()
    {
        // SAFETY: the caller's rows are valid for the tile.
        let from = unsafe {
            std::slice::from_raw_parts(queries.first.add(token * queries.token_stride), len)
        };
        to.copy_from_slice(from);
    }
}

/// Add a span to a row.
#[expect(clippy::too_many_arguments, reason = "the parts of two running sums")]
#[inline]
unsafe fn merge_row(
    isa: Isa,
    whole: &mut Running,
    row: usize,
    head_dim: usize,
    first: bool,
    largest: f32,
    sum: f32,
    values: *const f32,
) {
    let at = &mut whole.values.as_mut_slice()[row * head_dim..(row + 1) * head_dim];
    // SAFETY: the caller's row holds `head_dim` numbers, as does ours.
    unsafe {
        if first {
            (whole.largest[row], whole.sum[row]) = (largest, sum);
            at.copy_from_slice(std::slice::from_raw_parts(values, head_dim));
        } else {
            let (before, total) = (&mut whole.largest[row], &mut whole.sum[row]);
            kernel::merge(isa, before, total, at, largest, sum, values);
        }
    }
}

/// Divide every row by its sum.
unsafe fn finish(isa: Isa, whole: &Running, tokens: usize, head_dim: usize, to: Rows<*mut f32>) {
    let values = whole.values.as_slice();
    for row in 0..tokens * to.group {
        let (token, head) = (row / to.group, row % to.group);
        // SAFETY: the caller's rows are valid for the tile.
        unsafe {
            let to = to.first.add(token * to.token_stride + head * head_dim);
            kernel::divide(isa, &values[row * head_dim..(row + 1) * head_dim], whole.sum[row], to);
        }
    }
}

#[cfg(test)]
mod tests;
