//! One worker's way through a step.

use std::f32::consts::LOG2_E;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::plan::{Plan, PlannedTile};
use super::weights::{Layer, Weights};
use super::{PRIVATE_TOKENS_MAX, WorkerMemory};
use crate::llm::attention::{self, HeadPages, partial_len};
use crate::llm::config::ModelConfig;
use crate::llm::forward::Segment;
use crate::llm::kernels::{
    Activations, BLOCK_COLUMNS, GROUP_ROWS, OutRows, PANEL_TOKENS, QuantMatrix, Write, matmul,
};
use crate::llm::kv::{KvShape, PAGE_TOKENS};
use crate::llm::ops::{self, Aligned, RopeTable};
use crate::pool::Worker;
use crate::signal::isa::Isa;

/// From so many panels a thread, threads share a step by tokens.
const PANELS_PER_THREAD_MIN: usize = 4;

/// Blocks of columns of the hidden row that are taken together, so that they are still in cache when
/// they are quantised. Of few tokens all are, so that memory is read in long runs.
const HIDDEN_BLOCKS: usize = 4;

/// Memory that threads share.
#[derive(Clone, Copy)]
pub(super) struct Shared<T> {
    first: *mut T,
    len: usize,
}

// SAFETY: a pointer; whoever follows it says why no other thread is there.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn new(first: *mut T, len: usize) -> Self {
        Self { first, len }
    }
}

/// Rows of `width` numbers that threads share.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    memory: Shared<f32>,
    width: usize,
    owner: PhantomData<&'a mut [f32]>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(memory: &'a mut Aligned, width: usize) -> Self {
        let values = memory.as_mut_slice();
        let memory = Shared::new(values.as_mut_ptr(), values.len());
        Self { memory, width, owner: PhantomData }
    }

    /// Columns of a row.
    ///
    /// # Safety
    /// While the result is used, no other thread writes there.
    unsafe fn read(&self, row: usize, columns: Range<usize>) -> &'a [f32] {
        // SAFETY: checked in `at`; the caller keeps writers away.
        unsafe { std::slice::from_raw_parts(self.at(row, &columns), columns.len()) }
    }

    /// Columns of a row, to write.
    ///
    /// # Safety
    /// While the result is used, nobody else reads or writes there.
    unsafe fn write(&self, row: usize, columns: Range<usize>) -> &'a mut [f32] {
        // SAFETY: checked in `at`; the caller keeps everybody away.
        unsafe { std::slice::from_raw_parts_mut(self.at(row, &columns), columns.len()) }
    }

    fn at(&self, row: usize, columns: &Range<usize>) -> *mut f32 {
        assert!(columns.start <= columns.end && columns.end <= self.width, "within the row");
        assert!((row + 1) * self.width <= self.memory.len, "within the rows");
        // SAFETY: inside the memory by the assertions above.
        unsafe { self.memory.first.add(row * self.width + columns.start) }
    }

    fn out(&self) -> OutRows<'a> {
        // SAFETY: the memory lives as long as `'a`.
        unsafe { OutRows::from_raw(self.memory.first, self.memory.len, self.width) }
    }
}

/// The shared buffers of [`super::Buffers`].
pub(super) struct Buffers<'a> {
    pub(super) x: Rows<'a>,
    pub(super) queries: Rows<'a>,
    pub(super) keys: Rows<'a>,
    pub(super) values: Rows<'a>,
    pub(super) attended: Rows<'a>,
    pub(super) gate: Rows<'a>,
    pub(super) up: Rows<'a>,
    pub(super) angles: Rows<'a>,
    pub(super) partials: Rows<'a>,
    pub(super) logits: Rows<'a>,
    pub(super) stream: &'a Activations,
    pub(super) heads: &'a Activations,
    pub(super) hidden: &'a Activations,
}

/// A planned step, the same for all workers.
pub(super) struct Step<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) isa: Isa,
    pub(super) weights: &'a Weights,
    pub(super) rope: &'a RopeTable,
    pub(super) plan: &'a Plan,
    pub(super) segments: &'a [Segment<'a>],
    pub(super) pages: Shared<u16>,
    pub(super) kv: KvShape,
    pub(super) group: usize,
    pub(super) buffers: Buffers<'a>,
    pub(super) queue: &'a [AtomicUsize],
    pub(super) failed: &'a AtomicUsize,
}

/// A worker's part of the products: these tokens, and its share of the rows of every matrix.
struct Part<'w> {
    worker: &'w Worker<'w>,
    tokens: Range<usize>,
    index: usize,
    count: usize,
}

impl<'w> Part<'w> {
    fn new(worker: &'w Worker<'w>, tokens: usize) -> Self {
        let panels = tokens.div_ceil(PANEL_TOKENS);
        if panels >= PANELS_PER_THREAD_MIN * worker.count {
            let panels = worker.share(panels);
            let end = (panels.end * PANEL_TOKENS).min(tokens);
            Self { worker, tokens: panels.start * PANEL_TOKENS..end, index: 0, count: 1 }
        } else {
            Self { worker, tokens: 0..tokens, index: worker.index, count: worker.count }
        }
    }

    /// Whether other workers have other rows of the same tokens.
    fn by_rows(&self) -> bool {
        self.count > 1
    }

    /// Its share of `total` things.
    fn share(&self, total: usize) -> Range<usize> {
        total * self.index / self.count..total * (self.index + 1) / self.count
    }

    /// Fill activations for the part's tokens: few of them by every worker for itself, many by
    /// workers in turn, with a barrier.
    fn spread<'m>(
        &self,
        own: &'m Activations,
        shared: &'m Activations,
        mut fill: impl FnMut(&Activations, usize),
    ) -> &'m Activations {
        if !self.by_rows() {
            self.tokens.clone().for_each(|t| fill(shared, t));
            shared
        } else if self.tokens.len() <= PRIVATE_TOKENS_MAX {
            self.tokens.clone().for_each(|t| fill(own, t));
            own
        } else {
            self.worker.share(self.tokens.len()).for_each(|t| fill(shared, t));
            self.worker.barrier();
            shared
        }
    }

    /// Wait for other rows of the same tokens.
    fn rows_done(&self) {
        if self.by_rows() {
            self.worker.barrier();
        }
    }
}

impl Step<'_> {
    /// Everything this worker does.
    pub(super) fn run(&self, worker: &Worker<'_>, memory: &mut WorkerMemory) {
        let part = Part::new(worker, self.plan.rows.len());
        self.embed(&part);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.attention_inputs(&part, index, layer, memory);
            layer.output.prefetch(part.share(layer.output.groups()));
            worker.barrier();
            self.attend(index, memory);
            worker.barrier();
            self.attention_output(&part, layer, memory);
            self.feed_forward(&part, index, layer, memory);
        }
        if !self.plan.logits.is_empty() {
            // Rows of logits may be of any worker's tokens.
            if !part.by_rows() {
                worker.barrier();
            }
            self.head(worker, memory);
        }
    }

    fn fail(&self, layer: usize) {
        self.failed.fetch_min(layer, Ordering::Relaxed);
    }

    /// The tokens' embeddings and the angles of their positions.
    fn embed(&self, part: &Part<'_>) {
        let tokens =
            if part.by_rows() { part.worker.share(part.tokens.len()) } else { part.tokens.clone() };
        for t in tokens {
            let row = self.plan.rows[t];
            // SAFETY: a token's row is one worker's until the barrier below, or throughout.
            unsafe {
                let x = self.buffers.x.write(t, 0..self.config.dim);
                self.weights.embedding.dequantise_row(row.token as usize, x);
                let angles = self.buffers.angles.write(t, 0..self.rope.row_len());
                self.rope.angles(row.position, angles);
            }
        }
        part.rows_done();
    }

    /// Norm and quantise rows of `x` for the part's tokens: token `t` is row `row_of(t)`. Returns
    /// where they are: `own` for few tokens, else in the shared buffer.
    fn normed<'m>(
        &'m self,
        part: &Part<'_>,
        layer: usize,
        weight: &[f32],
        (row, own): (&mut [f32], &'m Activations),
        row_of: impl Fn(usize) -> usize,
    ) -> &'m Activations {
        let row = &mut row[..self.config.dim];
        part.spread(own, self.buffers.stream, |to, t| {
            // SAFETY: nobody writes `x` between the barriers around this phase, or its tokens are
            // this worker's; `spread` gives each token of `to` to one worker.
            unsafe {
                let x = self.buffers.x.read(row_of(t), 0..self.config.dim);
                let mean = ops::rms_norm(self.isa, x, weight, self.config.epsilon, row);
                if !mean.is_finite() {
                    self.fail(layer);
                }
                to.quantise(t, 0, row);
            }
        })
    }

    /// Queries, keys and values of this worker's heads; keys and values go to the pages.
    fn attention_inputs(
        &self,
        part: &Part<'_>,
        index: usize,
        layer: &Layer,
        memory: &mut WorkerMemory,
    ) {
        let WorkerMemory { row, stream, halves, .. } = memory;
        let norm = &layer.attention_norm;
        let inputs = self.normed(part, index, norm, (row, &*stream), |t| t);
        let (heads, kv_heads, dim) = (self.config.heads, self.kv.kv_heads, self.kv.head_dim);
        let mine = part.share(heads + 2 * kv_heads);
        let cut = |from: usize, count: usize| {
            mine.start.clamp(from, from + count) - from..mine.end.clamp(from, from + count) - from
        };
        let product = |weights: &QuantMatrix, out: Rows<'_>, heads: &Range<usize>| {
            let groups = heads.start * dim / GROUP_ROWS..heads.end * dim / GROUP_ROWS;
            let (tokens, out) = (part.tokens.clone(), out.out());
            // SAFETY: these heads of these tokens are this worker's; nobody writes the inputs.
            unsafe { matmul(weights, inputs, tokens, out, groups, Write::Replace) }
        };
        let (queries, keys, values) =
            (cut(0, heads), cut(heads, kv_heads), cut(heads + kv_heads, kv_heads));
        product(&layer.query, self.buffers.queries, &queries);
        product(&layer.key, self.buffers.keys, &keys);
        product(&layer.value, self.buffers.values, &values);
        let biases = layer.biases.as_ref();
        let scale = LOG2_E / (dim as f32).sqrt();
        for t in part.tokens.clone() {
            // SAFETY: these heads of this token are this worker's until the next barrier, and so
            // are their places in the token's page; angles were written before the last barrier,
            // or by this worker.
            unsafe {
                let angles = self.buffers.angles.read(t, 0..self.rope.row_len());
                for head in queries.clone() {
                    let columns = head * dim..(head + 1) * dim;
                    let query = self.buffers.queries.write(t, columns.clone());
                    add_bias(query, biases.map(|biases| &biases.query[columns]));
                    self.rope.rotate(query, angles);
                    for x in query {
                        *x *= scale;
                    }
                }
                let slot = self.plan.rows[t].position % PAGE_TOKENS;
                for head in keys.clone() {
                    let columns = head * dim..(head + 1) * dim;
                    let key = self.buffers.keys.write(t, columns.clone());
                    add_bias(key, biases.map(|biases| &biases.key[columns]));
                    self.rope.rotate(key, angles);
                    self.halve(index, key, halves);
                    let to = self.page_of(t).add(self.kv.keys_at(index, head) + slot);
                    for (d, &half) in halves.iter().enumerate() {
                        *to.add(d * PAGE_TOKENS) = half;
                    }
                }
                for head in values.clone() {
                    let columns = head * dim..(head + 1) * dim;
                    let value = self.buffers.values.write(t, columns.clone());
                    add_bias(value, biases.map(|biases| &biases.value[columns]));
                    self.halve(index, value, halves);
                    let to = self.page_of(t).add(self.kv.keys_at(index, head));
                    to.add(self.kv.head_len() + slot * dim)
                        .copy_from_nonoverlapping(halves.as_ptr(), dim);
                }
            }
        }
    }

    fn halve(&self, layer: usize, from: &[f32], to: &mut [u16]) {
        if !ops::fits_f16(from) {
            self.fail(layer);
        }
        ops::to_f16(self.isa, from, to);
    }

    /// The page that token `t` of the step is kept in.
    fn page_of(&self, t: usize) -> *mut u16 {
        let row = self.plan.rows[t];
        let page = self.segments[row.segment].pages[row.position / PAGE_TOKENS];
        let at = page.0 as usize * self.kv.page_len();
        assert!(at + self.kv.page_len() <= self.pages.len, "Invariant: pages were checked");
        // SAFETY: inside the pool by the assertion above.
        unsafe { self.pages.first.add(at) }
    }

    /// Take units of attention until none is left.
    fn attend(&self, layer: usize, memory: &mut WorkerMemory) {
        let scratch = &mut memory.attention;
        let width = self.group * self.kv.head_dim;
        let next = || self.plan.units.get(self.queue[layer].fetch_add(1, Ordering::Relaxed));
        while let Some(unit) = next() {
            let planned = &self.plan.tiles[unit.tile];
            let pages = HeadPages {
                pool: self.pages.first,
                pages: self.segments[planned.segment].pages,
                shape: self.kv,
                layer,
                head: unit.head,
            };
            let columns = unit.head * width..(unit.head + 1) * width;
            let stride = self.buffers.queries.width;
            let queries = self.buffers.queries.at(planned.row, &columns).cast_const();
            let queries = attention::Rows::new(queries, stride, self.group);
            // SAFETY: pages and queries were written before the barrier and nobody writes them
            // now; the unit's results are this worker's.
            unsafe {
                if let (Some(at), Some(span)) = (planned.partials, unit.span) {
                    let to = self.partial(planned, at, unit.head, span);
                    let tile = planned.tile;
                    attention::attend_span(self.isa, &pages, tile, span, queries, to, scratch);
                } else {
                    let to = self.buffers.attended.at(planned.row, &columns);
                    let to = attention::Rows::new(to, stride, self.group);
                    attention::attend(self.isa, &pages, planned.tile, queries, to, scratch);
                }
            }
        }
    }

    /// Where a span of a tile and head is left.
    fn partial(&self, planned: &PlannedTile, at: usize, head: usize, span: usize) -> *mut f32 {
        let len = partial_len(planned.tile.tokens * self.group, self.kv.head_dim);
        let at = at + (head * planned.tile.spans() + span) * len;
        assert!(at + len <= self.buffers.partials.memory.len, "Invariant: planned within");
        // SAFETY: inside the memory by the assertion above.
        unsafe { self.buffers.partials.memory.first.add(at) }
    }

    /// Quantise attention's result and add its product to the residual stream.
    fn attention_output(&self, part: &Part<'_>, layer: &Layer, memory: &mut WorkerMemory) {
        let WorkerMemory { row, heads, attention: scratch, .. } = memory;
        let row = &mut row[..self.config.query_width()];
        let inputs = part.spread(heads, self.buffers.heads, |to, t| {
            let planned = &self.plan.tiles[self.plan.rows[t].tile];
            // SAFETY: attention ended at the barrier, so nobody writes its results; `spread` gives
            // each token of `to` to one worker.
            unsafe {
                let Some(at) = planned.partials else {
                    return to.quantise(t, 0, self.buffers.attended.read(t, 0..row.len()));
                };
                let tile = planned.tile;
                let width = self.group * self.kv.head_dim;
                for (head, merged) in row.chunks_exact_mut(width).enumerate() {
                    let first = self.partial(planned, at, head, 0).cast_const();
                    let token = t - planned.row;
                    attention::merge_token(self.isa, first, tile, token, merged, scratch);
                }
                to.quantise(t, 0, row);
            }
        });
        self.add_product(part, &layer.output, inputs, &layer.gate);
    }

    /// Add `weights . inputs` to the residual stream; `next` weights are wanted after that.
    fn add_product(
        &self,
        part: &Part<'_>,
        weights: &QuantMatrix,
        inputs: &Activations,
        next: &QuantMatrix,
    ) {
        let (tokens, out) = (part.tokens.clone(), self.buffers.x.out());
        // SAFETY: these rows of these tokens are this worker's; nobody writes the inputs.
        unsafe {
            matmul(weights, inputs, tokens, out, part.share(weights.groups()), Write::Add);
        }
        next.prefetch(part.share(next.groups()));
        part.rows_done();
    }

    /// The gated layer: its hidden row is quantised by whoever computed it.
    fn feed_forward(
        &self,
        part: &Part<'_>,
        index: usize,
        layer: &Layer,
        memory: &mut WorkerMemory,
    ) {
        let WorkerMemory { row, stream, .. } = memory;
        let inputs = self.normed(part, index, &layer.ffn_norm, (row, &*stream), |t| t);
        let Buffers { gate, up, hidden, .. } = &self.buffers;
        let blocks = part.share(self.config.ffn / BLOCK_COLUMNS);
        let tokens = || part.tokens.clone();
        let together = if part.tokens.len() <= PANEL_TOKENS { blocks.len() } else { HIDDEN_BLOCKS };
        for first in blocks.clone().step_by(together.max(1)) {
            let end = (first + together).min(blocks.end);
            let columns = first * BLOCK_COLUMNS..end * BLOCK_COLUMNS;
            let groups = || columns.start / GROUP_ROWS..columns.end / GROUP_ROWS;
            layer.up.prefetch(groups());
            // SAFETY: these columns of these tokens are this worker's; nobody writes the inputs,
            // and nobody but this worker reads the hidden rows before the barrier.
            unsafe {
                matmul(&layer.gate, inputs, tokens(), gate.out(), groups(), Write::Replace);
                matmul(&layer.up, inputs, tokens(), up.out(), groups(), Write::Replace);
                for t in tokens() {
                    let gated = gate.write(t, columns.clone());
                    ops::swiglu(self.isa, gated, up.read(t, columns.clone()));
                    hidden.quantise(t, columns.start, gated);
                }
            }
        }
        layer.down.prefetch(part.share(layer.down.groups()));
        part.rows_done();
        let next = self.weights.layers.get(index + 1).map(|layer| &layer.query);
        self.add_product(part, &layer.down, hidden, next.unwrap_or(self.weights.head()));
    }

    /// Logits of the rows that are asked for.
    fn head(&self, worker: &Worker<'_>, memory: &mut WorkerMemory) {
        let WorkerMemory { row, stream, .. } = memory;
        let rows = self.plan.logits.len();
        let part = Part { worker, tokens: 0..rows, index: worker.index, count: worker.count };
        let norm = &self.weights.output_norm;
        let last = self.config.layers;
        let inputs =
            self.normed(&part, last, norm, (row, &*stream), |index| self.plan.logits[index]);
        let head = self.weights.head();
        let groups = part.share(head.groups());
        let columns = (groups.start * GROUP_ROWS).min(head.rows())
            ..(groups.end * GROUP_ROWS).min(head.rows());
        let out = self.buffers.logits.out();
        // SAFETY: these columns are this worker's; nobody writes the inputs.
        unsafe {
            matmul(head, inputs, 0..rows, out, groups, Write::Replace);
            for index in 0..rows {
                if !ops::finite(self.isa, self.buffers.logits.read(index, columns.clone())) {
                    self.fail(last);
                }
            }
        }
    }
}

fn add_bias(row: &mut [f32], bias: Option<&[f32]>) {
    for (x, bias) in row.iter_mut().zip(bias.into_iter().flatten()) {
        *x += bias;
    }
}
