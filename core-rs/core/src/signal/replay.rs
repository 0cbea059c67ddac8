//! Signals of a replayed market: the events are read from columns, the host only says when a quote
//! is due.
//!
//! In a backtest the columns and the host's event objects are two readings of one catalog. Reading
//! a quote's four numbers out of a Python object costs several times the features and the model
//! together, and a book update hundreds of times; here that is saved, and the signals are the same
//! bits, since the same session sees the same events in the same order. The host's clock stays in
//! charge: nothing later than the quote it is at is ever read, and a quote at another time than
//! the columns' is an error.

use std::sync::Arc;

use super::{Model, Signal, SignalSession};
use crate::features::{
    Columns, FeatureConfig,
    bulk::{at_row, kind},
};
use crate::{Error, Result};

/// One event: `ts`, `kind`, `side`, `a` to `d` of [`Columns`].
#[derive(Clone, Copy, Debug)]
struct Event {
    ts_ns: i64,
    values: [f64; 4],
    kind: u8,
    side: u8,
}

/// A session with the events it will see.
#[derive(Clone, Debug)]
pub struct Replay {
    session: SignalSession,
    events: Vec<Event>,
    next: usize,
    quote: [f64; 4],
}

impl Replay {
    /// Copies the columns: 48 bytes per event.
    ///
    /// # Errors
    /// [`Error::Input`] for columns of unequal length or an increment that is not positive.
    pub fn new(model: Arc<Model>, config: FeatureConfig, columns: Columns<'_>) -> Result<Self> {
        columns.check_lengths()?;
        let event = |i: usize| Event {
            ts_ns: columns.ts[i],
            values: [columns.a[i], columns.b[i], columns.c[i], columns.d[i]],
            kind: columns.kind[i],
            side: columns.side[i],
        };
        Ok(Self {
            session: SignalSession::new(model, config)?,
            events: (0..columns.ts.len()).map(event).collect(),
            next: 0,
            quote: [f64::NAN; 4],
        })
    }

    /// The session and what it has seen.
    pub fn session(&self) -> &SignalSession {
        &self.session
    }

    /// Takes all events up to and with the next quote, which must be at `ts_ns`; a signal if the
    /// features are warm.
    ///
    /// # Errors
    /// [`Error::Input`] if the next quote is at another time, there is none, or an event is
    /// refused (with its row).
    pub fn on_quote(&mut self, ts_ns: i64) -> Result<Option<Signal>> {
        while let Some(&event) = self.events.get(self.next) {
            if event.kind == kind::QUOTE && event.ts_ns != ts_ns {
                let reason =
                    format!("the next quote of the columns is at {}, not {ts_ns}", event.ts_ns);
                return Err(Error::input("ts", reason));
            }
            let taken = self.session.take(event.ts_ns, event.kind, event.side, event.values);
            taken.map_err(|error| at_row(error, self.next))?;
            self.next += 1;
            if event.kind == kind::QUOTE {
                self.quote = event.values;
                return Ok(self.session.signal());
            }
        }
        Err(Error::input("ts", format!("the columns have no quote left at {ts_ns}")))
    }

    /// Bid, bid size, ask and ask size of the last quote; NaN before the first.
    pub fn quote(&self) -> [f64; 4] {
        self.quote
    }
}
