//! Chat templates against the prompts that Python's Jinja makes, set up as `transformers` does.
//!
//! `QBTC_TEST_MODEL` names the shipped model file. `QBTC_TEST_VOCABULARIES`, if set, names llama.cpp's
//! `models` folder, where the templates of other models are.

use std::env;
use std::fs;
use std::path::Path;

use qbtc_core::llm::gguf::Gguf;
use qbtc_core::llm::template::ChatTemplate;
use qbtc_core::llm::tokenizer::Tokenizer;
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("template_files/prompts.json")).unwrap()
}

fn shipped() -> Option<(Gguf, Tokenizer)> {
    let Some(path) = env::var_os("QBTC_TEST_MODEL") else {
        eprintln!("skipped: QBTC_TEST_MODEL is not set");
        return None;
    };
    let file = Gguf::open(Path::new(&path)).unwrap();
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    Some((file, tokenizer))
}

fn agree(golden: &Value, name: &str, template: &ChatTemplate) {
    let now = golden["now_unix_s"].as_i64().unwrap();
    let cases = golden["cases"].as_array().unwrap();
    let prompts = golden["prompts"][name].as_array().unwrap();
    assert_eq!(cases.len(), prompts.len());
    for (case, expected) in cases.iter().zip(prompts) {
        let generate = case["add_generation_prompt"].as_bool().unwrap();
        let prompt = template.render(&case["messages"], case.get("tools"), generate, now);
        match expected.get("prompt") {
            Some(expected) => assert_eq!(prompt.unwrap(), expected.as_str().unwrap(), "{name}"),
            None => assert!(prompt.is_err(), "{name}: {prompt:?}"),
        }
    }
}

#[test]
fn prompts_of_the_shipped_model_are_those_of_hugging_face() {
    let Some((file, tokenizer)) = shipped() else { return };
    let template = ChatTemplate::from_gguf(&file, &tokenizer).unwrap();
    assert!(!template.reads_tools());
    agree(&golden(), "shipped", &template);
}

#[test]
fn prompts_of_templates_full_of_python_are_those_of_hugging_face() {
    let Some((_, tokenizer)) = shipped() else { return };
    let golden = golden();
    for (name, source) in golden["own"].as_object().unwrap() {
        let template = ChatTemplate::new(source.as_str(), None, &tokenizer).unwrap();
        assert_eq!(template.reads_tools(), name == "pretty");
        agree(&golden, name, &template);
    }
}

#[test]
fn prompts_of_other_models_are_those_of_hugging_face() {
    let Some((_, tokenizer)) = shipped() else { return };
    let Some(folder) = env::var_os("QBTC_TEST_VOCABULARIES") else {
        eprintln!("skipped: QBTC_TEST_VOCABULARIES is not set");
        return;
    };
    let golden = golden();
    for name in golden["others"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        let path = Path::new(&folder).join("templates").join(format!("{name}.jinja"));
        let source = fs::read_to_string(path).unwrap();
        let template = ChatTemplate::new(Some(&source), None, &tokenizer).unwrap();
        assert_eq!(template.reads_tools(), name != "microsoft-Phi-3.5-mini-instruct", "{name}");
        agree(&golden, name, &template);
    }
}
