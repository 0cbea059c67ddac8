//! What goes into the engine and what comes out of it.

use crate::llm::TokenId;

/// Names a request for as long as its engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// How the next token is chosen. The defaults are `OpenAI`'s: temperature 1, nothing cut off.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 picks the most likely token.
    pub temperature: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of tokens whose probability reaches this.
    pub top_p: f32,
    /// Drop tokens less likely than this share of the most likely one.
    pub min_p: f32,
    /// `OpenAI`'s: subtracted once from tokens already generated.
    pub presence_penalty: f32,
    /// `OpenAI`'s: subtracted per occurrence among the tokens already generated.
    pub frequency_penalty: f32,
    /// Divides positive (multiplies negative) logits of tokens in prompt and answer; 1 is off.
    pub repetition_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// The same seed, prompt and settings give the same answer whatever else is being served.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON that fits this schema (the text of a JSON Schema document).
    JsonSchema(String),
    /// A grammar in llguidance's dialect of Lark.
    Lark(String),
}

/// One answer to generate.
#[derive(Clone, Debug)]
pub struct GenerationRequest {
    /// Tokens of the prompt, at least one.
    pub prompt: Vec<TokenId>,
    /// Leading tokens of the prompt to keep in the prefix cache before all others (a system
    /// prompt); 0 pins nothing.
    pub pinned: usize,
    /// Most tokens to generate.
    pub new_tokens_max: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the answer; they are not part of it, and no part of one is ever sent.
    pub stop: Vec<String>,
    /// What the answer must look like.
    pub constraint: Option<Constraint>,
    /// Send the log-probability of each token and of this many alternatives.
    pub logprobs: Option<usize>,
    /// Go on past the model's end-of-answer token (benchmarks).
    pub ignore_end: bool,
}

/// A token with its log-probability under the model, before temperature and cut-offs.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: TokenId,
    /// Its bytes; may be part of a character.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// A generated token with its alternatives, when log-probabilities were asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct ChosenToken {
    /// The chosen one.
    pub chosen: TokenLogprob,
    /// The most likely ones, best first.
    pub top: Vec<TokenLogprob>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, its grammar was complete, or a stop text came.
    Stop,
    /// `new_tokens_max` or the context was reached.
    Length,
    /// The caller cancelled it.
    Cancelled,
    /// The engine could not go on; the update carries the reason.
    Failed,
}

/// Tokens and times of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, how many came from the prefix cache.
    pub cached_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// Of these, how many were drafted and accepted, or forced by a grammar.
    pub drafted_tokens: usize,
    /// From submission to the first step that worked on it, ns.
    pub queued_ns: u64,
    /// From submission to the first generated token, ns.
    pub first_token_ns: u64,
    /// From submission to the end, ns.
    pub total_ns: u64,
}

/// What happened to a request since the last look.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// The prompt is being read: `done` of `total` tokens, `cached` of them from the cache.
    Prefill {
        /// Tokens read.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
        /// Tokens found in the prefix cache.
        cached: usize,
    },
    /// More of the answer: whole characters, never the beginning of a stop text.
    Text {
        /// The text; may be empty where only log-probabilities are sent.
        text: String,
        /// Number of tokens behind it.
        tokens: usize,
        /// One entry a token, when asked for.
        logprobs: Vec<ChosenToken>,
    },
    /// The end; nothing follows.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Which stop text ended it, if one did.
        stop: Option<String>,
        /// What went wrong, if the reason is [`FinishReason::Failed`].
        error: Option<String>,
        /// What it took.
        usage: Usage,
    },
}
