//! Text to tokens and back, from a model file's own vocabulary.
//!
//! The merging of byte pairs is the `tokenizers` crate's. Cutting text into words is ours (see
//! [`Split`]): the crate's own pipeline keeps an alignment of every byte and runs regular
//! expressions that stop without a word when they give up; ours is linear and several times faster.
//!
//! Nothing is normalised: what is encoded comes back byte for byte, but for bytes that the
//! vocabulary has no token for (`SmolLM2` lacks a few control characters); they are left out, as
//! llama.cpp does.

mod split;
mod vocabulary;

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::Model;
use tokenizers::models::bpe::BPE;

use crate::llm::TokenId;
use crate::llm::gguf::Gguf;
use crate::{Error, Result};

pub use split::Split;
pub use vocabulary::{Infill, TokenKind, Vocabulary};

/// Longest word that is merged as a whole. A longer one (a megabyte without a space) is cut, so
/// that a hostile text takes memory in proportion to this.
pub const WORD_BYTES_MAX: usize = 1 << 16;

/// Most tokens of a vocabulary.
pub const VOCABULARY_TOKENS_MAX: usize = 1 << 20;

/// Longest token as the file spells it, bytes; merging by score takes a long one apart everywhere.
pub const TOKEN_BYTES_MAX: usize = 2048;

/// Breaks the name of a control token that a person wrote, so that [`SpecialTokens::Parse`] does not
/// find it; then it is taken out. Unicode keeps this code point for such inner uses.
pub const SHIELD: char = '\u{FDD0}';

/// The space of `llama` vocabularies.
const LOWER_BLOCK: char = '\u{2581}';

/// Control tokens that end an answer, by the names that models give them.
const ENDS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<EOT>",
    "</s>",
];

/// What to do with a text that spells a control token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// It is that token: prompts that a template wrote.
    Parse,
    /// It is text like any other: what people write.
    AsText,
}

/// Turns text into tokens of one model and back. Read-only; threads share it.
#[derive(Debug)]
pub struct Tokenizer {
    scheme: Scheme,
    bpe: BPE,
    special: Option<(AhoCorasick, Vec<TokenId>)>,
    /// Bytes of token `t`: `text[starts[t]..starts[t + 1]]`.
    text: Vec<u8>,
    starts: Vec<u32>,
    kinds: Vec<TokenKind>,
    ends: Vec<TokenId>,
    bos: Option<TokenId>,
    beginning: Option<TokenId>,
    eos: Option<TokenId>,
    infill: Option<Infill>,
}

/// How text becomes words of the alphabet that the merges are written in.
#[derive(Debug)]
enum Scheme {
    /// Bytes as printable characters; `None` where the vocabulary lacks the byte.
    Bytes { split: Split, letters: Box<[Option<char>; 256]> },
    /// Spaces as [`LOWER_BLOCK`]; `words` if no token spans a space after a letter.
    Pieces { space_prefix: bool, words: bool },
}

impl Tokenizer {
    /// The tokenizer of a model file.
    ///
    /// # Errors
    /// As [`Vocabulary::from_gguf`] and [`Tokenizer::new`].
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        Self::new(&Vocabulary::from_gguf(file)?)
    }

    /// A tokenizer of this vocabulary.
    ///
    /// # Errors
    /// [`Error::Model`] if the kind of tokenizer or its way to cut words is not supported, or the
    /// vocabulary contradicts itself.
    pub fn new(vocabulary: &Vocabulary) -> Result<Self> {
        let count = vocabulary.tokens.len();
        check(vocabulary, count)?;
        let kinds = if vocabulary.kinds.is_empty() {
            vec![TokenKind::Normal; count]
        } else {
            vocabulary.kinds.clone()
        };
        // Control tokens are not reachable by merging: only `SpecialTokens::Parse` makes them.
        let reachable = |id: usize| !matches!(kinds[id], TokenKind::Control | TokenKind::Unused);
        let ids = (0..count).rev().filter(|&id| reachable(id));
        let by_text: ahash::AHashMap<String, u32> =
            ids.map(|id| (vocabulary.tokens[id].clone(), id as u32)).collect();

        let (scheme, builder, default_bos) = match vocabulary.model.as_str() {
            "gpt2" => {
                let split = Split::named(&vocabulary.pre)?;
                let letters = Box::new(
                    alphabet().map(|c| by_text.contains_key(c.to_string().as_str()).then_some(c)),
                );
                let merges = vocabulary
                    .merges
                    .iter()
                    .map(|merge| pair(merge))
                    .collect::<Result<Vec<_>>>()?;
                let whole_words = split == Split::Llama3;
                let builder =
                    BPE::builder().vocab_and_merges(by_text, merges).ignore_merges(whole_words);
                (Scheme::Bytes { split, letters }, builder, whole_words)
            }
            "llama" => {
                let merges = merges_by_score(vocabulary, &by_text)?;
                let inside =
                    |token: &String| token.trim_start_matches(LOWER_BLOCK).contains(LOWER_BLOCK);
                let words = !by_text.keys().any(inside);
                let unknown = vocabulary.unknown.map(|id| vocabulary.tokens[id as usize].clone());
                let mut builder = BPE::builder()
                    .vocab_and_merges(by_text, merges)
                    .byte_fallback(true)
                    .fuse_unk(true);
                if let Some(unknown) = unknown {
                    builder = builder.unk_token(unknown);
                }
                (
                    Scheme::Pieces {
                        space_prefix: vocabulary.add_space_prefix.unwrap_or(true),
                        words,
                    },
                    builder,
                    true,
                )
            }
            other => {
                return Err(Error::model(
                    "tokenizer.ggml.model",
                    format!("`{other}` is not supported; supported are gpt2 and llama"),
                ));
            }
        };
        let bpe = builder
            .build()
            .map_err(|source| Error::model("tokenizer.ggml.merges", source.to_string()))?;
        let (text, starts) = spelled(&scheme, &vocabulary.tokens, &kinds);
        let adds_bos = vocabulary.add_bos.unwrap_or(default_bos);
        Ok(Self {
            special: special(&vocabulary.tokens, &kinds)?,
            ends: ends(vocabulary, &kinds),
            bos: vocabulary.bos.filter(|_| adds_bos),
            beginning: vocabulary.bos,
            eos: vocabulary.eos,
            infill: vocabulary.infill,
            scheme,
            bpe,
            text,
            starts,
            kinds,
        })
    }

    /// The tokens of `text`. Time and memory grow with its length, whatever it holds.
    ///
    /// # Errors
    /// [`Error::Input`] if the vocabulary cannot say it at all.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<TokenId>> {
        let mut tokens = Vec::with_capacity(text.len() / 3);
        let mut from = 0;
        // `llama`: what follows the beginning or a control token gets the space.
        let mut fresh = true;
        if let (SpecialTokens::Parse, Some((finder, ids))) = (special, &self.special) {
            for found in finder.find_iter(text) {
                self.encode_text(&unshielded(&text[from..found.start()]), fresh, &mut tokens)?;
                tokens.push(ids[found.pattern().as_usize()]);
                from = found.end();
                fresh = true;
            }
        }
        let rest = if special == SpecialTokens::Parse {
            unshielded(&text[from..])
        } else {
            text[from..].into()
        };
        self.encode_text(&rest, fresh, &mut tokens)?;
        Ok(tokens)
    }

    /// The tokens of text that goes on from other text: nothing is put before it.
    pub(crate) fn encode_further(&self, text: &str) -> Result<Vec<TokenId>> {
        let mut tokens = Vec::with_capacity(text.len() / 3);
        self.encode_text(text, false, &mut tokens)?;
        Ok(tokens)
    }

    fn encode_text(&self, text: &str, fresh: bool, tokens: &mut Vec<TokenId>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let mut outcome = Ok(());
        let mut spelled = String::new();
        let mut merge = |word: &str| {
            if outcome.is_ok() && !word.is_empty() {
                outcome = self.merge(word, tokens);
            }
        };
        match &self.scheme {
            Scheme::Bytes { split, letters } => split.words(text, |word| {
                spelled.clear();
                for byte in word.bytes() {
                    match letters[byte as usize] {
                        Some(letter) => spelled.push(letter),
                        // A byte that has no token still keeps its neighbours apart.
                        None => merge(std::mem::take(&mut spelled).as_str()),
                    }
                }
                merge(&spelled);
            }),
            Scheme::Pieces { space_prefix, words } => {
                if *space_prefix && fresh {
                    spelled.push(LOWER_BLOCK);
                }
                spelled.extend(text.chars().map(|c| if c == ' ' { LOWER_BLOCK } else { c }));
                if *words { pieces(&spelled, merge) } else { merge(&spelled) }
            }
        }
        outcome
    }

    fn merge(&self, mut word: &str, tokens: &mut Vec<TokenId>) -> Result<()> {
        while !word.is_empty() {
            let mut cut = WORD_BYTES_MAX.min(word.len());
            while !word.is_char_boundary(cut) {
                cut -= 1;
            }
            let (head, tail) = word.split_at(cut);
            let merged = self
                .bpe
                .tokenize(head)
                .map_err(|source| Error::input("text", source.to_string()))?;
            tokens.extend(merged.iter().map(|token| token.id));
            word = tail;
        }
        Ok(())
    }

    /// The bytes of a token as they stand in an answer: part of a character at times. Control tokens
    /// give their name.
    ///
    /// # Panics
    /// If the token is not of this vocabulary.
    pub fn bytes(&self, token: TokenId) -> &[u8] {
        let at = token as usize;
        &self.text[self.starts[at] as usize..self.starts[at + 1] as usize]
    }

    /// The bytes behind `tokens`; control tokens have none unless they are kept.
    ///
    /// # Panics
    /// If a token is not of this vocabulary.
    pub fn decode(&self, tokens: &[TokenId], keep_control: bool) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::with_capacity(tokens.len() * 4);
        for &token in tokens {
            if keep_control || !self.is_control(token) {
                bytes.extend_from_slice(self.bytes(token));
            }
        }
        let added = matches!(self.scheme, Scheme::Pieces { space_prefix: true, .. });
        if added && bytes.first() == Some(&b' ') {
            bytes.remove(0);
        }
        bytes
    }

    /// Is it structure rather than text?
    ///
    /// # Panics
    /// If the token is not of this vocabulary.
    pub fn is_control(&self, token: TokenId) -> bool {
        matches!(
            self.kinds[token as usize],
            TokenKind::Control | TokenKind::Unknown | TokenKind::Unused
        )
    }

    /// What a token is for.
    ///
    /// # Panics
    /// If the token is not of this vocabulary.
    pub fn kind(&self, token: TokenId) -> TokenKind {
        self.kinds[token as usize]
    }

    /// The control token of this name.
    pub fn control(&self, name: &str) -> Option<TokenId> {
        let (_, ids) = self.special.as_ref()?;
        ids.iter().copied().find(|&id| self.bytes(id) == name.as_bytes())
    }

    /// Tokens that end an answer.
    pub fn end_tokens(&self) -> &[TokenId] {
        &self.ends
    }

    /// The token to put before a text, if the model wants one.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// The token that begins a text, as the file says, wanted or not.
    pub fn beginning(&self) -> Option<TokenId> {
        self.beginning
    }

    /// The token that ends a text, as the file says.
    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    /// The tokens around the parts of an infill prompt, if the model has them.
    pub fn infill(&self) -> Option<Infill> {
        self.infill
    }

    /// Number of tokens.
    pub fn vocab(&self) -> usize {
        self.kinds.len()
    }
}

fn unshielded(text: &str) -> Cow<'_, str> {
    if text.contains(SHIELD) { text.replace(SHIELD, "").into() } else { text.into() }
}

fn check(vocabulary: &Vocabulary, count: usize) -> Result<()> {
    if count == 0 || count > VOCABULARY_TOKENS_MAX {
        let reason = format!("{count} tokens; there must be 1 to {VOCABULARY_TOKENS_MAX}");
        return Err(Error::model("tokenizer.ggml.tokens", reason));
    }
    for (field, length) in [
        ("tokenizer.ggml.token_type", vocabulary.kinds.len()),
        ("tokenizer.ggml.scores", vocabulary.scores.len()),
    ] {
        if length != 0 && length != count {
            return Err(Error::model(field, format!("{length} values for {count} tokens")));
        }
    }
    if let Some(token) = vocabulary.tokens.iter().position(|text| text.len() > TOKEN_BYTES_MAX) {
        let reason = format!("token {token} has more than {TOKEN_BYTES_MAX} bytes");
        return Err(Error::model("tokenizer.ggml.tokens", reason));
    }
    let infill =
        vocabulary.infill.map_or([None; 3], |i| [Some(i.prefix), Some(i.suffix), Some(i.middle)]);
    let named = [vocabulary.bos, vocabulary.eos, vocabulary.eot, vocabulary.unknown]
        .into_iter()
        .chain(infill);
    if let Some(id) = named.flatten().find(|&id| id as usize >= count) {
        return Err(Error::model(
            "tokenizer.ggml",
            format!("special token {id} of a vocabulary of {count}"),
        ));
    }
    Ok(())
}

/// The printable character that stands for each byte in `gpt2` vocabularies.
fn alphabet() -> [char; 256] {
    let mut spare = 256..;
    std::array::from_fn(|byte| match byte as u8 {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte as u8),
        _ => spare.next().and_then(char::from_u32).expect("256 spare characters"),
    })
}

fn pair(merge: &str) -> Result<(String, String)> {
    merge
        .split_once(' ')
        .map(|(left, right)| (left.to_owned(), right.to_owned()))
        .ok_or_else(|| Error::model("tokenizer.ggml.merges", format!("`{merge}` is not a pair")))
}

/// Every way to make a token of two others, best score first: what scores say about merging.
fn merges_by_score(
    vocabulary: &Vocabulary,
    by_text: &ahash::AHashMap<String, u32>,
) -> Result<Vec<(String, String)>> {
    if vocabulary.scores.len() != vocabulary.tokens.len() {
        return Err(Error::model(
            "tokenizer.ggml.scores",
            "a llama vocabulary needs a score for each token",
        ));
    }
    let mut merges = Vec::new();
    for (token, &id) in by_text {
        let score = vocabulary.scores[id as usize];
        if !score.is_finite() {
            return Err(Error::model("tokenizer.ggml.scores", format!("token {id} has {score}")));
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if by_text.contains_key(left) && by_text.contains_key(right) {
                merges.push((score, id, at, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    Ok(merges.into_iter().map(|(.., left, right)| (left.to_owned(), right.to_owned())).collect())
}

/// Call `piece` with each run of spaces and the letters after it.
fn pieces<'t>(text: &'t str, mut piece: impl FnMut(&'t str)) {
    let mut from = 0;
    let mut before = LOWER_BLOCK;
    for (at, c) in text.char_indices() {
        if c == LOWER_BLOCK && before != LOWER_BLOCK {
            piece(&text[from..at]);
            from = at;
        }
        before = c;
    }
    piece(&text[from..]);
}

/// The bytes of all tokens, one after the other, and where each begins.
fn spelled(scheme: &Scheme, tokens: &[String], kinds: &[TokenKind]) -> (Vec<u8>, Vec<u32>) {
    let bytes: ahash::AHashMap<char, u8> = alphabet().into_iter().zip(0..=u8::MAX).collect();
    let mut text = Vec::with_capacity(tokens.len() * 8);
    let mut starts = vec![0];
    for (token, kind) in tokens.iter().zip(kinds) {
        let plain = match (scheme, kind) {
            (_, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown) => None,
            (Scheme::Bytes { .. }, _) => {
                token.chars().map(|c| bytes.get(&c).copied()).collect::<Option<Vec<u8>>>()
            }
            (Scheme::Pieces { .. }, TokenKind::Byte) => token
                .strip_prefix("<0x")
                .and_then(|hex| u8::from_str_radix(hex.trim_end_matches('>'), 16).ok())
                .map(|byte| vec![byte]),
            (Scheme::Pieces { .. }, _) => Some(token.replace(LOWER_BLOCK, " ").into_bytes()),
        };
        text.extend_from_slice(plain.as_deref().unwrap_or(token.as_bytes()));
        starts.push(text.len() as u32);
    }
    (text, starts)
}

fn special(tokens: &[String], kinds: &[TokenKind]) -> Result<Option<(AhoCorasick, Vec<TokenId>)>> {
    let named = |&id: &usize| {
        let kinds_named =
            matches!(kinds[id], TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown);
        kinds_named && !tokens[id].is_empty()
    };
    let ids: Vec<usize> = (0..tokens.len()).filter(named).collect();
    if ids.is_empty() {
        return Ok(None);
    }
    let finder = AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(ids.iter().map(|&id| &tokens[id]))
        .map_err(|source| Error::model("tokenizer.ggml.token_type", source.to_string()))?;
    Ok(Some((finder, ids.into_iter().map(|id| id as TokenId).collect())))
}

fn ends(vocabulary: &Vocabulary, kinds: &[TokenKind]) -> Vec<TokenId> {
    let mut ends: Vec<TokenId> = vocabulary.eos.into_iter().chain(vocabulary.eot).collect();
    let by_name = |&id: &usize| {
        kinds[id] == TokenKind::Control && ENDS.contains(&vocabulary.tokens[id].as_str())
    };
    ends.extend((0..kinds.len()).filter(by_name).map(|id| id as TokenId));
    ends.sort_unstable();
    ends.dedup();
    ends
}

#[cfg(test)]
mod tests;
