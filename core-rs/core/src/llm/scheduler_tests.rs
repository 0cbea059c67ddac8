//! The scheduler under arbitrary interleavings: pages are conserved, every request ends exactly
//! once, and every answer is the one the request would get alone.

use std::collections::HashMap;

use proptest::prelude::*;

use crate::llm::engine::EngineConfig;
use crate::llm::request::{Constraint, FinishReason, GenerationRequest, RequestId, Update};
use crate::llm::scheduler::Scheduler;
use crate::llm::scripted::{Answer, Scripted, Style, alone, prompt, request, scheduler, sequence};

fn deliver(scheduler: &mut Scheduler, answers: &mut HashMap<RequestId, Answer>) {
    for (id, update) in scheduler.updates.drain(..) {
        answers.entry(id).or_default().take(update);
    }
}

/// Step until nothing is left to do.
fn finish(scheduler: &mut Scheduler, answers: &mut HashMap<RequestId, Answer>) {
    for _ in 0..20_000 {
        deliver(scheduler, answers);
        if scheduler.is_idle() {
            return;
        }
        scheduler.step();
        scheduler.assert_pages_conserved();
    }
    panic!("it does not end: {scheduler:?}");
}

fn run(scheduler: &mut Scheduler, request: &GenerationRequest, id: u64) -> Answer {
    scheduler.submit(sequence(id, request, scheduler.kv_pages()));
    let mut answers = HashMap::new();
    finish(scheduler, &mut answers);
    answers.remove(&RequestId(id)).unwrap()
}

#[derive(Clone, Debug)]
enum Action {
    Submit(GenerationRequest),
    Cancel(usize),
    Pause(usize, bool),
    Steps(usize),
}

fn any_request() -> impl Strategy<Value = GenerationRequest> {
    let shape = (0_u64..3, 0_usize..100, 0_u64..4, 1_usize..60, 0_usize..60);
    let extras = (any::<bool>(), 0_u64..1000, 0_u32..12, 0_usize..80);
    (shape, extras).prop_map(|((base, shared, tail, rest, new), (hot, seed, kind, pinned))| {
        // Prompts share prefixes of any length.
        let mut tokens = prompt(base, shared);
        tokens.extend(prompt(10 + tail, rest));
        let mut one = request(&tokens, new);
        one.pinned = pinned;
        one.sampling.seed = seed;
        one.sampling.temperature = if hot { 1.0 } else { 0.0 };
        match kind {
            0 => one.stop = vec!["ab".to_owned(), "q".to_owned()],
            1 => one.constraint = Some(Constraint::Lark("<???> and <????????>".to_owned())),
            2 => one.logprobs = Some(3),
            3 => one.ignore_end = true,
            4 => one.sampling.repetition_penalty = 1.3,
            5 => one.sampling.frequency_penalty = 0.7,
            6 => (one.sampling.top_k, one.sampling.top_p) = (40, 0.8),
            _ => {}
        }
        one
    })
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => any_request().prop_map(Action::Submit),
        1 => any::<usize>().prop_map(Action::Cancel),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(index, on)| Action::Pause(index, on)),
        4 => (1_usize..12).prop_map(Action::Steps),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_gives_each_request_its_own_answer(
        actions in prop::collection::vec(any_action(), 1..60),
        pages in prop_oneof![Just(8_usize), Just(14), Just(200)],
        repetitive in any::<bool>(),
        active_max in 1_usize..10,
        prefix_pages in prop_oneof![Just(3_usize), Just(1000)],
    ) {
        let style = if repetitive { Style::Repetitive } else { Style::Chaotic };
        let config = EngineConfig {
            active_max,
            step_tokens_idle: 48,
            step_tokens_decoding: 20,
            prefix_bytes_max: Scripted::pool(prefix_pages),
            pinned_bytes_max: Scripted::pool(4),
            ..EngineConfig::default()
        };
        let mut scheduler = scheduler(Scripted::new(style), pages, config);
        let mut requests: Vec<GenerationRequest> = Vec::new();
        let mut cancelled = Vec::new();
        let mut answers = HashMap::new();
        for action in actions {
            match action {
                Action::Submit(request) => {
                    scheduler.submit(sequence(requests.len() as u64, &request, pages));
                    requests.push(request);
                }
                Action::Cancel(index) if !requests.is_empty() => {
                    let id = RequestId((index % requests.len()) as u64);
                    scheduler.cancel(id);
                    cancelled.push(id);
                }
                Action::Pause(index, paused) if !requests.is_empty() => {
                    scheduler.pause(RequestId((index % requests.len()) as u64), paused);
                }
                Action::Steps(count) => {
                    for _ in 0..count {
                        scheduler.step();
                        scheduler.assert_pages_conserved();
                    }
                }
                _ => {}
            }
            scheduler.assert_pages_conserved();
            deliver(&mut scheduler, &mut answers);
        }
        for index in 0..requests.len() {
            scheduler.pause(RequestId(index as u64), false);
        }
        finish(&mut scheduler, &mut answers);
        prop_assert_eq!(answers.len(), requests.len());
        for (index, request) in requests.iter().enumerate() {
            let id = RequestId(index as u64);
            let own = alone(style, pages, request);
            let answer = &answers[&id];
            if answer.reason == Some(FinishReason::Cancelled) {
                prop_assert!(cancelled.contains(&id));
                prop_assert!(own.text.starts_with(&answer.text), "request {}", index);
            } else {
                prop_assert_eq!(answer.essence(), own.essence(), "request {}", index);
            }
        }
        let stats = scheduler.stats();
        prop_assert_eq!(stats.kv_pages, stats.kv_pages_free + stats.prefix_pages);
        prop_assert!(stats.prefix_pages <= prefix_pages && stats.pinned_pages <= 4);
        prop_assert_eq!(stats.finished as usize, requests.len());
    }
}

#[test]
fn guesses_are_accepted_and_change_nothing() {
    let config = EngineConfig::default();
    let mut scheduler = scheduler(Scripted::new(Style::Repetitive), 64, config);
    for (id, temperature) in [(1, 0.0), (2, 0.3)] {
        let mut one = request(&prompt(id, 30), 400);
        one.sampling.temperature = temperature;
        one.ignore_end = true;
        one.logprobs = Some(1);
        let answer = run(&mut scheduler, &one, id);
        let own = alone(Style::Repetitive, 64, &one);
        assert_eq!(answer.essence(), own.essence());
        assert_eq!(own.usage.drafted_tokens, 0);
        assert!(answer.usage.drafted_tokens > 50, "{}", answer.usage.drafted_tokens);
    }
    assert!(scheduler.stats().steps < 700);
}

#[test]
fn an_answer_is_cached_for_the_next_turn_of_its_chat() {
    let mut scheduler = scheduler(Scripted::new(Style::Chaotic), 64, EngineConfig::default());
    let first = request(&prompt(1, 50), 40);
    let answer = run(&mut scheduler, &first, 1);
    let mut next = first.clone();
    next.prompt.extend(answer.text.bytes().map(u32::from));
    next.prompt.extend(prompt(2, 10));
    let spoken = answer.usage.completion_tokens;
    assert_eq!(answer.text.len(), spoken, "every token is one byte of ASCII here");
    let answer = run(&mut scheduler, &next, 2);
    // The last token of an answer is never read by the model.
    assert_eq!(answer.usage.cached_tokens, 50 + spoken - 1);
}

#[test]
fn a_long_prompt_does_not_hold_up_the_tokens_of_an_answer() {
    let config = EngineConfig { step_tokens_decoding: 10, ..EngineConfig::default() };
    let mut scheduler = scheduler(Scripted::new(Style::Chaotic), 64, config);
    let mut first = request(&prompt(1, 10), 100);
    first.ignore_end = true;
    scheduler.submit(sequence(1, &first, 64));
    scheduler.step();
    scheduler.submit(sequence(2, &request(&prompt(2, 300), 5), 64));
    for _ in 0..20 {
        scheduler.updates.clear();
        scheduler.step();
        let count = |wanted: u64| {
            scheduler.updates.iter().filter(|(id, _)| *id == RequestId(wanted)).count()
        };
        assert_eq!((count(1), count(2)), (1, 1), "{:?}", scheduler.updates);
    }
}

#[test]
fn a_cancelled_prompt_that_is_half_read_goes_on_into_the_cache() {
    for (steps, cached) in [(6, 199), (3, 96)] {
        let config = EngineConfig { step_tokens_idle: 33, ..EngineConfig::default() };
        let mut scheduler = scheduler(Scripted::new(Style::Chaotic), 64, config);
        let one = request(&prompt(1, 200), 5);
        scheduler.submit(sequence(1, &one, 64));
        for _ in 0..steps.min(4) {
            scheduler.step();
        }
        if steps == 3 {
            assert_eq!(scheduler.stats().processed_tokens, 99);
        }
        scheduler.cancel(RequestId(1));
        assert!(matches!(
            scheduler.updates.last(),
            Some((_, Update::Finished { reason: FinishReason::Cancelled, .. }))
        ));
        let mut answers = HashMap::new();
        scheduler.updates.clear();
        finish(&mut scheduler, &mut answers);
        assert!(answers.is_empty());
        let again = run(&mut scheduler, &one, 2);
        let found = again.usage.cached_tokens;
        assert!(found == cached || found == 99, "{found} after {steps} steps");
    }
}

#[test]
fn a_pool_too_small_for_all_gives_pages_to_the_oldest() {
    let mut scheduler = scheduler(Scripted::new(Style::Chaotic), 8, EngineConfig::default());
    let requests: Vec<GenerationRequest> = (0..6)
        .map(|seed| {
            let mut one = request(&prompt(seed, 20), 200);
            one.ignore_end = true;
            one
        })
        .collect();
    for (id, request) in requests.iter().enumerate() {
        scheduler.submit(sequence(id as u64, request, 8));
    }
    let mut answers = HashMap::new();
    finish(&mut scheduler, &mut answers);
    assert!(scheduler.stats().preempted > 0);
    for (id, request) in requests.iter().enumerate() {
        let own = alone(Style::Chaotic, 8, request);
        assert_eq!(answers[&RequestId(id as u64)].essence(), own.essence());
    }
}

#[test]
fn a_prompt_read_again_reports_no_more_cached_than_done() {
    let config = EngineConfig {
        step_tokens_idle: 40,
        prefix_bytes_max: usize::MAX,
        ..EngineConfig::default()
    };
    let mut scheduler = scheduler(Scripted::new(Style::Chaotic), 8, config);
    let shared = prompt(1, 100);
    run(&mut scheduler, &request(&shared, 1), 1);
    let mut half_read = request(&shared, 1);
    half_read.prompt.extend(prompt(2, 100));
    scheduler.submit(sequence(2, &half_read, 8));
    scheduler.step();
    scheduler.pause(RequestId(2), true);
    // It takes the pages of the paused one, and of the prefix that it found in the cache.
    let whole_pool = run(&mut scheduler, &request(&prompt(3, 200), 40), 3);
    assert!(scheduler.stats().preempted > 0 && whole_pool.usage.completion_tokens > 0);
    scheduler.pause(RequestId(2), false);
    let mut answers = HashMap::new();
    finish(&mut scheduler, &mut answers);
    let answer = &answers[&RequestId(2)];
    assert!(answer.usage.cached_tokens > 40 && answer.prefills > 4, "{answer:?}");
}

#[test]
fn a_prompt_beyond_the_pool_or_the_context_is_refused_with_both_numbers() {
    use crate::Error;
    use crate::llm::forward::Forward;
    use crate::llm::scripted::Bytes;
    use crate::llm::sequence::Sequence;
    let shape = Scripted::new(Style::Chaotic).shape().clone();
    for (pages, tokens_max) in [(8, 256), (64, 512)] {
        let one = request(&prompt(1, tokens_max), 1);
        let refused = Sequence::new(RequestId(1), one, &shape, pages, &Bytes::new());
        match refused {
            Err(Error::ContextLength { tokens, tokens_max: most }) => {
                assert_eq!((tokens, most), (tokens_max, tokens_max));
            }
            other => panic!("{other:?}"),
        }
    }
    let empty = Sequence::new(RequestId(1), request(&[], 1), &shape, 8, &Bytes::new());
    assert!(empty.unwrap_err().to_string().contains("no tokens"));
    let unknown = Sequence::new(RequestId(1), request(&[9999], 1), &shape, 8, &Bytes::new());
    assert!(unknown.unwrap_err().to_string().contains("vocabulary"));
}
