//! From market event to signal nothing is allocated. Alone in its binary, because the allocator is
//! global.

mod counting;
mod signal_files;

use std::sync::Arc;

use counting::allocations;
use qbtc_core::features::{Aggressor, FeatureConfig, Side};
use qbtc_core::signal::{Isa, Session, SignalSession};
use signal_files::{model, rows};

const NAMES: [&str; 4] = ["mps8", "mps16", "mlp32", "logistic"];

#[test]
fn inference_explanation_and_guard_allocate_nothing() {
    let rows = rows(100, 1, 0.1);
    for name in NAMES {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let mut session = Session::new(Arc::new(model(name, isa)));
            let before = allocations();
            let mut sum = 0.0;
            for row in &rows {
                session.x = *row;
                let p = session.infer();
                sum += p.up + p.entropy() + p.margin();
                sum += session.model().ood(row) + session.model().explain(row)[0][0];
            }
            assert!(sum.is_finite());
            assert_eq!(allocations() - before, 0, "{name} {}", isa.name());
        }
    }
}

#[test]
fn a_live_session_allocates_nothing() {
    let config = FeatureConfig { price_increment: 0.1, size_increment: 0.001 };
    let mut session = SignalSession::new(Arc::new(model("mps8", Isa::best())), config).unwrap();
    let levels = [(Side::Bid, 59_999.9, 2.0), (Side::Ask, 60_000.2, 0.0)];
    let before = allocations();
    let mut signals = 0;
    for i in 0..20_000_i64 {
        let ts = 1_000_000_000 + i * 20_000_000;
        let bid = 60_000.0 + 0.1 * (i % 7) as f64;
        let signal = session.on_quote(ts, bid, 1.5, bid + 0.1, 0.5).unwrap();
        signals += u64::from(signal.is_some());
        session.on_trade(ts, bid, 0.25, Aggressor::Sell).unwrap();
        session.on_depth(ts, Side::Ask, bid + 0.2, 3.0).unwrap();
        session.on_depth_batch(ts, &levels).unwrap();
        session.on_lead_quote(ts, bid - 1.0, bid + 1.0).unwrap();
    }
    assert_eq!(allocations() - before, 0);
    assert!(signals > 1000);
    let counts = session.counts();
    assert_eq!((counts.quotes, counts.trades, counts.depth), (20_000, 20_000, 60_000));
    assert_eq!((counts.lead_quotes, counts.rejected, counts.signals), (20_000, 0, signals));
}
