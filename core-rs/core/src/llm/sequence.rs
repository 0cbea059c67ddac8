//! One request in work: its tokens, where its keys and values are, and how its answer grows.

use std::collections::VecDeque;
use std::time::Instant;

use crate::llm::TokenId;
use crate::llm::forward::ModelShape;
use crate::llm::kv::{PAGE_TOKENS, PageId};
use crate::llm::language::{Grammar, Language};
use crate::llm::output::Output;
use crate::llm::prefix::NodeId;
use crate::llm::request::{
    ChosenToken, FinishReason, GenerationRequest, RequestId, TokenLogprob, Usage,
};
use crate::llm::sampler::{self, Sampler, Scratch, TOP_LOGPROBS_MAX};
use crate::llm::speculation::PromptLookup;
use crate::llm::stats::EngineStats;
use crate::{Error, Result};

/// Tokens of an answer, beyond its prompt, that admission promises pages for.
const PROMISED_TOKENS: usize = 2 * PAGE_TOKENS;

/// Why a sequence ended.
#[derive(Debug)]
pub struct End {
    pub(super) reason: FinishReason,
    pub(super) stop: Option<String>,
    pub(super) error: Option<String>,
}

impl End {
    pub(super) fn new(reason: FinishReason) -> Self {
        Self { reason, stop: None, error: None }
    }

    pub(super) fn failed(error: &Error) -> Self {
        Self { reason: FinishReason::Failed, stop: None, error: Some(error.to_string()) }
    }
}

/// A request in work.
#[expect(clippy::struct_excessive_bools, reason = "conditions with a cause of their own each")]
pub struct Sequence {
    pub(super) id: RequestId,
    pub(super) prompt_len: usize,
    /// Prompt, then answer.
    pub(super) tokens: Vec<TokenId>,
    /// Where the answer ends at the latest: length of `tokens`.
    pub(super) tokens_max: usize,
    pub(super) pinned: usize,
    pub(super) logprobs: Option<usize>,
    pub(super) ignore_end: bool,
    pub(super) sampler: Sampler,
    pub(super) grammar: Option<Box<dyn Grammar>>,
    pub(super) output: Output,

    pub(super) pages: Vec<PageId>,
    /// Tokens whose keys and values are in `pages`.
    pub(super) computed: usize,
    /// Number of tokens given to the output; the first of the answer is `prompt_len`.
    pub(super) spoken: usize,
    /// Tokens the grammar forces, where each needs logits for its log-probability.
    pub(super) forced: VecDeque<TokenId>,
    /// Its last whole block in the prefix cache, and how many there are.
    pub(super) node: NodeId,
    pub(super) blocks: usize,
    /// A sequence whose prompt begins alike and is being read, and how far to wait for it.
    pub(super) waits_for: Option<(RequestId, usize)>,

    /// Its reader is behind: not decoded until told otherwise.
    pub(super) paused: bool,
    /// Cancelled; only its prompt is read, for the cache.
    pub(super) abandoned: bool,
    /// It lost its pages in this step.
    pub(super) preempted: bool,
    /// Tokens to compute in this step.
    pub(super) planned: usize,
    /// Guessed tokens to compute behind them.
    pub(super) draft: Vec<TokenId>,
    /// Where the guesses come from; made at the first one.
    pub(super) lookup: Option<PromptLookup>,
    pub(super) end: Option<End>,

    pub(super) cached: usize,
    pub(super) drafted: usize,
    pub(super) submitted: Instant,
    pub(super) started: Option<Instant>,
    pub(super) first_token: Option<Instant>,
}

impl std::fmt::Debug for Sequence {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Sequence")
            .field("id", &self.id)
            .field("prompt_len", &self.prompt_len)
            .field("tokens", &self.tokens.len())
            .field("computed", &self.computed)
            .field("pages", &self.pages.len())
            .field("paused", &self.paused)
            .field("abandoned", &self.abandoned)
            .finish_non_exhaustive()
    }
}

impl Sequence {
    /// Check a request and prepare it. Grammars are compiled here, on the caller's thread.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty prompt, a token outside the language, settings out of range,
    /// or an invalid constraint; [`Error::ContextLength`] if the prompt leaves no room for an
    /// answer.
    pub fn new(
        id: RequestId,
        request: GenerationRequest,
        shape: &ModelShape,
        kv_pages: usize,
        language: &dyn Language,
    ) -> Result<Self> {
        let prompt_len = request.prompt.len();
        if prompt_len == 0 {
            return Err(Error::input("prompt", "it has no tokens"));
        }
        let context = shape.context.min(kv_pages * PAGE_TOKENS);
        if prompt_len >= context {
            return Err(Error::ContextLength { tokens: prompt_len, tokens_max: context });
        }
        if let Some(token) = request.prompt.iter().find(|&&token| token as usize >= shape.vocab) {
            return Err(Error::input(
                "prompt",
                format!("token {token} is outside the vocabulary of {}", shape.vocab),
            ));
        }
        if let Some(top) = request.logprobs.filter(|&top| top > TOP_LOGPROBS_MAX) {
            return Err(Error::input(
                "logprobs",
                format!("{top} alternatives; at most {TOP_LOGPROBS_MAX} are reported"),
            ));
        }
        let mut sampler = Sampler::new(&request.sampling, shape.vocab)?;
        sampler.observe_prompt(&request.prompt);
        let output = Output::new(&request.stop)?;
        let tokens_max = prompt_len.saturating_add(request.new_tokens_max).min(context);
        let grammar = match &request.constraint {
            Some(constraint) => {
                let mut grammar = language.compile(constraint)?;
                grammar.limit(tokens_max - prompt_len);
                Some(grammar)
            }
            None => None,
        };
        Ok(Self {
            id,
            prompt_len,
            tokens: request.prompt,
            tokens_max,
            pinned: request.pinned.min(prompt_len),
            logprobs: request.logprobs,
            ignore_end: request.ignore_end,
            sampler,
            grammar,
            output,
            pages: Vec::new(),
            computed: 0,
            spoken: prompt_len,
            forced: VecDeque::new(),
            node: NodeId::ROOT,
            blocks: 0,
            waits_for: None,
            paused: false,
            abandoned: false,
            preempted: false,
            planned: 0,
            draft: Vec::new(),
            lookup: None,
            end: None,
            cached: 0,
            drafted: 0,
            submitted: Instant::now(),
            started: None,
            first_token: None,
        })
    }

    pub(super) fn is_prefilling(&self) -> bool {
        self.computed < self.prompt_len
    }

    pub(super) fn is_runnable(&self) -> bool {
        !self.paused && !self.preempted && self.end.is_none()
    }

    /// Pages this sequence was promised in all.
    pub(super) fn promised_pages(&self) -> usize {
        self.tokens_max.min(self.tokens.len() + PROMISED_TOKENS).div_ceil(PAGE_TOKENS)
    }

    pub(super) fn usage(&self) -> Usage {
        let ns = |at: Instant| at.duration_since(self.submitted).as_nanos() as u64;
        Usage {
            prompt_tokens: self.prompt_len,
            cached_tokens: self.cached,
            completion_tokens: self.spoken - self.prompt_len,
            drafted_tokens: self.drafted,
            queued_ns: self.started.map_or(0, ns),
            first_token_ns: self.first_token.map_or(0, ns),
            total_ns: ns(Instant::now()),
        }
    }

    /// Put the tokens that the grammar forces behind the known ones.
    pub(super) fn append_forced(&mut self) -> Result<()> {
        let Some(grammar) = &mut self.grammar else { return Ok(()) };
        if !self.forced.is_empty() || grammar.is_complete() {
            return Ok(());
        }
        let forced = grammar.forced();
        if self.logprobs.is_some() {
            self.forced.extend(forced);
            return Ok(());
        }
        for token in forced {
            if self.tokens.len() >= self.tokens_max {
                break;
            }
            grammar.commit(token)?;
            self.sampler.observe(token);
            self.tokens.push(token);
            self.drafted += 1;
        }
        Ok(())
    }

    /// Give known tokens of the answer to the output.
    fn speak(&mut self, language: &dyn Language, mut chosen: Option<ChosenToken>) -> bool {
        while self.spoken < self.tokens.len() {
            let token = self.tokens[self.spoken];
            self.spoken += 1;
            self.first_token.get_or_insert_with(Instant::now);
            if !self.ignore_end && language.end_tokens().contains(&token) {
                self.end = Some(End::new(FinishReason::Stop));
                return true;
            }
            let bytes = if language.is_control(token) { &[] } else { language.bytes(token) };
            if let Some(stop) = self.output.push(bytes, chosen.take()) {
                self.end = Some(End { stop: Some(stop), ..End::new(FinishReason::Stop) });
                return true;
            }
        }
        if self.grammar.as_ref().is_some_and(|grammar| grammar.is_complete()) {
            self.end = Some(End::new(FinishReason::Stop));
        } else if self.tokens.len() >= self.tokens_max {
            self.end = Some(End::new(FinishReason::Length));
        }
        self.end.is_some()
    }

    /// Choose the next token from a row of logits.
    fn choose(
        &mut self,
        row: &[f32],
        scratch: &mut Scratch,
        stats: &mut EngineStats,
    ) -> Result<TokenId> {
        if let Some(token) = self.forced.pop_front() {
            self.drafted += 1;
            return Ok(token);
        }
        let position = self.tokens.len() as u64;
        let mask = match &mut self.grammar {
            Some(grammar) => {
                let begin = Instant::now();
                let mask = grammar.mask()?;
                stats.mask_ns += begin.elapsed().as_nanos() as u64;
                Some(mask)
            }
            None => None,
        };
        let constrained = mask.is_some();
        let chosen = self.sampler.choose(row, mask, position, scratch)?;
        chosen.ok_or_else(|| {
            let reason = if constrained {
                "the grammar and the logit bias allow no token here"
            } else {
                "the logit bias allows no token"
            };
            Error::input("constraint", reason)
        })
    }

    /// Take the rows of logits of this step: sample, and accept guessed tokens as long as they are
    /// what was sampled.
    pub(super) fn advance(
        &mut self,
        rows: &[f32],
        vocab: usize,
        language: &dyn Language,
        scratch: &mut Scratch,
        stats: &mut EngineStats,
    ) -> Result<()> {
        if self.speak(language, None) {
            return Ok(());
        }
        let draft = std::mem::take(&mut self.draft);
        let mut right = 0;
        for (index, row) in rows.chunks_exact(vocab).enumerate() {
            let token = self.choose(row, scratch, stats)?;
            let chosen = match self.logprobs {
                Some(top) => Some(chosen_token(row, token, top, language, scratch)?),
                None => None,
            };
            if let Some(grammar) = &mut self.grammar {
                grammar.commit(token)?;
            }
            self.sampler.observe(token);
            self.tokens.push(token);
            let accepted = draft.get(index) == Some(&token);
            if accepted {
                self.drafted += 1;
                self.computed += 1;
                right += 1;
            }
            if self.speak(language, chosen) {
                break;
            }
            if !accepted {
                self.append_forced()?;
                self.speak(language, None);
                break;
            }
        }
        if let Some(lookup) = &mut self.lookup {
            lookup.learn(draft.len(), right);
        }
        self.draft = draft;
        self.draft.clear();
        Ok(())
    }
}

fn chosen_token(
    row: &[f32],
    token: TokenId,
    top: usize,
    language: &dyn Language,
    scratch: &mut Scratch,
) -> Result<ChosenToken> {
    let describe =
        |token, logprob| TokenLogprob { token, bytes: language.bytes(token).to_vec(), logprob };
    let (logprob, top) = sampler::logprobs(row, token, top, scratch)?;
    Ok(ChosenToken {
        chosen: describe(token, logprob),
        top: top.into_iter().map(|(token, logprob)| describe(token, logprob)).collect(),
    })
}
