//! Plain Rust: the twin of the vector kernels, and what runs where they do not.

use super::matrix::{Format, load, unpack};
use super::{BLOCK_COLUMNS, Call, GROUP_ROWS, PANEL_TOKENS, Write};

/// A block's quanta by row.
type Quanta = [[u8; BLOCK_COLUMNS]; GROUP_ROWS];

/// # Safety
/// As [`super::matmul`], which checked the sizes.
pub unsafe fn matmul(call: &Call<'_>) {
    // A group is unpacked once for all tokens.
    let mut blocks = vec![[[0_u8; BLOCK_COLUMNS]; GROUP_ROWS]; call.weights.blocks()];
    for group in call.groups.clone() {
        let quanta = call.weights.group(group).0;
        let format = call.weights.format();
        for (block, packed) in blocks.iter_mut().zip(quanta.chunks_exact(format.quanta_bytes())) {
            for (lane, row) in block.iter_mut().enumerate() {
                for (column, quantum) in row.iter_mut().enumerate() {
                    *quantum = unpack(format, packed, lane, column);
                }
            }
        }
        for token in call.tokens.clone() {
            // SAFETY: token and group are the call's.
            unsafe { row(call, group, token, &blocks) }
        }
    }
}

/// One token's 16 results.
///
/// # Safety
/// `group` and `token` are within the call.
unsafe fn row(call: &Call<'_>, group: usize, token: usize, blocks: &[Quanta]) {
    let format = call.weights.format();
    let slot = token % PANEL_TOKENS;
    let scales = call.weights.group(group).1.chunks_exact(format.scales_bytes());
    let mut sums = [0.0_f32; GROUP_ROWS];
    for (index, (block, scales)) in blocks.iter().zip(scales).enumerate() {
        let activations = call.activations.block(token, index);
        // SAFETY: a block holds all of these for its 16 tokens, and nobody writes them now.
        let (values, scale, sum, offset, half) = unsafe {
            (
                (*activations).values[slot],
                (*activations).scales[slot],
                (*activations).sums[slot],
                (*activations).offsets[slot],
                (*activations).halves[slot],
            )
        };
        // The offsets are for a zero of 128 (32 for the first half).
        let offset = match format {
            Format::Four | Format::Five | Format::Six | Format::Eight => {
                offset / 128 * i32::from(format.zero())
            }
            _ => 0,
        };
        for (lane, (result, quanta)) in sums.iter_mut().zip(block).enumerate() {
            let (first_scale, last_scale, minimum) = load(format, scales, lane);
            let dot = |range: std::ops::Range<usize>| -> i32 {
                let pairs = quanta[range.clone()].iter().zip(&values[range]);
                pairs.map(|(&q, &a)| i32::from(q) * i32::from(a)).sum()
            };
            if format == Format::Six {
                *result += (dot(0..16) + half) as f32 * (first_scale * scale);
                *result += (dot(16..32) + offset - half) as f32 * (last_scale * scale);
            } else {
                *result += (dot(0..32) + offset) as f32 * (first_scale * scale);
                *result += minimum * sum;
            }
        }
    }
    // SAFETY: token and group are the call's.
    let (out, rows) = unsafe { call.out_at(token, group) };
    for (lane, &sum) in sums.iter().enumerate().take(rows) {
        // SAFETY: `rows` numbers from `out` belong to this token and group.
        unsafe {
            let out = out.add(lane);
            *out = if call.write == Write::Add { *out + sum } else { sum };
        }
    }
}
