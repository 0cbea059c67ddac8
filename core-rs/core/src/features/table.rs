//! The table of the 26 features: the one description that the documentation, the schema hash and
//! the command `qbtc features` are generated from.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::{N_FEATURES, engine};

/// Where a feature gets its news from, and so when it can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateClass {
    /// Quotes of this instrument (and the time passed since).
    Quote,
    /// Trades of this instrument (and the time passed since).
    Trade,
    /// Level changes of this instrument's depth.
    Depth,
    /// Quotes of the lead instrument (and the time passed since).
    Lead,
}

impl UpdateClass {
    /// The word used in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quote => "quote",
            Self::Trade => "trade",
            Self::Depth => "depth",
            Self::Lead => "lead",
        }
    }

    /// Seconds of history before features of this class are given.
    pub fn warm_up_s(self) -> f64 {
        engine::WARM_UP_NS[self as usize] as f64 / 1e9
    }

    /// Seconds of silence after which features of this class are missing.
    pub fn stale_s(self) -> f64 {
        engine::STALE_NS[self as usize] as f64 / 1e9
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct FeatureInfo {
    /// Name in files and reports.
    pub name: &'static str,
    /// Group of the 3/9/14 partition.
    pub group: &'static str,
    /// Unit of the value.
    pub unit: &'static str,
    /// How it is computed, in the notation of [`NOTATION`].
    pub formula: &'static str,
    /// What makes it change.
    pub update_class: UpdateClass,
}

impl FeatureInfo {
    /// Seconds of history before the feature is given.
    pub fn warm_up_s(&self) -> f64 {
        self.update_class.warm_up_s()
    }
}

/// The words the formulas are written in.
pub const NOTATION: &str = "\
m is the mid price, d its change at a quote in basis points; a/b the ask/bid, A/B their sizes, a0/b0/A0/B0 \
those of the quote before. S(x; t) is a leaky sum: every x counts exp(-age / t). v is a price times a size \
in thousands of quote currency. log1p(x) = ln(1 + x), slog1p(x) = sign(x) log1p(|x|). o is the order flow of \
a quote: (B if b >= b0) - (B0 if b <= b0) - (A if a <= a0) + (A0 if a >= a0). cb is log1p(v) of a fall of B \
while b stays, ca the same for A. The band of a side is the size quoted at its touch plus the levels behind \
it within 3 bp of the mid (1 to 4096 ticks).";

const RETURNS: &str = "returns";
const TREND: &str = "trend and volatility";
const FLOW: &str = "microstructure and flow";

const fn info(
    name: &'static str,
    group: &'static str,
    unit: &'static str,
    formula: &'static str,
    update_class: UpdateClass,
) -> FeatureInfo {
    FeatureInfo { name, group, unit, formula, update_class }
}

/// The features, in the order of every row.
#[rustfmt::skip]
pub const TABLE: [FeatureInfo; N_FEATURES] = [
    info("return_100ms", RETURNS, "bp", "S(d; 0.1 s)", UpdateClass::Quote),
    info("return_500ms", RETURNS, "bp", "S(d; 0.5 s)", UpdateClass::Quote),
    info("return_30s", RETURNS, "bp", "S(d; 30 s)", UpdateClass::Quote),
    info("variance_500ms", TREND, "ln bp^2", "log1p(S(d^2; 0.5 s))", UpdateClass::Quote),
    info("variance_10s", TREND, "ln bp^2", "log1p(S(d^2; 10 s))", UpdateClass::Quote),
    info("trend_10s", TREND, "1", "S(d; 10 s) / sqrt(0.25 + S(d^2; 10 s))", UpdateClass::Quote),
    info("crossover_10s_30s", TREND, "bp", "S(d; 30 s) - S(d; 10 s)", UpdateClass::Quote),
    info("moves_2s", TREND, "ln count", "log1p(S(1 if d != 0; 2 s))", UpdateClass::Quote),
    info("move_age", TREND, "ln s", "ln(0.001 + seconds since the last d != 0)", UpdateClass::Quote),
    info("last_move", TREND, "-1..1", "sign of the last d != 0, times exp(-its age / 0.5 s)", UpdateClass::Quote),
    info("lead_return_500ms", TREND, "bp", "S(change of the lead mid; 0.5 s)", UpdateClass::Lead),
    info("basis_10s", TREND, "bp", "(lead mid / m - 1) less its 10 s exponential average", UpdateClass::Lead),
    info("spread", FLOW, "bp", "(a - b) / m", UpdateClass::Quote),
    info("imbalance", FLOW, "-1..1", "(B - A) / (B + A)", UpdateClass::Quote),
    info("microprice", FLOW, "bp", "((a B + b A) / (A + B) - m) / m", UpdateClass::Quote),
    info("band_imbalance", FLOW, "-1..1", "(bid band - ask band) / (bid band + ask band)", UpdateClass::Depth),
    info("band_depth", FLOW, "ln v", "log1p(v of both bands)", UpdateClass::Depth),
    info("order_flow_100ms", FLOW, "ln v", "S(slog1p(v of o); 0.1 s)", UpdateClass::Quote),
    info("order_flow_2s", FLOW, "ln v", "S(slog1p(v of o); 2 s)", UpdateClass::Quote),
    info("cancel_balance_500ms", FLOW, "-1..1", "(S(cb; 0.5 s) - S(ca; 0.5 s)) / (1 + S(cb; 0.5 s) + S(ca; 0.5 s))", UpdateClass::Quote),
    info("trade_flow_100ms", FLOW, "ln v", "S(+-log1p(v), + for buys; 0.1 s)", UpdateClass::Trade),
    info("trade_flow_500ms", FLOW, "ln v", "S(+-log1p(v), + for buys; 0.5 s)", UpdateClass::Trade),
    info("volume_delta_30s", FLOW, "-1..1", "S(+-v, + for buys; 30 s) / (1 + S(v; 30 s))", UpdateClass::Trade),
    info("trades_10s", FLOW, "ln count", "log1p(S(1 per trade; 10 s))", UpdateClass::Trade),
    info("bid_queue", FLOW, "ln v", "log1p(v of B)", UpdateClass::Quote),
    info("ask_queue", FLOW, "ln v", "log1p(v of A)", UpdateClass::Quote),
];

/// SHA-256 (hex) of names, units, formulas, notation and time limits: it changes when the meaning
/// of a row changes, and models refuse rows of another meaning.
pub fn schema_sha256() -> String {
    let mut text = String::from(NOTATION);
    for row in &TABLE {
        let class = row.update_class;
        write!(
            text,
            "\n{}|{}|{}|{}|{}|{}|{}",
            row.name,
            row.group,
            row.unit,
            row.formula,
            class.name(),
            class.warm_up_s(),
            class.stale_s()
        )
        .expect("Writing to a string cannot fail");
    }
    Sha256::digest(text.as_bytes()).iter().fold(String::with_capacity(64), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("Writing to a string cannot fail");
        hex
    })
}
