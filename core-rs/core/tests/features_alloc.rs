//! The event path allocates nothing and forgets what it no longer needs: a counting allocator
//! watches ten million events. Alone in its binary, because the allocator is global.

mod counting;

use counting::allocations;
use qbtc_core::features::{Aggressor, FeatureConfig, FeatureEngine, PADDED, Side};

#[test]
fn ten_million_events_allocate_nothing() {
    let config = FeatureConfig { price_increment: 0.1, size_increment: 0.001 };
    let mut engine = FeatureEngine::new(config).unwrap();
    let mut row = [0.0; PADDED];
    let (mut state, mut bid, mut sum) = (1_u64, 600_000_i64, 0.0);
    let before = allocations();
    for i in 0..10_000_000_i64 {
        // A linear congruential generator: the test's own source of events must not allocate.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let dice = (state >> 33) as i64;
        let ts = 1_000_000_000 + i * 700_000;
        let size = (1 + dice % 5000) as f64 * 0.001;
        let offset = dice % 301 - 150;
        match dice % 16 {
            0..=2 => {
                bid += (dice >> 8) % 3 - 1;
                let ask = bid + 1 + (dice >> 12) % 2;
                engine.on_quote(ts, bid as f64 * 0.1, size, ask as f64 * 0.1, size).unwrap();
                engine.write(&mut row);
                sum += f64::from(row[0].max(-1e9));
            }
            3 => engine.on_trade(ts, bid as f64 * 0.1, size, Aggressor::Sell).unwrap(),
            4 => engine.on_lead_quote(ts, bid as f64 * 0.1, (bid + 1) as f64 * 0.1).unwrap(),
            5 if i % 50_000 == 0 => engine.on_depth_clear(ts).unwrap(),
            n => {
                let side = if n % 2 == 0 { Side::Bid } else { Side::Ask };
                let size = if dice % 5 == 0 { 0.0 } else { size };
                engine.on_depth(ts, side, (bid + offset) as f64 * 0.1, size).unwrap();
            }
        }
    }
    assert_eq!(allocations() - before, 0);
    drop(std::hint::black_box(vec![0_u8; 64]));
    assert_eq!(allocations() - before, 1, "the counter counts");
    assert!(engine.is_warm() && sum.is_finite());
    // Everything that is not a price level lives in the engine itself, and it is small.
    assert!(size_of::<FeatureEngine>() < 1024);
}
