//! Small GGUF files for tests and conversions.
//!
//! [`GgufWriter`] writes metadata and tensors of any [`TensorKind`]; [`TinyModel`] is a whole
//! language model with random weights, a byte-level vocabulary and a chat template, in a few
//! kilobytes. Its answers are noise, but it goes through every code path of a real one.

use super::parse::{ALIGNMENT_BYTES_DEFAULT, ARRAY_CODE, MAGIC};
use super::{Gguf, TensorKind};
use crate::Result;

/// Version that is written.
const VERSION: u32 = 3;
/// Codes of the value types that are written.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;

/// Collects metadata and tensors in order; [`GgufWriter::finish`] gives the file.
#[derive(Clone, Debug, Default)]
pub struct GgufWriter {
    keys: u64,
    metadata: Vec<u8>,
    tensors: u64,
    infos: Vec<u8>,
    data: Vec<u8>,
}

impl GgufWriter {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    fn key(&mut self, key: &str, code: u32) -> &mut Vec<u8> {
        self.keys += 1;
        text(&mut self.metadata, key);
        self.metadata.extend(code.to_le_bytes());
        &mut self.metadata
    }

    fn array(&mut self, key: &str, code: u32, len: usize) -> &mut Vec<u8> {
        let metadata = self.key(key, ARRAY_CODE);
        metadata.extend(code.to_le_bytes());
        metadata.extend((len as u64).to_le_bytes());
        metadata
    }

    /// Add a text.
    pub fn string(&mut self, key: &str, value: &str) -> &mut Self {
        text(self.key(key, STRING), value);
        self
    }

    /// Add an integer.
    pub fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.key(key, U32).extend(value.to_le_bytes());
        self
    }

    /// Add a real number.
    pub fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.key(key, F32).extend(value.to_le_bytes());
        self
    }

    /// Add a yes or no.
    pub fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.key(key, BOOL).push(value.into());
        self
    }

    /// Add a list of texts.
    pub fn strings<S: AsRef<str>>(&mut self, key: &str, values: &[S]) -> &mut Self {
        let metadata = self.array(key, STRING, values.len());
        for value in values {
            text(metadata, value.as_ref());
        }
        self
    }

    /// Add a list of integers.
    pub fn i32s(&mut self, key: &str, values: &[i32]) -> &mut Self {
        let metadata = self.array(key, I32, values.len());
        metadata.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    /// Add a list of real numbers.
    pub fn f32s(&mut self, key: &str, values: &[f32]) -> &mut Self {
        let metadata = self.array(key, F32, values.len());
        metadata.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    /// Add a tensor: `dimensions` innermost first, `weights` in that order.
    ///
    /// # Panics
    /// If there are more or fewer weights than the dimensions say, or rows are not whole blocks.
    pub fn tensor(
        &mut self,
        name: &str,
        dimensions: &[usize],
        kind: TensorKind,
        weights: &[f32],
    ) -> &mut Self {
        assert_eq!(
            weights.len(),
            dimensions.iter().product::<usize>(),
            "as many as the shape says"
        );
        self.tensors += 1;
        text(&mut self.infos, name);
        self.infos.extend((dimensions.len() as u32).to_le_bytes());
        self.infos.extend(dimensions.iter().flat_map(|&length| (length as u64).to_le_bytes()));
        self.infos.extend(kind.code().to_le_bytes());
        pad(&mut self.data);
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        for row in weights.chunks(dimensions[0]) {
            kind.quantise_row(row, &mut self.data);
        }
        self
    }

    /// The file.
    pub fn finish(&self) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.extend(VERSION.to_le_bytes());
        file.extend(self.tensors.to_le_bytes());
        file.extend(self.keys.to_le_bytes());
        file.extend(&self.metadata);
        file.extend(&self.infos);
        pad(&mut file);
        file.extend(&self.data);
        pad(&mut file);
        file
    }
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT_BYTES_DEFAULT), 0);
}

/// Chat template of [`TinyModel`]: `ChatML`, as of the models it stands for.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + \
    message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Control tokens of [`TinyModel`], its first ones; the third ends an answer.
pub const CONTROL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Merges of [`TinyModel`] in order of rank, in byte-level letters (`Ġ` is a space).
const MERGES: [&str; 34] = [
    "Ġ t", "h e", "i n", "r e", "o n", "Ġt he", "e r", "Ġ a", "a t", "e n", "Ġ s", "o r", "n d",
    "Ġ w", "i s", "Ġ o", "o u", "l l", "e s", "Ġ c", "in g", "Ġ f", "e d", "o w", "Ġa nd", "Ġo f",
    "Ġ in", "h i", "l o", "ll o", "he llo", "Ġw or", "l d", "Ġwor ld",
];

/// A language model with random weights. [`Default`] is the smallest useful `llama`.
#[derive(Clone, Debug, PartialEq)]
pub struct TinyModel {
    /// `llama` or `qwen2`; `qwen2` gets biases on queries, keys and values.
    pub architecture: &'static str,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream, a multiple of the kind's block.
    pub dim: usize,
    /// Width of the feed-forward layer, a multiple of the kind's block.
    pub ffn: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, a divisor of `heads`.
    pub kv_heads: usize,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Kind of the matrices; norms and biases are f32 as in real files.
    pub kind: TensorKind,
    /// Kind of the embedding and of the head.
    pub embedding_kind: TensorKind,
    /// Whether the embedding is also the head.
    pub tied: bool,
    /// Different seeds give different weights.
    pub seed: u64,
}

impl Default for TinyModel {
    fn default() -> Self {
        Self {
            architecture: "llama",
            layers: 2,
            dim: 128,
            ffn: 192,
            heads: 4,
            kv_heads: 2,
            context: 512,
            kind: TensorKind::Q4_1,
            embedding_kind: TensorKind::Q8_0,
            tied: true,
            seed: 1,
        }
    }
}

impl TinyModel {
    /// The smallest useful `qwen2`.
    pub fn qwen2() -> Self {
        Self { architecture: "qwen2", ..Self::default() }
    }

    /// The smallest model whose matrices, embedding too, are all of `kind`.
    pub fn of_kind(kind: TensorKind) -> Self {
        let least = kind.block_len();
        let base = Self::default();
        Self {
            dim: base.dim.max(least),
            ffn: base.ffn.next_multiple_of(least),
            kind,
            embedding_kind: kind,
            ..base
        }
    }

    /// The file, open.
    ///
    /// # Errors
    /// [`crate::Error::Model`] if the fields make no valid file.
    pub fn gguf(&self) -> Result<Gguf> {
        Gguf::from_bytes(self.bytes())
    }

    /// The file.
    ///
    /// # Panics
    /// If `dim` or `ffn` are not whole blocks.
    pub fn bytes(&self) -> Vec<u8> {
        self.writer().finish()
    }

    /// The file, to be added to.
    ///
    /// # Panics
    /// If `dim` or `ffn` are not whole blocks.
    pub fn writer(&self) -> GgufWriter {
        let mut file = GgufWriter::new();
        self.metadata(&mut file);
        self.tokenizer(&mut file);
        self.weights(&mut file);
        file
    }

    fn metadata(&self, file: &mut GgufWriter) {
        let name = self.architecture;
        file.string("general.architecture", name)
            .string("general.name", "tiny random weights")
            .u32(&format!("{name}.block_count"), self.layers as u32)
            .u32(&format!("{name}.context_length"), self.context as u32)
            .u32(&format!("{name}.embedding_length"), self.dim as u32)
            .u32(&format!("{name}.feed_forward_length"), self.ffn as u32)
            .u32(&format!("{name}.attention.head_count"), self.heads as u32)
            .u32(&format!("{name}.attention.head_count_kv"), self.kv_heads as u32)
            .f32(&format!("{name}.attention.layer_norm_rms_epsilon"), 1e-5)
            .f32(&format!("{name}.rope.freq_base"), 10_000.0);
    }

    fn tokenizer(&self, file: &mut GgufWriter) {
        let pre = if self.architecture == "qwen2" { "qwen2" } else { "smollm" };
        let tokens = vocabulary();
        let kinds: Vec<i32> = (0..tokens.len())
            .map(|token| if token < CONTROL_TOKENS.len() { 3 } else { 1 })
            .collect();
        file.string("tokenizer.ggml.model", "gpt2")
            .string("tokenizer.ggml.pre", pre)
            .strings("tokenizer.ggml.tokens", &tokens)
            .i32s("tokenizer.ggml.token_type", &kinds)
            .strings("tokenizer.ggml.merges", &MERGES)
            .u32("tokenizer.ggml.bos_token_id", 1)
            .u32("tokenizer.ggml.eos_token_id", 2)
            .u32("tokenizer.ggml.unknown_token_id", 0)
            .bool("tokenizer.ggml.add_bos_token", false)
            .string("tokenizer.chat_template", CHAT_TEMPLATE);
    }

    fn weights(&self, file: &mut GgufWriter) {
        let mut random = SplitMix(self.seed);
        let vocab = vocabulary().len();
        let kv = self.dim / self.heads * self.kv_heads;
        let mut matrix = |file: &mut GgufWriter, name: &str, rows: usize, columns, kind| {
            let spread = (3.0 / columns as f32).sqrt() * 1.5;
            let weights: Vec<f32> = (0..rows * columns).map(|_| random.next() * spread).collect();
            file.tensor(name, &[columns, rows], kind, &weights);
        };
        let norm = |file: &mut GgufWriter, name: &str, seed: u64| {
            let mut random = SplitMix(self.seed ^ seed << 32);
            let weights: Vec<f32> = (0..self.dim).map(|_| 1.0 + 0.2 * random.next()).collect();
            file.tensor(name, &[self.dim], TensorKind::F32, &weights);
        };
        matrix(file, "token_embd.weight", vocab, self.dim, self.embedding_kind);
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            norm(file, &name("attn_norm.weight"), 2 * layer as u64 + 1);
            matrix(file, &name("attn_q.weight"), self.dim, self.dim, self.kind);
            matrix(file, &name("attn_k.weight"), kv, self.dim, self.kind);
            matrix(file, &name("attn_v.weight"), kv, self.dim, self.kind);
            if self.architecture == "qwen2" {
                for (part, columns) in [("q", self.dim), ("k", kv), ("v", kv)] {
                    let bias = name(&format!("attn_{part}.bias"));
                    let mut random = SplitMix(self.seed ^ (layer as u64) << 16 ^ columns as u64);
                    let weights: Vec<f32> = (0..columns).map(|_| 0.5 * random.next()).collect();
                    file.tensor(&bias, &[columns], TensorKind::F32, &weights);
                }
            }
            matrix(file, &name("attn_output.weight"), self.dim, self.dim, self.kind);
            norm(file, &name("ffn_norm.weight"), 2 * layer as u64 + 2);
            matrix(file, &name("ffn_gate.weight"), self.ffn, self.dim, self.kind);
            matrix(file, &name("ffn_up.weight"), self.ffn, self.dim, self.kind);
            matrix(file, &name("ffn_down.weight"), self.dim, self.ffn, self.kind);
        }
        norm(file, "output_norm.weight", 0);
        if !self.tied {
            matrix(file, "output.weight", vocab, self.dim, self.embedding_kind);
        }
    }
}

/// Control tokens, the 256 byte letters, and what the merges make.
fn vocabulary() -> Vec<String> {
    let control = CONTROL_TOKENS.iter().map(|&token| token.to_owned());
    let letters = (0..=255).map(|byte| byte_letter(byte).to_string());
    control.chain(letters).chain(MERGES.iter().map(|merge| merge.replace(' ', ""))).collect()
}

/// GPT-2's visible letter for a byte: itself if printable, else one from U+0100 on.
fn byte_letter(byte: u8) -> char {
    let visible = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if visible(byte) {
        return char::from(byte);
    }
    let hidden_before = (0..byte).filter(|&byte| !visible(byte)).count() as u32;
    char::from_u32(256 + hidden_before).unwrap_or_default()
}

/// Steele, Lea and Flood's `SplitMix64`, as numbers in -1..1.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ bits >> 31) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }
}
