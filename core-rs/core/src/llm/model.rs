//! A language model as a whole, loaded from one file.

use std::path::Path;
use std::sync::Arc;

use crate::Result;
use crate::llm::gguf::Gguf;
use crate::llm::graph::{Graph, LoadOptions};
use crate::llm::summary::ModelSummary;
use crate::llm::template::ChatTemplate;
use crate::llm::tokenizer::Tokenizer;

/// Everything that one GGUF file holds, ready to use.
#[derive(Debug)]
pub struct LanguageModel {
    /// Facts for people.
    pub info: ModelSummary,
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
    /// Its tokens.
    pub tokenizer: Arc<Tokenizer>,
    /// How it reads a conversation, or why it cannot: texts can still be continued.
    pub template: Result<ChatTemplate>,
    /// The forward pass; the engine takes it over.
    pub forward: Graph,
}

impl LanguageModel {
    /// Open, check and repack a model file.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the file cannot be read, [`crate::Error::Model`] naming what is wrong
    /// in it, [`crate::Error::Input`] naming an option out of range.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Self> {
        let file = Gguf::open(path)?;
        let tokenizer = Tokenizer::from_gguf(&file)?;
        Ok(Self {
            template: ChatTemplate::from_gguf(&file, &tokenizer),
            tokenizer: Arc::new(tokenizer),
            info: ModelSummary::of(&file)?,
            sha256: file.sha256(),
            forward: Graph::load(&file, options)?,
        })
    }
}
