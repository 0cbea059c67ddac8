//! One piece of a batch through all layers, on one worker, in its own memory.
#![expect(unsafe_code, reason = "products over memory that could be shared, and is not")]

use super::math::{self, Attention};
use super::weights::{BertConfig, Layer, Linear, Weights};
use crate::llm::kernels::{Activations, OutRows, Product, Share, Write, matmul_many};

/// What a worker needs for a piece, allocated once.
pub(super) struct Workspace {
    /// Tokens there is room for.
    room: usize,
    /// (tokens, dim) each.
    stream: Vec<f32>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    /// (tokens, ffn).
    hidden: Vec<f32>,
    /// (tokens, dim) and (tokens, ffn) in 8 bits.
    narrow: Activations,
    wide: Activations,
    attention: Attention,
    /// Vectors that are done, with the index of their text.
    pub(super) results: Vec<(usize, Vec<f32>)>,
}

impl Workspace {
    pub(super) fn new(config: &BertConfig, room: usize) -> Self {
        let narrow = vec![0.0; room * config.dim];
        Self {
            room,
            stream: narrow.clone(),
            queries: narrow.clone(),
            keys: narrow.clone(),
            values: narrow,
            hidden: vec![0.0; room * config.ffn],
            narrow: Activations::new(room, config.dim),
            wide: Activations::new(room, config.ffn),
            attention: Attention::new(room, config.head_dim),
            results: Vec::new(),
        }
    }

    /// Vectors of `texts`, the first of which is number `first`, into the results.
    ///
    /// # Panics
    /// If there are more tokens than room, or a token is outside the vocabulary.
    pub(super) fn run<'t>(
        &mut self,
        weights: &Weights,
        texts: impl Iterator<Item = &'t [u32]> + Clone,
        first: usize,
    ) {
        let (dim, isa) = (weights.config.dim, weights.isa);
        let tokens: usize = texts.clone().map(<[u32]>::len).sum();
        assert!(tokens <= self.room, "Invariant: a piece fits its worker");
        let mut rows = self.stream.chunks_exact_mut(dim);
        for text in texts.clone() {
            // The rows come last: an iterator that is asked first loses a row at the end of a text.
            for ((&token, position), row) in
                text.iter().zip(weights.positions.chunks_exact(dim)).zip(&mut rows)
            {
                weights.word(token as usize, row);
                row.iter_mut().zip(position).for_each(|(x, position)| *x += position);
            }
        }
        let stream = &mut self.stream[..tokens * dim];
        let none = vec![0.0; dim];
        math::layer_norm(isa, stream, &none, &weights.norm, weights.config.epsilon);
        for layer in &weights.layers {
            self.layer(weights, layer, texts.clone(), tokens);
        }
        let mut rows = self.stream.chunks_exact(dim);
        for (index, text) in texts.enumerate() {
            let vector = mean_of_length_one(rows.by_ref().take(text.len()), dim);
            self.results.push((first + index, vector));
        }
    }

    fn layer<'t>(
        &mut self,
        weights: &Weights,
        layer: &Layer,
        texts: impl Iterator<Item = &'t [u32]>,
        tokens: usize,
    ) {
        let (config, isa) = (&weights.config, weights.isa);
        let narrow = tokens * config.dim;
        quantise(&self.narrow, &self.stream[..narrow]);
        let Self { queries, keys, values, .. } = self;
        let parts = [(&layer.query, queries), (&layer.key, keys), (&layer.value, values)];
        multiply(&self.narrow, tokens, Write::Replace, parts);
        let mut at = 0;
        for text in texts {
            let rows = at..at + text.len() * config.dim;
            at = rows.end;
            // The queries are read before the result takes their place, head by head.
            self.attention.run(
                isa,
                &mut self.queries[rows.clone()],
                &self.keys[rows.clone()],
                &self.values[rows],
                [&layer.query.bias, &layer.key.bias, &layer.value.bias],
            );
        }
        quantise(&self.narrow, &self.queries[..narrow]);
        multiply(&self.narrow, tokens, Write::Add, [(&layer.output, &mut self.stream)]);
        let stream = &mut self.stream[..narrow];
        math::layer_norm(isa, stream, &layer.output.bias, &layer.output_norm, config.epsilon);
        quantise(&self.narrow, stream);
        multiply(&self.narrow, tokens, Write::Replace, [(&layer.up, &mut self.hidden)]);
        let hidden = &mut self.hidden[..tokens * config.ffn];
        math::gelu(isa, hidden, &layer.up.bias);
        quantise(&self.wide, hidden);
        multiply(&self.wide, tokens, Write::Add, [(&layer.down, &mut self.stream)]);
        let stream = &mut self.stream[..narrow];
        math::layer_norm(isa, stream, &layer.down.bias, &layer.down_norm, config.epsilon);
    }
}

/// Rows of `values` (tokens, columns) into 8 bits.
fn quantise(into: &Activations, values: &[f32]) {
    for (token, row) in values.chunks_exact(into.columns()).enumerate() {
        // SAFETY: a workspace belongs to one worker; nobody else reads or writes it.
        unsafe { into.quantise(token, 0, row) };
    }
}

/// Products of the first `tokens` activations with some matrices, biases left out.
fn multiply<const N: usize>(
    activations: &Activations,
    tokens: usize,
    write: Write,
    parts: [(&Linear, &mut Vec<f32>); N],
) {
    let products = parts.map(|(linear, out)| Product {
        weights: &linear.matrix,
        out: OutRows::new(out, linear.matrix.rows()),
        write,
    });
    // SAFETY: a workspace belongs to one worker; nobody else reads or writes it.
    unsafe { matmul_many(&products, activations, 0..tokens, Share::ALL) };
}

/// Mean of `rows`, divided by its length (a mean of zeros stays).
fn mean_of_length_one<'r>(rows: impl Iterator<Item = &'r [f32]>, dim: usize) -> Vec<f32> {
    let mut mean = vec![0.0_f32; dim];
    for row in rows {
        mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x);
    }
    // The number of rows cancels out.
    let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
    for x in &mut mean {
        *x /= length;
    }
    mean
}
