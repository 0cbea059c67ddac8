//! The engine: one thread that answers many requests at once.
//!
//! Everyone else talks to it through two mailboxes: requests and cancellations go in, updates come
//! out, and an event descriptor (`eventfd`) becomes readable once for all updates of a step. Nobody
//! waits for the thread except to save or to shut down.
//!
//! A panic of the thread ends every request as failed and leaves the engine unhealthy: it refuses
//! new requests, and nothing hangs.
#![expect(unsafe_code, reason = "an eventfd is made by a system call")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::llm::forward::{Forward, ModelShape};
use crate::llm::language::Language;
use crate::llm::mailbox::Mailbox;
use crate::llm::request::{FinishReason, GenerationRequest, RequestId, Update, Usage};
use crate::llm::scheduler::Scheduler;
use crate::llm::sequence::Sequence;
use crate::llm::snapshot::{Restored, Saved, SnapshotConfig};
use crate::llm::stats::EngineStats;
use crate::{Error, Result};

/// Bounds of an engine.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Memory for keys and values, bytes; taken from the system as it is used.
    pub kv_bytes_max: usize,
    /// Of it, what prefixes may hold that no request uses, bytes.
    pub prefix_bytes_max: usize,
    /// Of it, what may be pinned, bytes; never more than half of `kv_bytes_max`.
    pub pinned_bytes_max: usize,
    /// Requests decoded at the same time.
    pub active_max: usize,
    /// Requests that wait for a place; more are refused.
    pub queue_max: usize,
    /// Most tokens of prompts in a step while nothing decodes.
    pub step_tokens_idle: usize,
    /// Most tokens of prompts in a step while something decodes.
    pub step_tokens_decoding: usize,
    /// Time between two tokens of an answer that prompts beside it may cause, ns: fewer tokens of
    /// prompts join a step on a slow machine.
    pub inter_token_ns_target: u64,
    /// Guess tokens by prompt lookup; answers are the same with and without.
    pub speculation: bool,
    /// Read a cancelled prompt to its end, for the cache, if at least half of it is read.
    pub finish_cancelled_prompts: bool,
    /// Keep the prefix cache in a file: read at the start, written at the end and on demand.
    pub snapshot: Option<SnapshotConfig>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            kv_bytes_max: 1 << 30,
            prefix_bytes_max: usize::MAX,
            pinned_bytes_max: usize::MAX,
            active_max: 64,
            queue_max: 256,
            step_tokens_idle: 512,
            step_tokens_decoding: 64,
            inter_token_ns_target: 50_000_000,
            speculation: true,
            finish_cancelled_prompts: true,
            snapshot: None,
        }
    }
}

/// Pages of a snapshot written between two steps while requests run, and while none does.
const SNAPSHOT_PAGES_BUSY: usize = 4;
const SNAPSHOT_PAGES_IDLE: usize = 64;

/// What goes to the thread.
#[derive(Debug, Default)]
struct Inbox {
    submitted: Vec<Sequence>,
    cancelled: Vec<RequestId>,
    /// Someone drained updates the thread waited for.
    resumed: bool,
    /// Who waits for the prefix cache to be written.
    savers: Vec<SyncSender<Result<Saved>>>,
    stop: bool,
}

impl Inbox {
    fn is_empty(&self) -> bool {
        self.submitted.is_empty()
            && self.cancelled.is_empty()
            && self.savers.is_empty()
            && !self.resumed
            && !self.stop
    }
}

/// What both sides see.
#[derive(Debug)]
struct Shared {
    inbox: Mutex<Inbox>,
    wake: Condvar,
    mailbox: Mutex<Mailbox>,
    stats: Mutex<EngineStats>,
    event: File,
    healthy: AtomicBool,
}

/// A thread that panicked is reported through `healthy`; its data is still whole enough to end.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Make the event descriptor readable.
    fn signal(&self) {
        // A full counter is readable already; there is nothing else to do.
        let _ = (&self.event).write_all(&1_u64.to_ne_bytes());
    }

    /// Post updates, signal once, and return those requests whose reader is too far behind.
    fn post(&self, updates: &mut Vec<(RequestId, Update)>) -> Vec<RequestId> {
        if updates.is_empty() {
            return Vec::new();
        }
        let mut behind = Vec::new();
        let mut mailbox = lock(&self.mailbox);
        let signalled = mailbox.has_news();
        for (id, update) in updates.drain(..) {
            let text = matches!(update, Update::Text { .. });
            mailbox.post(id, update);
            if text && mailbox.must_wait(id) {
                behind.push(id);
            }
        }
        if mailbox.has_news() && !signalled {
            self.signal();
        }
        behind
    }

    /// End every request that has not ended.
    fn fail_all(&self, reason: &str) {
        self.healthy.store(false, Ordering::Release);
        lock(&self.inbox).savers.clear();
        let ids = lock(&self.mailbox).unfinished();
        let mut updates = ids
            .into_iter()
            .map(|id| {
                let end = Update::Finished {
                    reason: FinishReason::Failed,
                    stop: None,
                    error: Some(reason.to_owned()),
                    usage: Usage::default(),
                };
                (id, end)
            })
            .collect();
        self.post(&mut updates);
    }
}

/// A running engine. Dropping it ends all requests and waits for the thread.
pub struct Engine {
    shared: Arc<Shared>,
    language: Arc<dyn Language>,
    shape: ModelShape,
    kv_pages: usize,
    restored: Restored,
    requests_max: usize,
    next: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Engine").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl Engine {
    /// Start the thread.
    ///
    /// # Errors
    /// [`Error::Input`] for bounds that hold nothing; [`Error::Io`] if the system refuses the
    /// thread or the event descriptor.
    pub fn start(
        forward: Box<dyn Forward>,
        language: Arc<dyn Language>,
        config: EngineConfig,
    ) -> Result<Self> {
        let shape = forward.shape().clone();
        let requests_max = config.active_max.saturating_add(config.queue_max).max(1);
        let mut scheduler = Scheduler::new(forward, Arc::clone(&language), config)?;
        let restored = scheduler.restore();
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            wake: Condvar::new(),
            mailbox: Mutex::default(),
            stats: Mutex::new(scheduler.stats()),
            event: event_descriptor()?,
            healthy: AtomicBool::new(true),
        });
        let kv_pages = scheduler.kv_pages();
        let seen = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("qbtc-engine".to_owned())
            .spawn(move || {
                let body = AssertUnwindSafe(|| serve(scheduler, &seen));
                match catch_unwind(body) {
                    Ok(()) => seen.fail_all("the engine was shut down"),
                    Err(panic) => {
                        seen.fail_all(&format!("the engine failed: {}", message(&*panic)));
                    }
                }
            })
            .map_err(|source| Error::Io { path: "thread".into(), source })?;
        Ok(Self {
            shared,
            language,
            shape,
            kv_pages,
            restored,
            requests_max,
            next: AtomicU64::new(1),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Queue a request. Its updates come from [`Self::drain`].
    ///
    /// # Errors
    /// [`Error::Busy`] if the queue is full, or the ends of too many requests were not drained;
    /// [`Error::ContextLength`] if the prompt is too long; [`Error::Input`] for anything else that
    /// is wrong with it, and for an engine that is not healthy.
    pub fn submit(&self, request: GenerationRequest) -> Result<RequestId> {
        self.check_healthy()?;
        let id = RequestId(self.next.fetch_add(1, Ordering::Relaxed));
        {
            let mut mailbox = lock(&self.shared.mailbox);
            if mailbox.outstanding() >= self.requests_max {
                return Err(Error::Busy {
                    requests: mailbox.outstanding(),
                    retry_after_ms: mailbox.retry_after_ms(),
                });
            }
            mailbox.open(id);
        }
        let sequence =
            Sequence::new(id, request, &self.shape, self.kv_pages, self.language.as_ref());
        let sequence = sequence.inspect_err(|_| lock(&self.shared.mailbox).close(id))?;
        lock(&self.shared.inbox).submitted.push(sequence);
        self.shared.wake.notify_one();
        // The thread may have ended meanwhile, before or after it looked.
        self.check_healthy().inspect_err(|_| lock(&self.shared.mailbox).close(id))?;
        Ok(id)
    }

    fn check_healthy(&self) -> Result<()> {
        if self.is_healthy() {
            Ok(())
        } else {
            Err(Error::input("engine", "it is shut down or failed; start a new one"))
        }
    }

    /// End a request; its last update says so. Unknown and ended requests are ignored.
    pub fn cancel(&self, id: RequestId) {
        lock(&self.shared.inbox).cancelled.push(id);
        self.shared.wake.notify_one();
    }

    /// Move all updates to `out`, those of one request in their order, but not those of the
    /// requests in `skip`: they stay, merged, and a request that is too far behind is paused until
    /// a drain takes it again. Resets [`Self::wake_fd`]. Never waits.
    pub fn drain(&self, skip: &[RequestId], out: &mut Vec<(RequestId, Update)>) {
        // Not readable is as good as read.
        let _ = (&self.shared.event).read(&mut [0; 8]);
        let awaited = lock(&self.shared.mailbox).drain(skip, out);
        if awaited {
            lock(&self.shared.inbox).resumed = true;
            self.shared.wake.notify_one();
        }
    }

    /// A descriptor that is readable when [`Self::drain`] has something; valid as long as the
    /// engine.
    pub fn wake_fd(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }

    /// Counters and gauges as of the last step.
    pub fn stats(&self) -> EngineStats {
        *lock(&self.shared.stats)
    }

    /// Whether the thread runs.
    pub fn is_healthy(&self) -> bool {
        self.shared.healthy.load(Ordering::Acquire)
    }

    /// What the model is.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// What became of the snapshot of the run before.
    pub fn restored(&self) -> &Restored {
        &self.restored
    }

    /// Write the prefix cache to its file and wait until it is there; requests go on meanwhile.
    ///
    /// # Errors
    /// [`Error::Input`] if no file is configured, the memory was needed for requests meanwhile, or
    /// the engine stopped; [`Error::Io`] if the disk refuses.
    pub fn save_snapshot(&self) -> Result<Saved> {
        let (sender, receiver) = sync_channel(1);
        self.check_healthy()?;
        lock(&self.shared.inbox).savers.push(sender);
        self.shared.wake.notify_one();
        if !self.is_healthy() {
            lock(&self.shared.inbox).savers.clear();
        }
        receiver.recv().unwrap_or_else(|_| Err(Error::input("engine", "it stopped meanwhile")))
    }

    /// End all requests as cancelled, write the snapshot if one is configured, and wait for the thread. Their last updates can still be
    /// drained. A second call does nothing.
    pub fn shutdown(&self) {
        lock(&self.shared.inbox).stop = true;
        self.shared.wake.notify_one();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // The thread catches its own panics.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn event_descriptor() -> Result<File> {
    // SAFETY: no pointers are passed; a negative result is checked before it is used.
    let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if descriptor < 0 {
        let source = std::io::Error::last_os_error();
        return Err(Error::Io { path: "eventfd".into(), source });
    }
    // SAFETY: the descriptor is open and nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// The thread: take what came in, do a step, say what happened.
fn serve(mut scheduler: Scheduler, shared: &Shared) {
    loop {
        let mut inbox = {
            let mut inbox = lock(&shared.inbox);
            while inbox.is_empty() && scheduler.is_idle() && !scheduler.is_saving() {
                inbox = shared.wake.wait(inbox).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::take(&mut *inbox)
        };
        for sequence in inbox.submitted.drain(..) {
            scheduler.submit(sequence);
        }
        for id in inbox.cancelled.drain(..) {
            scheduler.cancel(id);
        }
        if inbox.resumed {
            let paused: Vec<RequestId> = scheduler.paused().collect();
            let mailbox = lock(&shared.mailbox);
            for id in paused {
                if mailbox.may_go_on(id) {
                    scheduler.pause(id, false);
                }
            }
        }
        for saver in inbox.savers.drain(..) {
            scheduler.save(Some(saver));
        }
        if inbox.stop {
            scheduler.cancel_all();
            scheduler.save(None);
            scheduler.advance_save(usize::MAX);
        } else {
            let busy = scheduler.step();
            scheduler.advance_save(if busy { SNAPSHOT_PAGES_BUSY } else { SNAPSHOT_PAGES_IDLE });
        }
        for id in shared.post(&mut scheduler.updates) {
            scheduler.pause(id, true);
        }
        *lock(&shared.stats) = scheduler.stats();
        if inbox.stop {
            return;
        }
    }
}
