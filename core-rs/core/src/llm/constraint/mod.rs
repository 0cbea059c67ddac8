//! Answers that must have a form: JSON, JSON of a schema, or text of a grammar.
//!
//! A [`Matcher`] says before each token which ones keep the answer on the way to a valid end; the
//! sampler chooses among them. Tokens that end an answer are among them only where the grammar may
//! end. The grammars, their parser and the masks are llguidance's; this module gives it the model's
//! tokens, bounds what a request may cost, and turns its failures into [`Error::Input`].
//!
//! Schemas are narrowed a little first: see [`schema`] for what is supported and how. An answer that
//! is about to run out of tokens is led to its end on a short way ([`Matcher::limit`]).
//!
//! # Lark grammars for tool calls
//! A grammar is llguidance's dialect of Lark, in which `%json {…}` stands for JSON of a schema. Call
//! marks such as `<tool_call>` are written as text: they are matched whether the vocabulary has one
//! token for them or several. In all recipes `call` is the mark, the call, and the closing mark:
//! ```text
//! call: "<tool_call>\n" body "\n</tool_call>"
//! body: %json {"type":"object", … "name":{"const":"get_weather"}, "arguments":{…} …}
//!     | %json {"type":"object", … "name":{"const":"get_time"}, "arguments":{…} …}
//! ```
//! - one call, no text (`required`, a named tool): `start: call`
//! - one or more calls, no text (`required`, parallel): `start: call ("\n" call)*`
//! - text that may turn into one call at any point (`auto`):
//!   ```text
//!   start: text | before_call body "\n</tool_call>"
//!   before_call[lazy]: /(.|\n)*<tool_call>\n/
//!   text: TEXT
//!   TEXT: /(.|\n)*/ & ~/(.|\n)*<tool_call>(.|\n)*/
//!   ```
//! - the same with any number of calls (`auto`, parallel):
//!   ```text
//!   start: text | before_call body "\n</tool_call>" ("\n" call)*
//!   ```
//! The tests of this module run these recipes on the shipped vocabulary.

mod closing;
pub mod schema;

use std::sync::{Arc, LazyLock};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{
    ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv,
};
use llguidance::{Matcher as Parser, ParserFactory};

use crate::llm::TokenId;
use crate::llm::request::Constraint;
use crate::llm::tokenizer::{TokenKind, Tokenizer};
use crate::{Error, Result};

/// Longest schema or grammar.
pub const CONSTRAINT_BYTES_MAX: usize = 256 << 10;

/// Deepest nesting of brackets in a schema or grammar.
pub const CONSTRAINT_NESTING_MAX: usize = 100;

/// Most symbols of a compiled grammar.
pub const GRAMMAR_SYMBOLS_MAX: usize = 200_000;

/// Most nodes of the expressions of a compiled grammar; about 50,000 take a millisecond.
pub const COMPILE_STEPS_MAX: u64 = 1_000_000;

/// Stack of the thread that compiles, bytes; taken from the system as it is used.
const COMPILE_STACK_BYTES: usize = 128 << 20;

/// Most nodes of expressions to look at for one mask; about 14,000 take a millisecond.
pub const MASK_STEPS_MAX: u64 = 200_000;

/// Most states of the parser for one mask; about 20,000 take a millisecond.
pub const MASK_ITEMS_MAX: usize = 50_000;

/// Most states of the lexer of one answer, 1 to 2 kB each.
pub const LEXER_STATES_MAX: usize = 50_000;

/// Longest token that an answer under a grammar may take, bytes: as deep as a trie of tokens goes.
const TRIE_BYTES_MAX: usize = 1000;

/// Tokens to spare when an answer is led to its end.
pub const CLOSING_SPARE_TOKENS: usize = 12;

/// Compiles constraints for one tokenizer; made once, shared by all requests.
pub struct ConstraintFactory {
    parsers: ParserFactory,
}

impl std::fmt::Debug for ConstraintFactory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConstraintFactory").finish_non_exhaustive()
    }
}

impl ConstraintFactory {
    /// For the tokens of `tokenizer`.
    ///
    /// # Errors
    /// [`Error::Model`] if the vocabulary names no token that ends an answer, or is not usable.
    pub fn new(tokenizer: &Arc<Tokenizer>) -> Result<Self> {
        let &[end, ..] = tokenizer.end_tokens() else {
            return Err(Error::model("tokenizer.ggml.eos_token_id", "no token ends an answer"));
        };
        let words: Vec<Vec<u8>> =
            (0..tokenizer.vocab() as TokenId).map(|t| word(tokenizer, t)).collect();
        let info = TokRxInfo::new(tokenizer.vocab() as u32, end);
        // It counts its nodes in few bits and panics where they do not suffice.
        let trie = with_deep_stack(|| TokTrie::from(&info, &words))
            .map_err(|_| Error::model("tokenizer.ggml.tokens", "together they are too long"))?
            .with_eos_tokens(tokenizer.end_tokens());
        let tokens: TokEnv = Arc::new(Tokens { trie, tokenizer: Arc::clone(tokenizer) });
        Self::with(&tokens)
    }

    fn with(tokens: &TokEnv) -> Result<Self> {
        // Forced text comes back as the tokens the model itself would use.
        let forced = InferenceCapabilities {
            ff_tokens: tokens.tokenize_is_canonical(),
            ..InferenceCapabilities::default()
        };
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut parsers = ParserFactory::new(tokens, forced, &slices)
            .map_err(|source| Error::model("tokenizer.ggml.tokens", source.to_string()))?;
        parsers.quiet();
        let limits = parsers.limits_mut();
        limits.initial_lexer_fuel = COMPILE_STEPS_MAX;
        limits.step_lexer_fuel = MASK_STEPS_MAX;
        limits.step_max_items = MASK_ITEMS_MAX;
        limits.max_lexer_states = LEXER_STATES_MAX;
        limits.max_grammar_size = GRAMMAR_SYMBOLS_MAX;
        limits.verbose_errors = false;
        Ok(Self { parsers })
    }

    /// A matcher at the beginning of an answer. Bounded in time and memory, so that it may run on
    /// the thread of the caller.
    ///
    /// # Errors
    /// [`Error::Input`] if the schema or grammar is not valid, asks for what is not supported (a
    /// keyword that would otherwise be ignored), cannot be met by any text, or is too large.
    pub fn compile(&self, constraint: &Constraint) -> Result<Matcher> {
        let grammar = match constraint {
            Constraint::JsonObject => json(r#"{"type":"object"}"#)?,
            Constraint::JsonSchema(text) => json(text)?,
            Constraint::Lark(text) => {
                bounded("grammar", text)?;
                TopLevelGrammar::from_lark(schema::narrowed_in_grammar(text)?)
            }
        };
        let parser = Parser::new(with_deep_stack(|| self.parsers.create_parser(grammar))?);
        if let Some(message) = parser.get_error() {
            return Err(refused(&message));
        }
        let matcher = Matcher {
            parser,
            mask: SimpleVob::new(),
            tokens: self.parsers.tok_env().clone(),
            budget: None,
        };
        // A schema that only refers to itself compiles, and has no first token.
        matcher.clone().mask()?;
        Ok(matcher)
    }
}

/// Is the constraint one that [`ConstraintFactory::compile`] accepts? Needs no model.
///
/// # Errors
/// As [`ConstraintFactory::compile`].
pub fn check(constraint: &Constraint) -> Result<()> {
    static BYTES: LazyLock<Result<ConstraintFactory>> =
        LazyLock::new(|| ConstraintFactory::with(&ApproximateTokEnv::single_byte_env()));
    let factory = BYTES.as_ref().map_err(|error| Error::model("tokenizer", error.to_string()))?;
    factory.compile(constraint).map(drop)
}

/// Where one answer stands in its grammar. Clones are cheap and independent.
#[derive(Clone)]
pub struct Matcher {
    parser: Parser,
    mask: SimpleVob,
    tokens: TokEnv,
    budget: Option<Budget>,
}

/// How many tokens an answer has left, and how it will end if they get few.
#[derive(Clone)]
struct Budget {
    left: usize,
    /// Where the tokens began to count, until the first look; then how long the shortest answer is.
    start: Option<Parser>,
    least: usize,
    /// Look for a way to the end when so few are left.
    look_at: usize,
    /// The way to the end, last token first; empty until it has to be taken.
    way: Vec<TokenId>,
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matcher")
            .field("stopped", &self.parser.is_stopped())
            .finish_non_exhaustive()
    }
}

impl Matcher {
    /// Let the answer have this many tokens from here. When few are left, only those that lead to its
    /// end are allowed; an answer that needs more than it has is cut short all the same.
    pub fn limit(&mut self, tokens: usize) {
        self.budget = Some(Budget {
            left: tokens,
            start: Some(self.parser.clone()),
            least: 0,
            look_at: tokens / 2,
            way: Vec::new(),
        });
    }

    /// Which tokens may come next: bit `t % 32` of word `t / 32` for token `t`. At least one.
    ///
    /// # Errors
    /// [`Error::Input`] if the grammar exceeds a limit here; the answer cannot go on.
    pub fn mask(&mut self) -> Result<&[u32]> {
        self.mask =
            self.parser.compute_mask_or_eos().map_err(|error| refused(&error.to_string()))?;
        if self.mask.is_zero() {
            return Err(Error::input("constraint", "no token of this model can go on here"));
        }
        if let Some(only) = self.closing() {
            let mut way = self.tokens.tok_trie().alloc_token_set();
            way.allow_token(only);
            self.mask = way;
        }
        Ok(self.mask.as_slice())
    }

    /// The token to take on the way to the end, once it is time.
    fn closing(&mut self) -> Option<TokenId> {
        let budget = self.budget.as_mut()?;
        if budget.way.is_empty()
            && budget.left > 0
            && budget.left <= budget.look_at
            && !self.parser.is_stopped()
        {
            budget.look_at = budget.left - budget.left / 8 - 1;
            let trie = self.tokens.tok_trie();
            if let Some(start) = budget.start.take() {
                let way = closing::shortest(&start, trie, budget.left);
                budget.least = way.map_or(0, |way| way.len());
            }
            if let Some(mut way) = closing::shortest(&self.parser, trie, budget.left) {
                // Until the next look the way may grow by an element, or by a whole answer where one
                // has just ended and another may follow. The end itself is a token, too.
                let spare = budget.left.saturating_sub(way.len());
                let needed = CLOSING_SPARE_TOKENS + budget.least.max(way.len() / 2);
                if spare <= needed {
                    way.reverse();
                    budget.look_at = budget.left.saturating_sub(1);
                    budget.way = way;
                } else {
                    budget.look_at = budget.left.saturating_sub((spare - needed) / 2 + 1);
                }
            }
            // Free text that runs out of tokens is cut off, as it is without a grammar.
            let free_text = self.mask.num_set() > self.mask.len() / 2;
            if budget.way.is_empty()
                && budget.left <= CLOSING_SPARE_TOKENS + budget.least
                && !free_text
                && self.parser.is_accepting().unwrap_or(false)
            {
                return self.tokens.tok_trie().eos_tokens().first().copied();
            }
        }
        budget.way.last().copied()
    }

    /// Take a token.
    ///
    /// # Errors
    /// [`Error::Input`] if the mask does not allow it.
    pub fn commit(&mut self, token: TokenId) -> Result<()> {
        self.parser.consume_token(token).map_err(|error| refused(&error.to_string()))?;
        if let Some(budget) = &mut self.budget {
            budget.left = budget.left.saturating_sub(1);
            if budget.way.pop().is_some_and(|expected| expected != token) {
                budget.way.clear();
                budget.look_at = budget.left;
            }
        }
        Ok(())
    }

    /// How many of `tokens` could be taken one after the other.
    ///
    /// # Errors
    /// [`Error::Input`] if the grammar exceeds a limit here.
    pub fn accepts(&mut self, tokens: &[TokenId]) -> Result<usize> {
        self.parser.validate_tokens(tokens).map_err(|error| refused(&error.to_string()))
    }

    /// The only way to go on, as far as there is only one; often empty.
    pub fn forced(&mut self) -> Vec<TokenId> {
        self.parser.compute_ff_tokens()
    }

    /// Is the answer over: nothing may follow?
    pub fn is_complete(&self) -> bool {
        self.parser.is_stopped()
    }

    /// May the answer end here?
    pub fn may_end(&mut self) -> bool {
        self.parser.is_accepting().unwrap_or(false)
    }

    /// Forget the last `tokens` tokens taken.
    ///
    /// # Errors
    /// [`Error::Input`] if fewer were taken.
    pub fn rollback(&mut self, tokens: usize) -> Result<()> {
        self.parser.rollback(tokens).map_err(|error| refused(&error.to_string()))?;
        if let Some(budget) = &mut self.budget {
            budget.left += tokens;
            budget.look_at = budget.left;
            budget.way.clear();
        }
        Ok(())
    }
}

/// The model's tokens as llguidance sees them.
struct Tokens {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let encode = |text: &str| self.tokenizer.encode_further(text).unwrap_or_default();
        self.trie.tokenize_with_greedy_fallback(bytes, encode)
    }
}

/// Bytes of a token; control tokens are set apart from the text that spells them.
fn word(tokenizer: &Tokenizer, token: TokenId) -> Vec<u8> {
    let bytes = tokenizer.bytes(token);
    if bytes.len() > TRIE_BYTES_MAX {
        return Vec::new();
    }
    match tokenizer.kind(token) {
        TokenKind::Unused => Vec::new(),
        TokenKind::Control | TokenKind::Unknown => {
            [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
        }
        TokenKind::Normal | TokenKind::UserDefined | TokenKind::Byte => bytes.to_vec(),
    }
}

fn json(text: &str) -> Result<TopLevelGrammar> {
    bounded("schema", text)?;
    let schema: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| Error::input("schema", format!("not JSON: {error}")))?;
    if !schema.is_object() && !schema.is_boolean() {
        return Err(Error::input("schema", "a schema is an object or a boolean"));
    }
    Ok(TopLevelGrammar::from_json_schema(schema::narrowed(schema)?))
}

/// Refuse what is long or deep before anything recursive reads it.
fn bounded(field: &'static str, text: &str) -> Result<()> {
    if text.len() > CONSTRAINT_BYTES_MAX {
        let reason = format!("{} bytes; the most is {CONSTRAINT_BYTES_MAX}", text.len());
        return Err(Error::input(field, reason));
    }
    let mut depth = 0usize;
    for byte in text.bytes() {
        match byte {
            b'{' | b'[' | b'(' => depth += 1,
            b'}' | b']' | b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > CONSTRAINT_NESTING_MAX {
            return Err(Error::input(
                field,
                format!("nested deeper than {CONSTRAINT_NESTING_MAX}"),
            ));
        }
    }
    Ok(())
}

/// Run what follows the references of a schema by recursion, however small the caller's stack is.
fn with_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("qbtc-grammar".to_owned())
            .stack_size(COMPILE_STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|source| Error::Io { path: "thread".into(), source })?;
        thread.join().map_err(|_| Error::input("constraint", "it cannot be compiled"))
    })
}

/// llguidance's message without its state and its back-trace.
fn refused(message: &str) -> Error {
    const MESSAGE_CHARS_MAX: usize = 400;
    let message = message.split("\n<").next().unwrap_or_default().trim();
    if message.contains("NoExtensionBias") {
        return Error::input("constraint", "no text can meet it; does it only refer to itself?");
    }
    if message.contains("oneOf constraints") {
        return Error::input("schema", "the options of a oneOf may hold together; use anyOf");
    }
    let message = message.replace("Unimplemented keys", "not supported");
    let short: String = message.chars().take(MESSAGE_CHARS_MAX).collect();
    Error::input("constraint", short)
}

#[cfg(test)]
mod tests;
