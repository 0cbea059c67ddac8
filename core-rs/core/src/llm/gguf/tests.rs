use half::f16;

use super::writer::{GgufWriter, TinyModel};
use super::*;

fn small() -> GgufWriter {
    let mut file = GgufWriter::new();
    file.string("general.architecture", "llama")
        .u32("count", 7)
        .f32("rate", 0.5)
        .bool("yes", true)
        .strings("words", &["a", "", "Ġü"])
        .i32s("numbers", &[-1, 2])
        .f32s("reals", &[1.5, -2.0])
        .tensor("vector", &[3], TensorKind::F32, &[1.0, 2.0, 3.0])
        .tensor("cube", &[2, 2, 2], TensorKind::F16, &[0., 1., 2., 3., 4., 5., 6., 7.]);
    file
}

/// The field and the reason of the refusal of `bytes`.
fn refusal(bytes: Vec<u8>) -> (String, String) {
    match Gguf::from_bytes(bytes) {
        Err(Error::Model { field, reason }) => (field, reason),
        Err(other) => panic!("another kind of error: {other}"),
        Ok(_) => panic!("the file was taken"),
    }
}

/// Position of `needle` in `bytes`, which has it once.
fn find(bytes: &[u8], needle: &[u8]) -> usize {
    let found: Vec<usize> = bytes
        .windows(needle.len())
        .enumerate()
        .filter_map(|(at, window)| (window == needle).then_some(at))
        .collect();
    assert_eq!(found.len(), 1, "once");
    found[0]
}

#[test]
fn what_was_written_is_read() {
    let file = Gguf::from_bytes(small().finish()).unwrap();
    assert_eq!(file.architecture().unwrap(), "llama");
    assert_eq!(file.u64("count").unwrap(), 7);
    assert_eq!(file.f32("rate").unwrap(), 0.5);
    assert!(file.bool("yes").unwrap());
    assert_eq!(file.strings("words").unwrap(), ["a", "", "Ġü"]);
    assert_eq!(file.optional_i64s("numbers").unwrap().unwrap(), [-1, 2]);
    assert_eq!(file.optional_f32s("reals").unwrap().unwrap(), [1.5, -2.0]);
    assert_eq!(file.optional_u64("absent").unwrap(), None);
    let cube = file.tensor("cube").unwrap();
    assert_eq!((cube.rows, cube.columns, cube.kind), (4, 2, TensorKind::F16));
    assert_eq!(cube.dequantise(), [0., 1., 2., 3., 4., 5., 6., 7.]);
    let mut row = [0.0; 2];
    cube.dequantise_row(3, &mut row);
    assert_eq!(row, [6., 7.]);
    assert!(file.optional_tensor("absent").is_none());
    assert_eq!(file.tensors().map(|tensor| tensor.name).collect::<Vec<_>>(), ["vector", "cube"]);
}

#[test]
fn a_mapped_file_reads_like_its_bytes_and_has_their_sha256() {
    let folder = std::env::temp_dir().join(format!("qbtc-gguf-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("small.gguf");
    std::fs::write(&path, small().finish()).unwrap();
    let mapped = Gguf::open(&path).unwrap();
    let owned = Gguf::from_bytes(small().finish()).unwrap();
    assert_eq!(mapped.sha256(), owned.sha256());
    assert_eq!(mapped.tensor("vector").unwrap().dequantise(), [1., 2., 3.]);
    assert!(matches!(Gguf::open(&folder), Err(Error::Io { .. })), "a folder is no file");
    assert!(matches!(Gguf::open(&folder.join("none")), Err(Error::Io { .. })));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_value_of_another_type_is_an_error_that_names_the_key() {
    let file = Gguf::from_bytes(small().finish()).unwrap();
    let message = |result: Result<()>| result.unwrap_err().to_string();
    assert!(message(file.string("count").map(drop)).contains("`count`: is u32, expected a text"));
    assert!(message(file.u64("numbers").map(drop)).contains("a list of i32"));
    assert!(message(file.strings("rate").map(drop)).contains("a list of texts"));
    assert!(message(file.f32("yes").map(drop)).contains("real"));
    assert!(message(file.bool("count").map(drop)).contains("yes or no"));
    assert!(message(file.u64("absent").map(drop)).contains("missing"));
    assert!(message(file.tensor("absent").map(drop)).contains("missing"));
}

#[test]
fn numbers_that_are_negative_or_not_finite_are_refused() {
    let mut writer = small();
    writer.f32("nan", f32::NAN).f32s("inf", &[1.0, f32::INFINITY]);
    writer.tensor("bad", &[32, 2], TensorKind::Q8_0, &[f32::MAX; 64]);
    let file = Gguf::from_bytes(writer.finish()).unwrap();
    assert!(file.f32("nan").is_err());
    assert!(file.optional_f32s("inf").is_err());
    let error = file.tensor("bad").unwrap().check_finite().unwrap_err().to_string();
    assert!(error.contains("`bad`: row 0"), "{error}");
    file.tensor("cube").unwrap().check_finite().unwrap();
}

#[test]
fn every_cut_of_a_file_is_refused() {
    let bytes = small().finish();
    let data_end = bytes.len() - 16; // the padding behind the last 16 bytes of weights
    for len in 0..data_end {
        let (_, reason) = refusal(bytes[..len].to_vec());
        assert!(reason.contains("get it again"), "{len}: {reason}");
    }
    Gguf::from_bytes(bytes[..data_end].to_vec()).unwrap();
}

#[test]
fn each_damage_is_named() {
    let good = small().finish();
    let patched = |at: usize, patch: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        refusal(bytes)
    };
    let cases: Vec<(usize, Vec<u8>, &str, &str)> = vec![
        (0, b"GGML".to_vec(), "magic", "GGML"),
        (4, 1_u32.to_le_bytes().to_vec(), "version", "not supported"),
        (4, 3_u32.to_be_bytes().to_vec(), "version", "big-endian"),
        (8, u64::MAX.to_le_bytes().to_vec(), "tensor count", "at most"),
        (16, (1_u64 << 40).to_le_bytes().to_vec(), "metadata count", "at most"),
        (24, u64::MAX.to_le_bytes().to_vec(), "metadata key 0", "at most"),
        // Behind a key come its type and its value; behind a tensor's name its shape and kind.
        (find(&good, b"count") + 5, 77_u32.to_le_bytes().to_vec(), "count", "type 77"),
        (find(&good, b"yes") + 7, vec![2], "yes", "neither"),
        (find(&good, b"words") + 9, 9_u32.to_le_bytes().to_vec(), "words", "list of lists"),
        (find(&good, b"words") + 13, u64::MAX.to_le_bytes().to_vec(), "words", "at most"),
        (find(&good, b"words") + 21, (1_u64 << 62).to_le_bytes().to_vec(), "words", "at most"),
        (find(&good, b"words") + 29, vec![0xff], "words", "UTF-8"),
        (find(&good, b"reals"), b"count".to_vec(), "count", "twice"),
        (find(&good, b"vector"), b"vec\0or".to_vec(), "tensor 0", "control"),
        (find(&good, b"vector") + 6, 5_u32.to_le_bytes().to_vec(), "vector", "5 dimensions"),
        (find(&good, b"vector") + 10, 0_u64.to_le_bytes().to_vec(), "vector", "zero"),
        (find(&good, b"vector") + 10, u64::MAX.to_le_bytes().to_vec(), "vector", "too large"),
        (find(&good, b"vector") + 10, 99_u64.to_le_bytes().to_vec(), "vector", "past the end"),
        (find(&good, b"vector") + 18, 16_u32.to_le_bytes().to_vec(), "vector", "IQ2_XXS"),
        (find(&good, b"vector") + 18, 2_u32.to_le_bytes().to_vec(), "vector", "divide"),
        (find(&good, b"vector") + 22, 8_u64.to_le_bytes().to_vec(), "vector", "alignment"),
        (find(&good, b"vector") + 22, 32_u64.to_le_bytes().to_vec(), "vector", "on top of"),
        (find(&good, b"cube") + 36, (1_u64 << 63).to_le_bytes().to_vec(), "cube", "past the end"),
        (find(&good, b"cube") + 16, (1_u64 << 63).to_le_bytes().to_vec(), "cube", "too large"),
    ];
    for (at, patch, field, words) in cases {
        let (found, reason) = patched(at, &patch);
        // Of two tensors on the same place, either may be named.
        let named = found == field || (words == "on top of" && found == "cube");
        assert!(named && reason.contains(words), "wanted {field}: {words}, got {found}: {reason}");
    }
}

#[test]
fn an_unsupported_quantisation_lists_the_supported_ones() {
    let mut bytes = small().finish();
    let at = find(&bytes, b"vector") + 18;
    bytes[at..at + 4].copy_from_slice(&10_u32.to_le_bytes());
    let (_, reason) = refusal(bytes);
    assert!(reason.contains("Q2_K"));
    for kind in TensorKind::ALL {
        assert!(reason.contains(kind.name()), "{reason}");
    }
}

#[test]
fn the_alignment_of_the_file_is_followed_and_checked() {
    for (alignment, good) in [(32, true), (8, true), (0, false), (24, false), (1 << 31, false)] {
        let mut writer = GgufWriter::new();
        writer.u32("general.alignment", alignment);
        assert_eq!(Gguf::from_bytes(writer.finish()).is_ok(), good, "{alignment}");
    }
}

/// Blocks written out by hand from ggml's definition, and the weights they stand for.
#[test]
fn blocks_mean_what_ggml_says() {
    let half = |x: f32| f16::from_f32(x).to_le_bytes();
    let ramp: Vec<u8> = (0..16).map(|j| j | (15 - j) << 4).collect();
    let weights = |kind: TensorKind, block: &[u8]| {
        let mut out = vec![0.0; kind.block_len()];
        kind.dequantise_row(block, &mut out);
        out
    };
    let block = [&half(0.5)[..], &ramp].concat();
    let q = weights(TensorKind::Q4_0, &block);
    assert_eq!((q[0], q[15], q[16], q[31]), (-4.0, 3.5, 3.5, -4.0));

    let block = [&half(0.5)[..], &half(-1.0), &ramp].concat();
    let q = weights(TensorKind::Q4_1, &block);
    assert_eq!((q[0], q[15], q[16], q[31]), (-1.0, 6.5, 6.5, -1.0));

    let fifth = 0x8000_0002_u32.to_le_bytes(); // weights 1 and 31
    let block = [&half(2.0)[..], &fifth, &ramp].concat();
    let q = weights(TensorKind::Q5_0, &block);
    assert_eq!((q[0], q[1], q[16], q[31]), (-32.0, 2.0, -2.0, 0.0));

    let block = [&half(2.0)[..], &half(1.0), &fifth, &ramp].concat();
    let q = weights(TensorKind::Q5_1, &block);
    assert_eq!((q[0], q[1], q[16], q[31]), (1.0, 35.0, 31.0, 33.0));

    let block = [&half(0.25)[..], &[0x80, 0x7f], &[1; 30]].concat();
    let q = weights(TensorKind::Q8_0, &block);
    assert_eq!((q[0], q[1], q[2], q[31]), (-32.0, 31.75, 0.25, 0.25));

    // Sub-block 0: scale 3, minimum 5; sub-block 7: scale 0b10_0001 = 33, minimum 0b11_0010 = 50.
    let mut scales = [0_u8; 12];
    scales[0] = 3;
    scales[4] = 5;
    scales[11] = 0b0010_0001;
    scales[3] |= 0b10 << 6;
    scales[7] |= 0b11 << 6;
    let mut packed = [0_u8; 128];
    packed[0] = 9; // sub-block 0, weight 0
    packed[127] = 0xc0; // sub-block 7, weight 31
    let block = [&half(1.0)[..], &half(0.5), &scales, &packed].concat();
    let q = weights(TensorKind::Q4K, &block);
    assert_eq!((q[0], q[1], q[255]), (27.0 - 2.5, -2.5, 33.0 * 12.0 - 25.0));

    let mut fifth = [0_u8; 32];
    fifth[0] = 1; // sub-block 0, weight 0
    fifth[31] = 0x80; // sub-block 7, weight 31
    let block = [&half(1.0)[..], &half(0.5), &scales, &fifth, &packed].concat();
    let q = weights(TensorKind::Q5K, &block);
    assert_eq!((q[0], q[1], q[255]), (75.0 - 2.5, -2.5, 33.0 * 28.0 - 25.0));

    let mut low = [0_u8; 128];
    let mut high = [0_u8; 64];
    let mut scales = [1_u8; 16];
    low[0] = 0x5a; // weight 0 has 10, weight 64 has 5
    low[127] = 0xf0; // weight 255 has 15
    high[0] = 0b0011_0001; // weight 0 has 1, weight 64 has 3
    high[63] = 0b1000_0000; // weight 255 has 2
    scales[0] = 0xfe; // -2
    scales[15] = 3;
    let block = [&low[..], &high, &scales, &half(0.5)].concat();
    let q = weights(TensorKind::Q6K, &block);
    // Quanta are 26, 0, 53 and at the end 0 and 47, all less 32.
    assert_eq!((q[0], q[1], q[64]), (6.0, 32.0, 0.5 * 21.0));
    assert_eq!((q[254], q[255]), (1.5 * -32.0, 1.5 * 15.0));
}

#[test]
fn rounding_errs_by_no_more_than_a_step() {
    let mut state = 1_u32;
    let weights: Vec<f32> = (0..512)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    // Weights in -1..1. The least step is 2 over the number of quanta; a scale in f16, or a
    // quantised one, adds a little, and `_0` kinds cut off one step at one end.
    for (kind, error_max) in [
        (TensorKind::F32, 0.0),
        (TensorKind::F16, 2.5e-4),
        (TensorKind::Bf16, 2e-3),
        (TensorKind::Q4_0, 0.13),
        (TensorKind::Q4_1, 0.068),
        (TensorKind::Q5_0, 0.064),
        (TensorKind::Q5_1, 0.034),
        (TensorKind::Q8_0, 4.5e-3),
        (TensorKind::Q4K, 0.1),
        (TensorKind::Q5K, 0.065),
        (TensorKind::Q6K, 0.033),
    ] {
        let mut bytes = Vec::new();
        kind.quantise_row(&weights, &mut bytes);
        assert_eq!(bytes.len(), kind.row_bytes(weights.len()));
        let mut back = vec![0.0; weights.len()];
        kind.dequantise_row(&bytes, &mut back);
        let worst = weights.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= error_max, "{}: {worst}", kind.name());
        let mut zeros = Vec::new();
        kind.quantise_row(&[0.0; 256], &mut zeros);
        kind.dequantise_row(&zeros, &mut back[..256]);
        assert!(back[..256].iter().all(|&x| x == 0.0), "{}: zeros stay zero", kind.name());
    }
}

#[test]
fn tiny_models_of_every_kind_open() {
    for kind in TensorKind::ALL {
        let file = TinyModel::of_kind(kind).gguf().unwrap();
        assert_eq!(file.tensor("blk.0.attn_q.weight").unwrap().kind, kind);
        file.tensors().for_each(|tensor| tensor.check_finite().unwrap());
        let tokens = file.strings("tokenizer.ggml.tokens").unwrap();
        assert_eq!(tokens.len(), file.tensor("token_embd.weight").unwrap().rows);
        let distinct: std::collections::HashSet<&str> = tokens.into_iter().collect();
        assert_eq!(distinct.len(), file.tensor("token_embd.weight").unwrap().rows);
    }
    let file = TinyModel::qwen2().gguf().unwrap();
    assert_eq!(file.architecture().unwrap(), "qwen2");
    file.tensor("blk.1.attn_k.bias").unwrap();
}
