//! A synthetic limit order book market, seeded and reproducible bit for bit on every platform.
//!
//! The book is moved by six mutually exciting flows (market, limit and cancel orders of both
//! directions), a background of changes deeper in the book, makers who pull their quotes when the
//! best queue is gone, and makers who step in to close the spread. A hidden Ornstein-Uhlenbeck
//! signal tilts the flows: that is the predictability, of known strength (`edge`) and decay. A
//! two-state regime scales activity and jump size. Calibrated to BTCUSDT perpetual of Binance
//! (`docs/synthetic-market.md`); it is a model, and none of its rows is market data.

mod book;
mod draw;
mod events;
mod hawkes;
mod latent;
mod market;

pub use events::{DEPTH, DEPTH_CLEAR, Events, QUOTE, TRADE};
pub use latent::SIGNAL_TAU_S;

use crate::{Error, Result};
use book::DEPTH_TICKS;
use events::Grid;
use market::Market;

/// Longest market in one call, seconds (6 h). Ask for several seeds instead of a longer one.
pub const DURATION_S_MAX: f64 = 21_600.0;
/// Most rows in one call (42 bytes each).
pub const EVENTS_MAX: usize = 60_000_000;
/// Strongest informed flow: twice the calibrated one.
pub const EDGE_MAX: f64 = 2.0;
/// The start price in ticks: below, the book would reach down to zero; above, ticks lose meaning.
pub const PRICE_TICKS: std::ops::RangeInclusive<f64> = 5_000.0..=1e9;

/// What to simulate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimConfig {
    /// Equal seeds (and equal other fields) give equal bits.
    pub seed: u64,
    /// Simulated time, seconds, in (0, [`DURATION_S_MAX`]].
    pub duration_s: f64,
    /// Strength of the informed flow: 0 none, 1 calibrated, at most [`EDGE_MAX`].
    pub edge: f64,
    /// UNIX nanoseconds of the first row.
    pub start_ns: i64,
    /// Start price, quote currency; snapped to the grid.
    pub price: f64,
    /// Price grid.
    pub price_increment: f64,
    /// Size grid; sizes are drawn in multiples of it.
    pub size_increment: f64,
}

/// Runs the market and returns its rows.
///
/// At one time stamp a trade comes first, then the book levels it changed, then the new top of
/// book. The first rows are a [`DEPTH_CLEAR`], the levels of the book after an unrecorded burn-in,
/// and a quote, all at `start_ns`. Cost: about 0.3 us and 42 bytes a row.
///
/// # Errors
/// `Error::Input` naming the field that is not finite or out of its limits, or `duration_s` when
/// more than [`EVENTS_MAX`] rows would come out.
pub fn simulate(config: &SimConfig) -> Result<Events> {
    let start_ticks = check(config)?;
    let price = Grid::new(config.price_increment);
    let size = Grid::new(config.size_increment);
    Market::new(config, start_ticks, price, size).run(config)
}

/// Checks every field; returns the start price in ticks.
fn check(c: &SimConfig) -> Result<i64> {
    let positive = |field, x: f64| {
        if x.is_finite() && x > 0.0 {
            Ok(())
        } else {
            Err(Error::input(field, format!("must be finite and above 0, got {x}")))
        }
    };
    positive("duration_s", c.duration_s)?;
    positive("price", c.price)?;
    positive("price_increment", c.price_increment)?;
    positive("size_increment", c.size_increment)?;
    if c.duration_s > DURATION_S_MAX {
        return Err(Error::input(
            "duration_s",
            format!(
                "at most {DURATION_S_MAX} s in one call, got {}; use several seeds",
                c.duration_s
            ),
        ));
    }
    if !(0.0..=EDGE_MAX).contains(&c.edge) {
        return Err(Error::input("edge", format!("must be in 0..={EDGE_MAX}, got {}", c.edge)));
    }
    let last_start = i64::MAX - (DURATION_S_MAX * 1e9) as i64 - 1;
    if !(0..=last_start).contains(&c.start_ns) {
        return Err(Error::input(
            "start_ns",
            format!("must be UNIX nanoseconds, got {}", c.start_ns),
        ));
    }
    let ticks = (c.price / c.price_increment).round();
    if !PRICE_TICKS.contains(&ticks) {
        return Err(Error::input(
            "price",
            format!(
                "must be {:e} to {:e} price increments, got {ticks:e}",
                PRICE_TICKS.start(),
                PRICE_TICKS.end()
            ),
        ));
    }
    debug_assert!(ticks > DEPTH_TICKS as f64);
    Ok(ticks as i64)
}
