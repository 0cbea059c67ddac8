//! A model's weights, repacked for the kernels by all threads of the pool.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::llm::config::{EMBEDDING, HEAD, ModelConfig, OUTPUT_NORM};
use crate::llm::gguf::{Gguf, TensorView};
use crate::llm::kernels::{Arena, QuantMatrix, Simd};
use crate::pool::Pool;
use crate::{Error, Result};

/// Everything a step reads.
pub(super) struct Weights {
    /// (vocab, dim)
    pub(super) embedding: QuantMatrix,
    /// (vocab, dim), unless the embedding is used.
    head: Option<QuantMatrix>,
    /// (dim)
    pub(super) output_norm: Vec<f32>,
    pub(super) layers: Vec<Layer>,
}

/// One transformer layer; matrices are (outputs, inputs).
pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) query: QuantMatrix,
    pub(super) key: QuantMatrix,
    pub(super) value: QuantMatrix,
    pub(super) biases: Option<Biases>,
    pub(super) output: QuantMatrix,
    pub(super) ffn_norm: Vec<f32>,
    pub(super) gate: QuantMatrix,
    pub(super) up: QuantMatrix,
    pub(super) down: QuantMatrix,
}

/// What is added to queries, keys and values.
pub(super) struct Biases {
    pub(super) query: Vec<f32>,
    pub(super) key: Vec<f32>,
    pub(super) value: Vec<f32>,
}

impl Weights {
    /// Read and repack all tensors of a file that `config` was read from.
    ///
    /// # Errors
    /// [`Error::Model`] naming a tensor with numbers that are not finite.
    pub(super) fn load(
        file: &Gguf,
        config: &ModelConfig,
        simd: Simd,
        pool: &mut Pool,
    ) -> Result<Self> {
        let mut matrices = Matrices::repack(file, config, simd, pool)?;
        let layers = (0..config.layers)
            .map(|layer| {
                let name = |part: &str| format!("blk.{layer}.{part}");
                let mut matrix = |part: &str| matrices.take(&name(&format!("{part}.weight")));
                let vector = |part: &str| vector(file, &name(part));
                let biases = if config.qkv_bias {
                    Some(Biases {
                        query: vector("attn_q.bias")?,
                        key: vector("attn_k.bias")?,
                        value: vector("attn_v.bias")?,
                    })
                } else {
                    None
                };
                Ok(Layer {
                    attention_norm: vector("attn_norm.weight")?,
                    query: matrix("attn_q")?,
                    key: matrix("attn_k")?,
                    value: matrix("attn_v")?,
                    biases,
                    output: matrix("attn_output")?,
                    ffn_norm: vector("ffn_norm.weight")?,
                    gate: matrix("ffn_gate")?,
                    up: matrix("ffn_up")?,
                    down: matrix("ffn_down")?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            embedding: matrices.take(EMBEDDING)?,
            head: if config.tied { None } else { Some(matrices.take(HEAD)?) },
            output_norm: vector(file, OUTPUT_NORM)?,
            layers,
        })
    }

    /// (vocab, dim): what the last row is multiplied with.
    pub(super) fn head(&self) -> &QuantMatrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}

fn vector(file: &Gguf, name: &str) -> Result<Vec<f32>> {
    let tensor = file.tensor(name)?;
    tensor.check_finite()?;
    Ok(tensor.dequantise())
}

/// Repacked matrices by name.
struct Matrices<'a> {
    tensors: Vec<TensorView<'a>>,
    repacked: Vec<Option<QuantMatrix>>,
}

impl<'a> Matrices<'a> {
    fn repack(file: &'a Gguf, config: &ModelConfig, simd: Simd, pool: &mut Pool) -> Result<Self> {
        let mut tensors = vec![file.tensor(EMBEDDING)?];
        if !config.tied {
            tensors.push(file.tensor(HEAD)?);
        }
        for layer in 0..config.layers {
            for (name, rows, _) in config.layer_tensors(layer) {
                if rows > 1 {
                    tensors.push(file.tensor(&name)?);
                }
            }
        }
        // Large ones first, so that threads end together.
        tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.bytes.len()));
        let slots: Vec<Mutex<Option<Result<QuantMatrix>>>> =
            tensors.iter().map(|_| Mutex::new(None)).collect();
        let next = AtomicUsize::new(0);
        pool.run(|_| {
            let mut arena = Arena::default();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(tensor) = tensors.get(index) else { return };
                let matrix = QuantMatrix::from_tensor(tensor, simd, &mut arena);
                *slots[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(matrix);
            }
        })?;
        let repacked = slots
            .into_iter()
            .map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner).transpose())
            .collect::<Result<_>>()?;
        Ok(Self { tensors, repacked })
    }

    fn take(&mut self, name: &str) -> Result<QuantMatrix> {
        let index = self.tensors.iter().position(|tensor| tensor.name == name);
        index
            .and_then(|index| self.repacked[index].take())
            .ok_or_else(|| Error::model(name, "the tensor is missing"))
    }
}
