//! The products of a language model's step, as shares of what the machine can do.
//!
//! Sketch for SmolLM2-135M: a token takes 212 million operations, so at a peak of 1 TOP/s a core
//! no more than 4,900 tokens of a prompt a second; one generated token reads 97 MB, so at 40 GB/s
//! no more than 410 a second.
//!
//! `cargo bench --bench llm_kernels -- [seconds] [name part]`: times are the best of many calls.
#![expect(clippy::print_stdout, reason = "a report")]
#![expect(unsafe_code, reason = "products over memory that threads share")]

use std::time::{Duration, Instant};

use qbtc_core::Result;
use qbtc_core::llm::gguf::{TensorKind, TensorView};
use qbtc_core::llm::kernels::{
    Activations, Arena, OutRows, PANEL_TOKENS, Product, QuantMatrix, Share, Simd, Write,
    matmul_many, roofline,
};
use qbtc_core::pool::Pool;

/// Weights that are read in turn, bytes: those of a token of `SmolLM2`.
const FOOTPRINT_BYTES: usize = 96 << 20;

/// Rows, columns.
type Shape = (usize, usize);

/// What one step multiplies: shapes that share their activations.
struct Case {
    name: &'static str,
    kind: TensorKind,
    shapes: &'static [Shape],
}

/// The matrices of a layer that read the same activations, and the head.
const CASES: [Case; 6] = [
    Case {
        name: "qkv Q4_1",
        kind: TensorKind::Q4_1,
        shapes: &[(576, 576), (192, 576), (192, 576)],
    },
    Case { name: "gate+up Q4_1", kind: TensorKind::Q4_1, shapes: &[(1536, 576); 2] },
    Case { name: "down Q4_1", kind: TensorKind::Q4_1, shapes: &[(576, 1536)] },
    Case { name: "head Q8_0", kind: TensorKind::Q8_0, shapes: &[(49152, 576)] },
    Case { name: "gate+up Q5_0", kind: TensorKind::Q5_0, shapes: &[(4864, 896); 2] },
    Case { name: "down Q6_K", kind: TensorKind::Q6K, shapes: &[(1024, 4864)] },
];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let seconds: f64 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(0.5);
    let wanted = arguments.next().unwrap_or_default();
    let time = Duration::from_secs_f64(seconds);
    let simd = Simd::detect()?;
    for threads in [1, 2] {
        let mut pool = Pool::new(threads)?;
        let peak = roofline::int8_peak(&mut pool, simd, time)?;
        let bandwidth = roofline::read_bandwidth(&mut pool, FOOTPRINT_BYTES, time)?;
        println!(
            "{}, {threads} threads: {:.0} GOP/s, {:.1} GB/s",
            simd.name(),
            peak / 1e9,
            bandwidth / 1e9
        );
        for case in CASES.iter().filter(|case| case.name.contains(&wanted)) {
            for tokens in [1, 2, 4, 8, 16, 512] {
                report(case, tokens, simd, &mut pool, time, (peak, bandwidth))?;
            }
        }
    }
    Ok(())
}

/// Time one case and print its row.
fn report(
    case: &Case,
    tokens: usize,
    simd: Simd,
    pool: &mut Pool,
    time: Duration,
    (peak, bandwidth): (f64, f64),
) -> Result<()> {
    let columns = case.shapes[0].1;
    let mut arena = Arena::default();
    // As many copies as fill `FOOTPRINT_BYTES`, read in turn, so that none stays in a cache (as
    // the layers of a model do).
    let weights: usize = case.shapes.iter().map(|(rows, columns)| rows * columns).sum();
    let bytes = case.kind.row_bytes(weights);
    let copies = if tokens == 512 { 2 } else { FOOTPRINT_BYTES.div_ceil(bytes) };
    let mut layers = Vec::new();
    for copy in 0..copies {
        let matrix = |&(rows, columns): &Shape| {
            let bytes = vec![0x23 + copy as u8 % 16; case.kind.row_bytes(columns) * rows];
            let view = TensorView { name: "w", rows, columns, kind: case.kind, bytes: &bytes };
            QuantMatrix::from_tensor(&view, simd, &mut arena)
        };
        layers.push(case.shapes.iter().map(matrix).collect::<Result<Vec<_>>>()?);
    }
    let activations = Activations::new(tokens, columns);
    for token in 0..tokens {
        let values: Vec<f32> = (0..columns).map(|i| ((i * 7 + token) % 13) as f32 - 6.0).collect();
        // SAFETY: one thread.
        unsafe { activations.quantise(token, 0, &values) };
    }
    let mut outs: Vec<Vec<f32>> =
        case.shapes.iter().map(|(rows, _)| vec![0.0; rows * tokens]).collect();
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    let mut next = layers.iter().cycle();
    while begin.elapsed() < time {
        let calls = if tokens == 512 { 1 } else { copies };
        let start = Instant::now();
        for weights in next.by_ref().take(calls) {
            let products: Vec<Product<'_>> = (weights.iter().zip(&mut outs))
                .map(|(weights, out)| Product {
                    weights,
                    out: OutRows::new(out, weights.rows()),
                    write: Write::Replace,
                })
                .collect();
            pool.run(|worker| {
                if tokens < 4 * PANEL_TOKENS {
                    let share = Share { index: worker.index, count: worker.count };
                    // SAFETY: workers write different rows.
                    unsafe { matmul_many(&products, &activations, 0..tokens, share) };
                } else {
                    let panels = worker.share(tokens.div_ceil(PANEL_TOKENS));
                    let tokens =
                        panels.start * PANEL_TOKENS..(panels.end * PANEL_TOKENS).min(tokens);
                    // SAFETY: workers write different tokens.
                    unsafe { matmul_many(&products, &activations, tokens, Share::ALL) };
                }
            })?;
        }
        best = best.min(start.elapsed().as_secs_f64() / calls as f64);
    }
    let operations: usize = case.shapes.iter().map(|(rows, columns)| 2 * rows * columns).sum();
    let bytes: usize = layers[0].iter().map(QuantMatrix::bytes).sum();
    let (rate, read) = ((operations * tokens) as f64 / best, bytes as f64 / best);
    println!(
        "{:14} {tokens:4} tokens {:9.1} us  {:7.1} GOP/s ({:4.1} %)  {:6.1} GB/s ({:4.1} %)",
        case.name,
        best * 1e6,
        rate / 1e9,
        100.0 * rate / peak,
        read / 1e9,
        100.0 * read / bandwidth
    );
    Ok(())
}
