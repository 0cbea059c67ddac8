//! What the engine must know of language: the bytes of a token, which tokens end an answer, and
//! grammars. A model's tokenizer gives it ([`ModelLanguage`]); the engine's tests have a small
//! language of their own.

use std::sync::Arc;

use crate::Result;
use crate::llm::TokenId;
use crate::llm::constraint::{ConstraintFactory, Matcher};
use crate::llm::request::Constraint;
use crate::llm::tokenizer::Tokenizer;

/// Tokens as bytes, and grammars over them.
pub trait Language: Send + Sync {
    /// Bytes of a token; they may be part of a character. Empty for an unknown token.
    fn bytes(&self, token: TokenId) -> &[u8];

    /// Whether a token is a control token, which is never shown.
    fn is_control(&self, token: TokenId) -> bool;

    /// Tokens that end an answer.
    fn end_tokens(&self) -> &[TokenId];

    /// A grammar, ready for its first token. Runs on the thread of the one who submits.
    ///
    /// # Errors
    /// [`crate::Error::Input`] if the constraint is invalid or too large.
    fn compile(&self, constraint: &Constraint) -> Result<Box<dyn Grammar>>;
}

/// A grammar while its answer is being written.
pub trait Grammar: Send {
    /// Which tokens may come next: bit `token % 32` of word `token / 32`.
    ///
    /// # Errors
    /// [`crate::Error::Input`] if the grammar exceeds its limits.
    fn mask(&mut self) -> Result<&[u32]>;

    /// Take a token.
    ///
    /// # Errors
    /// [`crate::Error::Input`] if the grammar does not allow it.
    fn commit(&mut self, token: TokenId) -> Result<()>;

    /// Let the answer have this many tokens from here; a grammar that can leads it to its end in time.
    fn limit(&mut self, tokens: usize) {
        let _ = tokens;
    }

    /// Tokens that must come next, not yet committed; empty where there is a choice.
    fn forced(&mut self) -> Vec<TokenId>;

    /// Whether nothing can follow: the answer must end.
    fn is_complete(&self) -> bool;
}

/// The language of a model file.
#[derive(Debug)]
pub struct ModelLanguage {
    tokenizer: Arc<Tokenizer>,
    constraints: ConstraintFactory,
}

impl ModelLanguage {
    /// The language of `tokenizer`, made once for a model.
    ///
    /// # Errors
    /// Those of [`ConstraintFactory::new`].
    pub fn new(tokenizer: Arc<Tokenizer>) -> Result<Self> {
        let constraints = ConstraintFactory::new(&tokenizer)?;
        Ok(Self { tokenizer, constraints })
    }

    /// A graph may have more logits than the vocabulary has tokens.
    fn knows(&self, token: TokenId) -> bool {
        (token as usize) < self.tokenizer.vocab()
    }
}

impl Language for ModelLanguage {
    fn bytes(&self, token: TokenId) -> &[u8] {
        if self.knows(token) { self.tokenizer.bytes(token) } else { &[] }
    }

    fn is_control(&self, token: TokenId) -> bool {
        !self.knows(token) || self.tokenizer.is_control(token)
    }

    fn end_tokens(&self) -> &[TokenId] {
        self.tokenizer.end_tokens()
    }

    fn compile(&self, constraint: &Constraint) -> Result<Box<dyn Grammar>> {
        Ok(Box::new(self.constraints.compile(constraint)?))
    }
}

impl Grammar for Matcher {
    fn mask(&mut self) -> Result<&[u32]> {
        self.mask()
    }

    fn commit(&mut self, token: TokenId) -> Result<()> {
        self.commit(token)
    }

    fn limit(&mut self, tokens: usize) {
        self.limit(tokens);
    }

    fn forced(&mut self) -> Vec<TokenId> {
        self.forced()
    }

    fn is_complete(&self) -> bool {
        self.is_complete()
    }
}
