//! Mutually exciting order flow: six point processes, each with intensity
//! baseline + sum over past events of `branching * decay * exp(-decay * age)`
//! (Hawkes 1971), with a fast and a slow kernel.
//!
//! Flows are named by what they do to the price. Bullish: buy market orders, bid limit orders,
//! cancels of asks. Bearish: their mirror images. The branching numbers depend on the kinds and
//! on whether the directions agree.

use super::draw::exp;

/// Kinds of flow: the first index of the tables.
pub const MARKET: usize = 0;
pub const LIMIT: usize = 1;
pub const CANCEL: usize = 2;
pub const FLOWS: usize = 6;

/// Index of a flow: kind and direction (0 bullish, 1 bearish).
pub const fn flow(kind: usize, bearish: usize) -> usize {
    2 * kind + bearish
}

/// 1/s.
const DECAY: [f64; 2] = [40.0, 1.5];
/// A safety limit on each excitation, 1/s: far above what a calibrated run reaches.
const EXCITATION_MAX: f64 = 400.0;

/// `BRANCHING[kernel][cause][effect] = [same direction, opposite direction]`: expected number of
/// direct children of one event.
const BRANCHING: [[[[f64; 2]; 3]; 3]; 2] = [
    [
        [[0.38, 0.02], [0.10, 0.25], [0.20, 0.03]], // market orders: more of the same, refills
        [[0.01, 0.01], [0.12, 0.05], [0.02, 0.04]],
        [[0.03, 0.00], [0.05, 0.05], [0.12, 0.03]],
    ],
    [
        [[0.15, 0.08], [0.08, 0.08], [0.08, 0.08]],
        [[0.00, 0.00], [0.08, 0.06], [0.00, 0.00]],
        [[0.00, 0.00], [0.00, 0.00], [0.08, 0.06]],
    ],
];

/// The excitations of the six flows, 1/s.
pub struct Hawkes {
    excitation: [[f64; FLOWS]; 2],
    jump: [[[f64; FLOWS]; FLOWS]; 2],
}

impl Hawkes {
    pub fn new() -> Self {
        let mut jump = [[[0.0; FLOWS]; FLOWS]; 2];
        for (kernel, table) in BRANCHING.iter().enumerate() {
            for cause in 0..FLOWS {
                for effect in 0..FLOWS {
                    let opposite = (cause ^ effect) & 1;
                    jump[kernel][cause][effect] =
                        table[cause / 2][effect / 2][opposite] * DECAY[kernel];
                }
            }
        }
        Self { excitation: [[0.0; FLOWS]; 2], jump }
    }

    pub fn decay(&mut self, dt_s: f64) {
        for (row, rate) in self.excitation.iter_mut().zip(DECAY) {
            let factor = exp(-rate * dt_s);
            for x in row {
                *x *= factor;
            }
        }
    }

    pub fn excite(&mut self, cause: usize) {
        for (row, jump) in self.excitation.iter_mut().zip(&self.jump) {
            for (x, j) in row.iter_mut().zip(&jump[cause]) {
                *x = (*x + j).min(EXCITATION_MAX);
            }
        }
    }

    pub fn excitation(&self, flow: usize) -> f64 {
        self.excitation[0][flow] + self.excitation[1][flow]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_has_less_than_one_descendant_line() {
        // Spectral radius of the branching matrix by power iteration: below 1 the flow is stable.
        let hawkes = Hawkes::new();
        let mut v = [1.0; FLOWS];
        let mut radius = 0.0;
        for _ in 0..200 {
            let mut w = [0.0; FLOWS];
            for (table, rate) in hawkes.jump.iter().zip(DECAY) {
                for (row, causes) in table.iter().zip(v) {
                    for (sum, jump) in w.iter_mut().zip(row) {
                        *sum += causes * jump / rate;
                    }
                }
            }
            radius = w.iter().fold(0.0, |m: f64, x| m.max(*x));
            v = w.map(|x| x / radius);
        }
        assert!(radius > 0.5 && radius < 0.9, "{radius}");
    }
}
