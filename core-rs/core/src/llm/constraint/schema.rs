//! Schemas as llguidance is given them: what a small model would lose itself in is narrowed, and
//! what llguidance reads too widely is made exact. Every text of the narrowed schema fits the one
//! that was asked for.
//!
//! - White space is one space after `:` and `,`, and nothing else.
//! - Numbers lie within ±[`NUMBER_MAX`] and have no exponent, unless the schema sets bounds.
//! - An object with `properties` has no others, unless the schema says what they are.
//! - Dates have 28 days in February; addresses and names are short.
//! - The options of `oneOf` may be references, as long as no text fits two of them.
//!
//! The second and third hold where a schema combines no others (`allOf`, or `anyOf`, `oneOf`, `$ref`
//! beside other keywords): there, narrowing one part could contradict another.
//!
//! Supported: `type`, `enum`, `const`, `anyOf`, `oneOf` (exclusive options), `allOf`, `$ref` within the
//! schema, `properties`, `required`, `additionalProperties`, `patternProperties`, `minProperties` and
//! `maxProperties` (if all properties are required), `items`, `prefixItems`, `minItems`, `maxItems`,
//! `minLength`, `maxLength`, `pattern`, `format`, `minimum`, `maximum`, `exclusiveMinimum`,
//! `exclusiveMaximum`, `multipleOf`. Another keyword that would restrict (`not`, `if`, `uniqueItems`,
//! `contains`, `dependentRequired`, `propertyNames`, …) and an unknown `format` are errors, unless the
//! schema itself says `"x-guidance": {"lenient": true}`: then they are not enforced. Likewise
//! `"coerce_one_of": true` takes any `oneOf` as `anyOf`.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::llm::constraint::CONSTRAINT_NESTING_MAX;
use crate::{Error, Result};

/// Largest number, if the schema sets no bound.
pub const NUMBER_MAX: i64 = 1_000_000_000_000_000;

/// Most levels of nesting that the references of a schema may add up to.
pub const REFERENCES_DEPTH_MAX: usize = 6_000;

/// Most values that are put in the place of references.
const FOLLOWED_VALUES_MAX: usize = 50_000;

/// Any JSON, by name, so that it can contain itself.
const ANY: &str = "qbtc-any";

/// Keywords that restrict nothing.
const ANNOTATIONS: [&str; 14] = [
    "title",
    "description",
    "default",
    "examples",
    "$comment",
    "readOnly",
    "writeOnly",
    "deprecated",
    "$schema",
    "$defs",
    "definitions",
    "contentMediaType",
    "contentEncoding",
    "nullable",
];

/// Keywords whose value is a schema, a list of schemas, or schemas by name.
const ONE: [&str; 3] = ["additionalProperties", "items", "additionalItems"];
const LIST: [&str; 4] = ["anyOf", "oneOf", "allOf", "prefixItems"];
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];

/// The schema to compile in place of `schema`.
///
/// # Errors
/// [`Error::Input`] if its references may nest deeper than [`REFERENCES_DEPTH_MAX`].
pub fn narrowed(mut schema: Value) -> Result<Value> {
    let asked = schema.get("x-guidance").cloned().unwrap_or_default();
    let definitions = schema.clone();
    Follower { root: &definitions, within: Vec::new(), left: FOLLOWED_VALUES_MAX }
        .follow(&mut schema, 0);
    let plain = is_plain(&schema, true);
    narrow(&mut schema, plain);
    if let Value::Object(root) = &mut schema {
        if plain && let Value::Object(defs) = root.entry("$defs").or_insert_with(|| json!({})) {
            defs.insert(ANY.to_owned(), any());
        }
        let mut options =
            json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        for name in ["lenient", "coerce_one_of"] {
            options[name] = json!(asked.get(name).and_then(Value::as_bool).unwrap_or(false));
        }
        root.insert("x-guidance".to_owned(), options);
    }
    check_references(&schema)?;
    Ok(schema)
}

fn any() -> Value {
    json!({"anyOf": [
        {"type": "null"},
        {"type": "boolean"},
        {"type": "number", "minimum": -NUMBER_MAX, "maximum": NUMBER_MAX},
        {"type": "string"},
        {"type": "array", "items": reference()},
        {"type": "object", "additionalProperties": reference()},
    ]})
}

fn reference() -> Value {
    json!({"$ref": format!("#/$defs/{ANY}")})
}

/// Call `visit` with each schema right below this one.
fn children(schema: &mut Map<String, Value>, mut visit: impl FnMut(&mut Value)) {
    for (name, value) in schema.iter_mut() {
        let name = name.as_str();
        if ONE.contains(&name) && !value.is_array() {
            visit(value);
        } else if LIST.contains(&name) || name == "items" {
            value.as_array_mut().into_iter().flatten().for_each(&mut visit);
        } else if NAMED.contains(&name) {
            value.as_object_mut().into_iter().flat_map(Map::values_mut).for_each(&mut visit);
        }
    }
}

/// Puts the schemas that options of `oneOf` refer to in their place: only so are they compared.
struct Follower<'a> {
    root: &'a Value,
    /// References that are being followed: a schema may contain itself.
    within: Vec<String>,
    /// How many values may still be put in.
    left: usize,
}

impl Follower<'_> {
    fn follow(&mut self, schema: &mut Value, depth: usize) {
        let Value::Object(fields) = schema else { return };
        let mut options = fields.get_mut("oneOf").map(Value::take);
        let mut recursive = false;
        for option in options.iter_mut().filter_map(Value::as_array_mut).flatten() {
            match reference_of(option).map(str::to_owned) {
                Some(target) if self.within.contains(&target) => recursive = true,
                Some(target) if self.put(option, &target, depth + 2) => {
                    self.within.push(target);
                    self.follow(option, depth + 2);
                    self.within.pop();
                }
                _ => self.follow(option, depth + 2),
            }
        }
        children(fields, |child| self.follow(child, depth + 2));
        let Some(options) = options else { return };
        if recursive && !fields.contains_key("anyOf") {
            // The schema referred to has the same options, and there they are compared.
            fields.remove("oneOf");
            fields.insert("anyOf".to_owned(), options);
        } else if let Some(place) = fields.get_mut("oneOf") {
            *place = options;
        }
    }

    /// Put what `target` names in the place of `option`, if that stays small.
    fn put(&mut self, option: &mut Value, target: &str, depth: usize) -> bool {
        if self.left == 0 {
            return false;
        }
        let Some(schema) = self.root.pointer(target) else { return false };
        let (values, deep) = extent(schema);
        if depth + deep > CONSTRAINT_NESTING_MAX {
            return false;
        }
        self.left = self.left.saturating_sub(values);
        if self.left == 0 {
            return false;
        }
        *option = schema.clone();
        true
    }
}

/// What a schema refers to, as a JSON pointer.
fn reference_of(schema: &Value) -> Option<&str> {
    schema.get("$ref")?.as_str()?.strip_prefix('#')
}

/// Number of values in a value, itself included, and how deep they are nested.
fn extent(value: &Value) -> (usize, usize) {
    let join = |(values, deep): (usize, usize), part| {
        let (more, deeper) = extent(part);
        (values + more, deep.max(deeper + 1))
    };
    match value {
        Value::Array(parts) => parts.iter().fold((1, 1), join),
        Value::Object(parts) => parts.values().fold((1, 1), join),
        _ => (1, 0),
    }
}

/// Refuse a schema whose references may lead too deep for what compiles it, which follows them by
/// recursion: each schema referred to may lie below all others.
fn check_references(schema: &Value) -> Result<()> {
    let mut names = BTreeSet::new();
    let mut depth = extent(schema).1;
    let mut rest = vec![schema];
    while let Some(value) = rest.pop() {
        match value {
            Value::Array(parts) => rest.extend(parts),
            Value::Object(parts) => rest.extend(parts.values()),
            _ => continue,
        }
        if let Some(name) = value.get("$ref").and_then(Value::as_str)
            && names.insert(name)
        {
            let target = reference_of(value).and_then(|pointer| schema.pointer(pointer));
            depth += 1 + extent(target.unwrap_or(schema)).1;
        }
        if depth > REFERENCES_DEPTH_MAX {
            let reason = format!("its references may nest deeper than {REFERENCES_DEPTH_MAX}");
            return Err(Error::input("schema", reason));
        }
    }
    Ok(())
}

/// Does no schema combine others, so that each can be narrowed by itself?
fn is_plain(schema: &Value, root: bool) -> bool {
    let Value::Object(fields) = schema else { return true };
    let restricting = fields.keys().filter(|name| !ANNOTATIONS.contains(&name.as_str())).count();
    let combines = ["anyOf", "oneOf", "$ref"].iter().any(|name| fields.contains_key(*name));
    if fields.contains_key("allOf")
        || (combines && restricting > 1)
        || (!root && fields.contains_key("$id"))
    {
        return false;
    }
    let mut plain = true;
    children(&mut fields.clone(), |child| plain &= is_plain(child, false));
    plain
}

fn narrow(schema: &mut Value, plain: bool) {
    if schema == &Value::Bool(true) && plain {
        *schema = reference();
    }
    let Value::Object(fields) = schema else { return };
    fields.remove("x-guidance");
    children(fields, |child| narrow(child, plain));
    exact_format(fields);
    if ["enum", "const"].iter().any(|name| fields.contains_key(*name)) {
        return;
    }
    bound_numbers(fields);
    if !plain {
        return;
    }
    if fields.keys().all(|name| ANNOTATIONS.contains(&name.as_str()) || name == "$id") {
        fields.insert("$ref".to_owned(), json!(format!("#/$defs/{ANY}")));
    }
    if is(fields, "array")
        && !["items", "prefixItems"].iter().any(|name| fields.contains_key(*name))
    {
        fields.insert("items".to_owned(), reference());
    }
    if is(fields, "object") && !fields.contains_key("additionalProperties") {
        let closed = is_closed(fields);
        fields.insert(
            "additionalProperties".to_owned(),
            if closed { json!(false) } else { reference() },
        );
    }
}

fn is(fields: &Map<String, Value>, kind: &str) -> bool {
    match fields.get("type") {
        Some(Value::String(name)) => name == kind,
        Some(Value::Array(names)) => names.iter().any(|name| name == kind),
        _ => false,
    }
}

/// Are the named properties enough to meet the schema?
fn is_closed(fields: &Map<String, Value>) -> bool {
    let Some(properties) = fields.get("properties").and_then(Value::as_object) else {
        return false;
    };
    let named = |name: &Value| name.as_str().is_some_and(|name| properties.contains_key(name));
    !properties.is_empty()
        && fields
            .get("required")
            .and_then(Value::as_array)
            .is_none_or(|names| names.iter().all(named))
        && !["patternProperties", "minProperties", "maxProperties"]
            .iter()
            .any(|name| fields.contains_key(*name))
}

/// Bounds that a number must not touch, a little inside: digits enough round to the bound itself.
fn inside(fields: &mut Map<String, Value>) {
    const STEP: f64 = 1e-9;
    let number = |name: &str| fields.get(name).and_then(Value::as_f64);
    let step = |bound: f64| STEP * bound.abs().max(1.0);
    let least = number("exclusiveMinimum").map(|bound| bound + step(bound));
    let most = number("exclusiveMaximum").map(|bound| bound - step(bound));
    let (minimum, maximum) = (number("minimum"), number("maximum"));
    let low = least.into_iter().chain(minimum).reduce(f64::max);
    let high = most.into_iter().chain(maximum).reduce(f64::min);
    if low.zip(high).is_some_and(|(low, high)| low > high) {
        return;
    }
    for (found, value, exclusive, inclusive) in
        [(least, low, "exclusiveMinimum", "minimum"), (most, high, "exclusiveMaximum", "maximum")]
    {
        if found.is_some() {
            fields.remove(exclusive);
            fields.insert(inclusive.to_owned(), json!(value));
        }
    }
}

fn bound_numbers(fields: &mut Map<String, Value>) {
    if !is(fields, "number") && !is(fields, "integer") {
        return;
    }
    if is(fields, "number") {
        inside(fields);
    }
    let given =
        |names: [&str; 2]| names.iter().find_map(|name| fields.get(*name)).map(Value::as_f64);
    let least = given(["minimum", "exclusiveMinimum"]);
    let most = given(["maximum", "exclusiveMaximum"]);
    let limit = NUMBER_MAX as f64;
    if most.is_none() && least.flatten().unwrap_or(0.0) < limit {
        fields.insert("maximum".to_owned(), json!(NUMBER_MAX));
    }
    if least.is_none() && most.flatten().unwrap_or(0.0) > -limit {
        fields.insert("minimum".to_owned(), json!(-NUMBER_MAX));
    }
}

/// Formats that llguidance takes more widely than validators, as patterns.
fn exact_format(fields: &mut Map<String, Value>) {
    const DATE: &str = r"[12][0-9]{3}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)";
    const TIME: &str = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
    const LABEL: &str = "[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?";
    if fields.contains_key("pattern") {
        return;
    }
    let pattern = match fields.get("format").and_then(Value::as_str) {
        Some("date") => DATE.to_owned(),
        Some("time") => TIME.to_owned(),
        Some("date-time") => format!("{DATE}T{TIME}"),
        Some("duration") => "P(?:[1-9][0-9]{0,3}[DWMY]|T[1-9][0-9]{0,3}[HMS])".to_owned(),
        Some("hostname") => format!(r"{LABEL}(?:\.{LABEL}){{0,4}}"),
        Some("email") => format!(
            r"[a-zA-Z0-9_+-]{{1,30}}(?:\.[a-zA-Z0-9_+-]{{1,30}})?@{LABEL}(?:\.{LABEL}){{0,3}}\.[a-z]{{2,8}}"
        ),
        _ => return,
    };
    fields.remove("format");
    fields.insert("pattern".to_owned(), json!(format!("^(?:{pattern})$")));
}

/// A grammar with the schemas behind each `%json` narrowed.
///
/// # Errors
/// As [`narrowed`].
pub fn narrowed_in_grammar(grammar: &str) -> Result<String> {
    const MARK: &str = "%json";
    let mut out = String::with_capacity(grammar.len() + 256);
    let mut rest = grammar;
    while let Some(at) = rest.find(MARK) {
        let (before, after) = rest.split_at(at + MARK.len());
        out.push_str(before);
        let mut values = serde_json::Deserializer::from_str(after).into_iter::<Value>();
        rest = match values.next() {
            Some(Ok(schema)) if schema.is_object() => {
                out.push(' ');
                out.push_str(&narrowed(schema)?.to_string());
                &after[values.byte_offset()..]
            }
            _ => after,
        };
    }
    out.push_str(rest);
    Ok(out)
}
