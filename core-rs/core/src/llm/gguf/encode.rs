//! f32 weights into each kind, by plain rounding to nearest. Good enough for tests and small
//! conversions; llama.cpp's searches for better scales are not repeated here.

use half::{bf16, f16};

use super::TensorKind;
use super::kind::{BLOCK, SUPER_BLOCK};

impl TensorKind {
    /// Pack finite `weights`, a multiple of the block, into `bytes` (appended).
    ///
    /// # Panics
    /// If `weights` are not whole blocks.
    pub fn quantise_row(self, weights: &[f32], bytes: &mut Vec<u8>) {
        assert!(weights.len().is_multiple_of(self.block_len()), "whole blocks");
        for block in weights.chunks_exact(self.block_len()) {
            match self {
                Self::F32 => bytes.extend(block[0].to_le_bytes()),
                Self::F16 => bytes.extend(f16::from_f32(block[0]).to_le_bytes()),
                Self::Bf16 => bytes.extend(bf16::from_f32(block[0]).to_le_bytes()),
                Self::Q4_0 => symmetric(block, 8, bytes),
                Self::Q5_0 => symmetric(block, 16, bytes),
                Self::Q4_1 => with_minimum(block, 15, bytes),
                Self::Q5_1 => with_minimum(block, 31, bytes),
                Self::Q8_0 => {
                    let scale = rounded(largest(block).abs() / 127.0, bytes);
                    let quant = |&x: &f32| divide(x, scale).round().clamp(-127.0, 127.0) as i8;
                    bytes.extend(block.iter().map(|x| quant(x).cast_unsigned()));
                }
                Self::Q4K => super_block_4(block, 15, bytes),
                Self::Q5K => super_block_4(block, 31, bytes),
                Self::Q6K => super_block_6(block, bytes),
            }
        }
    }
}

/// The number of largest magnitude, with its sign.
fn largest(block: &[f32]) -> f32 {
    block.iter().copied().fold(0.0, |most, x| if x.abs() > f32::abs(most) { x } else { most })
}

/// `x / scale`, or 0 where all weights are 0.
fn divide(x: f32, scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { x / scale }
}

/// Append `scale` as f16 and return what was stored, so that quanta are rounded against it.
fn rounded(scale: f32, bytes: &mut Vec<u8>) -> f32 {
    let stored = f16::from_f32(scale);
    bytes.extend(stored.to_le_bytes());
    stored.to_f32()
}

/// `Q4_0` and `Q5_0`: the largest weight becomes quantum `-zero`, which needs no bit to spare.
fn symmetric(block: &[f32], zero: u8, bytes: &mut Vec<u8>) {
    let scale = rounded(largest(block) / -f32::from(zero), bytes);
    let top = f32::from(2 * zero - 1);
    let quants =
        block.iter().map(|&x| (divide(x, scale) + f32::from(zero)).round().clamp(0.0, top));
    nibbles(quants, zero > 8, bytes);
}

/// `Q4_1` and `Q5_1`: from the least to the greatest weight in `top` steps.
fn with_minimum(block: &[f32], top: u8, bytes: &mut Vec<u8>) {
    let least = block.iter().copied().fold(f32::INFINITY, f32::min);
    let most = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = rounded((most - least) / f32::from(top), bytes);
    let least = rounded(least, bytes);
    let quants = block.iter().map(|&x| divide(x - least, scale).round().clamp(0.0, f32::from(top)));
    nibbles(quants, top > 15, bytes);
}

/// Fifth bits first if there are any, then two quanta a byte: `j` low, `j + 16` high.
fn nibbles(quants: impl Iterator<Item = f32>, fifth: bool, bytes: &mut Vec<u8>) {
    let quants: Vec<u8> = quants.map(|q| q as u8).collect();
    if fifth {
        let bits = quants.iter().rev().fold(0_u32, |bits, &q| bits << 1 | u32::from(q >> 4));
        bytes.extend(bits.to_le_bytes());
    }
    let (low, high) = quants.split_at(BLOCK / 2);
    bytes.extend(low.iter().zip(high).map(|(&low, &high)| low & 15 | (high & 15) << 4));
}

/// `Q4_K` and `Q5_K`: sub-blocks of 32 from a minimum of at most 0, in `top` steps.
fn super_block_4(block: &[f32], top: u8, bytes: &mut Vec<u8>) {
    let fold = |sub: &[f32], least: fn(f32, f32) -> f32| sub.iter().copied().fold(0.0, least);
    let minima: Vec<f32> = block.chunks_exact(BLOCK).map(|sub| -fold(sub, f32::min)).collect();
    let scales: Vec<f32> = block
        .chunks_exact(BLOCK)
        .zip(&minima)
        .map(|(sub, minimum)| (fold(sub, f32::max) + minimum) / f32::from(top))
        .collect();
    let d = rounded(largest(&scales) / 63.0, bytes);
    let d_minimum = rounded(largest(&minima) / 63.0, bytes);
    let six_bits = |x: f32, d: f32| divide(x, d).round().clamp(0.0, 63.0) as u8;
    let scales: Vec<u8> = scales.iter().map(|&x| six_bits(x, d)).collect();
    let minima: Vec<u8> = minima.iter().map(|&x| six_bits(x, d_minimum)).collect();
    let mut packed = [0_u8; 12];
    for j in 0..4 {
        packed[j] = scales[j] | (scales[j + 4] >> 4) << 6;
        packed[j + 4] = minima[j] | (minima[j + 4] >> 4) << 6;
        packed[j + 8] = scales[j + 4] & 15 | (minima[j + 4] & 15) << 4;
    }
    bytes.extend(packed);
    let mut quants = [0_u8; SUPER_BLOCK];
    for (index, (quant, &x)) in quants.iter_mut().zip(block).enumerate() {
        let sub = index / BLOCK;
        let shifted = x + d_minimum * f32::from(minima[sub]);
        let steps = divide(shifted, d * f32::from(scales[sub]));
        *quant = steps.round().clamp(0.0, f32::from(top)) as u8;
    }
    if top > 15 {
        bytes.extend(
            (0..BLOCK).map(|l| (0..8).fold(0, |bits, j| bits | (quants[j * BLOCK + l] >> 4) << j)),
        );
    }
    for pair in quants.chunks_exact(2 * BLOCK) {
        let (low, high) = pair.split_at(BLOCK);
        bytes.extend(low.iter().zip(high).map(|(&low, &high)| low & 15 | (high & 15) << 4));
    }
}

/// `Q6_K`: sub-blocks of 16 with signed 8-bit scales; the largest weight becomes quantum -32.
fn super_block_6(block: &[f32], bytes: &mut Vec<u8>) {
    let scales: Vec<f32> = block.chunks_exact(16).map(|sub| largest(sub) / -32.0).collect();
    let d = f16::from_f32(largest(&scales) / -128.0);
    let scales: Vec<i8> = scales
        .iter()
        .map(|&scale| divide(scale, d.to_f32()).round().clamp(-128.0, 127.0) as i8)
        .collect();
    let quant = |index: usize| -> u8 {
        let scale = d.to_f32() * f32::from(scales[index / 16]);
        (divide(block[index], scale) + 32.0).round().clamp(0.0, 63.0) as u8
    };
    for half in [0, 128] {
        bytes.extend((0..64).map(|l| quant(half + l) & 15 | (quant(half + 64 + l) & 15) << 4));
    }
    for half in [0, 128] {
        bytes.extend((0..BLOCK).map(|l| {
            (0..4).fold(0, |bits, quarter| {
                bits | (quant(half + quarter * BLOCK + l) >> 4) << (2 * quarter)
            })
        }));
    }
    bytes.extend(scales.iter().map(|scale| scale.cast_unsigned()));
    bytes.extend(d.to_le_bytes());
}
