//! Damaged model files: whatever the bytes, the reader answers with a file or an error.
//!
//! `QBTC_FUZZ_FILES` sets how many damaged files the long loop tries (a few thousand by default;
//! millions by hand, in a release build).

use proptest::prelude::*;
use proptest::sample::Index;
use qbtc_core::Error;
use qbtc_core::llm::config::ModelConfig;
use qbtc_core::llm::gguf::writer::{GgufWriter, TinyModel};
use qbtc_core::llm::gguf::{Gguf, TensorKind};
use qbtc_core::llm::reference::Reference;
use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// Damaged files of the long loop.
const FILES: usize = 4_000;

/// A model of one layer, small enough to read whole thousands of times.
fn tiny(architecture: &'static str, kind: TensorKind) -> Vec<u8> {
    let base =
        TinyModel { architecture, layers: 1, heads: 2, kv_heads: 1, ..TinyModel::of_kind(kind) };
    TinyModel { dim: kind.block_len().max(64), ffn: kind.block_len().max(32), ..base }.bytes()
}

/// Only metadata and one small tensor: most of its bytes are structure.
fn header() -> Vec<u8> {
    let mut file = GgufWriter::new();
    file.string("general.architecture", "llama")
        .u32("general.alignment", 32)
        .f32("rate", 0.5)
        .bool("yes", true)
        .strings("words", &["a", "", "Ġü"])
        .i32s("numbers", &[-1, 2])
        .f32s("reals", &[1.5, -2.0])
        .tensor("vector", &[32], TensorKind::Q8_0, &[1.0; 32])
        .tensor("cube", &[2, 2, 2], TensorKind::F16, &[0.5; 8]);
    file.finish()
}

/// Where the structure ends and the weights begin, about.
fn structure_len(bytes: &[u8]) -> usize {
    let last = b"output_norm.weight";
    let at = bytes.windows(last.len()).position(|window| window == last);
    at.map_or(bytes.len(), |at| at + 64)
}

/// Read everything there is to read. Whether the file was taken.
fn read_all(bytes: Vec<u8>) -> bool {
    let len = bytes.len();
    let file = match Gguf::from_bytes(bytes) {
        Ok(file) => file,
        Err(Error::Model { field, reason }) => {
            assert!(!field.is_empty() && !reason.is_empty(), "an error says what and why");
            return false;
        }
        Err(other) => panic!("not the file's fault? {other}"),
    };
    let keys: Vec<String> = file.keys().map(str::to_owned).collect();
    for key in &keys {
        let readable = [
            file.string(key).is_ok(),
            file.strings(key).is_ok(),
            file.u64(key).is_ok(),
            file.f32(key).is_ok(),
            file.bool(key).is_ok(),
            file.optional_i64s(key).is_ok(),
            file.optional_f32s(key).is_ok(),
        ];
        assert!(readable.iter().filter(|&&readable| readable).count() <= 1, "of one type: {key}");
    }
    let mut taken = 0;
    for tensor in file.tensors() {
        taken += tensor.bytes.len();
        let finite = tensor.check_finite().is_ok();
        let weights = tensor.dequantise();
        assert_eq!(weights.len(), tensor.rows * tensor.columns);
        // Only a file that was not checked can make a weight that is not a number; a product of
        // two finite f16 scales is finite in f32.
        assert!(!finite || weights.iter().all(|weight| weight.is_finite()), "{}", tensor.name);
    }
    assert!(taken <= len, "no byte belongs to two tensors");
    match ModelConfig::from_gguf(&file) {
        Ok(config) if config.context > 0 => {
            if let Ok(mut model) = Reference::new(&file, 1) {
                let _ = model.logits(&[1]);
            }
            true
        }
        Ok(_) => panic!("a context of nothing was taken"),
        Err(Error::Model { .. }) => true,
        Err(other) => panic!("not the file's fault? {other}"),
    }
}

/// Numbers that break arithmetic which does not check.
const HOSTILE: [u64; 12] = [
    0,
    1,
    u64::MAX,
    u64::MAX - 7,
    1 << 63,
    (1 << 63) - 1,
    1 << 61,
    1 << 32,
    u32::MAX as u64,
    (1 << 31) - 1,
    65_536,
    255,
];

/// One to four changes, most of them in the structure.
fn damage(bytes: &mut Vec<u8>, structure: usize, random: &mut Pcg64Mcg) {
    for _ in 0..random.random_range(1..=4) {
        let reach = if random.random_bool(0.9) { structure.min(bytes.len()) } else { bytes.len() };
        if reach == 0 {
            return;
        }
        let at = random.random_range(0..reach);
        match random.random_range(0..7) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.next_u32() as u8,
            2 => {
                let number = HOSTILE[random.random_range(0..HOSTILE.len())].to_le_bytes();
                let width = if random.random_bool(0.5) { 4 } else { 8 };
                let end = (at + width).min(bytes.len());
                bytes[at..end].copy_from_slice(&number[..end - at]);
            }
            3 => bytes.truncate(at),
            4 => {
                let end = random.random_range(at..bytes.len()).min(at + 64);
                bytes.drain(at..end);
            }
            5 => {
                let end = random.random_range(at..bytes.len()).min(at + 64);
                let copy = bytes[at..end].to_vec();
                let to = random.random_range(0..reach);
                bytes.splice(to..to, copy);
            }
            _ => {
                // A small number next to the one that is there: counts and types off by one.
                bytes[at] = bytes[at].wrapping_add(random.random_range(0..3)).wrapping_sub(1);
            }
        }
    }
}

#[test]
fn thousands_of_damaged_files_are_read_or_refused() {
    let files: usize = std::env::var("QBTC_FUZZ_FILES")
        .map_or(FILES, |text| text.parse().expect("QBTC_FUZZ_FILES is a number"));
    let seed = std::env::var("QBTC_FUZZ_SEED")
        .map_or(1, |text| text.parse().expect("QBTC_FUZZ_SEED is a number"));
    let mut random = Pcg64Mcg::seed_from_u64(seed);
    let mut whole = vec![header(), header(), header()];
    whole.extend(TensorKind::ALL.map(|kind| tiny("llama", kind)));
    whole.push(tiny("qwen2", TensorKind::Q8_0));
    let whole: Vec<(Vec<u8>, usize)> = whole
        .into_iter()
        .map(|bytes| (structure_len(&bytes), bytes))
        .map(|(n, b)| (b, n))
        .collect();
    let mut taken = 0;
    for index in 0..files {
        let (bytes, structure) = &whole[index % whole.len()];
        let mut bytes = bytes.clone();
        damage(&mut bytes, *structure, &mut random);
        taken += usize::from(read_all(bytes));
    }
    // Damage to a name or a weight leaves a file; damage to the structure does not.
    assert!(taken > files / 100 && taken < files * 9 / 10, "{taken} of {files} were taken");
}

#[test]
fn undamaged_files_are_taken() {
    assert!(read_all(header()));
    for kind in TensorKind::ALL {
        assert!(read_all(tiny("llama", kind)), "{}", kind.name());
        assert!(read_all(tiny("qwen2", kind)), "{}", kind.name());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn bytes_that_are_no_file_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(!read_all(bytes));
    }

    #[test]
    fn random_structure_behind_a_good_beginning_is_read_or_refused(
        tail in proptest::collection::vec(prop_oneof![Just(0_u8), 0..16_u8, any::<u8>()], 0..256),
        keep in 8..200_usize,
    ) {
        let mut bytes = header();
        bytes.truncate(keep);
        bytes.extend(tail);
        read_all(bytes);
    }

    #[test]
    fn a_shorter_file_is_refused(cut in any::<Index>()) {
        let mut bytes = tiny("llama", TensorKind::Q4_1);
        bytes.truncate(cut.index(bytes.len()));
        // Its last tensor has 256 bytes and needs no padding.
        prop_assert!(!read_all(bytes));
    }

    #[test]
    fn two_files_spliced_are_read_or_refused(from in any::<Index>(), to in any::<Index>()) {
        let (first, second) = (header(), tiny("qwen2", TensorKind::Q4_0));
        let mut bytes = first[..from.index(first.len())].to_vec();
        bytes.extend(&second[to.index(second.len())..]);
        read_all(bytes);
    }
}
