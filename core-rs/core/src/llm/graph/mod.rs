//! The forward pass of `llama` and `qwen2` models, a step at a time, on all threads of a pool.
//!
//! ```text
//! x = embedding[token]                                        # (tokens, dim)
//! for each layer:
//!     x += output . attention(rope(query . n), rope(key . n), value . n)   where n = rms_norm(x)
//!     x += down . (silu(gate . n) * (up . n))                              where n = rms_norm(x)
//! logits = head . rms_norm(x)                                 # only rows that are asked for
//! ```
//!
//! Matrix products take activations as 8-bit integers ([`crate::llm::kernels`]); the rest is f32,
//! keys and values are kept as f16.
//!
//! # How threads share a step
//! - *Few tokens* (decoding): by rows of the matrices; all threads see all tokens. A token's norm is
//!   cheaper to repeat than to wait for, so each thread quantises its own copy. Five barriers a
//!   layer: after keys are written, attention, the output product, gate and up, down.
//! - *Many tokens* (a prompt): by tokens, which then never leave their thread but for attention:
//!   two barriers a layer.
//!
//! Attention is cut into units that threads take from a queue. No number depends on who computes it
//! or on what else is in the step: see [`crate::llm::attention`] and [`crate::llm::kernels`].
#![expect(unsafe_code, reason = "threads write disjoint parts of shared buffers")]

mod layer;
mod plan;
mod weights;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::llm::attention;
use crate::llm::config::ModelConfig;
use crate::llm::forward::{Forward, ModelShape, Segment};
use crate::llm::gguf::Gguf;
use crate::llm::kernels::{Activations, QuantMatrix, Simd};
use crate::llm::kv::{KvPages, KvShape, PageId};
use crate::llm::ops::vector::LANES;
use crate::llm::ops::{Aligned, RopeTable};
use crate::pool::{Pool, PoolOptions};
use crate::signal::isa::Isa;
use crate::{Error, Result};

use layer::{Shared, Step};
use plan::{PARTIALS_LEN_MAX, Plan};
use weights::Weights;

/// Up to so many tokens every thread quantises its own copy.
const PRIVATE_TOKENS_MAX: usize = 4;

/// No layer has failed.
const NO_LAYER: usize = usize::MAX;

/// How a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Threads of a step, the caller's included.
    pub threads: usize,
    /// Vector instructions to use at most; the best there are if not given.
    pub isa: Option<Isa>,
    /// Most tokens of one step, all segments together.
    pub step_tokens_max: usize,
    /// Most rows of logits of one step.
    pub logits_rows_max: usize,
    /// How the threads are scheduled.
    pub pool: PoolOptions,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            isa: None,
            step_tokens_max: 512,
            logits_rows_max: 128,
            pool: PoolOptions::default(),
        }
    }
}

/// Most tokens or rows that may be asked for in one step.
const STEP_TOKENS_LIMIT: usize = 1 << 16;

/// A model ready to take steps.
pub struct Graph {
    config: ModelConfig,
    shape: ModelShape,
    isa: Isa,
    weights: Weights,
    rope: RopeTable,
    pool: Pool,
    plan: Plan,
    buffers: Buffers,
    workers: Vec<Mutex<WorkerMemory>>,
    /// Next unit of attention, for each layer.
    queue: Vec<AtomicUsize>,
    /// First layer whose numbers were not finite, and `layers` for the head.
    failed: AtomicUsize,
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What all threads read and write, each its own part. Rows are tokens of the step.
struct Buffers {
    /// Residual stream (tokens, dim).
    x: Aligned,
    /// (tokens, heads * `head_dim`), rotated and scaled.
    queries: Aligned,
    /// (tokens, `kv_heads` * `head_dim`).
    keys: Aligned,
    values: Aligned,
    /// Attention's result (tokens, heads * `head_dim`).
    attended: Aligned,
    /// (tokens, ffn).
    gate: Aligned,
    up: Aligned,
    /// Angles of each token's position.
    angles: Aligned,
    /// Spans of attention that wait to be merged.
    partials: Aligned,
    /// (rows, vocab).
    logits: Aligned,
    /// Inputs of the products: from the residual stream, from attention, from the feed-forward layer.
    stream: Activations,
    heads: Activations,
    hidden: Activations,
}

/// What one thread uses alone.
struct WorkerMemory {
    attention: attention::Scratch,
    /// A token's normed row, or merged heads.
    row: Vec<f32>,
    /// A head as f16.
    halves: Vec<u16>,
    /// Its own copies for few tokens.
    stream: Activations,
    heads: Activations,
}

impl Graph {
    /// Read a model from an open file.
    ///
    /// # Errors
    /// [`Error::Model`] naming what is missing, unsupported or not finite; [`Error::Input`] naming
    /// an option out of range.
    pub fn load(file: &Gguf, options: &LoadOptions) -> Result<Self> {
        let isa = choose(options.isa)?;
        for (name, value) in [
            ("step_tokens_max", options.step_tokens_max),
            ("logits_rows_max", options.logits_rows_max),
        ] {
            if !(1..=STEP_TOKENS_LIMIT).contains(&value) {
                let reason = format!("{value} is not in 1..={STEP_TOKENS_LIMIT}");
                return Err(Error::input(name, reason));
            }
        }
        let config = ModelConfig::from_gguf(file)?;
        if !config.head_dim.is_multiple_of(LANES) {
            let reason = format!("{} numbers; multiples of {LANES} are supported", config.head_dim);
            return Err(Error::model("attention.key_length", reason));
        }
        let mut pool = Pool::with_options(options.threads, options.pool)?;
        let weights = Weights::load(file, &config, Simd::up_to(isa), &mut pool)?;
        let shape = ModelShape {
            vocab: config.vocab,
            context: config.context,
            kv: KvShape {
                layers: config.layers,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
            },
            step_tokens_max: options.step_tokens_max,
            logits_rows_max: options.logits_rows_max,
        };
        let group = config.heads / config.kv_heads;
        let rope = RopeTable::new(&config.rope, config.context);
        let worker = || WorkerMemory::new(&config);
        Ok(Self {
            isa,
            weights,
            plan: Plan::new(&shape, group, options.threads),
            buffers: Buffers::new(&config, &shape, &rope),
            workers: (0..options.threads).map(|_| Mutex::new(worker())).collect(),
            queue: (0..config.layers).map(|_| AtomicUsize::new(0)).collect(),
            failed: AtomicUsize::new(NO_LAYER),
            rope,
            pool,
            shape,
            config,
        })
    }

    /// Sizes and constants of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Vector instructions in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes of weights that a step of one token reads.
    pub fn weight_bytes(&self) -> usize {
        let layer = |layer: &weights::Layer| {
            let weights::Layer { query, key, value, output, gate, up, down, .. } = layer;
            [query, key, value, output, gate, up, down]
                .map(QuantMatrix::bytes)
                .iter()
                .sum::<usize>()
        };
        self.weights.layers.iter().map(layer).sum::<usize>() + self.weights.head().bytes()
    }
}

impl Forward for Graph {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn step(&mut self, kv: &mut KvPages, segments: &[Segment<'_>]) -> Result<&[f32]> {
        self.plan.build(&self.shape, kv, segments)?;
        if self.plan.rows.is_empty() {
            return Ok(&[]);
        }
        for next in &self.queue {
            next.store(0, Ordering::Relaxed);
        }
        self.failed.store(NO_LAYER, Ordering::Relaxed);
        let group = self.config.heads / self.config.kv_heads;
        let step = Step {
            config: &self.config,
            isa: self.isa,
            weights: &self.weights,
            rope: &self.rope,
            plan: &self.plan,
            segments,
            pages: Shared::new(kv.page_mut(PageId(0)), kv.capacity() * self.shape.kv.page_len()),
            kv: self.shape.kv,
            group,
            buffers: self.buffers.share(&self.config, &self.shape, &self.rope),
            queue: &self.queue,
            failed: &self.failed,
        };
        let workers = &self.workers;
        self.pool.run(|worker| {
            let mut memory = workers[worker.index].lock().unwrap_or_else(PoisonError::into_inner);
            step.run(worker, &mut memory);
        })?;
        match self.failed.load(Ordering::Relaxed) {
            NO_LAYER => {
                let len = self.plan.logits.len() * self.shape.vocab;
                Ok(&self.buffers.logits.as_slice()[..len])
            }
            layer => Err(not_finite(layer, self.config.layers)),
        }
    }
}

fn not_finite(layer: usize, layers: usize) -> Error {
    let field = if layer < layers { format!("blk.{layer}") } else { "output".to_owned() };
    Error::model(field, "the numbers of a step are not finite, or too large for half precision")
}

/// The instruction set for rows and attention.
fn choose(wish: Option<Isa>) -> Result<Isa> {
    let isa = match wish {
        Some(isa) if !isa.available() => Isa::parse(isa.name())?,
        Some(isa) => isa,
        None => Isa::detect()?,
    };
    // Every processor with AVX2 converts half precision, but only the flag proves it.
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::Scalar && !is_x86_feature_detected!("f16c") {
        return Ok(Isa::Scalar);
    }
    Ok(isa)
}

impl Buffers {
    fn new(config: &ModelConfig, shape: &ModelShape, rope: &RopeTable) -> Self {
        let tokens = shape.step_tokens_max;
        let rows = tokens.max(shape.logits_rows_max);
        Self {
            x: Aligned::new(tokens * config.dim),
            queries: Aligned::new(tokens * config.query_width()),
            keys: Aligned::new(tokens * config.kv_width()),
            values: Aligned::new(tokens * config.kv_width()),
            attended: Aligned::new(tokens * config.query_width()),
            gate: Aligned::new(tokens * config.ffn),
            up: Aligned::new(tokens * config.ffn),
            angles: Aligned::new(tokens * rope.row_len()),
            partials: Aligned::new(PARTIALS_LEN_MAX),
            logits: Aligned::new(shape.logits_rows_max * shape.vocab),
            stream: Activations::new(rows, config.dim),
            heads: Activations::new(tokens, config.query_width()),
            hidden: Activations::new(tokens, config.ffn),
        }
    }

    fn share(
        &mut self,
        config: &ModelConfig,
        shape: &ModelShape,
        rope: &RopeTable,
    ) -> layer::Buffers<'_> {
        let rows = layer::Rows::new;
        layer::Buffers {
            x: rows(&mut self.x, config.dim),
            queries: rows(&mut self.queries, config.query_width()),
            keys: rows(&mut self.keys, config.kv_width()),
            values: rows(&mut self.values, config.kv_width()),
            attended: rows(&mut self.attended, config.query_width()),
            gate: rows(&mut self.gate, config.ffn),
            up: rows(&mut self.up, config.ffn),
            angles: rows(&mut self.angles, rope.row_len()),
            partials: rows(&mut self.partials, 1),
            logits: rows(&mut self.logits, shape.vocab),
            stream: &self.stream,
            heads: &self.heads,
            hidden: &self.hidden,
        }
    }
}

impl WorkerMemory {
    fn new(config: &ModelConfig) -> Self {
        let group = config.heads / config.kv_heads;
        Self {
            attention: attention::Scratch::new(config.head_dim, group),
            row: vec![0.0; config.dim.max(config.query_width())],
            halves: vec![0; config.head_dim],
            stream: Activations::new(PRIVATE_TOKENS_MAX, config.dim),
            heads: Activations::new(PRIVATE_TOKENS_MAX, config.query_width()),
        }
    }
}
