//! The tokenizer with the vocabularies of real models.
//!
//! `QBTC_TEST_MODEL` names the shipped model file. `QBTC_TEST_VOCABULARIES`, if set, names llama.cpp's
//! `models` folder, whose vocabularies are too large for this repository.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use qbtc_core::llm::gguf::Gguf;
use qbtc_core::llm::tokenizer::{SpecialTokens, Tokenizer, Vocabulary};
use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior, TokenizerBuilder};

/// Characters that the shipped vocabulary has no tokens for.
const LACKING: [char; 6] = ['\u{4}', '\u{6}', '\u{13}', '\u{14}', '\u{16}', '\u{1d}'];

fn shipped() -> Option<Vocabulary> {
    let Some(path) = env::var_os("QBTC_TEST_MODEL") else {
        eprintln!("skipped: QBTC_TEST_MODEL is not set");
        return None;
    };
    Some(Vocabulary::from_gguf(&Gguf::open(Path::new(&path)).unwrap()).unwrap())
}

/// Rust, Python and prose of this repository, and a few thousand characters of everything else.
fn corpus() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut folders: Vec<PathBuf> =
        ["core-rs/core/src", "core-rs/core/tests", "python/qbtc"].map(|f| root.join(f)).to_vec();
    let mut text = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs" || e == "py" || e == "json") {
                text.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    for start in [0x20, 0xA0, 0x300, 0x370, 0x400, 0x600, 0x900, 0x3040, 0x4E00, 0xAC00, 0x1F300] {
        text.extend(
            (start..start + 0x100).filter_map(char::from_u32).flat_map(|c| [c, 'a', c, c, ' ']),
        );
    }
    text.retain(|c| !LACKING.contains(&c));
    text
}

fn golden(tokenizer: &Tokenizer, name: &str) {
    let golden: Value = serde_json::from_str(include_str!("tokenizer_files/tokens.json")).unwrap();
    for (kind, special) in [("as_text", SpecialTokens::AsText), ("parse", SpecialTokens::Parse)] {
        let expected = golden[name][kind].as_array().unwrap();
        let texts = golden["texts"].as_array().unwrap();
        assert_eq!(texts.len(), expected.len());
        for (text, expected) in texts.iter().zip(expected) {
            let tokens = tokenizer.encode(text.as_str().unwrap(), special).unwrap();
            assert_eq!(&serde_json::to_value(tokens).unwrap(), expected, "{name} {kind} {text}");
        }
    }
}

#[test]
fn tokens_of_the_shipped_model_are_those_of_llama_cpp() {
    if let Some(vocabulary) = shipped() {
        golden(&Tokenizer::new(&vocabulary).unwrap(), "smollm");
    }
}

#[test]
fn tokens_of_other_vocabularies_are_those_of_llama_cpp() {
    let Some(folder) = env::var_os("QBTC_TEST_VOCABULARIES") else {
        eprintln!("skipped: QBTC_TEST_VOCABULARIES is not set");
        return;
    };
    for name in ["qwen2", "llama-bpe", "gpt-2", "llama-spm"] {
        let path = Path::new(&folder).join(format!("ggml-vocab-{name}.gguf"));
        golden(&Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap(), name);
    }
}

#[test]
fn tokens_of_a_large_corpus_are_those_of_the_crates_whole_pipeline_and_come_back() {
    let Some(mut vocabulary) = shipped() else { return };
    let corpus = corpus();
    let split = |pattern: &str| {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        PreTokenizerWrapper::from(
            Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap(),
        )
    };
    let gpt2 = || PreTokenizerWrapper::from(ByteLevel::new(false, false, true));
    let bytes = || PreTokenizerWrapper::from(ByteLevel::new(false, false, false));
    let llama = |digits: &str| {
        split(&format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ))
    };
    for (pre, stages) in [
        ("smollm", vec![PreTokenizerWrapper::from(Digits::new(true)), gpt2()]),
        ("gpt-2", vec![gpt2()]),
        ("qwen2", vec![llama(""), bytes()]),
        ("llama-bpe", vec![llama("{1,3}"), bytes()]),
    ] {
        pre.clone_into(&mut vocabulary.pre);
        let tokenizer = Tokenizer::new(&vocabulary).unwrap();
        let ids = vocabulary.tokens.iter().cloned().zip(0u32..).collect::<ahash::AHashMap<_, _>>();
        let pair = |merge: &String| {
            let (left, right) = merge.split_once(' ').unwrap();
            (left.to_owned(), right.to_owned())
        };
        let merges = vocabulary.merges.iter().map(pair).collect();
        let model = BPE::builder()
            .vocab_and_merges(ids, merges)
            .ignore_merges(pre == "llama-bpe")
            .build()
            .unwrap();
        let oracle = TokenizerBuilder::<
            _,
            tokenizers::NormalizerWrapper,
            _,
            tokenizers::PostProcessorWrapper,
            tokenizers::DecoderWrapper,
        >::default()
        .with_model(model)
        .with_pre_tokenizer(Some(Sequence::new(stages)))
        .build()
        .unwrap();
        let tokens = tokenizer.encode(&corpus, SpecialTokens::AsText).unwrap();
        let expected = oracle.encode_fast(corpus.as_str(), false).unwrap();
        assert!(tokens == expected.get_ids(), "{pre}: tokens differ");
        assert!(
            tokenizer.decode(&tokens, false) == corpus.as_bytes(),
            "{pre}: the text does not come back"
        );
    }
}

#[test]
fn any_text_comes_back_but_for_what_the_vocabulary_lacks() {
    let Some(vocabulary) = shipped() else { return };
    let tokenizer = Tokenizer::new(&vocabulary).unwrap();
    proptest!(ProptestConfig::with_cases(2000), |(mut text in any::<String>(), special in any::<bool>())| {
        // Planes 1 to 3 of Unicode and the tags are there; the private ones begin with bytes that are not.
        text.retain(|c| !LACKING.contains(&c) && (c as u32) < 0x4_0000);
        let special = if special { SpecialTokens::Parse } else { SpecialTokens::AsText };
        let tokens = tokenizer.encode(&text, special).unwrap();
        prop_assert_eq!(tokenizer.decode(&tokens, true), text.as_bytes());
    });
}

#[test]
fn bytes_of_a_broken_answer_are_handed_out_as_they_are() {
    let Some(vocabulary) = shipped() else { return };
    let tokenizer = Tokenizer::new(&vocabulary).unwrap();
    let tokens = tokenizer.encode("🏴‍☠️ñ", SpecialTokens::AsText).unwrap();
    for cut in 0..tokens.len() {
        let bytes = tokenizer.decode(&tokens[..cut], false);
        assert!("🏴‍☠️ñ".as_bytes().starts_with(&bytes));
    }
}
