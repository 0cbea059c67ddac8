//! The folder of a model: configuration and tensors, checked.
#![expect(unsafe_code, reason = "mapping a file")]

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::llm::gguf::{TensorKind, TensorView};
use crate::llm::kernels::{Arena, QuantMatrix, Simd};
use crate::signal::Isa;
use crate::{Error, Result};

/// Most layers.
const LAYERS_MAX: usize = 64;
/// Widest layer.
const WIDTH_MAX: usize = 1 << 14;
/// Most positions or tokens of a vocabulary.
const TABLE_ROWS_MAX: usize = 1 << 20;

/// Sizes of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct BertConfig {
    /// Transformer layers.
    pub layers: usize,
    /// Width of the stream, and of a vector.
    pub dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Heads of attention.
    pub heads: usize,
    /// Numbers of one head: 32 or 64.
    pub head_dim: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Longest text the model has positions for, tokens.
    pub positions: usize,
    /// Added to the variance in layer norms.
    pub epsilon: f32,
}

/// A matrix with its bias.
pub(super) struct Linear {
    pub(super) matrix: QuantMatrix,
    pub(super) bias: Vec<f32>,
}

/// A layer norm, (dim) each.
pub(super) struct Norm {
    pub(super) scale: Vec<f32>,
    pub(super) shift: Vec<f32>,
}

pub(super) struct Layer {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    pub(super) output_norm: Norm,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) down_norm: Norm,
}

pub(super) struct Weights {
    pub(super) config: BertConfig,
    pub(super) isa: Isa,
    file: memmap2::Mmap,
    /// Where the embeddings of tokens are in the file, and their kind: one row is read a token, so
    /// the table stays there.
    words: (Range<usize>, TensorKind),
    /// Embeddings of positions plus that of the first segment, (positions, dim).
    pub(super) positions: Vec<f32>,
    pub(super) norm: Norm,
    pub(super) layers: Vec<Layer>,
}

impl Weights {
    pub(super) fn load(folder: &Path, isa: Isa) -> Result<Self> {
        let config = read_config(folder)?;
        let path = folder.join("model.safetensors");
        let io = |source| Error::Io { path: path.clone(), source };
        let file = File::open(&path).map_err(io)?;
        // SAFETY: read-only; the file must not change while the model is open, as with GGUF.
        let file = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        let tensors = SafeTensors::deserialize(&file).map_err(|source| {
            Error::model("model.safetensors", format!("{source}; get the file again"))
        })?;
        let mut reader = Reader { tensors: &tensors, isa, arena: Arena::default() };
        let BertConfig { dim, vocab, positions, .. } = config;
        let words = reader.view("embeddings.word_embeddings.weight", vocab, dim)?;
        words.check_finite()?;
        let start = words.bytes.as_ptr().addr() - file.as_ptr().addr();
        let words = (start..start + words.bytes.len(), words.kind);
        let segments = reader.shape("embeddings.token_type_embeddings.weight")?;
        let rows = segments.first().copied().unwrap_or(0).max(1);
        let segment =
            reader.vector("embeddings.token_type_embeddings.weight", rows, dim)?[..dim].to_vec();
        let mut table = reader.vector("embeddings.position_embeddings.weight", positions, dim)?;
        for row in table.chunks_exact_mut(dim) {
            row.iter_mut().zip(&segment).for_each(|(x, segment)| *x += segment);
        }
        let norm = reader.norm("embeddings.LayerNorm", dim)?;
        let layers =
            (0..config.layers).map(|at| reader.layer(at, &config)).collect::<Result<Vec<_>>>()?;
        Ok(Self { config, isa, words, positions: table, norm, layers, file })
    }

    /// Embedding of a token, into `out` (dim).
    pub(super) fn word(&self, token: usize, out: &mut [f32]) {
        let (range, kind) = &self.words;
        let row_bytes = kind.row_bytes(self.config.dim);
        let table = &self.file[range.clone()];
        kind.dequantise_row(&table[token * row_bytes..][..row_bytes], out);
    }
}

/// Takes tensors of known shape out of a file.
struct Reader<'a> {
    tensors: &'a SafeTensors<'a>,
    isa: Isa,
    arena: Arena,
}

impl<'a> Reader<'a> {
    fn tensor(&self, name: &str) -> Result<safetensors::tensor::TensorView<'a>> {
        self.tensors.tensor(name).map_err(|_| {
            Error::model(name, "the tensor is missing; give a BERT model's folder (safetensors)")
        })
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.tensor(name)?.shape().to_vec())
    }

    /// The tensor as `rows` x `columns`; a vector is one row.
    fn view<'n>(&self, name: &'n str, rows: usize, columns: usize) -> Result<TensorView<'n>>
    where
        'a: 'n,
    {
        let tensor = self.tensor(name)?;
        let expected = [rows, columns];
        let shape = tensor.shape();
        if shape != expected && !(rows == 1 && shape == [columns]) {
            return Err(Error::model(name, format!("has shape {shape:?}, expected {expected:?}")));
        }
        let kind = match tensor.dtype() {
            Dtype::F32 => TensorKind::F32,
            Dtype::F16 => TensorKind::F16,
            Dtype::BF16 => TensorKind::Bf16,
            other => {
                return Err(Error::model(
                    name,
                    format!("type {other:?} is not supported; use F32, F16 or BF16"),
                ));
            }
        };
        Ok(TensorView { name, rows, columns, kind, bytes: tensor.data() })
    }

    fn vector(&self, name: &str, rows: usize, columns: usize) -> Result<Vec<f32>> {
        let view = self.view(name, rows, columns)?;
        view.check_finite()?;
        Ok(view.dequantise())
    }

    fn norm(&self, name: &str, dim: usize) -> Result<Norm> {
        let scale = self.vector(&format!("{name}.weight"), 1, dim)?;
        Ok(Norm { scale, shift: self.vector(&format!("{name}.bias"), 1, dim)? })
    }

    fn linear(&mut self, name: &str, rows: usize, columns: usize) -> Result<Linear> {
        let bias = self.vector(&format!("{name}.bias"), 1, rows)?;
        let name = format!("{name}.weight");
        let view = self.view(&name, rows, columns)?;
        view.check_finite()?;
        let matrix = QuantMatrix::from_tensor(&view, Simd::up_to(self.isa), &mut self.arena)?;
        Ok(Linear { matrix, bias })
    }

    fn layer(&mut self, at: usize, config: &BertConfig) -> Result<Layer> {
        let BertConfig { dim, ffn, .. } = *config;
        let name = |part: &str| format!("encoder.layer.{at}.{part}");
        Ok(Layer {
            query: self.linear(&name("attention.self.query"), dim, dim)?,
            key: self.linear(&name("attention.self.key"), dim, dim)?,
            value: self.linear(&name("attention.self.value"), dim, dim)?,
            output: self.linear(&name("attention.output.dense"), dim, dim)?,
            output_norm: self.norm(&name("attention.output.LayerNorm"), dim)?,
            up: self.linear(&name("intermediate.dense"), ffn, dim)?,
            down: self.linear(&name("output.dense"), dim, ffn)?,
            down_norm: self.norm(&name("output.LayerNorm"), dim)?,
        })
    }
}

/// A JSON file of the folder; `None` if it is not there.
fn json(folder: &Path, name: &str) -> Result<Option<Value>> {
    let path = folder.join(name);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Io { path, source }),
    };
    let value = serde_json::from_slice(&bytes);
    value.map(Some).map_err(|source| Error::model(name, format!("is not JSON: {source}")))
}

/// A positive whole number of a JSON file.
fn size(json: &Value, file: &str, key: &str, max: usize) -> Result<usize> {
    let number = json.get(key).and_then(Value::as_u64);
    match number {
        Some(number) if (1..=max as u64).contains(&number) => Ok(number as usize),
        _ => Err(Error::model(file, format!("`{key}` is not a whole number from 1 to {max}"))),
    }
}

fn read_config(folder: &Path) -> Result<BertConfig> {
    const FILE: &str = "config.json";
    let json = json(folder, FILE)?.ok_or_else(|| {
        let source = std::io::Error::from(std::io::ErrorKind::NotFound);
        Error::Io { path: folder.join(FILE), source }
    })?;
    for (key, expected) in
        [("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")]
    {
        let found = json.get(key).and_then(Value::as_str).unwrap_or(expected);
        if found != expected {
            return Err(Error::model(
                FILE,
                format!("`{key}` is `{found}`; only `{expected}` is supported"),
            ));
        }
    }
    let dim = size(&json, FILE, "hidden_size", WIDTH_MAX)?;
    let ffn = size(&json, FILE, "intermediate_size", WIDTH_MAX)?;
    let heads = size(&json, FILE, "num_attention_heads", WIDTH_MAX)?;
    let head_dim = dim / heads;
    if ![32, 64].contains(&head_dim) || head_dim * heads != dim || !ffn.is_multiple_of(32) {
        return Err(Error::model(
            FILE,
            format!(
                "{heads} heads of {dim} and a layer of {ffn}: heads of 32 or 64 and multiples of \
                 32 are supported"
            ),
        ));
    }
    let epsilon = json.get("layer_norm_eps").and_then(Value::as_f64).unwrap_or(1e-12) as f32;
    if !(epsilon > 0.0 && epsilon < 1.0) {
        return Err(Error::model(FILE, "`layer_norm_eps` is not between 0 and 1"));
    }
    Ok(BertConfig {
        layers: size(&json, FILE, "num_hidden_layers", LAYERS_MAX)?,
        dim,
        ffn,
        heads,
        head_dim,
        vocab: size(&json, FILE, "vocab_size", TABLE_ROWS_MAX)?,
        positions: size(&json, FILE, "max_position_embeddings", TABLE_ROWS_MAX)?,
        epsilon,
    })
}

/// How many tokens of a text are read.
pub(super) fn tokens_max(folder: &Path, config: &BertConfig) -> Result<usize> {
    const FILE: &str = "sentence_bert_config.json";
    let Some(json) = json(folder, FILE)? else { return Ok(config.positions) };
    let tokens = size(&json, FILE, "max_seq_length", TABLE_ROWS_MAX)?.min(config.positions);
    if tokens < 2 {
        return Err(Error::model(FILE, "`max_seq_length` leaves no room for a text"));
    }
    Ok(tokens)
}

/// Refuse a model whose vectors are not means.
pub(super) fn check_pooling(folder: &Path) -> Result<()> {
    const FILE: &str = "1_Pooling/config.json";
    let Some(json) = json(folder, FILE)? else { return Ok(()) };
    let modes = json.as_object().into_iter().flatten();
    let on = |(key, value): (&String, &Value)| {
        (key.starts_with("pooling_mode_") && value == &Value::Bool(true)).then(|| key.clone())
    };
    let modes: Vec<String> = modes.filter_map(on).collect();
    if modes == ["pooling_mode_mean_tokens"] {
        return Ok(());
    }
    Err(Error::model(FILE, format!("{modes:?}: only the mean of the tokens is supported")))
}
