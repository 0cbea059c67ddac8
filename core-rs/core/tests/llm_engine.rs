//! The engine over the shipped model: answers do not depend on batch, cache, guesses or restarts.
//! Skipped without `QBTC_TEST_MODEL`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qbtc_core::llm::TokenId;
use qbtc_core::llm::engine::{Engine, EngineConfig};
use qbtc_core::llm::gguf::Gguf;
use qbtc_core::llm::graph::{Graph, LoadOptions};
use qbtc_core::llm::language::ModelLanguage;
use qbtc_core::llm::request::{
    Constraint, FinishReason, GenerationRequest, RequestId, Sampling, Update, Usage,
};
use qbtc_core::llm::snapshot::{Restored, SnapshotConfig};
use qbtc_core::llm::tokenizer::{SpecialTokens, Tokenizer};

struct Model {
    file: Gguf,
    tokenizer: Arc<Tokenizer>,
}

#[derive(Debug, Default)]
struct Answer {
    text: String,
    logprobs: Vec<u32>,
    end: Option<(FinishReason, Option<String>)>,
    usage: Usage,
}

impl Model {
    fn open() -> Option<Self> {
        let Some(path) = std::env::var_os("QBTC_TEST_MODEL") else {
            eprintln!("skipped: QBTC_TEST_MODEL is not set");
            return None;
        };
        let file = Gguf::open(&PathBuf::from(path)).unwrap();
        let tokenizer = Arc::new(Tokenizer::from_gguf(&file).unwrap());
        Some(Self { file, tokenizer })
    }

    fn start(&self, config: EngineConfig) -> Engine {
        let graph = Graph::load(&self.file, &LoadOptions::default()).unwrap();
        let language = Arc::new(ModelLanguage::new(Arc::clone(&self.tokenizer)).unwrap());
        Engine::start(Box::new(graph), language, config).unwrap()
    }

    fn tokens(&self, system: &str, user: &str) -> Vec<TokenId> {
        let text = format!(
            "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n\
             <|im_start|>assistant\n"
        );
        self.tokenizer.encode(&text, SpecialTokens::Parse).unwrap()
    }

    fn request(&self, user: &str, new_tokens_max: usize) -> GenerationRequest {
        GenerationRequest {
            prompt: self.tokens("You are a helpful assistant.", user),
            pinned: 0,
            new_tokens_max,
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            stop: Vec::new(),
            constraint: None,
            logprobs: Some(0),
            ignore_end: false,
        }
    }
}

fn collect(engine: &Engine, ids: &[RequestId]) -> HashMap<RequestId, Answer> {
    let begin = Instant::now();
    let mut answers: HashMap<RequestId, Answer> = HashMap::new();
    let mut updates = Vec::new();
    while !ids.iter().all(|id| answers.get(id).is_some_and(|answer| answer.end.is_some())) {
        assert!(begin.elapsed() < Duration::from_secs(300), "a request hangs");
        engine.drain(&[], &mut updates);
        for (id, update) in updates.drain(..) {
            let answer = answers.entry(id).or_default();
            match update {
                Update::Prefill { .. } => {}
                Update::Text { text, logprobs, .. } => {
                    answer.text.push_str(&text);
                    answer.logprobs.extend(logprobs.iter().map(|one| one.chosen.logprob.to_bits()));
                }
                Update::Finished { reason, error, usage, .. } => {
                    answer.end = Some((reason, error));
                    answer.usage = usage;
                }
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    answers
}

fn ask(engine: &Engine, request: &GenerationRequest) -> Answer {
    let id = engine.submit(request.clone()).unwrap();
    collect(engine, &[id]).remove(&id).unwrap()
}

fn small() -> EngineConfig {
    EngineConfig { kv_bytes_max: 96 << 20, ..EngineConfig::default() }
}

#[test]
fn answers_have_the_same_bits_alone_together_guessed_and_cached() {
    let Some(model) = Model::open() else { return };
    let plain = model.start(EngineConfig { speculation: false, ..small() });
    let engine = model.start(small());
    let echo = "Repeat this list twice: alpha, beta, gamma, delta, epsilon, zeta, eta, theta.";
    let users = [echo, "What is the capital of France?", "Write a haiku.", echo, "Count to ten."];
    let requests: Vec<GenerationRequest> = users
        .iter()
        .enumerate()
        .map(|(index, user)| {
            let mut request = model.request(user, 60);
            request.sampling.temperature = if index % 2 == 0 { 0.0 } else { 0.8 };
            request.sampling.seed = index as u64;
            request
        })
        .collect();
    let expected: Vec<Answer> = requests.iter().map(|request| ask(&plain, request)).collect();
    let ids: Vec<RequestId> =
        requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let together = collect(&engine, &ids);
    for ((id, own), request) in ids.iter().zip(&expected).zip(&requests) {
        assert_eq!(together[id].text, own.text);
        assert_eq!(together[id].logprobs, own.logprobs);
        let again = ask(&engine, request);
        assert_eq!((&again.text, &again.logprobs), (&own.text, &own.logprobs));
        assert_eq!(again.usage.cached_tokens, request.prompt.len() - 1);
    }
    let capital = &expected[1].text;
    assert!(expected.iter().all(|answer| !answer.text.is_empty()), "{capital}");
    let stats = engine.stats();
    assert!(stats.drafted_tokens > 0 && stats.proposed_tokens >= stats.drafted_tokens);
    assert_eq!(stats.kv_pages, stats.kv_pages_free + stats.prefix_pages);
}

#[test]
fn an_answer_to_a_schema_is_json_of_it() {
    let Some(model) = Model::open() else { return };
    let engine = model.start(small());
    let schema = r#"{"type":"object","properties":{"city":{"type":"string","maxLength":20},
        "population_millions":{"type":"number"},"capital":{"type":"boolean"}},
        "required":["city","population_millions","capital"],"additionalProperties":false}"#;
    let mut request = model.request("Describe Paris as JSON.", 120);
    request.constraint = Some(Constraint::JsonSchema(schema.to_owned()));
    for (logprobs, temperature) in [(None, 0.0), (Some(2), 0.0), (None, 1.0)] {
        request.logprobs = logprobs;
        request.sampling.temperature = temperature;
        let answer = ask(&engine, &request);
        assert_eq!(answer.end, Some((FinishReason::Stop, None)), "{}", answer.text);
        let value: serde_json::Value = serde_json::from_str(&answer.text).unwrap();
        assert!(value["city"].is_string() && value["capital"].is_boolean());
        assert!(answer.usage.drafted_tokens > 0);
    }
    let mut broken = request;
    broken.constraint = Some(Constraint::JsonSchema("{\"type\":\"nothing\"}".to_owned()));
    assert!(engine.submit(broken).is_err());
}

#[test]
fn a_system_prompt_survives_a_restart() {
    let Some(model) = Model::open() else { return };
    let folder = std::env::temp_dir().join(format!("qbtc-llm-engine-{}", std::process::id()));
    let config = EngineConfig {
        kv_bytes_max: 256 << 20,
        snapshot: Some(SnapshotConfig {
            path: folder.join("cache"),
            identity: model.file.sha256(),
            bytes_max: 1 << 30,
        }),
        ..EngineConfig::default()
    };
    let rules: Vec<String> = (0..120).map(|n| format!("Rule {n}: be brief and kind.")).collect();
    let rules = rules.join(" ");
    let mut request = model.request("", 8);
    request.prompt = model.tokens(&rules, "Say hello.");
    let first = model.start(config.clone());
    let cold = ask(&first, &request);
    first.shutdown();
    let begin = Instant::now();
    let second = model.start(config);
    let started = begin.elapsed();
    assert!(matches!(second.restored(), Restored::Pages(_)), "{:?}", second.restored());
    let warm = ask(&second, &request);
    assert_eq!((&warm.text, &warm.logprobs), (&cold.text, &cold.logprobs));
    assert_eq!(warm.usage.cached_tokens, request.prompt.len() - 1);
    eprintln!(
        "{} tokens: first token after {} ms cold, {} ms after a restart of {} ms",
        request.prompt.len(),
        cold.usage.first_token_ns / 1_000_000,
        warm.usage.first_token_ns / 1_000_000,
        started.as_millis()
    );
    std::fs::remove_dir_all(folder).unwrap();
}
