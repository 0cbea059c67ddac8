//! What the traders know and the book does not show: the informed signal and the volatility
//! regime. Both move on a fixed clock and draw from a stream of their own, so that two runs with
//! one seed and different `edge` share them.

use super::draw::{Draw, exp};

/// The clock of the latent variables, seconds.
pub const STEP_S: f64 = 0.01;
/// The same in nanoseconds.
pub const STEP_NS: i64 = 10_000_000;
/// Decay time of the informed signal, seconds.
pub const SIGNAL_TAU_S: f64 = 3.0;
/// Mean stay in the calm and in the busy regime, seconds.
const STAY_S: [f64; 2] = [18.0, 5.0];

pub struct Latent {
    draw: Draw,
    keep: f64,
    kick: f64,
    /// Ornstein-Uhlenbeck, mean 0, variance 1.
    pub signal: f64,
    /// Volatility regime: 0 calm, 1 busy.
    pub regime: usize,
}

impl Latent {
    pub fn new(mut draw: Draw) -> Self {
        let keep = exp(-STEP_S / SIGNAL_TAU_S);
        let signal = draw.normal();
        Self { draw, keep, kick: (1.0 - keep * keep).sqrt(), signal, regime: 0 }
    }

    /// Moves both one step of the clock.
    pub fn step(&mut self) {
        self.signal = self.keep * self.signal + self.kick * self.draw.normal();
        if self.draw.uniform() < STEP_S / STAY_S[self.regime] {
            self.regime = 1 - self.regime;
        }
    }
}
