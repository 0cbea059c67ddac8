//! Counters and gauges of an engine.

/// What an engine did since it started, and what it holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Requests in work, paused ones included.
    pub active: usize,
    /// Requests that wait for a place.
    pub queued: usize,
    /// Of the active ones, those that wait for their reader.
    pub paused: usize,
    /// Tokens of the prompts of all admitted requests.
    pub prompt_tokens: u64,
    /// Of these, how many came from the prefix cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Of these, how many were drafted and accepted, or forced by a grammar.
    pub drafted_tokens: u64,
    /// Tokens proposed by prompt lookup, accepted or not.
    pub proposed_tokens: u64,
    /// Tokens run through the model, recomputed and rejected ones included.
    pub processed_tokens: u64,
    /// Requests that ended.
    pub finished: u64,
    /// Times a request gave its pages back and had to be read again.
    pub preempted: u64,
    /// Steps of the model.
    pub steps: u64,
    /// Time in steps of the model, ns.
    pub step_ns: u64,
    /// Time in masks of grammars, ns.
    pub mask_ns: u64,
    /// Time in choosing tokens, masks not included, ns.
    pub sample_ns: u64,
    /// Pages of the pool.
    pub kv_pages: usize,
    /// Pages nobody holds.
    pub kv_pages_free: usize,
    /// Pages the prefix cache holds, alone or with requests.
    pub prefix_pages: usize,
    /// Of these, pinned ones.
    pub pinned_pages: usize,
}
