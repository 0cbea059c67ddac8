//! Language models: a GGUF file in, tokens out.
//!
//! ```text
//! gguf ──> model ──> graph (Forward) ──┐
//!   └────> tokenizer, template         ├──> engine: one thread, many requests
//!          constraint, sampler, kv ────┘
//! ```
//!
//! - [`gguf`] reads model files, and writes small ones for tests.
//! - [`config`] is what a graph must know of a model.
//! - [`forward`] is the seam between the numerics and the engine: a step over paged keys and values.
//! - [`summary`] is what a file says about itself.
//! - [`reference`] is the slow version of a model, [`perplexity`] the distance of a fast one from it.
//! - [`bert`] turns texts into vectors; it has a graph of its own and nothing to do with the engine.
//! - [`request`] is what goes into the engine and what comes out of it.
//! - [`kernels`] multiplies quantised weights and activations.
//! - [`engine`] is the thread and its mailboxes, [`scheduler`] what it does, over the
//!   [`prefix`] cache (kept by [`snapshot`]), the [`sampler`], [`speculation`] and the [`output`]; [`language`] is what it needs of language.
//! - [`graph`] is the forward pass; [`model`] puts it together with what goes around it.
//! - [`kv`] is the memory both share: pages of [`kv::PAGE_TOKENS`] tokens.
//!
//! Not here: HTTP, JSON bodies, chat roles beyond what a template needs. Those are Python's.

pub(crate) mod attention;
pub mod bert;
pub mod config;
pub mod constraint;
pub mod engine;
pub mod forward;
pub mod gguf;
pub mod graph;
pub mod kernels;
pub mod kv;
pub mod language;
pub mod mailbox;
pub mod model;
pub(crate) mod ops;
pub mod output;
pub mod perplexity;
pub mod prefix;
pub mod reference;
pub mod request;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod snapshot;
pub mod speculation;
pub mod stats;
pub mod summary;
pub mod template;
pub mod tokenizer;

#[cfg(test)]
mod engine_tests;
#[cfg(test)]
mod scheduler_tests;
#[cfg(test)]
mod scripted;

/// A token of a model's vocabulary.
pub type TokenId = u32;
