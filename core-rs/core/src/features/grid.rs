//! The instrument's grid: prices and sizes become whole numbers of increments where they enter, so
//! that a price parsed from text, taken from a Nautilus `Price` or read from a column of doubles
//! gives the same bits from there on, and sums of sizes are exact.

use super::math::nearest;
use crate::{Error, Result};

/// Largest price, in increments.
pub const PRICE_TICKS_MAX: f64 = (1_u64 << 40) as f64;
/// Largest size, in increments: thousands of such levels still add up exactly in a double.
pub const SIZE_STEPS_MAX: f64 = (1_u64 << 40) as f64;
/// How far a price may lie from its grid point, in increments.
pub const OFF_GRID_TICKS_MAX: f64 = 1e-3;

/// Price and size increments of one instrument, with their inverses.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    /// Smallest price step, quote currency.
    pub price_increment: f64,
    /// Smallest size step, base currency.
    pub size_increment: f64,
    ticks_per_price: f64,
    steps_per_size: f64,
}

impl Grid {
    /// # Errors
    /// [`Error::Input`] unless both increments are finite and positive.
    pub fn new(price_increment: f64, size_increment: f64) -> Result<Self> {
        for (field, value) in
            [("price_increment", price_increment), ("size_increment", size_increment)]
        {
            if !(value.is_finite() && value > 0.0 && (1.0 / value).is_finite()) {
                return Err(Error::input(
                    field,
                    format!("must be a positive finite number, got {value}"),
                ));
            }
        }
        Ok(Self {
            price_increment,
            size_increment,
            ticks_per_price: 1.0 / price_increment,
            steps_per_size: 1.0 / size_increment,
        })
    }

    /// The price in increments, a whole number of at least 1.
    #[inline]
    pub fn ticks(&self, field: &'static str, price: f64) -> Result<f64> {
        let exact = price * self.ticks_per_price;
        let ticks = nearest(exact);
        // Written so that NaN fails.
        if (exact - ticks).abs() <= OFF_GRID_TICKS_MAX && (1.0..=PRICE_TICKS_MAX).contains(&ticks) {
            Ok(ticks)
        } else {
            Err(self.bad_price(field, price))
        }
    }

    /// The size in increments, a whole number; sizes between two steps are rounded.
    #[inline]
    pub fn steps(&self, field: &'static str, size: f64) -> Result<f64> {
        let steps = nearest(size * self.steps_per_size);
        if size >= 0.0 && steps <= SIZE_STEPS_MAX { Ok(steps) } else { Err(bad_size(field, size)) }
    }

    /// The size in increments, at least one.
    #[inline]
    pub fn positive_steps(&self, field: &'static str, size: f64) -> Result<f64> {
        let steps = self.steps(field, size)?;
        if steps >= 1.0 { Ok(steps) } else { Err(zero_size(field, size)) }
    }

    #[cold]
    fn bad_price(&self, field: &'static str, price: f64) -> Error {
        let reason = if !price.is_finite() {
            format!("must be finite, got {price}")
        } else if price <= 0.0 {
            format!("must be positive, got {price}")
        } else if price * self.ticks_per_price > PRICE_TICKS_MAX {
            format!("is more than 2^40 increments of {}, got {price}", self.price_increment)
        } else {
            format!("is not on the price grid of {}, got {price}", self.price_increment)
        };
        Error::input(field, reason)
    }
}

#[cold]
fn bad_size(field: &'static str, size: f64) -> Error {
    let reason = if !size.is_finite() {
        format!("must be finite, got {size}")
    } else if size < 0.0 {
        format!("must not be negative, got {size}")
    } else {
        format!("is more than 2^40 increments, got {size}")
    };
    Error::input(field, reason)
}

#[cold]
fn zero_size(field: &'static str, size: f64) -> Error {
    Error::input(field, format!("must be at least one size increment, got {size}"))
}
