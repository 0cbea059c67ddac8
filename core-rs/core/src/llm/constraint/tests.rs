use std::path::Path;

use super::*;
use crate::llm::gguf::Gguf;
use crate::llm::tokenizer::{SpecialTokens, Vocabulary};

/// The call of the recipes, with two tools.
const CALL: &str = r#"
call: "<tool_call>\n" body "\n</tool_call>"
body: %json {"type":"object","properties":{"name":{"const":"get_weather"},"arguments":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"],"additionalProperties":false}},"required":["name","arguments"],"additionalProperties":false}
    | %json {"type":"object","properties":{"name":{"const":"get_time"},"arguments":{"type":"object","properties":{},"additionalProperties":false}},"required":["name","arguments"],"additionalProperties":false}
"#;
const AUTO: &str = r#"
start: text | before_call body "\n</tool_call>"
before_call[lazy]: /(.|\n)*<tool_call>\n/
text: TEXT
TEXT: /(.|\n)*/ & ~/(.|\n)*<tool_call>(.|\n)*/
"#;
const WEATHER: &str =
    "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
const TIME: &str = "<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>";

fn bytes() -> ConstraintFactory {
    ConstraintFactory::with(&ApproximateTokEnv::single_byte_env()).unwrap()
}

fn shipped() -> Option<(ConstraintFactory, Arc<Tokenizer>)> {
    let Some(path) = std::env::var_os("QBTC_TEST_MODEL") else {
        eprintln!("skipped: QBTC_TEST_MODEL is not set");
        return None;
    };
    let tokenizer = Arc::new(Tokenizer::from_gguf(&Gguf::open(Path::new(&path)).unwrap()).unwrap());
    Some((ConstraintFactory::new(&tokenizer).unwrap(), tokenizer))
}

#[test]
fn tokens_that_are_too_long_for_a_trie_are_not_taken_under_a_grammar() {
    let mut tokens: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut kinds = vec![TokenKind::Byte; tokens.len()];
    tokens.push("</s>".to_owned());
    kinds.push(TokenKind::Control);
    tokens.extend([900, 1500].map(|length| "a".repeat(length)));
    kinds.resize(tokens.len(), TokenKind::Normal);
    let vocabulary = Vocabulary {
        model: "llama".to_owned(),
        scores: vec![0.0; tokens.len()],
        tokens,
        kinds,
        eos: Some(256),
        ..Vocabulary::default()
    };
    let factory = ConstraintFactory::new(&Arc::new(Tokenizer::new(&vocabulary).unwrap())).unwrap();
    let mut matcher = factory.compile(&Constraint::Lark("start: /a+/".to_owned())).unwrap();
    let mask = matcher.mask().unwrap();
    assert!(allowed(mask, 257) && !allowed(mask, 258));
}

fn allowed(mask: &[u32], token: TokenId) -> bool {
    mask[token as usize / 32] >> (token % 32) & 1 == 1
}

/// Feed tokens; how many were allowed, and whether the answer may end there.
fn feed(matcher: &mut Matcher, tokens: &[TokenId]) -> (usize, bool) {
    for (at, &token) in tokens.iter().enumerate() {
        if !allowed(matcher.mask().unwrap(), token) {
            return (at, false);
        }
        matcher.commit(token).unwrap();
    }
    (tokens.len(), matcher.may_end())
}

fn fits(factory: &ConstraintFactory, constraint: &Constraint, text: &str) -> bool {
    let tokens: Vec<TokenId> = text.bytes().map(TokenId::from).collect();
    feed(&mut factory.compile(constraint).unwrap(), &tokens) == (tokens.len(), true)
}

fn refusal(constraint: &Constraint) -> String {
    check(constraint).err().unwrap_or_else(|| panic!("accepted: {constraint:.200?}")).to_string()
}

fn json(schema: &str) -> Constraint {
    Constraint::JsonSchema(schema.to_owned())
}

fn lark(start: &str) -> Constraint {
    Constraint::Lark(format!("{start}{CALL}"))
}

#[test]
fn recipes_for_tool_calls_take_what_they_say() {
    let factory = bytes();
    let one = lark("start: call");
    assert!(fits(&factory, &one, WEATHER) && fits(&factory, &one, TIME));
    assert!(!fits(&factory, &one, "text") && !fits(&factory, &one, &format!("{TIME}\n{TIME}")));

    let many = lark("start: call (\"\\n\" call)*");
    assert!(fits(&factory, &many, &format!("{TIME}\n{WEATHER}\n{TIME}")));
    assert!(!fits(&factory, &many, "") && !fits(&factory, &many, &format!("{TIME}\n")));

    let auto = lark(AUTO);
    for text in ["", "no call", "a < b && c > d\n\n<tool_", "<b>bold</b>", "ñ 😀"] {
        assert!(fits(&factory, &auto, text), "{text:?}");
    }
    assert!(fits(&factory, &auto, WEATHER));
    assert!(fits(&factory, &auto, &format!("I will look.\n<tool{WEATHER}")));
    assert!(!fits(&factory, &auto, "<tool_call>\n"));
    assert!(!fits(&factory, &auto, "<tool_call>\n{\"name\": \"unknown\""));
    assert!(!fits(&factory, &auto, &format!("{TIME}\n{TIME}")));

    let auto_many = lark(&AUTO.replacen("</tool_call>\"", "</tool_call>\" (\"\\n\" call)*", 1));
    assert!(fits(&factory, &auto_many, &format!("Both.\n{TIME}\n{WEATHER}")));
    assert!(
        fits(&factory, &auto_many, "none") && !fits(&factory, &auto_many, &format!("{TIME} and"))
    );
}

#[test]
fn recipes_work_on_the_tokens_of_the_shipped_model() {
    let Some((factory, tokenizer)) = shipped() else { return };
    let auto = factory.compile(&lark(AUTO)).unwrap();
    for text in ["Hello there, <b>no call</b> <tool_".to_owned(), format!("Sure:\n{WEATHER}")] {
        let tokens = tokenizer.encode(&text, SpecialTokens::AsText).unwrap();
        assert_eq!(feed(&mut auto.clone(), &tokens), (tokens.len(), true), "{text:?}");
    }
    let call = lark("start: call");
    let mut matcher = factory.compile(&call).unwrap();
    let mut answer = Vec::new();
    // Whatever is not forced is chosen badly: the longest allowed token.
    while !matcher.is_complete() && answer.len() < 400 {
        let mut next = matcher.forced();
        if next.is_empty() {
            let mask = matcher.mask().unwrap();
            let tokens = (0..tokenizer.vocab() as TokenId).filter(|&t| allowed(mask, t));
            next = tokens
                .max_by_key(|&t| (tokenizer.bytes(t).contains(&b'"'), tokenizer.bytes(t).len()))
                .into_iter()
                .collect();
        }
        for &token in &next {
            matcher.commit(token).unwrap();
        }
        answer.extend(next);
    }
    let text = String::from_utf8(tokenizer.decode(&answer, false)).unwrap();
    assert!(matcher.is_complete() && text.ends_with("\n</tool_call>"), "{text}");
}

#[test]
fn the_end_is_allowed_only_where_the_grammar_may_end() {
    let Some((factory, tokenizer)) = shipped() else { return };
    let mut matcher = factory.compile(&Constraint::JsonObject).unwrap();
    let ends = |matcher: &mut Matcher| {
        let mask = matcher.mask().unwrap();
        let open = tokenizer.end_tokens().iter().filter(|&&t| allowed(mask, t)).count();
        let controls = (0..tokenizer.vocab() as TokenId)
            .filter(|&t| tokenizer.is_control(t) && allowed(mask, t));
        assert_eq!(controls.count(), open, "a control token that ends nothing is never allowed");
        open
    };
    for token in tokenizer.encode("{\"a\": [1, 2]", SpecialTokens::AsText).unwrap() {
        assert_eq!(ends(&mut matcher), 0);
        matcher.commit(token).unwrap();
    }
    let close = tokenizer.encode("}", SpecialTokens::AsText).unwrap();
    matcher.commit(close[0]).unwrap();
    assert!(matcher.may_end() && matcher.is_complete());
    assert_eq!(ends(&mut matcher), tokenizer.end_tokens().len());
}

#[test]
fn a_matcher_goes_back_and_its_clone_goes_its_own_way() {
    let factory = bytes();
    let mut matcher = factory.compile(&json(r#"{"enum":["ab","ac"]}"#)).unwrap();
    assert_eq!(feed(&mut matcher, &[b'"'.into(), b'a'.into(), b'b'.into()]).0, 3);
    let mut clone = matcher.clone();
    matcher.rollback(1).unwrap();
    assert_eq!(matcher.accepts(&[b'c'.into(), b'"'.into()]).unwrap(), 2);
    assert_eq!(feed(&mut matcher, &[b'c'.into(), b'"'.into()]), (2, true));
    assert_eq!(feed(&mut clone, &[b'c'.into()]).0, 0);
    assert_eq!(feed(&mut clone, &[b'"'.into()]), (1, true));
    assert!(matcher.rollback(100).is_err());
}

#[test]
fn bad_constraints_are_refused_with_a_reason_and_never_hang() {
    let deep = format!("{}{}", "{\"items\":".repeat(200), "{}".to_owned() + &"}".repeat(200));
    let wide = format!("{{\"enum\":[{}]}}", vec!["\"abcdefgh\""; 40_000].join(","));
    let blown = format!(
        "{{\"allOf\":[{}]}}",
        vec![r#"{"anyOf":[{"minLength":1},{"minLength":2},{"minLength":3},{"type":"array"},{"type":"object"}]}"#; 20].join(",")
    );
    for (schema, reason) in [
        ("{", "not JSON"),
        ("[]", "an object or a boolean"),
        (r#"{"type":"strong"}"#, "strong"),
        (r#"{"type":"string","minLength":5,"maxLength":2}"#, "minLength"),
        (r#"{"type":"integer","minimum":5,"maximum":2}"#, "nsatisfiable"),
        (r#"{"allOf":[{"type":"string"},{"type":"integer"}]}"#, "nsatisfiable"),
        (r#"{"not":{"type":"string"}}"#, "not"),
        (r#"{"type":"array","uniqueItems":true}"#, "uniqueItems"),
        (r#"{"type":"string","format":"iban"}"#, "iban"),
        (r#"{"type":"string","pattern":"(a"}"#, ""),
        (r##"{"$ref":"#/$defs/a"}"##, ""),
        (r##"{"$ref":"#"}"##, "only refer to itself"),
        (r#"{"$ref":"https://example.org/schema.json"}"#, ""),
        (deep.as_str(), "nested"),
        (wide.as_str(), "bytes"),
        (blown.as_str(), ""),
    ] {
        let message = refusal(&json(schema));
        assert!(message.contains(reason), "{schema:.80}: {message}");
        assert!(message.len() < 700, "{message}");
    }
    for (grammar, reason) in [
        ("", ""),
        ("start: missing", "missing"),
        ("start: \"a", ""),
        ("start: /(/", ""),
        ("begin: \"a\"", "start"),
        ("start: %json {\"type\":\"strong\"}", "strong"),
    ] {
        let message = refusal(&Constraint::Lark(grammar.to_owned()));
        assert!(message.contains(reason), "{grammar}: {message}");
    }
    let message =
        refusal(&Constraint::Lark(format!("start: {}\"a\"{}", "(".repeat(5000), ")".repeat(5000))));
    assert!(message.contains("nested"), "{message}");
}

#[test]
fn recursive_schemas_with_an_end_are_taken() {
    let tree = json(
        r##"{"$defs":{"node":{"type":"object","properties":{"value":{"type":"integer"},"next":{"anyOf":[{"$ref":"#/$defs/node"},{"type":"null"}]}},"required":["value","next"],"additionalProperties":false}},"$ref":"#/$defs/node"}"##,
    );
    let factory = bytes();
    assert!(fits(&factory, &tree, r#"{"value": 1, "next": {"value": -2, "next": null}}"#));
    assert!(!fits(&factory, &tree, r#"{"value": 1}"#));
}

/// Go on at random from a seed until the answer ends or the tokens run out.
fn babble(
    factory: &ConstraintFactory,
    constraint: &Constraint,
    tokens: usize,
    seed: u64,
) -> (String, bool) {
    let mut matcher = factory.compile(constraint).unwrap();
    matcher.limit(tokens);
    let (mut text, mut state) = (Vec::new(), seed);
    for _ in 0..tokens {
        if matcher.is_complete() {
            break;
        }
        let mask = matcher.mask().unwrap();
        let open: Vec<TokenId> = (0..256).filter(|&byte| allowed(mask, byte)).collect();
        if open.is_empty() {
            break;
        }
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let token = open[(state >> 33) as usize % open.len()];
        matcher.commit(token).unwrap();
        text.push(token as u8);
    }
    (String::from_utf8_lossy(&text).into_owned(), matcher.may_end())
}

#[test]
fn an_answer_that_runs_out_of_tokens_still_ends_as_it_must() {
    let factory = bytes();
    for schema in [
        r#"{"type":"object"}"#,
        r#"{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"array","items":{"type":"number"}}},"required":["a","b"]}"#,
        r#"{"type":"array","items":{"type":"object","properties":{"name":{"type":"string","minLength":3},"kind":{"enum":["one","two"]}},"required":["name","kind"]},"minItems":2}"#,
        r##"{"$defs":{"n":{"type":"object","properties":{"v":{"type":"string"},"next":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},"required":["v","next"]}},"$ref":"#/$defs/n"}"##,
        r#"{"type":"string","format":"date-time"}"#,
        r#"{"type":"number"}"#,
        r#"{"type":"number","exclusiveMinimum":0,"exclusiveMaximum":10}"#,
        r#"{"type":"integer","multipleOf":5,"minimum":1,"maximum":1000}"#,
        r#"{"type":"array","items":{"type":"string","pattern":"[0-9]"},"minItems":2,"maxItems":4}"#,
        r#"{"type":"array","items":{"type":"string","pattern":"^[A-Z]{3}-x$"},"minItems":2}"#,
        r#"{"type":"object","properties":{"u":{"type":"string","format":"uri"},"e":{"type":"string","format":"email"}},"required":["u","e"]}"#,
    ] {
        for seed in 0..20 {
            let (text, ended) = babble(&factory, &json(schema), 160, seed);
            assert!(
                ended && serde_json::from_str::<serde_json::Value>(&text).is_ok(),
                "{schema} {text}"
            );
        }
    }
    for seed in 0..20 {
        let (text, ended) = babble(&factory, &lark("start: call (\"\\n\" call)*"), 400, seed);
        assert!(ended && text.ends_with("</tool_call>"), "{text}");
    }
}

#[test]
fn free_text_that_runs_out_of_tokens_is_cut_off_not_ended() {
    let auto = format!("{AUTO}{}", CALL.split_once('\n').unwrap().1);
    for grammar in ["start: /(.|\\n)*/".to_owned(), auto] {
        let mut matcher = bytes().compile(&Constraint::Lark(grammar)).unwrap();
        matcher.limit(40);
        for _ in 0..40 {
            assert!(allowed(matcher.mask().unwrap(), u32::from(b'x')));
            matcher.commit(u32::from(b'x')).unwrap();
        }
    }
}

#[test]
fn schemas_are_narrowed_to_what_a_small_model_can_keep() {
    let factory = bytes();
    let object = json(r#"{"type":"object","properties":{"a":{"type":"number"},"b":{}}}"#);
    assert!(fits(&factory, &object, r#"{"a": 1.5, "b": [null, {"x": -2}]}"#));
    for text in [
        r#"{"a":1.5}"#,
        r#"{ "a": 1.5}"#,
        "{\n}",
        r#"{"a": 1e999}"#,
        r#"{"a": 12345678901234567}"#,
        r#"{"c": 1}"#,
        r#"{"b": 1e5}"#,
    ] {
        assert!(!fits(&factory, &object, text), "{text}");
    }
    assert!(fits(
        &factory,
        &json(r#"{"type":"object","additionalProperties":{"type":"integer"}}"#),
        r#"{"any": 1}"#
    ));
    let open = json(r#"{"type":"number","exclusiveMinimum":10,"exclusiveMaximum":20}"#);
    assert!(fits(&factory, &open, "10.5") && fits(&factory, &open, "19.75"));
    for text in ["10", "20", "10.000000000000000000001", "19.999999999999999999999"] {
        assert!(!fits(&factory, &open, text), "{text}");
    }
    let date = json(r#"{"type":"string","format":"date"}"#);
    assert!(fits(&factory, &date, "\"2024-02-28\"") && !fits(&factory, &date, "\"2023-02-29\""));
    let union = json(
        r##"{"oneOf":[{"$ref":"#/$defs/cat"},{"$ref":"#/$defs/dog"}],"$defs":{"cat":{"type":"object","properties":{"kind":{"const":"cat"}},"required":["kind"]},"dog":{"type":"object","properties":{"kind":{"const":"dog"}},"required":["kind"]}}}"##,
    );
    assert!(fits(&factory, &union, r#"{"kind": "dog"}"#));
    let both = json(
        r#"{"allOf":[{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]},{"type":"object","properties":{"b":{"type":"integer"}},"required":["b"]}]}"#,
    );
    assert!(fits(&factory, &both, r#"{"a": 1, "b": 2}"#));
    let message = refusal(&json(r#"{"oneOf":[{"type":"integer"},{"type":"number"}]}"#));
    assert!(message.contains("anyOf"), "{message}");
    let lenient = r#"{"type":"array","items":{"oneOf":[{"type":"integer"},{"type":"number"}]},"uniqueItems":true,"x-guidance":{"lenient":true,"whitespace_flexible":true}}"#;
    assert!(fits(&factory, &json(lenient), "[1, 1]") && !fits(&factory, &json(lenient), "[ 1]"));
}

/// `$defs` 0, 1, … that each hold the next, by `link`, and a root that refers to the first.
fn chain(length: usize, link: impl Fn(&str) -> String) -> Constraint {
    let each =
        |at: usize| format!("\"{at}\":{},", link(&format!(r##"{{"$ref":"#/$defs/{}"}}"##, at + 1)));
    let defs: String = (0..length).map(each).collect();
    json(&format!(r##"{{"$defs":{{{defs}"{length}":{{"type":"null"}}}},"$ref":"#/$defs/0"}}"##))
}

#[test]
fn one_of_may_contain_itself() {
    let factory = bytes();
    let list = json(
        r##"{"$ref":"#/$defs/n","$defs":{"n":{"type":"object","properties":{"v":{"type":"integer"},"next":{"oneOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},"required":["v","next"]}}}"##,
    );
    let three = r#"{"v": 1, "next": {"v": 2, "next": {"v": 3, "next": null}}}"#;
    assert!(fits(&factory, &list, three));
    assert!(!fits(&factory, &list, r#"{"v": 1, "next": {"v": 2, "next": 3}}"#));
    let tree = json(
        r##"{"type":"object","properties":{"a":{"oneOf":[{"$ref":"#"},{"type":"null"}]}},"required":["a"]}"##,
    );
    assert!(fits(&factory, &tree, r#"{"a": {"a": {"a": null}}}"#));
    let overlapping = r##"{"type":"object","properties":{"a":{"oneOf":[{"$ref":"#"},{"type":"object"}]}},"required":["a"]}"##;
    assert!(refusal(&json(overlapping)).contains("anyOf"));
    refusal(&json(r##"{"oneOf":[{"$ref":"#"}]}"##));
}

#[test]
fn references_are_followed_without_end_or_explosion() {
    refusal(&chain(5_000, str::to_owned));
    refusal(&chain(3_000, |next| format!(r#"{{"anyOf":[{next},{{"type":"string"}}]}}"#)));
    // The deepest that are taken.
    check(&chain(2_900, str::to_owned)).unwrap();
    check(&chain(1_400, |next| format!(r#"{{"anyOf":[{next},{{"type":"string"}}]}}"#))).unwrap();
    check(&chain(1_400, |next| format!(r#"{{"allOf":[{next}]}}"#))).unwrap();
    check(&chain(1_400, |next| format!(r#"{{"type":"array","items":{next}}}"#))).unwrap();
    let object = |next: &str| format!(r#"{{"type":"object","properties":{{"a":{next}}}}}"#);
    check(&chain(1_400, object)).unwrap();
    // Twice as many with each step; what is left by reference cannot be compared.
    let twice = |next: &str| {
        format!(
            r#"{{"oneOf":[{{"type":"array","items":{{"oneOf":[{next},{{"type":"string"}}]}}}},{{"type":"object","properties":{{"a":{{"oneOf":[{next},{{"type":"string"}}]}}}},"required":["a"]}}]}}"#
        )
    };
    let begin = std::time::Instant::now();
    let _ = check(&chain(60, twice));
    assert!(begin.elapsed().as_secs() < 20);
}
