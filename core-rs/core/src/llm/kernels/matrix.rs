//! Weights as the kernels read them.
//!
//! Rows are taken in groups of 16, columns in blocks of 32. A group holds first the quanta of all
//! its blocks, then the scales of all its blocks, each in column order and on cache lines.
//!
//! Quanta of a block are unsigned. Byte `4 r + c` of a vector of 64 bytes belongs to row `r`; with
//! vector `j` of 8 holding columns `4 j .. 4 j + 4`:
//! - 4 bits: four vectors, low nibbles are vectors 0 to 3, high nibbles 4 to 7;
//! - 5 bits: the same, then one vector with vector `j`'s fifth bits as its bits `j`;
//! - 6 bits: the same, then two vectors with the upper bits of vectors 0 to 3 and 4 to 7, two bits
//!   each, lowest first;
//! - 8 bits: eight vectors.

use std::ops::Range;

use half::f16;

use super::arena::{Arena, Piece};
use super::{PREFETCH_BYTES, Simd};
use crate::llm::gguf::{TensorKind, TensorView};
use crate::{Error, Result};

/// Rows of a group.
pub const GROUP_ROWS: usize = 16;

/// Columns of a block.
pub const BLOCK_COLUMNS: usize = 32;

/// How a block's quanta and scales are stored, and what they mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `d (q - 8)`, 4 bits; f16 d.
    Four,
    /// `d q + m`, 4 bits; f16 d, f16 m.
    FourMinimum,
    /// `d q + m`, 4 bits; f32 d, f32 m.
    FourWide,
    /// `d (q - 16)`, 5 bits; f16 d.
    Five,
    /// `d q + m`, 5 bits; f16 d, f16 m.
    FiveMinimum,
    /// `d q + m`, 5 bits; f32 d, f32 m.
    FiveWide,
    /// `d (q - 32)`, 6 bits; f32 d for the first 16 columns, another for the rest.
    Six,
    /// `d (q - 128)`, 8 bits; f16 d.
    Eight,
}

impl Format {
    fn of(kind: TensorKind) -> Self {
        match kind {
            TensorKind::Q4_0 => Self::Four,
            TensorKind::Q4_1 => Self::FourMinimum,
            TensorKind::Q4K => Self::FourWide,
            TensorKind::Q5_0 => Self::Five,
            TensorKind::Q5_1 => Self::FiveMinimum,
            TensorKind::Q5K => Self::FiveWide,
            TensorKind::Q6K => Self::Six,
            TensorKind::Q8_0 | TensorKind::F32 | TensorKind::F16 | TensorKind::Bf16 => Self::Eight,
        }
    }

    /// Bytes of a block's quanta.
    pub(super) const fn quanta_bytes(self) -> usize {
        match self {
            Self::Four | Self::FourMinimum | Self::FourWide => 256,
            Self::Five | Self::FiveMinimum | Self::FiveWide => 320,
            Self::Six => 384,
            Self::Eight => 512,
        }
    }

    /// Bytes of a block's scales.
    pub(super) const fn scales_bytes(self) -> usize {
        match self {
            Self::Four | Self::Five | Self::Eight => 32,
            Self::FourMinimum | Self::FiveMinimum => 64,
            Self::FourWide | Self::FiveWide | Self::Six => 128,
        }
    }

    /// What is subtracted from a quantum.
    pub(super) const fn zero(self) -> u8 {
        match self {
            Self::Four => 8,
            Self::Five => 16,
            Self::Six => 32,
            Self::Eight => 128,
            _ => 0,
        }
    }
}

/// One row's block, in no particular packing: weight `i` is
/// `scale * (quanta[i] - zero) + minimum`, the last 16 with `last_scale`.
struct Block {
    quanta: [u8; BLOCK_COLUMNS],
    scale: f32,
    last_scale: f32,
    minimum: f32,
}

/// Weights `(rows, columns)`, repacked.
#[derive(Debug)]
pub struct QuantMatrix {
    memory: Piece,
    rows: usize,
    columns: usize,
    format: Format,
    simd: Simd,
}

impl QuantMatrix {
    /// Repack a tensor of a model file. Quantised kinds keep their exact values. F32, F16 and BF16
    /// become 8-bit integers with an f16 scale per 32 columns: an error of at most 1/254 of the
    /// largest weight of the 32 (plus f16's rounding of the scale, 1/2048 of the weight).
    ///
    /// # Errors
    /// [`Error::Model`] if the columns are not a multiple of 32, a scale is not finite, or the
    /// processor does not have `simd`; [`Error::Input`] if there is no memory.
    pub fn from_tensor(tensor: &TensorView<'_>, simd: Simd, arena: &mut Arena) -> Result<Self> {
        let refuse = |reason: String| Err(Error::model(tensor.name, reason));
        let (rows, columns) = (tensor.rows, tensor.columns);
        if rows == 0 || columns == 0 || !columns.is_multiple_of(BLOCK_COLUMNS) {
            return refuse(format!("({rows}, {columns}): columns must be a multiple of 32"));
        }
        if !columns.is_multiple_of(tensor.kind.block_len()) {
            return refuse(format!("{columns} columns are no whole blocks of {:?}", tensor.kind));
        }
        if !simd.available() {
            return refuse(format!("this processor does not have {}", simd.name()));
        }
        if tensor.kind.row_bytes(columns).checked_mul(rows) != Some(tensor.bytes.len()) {
            return refuse(format!("{} bytes are not ({rows}, {columns})", tensor.bytes.len()));
        }
        let format = Format::of(tensor.kind);
        let bytes = group_bytes(format, columns)
            .checked_mul(rows.div_ceil(GROUP_ROWS))
            .ok_or_else(|| Error::model(tensor.name, "too large"))?;
        let mut memory = arena.piece(bytes)?;
        let row_bytes = tensor.kind.row_bytes(columns);
        let groups = memory.bytes_mut().chunks_exact_mut(group_bytes(format, columns));
        for (group, packed) in groups.enumerate() {
            let (quanta, scales) =
                packed.split_at_mut(columns / BLOCK_COLUMNS * format.quanta_bytes());
            for lane in 0..GROUP_ROWS.min(rows - group * GROUP_ROWS) {
                let row = &tensor.bytes[(group * GROUP_ROWS + lane) * row_bytes..][..row_bytes];
                for index in 0..columns / BLOCK_COLUMNS {
                    let block = Block::read(tensor.kind, row, index);
                    if !(block.scale.is_finite()
                        && block.last_scale.is_finite()
                        && block.minimum.is_finite())
                    {
                        return refuse("a scale is not finite".into());
                    }
                    let at = index * format.quanta_bytes();
                    pack(format, &mut quanta[at..][..format.quanta_bytes()], lane, &block.quanta);
                    let at = index * format.scales_bytes();
                    store(format, &mut scales[at..][..format.scales_bytes()], lane, &block);
                }
            }
        }
        Ok(Self { memory, rows, columns, format, simd })
    }

    /// Rows: outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: inputs.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Groups of 16 rows, the last one filled up with zeros.
    pub fn groups(&self) -> usize {
        self.rows.div_ceil(GROUP_ROWS)
    }

    /// Bytes that one pass over the matrix reads.
    pub fn bytes(&self) -> usize {
        self.memory.bytes().len()
    }

    /// Bytes of one group.
    pub fn group_bytes(&self) -> usize {
        group_bytes(self.format, self.columns)
    }

    /// The instructions its products use.
    pub fn simd(&self) -> Simd {
        self.simd
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Blocks of a row.
    pub(super) fn blocks(&self) -> usize {
        self.columns / BLOCK_COLUMNS
    }

    /// Quanta and scales of a group.
    pub(super) fn group(&self, group: usize) -> (&[u8], &[u8]) {
        let bytes = self.group_bytes();
        self.memory.bytes()[group * bytes..][..bytes]
            .split_at(self.blocks() * self.format.quanta_bytes())
    }

    /// Fetch the beginning of `groups` into the cache: to be called before waiting for the others,
    /// so that memory works meanwhile.
    ///
    /// # Panics
    /// If there are no such groups.
    pub fn prefetch(&self, groups: Range<usize>) {
        let bytes = self.group_bytes();
        let first = &self.memory.bytes()[groups.start * bytes..groups.end * bytes];
        #[cfg(target_arch = "x86_64")]
        for line in first[..first.len().min(PREFETCH_BYTES)].chunks(64) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a prefetch may name any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = first;
    }

    /// The weights of one row: the embedding of a token.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not one row.
    pub fn dequantise_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "a row of the matrix");
        assert_eq!(out.len(), self.columns, "one row");
        let (quanta, scales) = self.group(row / GROUP_ROWS);
        let lane = row % GROUP_ROWS;
        for (index, out) in out.chunks_exact_mut(BLOCK_COLUMNS).enumerate() {
            let at = index * self.format.quanta_bytes();
            let quanta = &quanta[at..][..self.format.quanta_bytes()];
            let at = index * self.format.scales_bytes();
            let (scale, last_scale, minimum) =
                load(self.format, &scales[at..][..self.format.scales_bytes()], lane);
            for (column, out) in out.iter_mut().enumerate() {
                let scale = if column < BLOCK_COLUMNS / 2 { scale } else { last_scale };
                let quantum = i16::from(unpack(self.format, quanta, lane, column));
                let zero = i16::from(self.format.zero());
                *out = f32::from(quantum - zero) * scale + minimum;
            }
        }
    }
}

/// Bytes of a group, whole cache lines.
fn group_bytes(format: Format, columns: usize) -> usize {
    let blocks = columns / BLOCK_COLUMNS;
    (blocks * (format.quanta_bytes() + format.scales_bytes())).next_multiple_of(64)
}

/// Where row `lane`'s quantum of `column` lies: vector, byte within it.
fn place(lane: usize, column: usize) -> (usize, usize) {
    (column / 4, 4 * lane + column % 4)
}

/// Write row `lane`'s quanta into a block of zeros.
fn pack(format: Format, bytes: &mut [u8], lane: usize, quanta: &[u8; BLOCK_COLUMNS]) {
    for (column, &quantum) in quanta.iter().enumerate() {
        let (vector, byte) = place(lane, column);
        if format == Format::Eight {
            bytes[vector * 64 + byte] = quantum;
            continue;
        }
        bytes[vector % 4 * 64 + byte] |= (quantum & 15) << (vector / 4 * 4);
        if format.quanta_bytes() == 320 {
            bytes[256 + byte] |= (quantum >> 4) << vector;
        } else if format == Format::Six {
            bytes[256 + vector / 4 * 64 + byte] |= (quantum >> 4) << (vector % 4 * 2);
        }
    }
}

/// The inverse of [`pack`].
pub(super) fn unpack(format: Format, bytes: &[u8], lane: usize, column: usize) -> u8 {
    let (vector, byte) = place(lane, column);
    if format == Format::Eight {
        return bytes[vector * 64 + byte];
    }
    let low = bytes[vector % 4 * 64 + byte] >> (vector / 4 * 4) & 15;
    let high = match format.quanta_bytes() {
        320 => bytes[256 + byte] >> vector & 1,
        384 => bytes[256 + vector / 4 * 64 + byte] >> (vector % 4 * 2) & 3,
        _ => 0,
    };
    low | high << 4
}

/// Write row `lane`'s scales.
fn store(format: Format, bytes: &mut [u8], lane: usize, block: &Block) {
    let mut half = |at: usize, x: f32| {
        bytes[at + 2 * lane..][..2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
    };
    match format {
        Format::Four | Format::Five | Format::Eight => half(0, block.scale),
        Format::FourMinimum | Format::FiveMinimum => {
            half(0, block.scale);
            half(32, block.minimum);
        }
        Format::FourWide | Format::FiveWide | Format::Six => {
            let second = if format == Format::Six { block.last_scale } else { block.minimum };
            bytes[4 * lane..][..4].copy_from_slice(&block.scale.to_le_bytes());
            bytes[64 + 4 * lane..][..4].copy_from_slice(&second.to_le_bytes());
        }
    }
}

/// Row `lane`'s scale, scale of the last 16 columns, and minimum.
pub(super) fn load(format: Format, bytes: &[u8], lane: usize) -> (f32, f32, f32) {
    let half = |at: usize| f16::from_le_bytes([bytes[at + 2 * lane], bytes[at + 2 * lane + 1]]);
    let full = |at: usize| {
        let at = at + 4 * lane;
        f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    match format {
        Format::Four | Format::Five | Format::Eight => {
            let scale = half(0).to_f32();
            (scale, scale, 0.0)
        }
        Format::FourMinimum | Format::FiveMinimum => {
            let scale = half(0).to_f32();
            (scale, scale, half(32).to_f32())
        }
        Format::FourWide | Format::FiveWide => (full(0), full(0), full(64)),
        Format::Six => (full(0), full(64), 0.0),
    }
}

impl Block {
    /// Block `index` of 32 weights of a row stored as `kind`.
    fn read(kind: TensorKind, row: &[u8], index: usize) -> Self {
        let bytes = kind.block_bytes();
        match kind {
            TensorKind::F32 | TensorKind::F16 | TensorKind::Bf16 => {
                let mut weights = [0.0; BLOCK_COLUMNS];
                kind.dequantise_row(&row[index * 32 * bytes..][..32 * bytes], &mut weights);
                Self::round(&weights)
            }
            TensorKind::Q8_0 => {
                let block = &row[index * bytes..][..bytes];
                let mut quanta = [0; BLOCK_COLUMNS];
                for (quantum, &byte) in quanta.iter_mut().zip(&block[2..]) {
                    *quantum = byte ^ 0x80;
                }
                Self::new(quanta, half_at(block, 0), 0.0)
            }
            TensorKind::Q4_0 => {
                let block = &row[index * bytes..][..bytes];
                Self::new(nibbles(&block[2..], 0), half_at(block, 0), 0.0)
            }
            TensorKind::Q4_1 => {
                let block = &row[index * bytes..][..bytes];
                Self::new(nibbles(&block[4..], 0), half_at(block, 0), half_at(block, 2))
            }
            TensorKind::Q5_0 => {
                let block = &row[index * bytes..][..bytes];
                let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
                Self::new(nibbles(&block[6..], fifth), half_at(block, 0), 0.0)
            }
            TensorKind::Q5_1 => {
                let block = &row[index * bytes..][..bytes];
                let fifth = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
                Self::new(nibbles(&block[8..], fifth), half_at(block, 0), half_at(block, 2))
            }
            TensorKind::Q4K | TensorKind::Q5K => {
                Self::super_4(&row[index / 8 * bytes..][..bytes], kind, index % 8)
            }
            TensorKind::Q6K => Self::super_6(&row[index / 8 * bytes..][..bytes], index % 8),
        }
    }

    fn new(quanta: [u8; BLOCK_COLUMNS], scale: f32, minimum: f32) -> Self {
        Self { quanta, scale, last_scale: scale, minimum }
    }

    /// f32 weights to 8 bits, rounded against the scale as it is stored.
    fn round(weights: &[f32; BLOCK_COLUMNS]) -> Self {
        let most = weights.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        // NaN is lost in `max` and must not be: the scale carries it to the check.
        let unusable = weights.iter().any(|x| !x.is_finite());
        let scale = if unusable { f32::NAN } else { f16::from_f32(most / 127.0).to_f32() };
        let quantum = |x: f32| {
            let steps = if scale > 0.0 { x / scale } else { 0.0 };
            (steps.round().clamp(-127.0, 127.0) + 128.0) as u8
        };
        Self::new(weights.map(quantum), scale, 0.0)
    }

    /// Sub-block `j` of a `Q4_K` or `Q5_K` block: a product of an f16 and a 6-bit integer has 17
    /// bits, exact in f32.
    fn super_4(block: &[u8], kind: TensorKind, j: usize) -> Self {
        let packed = &block[4..16];
        let (scale, minimum) = if j < 4 {
            (packed[j] & 63, packed[j + 4] & 63)
        } else {
            (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
        };
        let (fifth, low) = match kind {
            TensorKind::Q5K => (Some(&block[16..48]), &block[48..]),
            _ => (None, &block[16..]),
        };
        let low = &low[j / 2 * BLOCK_COLUMNS..][..BLOCK_COLUMNS];
        let mut quanta = [0; BLOCK_COLUMNS];
        for (l, quantum) in quanta.iter_mut().enumerate() {
            let high = fifth.map_or(0, |fifth| fifth[l] >> j & 1);
            *quantum = low[l] >> (j % 2 * 4) & 15 | high << 4;
        }
        let scale = half_at(block, 0) * f32::from(scale);
        Self::new(quanta, scale, -(half_at(block, 2) * f32::from(minimum)))
    }

    /// Columns `32 j ..` of a `Q6_K` block; an f16 times an 8-bit integer is exact in f32.
    fn super_6(block: &[u8], j: usize) -> Self {
        let (half, quarter) = (j / 4, j % 4);
        let low = &block[half * 64 + quarter % 2 * 32..][..32];
        let high = &block[128 + half * 32..][..32];
        let scales = &block[192 + half * 8 + quarter * 2..][..2];
        let mut quanta = [0; BLOCK_COLUMNS];
        for (l, quantum) in quanta.iter_mut().enumerate() {
            *quantum = low[l] >> (quarter / 2 * 4) & 15 | (high[l] >> (quarter * 2) & 3) << 4;
        }
        let d = half_at(block, 208);
        let scale = |index: usize| d * f32::from(scales[index].cast_signed());
        Self { quanta, scale: scale(0), last_scale: scale(1), minimum: 0.0 }
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 32 quanta: low nibbles first, then high ones; bit `i` of `fifth` is quantum `i`'s fifth bit.
fn nibbles(packed: &[u8], fifth: u32) -> [u8; BLOCK_COLUMNS] {
    let mut quanta = [0; BLOCK_COLUMNS];
    for (i, quantum) in quanta.iter_mut().enumerate() {
        let nibble = packed[i % 16] >> (i / 16 * 4) & 15;
        *quantum = nibble | ((fifth >> i & 1) as u8) << 4;
    }
    quanta
}
