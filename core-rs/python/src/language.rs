//! `LanguageEngine`: language models from Python, and what their files say about themselves.

#![expect(clippy::needless_pass_by_value, reason = "pyo3 hands extracted arguments over by value")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use qbtc_core::Error;
use qbtc_core::llm::TokenId;
use qbtc_core::llm::constraint;
use qbtc_core::llm::engine::{Engine, EngineConfig};
use qbtc_core::llm::gguf::writer::TinyModel;
use qbtc_core::llm::gguf::{Gguf, TensorKind};
use qbtc_core::llm::graph::{Graph, LoadOptions};
use qbtc_core::llm::language::ModelLanguage;
use qbtc_core::llm::model::LanguageModel;
use qbtc_core::llm::perplexity::{Comparison, compare};
use qbtc_core::llm::reference::Reference;
use qbtc_core::llm::request::{
    ChosenToken, Constraint, FinishReason, GenerationRequest, RequestId, Sampling, TokenLogprob,
    Update, Usage,
};
use qbtc_core::llm::snapshot::{Restored, SnapshotConfig};
use qbtc_core::llm::summary::ModelSummary;
use qbtc_core::llm::template::ChatTemplate;
use qbtc_core::llm::tokenizer::{SpecialTokens, Tokenizer};
use qbtc_core::signal::Isa;

use crate::error::to_py;

/// Lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn summary_dict<'py>(py: Python<'py>, summary: &ModelSummary) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("architecture", &summary.architecture)?;
    out.set_item("name", &summary.name)?;
    out.set_item("context_tokens", summary.context)?;
    out.set_item("vocabulary", summary.vocab)?;
    out.set_item("parameters", summary.parameters)?;
    out.set_item("quantization", summary.quantisation)?;
    out.set_item("bytes", summary.bytes)?;
    Ok(out)
}

/// A model and its engine. Every call leaves the engine's thread alone; only `close` waits for it.
#[pyclass(frozen, module = "qbtc._core")]
struct LanguageEngine {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    /// Or why there is none.
    template: Result<ChatTemplate, String>,
    summary: ModelSummary,
    sha256: [u8; 32],
    isa: Isa,
    threads: usize,
}

#[pymethods]
impl LanguageEngine {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "one an option, by name")]
    #[pyo3(signature = (
        path, *, threads=None, isa=None, kv_bytes_max=None, active_max=64, queue_max=256,
        speculation=true, snapshot=None
    ))]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        threads: Option<usize>,
        isa: Option<&str>,
        kv_bytes_max: Option<usize>,
        active_max: usize,
        queue_max: usize,
        speculation: bool,
        snapshot: Option<PathBuf>,
    ) -> PyResult<Self> {
        let defaults = LoadOptions::default();
        let options = LoadOptions {
            threads: threads.unwrap_or(defaults.threads),
            isa: isa.map(Isa::parse).transpose().map_err(to_py)?,
            ..defaults
        };
        let defaults = EngineConfig::default();
        let kv_bytes_max = kv_bytes_max.unwrap_or(defaults.kv_bytes_max);
        let mut config =
            EngineConfig { kv_bytes_max, active_max, queue_max, speculation, ..defaults };
        py.detach(|| {
            let model = LanguageModel::load(&path, &options)?;
            let language = Arc::new(ModelLanguage::new(Arc::clone(&model.tokenizer))?);
            let isa = model.forward.isa();
            config.snapshot = snapshot.map(|path| SnapshotConfig {
                path,
                identity: identity(model.sha256, isa),
                bytes_max: kv_bytes_max as u64,
            });
            let engine = Engine::start(Box::new(model.forward), language, config)?;
            Ok(Self {
                engine,
                tokenizer: model.tokenizer,
                template: model.template.map_err(|error| error.to_string()),
                summary: model.info,
                sha256: model.sha256,
                isa,
                threads: options.threads,
            })
        })
        .map_err(to_py)
    }

    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let out = summary_dict(py, &self.summary)?;
        out.set_item("sha256", hex(&self.sha256))?;
        out.set_item("isa", self.isa.name())?;
        out.set_item("threads", self.threads)?;
        out.set_item("reads_tools", self.template.as_ref().is_ok_and(ChatTemplate::reads_tools))?;
        out.set_item("suffix", self.tokenizer.infill().is_some())?;
        out.set_item("bos", self.tokenizer.bos())?;
        out.set_item("end_tokens", self.tokenizer.end_tokens())?;
        Ok(out)
    }

    #[pyo3(signature = (text, *, special=false))]
    fn encode(&self, py: Python<'_>, text: &str, special: bool) -> PyResult<Vec<TokenId>> {
        let special = if special { SpecialTokens::Parse } else { SpecialTokens::AsText };
        py.detach(|| self.tokenizer.encode(text, special)).map_err(to_py)
    }

    #[pyo3(signature = (tokens, *, keep_control=false))]
    fn decode<'py>(
        &self,
        py: Python<'py>,
        tokens: Vec<TokenId>,
        keep_control: bool,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let vocab = self.tokenizer.vocab();
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            let reason = format!("{token} is outside the vocabulary of {vocab}");
            return Err(to_py(Error::input("tokens", reason)));
        }
        let bytes = py.detach(|| self.tokenizer.decode(&tokens, keep_control));
        Ok(PyBytes::new(py, &bytes))
    }

    #[pyo3(signature = (messages_json, tools_json, *, add_generation_prompt, now_unix_s))]
    fn render(
        &self,
        py: Python<'_>,
        messages_json: &str,
        tools_json: Option<&str>,
        add_generation_prompt: bool,
        now_unix_s: i64,
    ) -> PyResult<String> {
        let template = self
            .template
            .as_ref()
            .map_err(|reason| to_py(Error::model("tokenizer.chat_template", reason.as_str())))?;
        py.detach(|| {
            let messages = json("messages", messages_json)?;
            let tools = tools_json.map(|text| json("tools", text)).transpose()?;
            template.render(&messages, tools.as_ref(), add_generation_prompt, now_unix_s)
        })
        .map_err(to_py)
    }

    #[expect(clippy::too_many_arguments, reason = "one a setting, by name")]
    #[pyo3(signature = (
        prompt, new_tokens_max, *, pinned=0, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0,
        presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0, logit_bias=None,
        seed=0, stop=Vec::new(), constraint=None, logprobs=None, ignore_end=false
    ))]
    fn submit(
        &self,
        py: Python<'_>,
        prompt: Vec<TokenId>,
        new_tokens_max: usize,
        pinned: usize,
        temperature: f32,
        top_k: usize,
        top_p: f32,
        min_p: f32,
        presence_penalty: f32,
        frequency_penalty: f32,
        repetition_penalty: f32,
        logit_bias: Option<BTreeMap<TokenId, f32>>,
        seed: u64,
        stop: Vec<String>,
        constraint: Option<(String, String)>,
        logprobs: Option<usize>,
        ignore_end: bool,
    ) -> PyResult<u64> {
        let constraint = constraint.map(constraint_of).transpose()?;
        let request = GenerationRequest {
            prompt,
            pinned,
            new_tokens_max,
            sampling: Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
                presence_penalty,
                frequency_penalty,
                repetition_penalty,
                logit_bias: logit_bias.unwrap_or_default().into_iter().collect(),
                seed,
            },
            stop,
            constraint,
            logprobs,
            ignore_end,
        };
        // A grammar is compiled in here.
        py.detach(|| self.engine.submit(request)).map(|id| id.0).map_err(to_py)
    }

    #[pyo3(signature = (request, /))]
    fn cancel(&self, request: u64) {
        self.engine.cancel(RequestId(request));
    }

    #[pyo3(signature = (skip=None, /))]
    fn drain<'py>(
        &self,
        py: Python<'py>,
        skip: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let mut skipped = Vec::new();
        if let Some(skip) = skip {
            for request in skip.try_iter()? {
                skipped.push(RequestId(request?.extract()?));
            }
        }
        let mut updates = Vec::new();
        self.engine.drain(&skipped, &mut updates);
        let out = PyList::empty(py);
        for (id, update) in updates {
            out.append(update_tuple(py, id, update)?)?;
        }
        Ok(out)
    }

    fn wake_fd(&self) -> RawFd {
        self.engine.wake_fd()
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.engine.stats();
        let out = PyDict::new(py);
        out.set_item("active", stats.active)?;
        out.set_item("queued", stats.queued)?;
        out.set_item("paused", stats.paused)?;
        out.set_item("prompt_tokens", stats.prompt_tokens)?;
        out.set_item("cached_tokens", stats.cached_tokens)?;
        out.set_item("completion_tokens", stats.completion_tokens)?;
        out.set_item("drafted_tokens", stats.drafted_tokens)?;
        out.set_item("proposed_tokens", stats.proposed_tokens)?;
        out.set_item("processed_tokens", stats.processed_tokens)?;
        out.set_item("finished", stats.finished)?;
        out.set_item("preempted", stats.preempted)?;
        out.set_item("steps", stats.steps)?;
        out.set_item("step_ns", stats.step_ns)?;
        out.set_item("mask_ns", stats.mask_ns)?;
        out.set_item("sample_ns", stats.sample_ns)?;
        out.set_item("kv_pages", stats.kv_pages)?;
        out.set_item("kv_pages_free", stats.kv_pages_free)?;
        out.set_item("prefix_pages", stats.prefix_pages)?;
        out.set_item("pinned_pages", stats.pinned_pages)?;
        Ok(out)
    }

    fn restored(&self) -> (usize, Option<&str>) {
        match self.engine.restored() {
            Restored::Nothing => (0, None),
            Restored::Pages(pages) => (*pages, None),
            Restored::Ignored(reason) => (0, Some(reason)),
        }
    }

    fn save_snapshot(&self, py: Python<'_>) -> PyResult<u64> {
        py.detach(|| self.engine.save_snapshot()).map(|saved| saved.bytes).map_err(to_py)
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.engine.shutdown());
    }
}

/// What cached keys and values depend on: the weights, and the instructions that computed them.
fn identity(mut sha256: [u8; 32], isa: Isa) -> [u8; 32] {
    for (byte, letter) in sha256.iter_mut().zip(isa.name().bytes()) {
        *byte ^= letter;
    }
    sha256
}

fn json(field: &'static str, text: &str) -> qbtc_core::Result<serde_json::Value> {
    serde_json::from_str(text).map_err(|error| Error::input(field, error.to_string()))
}

fn constraint_of((kind, text): (String, String)) -> PyResult<Constraint> {
    match kind.as_str() {
        "json_object" => Ok(Constraint::JsonObject),
        "json_schema" => Ok(Constraint::JsonSchema(text)),
        "lark" => Ok(Constraint::Lark(text)),
        _ => {
            let reason = format!("{kind:?} is not json_object, json_schema or lark");
            Err(to_py(Error::input("constraint", reason)))
        }
    }
}

/// (id, bytes, logprob).
type TokenTuple<'py> = (TokenId, Bound<'py, PyBytes>, f32);

fn token_tuple<'py>(py: Python<'py>, token: &TokenLogprob) -> TokenTuple<'py> {
    (token.token, PyBytes::new(py, &token.bytes), token.logprob)
}

/// (request, kind, ...): see the stub of `drain`.
fn update_tuple(py: Python<'_>, id: RequestId, update: Update) -> PyResult<Bound<'_, PyTuple>> {
    match update {
        Update::Prefill { done, total, cached } => {
            (id.0, intern!(py, "prefill"), done, total, cached).into_pyobject(py)
        }
        Update::Text { text, tokens, logprobs } => {
            let list = (!logprobs.is_empty()).then(|| {
                let entry = |ChosenToken { chosen, top }: &ChosenToken| {
                    let (id, bytes, logprob) = token_tuple(py, chosen);
                    let top: Vec<_> = top.iter().map(|each| token_tuple(py, each)).collect();
                    (id, bytes, logprob, top)
                };
                logprobs.iter().map(entry).collect::<Vec<_>>()
            });
            (id.0, intern!(py, "text"), text, tokens, list).into_pyobject(py)
        }
        Update::Finished { reason, stop, error, usage } => {
            let reason = match reason {
                FinishReason::Stop => "stop",
                FinishReason::Length => "length",
                FinishReason::Cancelled => "cancelled",
                FinishReason::Failed => "failed",
            };
            let kind = intern!(py, "finished");
            (id.0, kind, reason, stop, error, usage_tuple(usage)).into_pyobject(py)
        }
    }
}

/// In the order of the fields.
fn usage_tuple(usage: Usage) -> (usize, usize, usize, usize, u64, u64, u64) {
    (
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        usage.drafted_tokens,
        usage.queued_ns,
        usage.first_token_ns,
        usage.total_ns,
    )
}

#[pyfunction]
#[pyo3(signature = (path, texts, *, threads=None, progress=None))]
fn language_fidelity(
    py: Python<'_>,
    path: PathBuf,
    texts: Vec<String>,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'_, PyList>> {
    let defaults = LoadOptions::default();
    let options = LoadOptions { threads: threads.unwrap_or(defaults.threads), ..defaults };
    let found = py.detach(|| -> PyResult<Vec<Comparison>> {
        let file = Gguf::open(&path).map_err(to_py)?;
        let tokenizer = Tokenizer::from_gguf(&file).map_err(to_py)?;
        let mut model = Graph::load(&file, &options).map_err(to_py)?;
        let mut reference = Reference::new(&file, options.threads).map_err(to_py)?;
        let mut found = Vec::with_capacity(texts.len());
        for text in &texts {
            let tokens = tokenizer.encode(text, SpecialTokens::AsText).map_err(to_py)?;
            found.push(compare(&mut model, &mut reference, &[&tokens]).map_err(to_py)?);
            // Also where Ctrl-C is noticed.
            Python::attach(|py| {
                py.check_signals()?;
                if let Some(progress) = &progress {
                    progress.call1(py, (found.len(), texts.len()))?;
                }
                Ok::<_, PyErr>(())
            })?;
        }
        Ok(found)
    })?;
    let out = PyList::empty(py);
    for comparison in found {
        let row = PyDict::new(py);
        row.set_item("tokens", comparison.model.tokens)?;
        row.set_item("loss", comparison.model.loss)?;
        row.set_item("reference_loss", comparison.reference.loss)?;
        row.set_item("kl_mean", comparison.divergence_mean)?;
        row.set_item("kl_p99", comparison.divergence_p99)?;
        row.set_item("kl_max", comparison.divergence_max)?;
        row.set_item("agreement", comparison.agreement)?;
        out.append(row)?;
    }
    Ok(out)
}

#[pyfunction]
#[pyo3(signature = (path, /))]
fn language_model_summary(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyDict>> {
    let summary = py.detach(|| ModelSummary::of(&Gguf::open(&path)?)).map_err(to_py)?;
    summary_dict(py, &summary)
}

#[pyfunction]
#[pyo3(signature = (*, architecture="llama", kind="Q4_1", context=512, seed=1))]
fn tiny_language_model<'py>(
    py: Python<'py>,
    architecture: &str,
    kind: &str,
    context: usize,
    seed: u64,
) -> PyResult<Bound<'py, PyBytes>> {
    let kind = TensorKind::ALL.into_iter().find(|each| each.name() == kind).ok_or_else(|| {
        let names = TensorKind::ALL.map(TensorKind::name).join(", ");
        to_py(Error::input("kind", format!("{kind:?} is not one of {names}")))
    })?;
    let architecture = match architecture {
        "llama" => "llama",
        "qwen2" => "qwen2",
        other => {
            let reason = format!("{other:?} is neither llama nor qwen2");
            return Err(to_py(Error::input("architecture", reason)));
        }
    };
    let model = TinyModel { architecture, context, seed, ..TinyModel::of_kind(kind) };
    Ok(PyBytes::new(py, &py.detach(|| model.bytes())))
}

#[pyfunction]
#[pyo3(signature = (kind, text="", /))]
fn check_constraint(py: Python<'_>, kind: &str, text: &str) -> PyResult<()> {
    let constraint = constraint_of((kind.to_owned(), text.to_owned()))?;
    py.detach(|| constraint::check(&constraint)).map_err(to_py)
}

/// Adds this file's names to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(check_constraint, m)?)?;
    m.add_class::<LanguageEngine>()?;
    m.add_function(wrap_pyfunction!(language_fidelity, m)?)?;
    m.add_function(wrap_pyfunction!(language_model_summary, m)?)?;
    m.add_function(wrap_pyfunction!(tiny_language_model, m)?)
}
