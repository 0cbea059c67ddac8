//! A model for the engine's tests: its logits are a hash of what its pages hold, so that a page
//! that was lost, mixed up or written too early shows up as another answer, or as a panic.

use std::collections::HashSet;
use std::sync::Arc;

use crate::llm::TokenId;
use crate::llm::engine::EngineConfig;
use crate::llm::forward::{Forward, LogitsFor, ModelShape, Segment};
use crate::llm::kv::{KvPages, KvShape, PAGE_TOKENS, PageId};
use crate::llm::language::{Grammar, Language};
use crate::llm::request::{
    ChosenToken, Constraint, FinishReason, GenerationRequest, RequestId, Sampling, Update, Usage,
};
use crate::llm::scheduler::Scheduler;
use crate::llm::sequence::Sequence;
use crate::{Error, Result};

/// Tokens 0 to 255 are bytes; then one that ends an answer, and control tokens.
pub const END: TokenId = 256;
pub const VOCAB: usize = 260;

/// f16 numbers of a token in a page: token, position, and the hash of all tokens up to it.
const CELL: usize = 8;

/// What the next token depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// On every token before it.
    Chaotic,
    /// On the last two tokens and little else: it repeats itself.
    Repetitive,
}

#[derive(Debug)]
pub struct Scripted {
    shape: ModelShape,
    style: Style,
    logits: Vec<f32>,
    /// A step with one of these tokens is an error.
    pub poison: HashSet<TokenId>,
    /// A step with one of these tokens panics.
    pub panics: HashSet<TokenId>,
    /// A step with one of these tokens has a row of logits that are not numbers.
    pub nan: HashSet<TokenId>,
    pub pause: std::time::Duration,
}

pub fn mix(hash: u64, value: u64) -> u64 {
    let mut z = (hash ^ value).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Scripted {
    pub fn new(style: Style) -> Self {
        Self::with(style, 512, 64, 32)
    }

    pub fn with(style: Style, context: usize, step: usize, rows: usize) -> Self {
        let kv = KvShape { layers: 1, kv_heads: 1, head_dim: CELL / 2 };
        Self {
            shape: ModelShape {
                vocab: VOCAB,
                context,
                kv,
                step_tokens_max: step,
                logits_rows_max: rows,
            },
            style,
            logits: Vec::new(),
            poison: HashSet::new(),
            panics: HashSet::new(),
            nan: HashSet::new(),
            pause: std::time::Duration::ZERO,
        }
    }

    /// Bytes of a pool of so many pages.
    pub fn pool(pages: usize) -> usize {
        pages * KvShape { layers: 1, kv_heads: 1, head_dim: CELL / 2 }.page_bytes()
    }

    fn row(&mut self, chain: u64, [before, last]: [TokenId; 2]) {
        let state = match self.style {
            Style::Chaotic => chain,
            // Few states, and a rare way out of the loop.
            Style::Repetitive if chain.is_multiple_of(23) => chain,
            Style::Repetitive => mix(u64::from(last % 16), u64::from(before % 4)),
        };
        let favourite = mix(state, 1) % 96 + 32;
        for token in 0..VOCAB as u64 {
            let noise = (mix(state, token + 2) >> 40) as f32 / (1_u64 << 24) as f32;
            let peak = if token == favourite { 5.0 } else { 0.0 };
            let ends = if token == u64::from(END) && chain.is_multiple_of(61) { 9.0 } else { 0.0 };
            self.logits.push(noise * 4.0 + peak + ends);
        }
    }
}

fn cell(kv: &KvPages, pages: &[PageId], position: usize) -> (TokenId, usize, u64) {
    let bytes = kv.bytes(pages[position / PAGE_TOKENS]);
    let at = position % PAGE_TOKENS * CELL * 2;
    let word =
        |offset: usize| u32::from_le_bytes(bytes[at + offset..at + offset + 4].try_into().unwrap());
    (word(0), word(4) as usize, u64::from(word(8)) | u64::from(word(12)) << 32)
}

impl Forward for Scripted {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn step(&mut self, kv: &mut KvPages, segments: &[Segment<'_>]) -> Result<&[f32]> {
        std::thread::sleep(self.pause);
        self.logits.clear();
        let tokens: usize = segments.iter().map(|segment| segment.tokens.len()).sum();
        assert!(tokens <= self.shape.step_tokens_max, "a step of {tokens} tokens");
        let mut rows = 0;
        let mut written = HashSet::new();
        for segment in segments {
            assert!(!segment.tokens.is_empty());
            let end = segment.position + segment.tokens.len();
            assert!(end <= self.shape.context && end <= segment.pages.len() * PAGE_TOKENS);
            let mut chain = 0;
            let mut last_two = [0; 2];
            for position in 0..segment.position {
                let (token, at, hash) = cell(kv, segment.pages, position);
                chain = mix(chain, u64::from(token));
                assert_eq!((at, hash), (position, chain), "position {position} was not written");
                last_two = [last_two[1], token];
            }
            for (offset, &token) in segment.tokens.iter().enumerate() {
                assert!(!self.panics.contains(&token), "token {token} is not survived");
                if self.poison.contains(&token) {
                    return Err(Error::input("tokens", format!("{token} is poison")));
                }
                let position = segment.position + offset;
                chain = mix(chain, u64::from(token));
                let page = segment.pages[position / PAGE_TOKENS];
                assert!(
                    written.insert((page, position % PAGE_TOKENS)),
                    "two sequences write the same place"
                );
                assert_eq!(kv.references(page), 1, "a shared page is read-only");
                let at = position % PAGE_TOKENS * CELL * 2;
                let bytes = &mut kv.bytes_mut(page)[at..at + CELL * 2];
                bytes[..4].copy_from_slice(&token.to_le_bytes());
                bytes[4..8].copy_from_slice(&(position as u32).to_le_bytes());
                bytes[8..].copy_from_slice(&chain.to_le_bytes());
                last_two = [last_two[1], token];
                let wanted = match segment.logits {
                    LogitsFor::Nothing => false,
                    LogitsFor::Last => position + 1 == end,
                    LogitsFor::All => true,
                };
                if wanted {
                    rows += 1;
                    self.row(chain, last_two);
                    if self.nan.contains(&token) {
                        *self.logits.last_mut().unwrap() = f32::NAN;
                    }
                }
            }
        }
        assert!(rows <= self.shape.logits_rows_max, "{rows} rows of logits");
        Ok(&self.logits)
    }
}

/// Bytes as tokens.
#[derive(Debug)]
pub struct Bytes {
    bytes: Vec<u8>,
}

impl Bytes {
    pub fn new() -> Self {
        Self { bytes: (0..=255).collect() }
    }
}

impl Language for Bytes {
    fn bytes(&self, token: TokenId) -> &[u8] {
        self.bytes.get(token as usize..=token as usize).unwrap_or_default()
    }

    fn is_control(&self, token: TokenId) -> bool {
        token >= END
    }

    fn end_tokens(&self) -> &[TokenId] {
        &[END]
    }

    /// A `Lark` "grammar" is a template: `?` is any letter, `!` dies, all else stands for itself.
    fn compile(&self, constraint: &Constraint) -> Result<Box<dyn Grammar>> {
        match constraint {
            Constraint::Lark(template) => Ok(Box::new(Template {
                letters: template.bytes().collect(),
                position: 0,
                mask: Vec::new(),
            })),
            _ => Err(Error::input("constraint", "only templates are known here")),
        }
    }
}

struct Template {
    letters: Vec<u8>,
    position: usize,
    mask: Vec<u32>,
}

impl Grammar for Template {
    fn mask(&mut self) -> Result<&[u32]> {
        self.mask.clear();
        self.mask.resize(VOCAB.div_ceil(32), 0);
        match self.letters.get(self.position) {
            None | Some(b'!') => {}
            Some(b'?') => {
                for letter in b'a'..=b'z' {
                    self.mask[usize::from(letter) / 32] |= 1 << (letter % 32);
                }
            }
            Some(byte) => self.mask[usize::from(*byte) / 32] |= 1 << (byte % 32),
        }
        Ok(&self.mask)
    }

    fn commit(&mut self, token: TokenId) -> Result<()> {
        self.mask()?;
        if self.mask[token as usize / 32] >> (token % 32) & 1 == 0 {
            return Err(Error::input("constraint", format!("token {token} does not fit")));
        }
        self.position += 1;
        Ok(())
    }

    fn forced(&mut self) -> Vec<TokenId> {
        self.letters[self.position..]
            .iter()
            .take_while(|&&byte| byte != b'?' && byte != b'!')
            .map(|&byte| TokenId::from(byte))
            .collect()
    }

    fn is_complete(&self) -> bool {
        self.position == self.letters.len()
    }
}

/// Everything one request got.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub text: String,
    pub tokens: usize,
    pub logprobs: Vec<ChosenToken>,
    pub reason: Option<FinishReason>,
    pub stop: Option<String>,
    pub error: Option<String>,
    pub usage: Usage,
    pub prefills: usize,
}

impl Answer {
    pub fn take(&mut self, update: Update) {
        assert!(self.reason.is_none(), "nothing follows the end");
        match update {
            Update::Prefill { done, total, cached } => {
                assert!(cached <= done && done <= total && self.text.is_empty());
                self.prefills += 1;
            }
            Update::Text { text, tokens, logprobs } => {
                self.text.push_str(&text);
                self.tokens += tokens;
                self.logprobs.extend(logprobs);
            }
            Update::Finished { reason, stop, error, usage } => {
                self.reason = Some(reason);
                self.stop = stop;
                self.error = error;
                self.usage = usage;
            }
        }
    }

    /// What must not depend on the surroundings.
    pub fn essence(&self) -> (&str, &[ChosenToken], Option<FinishReason>, Option<&str>, usize) {
        let stop = self.stop.as_deref();
        (&self.text, &self.logprobs, self.reason, stop, self.usage.completion_tokens)
    }
}

pub fn request(prompt: &[TokenId], new_tokens_max: usize) -> GenerationRequest {
    GenerationRequest {
        prompt: prompt.to_vec(),
        pinned: 0,
        new_tokens_max,
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        stop: Vec::new(),
        constraint: None,
        logprobs: None,
        ignore_end: false,
    }
}

pub fn prompt(seed: u64, length: usize) -> Vec<TokenId> {
    (0..length as u64).map(|index| (mix(seed, index) % 96 + 32) as TokenId).collect()
}

/// A scheduler over a scripted model.
pub fn scheduler(forward: Scripted, pages: usize, mut config: EngineConfig) -> Scheduler {
    config.kv_bytes_max = Scripted::pool(pages);
    Scheduler::new(Box::new(forward), Arc::new(Bytes::new()), config).unwrap()
}

/// A request, checked against `scheduler`'s limits.
pub fn sequence(id: u64, request: &GenerationRequest, pages: usize) -> Sequence {
    let shape = Scripted::new(Style::Chaotic).shape;
    Sequence::new(RequestId(id), request.clone(), &shape, pages, &Bytes::new()).unwrap()
}

/// The answer of a request that has a scheduler for itself, with nothing cached and no guesses.
pub fn alone(style: Style, pages: usize, request: &GenerationRequest) -> Answer {
    let config = EngineConfig { speculation: false, ..EngineConfig::default() };
    let mut scheduler = scheduler(Scripted::new(style), pages, config);
    scheduler.submit(sequence(1, request, pages));
    let mut answer = Answer::default();
    while answer.reason.is_none() {
        scheduler.step();
        for (_, update) in scheduler.updates.drain(..) {
            answer.take(update);
        }
    }
    answer
}
