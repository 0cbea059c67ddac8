//! The inner loops: scores, weights, weighted values; generic over the vector.
#![expect(clippy::needless_range_loop, reason = "the indices are those of the register tile")]

use std::ops::Range;

use super::{HeadPages, Scratch, Tile};
use crate::llm::kv::PAGE_TOKENS;
use crate::llm::ops::vector::{LANES, Vector, dispatched};

/// Up to so many rows a page is read as half precision by every block of rows; beyond, it is
/// converted once.
const CONVERT_ROWS: usize = 12;

/// A number of a page: half precision, or converted.
trait Number: Copy {
    /// Sixteen of them.
    unsafe fn load<V: Vector>(from: *const Self) -> V;
}

impl Number for u16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: the caller's page has sixteen numbers there.
        unsafe { V::load_f16(from) }
    }
}

impl Number for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: the caller's page has sixteen numbers there.
        unsafe { V::load(from) }
    }
}

/// Scores of `R` rows against a page: every lane is one chain over the dimensions in order.
#[inline(always)]
unsafe fn scores<V: Vector, N: Number, const R: usize>(
    queries: *const f32,
    head_dim: usize,
    keys: *const N,
    ahead: *const u16,
    to: *mut f32,
) {
    // SAFETY: R rows of queries and scores, one page of keys.
    unsafe {
        let mut sums = [[V::splat(0.0); 2]; R];
        for d in 0..head_dim {
            V::prefetch(ahead.wrapping_add(d * PAGE_TOKENS));
            let low: V = N::load(keys.add(d * PAGE_TOKENS));
            let high: V = N::load(keys.add(d * PAGE_TOKENS + LANES));
            for r in 0..R {
                let q = V::splat(*queries.add(r * head_dim + d));
                sums[r][0] = q.mul_add(low, sums[r][0]);
                sums[r][1] = q.mul_add(high, sums[r][1]);
            }
        }
        for r in 0..R {
            sums[r][0].store(to.add(r * PAGE_TOKENS));
            sums[r][1].store(to.add(r * PAGE_TOKENS + LANES));
        }
    }
}

/// `to += weights * values` for `R` rows and `C` vectors of columns, over `tokens` tokens in order.
#[inline(always)]
unsafe fn weigh<V: Vector, N: Number, const R: usize, const C: usize>(
    weights: *const f32,
    values: *const N,
    ahead: *const u16,
    column: usize,
    tokens: usize,
    head_dim: usize,
    to: *mut f32,
) {
    // SAFETY: R rows of weights and results, one page of values, columns inside the head.
    unsafe {
        let mut sums = [[V::splat(0.0); C]; R];
        for r in 0..R {
            for c in 0..C {
                sums[r][c] = V::load(to.add(r * head_dim + column + c * LANES));
            }
        }
        for t in 0..tokens {
            let mut v = [V::splat(0.0); C];
            for c in 0..C {
                if c % 2 == 0 {
                    V::prefetch(ahead.wrapping_add(t * head_dim + column + c * LANES));
                }
                v[c] = N::load(values.add(t * head_dim + column + c * LANES));
            }
            for r in 0..R {
                let w = V::splat(*weights.add(r * PAGE_TOKENS + t));
                for c in 0..C {
                    sums[r][c] = w.mul_add(v[c], sums[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                sums[r][c].store(to.add(r * head_dim + column + c * LANES));
            }
        }
    }
}

/// Calls `$each!(R, first_row)` for blocks of rows, large ones first.
macro_rules! row_blocks {
    ($rows:expr, [$($size:literal)*], $each:ident) => {{
        let (rows, mut row) = ($rows, 0);
        $(while rows - row >= $size {
            $each!($size, row);
            row += $size;
        })*
        debug_assert_eq!(row, rows);
    }};
}

#[inline(always)]
unsafe fn page_scores<V: Vector, N: Number>(
    queries: *const f32,
    rows: usize,
    head_dim: usize,
    keys: *const N,
    ahead: *const u16,
    to: *mut f32,
) {
    // SAFETY: `rows` rows of queries and scores, one page of keys.
    unsafe {
        macro_rules! block {
            ($r:literal, $row:expr) => {
                scores::<V, N, $r>(
                    queries.add($row * head_dim),
                    head_dim,
                    keys,
                    ahead,
                    to.add($row * PAGE_TOKENS),
                )
            };
        }
        if V::WIDE {
            row_blocks!(rows, [12 6 4 3 2 1], block);
        } else {
            row_blocks!(rows, [2 1], block);
        }
    }
}

#[inline(always)]
unsafe fn page_values<V: Vector, N: Number>(
    weights: *const f32,
    rows: usize,
    values: *const N,
    ahead: *const u16,
    tokens: usize,
    head_dim: usize,
    to: *mut f32,
) {
    // SAFETY: `rows` rows of weights and results, one page of values.
    unsafe {
        let mut column = 0;
        macro_rules! columns {
            ($c:literal, [$($size:literal)*]) => {
                while column + $c * LANES <= head_dim {
                    macro_rules! block {
                        ($r:literal, $row:expr) => {
                            weigh::<V, N, $r, $c>(
                                weights.add($row * PAGE_TOKENS),
                                values,
                                ahead,
                                column,
                                tokens,
                                head_dim,
                                to.add($row * head_dim),
                            )
                        };
                    }
                    row_blocks!(rows, [$($size)*], block);
                    column += $c * LANES;
                }
            };
        }
        if V::WIDE {
            columns!(4, [6 4 3 2 1]);
        } else {
            columns!(2, [2 1]);
        }
        columns!(1, [6 4 3 2 1]);
    }
}

/// Scores of one row become weights; what the row has seen is rescaled to its new largest score.
#[inline(always)]
unsafe fn weigh_row<V: Vector>(
    scores: *mut f32,
    visible: usize,
    largest: &mut f32,
    lanes: *mut f32,
    values: *mut f32,
    head_dim: usize,
) {
    // SAFETY: a row of scores, lanes and values.
    unsafe {
        let low = V::load(scores).keep_first(visible, f32::NEG_INFINITY);
        let high =
            V::load(scores.add(LANES)).keep_first(visible.saturating_sub(LANES), f32::NEG_INFINITY);
        let page = low.max(high).largest();
        let mut sums = V::load(lanes);
        if page > *largest {
            let scale = V::splat(*largest - page).exp2();
            *largest = page;
            sums = sums.mul(scale);
            for d in (0..head_dim).step_by(LANES) {
                V::load(values.add(d)).mul(scale).store(values.add(d));
            }
        }
        let m = V::splat(*largest);
        let (low, high) = (low.sub(m).exp2(), high.sub(m).exp2());
        low.store(scores);
        high.store(scores.add(LANES));
        sums.add(low.add(high)).store(lanes);
    }
}

#[inline(always)]
unsafe fn convert<V: Vector>(from: *const u16, to: &mut [f32], len: usize) {
    assert!(len <= to.len(), "Invariant: the scratch holds a page of a head");
    // SAFETY: the caller's page has `len` numbers; the scratch is checked.
    unsafe {
        for i in (0..len).step_by(LANES) {
            V::load_f16(from.add(i)).store(to.as_mut_ptr().add(i));
        }
    }
}

#[inline(always)]
unsafe fn span_of<V: Vector>(
    pages: &HeadPages<'_>,
    tile: Tile,
    group: usize,
    range: Range<usize>,
    scratch: &mut Scratch,
) {
    let (head_dim, rows) = (scratch.head_dim, tile.tokens * group);
    let head_len = pages.shape.head_len();
    let queries = scratch.queries.as_slice().as_ptr();
    let scores = scratch.scores.as_mut_slice().as_mut_ptr();
    let lanes = scratch.lanes.as_mut_slice();
    lanes[..rows * LANES].fill(0.0);
    let lanes = lanes.as_mut_ptr();
    let values = scratch.span.values.as_mut_slice();
    values[..rows * head_dim].fill(0.0);
    let values = values.as_mut_ptr();
    scratch.span.largest[..rows].fill(f32::NEG_INFINITY);
    // SAFETY: the caller's contract: pages and rows are valid, the scratch holds the tile.
    unsafe {
        for index in range {
            let page_keys = pages.keys(index);
            let page_values_at = page_keys.add(head_len);
            // Pages lie far apart, where the processor does not look ahead by itself.
            let ahead = pages.keys((index + 1).min(tile.page()));
            // Tokens of this page that a token of the tile may see.
            let own = index == tile.page();
            let first = if own { tile.position % PAGE_TOKENS + 1 } else { PAGE_TOKENS };
            let last = if own { first + tile.tokens - 1 } else { PAGE_TOKENS };
            if rows <= CONVERT_ROWS {
                page_scores::<V, u16>(queries, rows, head_dim, page_keys, ahead, scores);
            } else {
                let keys = scratch.keys.as_mut_slice();
                convert::<V>(page_keys, keys, head_len);
                convert::<V>(page_values_at, scratch.values.as_mut_slice(), last * head_dim);
                page_scores::<V, f32>(queries, rows, head_dim, keys.as_ptr(), ahead, scores);
            }
            let ahead = ahead.wrapping_add(head_len);
            for row in 0..rows {
                let visible = if own { first + row / group } else { PAGE_TOKENS };
                weigh_row::<V>(
                    scores.add(row * PAGE_TOKENS),
                    visible,
                    &mut scratch.span.largest[row],
                    lanes.add(row * LANES),
                    values.add(row * head_dim),
                    head_dim,
                );
            }
            if rows <= CONVERT_ROWS {
                page_values::<V, u16>(scores, rows, page_values_at, ahead, last, head_dim, values);
            } else {
                let from = scratch.values.as_slice().as_ptr();
                page_values::<V, f32>(scores, rows, from, ahead, last, head_dim, values);
            }
        }
        for row in 0..rows {
            scratch.span.sum[row] = V::load(lanes.add(row * LANES)).sum();
        }
    }
}

#[inline(always)]
unsafe fn merge_of<V: Vector>(
    largest: &mut f32,
    sum: &mut f32,
    values: &mut [f32],
    other_largest: f32,
    other_sum: f32,
    other_values: *const f32,
) {
    let m = if other_largest > *largest { other_largest } else { *largest };
    // SAFETY: both rows have the length of `values`, whole vectors.
    unsafe {
        let ours = V::splat(*largest - m).exp2();
        let theirs = V::splat(other_largest - m).exp2();
        let l = V::splat(*sum).mul(ours).add(V::splat(other_sum).mul(theirs));
        // All lanes are equal.
        *sum = l.largest();
        *largest = m;
        let at = values.as_mut_ptr();
        for d in (0..values.len()).step_by(LANES) {
            let theirs = V::load(other_values.add(d)).mul(theirs);
            V::load(at.add(d)).mul_add(ours, theirs).store(at.add(d));
        }
    }
}

#[inline(always)]
unsafe fn divide_of<V: Vector>(values: &[f32], sum: f32, to: *mut f32) {
    // SAFETY: both rows have the length of `values`, whole vectors.
    unsafe {
        let scale = V::splat(1.0 / sum);
        for d in (0..values.len()).step_by(LANES) {
            V::load(values.as_ptr().add(d)).mul(scale).store(to.add(d));
        }
    }
}

dispatched! {
    /// The softmax of a tile over a span of pages, into `scratch.span`; queries are in the scratch.
    pub(super) unsafe fn span(
        pages: &HeadPages<'_>,
        tile: Tile,
        group: usize,
        range: Range<usize>,
        scratch: &mut Scratch,
    ) = span_of;

    /// Add another span's row to a row.
    pub(super) unsafe fn merge(
        largest: &mut f32,
        sum: &mut f32,
        values: &mut [f32],
        other_largest: f32,
        other_sum: f32,
        other_values: *const f32,
    ) = merge_of;

    /// `to = values / sum`.
    pub(super) unsafe fn divide(values: &[f32], sum: f32, to: *mut f32) = divide_of;
}
