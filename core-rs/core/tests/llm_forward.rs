//! The forward pass beside the plain f32 model, and its promises: the same bits whatever the batch,
//! the cut of a prompt, or the threads.

use qbtc_core::llm::TokenId;
use qbtc_core::llm::forward::{Forward, LogitsFor, Segment};
use qbtc_core::llm::gguf::writer::TinyModel;
use qbtc_core::llm::gguf::{Gguf, TensorKind};
use qbtc_core::llm::graph::{Graph, LoadOptions};
use qbtc_core::llm::kv::{KvPages, PAGE_TOKENS, PageId};
use qbtc_core::llm::perplexity::compare;
use qbtc_core::llm::reference::Reference;
use qbtc_core::signal::Isa;

fn options(threads: usize, isa: Isa) -> LoadOptions {
    LoadOptions { threads, isa: Some(isa), step_tokens_max: 300, ..LoadOptions::default() }
}

fn available() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available())
}

/// Tokens without a pattern.
fn words(n: usize, seed: u64, vocab: usize) -> Vec<TokenId> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 33) % vocab as u64) as TokenId
    };
    (0..n).map(|_| next()).collect()
}

fn pages_for(kv: &mut KvPages, tokens: usize) -> Vec<PageId> {
    (0..tokens.div_ceil(PAGE_TOKENS)).map(|_| kv.allocate().unwrap()).collect()
}

fn pool(graph: &Graph) -> KvPages {
    KvPages::new(graph.shape().kv, 32 << 20).unwrap()
}

/// Logits of every token of a sequence that is fed in parts of the given sizes, then one by one.
fn run(graph: &mut Graph, tokens: &[TokenId], parts: &[usize]) -> Vec<u32> {
    let mut kv = pool(graph);
    let pages = pages_for(&mut kv, tokens.len());
    let mut logits = Vec::new();
    let mut position = 0;
    let mut parts = parts.iter().copied();
    while position < tokens.len() {
        let part = parts.next().unwrap_or(1).min(tokens.len() - position);
        let tokens = &tokens[position..position + part];
        let segment = Segment { tokens, position, pages: &pages, logits: LogitsFor::All };
        let vocab = graph.shape().vocab;
        let rows = graph.step(&mut kv, &[segment]).unwrap();
        assert_eq!(rows.len(), part * vocab);
        logits.extend(rows.iter().map(|x| x.to_bits()));
        position += part;
    }
    logits
}

fn long_model() -> TinyModel {
    TinyModel { context: 1024, heads: 6, kv_heads: 2, dim: 192, ..TinyModel::default() }
}

#[test]
fn every_packing_and_architecture_follows_the_plain_model_on_every_instruction_set() {
    let mut models: Vec<TinyModel> = TensorKind::ALL.into_iter().map(TinyModel::of_kind).collect();
    models.push(TinyModel { tied: false, ..TinyModel::qwen2() });
    models.push(TinyModel { embedding_kind: TensorKind::Q5_0, ..TinyModel::qwen2() });
    models.push(long_model());
    for model in models {
        let file = model.gguf().unwrap();
        for isa in available() {
            let mut graph = Graph::load(&file, &options(2, isa)).unwrap();
            let tokens = words(90, 7, graph.shape().vocab);
            let mut reference = Reference::new(&file, 1).unwrap();
            let result = compare(&mut graph, &mut reference, &[&tokens]).unwrap();
            let name = format!("{} {} {}", model.architecture, model.kind.name(), isa.name());
            eprintln!("{name}: {:.2e} nats", result.divergence_mean);
            // Activations of 8 bits; random weights are the worst case for their error.
            assert!(result.divergence_mean < 2e-3, "{name} {result:?}");
            assert!(result.agreement > 0.85, "{name} {result:?}");
        }
    }
}

#[test]
fn a_prompt_has_the_same_bits_however_it_is_cut_and_on_any_number_of_threads() {
    for model in [long_model(), TinyModel { context: 1024, ..TinyModel::qwen2() }] {
        let file = model.gguf().unwrap();
        for isa in available() {
            let load = |threads| Graph::load(&file, &options(threads, isa)).unwrap();
            let mut graph = load(1);
            let tokens = words(300, 3, graph.shape().vocab);
            let expected = run(&mut graph, &tokens, &[100, 100, 100]);
            for threads in [1, 2, 3] {
                let mut graph = load(threads);
                for parts in
                    [&[128, 128][..], &[5, 3, 17, 33, 64, 120], &[31, 2, 100], &[128, 4, 5]]
                {
                    let bits = run(&mut graph, &tokens, parts);
                    assert!(bits == expected, "{} threads {threads} {parts:?}", isa.name());
                }
            }
        }
    }
}

#[test]
fn a_long_context_has_the_same_bits_with_its_spans_on_several_threads() {
    let file = long_model().gguf().unwrap();
    let mut one = Graph::load(&file, &options(1, Isa::best())).unwrap();
    let mut three = Graph::load(&file, &options(3, Isa::best())).unwrap();
    let tokens = words(900, 11, one.shape().vocab);
    let parts = [128, 128, 128, 128, 128, 128, 100, 20, 1, 1, 2];
    assert!(run(&mut one, &tokens, &parts) == run(&mut three, &tokens, &parts));
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_among_others() {
    let file = long_model().gguf().unwrap();
    for isa in available() {
        let mut graph = Graph::load(&file, &options(2, isa)).unwrap();
        let vocab = graph.shape().vocab;
        let sequences: Vec<Vec<TokenId>> =
            (0..5).map(|i| words(40 + 17 * i, i as u64, vocab)).collect();
        let alone: Vec<Vec<u32>> =
            sequences.iter().map(|tokens| run(&mut graph, tokens, &[])).collect();
        let mut kv = pool(&graph);
        let pages: Vec<Vec<PageId>> =
            sequences.iter().map(|tokens| pages_for(&mut kv, tokens.len())).collect();
        let mut at = [0; 5];
        let mut round = 0;
        while sequences.iter().zip(&at).any(|(tokens, &at)| at < tokens.len()) {
            // Prompts of changing lengths beside single tokens.
            let mut batch = Vec::new();
            let mut segments = Vec::new();
            for (i, tokens) in sequences.iter().enumerate() {
                let count = if (i + round) % 3 == 0 { 13 } else { 1 };
                let end = (at[i] + count).min(tokens.len());
                if at[i] < end {
                    let logits = if round % 2 == 0 { LogitsFor::All } else { LogitsFor::Last };
                    let tokens = &tokens[at[i]..end];
                    segments.push(Segment { tokens, position: at[i], pages: &pages[i], logits });
                    let first = if round % 2 == 0 { at[i] } else { end - 1 };
                    batch.push((i, first..end));
                    at[i] = end;
                }
            }
            let rows = graph.step(&mut kv, &segments).unwrap();
            let mut rows = rows.chunks_exact(vocab);
            for (i, range) in batch {
                for token in range {
                    let row: Vec<u32> = rows.next().unwrap().iter().map(|x| x.to_bits()).collect();
                    assert!(
                        row == alone[i][token * vocab..][..vocab],
                        "{} {i} {token}",
                        isa.name()
                    );
                }
            }
            assert!(rows.next().is_none());
            round += 1;
        }
    }
}

#[test]
fn a_step_that_does_not_fit_is_refused_in_words() {
    let file = TinyModel::default().gguf().unwrap();
    let options = LoadOptions { step_tokens_max: 8, logits_rows_max: 2, ..options(1, Isa::best()) };
    let mut graph = Graph::load(&file, &options).unwrap();
    let mut kv = pool(&graph);
    let pages = pages_for(&mut kv, 512);
    let segment = Segment { tokens: &[1, 2], position: 0, pages: &pages, logits: LogitsFor::Last };
    let mut words = |segments: &[Segment<'_>]| match graph.step(&mut kv, segments) {
        Ok(logits) => format!("{} logits", logits.len()),
        Err(error) => error.to_string(),
    };
    assert_eq!(words(&[]), "0 logits");
    let foreign = [PageId(u32::MAX)];
    let cases = [
        (Segment { tokens: &[], ..segment }, "no token"),
        (Segment { tokens: &[1, 1 << 30], ..segment }, "1073741824 is not in the vocabulary"),
        (Segment { position: 511, ..segment }, "513 tokens, but the context is 512"),
        (Segment { position: usize::MAX, ..segment }, "but the context is 512"),
        (Segment { pages: &pages[..1], position: 31, ..segment }, "33 tokens do not fit 1 pages"),
        (Segment { pages: &foreign, ..segment }, "not of this pool"),
        (Segment { tokens: &[1; 9], ..segment }, "more than 8 in one step"),
        (Segment { tokens: &[1; 3], logits: LogitsFor::All, ..segment }, "more than 2 rows"),
    ];
    for (segment, expected) in cases {
        let error = words(&[segment]);
        assert!(error.contains(expected), "wanted {expected}: {error}");
    }
    assert!(words(&[segment, segment]).contains("is shared"), "two writers of one page");
    assert!(words(&[segment]).contains("logits"));
    kv.retain(pages[0]);
    let error = graph.step(&mut kv, &[segment]).unwrap_err().to_string();
    assert!(error.contains("is shared"), "{error}");
    let other = TinyModel { layers: 3, ..TinyModel::default() }.gguf().unwrap();
    let mut other = Graph::load(&other, &options).unwrap();
    assert!(other.step(&mut kv, &[segment]).unwrap_err().to_string().contains("another model"));
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    let file = TinyModel::default().gguf().unwrap();
    for (options, name) in [
        (LoadOptions { threads: 0, ..LoadOptions::default() }, "threads"),
        (LoadOptions { step_tokens_max: 0, ..LoadOptions::default() }, "step_tokens_max"),
        (LoadOptions { logits_rows_max: usize::MAX, ..LoadOptions::default() }, "logits_rows_max"),
    ] {
        let error = Graph::load(&file, &options).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let odd = TinyModel { heads: 16, kv_heads: 16, ..TinyModel::default() }.gguf().unwrap();
    let error = Graph::load(&odd, &LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("multiples of 16"), "{error}");
}

#[test]
fn numbers_that_overflow_are_an_error_that_names_the_layer() {
    let model = TinyModel { kind: TensorKind::F32, ..TinyModel::default() };
    let file = model.gguf().unwrap();
    let name = "blk.1.attn_norm.weight";
    let tensor = file.tensor(name).unwrap();
    let huge: Vec<u8> = (0..tensor.columns).flat_map(|_| 1e30_f32.to_le_bytes()).collect();
    let mut bytes = model.bytes();
    let old = tensor.bytes.to_vec();
    // Norms are equal: the second layer's first norm is the third vector of its kind in the file.
    let places: Vec<usize> = bytes
        .windows(old.len())
        .enumerate()
        .filter(|(_, window)| *window == old)
        .map(|(at, _)| at)
        .collect();
    let at = places[places.len() / 2];
    bytes[at..at + huge.len()].copy_from_slice(&huge);
    let file = Gguf::from_bytes(bytes).unwrap();
    let mut graph = Graph::load(&file, &options(2, Isa::best())).unwrap();
    let mut kv = pool(&graph);
    let pages = pages_for(&mut kv, 1);
    let segment = Segment { tokens: &[5], position: 0, pages: &pages, logits: LogitsFor::Last };
    let error = graph.step(&mut kv, &[segment]).unwrap_err().to_string();
    assert!(error.contains("blk.") && error.contains("not finite"), "{error}");
}

/// `SmolLM2` beside its f32 twin on text; `QBTC_TEST_MODEL` names the file.
#[test]
fn the_shipped_model_stays_within_a_hundredth_of_a_nat() {
    let Some(path) = std::env::var_os("QBTC_TEST_MODEL") else {
        eprintln!("skipped: QBTC_TEST_MODEL is not set");
        return;
    };
    let file = Gguf::open(path.as_ref()).unwrap();
    let tokenizer = qbtc_core::llm::tokenizer::Tokenizer::from_gguf(&file).unwrap();
    let text = include_str!("../../../ARCHITECTURE.md");
    let special = qbtc_core::llm::tokenizer::SpecialTokens::AsText;
    let tokens = tokenizer.encode(&text[..3000], special).unwrap();
    let windows = [&tokens[..100], &tokens[100..200], &tokens[200..350]];
    let mut reference = Reference::new(&file, 2).unwrap();
    let mut graph = Graph::load(&file, &options(2, Isa::best())).unwrap();
    let result = compare(&mut graph, &mut reference, &windows).unwrap();
    eprintln!("{result:?}");
    assert!(result.divergence_mean < 0.01, "{result:?}");
    assert!(result.agreement > 0.9, "{result:?}");
    assert!(result.perplexity_ratio() < 1.01, "{result:?}");
}
