//! The live path: market events in, signals out. Features and model of one instrument behind one
//! call per event. Everything is allocated in `new`.

use std::sync::Arc;

use super::{Model, PADDED, Probabilities, Row};
use crate::Result;
use crate::features::{
    Aggressor, Columns, FeatureConfig, FeatureEngine, Side,
    bulk::{apply, kind},
    bulk_rows,
};

/// What a session has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Quotes taken.
    pub quotes: u64,
    /// Trades taken.
    pub trades: u64,
    /// Depth level changes taken, clears included.
    pub depth: u64,
    /// Quotes of the lead venue taken.
    pub lead_quotes: u64,
    /// Events refused with an error.
    pub rejected: u64,
    /// Signals given.
    pub signals: u64,
}

impl Counts {
    /// The counter of events of a kind, as it stands in columns.
    fn of(&mut self, event: u8) -> &mut u64 {
        match event {
            kind::QUOTE => &mut self.quotes,
            kind::TRADE => &mut self.trades,
            kind::LEAD_QUOTE => &mut self.lead_quotes,
            _ => &mut self.depth,
        }
    }
}

/// Probabilities at one moment, with the row of features they follow from.
#[derive(Clone, Copy, Debug)]
pub struct Signal {
    /// Time of the event as the caller gave it, UNIX nanoseconds.
    pub ts_ns: i64,
    /// Mid price of the last quote, quote currency.
    pub mid: f64,
    /// What the model says.
    pub probabilities: Probabilities,
    /// The features, padded; NaN = missing.
    pub x: Row,
}

/// Features and model of one instrument.
#[derive(Clone, Debug)]
pub struct SignalSession {
    engine: FeatureEngine,
    model: Arc<Model>,
    counts: Counts,
}

impl SignalSession {
    /// A session that has seen nothing.
    ///
    /// # Errors
    /// [`crate::Error::Input`] if an increment is not positive.
    pub fn new(model: Arc<Model>, config: FeatureConfig) -> Result<Self> {
        Ok(Self { engine: FeatureEngine::new(config)?, model, counts: Counts::default() })
    }

    /// The shared model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The features behind the signals.
    pub fn features(&self) -> &FeatureEngine {
        &self.engine
    }

    /// Events seen so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes a quote; a signal if the features are warm.
    ///
    /// # Errors
    /// [`crate::Error::Input`] as in [`FeatureEngine::on_quote`]; the state is unchanged.
    #[inline]
    pub fn on_quote(
        &mut self,
        ts_ns: i64,
        bid: f64,
        bid_size: f64,
        ask: f64,
        ask_size: f64,
    ) -> Result<Option<Signal>> {
        let taken = self.engine.on_quote(ts_ns, bid, bid_size, ask, ask_size);
        self.count(taken, |counts| &mut counts.quotes, 1)?;
        Ok(self.signal())
    }

    /// Takes a trade. No signal: ask [`SignalSession::signal`], or wait for the next quote.
    ///
    /// # Errors
    /// [`crate::Error::Input`]; the state is unchanged.
    #[inline]
    pub fn on_trade(
        &mut self,
        ts_ns: i64,
        price: f64,
        size: f64,
        aggressor: Aggressor,
    ) -> Result<()> {
        let taken = self.engine.on_trade(ts_ns, price, size, aggressor);
        self.count(taken, |counts| &mut counts.trades, 1)
    }

    /// Takes one level change; size 0 removes the level.
    ///
    /// # Errors
    /// [`crate::Error::Input`]; the state is unchanged.
    #[inline]
    pub fn on_depth(&mut self, ts_ns: i64, side: Side, price: f64, size: f64) -> Result<()> {
        let taken = self.engine.on_depth(ts_ns, side, price, size);
        self.count(taken, |counts| &mut counts.depth, 1)
    }

    /// Takes level changes of one moment, all or none.
    ///
    /// # Errors
    /// [`crate::Error::Input`]; the state is unchanged.
    pub fn on_depth_batch(&mut self, ts_ns: i64, levels: &[(Side, f64, f64)]) -> Result<()> {
        let taken = self.engine.on_depth_batch(ts_ns, levels.iter().copied());
        self.count(taken, |counts| &mut counts.depth, levels.len() as u64)
    }

    /// All levels are void; a snapshot follows.
    ///
    /// # Errors
    /// [`crate::Error::Input`] if time runs backwards.
    pub fn on_depth_clear(&mut self, ts_ns: i64) -> Result<()> {
        let taken = self.engine.on_depth_clear(ts_ns);
        self.count(taken, |counts| &mut counts.depth, 1)
    }

    /// Takes a quote of the lead venue.
    ///
    /// # Errors
    /// [`crate::Error::Input`]; the state is unchanged.
    #[inline]
    pub fn on_lead_quote(&mut self, ts_ns: i64, bid: f64, ask: f64) -> Result<()> {
        let taken = self.engine.on_lead_quote(ts_ns, bid, ask);
        self.count(taken, |counts| &mut counts.lead_quotes, 1)
    }

    /// Takes one event as it stands in columns ([`Columns`]).
    ///
    /// # Errors
    /// [`crate::Error::Input`]; the state is unchanged.
    #[inline]
    pub(super) fn take(&mut self, ts_ns: i64, event: u8, side: u8, values: [f64; 4]) -> Result<()> {
        let taken = apply(&mut self.engine, ts_ns, event, side, values);
        self.count(taken, |counts| counts.of(event), 1)
    }

    /// The signal as of the last event; none while the features are not warm.
    #[inline]
    pub fn signal(&mut self) -> Option<Signal> {
        if !self.engine.is_warm() {
            return None;
        }
        let mut x = [0.0; PADDED];
        self.engine.write(&mut x);
        self.counts.signals += 1;
        let probabilities = self.model.infer(&x);
        Some(Signal { ts_ns: self.engine.now_ns(), mid: self.engine.mid(), probabilities, x })
    }

    #[inline]
    fn count(
        &mut self,
        taken: Result<()>,
        field: impl Fn(&mut Counts) -> &mut u64,
        n: u64,
    ) -> Result<()> {
        if taken.is_ok() {
            *field(&mut self.counts) += n;
        } else {
            self.counts.rejected += 1;
        }
        taken
    }
}

/// Signals at every quote of whole columns, the same bits as [`SignalSession::on_quote`] one by
/// one. Two threads: one runs the features, the caller's the model. `sink` gets, in order, the
/// time, the mid and the probabilities of each quote (all NaN while the features are not warm).
///
/// # Errors
/// [`crate::Error::Input`] naming field and row of the first event that is refused.
pub fn bulk_signals(
    config: FeatureConfig,
    columns: Columns<'_>,
    model: &Model,
    mut sink: impl FnMut(i64, f64, Probabilities),
) -> Result<()> {
    let nothing = Probabilities { down: f32::NAN, flat: f32::NAN, up: f32::NAN };
    bulk_rows(config, columns, |rows| {
        for row in rows {
            let p = if row.warm { model.infer(&row.features) } else { nothing };
            sink(row.ts_ns, row.mid, p);
        }
    })
}
