//! Updates on their way to those who asked: merged while nobody looks, so that memory is bounded.

use std::collections::HashMap;
use std::mem::size_of;

use crate::llm::request::{ChosenToken, RequestId, TokenLogprob, Update};

/// Undelivered bytes of one request beyond which it is not decoded until they are drained.
pub const UNDELIVERED_BYTES_MAX: usize = 64 * 1024;

/// Soonest and latest time to try again that is suggested, ms.
const RETRY_AFTER_MS_MIN: f64 = 100.0;
const RETRY_AFTER_MS_MAX: f64 = 10_000.0;

/// What one request's owner has not seen yet.
#[derive(Debug, Default)]
struct Undelivered {
    /// At most one of each kind, in the order they are sent.
    prefill: Option<Update>,
    text: Option<Update>,
    finished: Option<Update>,
    bytes: usize,
    /// The last drain skipped it: no wake for it until a drain takes it again.
    skipped: bool,
    /// Listed in [`Mailbox::ready`].
    ready: bool,
    /// The engine waits until this is drained.
    awaited: bool,
}

/// All undelivered updates.
#[derive(Debug, Default)]
pub struct Mailbox {
    boxes: HashMap<RequestId, Undelivered>,
    ready: Vec<RequestId>,
    /// Something came that a drain would return, since the last drain.
    news: bool,
    /// Recent time from submission to end, ms.
    request_ms: f64,
}

impl Mailbox {
    /// Requests that are not finished, or whose end was not drained yet.
    pub fn outstanding(&self) -> usize {
        self.boxes.len()
    }

    /// Whether something came since the last drain.
    pub fn has_news(&self) -> bool {
        self.news
    }

    /// When to try again after a refusal, ms: about the time in which a place becomes free.
    pub fn retry_after_ms(&self) -> u64 {
        (self.request_ms / 2.0).clamp(RETRY_AFTER_MS_MIN, RETRY_AFTER_MS_MAX) as u64
    }

    /// Expect updates for a request.
    pub fn open(&mut self, id: RequestId) {
        self.boxes.insert(id, Undelivered::default());
    }

    /// Forget a request that never began.
    pub fn close(&mut self, id: RequestId) {
        self.boxes.remove(&id);
    }

    /// All requests whose end is not known yet.
    pub fn unfinished(&self) -> Vec<RequestId> {
        self.boxes
            .iter()
            .filter(|(_, updates)| updates.finished.is_none())
            .map(|(&id, _)| id)
            .collect()
    }

    /// Add an update.
    pub fn post(&mut self, id: RequestId, update: Update) {
        let Some(updates) = self.boxes.get_mut(&id) else { return };
        debug_assert!(updates.finished.is_none(), "Invariant: nothing follows the end");
        match update {
            Update::Prefill { .. } => updates.prefill = Some(update),
            Update::Text { text, tokens, logprobs } => {
                updates.bytes += text.len() + logprobs.iter().map(bytes_of).sum::<usize>();
                if let Some(Update::Text { text: before, tokens: count, logprobs: list }) =
                    &mut updates.text
                {
                    before.push_str(&text);
                    *count += tokens;
                    list.extend(logprobs);
                } else {
                    updates.text = Some(Update::Text { text, tokens, logprobs });
                }
            }
            Update::Finished { usage, .. } => {
                self.request_ms = 0.9 * self.request_ms + 0.1 * (usage.total_ns as f64 / 1e6);
                updates.finished = Some(update);
            }
        }
        self.news |= !updates.skipped;
        if !updates.ready {
            updates.ready = true;
            self.ready.push(id);
        }
    }

    /// Whether the owner is too far behind; if so, the drain that takes its updates says so.
    pub fn must_wait(&mut self, id: RequestId) -> bool {
        let Some(updates) = self.boxes.get_mut(&id) else { return false };
        updates.awaited = updates.bytes > UNDELIVERED_BYTES_MAX;
        updates.awaited
    }

    /// Whether a request that waited may go on.
    pub fn may_go_on(&self, id: RequestId) -> bool {
        self.boxes.get(&id).is_none_or(|updates| updates.bytes <= UNDELIVERED_BYTES_MAX / 2)
    }

    /// Move all updates to `out`, in the order of requests, but those of `skip`, which stay here.
    /// Returns whether the engine waited for one of them.
    pub fn drain(&mut self, skip: &[RequestId], out: &mut Vec<(RequestId, Update)>) -> bool {
        self.news = false;
        let mut awaited = false;
        let mut ready = std::mem::take(&mut self.ready);
        ready.sort_unstable();
        ready.retain(|&id| {
            let Some(updates) = self.boxes.get_mut(&id) else { return false };
            updates.skipped = skip.contains(&id);
            updates.ready = updates.skipped;
            if updates.skipped {
                return true;
            }
            awaited |= std::mem::take(&mut updates.awaited);
            updates.bytes = 0;
            let finished = updates.finished.take();
            let parts = [updates.prefill.take(), updates.text.take()];
            out.extend(parts.into_iter().flatten().map(|update| (id, update)));
            if let Some(finished) = finished {
                out.push((id, finished));
                self.boxes.remove(&id);
            }
            false
        });
        self.ready = ready;
        awaited
    }
}

fn bytes_of(token: &ChosenToken) -> usize {
    let all = token.top.iter().chain(std::iter::once(&token.chosen));
    size_of::<ChosenToken>()
        + all.map(|entry| size_of::<TokenLogprob>() + entry.bytes.len()).sum::<usize>()
}
