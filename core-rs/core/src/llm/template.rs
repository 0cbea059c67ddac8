//! From chat messages to a prompt: a model's own Jinja template, as Hugging Face runs it.
//!
//! A template is a program in a model file, and so from outside: it runs with bounded steps, memory
//! and depth, and reads nothing but its arguments.
//!
//! What people write cannot pass for structure: a control token that is spelled out in a message, a
//! tool, or a role is marked with [`SHIELD`], and [`super::tokenizer`] takes it as text.

use std::fmt::Write as _;

use aho_corasick::AhoCorasick;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, ErrorKind, Output, State, Value as Jinja, context};
use serde_json::Value;

use crate::llm::gguf::Gguf;
use crate::llm::tokenizer::{SHIELD, TokenKind, Tokenizer};
use crate::{Error, Result};

/// Longest template.
pub const TEMPLATE_BYTES_MAX: usize = 256 << 10;

/// Most steps of one rendering, each at most 64 bytes; longer messages add theirs.
pub const RENDER_STEPS_MAX: u64 = 2_000_000;

/// Deepest nesting of a rendering.
pub const RENDER_DEPTH_MAX: usize = 200;

/// Address space for the stack of a rendering; what is not touched takes no memory.
const RENDER_STACK_BYTES: usize = 512 << 20;

/// Widest indentation of JSON.
const INDENT_MAX: usize = 16;

const NAME: &str = "chat";
const NAME_WITH_TOOLS: &str = "tools";

/// What most models without a template were trained on.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The chat template of a model. Read-only; threads share it.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    reads_tools: bool,
    bos: String,
    eos: String,
    controls: Option<AhoCorasick>,
}

impl ChatTemplate {
    /// The template of a model file; `ChatML` if it has none but the tokens for it.
    ///
    /// # Errors
    /// [`Error::Model`] if the template is too long or not Jinja, or there is none to use.
    pub fn from_gguf(file: &Gguf, tokenizer: &Tokenizer) -> Result<Self> {
        let chat = file.optional_string("tokenizer.chat_template")?;
        let with_tools = file.optional_string("tokenizer.chat_template.tool_use")?;
        Self::new(chat, with_tools, tokenizer)
    }

    /// The template `chat`, and another one for requests with tools if the model has one.
    ///
    /// # Errors
    /// As [`ChatTemplate::from_gguf`].
    pub fn new(
        chat: Option<&str>,
        with_tools: Option<&str>,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let chat = match chat {
            Some(chat) => chat,
            None if tokenizer.control("<|im_start|>").is_some() => CHATML,
            None => {
                let reason = "the file has no chat template, nor the tokens of ChatML; use plain completions";
                return Err(Error::model("tokenizer.chat_template", reason));
            }
        };
        let mut environment = environment();
        for (name, source) in [(NAME, Some(chat)), (NAME_WITH_TOOLS, with_tools)] {
            let Some(source) = source else { continue };
            if source.len() > TEMPLATE_BYTES_MAX {
                let reason = format!("{} bytes; the most is {TEMPLATE_BYTES_MAX}", source.len());
                return Err(Error::model("tokenizer.chat_template", reason));
            }
            environment
                .add_template_owned(name, without_generation_marks(source))
                .map_err(|error| Error::model("tokenizer.chat_template", described(&error)))?;
        }
        let name = |token: Option<u32>| {
            token.map_or_else(String::new, |t| {
                String::from_utf8_lossy(tokenizer.bytes(t)).into_owned()
            })
        };
        let mut template = Self {
            environment,
            reads_tools: false,
            bos: name(tokenizer.beginning()),
            eos: name(tokenizer.eos()),
            controls: controls(tokenizer)?,
        };
        template.reads_tools = template.shows_a_tool();
        Ok(template)
    }

    /// Does the template tell the model about tools? If not, the caller has to.
    pub fn reads_tools(&self) -> bool {
        self.reads_tools
    }

    /// The prompt of these messages, to be encoded with [`super::tokenizer::SpecialTokens::Parse`].
    ///
    /// `messages` and `tools` are arrays as in an `OpenAI` request, with string contents.
    /// `add_generation_prompt` begins the answer. `now_unix_s` is what the template is told when it
    /// asks for the date (UTC).
    ///
    /// # Errors
    /// [`Error::Input`] if the template refuses the messages, or exceeds a limit.
    pub fn render(
        &self,
        messages: &Value,
        tools: Option<&Value>,
        add_generation_prompt: bool,
        now_unix_s: i64,
    ) -> Result<String> {
        let tools = tools.filter(|tools| tools.as_array().is_none_or(|tools| !tools.is_empty()));
        let mut messages = messages.clone();
        open_arguments(&mut messages);
        let mut tools = tools.cloned();
        let mut bytes = self.shield(&mut messages);
        bytes += tools.as_mut().map_or(0, |tools| self.shield(tools));

        let mut environment = self.environment.clone();
        // Each byte of the messages may be copied a few times.
        environment.set_fuel(Some(RENDER_STEPS_MAX + bytes as u64));
        let strftime = move |format: &str| strftime(format, now_unix_s);
        environment.add_function("strftime_now", strftime);
        let has_other = tools.is_some() && environment.get_template(NAME_WITH_TOOLS).is_ok();
        let name = if has_other { NAME_WITH_TOOLS } else { NAME };
        on_deep_stack(|| {
            let arguments = context! {
                messages => Jinja::from(Serde(&messages)),
                tools => tools.as_ref().map(|tools| Jinja::from(Serde(tools))),
                documents => (),
                add_generation_prompt,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
            };
            environment
                .get_template(name)
                .and_then(|template| template.render(arguments))
                .map_err(|error| Error::input("messages", described(&error)))
        })
    }

    /// Mark the control tokens that texts spell; the bytes of all texts.
    fn shield(&self, value: &mut Value) -> usize {
        match value {
            Value::String(text) => {
                if let Some(controls) = &self.controls
                    && controls.is_match(text.as_str())
                {
                    let mut marked = String::with_capacity(text.len() + 8);
                    controls.replace_all_with(text, &mut marked, |_, token, marked| {
                        let mut letters = token.chars();
                        marked.extend(letters.next());
                        marked.push(SHIELD);
                        marked.push_str(letters.as_str());
                        true
                    });
                    *text = marked;
                }
                text.len()
            }
            Value::Array(values) => values.iter_mut().map(|value| self.shield(value)).sum(),
            // Names too: those of a tool's parameters are the client's.
            Value::Object(fields) => std::mem::take(fields)
                .into_iter()
                .map(|(name, mut value)| {
                    let mut name = Value::String(name);
                    let bytes = self.shield(&mut name) + self.shield(&mut value);
                    if let Value::String(name) = name {
                        fields.insert(name, value);
                    }
                    bytes
                })
                .sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
    }

    fn shows_a_tool(&self) -> bool {
        let messages = serde_json::json!([{"role": "user", "content": "question"}]);
        let tools = serde_json::json!([{"type": "function", "function": {
            "name": "shown_tool", "description": "", "parameters": {"type": "object", "properties": {}}
        }}]);
        self.render(&messages, Some(&tools), true, 0)
            .is_ok_and(|prompt| prompt.contains("shown_tool"))
    }
}

/// Run where lists within lists, as deep as steps allow, can be freed: one frame a level.
fn on_deep_stack(render: impl FnOnce() -> Result<String> + Send) -> Result<String> {
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().stack_size(RENDER_STACK_BYTES).spawn_scoped(scope, render);
        let thread =
            thread.map_err(|source| Error::input("messages", format!("no thread: {source}")))?;
        thread.join().unwrap_or_else(|_| Err(Error::input("messages", "the chat template failed")))
    })
}

/// Jinja as Hugging Face sets it up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the usual delimiters"));
    environment.set_recursion_limit(RENDER_DEPTH_MAX);
    environment.set_unknown_method_callback(method);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_formatter(python_style);
    environment.add_filter("tojson", tojson);
    environment.add_function(
        "raise_exception",
        |message: String| -> std::result::Result<Jinja, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment
}

/// A method of Python's; what it may write is paid for before it runs.
fn method(
    state: &mut State,
    value: &Jinja,
    name: &str,
    arguments: &[Jinja],
) -> std::result::Result<Jinja, minijinja::Error> {
    let text = |at: usize| arguments.get(at).and_then(Jinja::as_str).map_or(0, str::len) as u64;
    let own = value.as_str().map_or(0, str::len) as u64;
    let bytes = match name {
        "replace" => (own / text(0).max(1) + 1).saturating_mul(text(1)),
        "join" => own.saturating_mul(arguments.first().and_then(Jinja::len).unwrap_or(0) as u64),
        // A width.
        _ => arguments.first().and_then(Jinja::as_usize).unwrap_or(0) as u64,
    };
    state.consume_fuel(own.saturating_add(bytes) / 64)?;
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

/// `True` and `None` as Python's Jinja writes them.
fn python_style(
    out: &mut Output,
    state: &mut State,
    value: &Jinja,
) -> std::result::Result<(), minijinja::Error> {
    let python = match value.kind() {
        ValueKind::None => Jinja::from("None"),
        ValueKind::Bool => Jinja::from(if value.is_true() { "True" } else { "False" }),
        _ => return minijinja::escape_formatter(out, state, value),
    };
    minijinja::escape_formatter(out, state, &python)
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False, indent=indent)` writes it.
#[expect(clippy::needless_pass_by_value, reason = "the shape that minijinja calls")]
fn tojson(
    state: &State,
    value: &Jinja,
    options: Kwargs,
) -> std::result::Result<Jinja, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let indent = indent.map(|indent| indent.min(INDENT_MAX));
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let value = json_of(value, 0)?;
    let mut json = String::new();
    dump(&value, indent, 0, &mut json);
    state.consume_fuel(json.len() as u64 / 64)?;
    Ok(Jinja::from(json))
}

fn json_of(value: &Jinja, depth: usize) -> std::result::Result<Value, minijinja::Error> {
    if depth > RENDER_DEPTH_MAX {
        return Err(minijinja::Error::new(ErrorKind::BadSerialization, "nested too deep"));
    }
    Ok(match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => Value::Array(
            value
                .try_iter()?
                .map(|value| json_of(&value, depth + 1))
                .collect::<std::result::Result<_, _>>()?,
        ),
        ValueKind::Map => {
            let mut fields = serde_json::Map::new();
            for name in value.try_iter()? {
                fields.insert(name.to_string(), json_of(&value.get_item(&name)?, depth + 1)?);
            }
            Value::Object(fields)
        }
        _ => serde_json::to_value(value).map_err(|error| {
            minijinja::Error::new(ErrorKind::BadSerialization, error.to_string())
        })?,
    })
}

fn dump(value: &Value, indent: Option<usize>, depth: usize, json: &mut String) {
    let gap = |json: &mut String, depth: usize, first: bool| match indent {
        Some(indent) => {
            json.push_str(if first { "\n" } else { ",\n" });
            json.extend(std::iter::repeat_n(' ', indent * depth));
        }
        None if !first => json.push_str(", "),
        None => {}
    };
    match value {
        Value::Array(values) if !values.is_empty() => {
            json.push('[');
            for (at, value) in values.iter().enumerate() {
                gap(json, depth + 1, at == 0);
                dump(value, indent, depth + 1, json);
            }
            close(indent, depth, ']', json);
        }
        Value::Object(fields) if !fields.is_empty() => {
            json.push('{');
            for (at, (name, value)) in fields.iter().enumerate() {
                gap(json, depth + 1, at == 0);
                dump(&Value::from(name.as_str()), indent, depth, json);
                json.push_str(": ");
                dump(value, indent, depth + 1, json);
            }
            close(indent, depth, '}', json);
        }
        Value::Number(number) if number.is_f64() => {
            json.push_str(&python_float(number.as_f64().unwrap_or(0.0)));
        }
        // serde escapes what Python escapes.
        other => write!(json, "{other}").expect("memory"),
    }
}

fn close(indent: Option<usize>, depth: usize, bracket: char, json: &mut String) {
    if let Some(indent) = indent {
        json.push('\n');
        json.extend(std::iter::repeat_n(' ', indent * depth));
    }
    json.push(bracket);
}

/// The shortest digits that give the number back, with an exponent where Python has one.
fn python_float(number: f64) -> String {
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) =
            exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{number:?}")
}

/// Arguments of earlier calls are text in requests; templates read them as objects.
fn open_arguments(messages: &mut Value) {
    let calls = messages
        .as_array_mut()
        .into_iter()
        .flatten()
        .filter_map(|message| message.get_mut("tool_calls")?.as_array_mut())
        .flatten();
    for call in calls {
        let Some(arguments) = call.get_mut("function").and_then(|f| f.get_mut("arguments")) else {
            continue;
        };
        let opened = arguments.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        if let Some(opened) = opened.filter(Value::is_object) {
            *arguments = opened;
        }
    }
}

/// Names of the control tokens.
fn controls(tokenizer: &Tokenizer) -> Result<Option<AhoCorasick>> {
    let names: Vec<&[u8]> = (0..tokenizer.vocab() as u32)
        .filter(|&token| matches!(tokenizer.kind(token), TokenKind::Control | TokenKind::Unknown))
        .map(|token| tokenizer.bytes(token))
        .filter(|name| !name.is_empty())
        .collect();
    if names.is_empty() {
        return Ok(None);
    }
    AhoCorasick::new(names)
        .map(Some)
        .map_err(|error| Error::model("tokenizer.ggml.tokens", error.to_string()))
}

/// `{% generation %}` marks what to train on; here it is a block like any other.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag
            .trim_matches(|c: char| matches!(c, '{' | '}' | '%' | '-' | '+') || c.is_whitespace());
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The reason, without the template around it.
fn described(error: &minijinja::Error) -> String {
    let reason = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("chat template line {line}: {reason}"),
        None => format!("chat template: {reason}"),
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// The date as C's `strftime` writes it in English, UTC.
fn strftime(format: &str, unix_s: i64) -> String {
    let (days, second) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[days.rem_euclid(7) as usize]);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let Some(kind) = letters.next() else { break };
        let written = match kind {
            'Y' => write!(out, "{year}"),
            'y' => write!(out, "{:02}", year.rem_euclid(100)),
            'm' => write!(out, "{month:02}"),
            'd' => write!(out, "{day:02}"),
            'e' => write!(out, "{day:>2}"),
            'B' => write!(out, "{month_name}"),
            'b' | 'h' => write!(out, "{}", &month_name[..3]),
            'A' => write!(out, "{day_name}"),
            'a' => write!(out, "{}", &day_name[..3]),
            'j' => {
                let of_year = (0..366).take_while(|back| civil(days - back).0 == year).count();
                write!(out, "{of_year:03}")
            }
            'H' => write!(out, "{hour:02}"),
            'I' => write!(out, "{:02}", (hour + 11) % 12 + 1),
            'p' => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            'M' => write!(out, "{minute:02}"),
            'S' => write!(out, "{second:02}"),
            'F' => write!(out, "{year}-{month:02}-{day:02}"),
            'T' => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            'Z' => write!(out, "UTC"),
            'z' => write!(out, "+0000"),
            '%' => write!(out, "%"),
            other => write!(out, "%{other}"),
        };
        written.expect("memory");
    }
    out
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, usize, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month as usize, day)
}

#[cfg(test)]
mod tests;
