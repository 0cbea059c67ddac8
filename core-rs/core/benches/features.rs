//! What one market event costs, and the bulk path as a whole.
//!
//! Sketch: a depth change is one slot of a ring in the second-level cache (10-20 ns); a quote is one
//! exponential, 22 multiplications, one vector logarithm and four divisions (60-100 ns); a read is
//! eight logarithms and eight divisions (50-80 ns).

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use qbtc_core::features::{
    Aggressor, Columns, FeatureConfig, FeatureEngine, Side, bulk::kind, bulk_rows,
};

const CONFIG: FeatureConfig = FeatureConfig { price_increment: 0.1, size_increment: 0.001 };
const EVENTS: usize = 100_000;

/// Pseudo-random whole numbers, the same every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: i64) -> i64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as i64 % n
    }
}

/// One event: nanoseconds, kind, side, a, b, c, d.
type Event = (i64, u8, u8, [f64; 4]);

/// The mix of the real recording: 5 depth changes per quote, a trade per 3 quotes, 0.7 ms apart.
fn events(shares: [i64; 3]) -> Vec<Event> {
    let (mut dice, mut bid) = (Dice(7), 600_000_i64);
    let [quotes, trades, depth] = shares;
    (0..EVENTS as i64)
        .map(|i| {
            let ts = 1_700_000_000_000_000_000 + i * 700_000;
            let size = (1 + dice.below(5000)) as f64 * 0.001;
            let roll = dice.below(quotes + trades + depth);
            if roll < quotes {
                bid += if dice.below(4) == 0 { dice.below(3) - 1 } else { 0 };
                let ask_size = (1 + dice.below(5000)) as f64 * 0.001;
                let values = [bid as f64 * 0.1, size, (bid + 1) as f64 * 0.1, ask_size];
                (ts, kind::QUOTE, 0, values)
            } else if roll < quotes + trades {
                (ts, kind::TRADE, dice.below(2) as u8, [bid as f64 * 0.1, size, 0.0, 0.0])
            } else {
                let side = dice.below(2);
                let behind = dice.below(400);
                let ticks = if side == 0 { bid - behind } else { bid + 1 + behind };
                (ts, kind::DEPTH, side as u8, [ticks as f64 * 0.1, size, 0.0, 0.0])
            }
        })
        .collect()
}

/// Feeds all events; with `READ` the features are read at every event.
fn feed<const READ: bool>(engine: &mut FeatureEngine, events: &[Event]) -> f32 {
    let (mut row, mut sum) = ([0.0; 32], 0.0);
    for &(ts, kind, side, [a, b, c, d]) in events {
        let result = match (kind, side) {
            (kind::QUOTE, _) => engine.on_quote(ts, a, b, c, d),
            (kind::TRADE, 0) => engine.on_trade(ts, a, b, Aggressor::Buy),
            (kind::TRADE, _) => engine.on_trade(ts, a, b, Aggressor::Sell),
            (_, 0) => engine.on_depth(ts, Side::Bid, a, b),
            _ => engine.on_depth(ts, Side::Ask, a, b),
        };
        result.expect("The bench makes legal events");
        if READ {
            engine.write(&mut row);
            sum += row[0];
        }
    }
    sum
}

fn event_path(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("features");
    group.throughput(Throughput::Elements(EVENTS as u64));
    let warm = {
        let mut engine = FeatureEngine::new(CONFIG).expect("The increments are positive");
        feed::<false>(&mut engine, &events([1, 1, 5])[..1000]);
        engine
    };
    for (name, shares) in
        [("on_quote", [1, 0, 0]), ("on_trade", [0, 1, 0]), ("on_depth", [0, 0, 1])]
    {
        let events: Vec<Event> =
            events(shares).into_iter().map(|(ts, k, s, v)| (ts + 1_000_000_000, k, s, v)).collect();
        group.bench_function(name, |bench| {
            bench.iter_batched_ref(
                || warm.clone(),
                |engine| feed::<false>(engine, black_box(&events)),
                criterion::BatchSize::LargeInput,
            );
        });
        if shares[0] == 1 {
            group.bench_function("on_quote and write", |bench| {
                bench.iter_batched_ref(
                    || warm.clone(),
                    |engine| feed::<true>(engine, black_box(&events)),
                    criterion::BatchSize::LargeInput,
                );
            });
        }
    }
    group.finish();
}

fn bulk_path(criterion: &mut Criterion) {
    let events = events([3, 1, 20]);
    let ts: Vec<i64> = events.iter().map(|e| e.0).collect();
    let kind: Vec<u8> = events.iter().map(|e| e.1).collect();
    let side: Vec<u8> = events.iter().map(|e| e.2).collect();
    let [a, b, c, d] =
        [0, 1, 2, 3].map(|i: usize| events.iter().map(|e| e.3[i]).collect::<Vec<f64>>());
    let columns = Columns { ts: &ts, kind: &kind, side: &side, a: &a, b: &b, c: &c, d: &d };
    let mut group = criterion.benchmark_group("features");
    group.throughput(Throughput::Elements(EVENTS as u64));
    group.bench_function("bulk, depth recording mix", |bench| {
        bench.iter(|| {
            let mut sum = 0.0;
            bulk_rows(CONFIG, columns, |rows| sum += rows[0].features[0])
                .expect("The bench makes legal events");
            sum
        });
    });
    group.finish();
}

criterion_group!(benches, event_path, bulk_path);
criterion_main!(benches);
