//! Who runs in the next step, with how many tokens, on which pages. One thread, no waiting: the
//! engine's thread calls [`Scheduler::step`] as long as there is work.
//!
//! - A **sequence** is a request in work: known tokens, of which the first `computed` have keys and
//!   values in its pages. A prompt being read, a decoded token and tokens forced by a grammar are
//!   all the same thing: known tokens not computed yet. When none is left, the next one is sampled.
//! - A step takes one token of every sequence that decodes, then fills up with prompts in the order
//!   of their arrival: with as many tokens as keep the time between two tokens of the decoding ones
//!   near its target, or with the longest step where nobody decodes.
//! - Admission promises pages for the prompt and some of the answer. Where pages run out after all,
//!   cached prefixes go first, then sequences that wait for a slow reader, then the youngest: it
//!   gives its pages back and is read again later, with the same result (a step's result does not
//!   depend on how a sequence was cut into steps). The oldest always goes on, so all of them end.
//! - A prompt that shares a prefix with one being read waits for it instead of reading it twice.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use crate::llm::TokenId;
use crate::llm::engine::EngineConfig;
use crate::llm::forward::{Forward, LogitsFor, ModelShape, Segment};
use crate::llm::kv::{KvPages, PAGE_TOKENS, PageId};
use crate::llm::language::Language;
use crate::llm::prefix::{NodeId, PrefixCache, common_prefix};
use crate::llm::request::{FinishReason, RequestId, Update, Usage};
use crate::llm::sampler::Scratch;
use crate::llm::sequence::{End, Sequence};
use crate::llm::snapshot::{self, Restored, Saved, Writer};
use crate::llm::speculation::{DRAFT_TOKENS_MAX, PromptLookup, SPECULATION_BATCH_MAX};
use crate::llm::stats::EngineStats;
use crate::{Error, Result};

/// Fewest tokens of prompts in a step beside decoding sequences.
const PREFILL_TOKENS_MIN: usize = 16;
/// Most forced tokens of one sequence in one step.
const FORCED_TOKENS_MAX: usize = 64;
/// Cancelled prompts that are read to their end for the cache, at the same time.
const ABANDONED_MAX: usize = 4;

/// All sequences of an engine, its pages and its prefix cache.
pub struct Scheduler {
    forward: Box<dyn Forward>,
    language: Arc<dyn Language>,
    config: EngineConfig,
    shape: ModelShape,
    kv: KvPages,
    prefix: PrefixCache,
    /// Both in the order of arrival.
    waiting: VecDeque<Sequence>,
    active: Vec<Sequence>,
    scratch: Scratch,
    stats: EngineStats,
    saving: Option<Writer>,
    savers: Vec<SyncSender<Result<Saved>>>,
    /// Recent time of one token in a step with prompts, ns.
    token_ns: f64,
    /// What happened since the caller last took it.
    pub updates: Vec<(RequestId, Update)>,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Scheduler")
            .field("waiting", &self.waiting)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}

impl Scheduler {
    /// A scheduler with its pages.
    ///
    /// # Errors
    /// [`Error::Input`] if the memory does not hold one page, or the model takes no tokens.
    pub fn new(
        forward: Box<dyn Forward>,
        language: Arc<dyn Language>,
        mut config: EngineConfig,
    ) -> Result<Self> {
        let shape = forward.shape().clone();
        if shape.step_tokens_max == 0 || shape.logits_rows_max == 0 || shape.vocab == 0 {
            return Err(Error::input("forward", "a step must take at least one token"));
        }
        // Half of a step stays for prompts.
        let rows = shape.logits_rows_max.min(shape.step_tokens_max.div_ceil(2));
        config.active_max = config.active_max.clamp(1, rows);
        let kv = KvPages::new(shape.kv, config.kv_bytes_max)?;
        let page_bytes = shape.kv.page_bytes();
        let prefix = PrefixCache::new(
            config.prefix_bytes_max / page_bytes,
            (config.pinned_bytes_max / page_bytes).min(kv.capacity() / 2),
        );
        let mut scheduler = Self {
            forward,
            language,
            config,
            shape,
            kv,
            prefix,
            waiting: VecDeque::new(),
            active: Vec::new(),
            scratch: Scratch::default(),
            stats: EngineStats::default(),
            saving: None,
            savers: Vec::new(),
            token_ns: 0.0,
            updates: Vec::new(),
        };
        scheduler.stats.kv_pages = scheduler.kv.capacity();
        Ok(scheduler)
    }

    /// Pages of the pool.
    pub fn kv_pages(&self) -> usize {
        self.kv.capacity()
    }

    /// Counters and gauges now.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            active: self.active.len(),
            queued: self.waiting.len(),
            paused: self.paused().count(),
            kv_pages_free: self.kv.free(),
            prefix_pages: self.prefix.pages(),
            pinned_pages: self.prefix.pinned(),
            ..self.stats
        }
    }

    /// Whether nothing can be done until something is submitted, resumed or cancelled.
    pub fn is_idle(&self) -> bool {
        self.active.iter().chain(&self.waiting).all(|sequence| sequence.paused)
    }

    /// Put a sequence at the end of the queue.
    pub fn submit(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// Requests that wait for their reader.
    pub fn paused(&self) -> impl Iterator<Item = RequestId> {
        self.active.iter().chain(&self.waiting).filter(|one| one.paused).map(|one| one.id)
    }

    /// Stop decoding a request (`true`) or go on with it.
    pub fn pause(&mut self, id: RequestId, paused: bool) {
        let all = self.active.iter_mut().chain(&mut self.waiting);
        if let Some(sequence) = all.into_iter().find(|one| one.id == id) {
            sequence.paused = paused;
        }
    }

    /// End a request. A prompt that is at least half read goes on into the cache, unseen.
    pub fn cancel(&mut self, id: RequestId) {
        if let Some(index) = self.waiting.iter().position(|one| one.id == id) {
            if let Some(mut sequence) = self.waiting.remove(index) {
                sequence.end = Some(End::new(FinishReason::Cancelled));
                self.close(sequence);
            }
            return;
        }
        let abandoned = self.active.iter().filter(|one| one.abandoned).count();
        let Some(index) = self.active.iter().position(|one| one.id == id && !one.abandoned) else {
            return;
        };
        let sequence = &mut self.active[index];
        sequence.end = Some(End::new(FinishReason::Cancelled));
        if self.config.finish_cancelled_prompts
            && sequence.is_prefilling()
            && sequence.prompt_len - sequence.computed <= sequence.computed
            && abandoned < ABANDONED_MAX
        {
            let usage = sequence.usage();
            sequence.end = None;
            sequence.abandoned = true;
            sequence.paused = false;
            sequence.grammar = None;
            sequence.tokens.truncate(sequence.prompt_len);
            self.stats.finished += 1;
            self.updates.push((id, finished(End::new(FinishReason::Cancelled), usage)));
        } else {
            self.retire();
        }
    }

    /// End everything.
    pub fn cancel_all(&mut self) {
        for sequence in self.active.iter_mut().chain(&mut self.waiting) {
            sequence.end = Some(End::new(FinishReason::Cancelled));
        }
        self.retire();
        for sequence in std::mem::take(&mut self.waiting) {
            self.close(sequence);
        }
    }

    /// Fill the prefix cache from the configured file.
    pub fn restore(&mut self) -> Restored {
        match &self.config.snapshot {
            Some(config) => snapshot::restore(config, &mut self.kv, &mut self.prefix),
            None => Restored::Nothing,
        }
    }

    /// Whether a snapshot is being written.
    pub fn is_saving(&self) -> bool {
        self.saving.is_some()
    }

    /// Begin to write the prefix cache to its file, and tell `saver` when it is there.
    pub fn save(&mut self, saver: Option<SyncSender<Result<Saved>>>) {
        self.savers.extend(saver);
        if self.saving.is_some() {
            return;
        }
        let Some(config) = &self.config.snapshot else {
            return self.tell_savers(|| Err(Error::input("snapshot", "no file is configured")));
        };
        match Writer::new(config, &mut self.kv, &self.prefix) {
            Ok(writer) => self.saving = Some(writer),
            Err(error) => self.tell_savers(|| Err(Error::input("snapshot", error.to_string()))),
        }
    }

    /// Write up to `pages_max` pages of the snapshot.
    pub fn advance_save(&mut self, pages_max: usize) {
        let Some(mut writer) = self.saving.take() else { return };
        match writer.advance(&mut self.kv, pages_max) {
            Ok(None) => {
                self.saving = Some(writer);
                return;
            }
            Ok(Some(saved)) => self.tell_savers(|| Ok(saved)),
            Err(error) => self.tell_savers(|| Err(Error::input("snapshot", error.to_string()))),
        }
        writer.release(&mut self.kv);
    }

    /// Give up a snapshot, because its pages are needed.
    fn drop_save(&mut self) -> bool {
        let Some(writer) = self.saving.take() else { return false };
        writer.release(&mut self.kv);
        self.tell_savers(|| Err(Error::input("snapshot", "requests needed the memory")));
        true
    }

    fn tell_savers(&mut self, result: impl Fn() -> Result<Saved>) {
        for saver in self.savers.drain(..) {
            // Who no longer listens need not know.
            let _ = saver.try_send(result());
        }
    }

    /// One step of the model. Returns whether anything was done.
    pub fn step(&mut self) -> bool {
        let admitted = self.admit();
        self.plan();
        let planned: Vec<usize> =
            (0..self.active.len()).filter(|&index| self.active[index].planned > 0).collect();
        if planned.is_empty() {
            let ended = self.retire();
            if !admitted && !ended && !self.is_idle() {
                self.fail_oldest("the engine cannot go on with it");
            }
            return admitted || ended || !self.is_idle();
        }
        if let Err(error) = self.run(&planned) {
            // One of them is at fault: each for itself, so that only that one fails.
            for &index in &planned {
                let alone = if planned.len() == 1 {
                    Err(Error::input("step", error.to_string()))
                } else {
                    self.run(&[index])
                };
                if let Err(error) = alone {
                    self.active[index].end = Some(End::failed(&error));
                }
            }
        }
        self.retire();
        true
    }

    /// Move sequences from the queue into work.
    fn admit(&mut self) -> bool {
        let mut admitted = false;
        let mut index = 0;
        while index < self.waiting.len() {
            let running = self.active.iter().filter(|one| !one.paused && !one.abandoned).count();
            if running >= self.config.active_max {
                break;
            }
            if self.waiting[index].paused || self.is_being_read(index) {
                index += 1;
            } else if self.place(index, running) {
                admitted = true;
            } else {
                break;
            }
        }
        admitted
    }

    /// Whether a sequence in work reads a prefix that this one needs too.
    fn is_being_read(&mut self, index: usize) -> bool {
        let waiting = &mut self.waiting[index];
        if let Some((id, tokens)) = waiting.waits_for.take()
            && self
                .active
                .iter()
                .any(|one| one.id == id && one.computed < tokens && one.is_runnable())
        {
            waiting.waits_for = Some((id, tokens));
            return true;
        }
        let needed = &waiting.tokens[..waiting.tokens.len() - 1];
        let mut known: Option<usize> = None;
        for reader in &self.active {
            if !reader.is_runnable() || !reader.is_prefilling() {
                continue;
            }
            let common = common_prefix(needed, &reader.tokens[..reader.prompt_len]);
            if common <= reader.computed {
                continue;
            }
            let known = *known.get_or_insert_with(|| self.prefix.measure(needed));
            if common >= known + PAGE_TOKENS {
                waiting.waits_for = Some((reader.id, common));
                return true;
            }
        }
        false
    }

    /// Give a waiting sequence the cached part of its pages and put it to work, if there is memory.
    fn place(&mut self, index: usize, running: usize) -> bool {
        let sequence = &self.waiting[index];
        let needed = &sequence.tokens[..sequence.tokens.len() - 1];
        let found = self.prefix.find(&mut self.kv, needed);
        let wanted = sequence.promised_pages().saturating_sub(found.pages.len());
        let promised: usize = self
            .active
            .iter()
            .filter(|one| !one.paused && !one.abandoned)
            .map(|one| one.promised_pages().saturating_sub(one.pages.len()))
            .sum();
        while running > 0 && self.kv.free() + self.prefix.idle(&self.kv) < wanted + promised {
            if !self.drop_save() && !self.preempt_unread() {
                for page in found.pages.into_iter().chain(found.partial.map(|(page, _)| page)) {
                    self.kv.release(page);
                }
                return false;
            }
        }
        let Some(mut sequence) = self.waiting.remove(index) else { return false };
        sequence.computed = found.pages.len() * PAGE_TOKENS;
        sequence.node = found.node;
        sequence.blocks = found.pages.len();
        // What others read before need not have been pinned.
        let pinned = (sequence.pinned / PAGE_TOKENS).min(sequence.blocks);
        self.prefix.pin(self.prefix.above(found.node, sequence.blocks - pinned));
        sequence.pages = found.pages;
        if let Some((page, tokens)) = found.partial {
            if let Some(copy) = self.allocate() {
                self.kv.copy(page, copy);
                sequence.pages.push(copy);
                sequence.computed += tokens;
            }
            self.kv.release(page);
        }
        if sequence.started.is_none() {
            sequence.started = Some(Instant::now());
            sequence.cached = sequence.computed;
            self.stats.prompt_tokens += sequence.prompt_len as u64;
            self.stats.cached_tokens += sequence.cached as u64;
            if let Err(error) = sequence.append_forced() {
                sequence.end = Some(End::failed(&error));
            }
        }
        let at = self.active.partition_point(|one| one.id < sequence.id);
        self.active.insert(at, sequence);
        true
    }

    fn allocate(&mut self) -> Option<PageId> {
        if self.kv.free() == 0 {
            self.prefix.evict(&mut self.kv, 1);
        }
        self.kv.allocate()
    }

    /// Take the pages of a sequence nobody waits for: an abandoned one, or the youngest paused one.
    fn preempt_unread(&mut self) -> bool {
        let holds = |one: &&mut Sequence| !one.preempted && !one.pages.is_empty();
        let mut candidates = self.active.iter_mut().rev().filter(holds);
        let Some(sequence) = candidates.find(|one| one.abandoned || one.paused) else {
            return false;
        };
        preempt(sequence, &mut self.kv);
        self.stats.preempted += 1;
        true
    }

    /// Pages for the first `tokens` tokens of a sequence. False if there are not enough.
    fn ensure_pages(&mut self, index: usize, tokens: usize) -> bool {
        while self.active[index].pages.len() * PAGE_TOKENS < tokens {
            let page = loop {
                if let Some(page) = self.allocate() {
                    break page;
                }
                if self.drop_save() || self.preempt_unread_but(index) {
                    continue;
                }
                let younger = (index + 1..self.active.len()).rev().find(|&other| {
                    let other = &self.active[other];
                    !other.preempted && !other.pages.is_empty()
                });
                let Some(younger) = younger else { return false };
                preempt(&mut self.active[younger], &mut self.kv);
                self.stats.preempted += 1;
            };
            self.active[index].pages.push(page);
        }
        true
    }

    fn preempt_unread_but(&mut self, index: usize) -> bool {
        let abandoned = std::mem::take(&mut self.active[index].abandoned);
        let done = self.preempt_unread();
        self.active[index].abandoned = abandoned;
        done
    }

    /// Tokens of prompts that may join a step.
    fn prefill_tokens(&self, decoding: usize) -> usize {
        if decoding == 0 {
            return self.config.step_tokens_idle;
        }
        let most = self.config.step_tokens_decoding;
        if self.token_ns == 0.0 {
            return most;
        }
        let fitting = self.config.inter_token_ns_target as f64 / self.token_ns;
        (fitting as usize).clamp(PREFILL_TOKENS_MIN.min(most), most)
    }

    /// Decide who takes part in the next step.
    fn plan(&mut self) {
        for sequence in &mut self.active {
            sequence.planned = 0;
            sequence.draft.clear();
        }
        let mut left = self.shape.step_tokens_max;
        let mut rows = self.shape.logits_rows_max;
        let mut decoding = 0;
        for index in 0..self.active.len() {
            let sequence = &self.active[index];
            if sequence.is_runnable() && !sequence.is_prefilling() {
                let planned = self.plan_one(index, left.min(FORCED_TOKENS_MAX), &mut rows);
                left -= planned;
                decoding += usize::from(planned > 0);
            }
        }
        if self.config.speculation && decoding <= SPECULATION_BATCH_MAX {
            for index in 0..self.active.len() {
                let guessed = self.guess(index, left.min(rows));
                left -= guessed;
                rows -= guessed;
            }
        }
        left = left.min(self.prefill_tokens(decoding));
        for abandoned in [false, true] {
            for index in 0..self.active.len() {
                let sequence = &self.active[index];
                if sequence.is_runnable()
                    && sequence.is_prefilling()
                    && sequence.abandoned == abandoned
                {
                    left -= self.plan_one(index, left, &mut rows);
                }
            }
        }
        let mut index = 0;
        while index < self.active.len() {
            if self.active[index].preempted {
                let mut sequence = self.active.remove(index);
                sequence.preempted = false;
                sequence.planned = 0;
                if !sequence.abandoned {
                    let at = self.waiting.partition_point(|one| one.id < sequence.id);
                    self.waiting.insert(at, sequence);
                }
            } else {
                index += 1;
            }
        }
    }

    /// Plan up to `most` tokens of a sequence. Returns how many.
    fn plan_one(&mut self, index: usize, most: usize, rows: &mut usize) -> usize {
        let sequence = &self.active[index];
        let pending = sequence.tokens.len() - sequence.computed;
        let mut count = pending.min(most);
        let row = |count| usize::from(count == pending && !self.active[index].abandoned);
        if row(count) > *rows {
            count -= 1;
        }
        if count == 0 {
            return 0;
        }
        let computed = sequence.computed;
        if !self.ensure_pages(index, computed + count) {
            count = (self.active[index].pages.len() * PAGE_TOKENS).saturating_sub(computed);
        }
        if count == 0 {
            self.give_way(index);
            return 0;
        }
        let sequence = &mut self.active[index];
        sequence.planned = count;
        *rows -= usize::from(count == pending && !sequence.abandoned);
        count
    }

    /// Guess up to `most` tokens behind the one that a sequence decodes. Returns how many.
    fn guess(&mut self, index: usize, most: usize) -> usize {
        let sequence = &mut self.active[index];
        let decodes = sequence.planned == 1 && sequence.computed + 1 == sequence.tokens.len();
        if !decodes || sequence.is_prefilling() || sequence.grammar.is_some() {
            return 0;
        }
        // The token that is sampled behind the last guess must fit too.
        let room = sequence.tokens_max.saturating_sub(sequence.tokens.len() + 1);
        let lookup = sequence.lookup.get_or_insert_with(PromptLookup::default);
        let most = most.min(DRAFT_TOKENS_MAX).min(room);
        lookup.guess(&sequence.tokens, most, &mut sequence.draft);
        let needed = sequence.tokens.len() + sequence.draft.len();
        // A guess is worth an unused page, but nobody's work.
        while self.active[index].pages.len() * PAGE_TOKENS < needed
            && let Some(page) = self.allocate()
        {
            self.active[index].pages.push(page);
        }
        let sequence = &mut self.active[index];
        sequence
            .draft
            .truncate((sequence.pages.len() * PAGE_TOKENS).saturating_sub(sequence.tokens.len()));
        sequence.draft.len()
    }

    /// A sequence finds no page: it waits for the others, or ends where it is alone.
    fn give_way(&mut self, index: usize) {
        let others = self
            .active
            .iter()
            .enumerate()
            .any(|(other, one)| other != index && one.is_runnable() && !one.pages.is_empty());
        let sequence = &mut self.active[index];
        if others {
            preempt(sequence, &mut self.kv);
            self.stats.preempted += 1;
        } else {
            sequence.end = Some(End::new(FinishReason::Length));
        }
    }

    /// Run the planned tokens of some sequences through the model and take the results.
    fn run(&mut self, indices: &[usize]) -> Result<()> {
        let Self { forward, kv, prefix, active, language, scratch, stats, updates, .. } = self;
        let mut tokens = 0;
        for &index in indices {
            let sequence = &mut active[index];
            let draft = std::mem::take(&mut sequence.draft);
            sequence.tokens.extend_from_slice(&draft);
            tokens += sequence.planned + draft.len();
            sequence.draft = draft;
        }
        let (segments, rows) = segments(active, indices);
        let begin = Instant::now();
        let result = forward.step(kv, &segments);
        let step_ns = begin.elapsed().as_nanos() as u64;
        for &index in indices {
            let sequence = &mut active[index];
            let known = sequence.tokens.len() - sequence.draft.len();
            sequence.tokens.truncate(known);
        }
        let logits = result?;
        let vocab = self.shape.vocab;
        if logits.len() != rows.iter().sum::<usize>() * vocab {
            return Err(Error::input("step", "the model returned another number of logits"));
        }
        stats.steps += 1;
        stats.step_ns += step_ns;
        stats.processed_tokens += tokens as u64;
        if tokens >= PREFILL_TOKENS_MIN {
            let now = step_ns as f64 / tokens as f64;
            self.token_ns =
                if self.token_ns == 0.0 { now } else { 0.8 * self.token_ns + 0.2 * now };
        }
        let begin = Instant::now();
        let masks = stats.mask_ns;
        let mut logits = logits;
        for (&index, &count) in indices.iter().zip(&rows) {
            let (own, rest) = logits.split_at(count * vocab);
            logits = rest;
            let sequence = &mut active[index];
            let read = sequence.is_prefilling() && sequence.spoken == sequence.prompt_len;
            stats.proposed_tokens += sequence.draft.len() as u64;
            sequence.computed += std::mem::take(&mut sequence.planned);
            if read && !sequence.abandoned {
                let done = sequence.computed.min(sequence.prompt_len);
                // A prompt read again after its pages were taken may find less in the cache.
                let cached = sequence.cached.min(done);
                let total = sequence.prompt_len;
                updates.push((sequence.id, Update::Prefill { done, total, cached }));
            }
            let complete = !sequence.is_prefilling();
            cache(sequence, kv, prefix);
            if read && complete {
                share_last(sequence, kv, prefix);
            }
            if count > 0 {
                let spoken = sequence.spoken;
                let done = sequence.advance(own, vocab, language.as_ref(), scratch, stats);
                if let Err(error) = done {
                    sequence.end = Some(End::failed(&error));
                }
                stats.completion_tokens += (sequence.spoken - spoken) as u64;
                if sequence.end.is_none()
                    && let Some(piece) = sequence.output.take(false)
                {
                    updates.push((
                        sequence.id,
                        Update::Text {
                            text: piece.text,
                            tokens: piece.tokens,
                            logprobs: piece.logprobs,
                        },
                    ));
                }
            } else if sequence.abandoned && complete {
                sequence.end = Some(End::new(FinishReason::Cancelled));
            }
        }
        let sampling = begin.elapsed().as_nanos() as u64;
        stats.sample_ns += sampling.saturating_sub(stats.mask_ns - masks);
        Ok(())
    }

    /// Take ended sequences out of work. Returns whether there were any.
    fn retire(&mut self) -> bool {
        let mut any = false;
        let mut index = 0;
        while index < self.active.len() {
            if self.active[index].end.is_some() {
                let sequence = self.active.remove(index);
                self.close(sequence);
                any = true;
            } else {
                index += 1;
            }
        }
        if any {
            self.prefix.bound(&mut self.kv);
        }
        any
    }

    /// Say the last word of a sequence and give its pages to the cache.
    fn close(&mut self, mut sequence: Sequence) {
        let end = sequence.end.take().unwrap_or_else(|| End::new(FinishReason::Cancelled));
        if !matches!(end.reason, FinishReason::Failed) {
            cache(&mut sequence, &mut self.kv, &mut self.prefix);
            if let Some((tokens, page)) = last_block(&sequence) {
                self.prefix.insert(&mut self.kv, sequence.node, tokens, page, false);
            }
        }
        release(&mut sequence, &mut self.kv);
        if sequence.abandoned {
            return;
        }
        // A cancelled answer might have gone on to a stop text: what is held back stays unsaid.
        let whole = end.reason != FinishReason::Cancelled;
        if let Some(piece) = sequence.output.take(whole) {
            self.updates.push((
                sequence.id,
                Update::Text { text: piece.text, tokens: piece.tokens, logprobs: piece.logprobs },
            ));
        }
        let usage = sequence.usage();
        self.stats.finished += 1;
        self.stats.drafted_tokens += usage.drafted_tokens as u64;
        self.updates.push((sequence.id, finished(end, usage)));
    }

    /// Nothing can run although something should: better an error than a hang.
    fn fail_oldest(&mut self, reason: &str) {
        let error = Error::input("engine", reason);
        if let Some(sequence) = self.active.iter_mut().find(|one| !one.paused) {
            sequence.end = Some(End::failed(&error));
            self.retire();
        } else if let Some(index) = self.waiting.iter().position(|one| !one.paused)
            && let Some(mut sequence) = self.waiting.remove(index)
        {
            sequence.end = Some(End::failed(&error));
            self.close(sequence);
        }
    }
}

/// The planned tokens of some sequences, their guessed ones included, and the rows of logits of each.
fn segments<'a>(active: &'a [Sequence], indices: &[usize]) -> (Vec<Segment<'a>>, Vec<usize>) {
    indices
        .iter()
        .map(|&index| {
            let sequence = &active[index];
            let end = sequence.computed + sequence.planned + sequence.draft.len();
            let tokens = &sequence.tokens[sequence.computed..end];
            let (logits, rows) = if end < sequence.tokens.len() || sequence.abandoned {
                (LogitsFor::Nothing, 0)
            } else if sequence.draft.is_empty() {
                (LogitsFor::Last, 1)
            } else {
                (LogitsFor::All, tokens.len())
            };
            let position = sequence.computed;
            (Segment { tokens, position, pages: &sequence.pages, logits }, rows)
        })
        .unzip()
}

fn finished(end: End, usage: Usage) -> Update {
    Update::Finished { reason: end.reason, stop: end.stop, error: end.error, usage }
}

/// Give all pages back; the sequence is read again from the cache or from its beginning.
fn preempt(sequence: &mut Sequence, kv: &mut KvPages) {
    release(sequence, kv);
    sequence.preempted = true;
    sequence.planned = 0;
    sequence.draft.clear();
}

fn release(sequence: &mut Sequence, kv: &mut KvPages) {
    for page in sequence.pages.drain(..) {
        kv.release(page);
    }
    sequence.computed = 0;
    sequence.node = NodeId::ROOT;
    sequence.blocks = 0;
}

/// Put the computed whole blocks of a sequence into the cache.
fn cache(sequence: &mut Sequence, kv: &mut KvPages, prefix: &mut PrefixCache) {
    while (sequence.blocks + 1) * PAGE_TOKENS <= sequence.computed {
        let block = sequence.blocks;
        let end = (block + 1) * PAGE_TOKENS;
        let (node, other) = prefix.insert(
            kv,
            sequence.node,
            &sequence.tokens[block * PAGE_TOKENS..end],
            sequence.pages[block],
            end <= sequence.pinned,
        );
        if let Some(page) = other {
            sequence.pages[block] = page;
        }
        sequence.node = node;
        sequence.blocks += 1;
    }
}

/// The computed tokens of a sequence behind its whole blocks, with their page.
fn last_block(sequence: &Sequence) -> Option<(&[TokenId], PageId)> {
    let tokens = sequence.tokens.get(sequence.blocks * PAGE_TOKENS..sequence.computed)?;
    Some((tokens, *sequence.pages.get(sequence.blocks)?)).filter(|_| !tokens.is_empty())
}

/// Put a copy of a sequence's last page into the cache, for other answers to the same prompt; the
/// sequence itself goes on writing its own.
fn share_last(sequence: &Sequence, kv: &mut KvPages, prefix: &mut PrefixCache) {
    let Some((tokens, page)) = last_block(sequence) else { return };
    if prefix.knows(sequence.node, tokens) {
        return;
    }
    if kv.free() == 0 {
        prefix.evict(kv, 1);
    }
    if let Some(copy) = kv.allocate() {
        kv.copy(page, copy);
        prefix.insert(kv, sequence.node, tokens, copy, false);
        kv.release(copy);
    }
}

#[cfg(test)]
impl Scheduler {
    /// Every page has exactly the holders that name it, and every free page has none.
    pub(super) fn assert_pages_conserved(&self) {
        let mut holders = vec![0_u32; self.kv.capacity()];
        let active = self.active.iter().flat_map(|one| one.pages.iter().copied());
        let cached = self.prefix.entries(usize::MAX).into_iter().map(|entry| entry.page);
        let saving = self.saving.iter().flat_map(Writer::pages);
        for page in active.chain(cached).chain(saving) {
            holders[page.0 as usize] += 1;
        }
        for (index, &count) in holders.iter().enumerate() {
            assert_eq!(self.kv.references(PageId(index as u32)), count, "page {index}");
        }
        let free = holders.iter().filter(|&&count| count == 0).count();
        assert_eq!(self.kv.free(), free);
        assert!(self.waiting.iter().all(|one| one.pages.is_empty()));
    }
}
