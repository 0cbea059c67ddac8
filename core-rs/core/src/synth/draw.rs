//! Random draws that have the same bits on every platform: PCG64 integers, and logarithm,
//! exponential and square root from IEEE `+ - * / sqrt` only (the system's libm differs between
//! platforms in the last bits, and one bit is enough to part two simulations).

use rand_pcg::Lcg128Xsl64;
use rand_pcg::rand_core::Rng;

/// What the numbers are for: the order flow or the latent variables.
#[derive(Clone, Copy, Debug)]
pub enum Stream {
    Flow = 0,
    Latent = 1,
}

/// One stream of random numbers.
pub struct Draw {
    pcg: Lcg128Xsl64,
    spare_normal: Option<f64>,
}

impl Draw {
    /// PCG64 (XSL-RR 128/64). State and sequence number are four successive outputs of
    /// `SplitMix64` started at `seed + stream * 2^63`, high words first: neighbouring seeds and
    /// streams share no structure, as they would if they went into the generator as they are.
    pub fn new(seed: u64, stream: Stream) -> Self {
        let mut z = seed.wrapping_add((stream as u64) << 63);
        let mut word = || u128::from(split_mix(&mut z));
        let (state, sequence) = (word() << 64 | word(), word() << 64 | word());
        Self { pcg: Lcg128Xsl64::new(state, sequence), spare_normal: None }
    }

    /// Uniform on the open interval (0, 1), 52 bits.
    pub fn uniform(&mut self) -> f64 {
        const ULP: f64 = 1.0 / (1_u64 << 52) as f64;
        ((self.pcg.next_u64() >> 12) as f64 + 0.5) * ULP
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -ln(self.uniform())
    }

    /// Standard normal, by Marsaglia's polar method.
    pub fn normal(&mut self) -> f64 {
        if let Some(z) = self.spare_normal.take() {
            return z;
        }
        loop {
            let x = 2.0 * self.uniform() - 1.0;
            let y = 2.0 * self.uniform() - 1.0;
            let r2 = x * x + y * y;
            if r2 < 1.0 && r2 > 0.0 {
                let scale = (-2.0 * ln(r2) / r2).sqrt();
                self.spare_normal = Some(y * scale);
                return x * scale;
            }
        }
    }

    /// A whole number, at least 1 and at most `max`, log-normal with this median before rounding.
    pub fn log_normal(&mut self, median: f64, sigma: f64, max: i64) -> i64 {
        let x = median * exp(sigma * self.normal());
        ((x + 0.5) as i64).clamp(1, max)
    }

    /// A whole number from 1, geometric with about this mean (at most `max`).
    pub fn geometric(&mut self, mean: f64, max: i64) -> i64 {
        (1 + (self.exponential() * mean) as i64).min(max)
    }

    /// Uniform whole number in `0..n`.
    pub fn below(&mut self, n: i64) -> i64 {
        ((self.uniform() * n as f64) as i64).min(n - 1)
    }
}

/// The next output of `SplitMix64` (Steele, Lea, Flood 2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Natural logarithm of a positive normal number, within 2 ulp near 1 and 1e-15 elsewhere.
pub fn ln(x: f64) -> f64 {
    debug_assert!(x.is_normal() && x > 0.0);
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) as i64) - 1023;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    // ln m = 2 artanh(f); |f| < 0.172, so the series is exact to a double after nine terms.
    let f = (m - 1.0) / (m + 1.0);
    let s = f * f;
    let mut sum = 0.0;
    for k in (0..10).rev() {
        sum = sum * s + 1.0 / f64::from(2 * k + 1);
    }
    2.0 * f * sum + exponent as f64 * std::f64::consts::LN_2
}

/// e to the power `x`, relative error below 1e-14; 0 below -700, and `x` is capped at 700.
pub fn exp(x: f64) -> f64 {
    const INVERSE_FACTORIALS: [f64; 13] = [
        1.0,
        1.0,
        1.0 / 2.0,
        1.0 / 6.0,
        1.0 / 24.0,
        1.0 / 120.0,
        1.0 / 720.0,
        1.0 / 5_040.0,
        1.0 / 40_320.0,
        1.0 / 362_880.0,
        1.0 / 3_628_800.0,
        1.0 / 39_916_800.0,
        1.0 / 479_001_600.0,
    ];
    if x < -700.0 {
        return 0.0;
    }
    let y = x.min(700.0) * std::f64::consts::LOG2_E;
    let k = (y + if y < 0.0 { -0.5 } else { 0.5 }) as i64;
    let r = (y - k as f64) * std::f64::consts::LN_2;
    let mut sum = 0.0;
    for c in INVERSE_FACTORIALS.iter().rev() {
        sum = sum * r + c;
    }
    sum * f64::from_bits(((k + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ln_and_exp_agree_with_libm() {
        let mut draw = Draw::new(1, Stream::Flow);
        for _ in 0..100_000 {
            let x = draw.uniform();
            assert!((ln(x) - x.ln()).abs() <= 1e-14 * x.ln().abs().max(1e-3), "{x}");
            let y = 80.0 * x - 60.0;
            assert!((exp(y) / y.exp() - 1.0).abs() < 1e-13, "{y}");
        }
    }

    #[test]
    fn split_mix_gives_its_published_numbers() {
        let mut state = 1_234_567;
        let published = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973];
        assert_eq!([split_mix(&mut state), split_mix(&mut state)], published);
    }

    #[test]
    fn draws_have_their_moments() {
        let mut draw = Draw::new(7, Stream::Latent);
        let n = 200_000;
        let z: Vec<f64> = (0..n).map(|_| draw.normal()).collect();
        let mean = z.iter().sum::<f64>() / f64::from(n);
        let var = z.iter().map(|x| x * x).sum::<f64>() / f64::from(n);
        assert!(mean.abs() < 0.01 && (var - 1.0).abs() < 0.02, "{mean} {var}");
        let e = (0..n).map(|_| draw.exponential()).sum::<f64>() / f64::from(n);
        assert!((e - 1.0).abs() < 0.02, "{e}");
    }
}
