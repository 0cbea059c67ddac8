//! The feature engine from outside: both paths agree, reading changes nothing, bad events are
//! refused without a trace, missing is NaN.

use proptest::prelude::*;
use qbtc_core::Result;
use qbtc_core::features::{
    Aggressor, Columns, FeatureConfig, FeatureEngine, N_FEATURES, PADDED, Row, STALE_NS, Side,
    TABLE, UpdateClass, WARM_UP_NS, bulk::kind, bulk_rows, schema_sha256,
};

const CONFIG: FeatureConfig = FeatureConfig { price_increment: 0.1, size_increment: 0.001 };
const SECOND: i64 = 1_000_000_000;
const START: i64 = 1_700_000_000 * SECOND;

/// Owned columns.
#[derive(Debug, Clone, Default)]
struct Events {
    ts: Vec<i64>,
    kind: Vec<u8>,
    side: Vec<u8>,
    values: [Vec<f64>; 4],
}

impl Events {
    fn push(&mut self, ts: i64, kind: u8, side: u8, values: [f64; 4]) {
        self.ts.push(ts);
        self.kind.push(kind);
        self.side.push(side);
        for (column, value) in self.values.iter_mut().zip(values) {
            column.push(value);
        }
    }

    fn columns(&self) -> Columns<'_> {
        let [a, b, c, d] = &self.values;
        Columns { ts: &self.ts, kind: &self.kind, side: &self.side, a, b, c, d }
    }

    fn bulk(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        bulk_rows(CONFIG, self.columns(), |chunk| rows.extend_from_slice(chunk))?;
        Ok(rows)
    }

    fn apply(&self, engine: &mut FeatureEngine, i: usize) {
        let [a, b, c, d] = [0, 1, 2, 3].map(|column: usize| self.values[column][i]);
        let ts = self.ts[i];
        match (self.kind[i], self.side[i]) {
            (kind::QUOTE, _) => engine.on_quote(ts, a, b, c, d),
            (kind::TRADE, 0) => engine.on_trade(ts, a, b, Aggressor::Buy),
            (kind::TRADE, _) => engine.on_trade(ts, a, b, Aggressor::Sell),
            (kind::DEPTH, 0) => engine.on_depth(ts, Side::Bid, a, b),
            (kind::DEPTH, _) => engine.on_depth(ts, Side::Ask, a, b),
            (kind::DEPTH_CLEAR, _) => engine.on_depth_clear(ts),
            _ => engine.on_lead_quote(ts, a, c),
        }
        .unwrap();
    }
}

/// One random event: kind, nanoseconds since the last, three dice.
fn event() -> impl Strategy<Value = (u8, i64, i64, i64, i64)> {
    (0..12_u8, 0..60_000_000_i64, 0..1000_i64, 0..1000_i64, 0..1000_i64)
}

/// Random events around a wandering market, long enough to warm up.
fn events(length: std::ops::Range<usize>) -> impl Strategy<Value = Events> {
    prop::collection::vec(event(), length).prop_map(|dice| {
        let (mut events, mut ts, mut bid) = (Events::default(), START, 600_000_i64);
        for (what, gap, x, y, z) in dice {
            ts += if x < 3 { 40 * gap } else { gap };
            let price = |ticks: i64| ticks as f64 * 0.1;
            let size = |n: i64| n as f64 * 0.001;
            match what {
                0..=3 => {
                    bid += if y < 5 { 50 * (z % 21 - 10) } else { y % 5 - 2 };
                    let values = [price(bid), size(1 + x), price(bid + 1 + z % 3), size(1 + y)];
                    events.push(ts, kind::QUOTE, 0, values);
                }
                4 | 5 => {
                    let values = [price(bid + x % 2), size(1 + y), 0.0, 0.0];
                    events.push(ts, kind::TRADE, what - 4, values);
                }
                6 if x == 0 => events.push(ts, kind::DEPTH_CLEAR, 0, [0.0; 4]),
                6..=9 => {
                    let size = if z % 4 == 0 { 0.0 } else { size(z) };
                    events.push(ts, kind::DEPTH, what % 2, [price(bid + y - 500), size, 0.0, 0.0]);
                }
                _ => {
                    let lead = price(bid + x % 40) + 7.0;
                    events.push(ts, kind::LEAD_QUOTE, 0, [lead, 0.0, lead + 0.01, 0.0]);
                }
            }
        }
        events
    })
}

fn bits(row: &[f32; PADDED]) -> [u32; PADDED] {
    row.map(f32::to_bits)
}

fn read(engine: &FeatureEngine) -> [f32; PADDED] {
    let mut row = [0.0; PADDED];
    engine.write(&mut row);
    row
}

/// An engine fed with quotes, trades, depth and lead quotes for `seconds`.
fn fed(seconds: i64) -> FeatureEngine {
    let mut engine = FeatureEngine::new(CONFIG).unwrap();
    for i in 0..=seconds * 10 {
        let ts = START + i * SECOND / 10;
        let bid = 60_000.0 + (i % 7) as f64 * 0.1;
        engine.on_depth(ts, Side::Bid, bid - 0.5, 2.0).unwrap();
        engine.on_depth(ts, Side::Ask, bid + 0.5, 3.0).unwrap();
        engine.on_trade(ts, bid, 0.5, Aggressor::Buy).unwrap();
        engine.on_lead_quote(ts, bid - 3.0, bid - 2.9).unwrap();
        engine.on_quote(ts, bid, 1.0 + (i % 3) as f64, bid + 0.1, 2.0).unwrap();
    }
    engine
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn bulk_and_event_path_give_the_same_bits_and_reading_changes_nothing(
        events in events(2000..6000)
    ) {
        let rows = events.bulk().unwrap();
        let mut quiet = FeatureEngine::new(CONFIG).unwrap();
        let mut watched = FeatureEngine::new(CONFIG).unwrap();
        let mut rows = rows.iter();
        for i in 0..events.ts.len() {
            events.apply(&mut quiet, i);
            events.apply(&mut watched, i);
            let first = read(&watched);
            prop_assert_eq!(bits(&first), bits(&read(&watched)));
            if events.kind[i] == kind::QUOTE {
                let row = rows.next().unwrap();
                prop_assert_eq!(bits(&row.features), bits(&read(&quiet)));
                prop_assert_eq!(bits(&row.features), bits(&first));
                prop_assert_eq!((row.ts_ns, row.warm), (events.ts[i], quiet.is_warm()));
            }
        }
        prop_assert!(rows.next().is_none());
    }

    #[test]
    fn the_future_changes_nothing_before_it(events in events(1500..4000), cut in 0.1..0.9_f64) {
        let whole = events.bulk().unwrap();
        let cut = (events.ts.len() as f64 * cut) as usize;
        let mut changed = events.clone();
        for i in cut..events.ts.len() {
            changed.ts[i] += 5_000_000;
            changed.values[1][i] *= 2.0;
            changed.values[3][i] *= 3.0;
        }
        let mut shorter = events.clone();
        shorter.ts.truncate(cut);
        shorter.kind.truncate(cut);
        shorter.side.truncate(cut);
        for column in &mut shorter.values {
            column.truncate(cut);
        }
        let (changed, shorter) = (changed.bulk().unwrap(), shorter.bulk().unwrap());
        for ((a, b), c) in shorter.iter().zip(&whole).zip(&changed) {
            prop_assert_eq!(bits(&a.features), bits(&b.features));
            prop_assert_eq!(bits(&a.features), bits(&c.features));
        }
    }
}

#[test]
fn nothing_is_said_before_the_warm_up_and_never_a_zero() {
    let warm_up_s = WARM_UP_NS[UpdateClass::Quote as usize] / SECOND;
    let engine = fed(warm_up_s - 1); // All other sources warm up no later than the quotes.
    assert!(!engine.is_warm());
    assert!(read(&engine)[..N_FEATURES].iter().all(|x| x.is_nan()));
    let engine = fed(warm_up_s);
    assert!(engine.is_warm());
    assert!(read(&engine)[..N_FEATURES].iter().all(|x| x.is_finite()));
    assert_eq!(read(&engine)[N_FEATURES..], [0.0; PADDED - N_FEATURES]);
}

#[test]
fn a_silent_source_makes_its_features_missing_and_no_others() {
    for silent in [UpdateClass::Trade, UpdateClass::Depth, UpdateClass::Lead] {
        let mut engine = fed(90);
        let limit = STALE_NS[silent as usize] / SECOND;
        for i in 1..=(limit + 1) * 10 {
            let ts = START + 90 * SECOND + i * SECOND / 10;
            if silent != UpdateClass::Trade {
                engine.on_trade(ts, 60_000.0, 0.5, Aggressor::Sell).unwrap();
            }
            if silent != UpdateClass::Depth {
                engine.on_depth(ts, Side::Ask, 60_001.0, 1.0).unwrap();
            }
            if silent != UpdateClass::Lead {
                engine.on_lead_quote(ts, 59_990.0, 59_990.1).unwrap();
            }
            engine.on_quote(ts, 60_000.0, 1.0, 60_000.1, 1.0).unwrap();
        }
        for (value, info) in read(&engine).iter().zip(&TABLE) {
            assert_eq!(value.is_nan(), info.update_class == silent, "{}", info.name);
        }
    }
    let mut engine = fed(90);
    let end = START + 90 * SECOND + STALE_NS[UpdateClass::Quote as usize];
    engine.on_trade(end, 60_000.0, 1.0, Aggressor::Buy).unwrap();
    assert!(engine.is_warm());
    engine.on_trade(end + 1, 60_000.0, 1.0, Aggressor::Buy).unwrap();
    assert!(!engine.is_warm());
}

#[test]
fn a_source_that_is_not_carried_is_missing() {
    let mut engine = FeatureEngine::new(CONFIG).unwrap();
    for i in 0..1000 {
        engine.on_quote(START + i * SECOND / 10, 60_000.0, 1.0, 60_000.1, 1.0).unwrap();
    }
    for (value, info) in read(&engine).iter().zip(&TABLE) {
        assert_eq!(value.is_nan(), info.update_class != UpdateClass::Quote, "{}", info.name);
    }
}

#[test]
fn a_clear_makes_depth_missing_until_levels_come() {
    let mut engine = fed(90);
    let end = START + 90 * SECOND;
    engine.on_depth_clear(end).unwrap();
    let depth = TABLE.iter().position(|info| info.update_class == UpdateClass::Depth).unwrap();
    assert!(read(&engine)[depth].is_nan());
    engine.on_depth(end, Side::Bid, 59_999.0, 1.0).unwrap();
    engine.on_depth(end + SECOND, Side::Bid, 59_998.0, 1.0).unwrap();
    assert!(read(&engine)[depth].is_finite());
}

#[test]
fn every_feature_changes_when_the_market_changes() {
    let mut engine = fed(90);
    let mut seen = vec![std::collections::HashSet::new(); N_FEATURES];
    for i in 1..200_i64 {
        let ts = START + 90 * SECOND + i * 37_000_000;
        let bid = 60_000.0 + (i / 3 * 7 % 11) as f64 * 0.1;
        engine.on_trade(ts, bid, 0.1 * (1 + i % 4) as f64, Aggressor::Sell).unwrap();
        engine.on_depth(ts, Side::Bid, bid - 0.3, (i % 5) as f64).unwrap();
        engine.on_lead_quote(ts, bid - (i % 3) as f64, bid + 0.1).unwrap();
        let (bid_size, ask) = (0.5 * (1 + i % 7) as f64, bid + 0.1 * (1 + i / 7 % 2) as f64);
        engine.on_quote(ts, bid, bid_size, ask, 0.3 * (1 + i % 3) as f64).unwrap();
        for (values, value) in seen.iter_mut().zip(read(&engine)) {
            values.insert(value.to_bits());
        }
    }
    for (values, info) in seen.iter().zip(&TABLE) {
        assert!(values.len() > 1, "{} is constant", info.name);
    }
}

#[test]
fn equal_times_and_off_grid_noise_below_the_tolerance_are_fine() {
    let mut exact = FeatureEngine::new(CONFIG).unwrap();
    let mut noisy = exact.clone();
    for i in 0..1500 {
        let ts = START + i / 2 * 150_000_000;
        let bid = (600_000 + i % 9) as f64 / 10.0;
        exact.on_quote(ts, bid, 1.234, bid + 0.1, 2.0).unwrap();
        noisy.on_quote(ts, bid * (1.0 + 1e-12), 1.234_000_1, bid + 0.1, 2.0).unwrap();
    }
    assert!(exact.is_warm());
    assert_eq!(bits(&read(&exact)), bits(&read(&noisy)));
}

#[test]
fn a_refused_event_names_its_field_and_leaves_no_trace() {
    type Call = fn(&mut FeatureEngine, i64) -> Result<()>;
    let calls: [(&str, Call); 22] = [
        ("bid", |e, t| e.on_quote(t, f64::NAN, 1.0, 60_000.0, 1.0)),
        ("bid", |e, t| e.on_quote(t, -60_000.0, 1.0, 60_000.0, 1.0)),
        ("bid", |e, t| e.on_quote(t, 0.0, 1.0, 60_000.0, 1.0)),
        ("bid", |e, t| e.on_quote(t, 59_999.95, 1.0, 60_000.0, 1.0)),
        ("bid", |e, t| e.on_quote(t, 60_000.0, 1.0, 60_000.0, 1.0)),
        ("bid", |e, t| e.on_quote(t, 60_000.1, 1.0, 60_000.0, 1.0)),
        ("ask", |e, t| e.on_quote(t, 60_000.0, 1.0, f64::INFINITY, 1.0)),
        ("ask", |e, t| e.on_quote(t, 60_000.0, 1.0, 1e13, 1.0)),
        ("bid_size", |e, t| e.on_quote(t, 60_000.0, 0.0, 60_000.1, 1.0)),
        ("bid_size", |e, t| e.on_quote(t, 60_000.0, f64::NAN, 60_000.1, 1.0)),
        ("ask_size", |e, t| e.on_quote(t, 60_000.0, 1.0, 60_000.1, -1.0)),
        ("ask_size", |e, t| e.on_quote(t, 60_000.0, 1.0, 60_000.1, f64::INFINITY)),
        ("ts", |e, _| e.on_quote(START, 60_000.0, 1.0, 60_000.1, 1.0)),
        ("price", |e, t| e.on_trade(t, f64::NAN, 1.0, Aggressor::Buy)),
        ("size", |e, t| e.on_trade(t, 60_000.0, 0.0, Aggressor::Buy)),
        ("ts", |e, t| e.on_trade(t - 100 * SECOND, 60_000.0, 1.0, Aggressor::Buy)),
        ("price", |e, t| e.on_depth(t, Side::Bid, 60_000.05, 1.0)),
        ("size", |e, t| e.on_depth(t, Side::Bid, 60_000.0, -0.001)),
        ("size", |e, t| {
            e.on_depth_batch(
                t,
                [(Side::Bid, 60_000.0, 9.0), (Side::Bid, 59_999.9, f64::NAN)].into_iter(),
            )
        }),
        ("ts", |e, _| e.on_depth_clear(START)),
        ("lead bid", |e, t| e.on_lead_quote(t, f64::NAN, 1.0)),
        ("bid", |e, t| e.on_lead_quote(t, 60_000.0, 59_000.0)),
    ];
    let reference = fed(90);
    let later = START + 95 * SECOND;
    for (i, (field, call)) in calls.iter().enumerate() {
        let mut engine = reference.clone();
        let error = call(&mut engine, later).expect_err(field).to_string();
        assert!(error.starts_with(&format!("{field}: ")), "call {i}: {error}");
        assert_eq!(engine.now_ns(), reference.now_ns());
        assert_eq!(bits(&read(&engine)), bits(&read(&reference)), "call {i}");
    }
}

#[test]
fn bulk_errors_name_field_and_row() {
    let mut events = Events::default();
    for i in 0..1000 {
        events.push(START + i, kind::QUOTE, 0, [60_000.0, 1.0, 60_000.1, 1.0]);
    }
    let message = |change: &dyn Fn(&mut Events)| {
        let mut events = events.clone();
        change(&mut events);
        events.bulk().unwrap_err().to_string()
    };
    let bid = message(&|e| e.values[0][700] = f64::NAN);
    assert_eq!(bid, "bid: must be finite, got NaN (row 700)");
    assert!(message(&|e| e.ts[3] = 0).starts_with("ts: time runs backwards"));
    assert_eq!(message(&|e| e.kind[5] = 9), "kind: must be 0 to 4, got 9 (row 5)");
    assert!(message(&|e| e.side[6] = 1).starts_with("side: 1 does not exist"));
    assert!(message(&|e| e.values[3].truncate(4)).starts_with("d: has 4 rows, but ts has 1000"));
}

#[test]
fn impossible_increments_are_refused() {
    for bad in [0.0, -0.1, f64::NAN, f64::INFINITY, 1e-320] {
        let price = FeatureConfig { price_increment: bad, size_increment: 0.001 };
        let size = FeatureConfig { price_increment: 0.1, size_increment: bad };
        assert!(FeatureEngine::new(price).unwrap_err().to_string().starts_with("price_increment"));
        assert!(FeatureEngine::new(size).unwrap_err().to_string().starts_with("size_increment"));
    }
}

#[test]
fn the_table_keeps_its_partition_and_distinct_names() {
    let group = |name: &str| TABLE.iter().filter(|info| info.group == name).count();
    assert_eq!(group("returns"), 3);
    assert_eq!(group("trend and volatility"), 9);
    assert_eq!(group("microstructure and flow"), 14);
    let names: std::collections::HashSet<_> = TABLE.iter().map(|info| info.name).collect();
    assert_eq!(names.len(), N_FEATURES);
    assert_eq!(schema_sha256().len(), 64);
}
