//! Sizes and constants of a transformer, read from its GGUF file and checked against its tensors.
//!
//! Two architectures: `llama` (Llama 2 and 3, Mistral 7B, `SmolLM2`) and `qwen2` (Qwen 2 and 2.5).
//! Both are pre-norm decoders with RMS norms, rotary positions, grouped-query attention and a
//! gated feed-forward layer; `qwen2` has biases on queries, keys and values, and rotates other
//! pairs. Whatever a file asks for beyond that is refused: a model that runs wrongly is worse than
//! none.

use crate::llm::gguf::Gguf;
use crate::{Error, Result};

/// Most layers of a model.
pub const LAYERS_MAX: usize = 512;
/// Widest residual stream, feed-forward layer, or row of heads.
pub const WIDTH_MAX: usize = 1 << 18;
/// Most heads of a layer.
pub const HEADS_MAX: usize = 1024;
/// Longest head, numbers.
pub const HEAD_DIM_MAX: usize = 512;
/// Most tokens of a vocabulary.
pub const VOCAB_TOKENS_MAX: usize = 1 << 21;
/// Longest context, tokens.
pub const CONTEXT_TOKENS_MAX: usize = 1 << 24;
/// Widths are multiples of this, the block of the kernels.
pub const WIDTH_MULTIPLE: usize = 32;

/// A family of models that share a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama and its many relatives.
    Llama,
    /// Qwen 2 and 2.5.
    Qwen2,
}

impl Architecture {
    /// All that are supported.
    pub const ALL: [Self; 2] = [Self::Llama, Self::Qwen2];

    /// Its name in GGUF files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
        }
    }
}

/// Which numbers of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `2i` with `2i + 1` (`llama`; GGUF files have their queries and keys permuted for it).
    Interleaved,
    /// `i` with `i + dims / 2` (`qwen2`; also called neox).
    Halves,
}

/// Rotary positions: pair `i` of a head at position `p` turns by `p * frequencies[i]` radians.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Which numbers make a pair.
    pub style: RopeStyle,
    /// Leading numbers of a head that are rotated, even; the rest stay as they are.
    pub dims: usize,
    /// Radians a position, one for each pair (`dims / 2`), with any scaling applied.
    pub frequencies: Vec<f64>,
}

/// What a graph must know of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Numbers of one head.
    pub head_dim: usize,
    /// Rotary positions.
    pub rope: Rope,
    /// Added to the mean square in RMS norms.
    pub epsilon: f32,
    /// Tokens of the vocabulary, rows of the embedding.
    pub vocab: usize,
    /// Longest sequence it was trained for, tokens.
    pub context: usize,
    /// Whether the embedding is also the head (`output.weight` is absent).
    pub tied: bool,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
}

/// Name of the embedding, (vocab, dim).
pub const EMBEDDING: &str = "token_embd.weight";
/// Name of the head, (vocab, dim); absent where the embedding is used.
pub const HEAD: &str = "output.weight";
/// Name of the last norm, (dim).
pub const OUTPUT_NORM: &str = "output_norm.weight";
/// Name of Llama 3's divisors of the rotary frequencies, (dims / 2).
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

impl ModelConfig {
    /// Read and check: every tensor of the architecture is there with its shape, and no other.
    ///
    /// # Errors
    /// [`Error::Model`] naming the key or tensor that is missing, out of range or unsupported.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let keys = Keys::new(file)?;
        keys.refuse_extras()?;
        let layers = keys.size("block_count", LAYERS_MAX)?;
        let dim = keys.size("embedding_length", WIDTH_MAX)?;
        let ffn = keys.size("feed_forward_length", WIDTH_MAX)?;
        let heads = keys.size("attention.head_count", HEADS_MAX)?;
        let kv_heads = keys.optional_size("attention.head_count_kv", HEADS_MAX)?.unwrap_or(heads);
        let head_dim = keys.head_dim(dim, heads)?;
        let vocab = file.tensor(EMBEDDING)?.rows;
        let config = Self {
            architecture: keys.architecture,
            layers,
            dim,
            ffn,
            heads,
            kv_heads,
            head_dim,
            rope: keys.rope(head_dim)?,
            epsilon: file.f32(&keys.name("attention.layer_norm_rms_epsilon"))?,
            vocab,
            context: keys.size("context_length", CONTEXT_TOKENS_MAX)?,
            tied: file.optional_tensor(HEAD).is_none(),
            qkv_bias: file.optional_tensor("blk.0.attn_q.bias").is_some(),
        };
        config.check_numbers(&keys)?;
        config.check_tensors(file)?;
        Ok(config)
    }

    /// Numbers of all query heads of a token.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Numbers of all key (or value) heads of a token.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn check_numbers(&self, keys: &Keys<'_>) -> Result<()> {
        let widths = [
            ("embedding_length", self.dim),
            ("feed_forward_length", self.ffn),
            ("attention.head_count", self.query_width()),
            ("attention.head_count_kv", self.kv_width()),
        ];
        for (key, width) in widths {
            if !width.is_multiple_of(WIDTH_MULTIPLE) || width > WIDTH_MAX {
                return Err(keys.error(
                    key,
                    format!(
                        "gives a width of {width}; multiples of {WIDTH_MULTIPLE} up to \
                         {WIDTH_MAX} are supported"
                    ),
                ));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(keys.error(
                "attention.head_count_kv",
                format!("{} does not divide the {} heads", self.kv_heads, self.heads),
            ));
        }
        if !(self.epsilon > 0.0 && self.epsilon < 1.0) {
            return Err(keys.error(
                "attention.layer_norm_rms_epsilon",
                format!("{} is not between 0 and 1", self.epsilon),
            ));
        }
        if self.vocab > VOCAB_TOKENS_MAX {
            return Err(Error::model(
                EMBEDDING,
                format!("{} tokens, at most {VOCAB_TOKENS_MAX} are supported", self.vocab),
            ));
        }
        match keys.optional_size("vocab_size", VOCAB_TOKENS_MAX)? {
            Some(vocab) if vocab != self.vocab => Err(keys.error(
                "vocab_size",
                format!("is {vocab}, but the embedding has {} rows", self.vocab),
            )),
            _ => Ok(()),
        }
    }

    /// Names and shapes (rows, columns) of all matrices and vectors of a layer.
    pub fn layer_tensors(&self, layer: usize) -> Vec<(String, usize, usize)> {
        let (query, kv) = (self.query_width(), self.kv_width());
        let mut tensors = vec![
            ("attn_norm.weight", 1, self.dim),
            ("attn_q.weight", query, self.dim),
            ("attn_k.weight", kv, self.dim),
            ("attn_v.weight", kv, self.dim),
            ("attn_output.weight", self.dim, query),
            ("ffn_norm.weight", 1, self.dim),
            ("ffn_gate.weight", self.ffn, self.dim),
            ("ffn_up.weight", self.ffn, self.dim),
            ("ffn_down.weight", self.dim, self.ffn),
        ];
        if self.qkv_bias {
            tensors.extend([
                ("attn_q.bias", 1, query),
                ("attn_k.bias", 1, kv),
                ("attn_v.bias", 1, kv),
            ]);
        }
        let named = |(part, rows, columns)| (format!("blk.{layer}.{part}"), rows, columns);
        tensors.into_iter().map(named).collect()
    }

    fn check_tensors(&self, file: &Gguf) -> Result<()> {
        let mut expected = vec![
            (EMBEDDING.to_owned(), self.vocab, self.dim),
            (OUTPUT_NORM.to_owned(), 1, self.dim),
        ];
        expected.extend((0..self.layers).flat_map(|layer| self.layer_tensors(layer)));
        if !self.tied {
            expected.push((HEAD.to_owned(), self.vocab, self.dim));
        }
        if file.optional_tensor(ROPE_FACTORS).is_some() {
            expected.push((ROPE_FACTORS.to_owned(), 1, self.rope.dims / 2));
        }
        for (name, rows, columns) in &expected {
            let tensor = file.tensor(name)?;
            if (tensor.rows, tensor.columns) != (*rows, *columns) {
                return Err(Error::model(
                    name,
                    format!(
                        "has {} rows of {}, expected {rows} of {columns}",
                        tensor.rows, tensor.columns
                    ),
                ));
            }
        }
        if file.tensors().len() == expected.len() {
            return Ok(());
        }
        let known: std::collections::HashSet<&str> =
            expected.iter().map(|(name, ..)| name.as_str()).collect();
        match file.tensors().find(|tensor| !known.contains(tensor.name)) {
            None => Ok(()),
            Some(extra) => Err(Error::model(
                extra.name,
                format!(
                    "`{}` models have no such tensor here, and ignoring it would give wrong \
                     answers; use a plain model",
                    self.architecture.name()
                ),
            )),
        }
    }
}

/// Metadata under the architecture's prefix.
struct Keys<'a> {
    file: &'a Gguf,
    architecture: Architecture,
}

impl<'a> Keys<'a> {
    fn new(file: &'a Gguf) -> Result<Self> {
        let name = file.architecture()?;
        let found = Architecture::ALL.into_iter().find(|known| known.name() == name);
        let architecture = found.ok_or_else(|| {
            let supported = Architecture::ALL.map(Architecture::name).join(", ");
            Error::model(
                "general.architecture",
                format!("`{name}` is not supported; use a model of {supported}"),
            )
        })?;
        Ok(Self { file, architecture })
    }

    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name())
    }

    fn error(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::model(self.name(key), reason)
    }

    fn optional_size(&self, key: &str, max: usize) -> Result<Option<usize>> {
        match self.file.optional_u64(&self.name(key))? {
            None => Ok(None),
            Some(number) if (1..=max as u64).contains(&number) => Ok(Some(number as usize)),
            Some(number) => Err(self.error(key, format!("{number} is not from 1 to {max}"))),
        }
    }

    fn size(&self, key: &str, max: usize) -> Result<usize> {
        self.optional_size(key, max)?
            .ok_or_else(|| self.error(key, "the key is missing; the file is incomplete"))
    }

    /// What the graph does not do.
    fn refuse_extras(&self) -> Result<()> {
        for (key, what) in [
            ("expert_count", "a mixture of experts"),
            ("attention.sliding_window", "sliding-window attention"),
        ] {
            if self.file.optional_u64(&self.name(key))?.is_some_and(|number| number > 0) {
                return Err(self.error(key, format!("{what} is not supported; use another model")));
            }
        }
        Ok(())
    }

    fn head_dim(&self, dim: usize, heads: usize) -> Result<usize> {
        let head_dim = match self.optional_size("attention.key_length", HEAD_DIM_MAX)? {
            Some(head_dim) => head_dim,
            None if dim.is_multiple_of(heads) && dim / heads <= HEAD_DIM_MAX => dim / heads,
            None => {
                return Err(self.error(
                    "attention.head_count",
                    format!("a width of {dim} does not divide into {heads} heads"),
                ));
            }
        };
        let values = self.optional_size("attention.value_length", HEAD_DIM_MAX)?;
        if values.is_some_and(|values| values != head_dim) {
            return Err(self.error(
                "attention.value_length",
                format!("differs from the length of keys, {head_dim}, which is not supported"),
            ));
        }
        Ok(head_dim)
    }

    fn rope(&self, head_dim: usize) -> Result<Rope> {
        let dims = self.optional_size("rope.dimension_count", head_dim)?.unwrap_or(head_dim);
        if !dims.is_multiple_of(2) {
            return Err(self.error("rope.dimension_count", format!("{dims} is odd")));
        }
        let base = self.file.optional_f32(&self.name("rope.freq_base"))?.unwrap_or(10_000.0);
        if base < 1.0 {
            return Err(self.error("rope.freq_base", format!("{base} is less than 1")));
        }
        let divisor = self.rope_divisor()?;
        let factors = self.rope_factors(dims / 2)?;
        let frequencies = factors
            .iter()
            .enumerate()
            .map(|(i, factor)| {
                f64::from(base).powf(-2.0 * i as f64 / dims as f64) / f64::from(factor * divisor)
            })
            .collect();
        let style = match self.architecture {
            Architecture::Llama => RopeStyle::Interleaved,
            Architecture::Qwen2 => RopeStyle::Halves,
        };
        Ok(Rope { style, dims, frequencies })
    }

    /// Linear scaling divides all frequencies by one number.
    fn rope_divisor(&self) -> Result<f32> {
        let kind = self.file.optional_string(&self.name("rope.scaling.type"))?;
        let factor = self.file.optional_f32(&self.name("rope.scaling.factor"))?;
        let old_factor = self.file.optional_f32(&self.name("rope.scale_linear"))?;
        let divisor = match kind {
            Some("none") => 1.0,
            None | Some("linear") => factor.or(old_factor).unwrap_or(1.0),
            Some(other) => {
                return Err(self.error(
                    "rope.scaling.type",
                    format!("`{other}` is not supported; use a model with none or linear"),
                ));
            }
        };
        if divisor < 1.0 {
            return Err(self.error("rope.scaling.factor", format!("{divisor} is less than 1")));
        }
        Ok(divisor)
    }

    /// Llama 3's divisors, one for each pair; 1 without them.
    fn rope_factors(&self, pairs: usize) -> Result<Vec<f32>> {
        let Some(tensor) = self.file.optional_tensor(ROPE_FACTORS) else {
            return Ok(vec![1.0; pairs]);
        };
        let factors = tensor.dequantise();
        let valid = |factor: &f32| factor.is_finite() && *factor > 0.0;
        if factors.len() != pairs || !factors.iter().all(valid) {
            return Err(Error::model(
                ROPE_FACTORS,
                format!("expected {pairs} positive numbers for the pairs of a head"),
            ));
        }
        Ok(factors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::gguf::TensorKind;
    use crate::llm::gguf::writer::{GgufWriter, TinyModel};

    /// A tiny model with `change` applied behind its own metadata and tensors.
    fn with(change: impl FnOnce(&mut GgufWriter) -> &mut GgufWriter) -> Result<ModelConfig> {
        let mut file = TinyModel::default().writer();
        change(&mut file);
        ModelConfig::from_gguf(&Gguf::from_bytes(file.finish())?)
    }

    #[test]
    fn a_tiny_llama_is_understood() {
        let config = ModelConfig::from_gguf(&TinyModel::default().gguf().unwrap()).unwrap();
        assert_eq!(config.architecture, Architecture::Llama);
        assert_eq!((config.layers, config.dim, config.ffn), (2, 128, 192));
        assert_eq!((config.heads, config.kv_heads, config.head_dim), (4, 2, 32));
        assert_eq!((config.query_width(), config.kv_width()), (128, 64));
        assert!(config.tied && !config.qkv_bias);
        assert_eq!(config.rope.style, RopeStyle::Interleaved);
        assert_eq!(config.rope.frequencies.len(), 16);
        assert_eq!(config.rope.frequencies[0], 1.0);
        assert!((config.rope.frequencies[8] - 0.01).abs() < 1e-12, "10000 to the -1/2");
    }

    #[test]
    fn a_tiny_qwen2_has_biases_and_rotates_halves() {
        let model = TinyModel { tied: false, ..TinyModel::qwen2() };
        let config = ModelConfig::from_gguf(&model.gguf().unwrap()).unwrap();
        assert_eq!(config.architecture, Architecture::Qwen2);
        assert!(config.qkv_bias && !config.tied);
        assert_eq!(config.rope.style, RopeStyle::Halves);
    }

    #[test]
    fn scaled_rotations_divide_the_frequencies() {
        let linear = with(|file| {
            file.string("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0)
        });
        assert_eq!(linear.unwrap().rope.frequencies[0], 0.25);
        let factors: Vec<f32> = (1..=16).map(|factor| factor as f32).collect();
        let llama3 = with(|file| file.tensor(ROPE_FACTORS, &[16], TensorKind::F32, &factors));
        let rope = llama3.unwrap().rope;
        assert!((rope.frequencies[8] - 0.01 / 9.0).abs() < 1e-12);
    }

    #[test]
    fn what_the_graph_does_not_do_is_refused_by_name() {
        type Change = fn(&mut GgufWriter) -> &mut GgufWriter;
        let cases: [(Change, &str); 7] = [
            (|file| file.string("llama.rope.scaling.type", "yarn"), "`yarn`"),
            (|file| file.u32("llama.expert_count", 8), "mixture"),
            (|file| file.u32("llama.attention.sliding_window", 4096), "sliding"),
            (|file| file.u32("llama.attention.value_length", 64), "value_length"),
            (|file| file.u32("llama.vocab_size", 7), "7, but"),
            (|file| file.u32("llama.rope.dimension_count", 34), "34"),
            (
                |file| file.tensor("blk.0.attn_q_norm.weight", &[32], TensorKind::F32, &[1.0; 32]),
                "attn_q_norm",
            ),
        ];
        for (change, words) in cases {
            let error = with(change).unwrap_err().to_string();
            assert!(error.contains(words), "wanted {words}: {error}");
        }
        let file = TinyModel { architecture: "gemma3", ..TinyModel::default() }.gguf().unwrap();
        let error = ModelConfig::from_gguf(&file).unwrap_err().to_string();
        assert!(
            error.contains("`gemma3` is not supported; use a model of llama, qwen2"),
            "{error}"
        );
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let refused = |model: TinyModel| {
            ModelConfig::from_gguf(&model.gguf().unwrap()).unwrap_err().to_string()
        };
        let uneven = TinyModel { heads: 4, kv_heads: 3, ..TinyModel::default() };
        assert!(refused(uneven).contains("does not divide the 4 heads"));
        let mut file = GgufWriter::new();
        file.string("general.architecture", "llama");
        let file = Gguf::from_bytes(file.finish()).unwrap();
        assert!(ModelConfig::from_gguf(&file).unwrap_err().to_string().contains("block_count"));
        let odd = TinyModel { layers: 3, ..TinyModel::default() };
        let mut bytes = odd.bytes();
        let name = b"blk.2.attn_v.weight";
        let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
        bytes[at + 4] = b'9';
        let file = Gguf::from_bytes(bytes).unwrap();
        let error = ModelConfig::from_gguf(&file).unwrap_err().to_string();
        assert!(error.contains("`blk.2.attn_v.weight`: the tensor is missing"), "{error}");
    }
}
