//! The slow version: a transformer in plain f32 on the weights as the file defines them.
//!
//! The oracle that every fast graph is measured against (see [`crate::llm::perplexity`]). No
//! rounding of activations, keys or values; no layout but the file's; no vector instructions but
//! what the compiler finds. A weight row is unpacked once for all tokens of a call, so a model of
//! 135 million weights reads tens of tokens a second, and uses no memory beyond its file.

use crate::llm::TokenId;
use crate::llm::config::{self, ModelConfig, Rope, RopeStyle};
use crate::llm::gguf::{Gguf, TensorView};
use crate::{Error, Result};

/// Partial sums of a dot product: a vector register's worth, summed in a fixed order.
const LANES: usize = 16;
/// Tokens that share one pass over an unpacked row.
const TOKENS: usize = 4;

/// A model and one sequence.
pub struct Reference<'a> {
    file: &'a Gguf,
    config: ModelConfig,
    threads: usize,
    position: usize,
    /// Per layer, (positions, kv width) each.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl<'a> Reference<'a> {
    /// A model with an empty sequence.
    ///
    /// # Errors
    /// [`Error::Model`] if the model is not supported or a weight is not finite.
    pub fn new(file: &'a Gguf, threads: usize) -> Result<Self> {
        let config = ModelConfig::from_gguf(file)?;
        for tensor in file.tensors() {
            tensor.check_finite()?;
        }
        let empty = vec![Vec::new(); config.layers];
        let keys = empty.clone();
        Ok(Self { file, config, threads: threads.max(1), position: 0, keys, values: empty })
    }

    /// Sizes of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Forget the sequence.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Forget all positions from `position` on.
    pub fn truncate(&mut self, position: usize) {
        self.position = self.position.min(position);
        for kept in self.keys.iter_mut().chain(&mut self.values) {
            kept.truncate(self.position * self.config.kv_width());
        }
    }

    /// Append `tokens` to the sequence; logits (tokens, vocab) of what follows each.
    ///
    /// # Errors
    /// [`Error::Input`] if there are no tokens, one is outside the vocabulary, or the context is
    /// full.
    pub fn logits(&mut self, tokens: &[TokenId]) -> Result<Vec<f32>> {
        let (dim, vocab) = (self.config.dim, self.config.vocab);
        if tokens.is_empty() {
            return Err(Error::input("tokens", "there are none"));
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            return Err(Error::input("tokens", format!("{token} is not below {vocab}")));
        }
        if self.position + tokens.len() > self.config.context {
            let context = self.config.context;
            return Err(Error::input("tokens", format!("more than the context, {context}")));
        }
        let embedding = self.file.tensor(config::EMBEDDING)?;
        let mut stream = vec![0.0; tokens.len() * dim]; // (tokens, dim)
        for (row, &token) in stream.chunks_exact_mut(dim).zip(tokens) {
            embedding.dequantise_row(token as usize, row);
        }
        for layer in 0..self.config.layers {
            let mixed = self.attention(layer, &stream)?;
            add(&mut stream, &mixed);
            let mixed = self.feed_forward(layer, &stream)?;
            add(&mut stream, &mixed);
        }
        self.position += tokens.len();
        let normed = self.normed(&stream, config::OUTPUT_NORM)?;
        self.matmul(if self.config.tied { config::EMBEDDING } else { config::HEAD }, &normed)
    }

    /// Tokens that follow `prompt` when the most likely one is always taken.
    ///
    /// # Errors
    /// As [`Reference::logits`].
    pub fn greedy(&mut self, prompt: &[TokenId], tokens: usize) -> Result<Vec<TokenId>> {
        let mut answer = Vec::with_capacity(tokens);
        let mut logits = self.logits(prompt)?;
        while answer.len() < tokens {
            let last = &logits[logits.len() - self.config.vocab..];
            let token = most_likely(last) as TokenId;
            answer.push(token);
            logits = self.logits(&[token])?;
        }
        Ok(answer)
    }

    /// What attention adds to the stream, (tokens, dim).
    fn attention(&mut self, layer: usize, stream: &[f32]) -> Result<Vec<f32>> {
        let (head_dim, kv_width) = (self.config.head_dim, self.config.kv_width());
        let normed = self.normed(stream, &format!("blk.{layer}.attn_norm.weight"))?;
        let mut queries = self.projection(layer, "attn_q", &normed)?;
        let mut keys = self.projection(layer, "attn_k", &normed)?;
        let values = self.projection(layer, "attn_v", &normed)?;
        rotate(&mut queries, self.config.query_width(), head_dim, &self.config.rope, self.position);
        rotate(&mut keys, kv_width, head_dim, &self.config.rope, self.position);
        self.keys[layer].extend(keys);
        self.values[layer].extend(values);
        let mut mixed = vec![0.0; queries.len()]; // (tokens, query width)
        let group = self.config.heads / self.config.kv_heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        for (index, (query, out)) in
            queries.chunks_exact(head_dim).zip(mixed.chunks_exact_mut(head_dim)).enumerate()
        {
            let (token, head) = (index / self.config.heads, index % self.config.heads);
            let seen = self.position + token + 1;
            let kept = head / group * head_dim..(head / group + 1) * head_dim;
            let keys = self.keys[layer].chunks_exact(kv_width).take(seen);
            let mut weights: Vec<f32> =
                keys.map(|key| scale * dot(query, &key[kept.clone()])).collect();
            softmax(&mut weights);
            let values = self.values[layer].chunks_exact(kv_width);
            for (weight, value) in weights.into_iter().zip(values) {
                let value = &value[kept.clone()];
                out.iter_mut().zip(value).for_each(|(out, value)| *out += weight * value);
            }
        }
        self.matmul(&format!("blk.{layer}.attn_output.weight"), &mixed)
    }

    /// What the feed-forward layer adds to the stream, (tokens, dim).
    fn feed_forward(&self, layer: usize, stream: &[f32]) -> Result<Vec<f32>> {
        let normed = self.normed(stream, &format!("blk.{layer}.ffn_norm.weight"))?;
        let mut gate = self.matmul(&format!("blk.{layer}.ffn_gate.weight"), &normed)?;
        let up = self.matmul(&format!("blk.{layer}.ffn_up.weight"), &normed)?;
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate / (1.0 + (-*gate).exp()) * up;
        }
        self.matmul(&format!("blk.{layer}.ffn_down.weight"), &gate)
    }

    /// A matrix and, where the model has one, its bias.
    fn projection(&self, layer: usize, part: &str, input: &[f32]) -> Result<Vec<f32>> {
        let mut out = self.matmul(&format!("blk.{layer}.{part}.weight"), input)?;
        if self.config.qkv_bias {
            let bias = self.file.tensor(&format!("blk.{layer}.{part}.bias"))?.dequantise();
            out.chunks_exact_mut(bias.len()).for_each(|row| add(row, &bias));
        }
        Ok(out)
    }

    /// RMS norm of every row of `stream`, times the weights called `name`.
    fn normed(&self, stream: &[f32], name: &str) -> Result<Vec<f32>> {
        let weights = self.file.tensor(name)?.dequantise();
        let mut normed = stream.to_vec();
        for row in normed.chunks_exact_mut(weights.len()) {
            let mean_square = dot(row, row) / row.len() as f32;
            let scale = 1.0 / (mean_square + self.config.epsilon).sqrt();
            row.iter_mut().zip(&weights).for_each(|(x, weight)| *x *= scale * weight);
        }
        Ok(normed)
    }

    /// `input` (tokens, columns) times the matrix called `name`: (tokens, rows).
    fn matmul(&self, name: &str, input: &[f32]) -> Result<Vec<f32>> {
        let matrix = self.file.tensor(name)?;
        let tokens = input.len() / matrix.columns;
        let mut by_row = vec![0.0; matrix.rows * tokens]; // (rows, tokens)
        let rows_each = matrix.rows.div_ceil(self.threads);
        std::thread::scope(|scope| {
            for (part, out) in by_row.chunks_mut(rows_each * tokens).enumerate() {
                scope.spawn(move || rows(&matrix, part * rows_each, input, tokens, out));
            }
        });
        let mut out = vec![0.0; by_row.len()];
        for (row, products) in by_row.chunks_exact(tokens).enumerate() {
            for (token, &product) in products.iter().enumerate() {
                out[token * matrix.rows + row] = product;
            }
        }
        Ok(out)
    }
}

/// Products of the rows from `first` on with every token, into `out` (rows, tokens).
fn rows(matrix: &TensorView<'_>, first: usize, input: &[f32], tokens: usize, out: &mut [f32]) {
    let mut weights = vec![0.0; matrix.columns];
    for (row, out) in out.chunks_exact_mut(tokens).enumerate() {
        matrix.dequantise_row(first + row, &mut weights);
        let inputs = input.chunks(TOKENS * matrix.columns);
        for (out, inputs) in out.chunks_mut(TOKENS).zip(inputs) {
            for (out, input) in out.iter_mut().zip(inputs.chunks_exact(matrix.columns)) {
                *out = dot(&weights, input);
            }
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// Rotate the heads of `rows` (tokens, width), the first of which is at `position`.
fn rotate(rows: &mut [f32], width: usize, head_dim: usize, rope: &Rope, position: usize) {
    for (token, row) in rows.chunks_exact_mut(width).enumerate() {
        for head in row.chunks_exact_mut(head_dim) {
            for (pair, frequency) in rope.frequencies.iter().enumerate() {
                let (sin, cos) = ((position + token) as f64 * frequency).sin_cos();
                let (sin, cos) = (sin as f32, cos as f32);
                let (i, j) = match rope.style {
                    RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
                    RopeStyle::Halves => (pair, pair + rope.dims / 2),
                };
                let (x, y) = (head[i], head[j]);
                head[i] = x * cos - y * sin;
                head[j] = x * sin + y * cos;
            }
        }
    }
}

fn softmax(scores: &mut [f32]) {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = (*score - most).exp();
    }
    let sum: f32 = scores.iter().sum();
    for score in scores {
        *score /= sum;
    }
}

/// Index of the greatest logit; the first of equal ones.
pub fn most_likely(logits: &[f32]) -> usize {
    let better = |best: usize, (index, &logit): (usize, &f32)| {
        if logit > logits[best] { index } else { best }
    };
    logits.iter().enumerate().fold(0, better)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::gguf::TensorKind;
    use crate::llm::gguf::writer::{GgufWriter, TinyModel};

    fn plain() -> TinyModel {
        TinyModel::of_kind(TensorKind::F32)
    }

    #[test]
    fn cutting_a_prompt_changes_no_bit_and_the_future_no_past() {
        for model in [TinyModel::default(), TinyModel::qwen2()] {
            let file = model.gguf().unwrap();
            let tokens: Vec<TokenId> = (0..9).map(|token| token * 31 % 290).collect();
            let whole = Reference::new(&file, 2).unwrap().logits(&tokens).unwrap();
            let mut pieces = Reference::new(&file, 1).unwrap();
            let mut cut = pieces.logits(&tokens[..4]).unwrap();
            cut.extend(pieces.logits(&tokens[4..5]).unwrap());
            cut.extend(pieces.logits(&tokens[5..]).unwrap());
            assert_eq!(whole, cut);
            pieces.truncate(3);
            let again = pieces.logits(&tokens[3..]).unwrap();
            assert_eq!(again, whole[3 * file.tensor(config::EMBEDDING).unwrap().rows..]);
            assert!(whole.iter().all(|logit| logit.is_finite()));
        }
    }

    /// `llama` files hold the rows of queries and keys in another order, so that pairs are
    /// neighbours: the same weights in that order must give the same answers.
    #[test]
    fn both_ways_to_rotate_agree_on_permuted_rows() {
        let qwen = TinyModel { architecture: "qwen2", ..plain() }.gguf().unwrap();
        let config = ModelConfig::from_gguf(&qwen).unwrap();
        let mut llama = GgufWriter::new();
        for (key, value) in [
            ("block_count", config.layers),
            ("context_length", config.context),
            ("embedding_length", config.dim),
            ("feed_forward_length", config.ffn),
            ("attention.head_count", config.heads),
            ("attention.head_count_kv", config.kv_heads),
        ] {
            llama.u32(&format!("llama.{key}"), value as u32);
        }
        llama.string("general.architecture", "llama");
        llama.f32("llama.attention.layer_norm_rms_epsilon", config.epsilon);
        for tensor in qwen.tensors() {
            let mut weights = tensor.dequantise();
            let name = tensor.name;
            if name.contains("attn_q.") || name.contains("attn_k.") {
                // A bias is a row of the matrix's shape turned: permute along its columns.
                let width = if tensor.rows == 1 { 1 } else { tensor.columns };
                for head in weights.chunks_exact_mut(config.head_dim * width) {
                    let old = head.to_vec();
                    for (row, new) in head.chunks_exact_mut(width).enumerate() {
                        let from = row / 2 + row % 2 * config.head_dim / 2;
                        new.copy_from_slice(&old[from * width..][..width]);
                    }
                }
            }
            let shape = [tensor.columns, tensor.rows];
            let dimensions = if tensor.rows == 1 { &shape[..1] } else { &shape[..] };
            llama.tensor(name, dimensions, TensorKind::F32, &weights);
        }
        let llama = Gguf::from_bytes(llama.finish()).unwrap();
        let tokens = [5, 200, 7, 90, 13, 61];
        let halves = Reference::new(&qwen, 1).unwrap().logits(&tokens).unwrap();
        let pairs = Reference::new(&llama, 1).unwrap().logits(&tokens).unwrap();
        let apart = |(a, b): (&f32, &f32)| (a - b).abs();
        let worst = halves.iter().zip(&pairs).map(apart).fold(0.0, f32::max);
        assert!(worst < 1e-4, "only the order of sums differs: {worst}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let file = TinyModel { context: 4, ..plain() }.gguf().unwrap();
        let mut model = Reference::new(&file, 1).unwrap();
        assert!(matches!(model.logits(&[]), Err(Error::Input { .. })));
        assert!(matches!(model.logits(&[9999]), Err(Error::Input { .. })));
        model.logits(&[1, 2, 3]).unwrap();
        assert!(matches!(model.logits(&[1, 2]), Err(Error::Input { .. })));
        model.logits(&[1]).unwrap();
        model.clear();
        model.logits(&[1, 2, 3, 4]).unwrap();
    }

    #[test]
    fn a_weight_that_is_not_finite_is_found() {
        let mut bytes = plain().bytes();
        let last = bytes.len() - size_of::<f32>(); // of the last norm
        bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        let file = Gguf::from_bytes(bytes).unwrap();
        let error = Reference::new(&file, 1).err().unwrap().to_string();
        assert!(error.contains(config::OUTPUT_NORM), "{error}");
    }
}
