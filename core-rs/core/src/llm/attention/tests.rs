use super::*;
use crate::llm::kv::KvPages;

/// A pool with one sequence of random keys and values, and queries for it.
struct Case {
    kv: KvPages,
    pages: Vec<PageId>,
    shape: KvShape,
    group: usize,
    tokens: usize,
    /// `(tokens, kv_heads * group, head_dim)`, scaled.
    queries: Vec<f32>,
    /// `(tokens, kv_heads, head_dim)` as stored.
    keys: Vec<f32>,
    values: Vec<f32>,
}

struct Draw(u64);

impl Draw {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    fn halves(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| half::f16::from_f32(self.next() * 2.0).to_f32()).collect()
    }
}

impl Case {
    fn new(head_dim: usize, group: usize, tokens: usize) -> Self {
        let shape = KvShape { layers: 2, kv_heads: 2, head_dim };
        let mut kv = KvPages::new(shape, 1 << 24).unwrap();
        // Out of order, so that a wrong page shows.
        let count = tokens.div_ceil(PAGE_TOKENS);
        let mut pages: Vec<PageId> = (0..count).map(|_| kv.allocate().unwrap()).collect();
        pages.reverse();
        let mut draw = Draw(tokens as u64);
        let len = tokens * shape.kv_heads * head_dim;
        let (keys, values) = (draw.halves(len), draw.halves(len));
        let queries = (0..len * group).map(|_| draw.next() * 0.7).collect();
        for t in 0..tokens {
            let page = kv.page_mut(pages[t / PAGE_TOKENS]);
            for head in 0..shape.kv_heads {
                let at = shape.keys_at(1, head);
                for d in 0..head_dim {
                    let from = (t * shape.kv_heads + head) * head_dim + d;
                    let slot = t % PAGE_TOKENS;
                    // SAFETY: inside the page by its layout.
                    unsafe {
                        *page.add(at + d * PAGE_TOKENS + slot) =
                            half::f16::from_f32(keys[from]).to_bits();
                        *page.add(at + shape.head_len() + slot * head_dim + d) =
                            half::f16::from_f32(values[from]).to_bits();
                    }
                }
            }
        }
        Self { kv, pages, shape, group, tokens, queries, keys, values }
    }

    fn stride(&self) -> usize {
        self.shape.kv_heads * self.group * self.shape.head_dim
    }

    fn head(&self, head: usize) -> HeadPages<'_> {
        let pool = self.kv.page(PageId(0));
        HeadPages { pool, pages: &self.pages, shape: self.shape, layer: 1, head }
    }

    fn rows(&self, head: usize, token: usize) -> Rows<*const f32> {
        let at = token * self.stride() + head * self.group * self.shape.head_dim;
        Rows { first: &raw const self.queries[at], token_stride: self.stride(), group: self.group }
    }

    /// All tokens in tiles of at most `tile` tokens, `(tokens, heads, head_dim)`.
    fn run(&self, isa: Isa, tile: usize, split: bool) -> Vec<f32> {
        let head_dim = self.shape.head_dim;
        let mut out = vec![0.0_f32; self.tokens * self.stride()];
        let mut scratch = Scratch::new(head_dim, self.group);
        let tile = tile.min(tile_tokens_max(self.group));
        let mut position = 0;
        while position < self.tokens {
            let tokens = tile.min(self.tokens - position).min(PAGE_TOKENS - position % PAGE_TOKENS);
            let part = Tile { position, tokens };
            for head in 0..self.shape.kv_heads {
                let at = position * self.stride() + head * self.group * head_dim;
                let queries = self.rows(head, position);
                let pages = self.head(head);
                // SAFETY: the case holds everything the tile reads; `out` is ours alone.
                unsafe {
                    if split {
                        let len = partial_len(tokens * self.group, head_dim);
                        let mut partials = vec![0.0; part.spans() * len];
                        for span in (0..part.spans()).rev() {
                            let left = &raw mut partials[span * len];
                            attend_span(isa, &pages, part, span, queries, left, &mut scratch);
                        }
                        for token in 0..tokens {
                            let at = at + token * self.stride();
                            let merged = &mut out[at..at + self.group * head_dim];
                            merge_token(isa, partials.as_ptr(), part, token, merged, &mut scratch);
                        }
                    } else {
                        let to = Rows {
                            first: &raw mut out[at],
                            token_stride: self.stride(),
                            group: self.group,
                        };
                        attend(isa, &pages, part, queries, to, &mut scratch);
                    }
                }
            }
            position += tokens;
        }
        out
    }

    /// The definition, in f64.
    fn expected(&self, token: usize) -> Vec<f32> {
        let (heads, dim) = (self.shape.kv_heads, self.shape.head_dim);
        let mut out = Vec::new();
        for head in 0..heads * self.group {
            let q = &self.queries[token * self.stride() + head * dim..][..dim];
            let at = |t: usize| (t * heads + head / self.group) * dim;
            let scores: Vec<f64> = (0..=token)
                .map(|t| {
                    let k = &self.keys[at(t)..][..dim];
                    q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum()
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp2()).collect();
            let sum: f64 = weights.iter().sum();
            for d in 0..dim {
                let value: f64 = weights
                    .iter()
                    .enumerate()
                    .map(|(t, w)| w * f64::from(self.values[at(t) + d]))
                    .sum();
                out.push((value / sum) as f32);
            }
        }
        out
    }
}

fn available() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available())
}

#[test]
fn attention_is_the_softmax_of_the_scores_over_the_values() {
    for (head_dim, group, tokens) in
        [(64, 3, 300), (16, 1, 70), (32, 7, 65), (80, 2, 33), (128, 4, 290)]
    {
        let case = Case::new(head_dim, group, tokens);
        for isa in available() {
            let out = case.run(isa, usize::MAX, false);
            let mut worst = 0.0_f32;
            for token in [0, 1, 15, 16, 31, 32, tokens / 2, tokens - 1] {
                let row = &out[token * case.stride()..][..case.stride()];
                for (y, e) in row.iter().zip(case.expected(token)) {
                    worst = worst.max((y - e).abs());
                }
            }
            assert!(worst < 1e-5, "{} {head_dim} {group} {worst:e}", isa.name());
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_tile_and_with_its_spans_apart() {
    for (head_dim, group) in [(64, 3), (48, 1), (32, 7)] {
        let case = Case::new(head_dim, group, 2 * SPAN_PAGES * PAGE_TOKENS + 45);
        for isa in available() {
            let whole = case.run(isa, usize::MAX, false);
            for (tile, split) in [(1, false), (1, true), (5, true), (32, true), (7, false)] {
                let other = case.run(isa, tile, split);
                let same = whole.iter().zip(&other).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{} {head_dim} {group} tiles of {tile}", isa.name());
            }
        }
    }
}
