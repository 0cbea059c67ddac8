//! The forward pass of a language model on real weights: prompts, decoding, drafts, loading.
//!
//! `QBTC_TEST_MODEL=model.gguf cargo bench --bench llm [-- threads...]`. Best of several rounds, as
//! the noise of a shared machine only ever adds time. Decoding one token reads all weights, so its
//! limit is the memory; a prompt's limit is the processor.

use std::path::Path;
use std::time::Instant;

use qbtc_core::llm::TokenId;
use qbtc_core::llm::forward::{Forward, LogitsFor, Segment};
use qbtc_core::llm::graph::LoadOptions;
use qbtc_core::llm::kv::{KvPages, PAGE_TOKENS, PageId};
use qbtc_core::llm::model::LanguageModel;

const ROUNDS: usize = 5;

struct Session {
    model: LanguageModel,
    kv: KvPages,
    pages: Vec<PageId>,
}

impl Session {
    fn new(path: &Path, threads: usize, step_tokens_max: usize) -> Self {
        let options = LoadOptions { threads, step_tokens_max, ..LoadOptions::default() };
        let model = LanguageModel::load(path, &options).unwrap();
        let shape = model.forward.shape().clone();
        let pages = shape.context.div_ceil(PAGE_TOKENS);
        let mut kv = KvPages::new(shape.kv, pages * shape.kv.page_bytes()).unwrap();
        let pages = (0..pages).map(|_| kv.allocate().unwrap()).collect();
        Self { model, kv, pages }
    }

    fn step(&mut self, tokens: &[TokenId], position: usize, logits: LogitsFor) -> f64 {
        let segment = Segment { tokens, position, pages: &self.pages, logits };
        let start = Instant::now();
        self.model.forward.step(&mut self.kv, &[segment]).unwrap();
        start.elapsed().as_secs_f64()
    }

    fn prompt(&mut self, tokens: &[TokenId]) -> f64 {
        let max = self.model.forward.shape().step_tokens_max;
        let mut position = 0;
        let mut seconds = 0.0;
        for part in tokens.chunks(max) {
            let last = position + part.len() == tokens.len();
            let logits = if last { LogitsFor::Last } else { LogitsFor::Nothing };
            seconds += self.step(part, position, logits);
            position += part.len();
        }
        seconds
    }

    fn decode(&mut self, tokens: usize, position: usize) -> f64 {
        (0..tokens).map(|i| self.step(&words(1, i), position + i, LogitsFor::Last)).sum()
    }
}

fn words(n: usize, seed: usize) -> Vec<TokenId> {
    (0..n).map(|i| ((i * 37 + seed * 31 + 100) % 40_000) as TokenId).collect()
}

fn best(mut run: impl FnMut() -> f64) -> f64 {
    (0..ROUNDS).map(|_| run()).fold(f64::INFINITY, f64::min)
}

#[expect(clippy::print_stdout, reason = "a benchmark's result")]
fn main() {
    let Some(path) = std::env::var_os("QBTC_TEST_MODEL") else {
        println!("skipped: set QBTC_TEST_MODEL to a GGUF file");
        return;
    };
    let path = Path::new(&path);
    let threads: Vec<usize> =
        std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    for threads in if threads.is_empty() { vec![1, 2] } else { threads } {
        let load = best(|| {
            let start = Instant::now();
            drop(Session::new(path, threads, 512));
            start.elapsed().as_secs_f64()
        });
        println!("threads {threads}: load {:.0} ms", load * 1e3);
        let mut session = Session::new(path, threads, 512);
        let prompt = best(|| session.prompt(&words(512, 0)));
        println!("threads {threads}: pp512 {:.0} tok/s", 512.0 / prompt);
        let decode = best(|| session.decode(128, 0));
        let bytes = session.model.forward.weight_bytes() as f64;
        println!(
            "threads {threads}: tg128 {:.1} tok/s, {:.1} GB/s of weights",
            128.0 / decode,
            128.0 * bytes / decode * 1e-9
        );
        for rows in [1, 2, 4, 8, 16] {
            let seconds = best(|| best(|| session.step(&words(rows, 3), 256, LogitsFor::All)));
            println!("threads {threads}: {rows} rows with logits at 256: {:.2} ms", seconds * 1e3);
        }
        let cold = session.prompt(&words(6000, 1));
        println!("threads {threads}: cold prompt of 6000: {cold:.2} s");
        for position in [3000, 6000] {
            let decode = best(|| session.decode(16, position));
            println!("threads {threads}: decode at {position}: {:.1} tok/s", 16.0 / decode);
        }
        let warm = best(|| session.step(&words(20, 5), 6000, LogitsFor::Last));
        println!("threads {threads}: 20 tokens after 6000 cached: {:.1} ms", warm * 1e3);
    }
}
