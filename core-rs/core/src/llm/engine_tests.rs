//! The engine over a scripted model: what a request gets does not depend on anything around it.
#![expect(unsafe_code, reason = "a poll of the event descriptor is a system call")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Error;
use crate::llm::engine::{Engine, EngineConfig};
use crate::llm::request::{Constraint, FinishReason, GenerationRequest, RequestId};
use crate::llm::scripted::{Answer, Bytes, Scripted, Style, alone, mix, prompt, request};
use crate::llm::snapshot::{Restored, SnapshotConfig};

pub fn start(forward: Scripted, pages: usize, mut config: EngineConfig) -> Engine {
    config.kv_bytes_max = Scripted::pool(pages);
    Engine::start(Box::new(forward), Arc::new(Bytes::new()), config).unwrap()
}

/// Drain until all of `ids` ended.
pub fn collect(engine: &Engine, ids: &[RequestId]) -> HashMap<RequestId, Answer> {
    let begin = Instant::now();
    let mut answers: HashMap<RequestId, Answer> = HashMap::new();
    let mut updates = Vec::new();
    while ids.iter().any(|id| answers.get(id).is_none_or(|answer| answer.reason.is_none())) {
        assert!(begin.elapsed() < Duration::from_secs(60), "a request hangs: {answers:?}");
        engine.drain(&[], &mut updates);
        for (id, update) in updates.drain(..) {
            answers.entry(id).or_default().take(update);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    answers
}

#[test]
fn many_requests_at_once_get_what_each_would_get_alone() {
    for style in [Style::Chaotic, Style::Repetitive] {
        let engine = start(Scripted::new(style), 200, EngineConfig::default());
        let requests: Vec<GenerationRequest> = (0..40)
            .map(|index| {
                let mut one = request(&prompt(index % 7, 20 + index as usize * 5), 30);
                one.sampling.temperature = if index % 2 == 0 { 0.0 } else { 0.9 };
                one.sampling.seed = index;
                one
            })
            .collect();
        let ids: Vec<RequestId> =
            requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
        let answers = collect(&engine, &ids);
        for (id, request) in ids.iter().zip(&requests) {
            let own = alone(style, 64, request);
            assert_eq!(answers[id].essence(), own.essence());
            assert!(answers[id].prefills > 0);
        }
        let stats = engine.stats();
        assert_eq!(stats.finished, 40);
        assert_eq!(stats.kv_pages, stats.kv_pages_free + stats.prefix_pages);
    }
}

#[test]
fn the_same_prompt_again_is_cached_up_to_its_last_token() {
    let engine = start(Scripted::new(Style::Chaotic), 64, EngineConfig::default());
    let asked = request(&prompt(1, 77), 5);
    let first = engine.submit(asked.clone()).unwrap();
    let first = collect(&engine, &[first]).remove(&first).unwrap();
    let second = engine.submit(asked).unwrap();
    let second = collect(&engine, &[second]).remove(&second).unwrap();
    assert_eq!(first.usage.cached_tokens, 0);
    assert_eq!(second.usage.cached_tokens, 76);
    assert_eq!(first.essence(), second.essence());
}

#[test]
fn several_answers_to_one_prompt_read_it_once() {
    let engine = start(Scripted::new(Style::Chaotic), 64, EngineConfig::default());
    let ids: Vec<RequestId> = (0..4)
        .map(|seed| {
            let mut one = request(&prompt(1, 200), 5);
            one.sampling.temperature = 1.0;
            one.sampling.seed = seed;
            engine.submit(one).unwrap()
        })
        .collect();
    let answers = collect(&engine, &ids);
    let cached: usize = answers.values().map(|answer| answer.usage.cached_tokens).sum();
    assert_eq!(cached, 3 * 199);
}

#[test]
fn a_failing_step_fails_only_the_request_at_fault() {
    let mut forward = Scripted::new(Style::Chaotic);
    forward.poison.insert(3);
    forward.nan.insert(4);
    let engine = start(forward, 64, EngineConfig::default());
    let good = request(&prompt(1, 40), 20);
    let ids = [
        engine.submit(good.clone()).unwrap(),
        engine.submit(request(&[40, 41, 3], 20)).unwrap(),
        engine.submit(request(&[40, 41, 4], 20)).unwrap(),
    ];
    let answers = collect(&engine, &ids);
    assert_eq!(answers[&ids[0]].essence(), alone(Style::Chaotic, 64, &good).essence());
    for (id, word) in [(ids[1], "poison"), (ids[2], "finite")] {
        assert_eq!(answers[&id].reason, Some(FinishReason::Failed));
        assert!(answers[&id].error.as_deref().unwrap().contains(word));
    }
    assert!(engine.is_healthy());
}

#[test]
fn a_panic_ends_every_request_and_leaves_the_engine_unhealthy() {
    let mut forward = Scripted::new(Style::Chaotic);
    forward.panics.insert(3);
    let engine = start(forward, 64, EngineConfig::default());
    let ids = [
        engine.submit(request(&prompt(1, 40), 400)).unwrap(),
        engine.submit(request(&[40, 41, 3], 20)).unwrap(),
    ];
    let answers = collect(&engine, &ids);
    for id in ids {
        assert_eq!(answers[&id].reason, Some(FinishReason::Failed));
        assert!(answers[&id].error.as_deref().unwrap().contains("not survived"));
    }
    assert!(!engine.is_healthy());
    assert!(engine.submit(request(&[40], 1)).is_err());
}

#[test]
fn a_full_queue_refuses_and_takes_again_after_a_drain() {
    let config = EngineConfig { active_max: 2, queue_max: 3, ..EngineConfig::default() };
    let engine = start(Scripted::new(Style::Chaotic), 64, config);
    let ids: Vec<RequestId> =
        (0..5).map(|seed| engine.submit(request(&prompt(seed, 30), 10)).unwrap()).collect();
    let refused = engine.submit(request(&[40], 1));
    assert!(matches!(refused, Err(Error::Busy { retry_after_ms: 100.., .. })), "{refused:?}");
    collect(&engine, &ids);
    engine.submit(request(&[40], 1)).unwrap();
}

#[test]
fn a_grammar_forces_its_tokens_and_ends_the_answer() {
    let engine = start(Scripted::new(Style::Chaotic), 64, EngineConfig::default());
    for logprobs in [None, Some(2)] {
        let mut one = request(&prompt(1, 40), 100);
        one.constraint = Some(Constraint::Lark("{\"name\": \"???\"}".to_owned()));
        one.logprobs = logprobs;
        let id = engine.submit(one).unwrap();
        let answer = collect(&engine, &[id]).remove(&id).unwrap();
        assert!(answer.text.starts_with("{\"name\": \"") && answer.text.ends_with("\"}"));
        assert_eq!(answer.text.len(), 15);
        assert_eq!(answer.reason, Some(FinishReason::Stop));
        assert_eq!(answer.usage.drafted_tokens, 12);
        assert_eq!(answer.logprobs.len(), logprobs.map_or(0, |_| 15));
    }
}

#[test]
fn a_grammar_that_allows_nothing_ends_in_a_failure_with_its_reason() {
    let engine = start(Scripted::new(Style::Chaotic), 64, EngineConfig::default());
    let mut one = request(&prompt(1, 40), 100);
    one.constraint = Some(Constraint::Lark("ab!".to_owned()));
    let id = engine.submit(one).unwrap();
    let answer = collect(&engine, &[id]).remove(&id).unwrap();
    assert_eq!(answer.reason, Some(FinishReason::Failed));
    assert!(answer.error.unwrap().contains("no token"));
}

#[test]
fn an_answer_nobody_drains_waits_and_goes_on_where_it_was() {
    let mut forward = Scripted::with(Style::Chaotic, 4096, 64, 32);
    forward.pause = Duration::from_micros(20);
    let engine = start(forward, 400, EngineConfig::default());
    let mut one = request(&prompt(1, 20), 4000);
    one.ignore_end = true;
    one.logprobs = Some(20);
    let slow = engine.submit(one.clone()).unwrap();
    let begin = Instant::now();
    while engine.stats().paused == 0 {
        assert!(begin.elapsed() < Duration::from_secs(60), "it was never paused");
        std::thread::sleep(Duration::from_millis(1));
    }
    let spoken = engine.stats().completion_tokens;
    assert!(spoken < 200, "{spoken} tokens wait in memory");
    // Another request, whose reader is quick, is not disturbed.
    let quick = engine.submit(request(&prompt(2, 40), 50)).unwrap();
    let mut updates = Vec::new();
    while !updates.iter().any(|(id, update)| {
        *id == quick && matches!(update, crate::llm::request::Update::Finished { .. })
    }) {
        assert!(begin.elapsed() < Duration::from_secs(60), "the quick one hangs");
        engine.drain(&[slow], &mut updates);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(updates.iter().all(|(id, _)| *id == quick));
    assert_eq!(engine.stats().paused, 1);
    let answers = collect(&engine, &[slow]);
    assert_eq!(answers[&slow].usage.completion_tokens, 4000);
    assert_eq!(answers[&slow].logprobs.len(), 4000);
}

#[test]
fn the_descriptor_is_readable_while_something_waits() {
    let engine = start(Scripted::new(Style::Chaotic), 64, EngineConfig::default());
    let readable = || {
        let mut entry = libc::pollfd { fd: engine.wake_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid entry, and no waiting.
        unsafe { libc::poll(&raw mut entry, 1, 0) == 1 }
    };
    assert!(!readable());
    let id = engine.submit(request(&prompt(1, 20), 5)).unwrap();
    let begin = Instant::now();
    while engine.stats().finished == 0 {
        assert!(begin.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(readable());
    assert_eq!(collect(&engine, &[id]).len(), 1);
    assert!(!readable());
}

#[test]
fn shutting_down_ends_what_runs_and_its_last_updates_can_be_drained() {
    let engine = start(Scripted::with(Style::Chaotic, 8000, 64, 32), 400, EngineConfig::default());
    let ids: Vec<RequestId> = (0..5)
        .map(|seed| {
            let mut one = request(&prompt(seed, 30), 7000);
            one.ignore_end = true;
            engine.submit(one).unwrap()
        })
        .collect();
    engine.shutdown();
    engine.shutdown();
    for answer in collect(&engine, &ids).values() {
        assert!(matches!(answer.reason, Some(FinishReason::Cancelled | FinishReason::Failed)));
    }
    assert!(engine.submit(request(&[40], 1)).is_err());
    assert!(engine.save_snapshot().is_err());
}

#[test]
fn threads_that_submit_and_cancel_at_once_each_get_their_answers() {
    let config = EngineConfig { active_max: 4, queue_max: 40, ..EngineConfig::default() };
    let engine = start(Scripted::new(Style::Repetitive), 24, config);
    let ended = std::sync::atomic::AtomicUsize::new(0);
    let answers = std::sync::Mutex::new(HashMap::<RequestId, Answer>::new());
    let accepted = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (engine, accepted) = (&engine, &accepted);
            scope.spawn(move || {
                for round in 0..60 {
                    let seed = mix(thread, round);
                    let length = 5 + (seed % 150) as usize;
                    let mut one = request(&prompt(seed % 5, length), (seed >> 8) as usize % 60);
                    one.sampling.temperature = (seed % 2) as f32;
                    one.sampling.seed = seed;
                    match engine.submit(one.clone()) {
                        Ok(id) => {
                            if seed.is_multiple_of(3) {
                                engine.cancel(id);
                            }
                            accepted.lock().unwrap().push((id, one));
                        }
                        Err(Error::Busy { .. }) => std::thread::sleep(Duration::from_millis(1)),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                let begin = Instant::now();
                let mut updates = Vec::new();
                while begin.elapsed() < Duration::from_secs(60) {
                    let mut all = answers.lock().unwrap();
                    engine.drain(&[], &mut updates);
                    for (id, update) in updates.drain(..) {
                        all.entry(id).or_default().take(update);
                    }
                    let done = all.values().filter(|answer| answer.reason.is_some()).count();
                    drop(all);
                    ended.store(done, std::sync::atomic::Ordering::Relaxed);
                    let stats = engine.stats();
                    let asked = accepted.lock().unwrap().len();
                    if done == asked && asked > 0 && stats.active + stats.queued == 0 {
                        std::thread::sleep(Duration::from_millis(5));
                        if accepted.lock().unwrap().len() == asked {
                            return;
                        }
                    }
                    std::thread::yield_now();
                }
                panic!("requests hang");
            });
        }
    });
    let answers = answers.into_inner().unwrap();
    for (id, request) in accepted.into_inner().unwrap() {
        let answer = &answers[&id];
        let own = alone(Style::Repetitive, 24, &request);
        if answer.reason == Some(FinishReason::Cancelled) {
            assert!(own.text.starts_with(&answer.text));
        } else {
            assert_eq!(answer.essence(), own.essence());
        }
    }
    let stats = engine.stats();
    assert_eq!(stats.kv_pages, stats.kv_pages_free + stats.prefix_pages);
}

#[test]
fn a_prefix_that_is_pinned_later_is_pinned_from_its_beginning_and_can_be_written() {
    let folder = std::env::temp_dir().join(format!("qbtc-pins-{}", std::process::id()));
    let snapshot =
        SnapshotConfig { path: folder.join("cache"), identity: [7; 32], bytes_max: u64::MAX };
    let config = EngineConfig { snapshot: Some(snapshot), ..EngineConfig::default() };
    let engine = start(Scripted::new(Style::Chaotic), 64, config);
    let mut asked = request(&prompt(1, 70), 2);
    for (tokens, pinned) in [(70, 0), (140, 128)] {
        asked.prompt = prompt(1, tokens);
        asked.pinned = pinned;
        let id = engine.submit(asked.clone()).unwrap();
        collect(&engine, &[id]);
    }
    assert_eq!(engine.stats().pinned_pages, 4);
    assert_eq!(engine.save_snapshot().unwrap().pages, engine.stats().prefix_pages);
    engine.shutdown();
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_snapshot_brings_the_cache_back() {
    let folder = std::env::temp_dir().join(format!("qbtc-engine-{}", std::process::id()));
    let snapshot =
        SnapshotConfig { path: folder.join("cache"), identity: [7; 32], bytes_max: u64::MAX };
    let config = EngineConfig { snapshot: Some(snapshot), ..EngineConfig::default() };
    let asked = request(&prompt(1, 150), 5);
    let first = start(Scripted::new(Style::Chaotic), 64, config.clone());
    assert_eq!(first.restored(), &Restored::Nothing);
    let id = first.submit(asked.clone()).unwrap();
    let before = collect(&first, &[id]).remove(&id).unwrap();
    let saved = first.save_snapshot().unwrap();
    assert_eq!(saved.pages, 5);
    first.shutdown();
    let second = start(Scripted::new(Style::Chaotic), 64, config);
    assert_eq!(second.restored(), &Restored::Pages(5));
    let id = second.submit(asked).unwrap();
    let after = collect(&second, &[id]).remove(&id).unwrap();
    assert_eq!(after.usage.cached_tokens, 149);
    assert_eq!(after.essence(), before.essence());
    std::fs::remove_dir_all(folder).unwrap();
}
