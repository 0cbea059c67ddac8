//! What the engine adds to a step of a model, and what a restart saves.
//!
//! Sketch: choosing a token reads the row of logits three or four times (197 kB at 49,152 tokens,
//! 608 kB at 151,936, both in the second cache): tens of microseconds, about 1 % of a step. A
//! snapshot of 6,016 tokens of SmolLM2-135M has 139 MB: a copy and a checksum, tens of ms.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use qbtc_core::llm::kv::{KvPages, KvShape, PAGE_TOKENS};
use qbtc_core::llm::prefix::{NodeId, PrefixCache};
use qbtc_core::llm::request::Sampling;
use qbtc_core::llm::sampler::{Sampler, Scratch, logprobs};
use qbtc_core::llm::snapshot::{Restored, SnapshotConfig, Writer, restore};

/// Logits of about the spread of a language model's, without a pattern.
fn row(vocab: usize) -> Vec<f32> {
    let mut state = 1_u64;
    (0..vocab)
        .map(|_| {
            let mut sum = 0.0;
            for _ in 0..4 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                sum += (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
            }
            sum * 8.0
        })
        .collect()
}

fn sampling(criterion: &mut Criterion) {
    for vocab in [49_152, 151_936] {
        let mut group = criterion.benchmark_group(format!("choose/{vocab}"));
        let logits = row(vocab);
        let mut scratch = Scratch::default();
        let one = Sampling::default;
        for (name, settings) in [
            ("greedy", Sampling { temperature: 0.0, ..one() }),
            ("temperature", one()),
            ("top_p", Sampling { top_p: 0.9, ..one() }),
            ("top_k_top_p_min_p", Sampling { top_k: 40, top_p: 0.9, min_p: 0.05, ..one() }),
        ] {
            let sampler = Sampler::new(&settings, vocab).expect("valid settings");
            let mask = vec![0x5555_5555; vocab.div_ceil(32)];
            let mut position = 0;
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    position += 1;
                    sampler.choose(black_box(&logits), None, position, &mut scratch)
                });
            });
            group.bench_function(format!("{name}/masked"), |bencher| {
                bencher.iter(|| {
                    position += 1;
                    sampler.choose(black_box(&logits), Some(&mask), position, &mut scratch)
                });
            });
        }
        group.bench_function("logprobs_20", |bencher| {
            bencher.iter(|| logprobs(black_box(&logits), 7, 20, &mut scratch));
        });
    }
}

fn snapshot(criterion: &mut Criterion) {
    let shape = KvShape { layers: 30, kv_heads: 3, head_dim: 64 };
    let pages = 6_000_usize.div_ceil(PAGE_TOKENS);
    let bytes = pages * shape.page_bytes();
    let folder = std::env::temp_dir().join(format!("qbtc-bench-{}", std::process::id()));
    let config =
        SnapshotConfig { path: folder.join("cache"), identity: [1; 32], bytes_max: u64::MAX };
    let mut kv = KvPages::new(shape, bytes).expect("memory");
    let mut cache = PrefixCache::new(pages, pages);
    let mut node = NodeId::ROOT;
    for index in 0..pages {
        let page = kv.allocate().expect("a page");
        kv.bytes_mut(page).fill(index as u8);
        let tokens: Vec<u32> = (0..PAGE_TOKENS).map(|at| (index * 37 + at) as u32).collect();
        node = cache.insert(&mut kv, node, &tokens, page, true).0;
        kv.release(page);
    }
    let mut group = criterion.benchmark_group("snapshot/6016_tokens");
    group.sample_size(20);
    group.bench_function("save", |bencher| {
        bencher.iter(|| {
            let mut writer = Writer::new(&config, &mut kv, &cache).expect("a file");
            let saved = writer.advance(&mut kv, usize::MAX).expect("written");
            writer.release(&mut kv);
            saved
        });
    });
    group.bench_function("restore", |bencher| {
        bencher.iter(|| {
            let mut kv = KvPages::new(shape, bytes).expect("memory");
            let mut cache = PrefixCache::new(pages, pages);
            assert_eq!(restore(&config, &mut kv, &mut cache), Restored::Pages(pages));
        });
    });
    group.finish();
    std::fs::remove_dir_all(folder).expect("the folder of this benchmark");
}

criterion_group!(benches, sampling, snapshot);
criterion_main!(benches);
