//! Every quantisation on every instruction set, against f64 sums over the same numbers.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::*;
use crate::llm::gguf::{TensorKind, TensorView};

fn simds() -> impl Iterator<Item = Simd> {
    Simd::ALL.into_iter().filter(|simd| simd.available())
}

/// Random weights as `kind`, and their exact values.
fn tensor(
    kind: TensorKind,
    rows: usize,
    columns: usize,
    random: &mut Pcg64,
) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = Vec::new();
    for _ in 0..rows {
        let shift: f32 = random.random_range(-0.5..0.5);
        let row: Vec<f32> = (0..columns).map(|_| random.random_range(-1.0..1.0) + shift).collect();
        kind.quantise_row(&row, &mut bytes);
    }
    let mut exact = vec![0.0; rows * columns];
    kind.dequantise_row(&bytes, &mut exact);
    (bytes, exact)
}

fn matrix(kind: TensorKind, rows: usize, columns: usize, bytes: &[u8], simd: Simd) -> QuantMatrix {
    let view = TensorView { name: "w", rows, columns, kind, bytes };
    QuantMatrix::from_tensor(&view, simd, &mut Arena::default()).unwrap()
}

fn activations(tokens: usize, columns: usize, random: &mut Pcg64) -> Activations {
    let activations = Activations::new(tokens, columns);
    for token in 0..tokens {
        let size = 10_f32.powi(random.random_range(-3..3));
        let values: Vec<f32> =
            (0..columns).map(|_| size * random.random_range(-1.0..1.0)).collect();
        // SAFETY: one thread.
        unsafe { activations.quantise(token, 0, &values) };
    }
    activations
}

fn product(weights: &QuantMatrix, activations: &Activations, tokens: Range<usize>) -> Vec<f32> {
    let mut out = vec![f32::NAN; tokens.end * weights.rows()];
    let rows = OutRows::new(&mut out, weights.rows());
    // SAFETY: one thread.
    unsafe {
        matmul(weights, activations, tokens, rows, 0..weights.groups(), Write::Replace);
    }
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Checks a whole product against f64 sums; the error allowed is f32's over the terms' magnitudes
/// (an offset format sums terms of up to 256 times the result's).
fn check(weights: &QuantMatrix, exact: &[f32], activations: &Activations, out: &[f32]) {
    let columns = weights.columns();
    let mut values = vec![0.0; columns];
    for (token, out) in out.chunks_exact(weights.rows()).enumerate() {
        // SAFETY: one thread.
        unsafe { activations.dequantise(token, &mut values) };
        for (row, &got) in out.iter().enumerate() {
            let terms = exact[row * columns..][..columns].iter().zip(&values);
            let (mut want, mut size) = (0.0, 0.0);
            for (&w, &a) in terms {
                want += f64::from(w) * f64::from(a);
                size += f64::from(a).abs();
            }
            let largest = exact.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
            let allowed = 1e-6 * size * f64::from(largest) * 4.0 + 1e-12;
            let error = (f64::from(got) - want).abs();
            assert!(error <= allowed, "({token}, {row}): {got} for {want}, allowed {allowed:e}");
        }
    }
}

/// The values as the matrix holds them: floats are rounded to 8 bits.
fn stored(weights: &QuantMatrix) -> Vec<f32> {
    let mut values = vec![0.0; weights.rows() * weights.columns()];
    for (row, out) in values.chunks_exact_mut(weights.columns()).enumerate() {
        weights.dequantise_row(row, out);
    }
    values
}

fn is_float(kind: TensorKind) -> bool {
    kind.block_len() == 1
}

#[test]
fn a_repacked_matrix_has_the_files_weights_exactly() {
    let mut random = Pcg64::seed_from_u64(1);
    for kind in TensorKind::ALL.into_iter().filter(|&kind| !is_float(kind)) {
        let (bytes, exact) = tensor(kind, 19, 512, &mut random);
        let weights = matrix(kind, 19, 512, &bytes, Simd::Scalar);
        assert_eq!(stored(&weights), exact, "{kind:?}");
    }
}

#[test]
fn float_weights_are_rounded_to_eight_bits_within_the_stated_error() {
    let mut random = Pcg64::seed_from_u64(2);
    for kind in [TensorKind::F32, TensorKind::F16, TensorKind::Bf16] {
        let (bytes, exact) = tensor(kind, 16, 64, &mut random);
        let weights = matrix(kind, 16, 64, &bytes, Simd::Scalar);
        for (stored, exact) in stored(&weights).chunks(32).zip(exact.chunks(32)) {
            let most = exact.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            for (stored, exact) in stored.iter().zip(exact) {
                let allowed = most / 254.0 + exact.abs() / 2048.0;
                assert!((stored - exact).abs() <= allowed * 1.001, "{stored} for {exact}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn products_are_the_sums_of_their_terms(
        rows in 1_usize..70, super_blocks in 1_usize..4, blocks in 1_usize..20,
        tokens in 1_usize..40, seed: u64,
    ) {
        let mut random = Pcg64::seed_from_u64(seed);
        for kind in TensorKind::ALL {
            let columns = if kind.block_len() == 256 { super_blocks * 256 } else { blocks * 32 };
            let (bytes, _) = tensor(kind, rows, columns, &mut random);
            let activations = activations(tokens, columns, &mut random);
            for simd in simds() {
                let weights = matrix(kind, rows, columns, &bytes, simd);
                let out = product(&weights, &activations, 0..tokens);
                check(&weights, &stored(&weights), &activations, &out);
            }
        }
    }
}

#[test]
fn a_rows_result_has_the_same_bits_in_any_call() {
    let mut random = Pcg64::seed_from_u64(3);
    let (rows, tokens) = (52, 37);
    for kind in TensorKind::ALL {
        let columns = 512;
        let (bytes, _) = tensor(kind, rows, columns, &mut random);
        let activations = activations(tokens, columns, &mut random);
        for simd in simds() {
            let weights = matrix(kind, rows, columns, &bytes, simd);
            let all = bits(&product(&weights, &activations, 0..tokens));
            for first in 0..tokens {
                for last in [first + 1, (first + 3).min(tokens), (first + 17).min(tokens)] {
                    let some = bits(&product(&weights, &activations, first..last));
                    assert_eq!(some[first * rows..], all[first * rows..last * rows], "{kind:?}");
                }
            }
        }
    }
}

#[test]
fn shares_of_several_products_make_up_the_whole() {
    let mut random = Pcg64::seed_from_u64(4);
    let columns = 96;
    let shapes = [(TensorKind::Q4_1, 48), (TensorKind::Q8_0, 17), (TensorKind::Q5_0, 100)];
    let tensors = shapes.map(|(kind, rows)| tensor(kind, rows, columns, &mut random).0);
    let activations = activations(3, columns, &mut random);
    for simd in simds() {
        let weights: Vec<QuantMatrix> = (shapes.iter().zip(&tensors))
            .map(|(&(kind, rows), bytes)| matrix(kind, rows, columns, bytes, simd))
            .collect();
        for count in 1..6 {
            let mut outs: Vec<Vec<f32>> =
                weights.iter().map(|weights| vec![1.0; 3 * weights.rows()]).collect();
            let products: Vec<Product<'_>> = (weights.iter().zip(&mut outs))
                .map(|(weights, out)| Product {
                    weights,
                    out: OutRows::new(out, weights.rows()),
                    write: Write::Add,
                })
                .collect();
            for index in 0..count {
                // SAFETY: one thread.
                unsafe { matmul_many(&products, &activations, 0..3, Share { index, count }) };
            }
            for (weights, out) in weights.iter().zip(&outs) {
                let whole = product(weights, &activations, 0..3);
                let want: Vec<f32> = whole.iter().map(|x| 1.0 + x).collect();
                assert_eq!(bits(out), bits(&want));
            }
        }
    }
}

/// All quanta at their ends, all activations at +-127: the largest sums there are.
#[test]
fn extreme_numbers_do_not_saturate() {
    for kind in TensorKind::ALL.into_iter().filter(|&kind| !is_float(kind)) {
        let (rows, columns) = (32, 512);
        for pattern in [0x00_u8, 0xff, 0x80, 0x7f, 0x0f, 0xf0] {
            let mut bytes = vec![pattern; rows * kind.row_bytes(columns)];
            // The scales are set to 1 (and 63 in the K kinds' six bits, -128 in Q6_K's eight).
            let one = half::f16::ONE.to_le_bytes();
            for block in bytes.chunks_exact_mut(kind.block_bytes()) {
                let at = if kind == TensorKind::Q6K { 208 } else { 0 };
                block[at..at + 2].copy_from_slice(&one);
                let minimum =
                    [TensorKind::Q4_1, TensorKind::Q5_1, TensorKind::Q4K, TensorKind::Q5K];
                if minimum.contains(&kind) {
                    block[2..4].copy_from_slice(&one);
                }
            }
            for sign in [1.0_f32, -1.0] {
                let activations = Activations::new(2, columns);
                let alternating: Vec<f32> =
                    (0..columns).map(|i| if i % 2 == 0 { sign } else { -sign }).collect();
                // SAFETY: one thread.
                unsafe {
                    activations.quantise(0, 0, &vec![sign; columns]);
                    activations.quantise(1, 0, &alternating);
                }
                for simd in simds() {
                    let weights = matrix(kind, rows, columns, &bytes, simd);
                    let out = product(&weights, &activations, 0..2);
                    check(&weights, &stored(&weights), &activations, &out);
                }
            }
        }
    }
}

#[test]
fn activations_keep_their_values_within_half_a_step() {
    let mut random = Pcg64::seed_from_u64(5);
    let activations = Activations::new(20, 96);
    let mut back = vec![0.0; 96];
    for token in 0..20 {
        let values: Vec<f32> = (0..96).map(|_| random.random_range(-5.0..5.0)).collect();
        // SAFETY: one thread.
        unsafe {
            activations.quantise(token, 32, &values[32..]);
            activations.quantise(token, 0, &values[..32]);
            activations.dequantise(token, &mut back);
        }
        for (back, values) in back.chunks(32).zip(values.chunks(32)) {
            let step = values.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 127.0;
            let close = |(b, v): (&f32, &f32)| (b - v).abs() <= step * 0.5001;
            assert!(back.iter().zip(values).all(close));
        }
    }
}

#[test]
fn an_all_zero_and_a_tiny_block_are_zero() {
    let activations = Activations::new(1, 64);
    let mut back = [1.0; 64];
    let mut values = [0.0; 64];
    values[40] = 1e-38;
    // SAFETY: one thread.
    unsafe {
        activations.quantise(0, 0, &values);
        activations.dequantise(0, &mut back);
    }
    assert_eq!(back, [0.0; 64]);
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let mut arena = Arena::default();
    let mut make = |rows, columns, kind: TensorKind, bytes: &[u8]| {
        let view = TensorView { name: "blk.0.w", rows, columns, kind, bytes };
        QuantMatrix::from_tensor(&view, Simd::Scalar, &mut arena).map(|_| ())
    };
    let bytes = vec![0; TensorKind::Q8_0.row_bytes(64)];
    assert!(make(1, 64, TensorKind::Q8_0, &bytes).is_ok());
    assert!(make(2, 64, TensorKind::Q8_0, &bytes).is_err());
    assert!(make(0, 64, TensorKind::Q8_0, &[]).is_err());
    assert!(make(1, 16, TensorKind::F32, &[0; 64]).is_err());
    assert!(make(1, 32, TensorKind::Q4K, &[0; 18]).is_err());
    let not_finite: Vec<u8> = [f32::NAN; 32].iter().flat_map(|x| x.to_le_bytes()).collect();
    let error = make(1, 32, TensorKind::F32, &not_finite).unwrap_err();
    assert!(error.to_string().contains("blk.0.w"), "{error}");
}

#[test]
fn all_instruction_sets_quantise_to_the_same_bits() {
    let mut random = Pcg64::seed_from_u64(6);
    let columns = 416;
    let mut values: Vec<f32> = (0..columns).map(|_| random.random_range(-3.0..3.0)).collect();
    // Halves between two steps, blocks of zeros and of numbers near the ends of the range.
    values[..32].copy_from_slice(&std::array::from_fn::<f32, 32, _>(|i| i as f32 - 15.5));
    values[0] = 127.0;
    values[32..64].fill(0.0);
    values[64..96].fill(3e38);
    values[96..128].fill(1e-37);
    let quantised = |simd| {
        let activations = Activations::with_simd(3, columns, simd);
        // SAFETY: one thread.
        unsafe { activations.quantise(2, 0, &values) };
        // SAFETY: blocks of these activations; nobody writes them.
        (0..columns / 32)
            .map(|index| unsafe {
                let block = activations.block(2, index);
                let sums = ((*block).offsets[2], (*block).halves[2]);
                ((*block).values[2], (*block).scales[2].to_bits(), (*block).sums[2].to_bits(), sums)
            })
            .collect::<Vec<_>>()
    };
    for simd in simds() {
        assert_eq!(quantised(simd), quantised(Simd::Scalar), "{simd:?}");
    }
}

#[test]
fn every_instruction_set_has_a_peak() {
    let mut pool = crate::pool::Pool::new(1).unwrap();
    for simd in simds() {
        let peak = roofline::int8_peak(&mut pool, simd, std::time::Duration::ZERO).unwrap();
        assert!(peak > 0.0 && peak.is_finite());
    }
    let mut pool = crate::pool::Pool::new(2).unwrap();
    let time = std::time::Duration::ZERO;
    assert!(roofline::read_bandwidth(&mut pool, 1 << 16, time).unwrap() > 0.0);
    assert!(roofline::int8_peak(&mut pool, Simd::detect().unwrap(), time).unwrap() > 0.0);
}
