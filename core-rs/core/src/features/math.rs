//! Elementary functions written out in plain multiplications and additions, so that the same input
//! gives the same bits on every processor and in every build (a system `exp` or `log` may take a
//! fused path on one machine and not on the next). No allocation, no tables.

/// ln 2 in two parts: the first has 32 trailing zero bits, so `k * LN2_HI` is exact for small `k`.
const LN2_HI: f64 = 6.931_471_803_691_238e-1;
const LN2_LO: f64 = 1.908_214_929_270_587_7e-10;
/// Added and taken away again, this rounds a double below 2^51 to the nearest integer (half to even).
const ROUND: f64 = 6_755_399_441_055_744.0;
/// Below this argument the short series of [`exp_neg`] is exact to the last bit or two.
const SHORT_SERIES_MAX: f64 = 1.0 / 128.0;
/// Bits of sqrt(1/2): a mantissa is brought into [sqrt(1/2), sqrt(2)).
const SQRT_HALF_BITS: u64 = 0x3fe6_a09e_667f_3bcd;
const ONE_BITS: u64 = 0x3ff0_0000_0000_0000;

/// The integer nearest to `x` for `|x| < 2^51`.
#[inline]
pub fn nearest(x: f64) -> f64 {
    (x + ROUND) - ROUND
}

/// `exp(-y)` for `y >= 0`, relative error below 1e-15; 0 where the result would be subnormal.
#[inline]
pub fn exp_neg(y: f64) -> f64 {
    if y < SHORT_SERIES_MAX {
        // Remainder y^7/7! < 4e-19.
        let tail = y * (1.0 / 120.0 - y * (1.0 / 720.0));
        return 1.0 - y * (1.0 - y * (0.5 - y * (1.0 / 6.0 - y * (1.0 / 24.0 - tail))));
    }
    exp_neg_wide(y)
}

fn exp_neg_wide(y: f64) -> f64 {
    if y > 700.0 {
        return 0.0;
    }
    let k = nearest(y * std::f64::consts::LOG2_E);
    let r = (y - k * LN2_HI) - k * LN2_LO; // |r| <= ln 2 / 2
    // Taylor series of exp(-r) by Horner's rule; the remainder r^14/14! is below 5e-18.
    let mut sum = 1.0;
    for n in (1..=13_u32).rev() {
        sum = 1.0 - sum * (r / f64::from(n));
    }
    // 2^-k, k in 0..=1010: a normal number.
    sum * f64::from_bits((1023 - k as u64) << 52)
}

/// Natural logarithm of `N` positive normal numbers, absolute error below 1e-12; written without
/// branches so that the compiler works on several lanes at once.
#[inline]
pub fn ln<const N: usize>(x: [f64; N]) -> [f64; N] {
    x.map(|x| {
        let bits = x.to_bits();
        // Biased exponent of x relative to sqrt(1/2), as a double by the 2^52 trick.
        let shifted = bits.wrapping_add(ONE_BITS - SQRT_HALF_BITS) >> 52;
        let k =
            f64::from_bits(0x4330_0000_0000_0000 | shifted) - (4_503_599_627_370_496.0 + 1023.0);
        let mantissa = f64::from_bits(bits.wrapping_sub(shifted.wrapping_sub(1023) << 52));
        // ln m = 2 atanh(s), s = (m - 1) / (m + 1), |s| <= 0.1716.
        let s = (mantissa - 1.0) / (mantissa + 1.0);
        let z = s * s;
        let w = z * z;
        let even = 1.0 / 3.0 + w * (1.0 / 7.0 + w * (1.0 / 11.0 + w * (1.0 / 15.0)));
        let odd = 1.0 / 5.0 + w * (1.0 / 9.0 + w * (1.0 / 13.0));
        let series = z * (even + z * odd);
        k * LN2_HI + (2.0 * s + (2.0 * s * series + k * LN2_LO))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_neg_agrees_with_the_system_function() {
        for i in 0..200_000 {
            let y = f64::from(i) * 3.3e-3;
            let (ours, theirs) = (exp_neg(y), (-y).exp());
            assert!((ours - theirs).abs() <= 2e-15 * theirs + 1e-300, "{y}: {ours} {theirs}");
            let y = f64::from(i) * 1e-7;
            assert!((exp_neg(y) - (-y).exp()).abs() <= 4e-16, "{y}");
        }
        assert_eq!(exp_neg(0.0), 1.0);
        assert_eq!(exp_neg(1e9), 0.0);
    }

    #[test]
    fn ln_agrees_with_the_system_function() {
        for i in 1..200_000 {
            let x = f64::from(i) * 1.7e-3;
            assert!((ln([x])[0] - x.ln()).abs() < 1e-12, "{x}");
            let x = 1e-9 * 1.000_2_f64.powi(i % 150_000);
            assert!((ln([x])[0] - x.ln()).abs() < 1e-12, "{x}");
        }
        assert_eq!(ln([1.0, 1.0]), [0.0, 0.0]);
    }

    #[test]
    fn nearest_rounds_to_the_closest_integer() {
        assert_eq!(nearest(2.499_999), 2.0);
        assert_eq!(nearest(618_001.999_999_9), 618_002.0);
        assert_eq!(nearest(-3.6), -4.0);
    }
}
