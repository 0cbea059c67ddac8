//! How weights are packed, exactly as ggml defines it (`ggml-common.h`, `ggml-quants.c`).
//!
//! Block kinds store `block_len` consecutive weights of a row in `block_bytes` bytes: 32 weights
//! with one or two f16 numbers (a scale, and for `_1` a minimum), or, for `_K`, 256 weights whose
//! scales are themselves quantised.

use half::{bf16, f16};

/// Weights of one block of the K kinds.
pub(super) const SUPER_BLOCK: usize = 256;
/// Weights of one block of the other quantised kinds.
pub(super) const BLOCK: usize = 32;

/// A packing of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are ggml's")]
pub enum TensorKind {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl TensorKind {
    /// All that are supported.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// ggml's number for it.
    pub const fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// The kind with ggml's number `code`, if it is supported.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// ggml's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Weights of one block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => BLOCK,
            Self::Q4K | Self::Q5K | Self::Q6K => SUPER_BLOCK,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of `columns` weights, a multiple of the block.
    pub const fn row_bytes(self, columns: usize) -> usize {
        columns / self.block_len() * self.block_bytes()
    }

    pub(super) fn checked_row_bytes(self, columns: usize) -> Option<usize> {
        (columns / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Unpack `bytes` into `out`; the order of operations is ggml's, so the numbers are its, bit
    /// for bit.
    ///
    /// # Panics
    /// If `bytes` are not the whole blocks of `out`.
    pub fn dequantise_row(self, bytes: &[u8], out: &mut [f32]) {
        assert!(out.len().is_multiple_of(self.block_len()), "whole blocks");
        assert_eq!(bytes.len(), self.row_bytes(out.len()), "as many weights as there is room for");
        let blocks = bytes.chunks_exact(self.block_bytes());
        for (block, out) in blocks.zip(out.chunks_exact_mut(self.block_len())) {
            match self {
                Self::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
                Self::F16 => out[0] = half_at(block, 0),
                Self::Bf16 => out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
                Self::Q4_0 => nibbles(&block[2..], out, [0; 4], half_at(block, 0), 8, 0.0),
                Self::Q4_1 => {
                    nibbles(&block[4..], out, [0; 4], half_at(block, 0), 0, half_at(block, 2));
                }
                Self::Q5_0 => {
                    let high = [block[2], block[3], block[4], block[5]];
                    nibbles(&block[6..], out, high, half_at(block, 0), 16, 0.0);
                }
                Self::Q5_1 => {
                    let high = [block[4], block[5], block[6], block[7]];
                    nibbles(&block[8..], out, high, half_at(block, 0), 0, half_at(block, 2));
                }
                Self::Q8_0 => {
                    let scale = half_at(block, 0);
                    for (out, &byte) in out.iter_mut().zip(&block[2..]) {
                        *out = f32::from(byte.cast_signed()) * scale;
                    }
                }
                Self::Q4K => super_block_4(block, &block[16..], None, out),
                Self::Q5K => super_block_4(block, &block[48..], Some(&block[16..48]), out),
                Self::Q6K => super_block_6(block, out),
            }
        }
    }

    /// Whether all weights of a row are finite. Integers always are, so only the scales are read.
    pub(super) fn finite(self, bytes: &[u8]) -> bool {
        bytes.chunks_exact(self.block_bytes()).all(|block| match self {
            Self::F32 => f32::from_le_bytes([block[0], block[1], block[2], block[3]]).is_finite(),
            Self::Bf16 => bf16::from_le_bytes([block[0], block[1]]).is_finite(),
            Self::F16 | Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => half_at(block, 0).is_finite(),
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => {
                half_at(block, 0).is_finite() && half_at(block, 2).is_finite()
            }
            Self::Q6K => half_at(block, 208).is_finite(),
        })
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 32 weights `(q - zero) * scale + minimum`: low nibbles are the first 16, high ones the rest;
/// bit `j` of `fifth` is the fifth bit of weight `j`.
fn nibbles(packed: &[u8], out: &mut [f32], fifth: [u8; 4], scale: f32, zero: i32, minimum: f32) {
    let fifth = u32::from_le_bytes(fifth);
    let (first, last) = out.split_at_mut(BLOCK / 2);
    for (j, ((first, last), &byte)) in first.iter_mut().zip(last).zip(packed).enumerate() {
        let low = u32::from(byte & 15) | (fifth >> j & 1) << 4;
        let high = u32::from(byte >> 4) | (fifth >> (j + BLOCK / 2) & 1) << 4;
        *first = (low.cast_signed() - zero) as f32 * scale + minimum;
        *last = (high.cast_signed() - zero) as f32 * scale + minimum;
    }
}

/// The 6-bit scale and minimum of sub-block `j` of 8, from 12 packed bytes.
pub(super) fn scale_and_minimum(j: usize, packed: &[u8]) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let scale = packed[j + 4] & 15 | (packed[j - 4] >> 6) << 4;
        let minimum = packed[j + 4] >> 4 | (packed[j] >> 6) << 4;
        (scale, minimum)
    }
}

/// `Q4_K` and `Q5_K`: 8 sub-blocks of 32 weights `d * scale * q - dmin * minimum`. Each 32 bytes
/// of `packed` hold two sub-blocks, low nibbles first; bit `j` of `fifth[l]` is the fifth bit of
/// weight `l` of sub-block `j`.
fn super_block_4(block: &[u8], packed: &[u8], fifth: Option<&[u8]>, out: &mut [f32]) {
    let (d, d_minimum) = (half_at(block, 0), half_at(block, 2));
    for (j, out) in out.chunks_exact_mut(BLOCK).enumerate() {
        let (scale, minimum) = scale_and_minimum(j, &block[4..16]);
        let scale = d * f32::from(scale);
        let minimum = d_minimum * f32::from(minimum);
        let packed = &packed[j / 2 * BLOCK..][..BLOCK];
        for (l, (out, &byte)) in out.iter_mut().zip(packed).enumerate() {
            let nibble = byte >> (j % 2 * 4) & 15;
            let high = fifth.map_or(0, |fifth| (fifth[l] >> j & 1) << 4);
            *out = scale * f32::from(nibble | high) - minimum;
        }
    }
}

/// `Q6_K`: 16 sub-blocks of 16 weights `d * scale * (q - 32)`; four low bits in 128 bytes, two
/// high bits in 64, signed scales in 16, `d` at the end.
fn super_block_6(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 208);
    for (half, out) in out.chunks_exact_mut(128).enumerate() {
        let low = &block[half * 64..][..64];
        let high = &block[128 + half * 32..][..32];
        let scales = &block[192 + half * 8..][..8];
        for (quarter, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            for (l, out) in out.iter_mut().enumerate() {
                let nibble = low[quarter % 2 * BLOCK + l] >> (quarter / 2 * 4) & 15;
                let quant = i16::from(nibble | (high[l] >> (quarter * 2) & 3) << 4) - 32;
                let scale = scales[quarter * 2 + l / 16].cast_signed();
                *out = d * f32::from(scale) * f32::from(quant);
            }
        }
    }
}
