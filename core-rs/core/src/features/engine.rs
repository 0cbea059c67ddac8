//! The streaming engine: one call per market event, the same work whatever came before, nothing
//! allocated after `new`.
//!
//! Reading is two pure steps: [`FeatureEngine::snapshot`] copies what the features need as of the
//! last event, [`Snapshot::features`] computes them. Neither changes the engine, so a value depends
//! on the market only, never on who looked; and the bulk path can do the second step on another core.

use super::book::{BAND_TICKS_MAX, Book};
use super::grid::Grid;
use super::leaky::{Decay, Leaky};
use super::math::ln;
use super::table::{TABLE, UpdateClass};
use super::{Aggressor, FeatureConfig, N_FEATURES, PADDED, Side};
use crate::{Error, Result};

/// History a source needs before its features are given; by [`UpdateClass`]: quote and trade (twice
/// their longest time scale of 30 s), depth, lead (three times 10 s).
pub const WARM_UP_NS: [i64; 4] = [60_000_000_000, 60_000_000_000, 1_000_000_000, 30_000_000_000];
/// Silence after which a source's features are missing; by [`UpdateClass`]. Trades may rest for a
/// while in a quiet market, level changes and quotes do not.
pub const STALE_NS: [i64; 4] = [10_000_000_000, 60_000_000_000, 10_000_000_000, 10_000_000_000];
/// Half-width of the depth band as a fraction of the price: 3 basis points.
const BAND_FRACTION: f64 = 3e-4;
const BP: f64 = 1e4;

/// When a source of events was first and last heard.
#[derive(Debug, Clone, Copy)]
struct Heard {
    first_ns: i64,
    last_ns: i64,
}

impl Heard {
    const NEVER: Self = Self { first_ns: i64::MAX, last_ns: 0 };

    #[inline]
    fn at(&mut self, ts_ns: i64) {
        self.first_ns = self.first_ns.min(ts_ns);
        self.last_ns = ts_ns;
    }

    #[inline]
    fn serves(self, now_ns: i64, class: UpdateClass) -> bool {
        // Never heard: the age is hugely negative.
        now_ns - self.first_ns >= WARM_UP_NS[class as usize]
            && now_ns - self.last_ns <= STALE_NS[class as usize]
    }
}

/// Top of book in increments.
#[derive(Debug, Clone, Copy, Default)]
struct Quote {
    bid: f64,
    bid_size: f64,
    ask: f64,
    ask_size: f64,
}

/// Lead venue: its mid, and the basis with its running average.
#[derive(Debug, Clone, Copy, Default)]
struct Lead {
    /// Sum of the lead's bid and ask, quote currency; 0 before the first lead quote.
    twice_mid: f64,
    basis: f64,
    average: f64,
    /// Both venues have been heard, so the basis is known.
    known: bool,
}

impl Lead {
    /// The average moves towards the basis that held since the last event.
    #[inline]
    fn age(&mut self, by: Decay) {
        self.average = self.basis + (self.average - self.basis) * by.s10;
    }

    #[inline]
    fn update(&mut self, twice_mid: f64) {
        if self.twice_mid > 0.0 && twice_mid > 0.0 {
            self.basis = (self.twice_mid / twice_mid - 1.0) * BP;
            if !self.known {
                self.known = true;
                self.average = self.basis;
            }
        }
    }
}

/// The 26 features of one instrument, kept up to date event by event.
#[derive(Debug, Clone)]
pub struct FeatureEngine {
    grid: Grid,
    /// Thousands of quote currency per size increment and price tick.
    notional: f64,
    now_ns: i64,
    /// When the leaky sums were last aged.
    aged_ns: i64,
    sums: Leaky,
    quote: Quote,
    last_move_ns: i64,
    lead: Lead,
    quotes: Heard,
    trades: Heard,
    depth: Heard,
    leads: Heard,
    book: Book,
}

impl FeatureEngine {
    /// Allocates everything the engine will ever need: 1 MB for the depth rings.
    ///
    /// # Errors
    /// [`Error::Input`] unless both increments are finite and positive.
    pub fn new(config: FeatureConfig) -> Result<Self> {
        let grid = Grid::new(config.price_increment, config.size_increment)?;
        Ok(Self {
            grid,
            notional: grid.price_increment * grid.size_increment * 1e-3,
            now_ns: 0,
            aged_ns: 0,
            sums: Leaky::default(),
            quote: Quote::default(),
            last_move_ns: 0,
            lead: Lead::default(),
            quotes: Heard::NEVER,
            trades: Heard::NEVER,
            depth: Heard::NEVER,
            leads: Heard::NEVER,
            book: Book::new(),
        })
    }

    /// A new best bid and offer.
    ///
    /// # Errors
    /// [`Error::Input`] for time running backwards, prices or sizes that are not finite, not
    /// positive or off the grid, and for a crossed or locked quote. The engine is left unchanged.
    #[inline]
    pub fn on_quote(
        &mut self,
        ts_ns: i64,
        bid: f64,
        bid_size: f64,
        ask: f64,
        ask_size: f64,
    ) -> Result<()> {
        let next = Quote {
            bid: self.grid.ticks("bid", bid)?,
            bid_size: self.grid.positive_steps("bid_size", bid_size)?,
            ask: self.grid.ticks("ask", ask)?,
            ask_size: self.grid.positive_steps("ask_size", ask_size)?,
        };
        if next.bid >= next.ask {
            return Err(crossed(bid, ask));
        }
        self.check_time(ts_ns)?;
        self.age_to(ts_ns);

        let last = self.quote;
        let twice_mid = next.bid + next.ask;
        if last.bid > 0.0 {
            self.add_quote(last, next);
            let twice_last = last.bid + last.ask;
            if twice_mid != twice_last {
                self.sums.add_move((twice_mid - twice_last) / twice_last * BP);
                self.last_move_ns = ts_ns;
            }
        } else {
            self.last_move_ns = ts_ns;
        }
        if next.bid != last.bid || next.ask != last.ask {
            let width = (twice_mid * (0.5 * BAND_FRACTION)) as i64;
            self.book.follow(next.bid, next.ask, width.clamp(1, BAND_TICKS_MAX));
            self.lead.update(twice_mid * self.grid.price_increment);
        }
        self.quote = next;
        self.quotes.at(ts_ns);
        Ok(())
    }

    /// A trade, with the side that took liquidity.
    ///
    /// # Errors
    /// [`Error::Input`] as for [`Self::on_quote`].
    #[inline]
    pub fn on_trade(
        &mut self,
        ts_ns: i64,
        price: f64,
        size: f64,
        aggressor: Aggressor,
    ) -> Result<()> {
        let ticks = self.grid.ticks("price", price)?;
        let steps = self.grid.positive_steps("size", size)?;
        self.check_time(ts_ns)?;
        self.age_to(ts_ns);
        let volume = ticks * steps * self.notional;
        let [log] = ln([1.0 + volume]);
        let sign = match aggressor {
            Aggressor::Buy => 1.0,
            Aggressor::Sell => -1.0,
        };
        self.sums.add_trade(sign, log, volume);
        self.trades.at(ts_ns);
        Ok(())
    }

    /// A change of one price level; size 0 removes it.
    ///
    /// # Errors
    /// [`Error::Input`] as for [`Self::on_quote`].
    #[inline]
    pub fn on_depth(&mut self, ts_ns: i64, side: Side, price: f64, size: f64) -> Result<()> {
        let ticks = self.grid.ticks("price", price)?;
        let steps = self.grid.steps("size", size)?;
        self.check_time(ts_ns)?;
        self.now_ns = ts_ns;
        self.book.set(side, ticks, steps);
        self.depth.at(ts_ns);
        Ok(())
    }

    /// Several level changes of one moment: all are applied or, at the first error, none.
    ///
    /// # Errors
    /// [`Error::Input`] as for [`Self::on_quote`].
    pub fn on_depth_batch(
        &mut self,
        ts_ns: i64,
        levels: impl Iterator<Item = (Side, f64, f64)> + Clone,
    ) -> Result<()> {
        self.check_time(ts_ns)?;
        for (_, price, size) in levels.clone() {
            self.grid.ticks("price", price)?;
            self.grid.steps("size", size)?;
        }
        for (side, price, size) in levels {
            self.on_depth(ts_ns, side, price, size)?;
        }
        Ok(())
    }

    /// All levels are void (a snapshot follows); depth features are missing until levels come.
    ///
    /// # Errors
    /// [`Error::Input`] for time running backwards.
    pub fn on_depth_clear(&mut self, ts_ns: i64) -> Result<()> {
        self.check_time(ts_ns)?;
        self.now_ns = ts_ns;
        self.book.clear();
        self.depth = Heard::NEVER;
        Ok(())
    }

    /// A quote of the lead venue, on its own price grid.
    ///
    /// # Errors
    /// [`Error::Input`] for time running backwards, prices that are not finite and positive, and
    /// for a crossed quote.
    #[inline]
    pub fn on_lead_quote(&mut self, ts_ns: i64, bid: f64, ask: f64) -> Result<()> {
        check_lead("lead bid", bid)?;
        check_lead("lead ask", ask)?;
        if bid >= ask {
            return Err(crossed(bid, ask));
        }
        self.check_time(ts_ns)?;
        self.age_to(ts_ns);
        let (before, after) = (self.lead.twice_mid, bid + ask);
        if after != before {
            if before > 0.0 {
                self.sums.add_lead_move((after - before) / before * BP);
            }
            self.lead.twice_mid = after;
            self.lead.update((self.quote.bid + self.quote.ask) * self.grid.price_increment);
        }
        self.leads.at(ts_ns);
        Ok(())
    }

    /// True once quotes have been heard for the warm-up time and have not gone silent.
    #[inline]
    pub fn is_warm(&self) -> bool {
        self.quotes.serves(self.now_ns, UpdateClass::Quote)
    }

    /// Time of the last event, UNIX nanoseconds; 0 before the first.
    #[inline]
    pub fn now_ns(&self) -> i64 {
        self.now_ns
    }

    /// Mid price of the last quote; NaN before the first.
    #[inline]
    pub fn mid(&self) -> f64 {
        if self.quote.bid > 0.0 {
            (self.quote.bid + self.quote.ask) * 0.5 * self.grid.price_increment
        } else {
            f64::NAN
        }
    }

    /// Level changes ignored because they lay too far from the market.
    pub fn far_levels(&self) -> u64 {
        self.book.far()
    }

    /// The features as of the last event; NaN where missing, all NaN while not warm. The padding
    /// is 0. Changes nothing: two reads give the same bits.
    #[inline]
    pub fn write(&self, out: &mut [f32; PADDED]) {
        *out = self.snapshot().features();
    }

    /// What the features are computed from, as of the last event.
    #[inline]
    pub fn snapshot(&self) -> Snapshot {
        let (mut sums, mut lead) = (self.sums, self.lead);
        if self.now_ns > self.aged_ns {
            let decay = Decay::over(self.now_ns - self.aged_ns);
            sums.age(decay);
            lead.age(decay);
        }
        let (bid_band, ask_band) = self.book.bands();
        let warm = self.is_warm();
        let missing = |served: bool| if warm && served { 0.0 } else { f32::NAN };
        Snapshot {
            ts_ns: self.now_ns,
            mid: self.mid(),
            warm,
            sums,
            quote: self.quote,
            bands: (bid_band, ask_band),
            move_age_s: (self.now_ns - self.last_move_ns) as f64 * 1e-9,
            basis: lead.basis - lead.average,
            notional: self.notional,
            missing: [
                missing(true),
                missing(self.trades.serves(self.now_ns, UpdateClass::Trade)),
                missing(self.depth.serves(self.now_ns, UpdateClass::Depth)),
                missing(self.leads.serves(self.now_ns, UpdateClass::Lead)),
            ],
        }
    }

    /// Order flow and cancels between two quotes.
    #[inline]
    fn add_quote(&mut self, last: Quote, next: Quote) {
        let k = next.bid * self.notional;
        let flow = order_flow(last, next) * k;
        let fall = |before: f64, after: f64, stays: bool| {
            if stays { (before - after).max(0.0) * k } else { 0.0 }
        };
        let bid_fall = fall(last.bid_size, next.bid_size, next.bid == last.bid);
        let ask_fall = fall(last.ask_size, next.ask_size, next.ask == last.ask);
        let [log, bid_cancel, ask_cancel, _] =
            ln([1.0 + flow.abs(), 1.0 + bid_fall, 1.0 + ask_fall, 1.0]);
        self.sums.add_quote(log.copysign(flow), bid_cancel, ask_cancel);
    }

    #[inline]
    fn check_time(&self, ts_ns: i64) -> Result<()> {
        if ts_ns >= self.now_ns { Ok(()) } else { Err(backwards(ts_ns, self.now_ns)) }
    }

    #[inline]
    fn age_to(&mut self, ts_ns: i64) {
        if ts_ns > self.aged_ns {
            let decay = Decay::over(ts_ns - self.aged_ns);
            self.sums.age(decay);
            self.lead.age(decay);
            self.aged_ns = ts_ns;
        }
        self.now_ns = ts_ns;
    }
}

/// What the features of one moment are computed from.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    /// Time of the last event, UNIX nanoseconds.
    pub ts_ns: i64,
    /// Mid price, quote currency.
    pub mid: f64,
    /// The engine was warm.
    pub warm: bool,
    sums: Leaky,
    quote: Quote,
    bands: (f64, f64),
    move_age_s: f64,
    basis: f64,
    notional: f64,
    /// 0, or NaN where the source is missing; by [`UpdateClass`].
    missing: [f32; 4],
}

impl Snapshot {
    /// Computes the features. All logarithms and all quotients are taken together.
    #[inline]
    pub fn features(&self) -> [f32; PADDED] {
        let Quote { bid, bid_size, ask, ask_size } = self.quote;
        let Leaky { ms100, ms500, s2, s10, s30 } = self.sums;
        let twice_mid = bid + ask;
        let k = 0.5 * twice_mid * self.notional;
        let (bid_band, ask_band) = (self.bands.0 + bid_size, self.bands.1 + ask_size);
        let [
            variance_500ms,
            variance_10s,
            moves,
            move_age,
            band_depth,
            trades,
            bid_queue,
            ask_queue,
        ] = ln([
            1.0 + ms500[1],
            1.0 + s10[1],
            1.0 + s2[1],
            1e-3 + self.move_age_s,
            1.0 + (bid_band + ask_band) * k,
            1.0 + s10[2],
            1.0 + bid_size * k,
            1.0 + ask_size * k,
        ]);
        let spread = 2.0 * (ask - bid) / twice_mid * BP;
        let imbalance = (bid_size - ask_size) / (bid_size + ask_size);
        let values: [f64; N_FEATURES] = [
            ms100[0],
            ms500[0],
            s30[0],
            variance_500ms,
            variance_10s,
            s10[0] / (0.25 + s10[1]).sqrt(),
            s30[0] - s10[0],
            moves,
            move_age,
            ms500[4],
            ms500[3],
            self.basis,
            spread,
            imbalance,
            0.5 * spread * imbalance,
            (bid_band - ask_band) / (bid_band + ask_band),
            band_depth,
            ms100[1],
            s2[0],
            (ms500[5] - ms500[6]) / (1.0 + ms500[5] + ms500[6]),
            ms100[2],
            ms500[2],
            s30[1] / (1.0 + s30[2]),
            trades,
            bid_queue,
            ask_queue,
        ];
        let mut row = [0.0; PADDED];
        for i in 0..N_FEATURES {
            row[i] = values[i] as f32 + self.missing[TABLE[i].update_class as usize];
        }
        row
    }
}

/// Order-flow imbalance of one quote against the one before, size increments (Cont, Kukanov and
/// Stoikov 2014, equation 10).
#[inline]
fn order_flow(last: Quote, next: Quote) -> f64 {
    let mut flow = 0.0;
    flow += if next.bid >= last.bid { next.bid_size } else { 0.0 };
    flow -= if next.bid <= last.bid { last.bid_size } else { 0.0 };
    flow -= if next.ask <= last.ask { next.ask_size } else { 0.0 };
    flow += if next.ask >= last.ask { last.ask_size } else { 0.0 };
    flow
}

#[inline]
fn check_lead(field: &'static str, price: f64) -> Result<()> {
    if price.is_finite() && price > 0.0 {
        Ok(())
    } else {
        Err(Error::input(field, format!("must be a positive finite number, got {price}")))
    }
}

#[cold]
fn crossed(bid: f64, ask: f64) -> Error {
    Error::input("bid", format!("must lie below the ask: {bid} is not below {ask}"))
}

#[cold]
fn backwards(ts_ns: i64, now_ns: i64) -> Error {
    Error::input("ts", format!("time runs backwards: {ts_ns} after {now_ns}"))
}
