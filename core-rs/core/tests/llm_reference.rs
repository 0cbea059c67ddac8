//! The slow model on a real file. `QBTC_TEST_MODEL` names `SmolLM2`'s GGUF; without it the tests
//! say so and pass.

use std::path::PathBuf;

use qbtc_core::llm::gguf::Gguf;
use qbtc_core::llm::reference::Reference;
use qbtc_core::llm::tokenizer::{SpecialTokens, Tokenizer};

fn model() -> Option<Gguf> {
    let Some(path) = std::env::var_os("QBTC_TEST_MODEL") else {
        eprintln!("skipped: QBTC_TEST_MODEL names no model");
        return None;
    };
    Some(Gguf::open(&PathBuf::from(path)).unwrap())
}

#[test]
fn a_real_model_answers_a_chat() {
    let Some(file) = model() else { return };
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    let prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n\
                  <|im_start|>assistant\n";
    let prompt = tokenizer.encode(prompt, SpecialTokens::Parse).unwrap();
    let answer = Reference::new(&file, 2).unwrap().greedy(&prompt, 8).unwrap();
    let answer = String::from_utf8(tokenizer.decode(&answer, true)).unwrap();
    assert!(answer.starts_with("The capital of France is Paris.<|im_end|>"), "{answer}");
}
