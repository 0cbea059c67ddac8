//! The hot path in nanoseconds: one feature update, one inference, one event to signal.
//!
//! `cargo bench --bench signal`. Calls depend on each other (the next row carries a trace of the
//! last answer), as they do in a market: this is latency, not throughput.

#[path = "../tests/signal_files/mod.rs"]
mod signal_files;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use qbtc_core::features::{FeatureConfig, FeatureEngine, PADDED};
use qbtc_core::signal::{Isa, SignalSession};
use signal_files::{Draw, model, rows};

const GRID: FeatureConfig = FeatureConfig { price_increment: 0.1, size_increment: 0.001 };

fn inference(c: &mut Criterion) {
    let rows = rows(4096, 7, 0.0);
    for name in ["mps8", "mps16", "mlp32", "logistic"] {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let model = model(name, isa);
            let (mut i, mut last) = (0, 0.0_f32);
            c.bench_function(&format!("infer/{name}/{}", isa.name()), |b| {
                b.iter(|| {
                    i = (i + 1) % rows.len();
                    let mut x = rows[i];
                    x[0] += last * 1e-20;
                    last = model.infer(&x).up;
                    last
                });
            });
        }
        let model = model(name, Isa::best());
        c.bench_function(&format!("explain/{name}"), |b| {
            b.iter(|| model.explain(black_box(&rows[3])));
        });
    }
    let model = model("logistic", Isa::best());
    c.bench_function("ood", |b| b.iter(|| model.ood(black_box(&rows[3]))));
}

/// (ts, bid ticks, bid size, ask size) of a random walk, 20 ms apart.
fn quotes(n: usize) -> Vec<(i64, f64, f64, f64)> {
    let mut draw = Draw(99);
    let mut bid = 600_000_i64;
    let size = |draw: &mut Draw| f64::from((draw.uniform() * 500.0) as i32 + 501) * 1e-3;
    (0..n)
        .map(|i| {
            bid += (draw.uniform() * 2.0) as i64;
            (i as i64 * 20_000_000, bid as f64 * 0.1, size(&mut draw), size(&mut draw))
        })
        .collect()
}

fn live(c: &mut Criterion) {
    let quotes = quotes(1 << 16);
    let span = 20_000_000 * quotes.len() as i64;
    let mut engine = FeatureEngine::new(GRID).unwrap();
    let (mut i, mut row) = (0, [0.0; PADDED]);
    c.bench_function("features/quote", |b| {
        b.iter(|| {
            let (ts, bid, bid_size, ask_size) = quotes[i % quotes.len()];
            let ts = ts + span * (i / quotes.len()) as i64;
            engine.on_quote(ts, bid, bid_size, bid + 0.1, ask_size).unwrap();
            engine.write(&mut row);
            i += 1;
            row[0]
        });
    });
    for name in ["mps8", "mps16", "mlp32", "logistic"] {
        let model = Arc::new(model(name, Isa::best()));
        let mut session = SignalSession::new(model, GRID).unwrap();
        let mut i = 0;
        c.bench_function(&format!("event to signal/{name}"), |b| {
            b.iter(|| {
                let (ts, bid, bid_size, ask_size) = quotes[i % quotes.len()];
                let ts = ts + span * (i / quotes.len()) as i64;
                i += 1;
                session.on_quote(ts, bid, bid_size, bid + 0.1, ask_size).unwrap()
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(700))
        .sample_size(50);
    targets = inference, live
}
criterion_main!(benches);
