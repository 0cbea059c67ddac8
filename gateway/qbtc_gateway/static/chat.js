"use strict";
// A chat with this server. Text of models and people reaches the page as text nodes only, never as
// HTML, so nothing that they write can run.

const $ = (id) => document.getElementById(id);
const log = $("log"), prompt = $("prompt"), model = $("model"), system = $("system");
const temperature = $("temperature"), key = $("key"), status = $("status"), aside = $("aside");

const RENDER_MS = 50;
const SPEED_MS_MIN = 100;
const KEY = "qbtc-key";
const IDLE = matchMedia("(pointer: fine)").matches ? "Enter sends, Shift+Enter starts a new line, Escape stops" : "";

let turns = []; // {role, content} as they are sent
let running = null; // AbortController of the answer under way

// ---- Small pieces of document -----------------------------------------------------------------

function make(tag, content = [], props = {}) {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...[content].flat());
  return node;
}

const INLINE = /(`+)([^`](?:[\s\S]*?[^`])?)\1(?!`)|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*|\[([^\]\n]{1,400})\]\((https?:\/\/[^\s)]{1,2000})\)/g;

function inline(text) {
  const nodes = [];
  let at = 0;
  for (const found of text.matchAll(INLINE)) {
    if (found.index > at) nodes.push(text.slice(at, found.index));
    const [all, , code, bold, italic, label, address] = found;
    if (code !== undefined) nodes.push(make("code", code));
    else if (bold !== undefined) nodes.push(make("strong", inline(bold)));
    else if (italic !== undefined) nodes.push(make("em", inline(italic)));
    else nodes.push(make("a", label, { href: address, target: "_blank", rel: "noopener noreferrer" }));
    at = found.index + all.length;
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}

function codeBlock(language, text) {
  const copy = make("button", "Copy", { type: "button", className: "small" });
  copy.addEventListener("click", () => copyText(copy, text));
  const head = make("div", [make("span", language || "text"), copy]);
  return make("div", [head, make("pre", make("code", text), { tabIndex: 0 })], { className: "code" });
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function table(lines) {
  const row = (tag, line) => make("tr", cells(line).map((cell) => make(tag, inline(cell))));
  return make("table", [
    make("thead", row("th", lines[0])),
    make("tbody", lines.slice(2).map((line) => row("td", line))),
  ]);
}

// Markdown, as much of it as models write: code, lists, headings, quotes, tables, emphasis, links.
function markdown(text) {
  const out = [];
  const lines = text.split("\n");
  let i = 0;
  const take = (test) => {
    const taken = [];
    while (i < lines.length && test(lines[i])) taken.push(lines[i++]);
    return taken;
  };
  const BLOCK = /^\s*(?:```|#{1,6}\s|[-*+]\s|\d{1,3}[.)]\s|>|([-*_])\s*(?:\1\s*){2,}$)/;
  while (i < lines.length) {
    const line = lines[i];
    const fence = /^\s*```\s*([\w+#.-]{0,30})/.exec(line);
    if (fence) {
      i++;
      const body = take((l) => !/^\s*```\s*$/.test(l));
      i++;
      out.push(codeBlock(fence[1], body.join("\n")));
    } else if (/^\s*$/.test(line)) {
      i++;
    } else if (/^#{1,6}\s/.test(line)) {
      const level = /^#+/.exec(line)[0].length;
      out.push(make(level < 3 ? "h3" : "h4", inline(line.replace(/^#+\s+/, ""))));
      i++;
    } else if (/^\s*([-*_])\s*(?:\1\s*){2,}$/.test(line)) {
      out.push(make("hr"));
      i++;
    } else if (/^\s*>/.test(line)) {
      const body = take((l) => /^\s*>/.test(l)).map((l) => l.replace(/^\s*>\s?/, ""));
      out.push(make("blockquote", inline(body.join("\n"))));
    } else if (/^\s*\|.*\|\s*$/.test(line) && /^\s*\|[\s:|-]+\|\s*$/.test(lines[i + 1] ?? "")) {
      out.push(table(take((l) => /^\s*\|.*\|\s*$/.test(l))));
    } else if (/^\s*(?:[-*+]|\d{1,3}[.)])\s/.test(line)) {
      const ordered = /^\s*\d/.test(line);
      const mark = ordered ? /^\s*\d{1,3}[.)]\s+/ : /^\s*[-*+]\s+/;
      const list = make(ordered ? "ol" : "ul");
      if (ordered) list.start = Number(/\d+/.exec(line)[0]);
      while (i < lines.length && mark.test(lines[i])) {
        const first = lines[i++].replace(mark, "");
        const more = take((l) => /^\s+\S/.test(l) && !mark.test(l)).map((l) => l.trim());
        list.append(make("li", inline([first, ...more].join("\n"))));
        // A blank line between two items is one list.
        if (/^\s*$/.test(lines[i] ?? "-") && mark.test(lines[i + 1] ?? "")) i++;
      }
      out.push(list);
    } else {
      const first = lines[i++];
      out.push(make("p", inline([first, ...take((l) => !/^\s*$/.test(l) && !BLOCK.test(l))].join("\n"))));
    }
  }
  return out;
}

async function copyText(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

// The state is read aloud to who cannot see the page, so it changes a few times an answer; what runs
// along, as speed does, stands beside it and is silent.
function tell(state, beside = "") {
  if (status.textContent !== state) status.textContent = state;
  aside.textContent = beside;
}

// ---- The conversation on the page ----------------------------------------------------------------

const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 60;
const toEnd = () => (log.scrollTop = log.scrollHeight);

function addTurn(role, content = []) {
  $("empty").hidden = true;
  const text = make("div", content, { className: "text" });
  const turn = make("article", text, { className: `turn ${role}` });
  turn.setAttribute("aria-label", role === "user" ? "You" : "Model");
  log.append(turn);
  toEnd();
  return { turn, text };
}

function showError(message) {
  $("empty").hidden = true;
  const note = make("div", message, { className: "turn error" });
  note.setAttribute("role", "alert");
  log.append(note);
  toEnd();
}

function freshChat() {
  running?.abort();
  turns = [];
  log.replaceChildren($("empty"));
  $("empty").hidden = false;
  tell("", IDLE);
  prompt.focus();
}

const number = (value, digits = 0) => value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
const seconds = (ms) => (ms < 1000 ? `${number(ms)} ms` : `${number(ms / 1000, 1)} s`);

// Tokens per second after the first; of less time than this it would be noise.
const rate = (tokens, ms) => (ms >= SPEED_MS_MIN ? (tokens - 1) / (ms / 1000) : undefined);

function figures({ first, speed, tokens, cached, prompt: asked }) {
  const parts = [];
  if (first !== undefined) parts.push(make("span", [make("b", seconds(first)), " to first token"]));
  if (speed !== undefined) parts.push(make("span", [make("b", number(speed)), " tokens/s"]));
  if (tokens) parts.push(make("span", `${number(tokens)} token${tokens === 1 ? "" : "s"}`));
  if (asked && cached) parts.push(make("span", `${number((100 * cached) / asked)} % of the prompt cached`));
  return parts;
}

// ---- Talking to the server ----------------------------------------------------------------------

function headers() {
  const own = { "content-type": "application/json" };
  if (key.value.trim()) own.authorization = `Bearer ${key.value.trim()}`;
  return own;
}

async function problem(response) {
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not ours: a proxy between us.
  }
  if (response.status === 401) {
    setOptions(true);
    key.focus();
  }
  if (response.status === 429 || response.status === 503) {
    const wait = response.headers.get("retry-after");
    if (wait) message += ` (again in ${wait} s)`;
  }
  return new Error(message);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const found = /^: prefill (\d+)%/m.exec(block);
      if (found) yield { prefill: Number(found[1]) };
      const data = block.split("\n").filter((l) => l.startsWith("data: ")).map((l) => l.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

// Answer the last turn. A question that gets no answer is taken back, so that the next one does not
// carry it along, and its text is offered again.
async function ask(asked) {
  const controller = (running = new AbortController());
  const started = performance.now();
  const { turn, text } = addTurn("model live", make("p", ""));
  const answer = { role: "assistant", content: "" };
  let first, last, pieces = 0, usage, reason, failure, drawn = 0, timer;

  const draw = () => {
    timer = undefined;
    drawn = performance.now();
    const stay = atEnd();
    text.replaceChildren(...(answer.content ? markdown(answer.content) : [make("p", "")]));
    if (stay) toEnd();
    const speed = rate(pieces, last - started - first);
    if (speed) tell("", `${seconds(first)} to first token, about ${number(speed)} tokens/s`);
  };

  tell("reading");
  try {
    const messages = system.value.trim() ? [{ role: "system", content: system.value.trim() }, ...turns] : turns;
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: headers(),
      signal: controller.signal,
      body: JSON.stringify({
        model: model.value,
        messages,
        temperature: Number(temperature.value),
        stream: true,
        stream_options: { include_usage: true },
      }),
    });
    if (!response.ok) throw await problem(response);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.prefill !== undefined && first === undefined) tell("reading", `${event.prefill} %`);
      if (event.usage) usage = event.usage;
      const choice = event.choices?.[0];
      if (choice?.finish_reason) reason = choice.finish_reason;
      const more = choice?.delta?.content;
      if (!more) continue;
      last = performance.now();
      first ??= last - started;
      pieces++;
      answer.content += more;
      timer ??= setTimeout(draw, Math.max(0, drawn + RENDER_MS - last));
    }
  } catch (error) {
    if (controller.signal.aborted) reason = "stopped";
    else failure = error instanceof TypeError ? "The server cannot be reached." : error.message;
  } finally {
    clearTimeout(timer);
    turn.classList.remove("live");
    running = null;
    busy(false);
  }
  if (!turn.isConnected) return;
  // Once more, now that the log is no longer busy: a screen reader hears the answer, whole and once.
  draw();
  if (failure === undefined && answer.content) {
    turns.push(answer);
    tell({ length: "answer cut at the length limit", stopped: "stopped" }[reason] ?? "answer complete");
  } else {
    turns.pop();
    if (!prompt.value.trim()) {
      prompt.value = asked.text.textContent;
      ready();
      if (!answer.content) asked.turn.remove();
    }
    if (failure !== undefined) {
      showError(failure);
      tell("", IDLE);
    } else tell(reason === "stopped" ? "stopped" : "The answer was empty.");
  }
  if (!answer.content) {
    turn.remove();
    $("empty").hidden = log.childElementCount > 1;
    return;
  }
  const tokens = usage?.completion_tokens ?? pieces;
  const foot = make("div", figures({
    first,
    speed: rate(tokens, last - started - first),
    tokens,
    prompt: usage?.prompt_tokens,
    cached: usage?.prompt_tokens_details?.cached_tokens,
  }), { className: "foot" });
  foot.setAttribute("aria-live", "off");
  const copy = make("button", "Copy", { type: "button", className: "small" });
  copy.addEventListener("click", () => copyText(copy, answer.content));
  if (reason === "length") foot.append(make("span", "cut at the length limit"));
  if (reason === "stopped") foot.append(make("span", "stopped"));
  foot.prepend(copy);
  const stay = atEnd();
  turn.append(foot);
  if (stay) toEnd();
}

function busy(is) {
  const held = document.activeElement === $("stop");
  $("stop").hidden = !is;
  $("send").hidden = is;
  log.setAttribute("aria-busy", String(is));
  ready();
  if (held && !is) prompt.focus();
}

function ready() {
  $("send").disabled = !prompt.value.trim() || model.disabled;
}

async function loadModels() {
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (!response.ok) throw await problem(response);
    const ids = (await response.json()).data.filter((m) => (m.kind ?? "chat") === "chat").map((m) => m.id);
    const chosen = model.value;
    model.replaceChildren(...ids.map((id) => make("option", id, { value: id })));
    if (ids.includes(chosen)) model.value = chosen;
    model.disabled = ids.length === 0;
    if (ids.length) tell("", IDLE);
    else tell("No chat model is served.");
  } catch (error) {
    tell(error instanceof TypeError ? "The server cannot be reached." : error.message);
  }
  ready();
}

// ---- What people do ---------------------------------------------------------------------------

function setOptions(open) {
  $("options").hidden = !open;
  $("toggle").setAttribute("aria-expanded", String(open));
}

async function submit() {
  const text = prompt.value.trim();
  if (!text || running || model.disabled) return;
  const pressed = document.activeElement?.closest("#send, #ideas");
  prompt.value = "";
  turns.push({ role: "user", content: text });
  busy(true);
  // What was pressed goes away now; the focus must not go with it.
  if (pressed) $("stop").focus();
  await ask(addTurn("user", text));
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
prompt.addEventListener("input", ready);
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (running) running.abort();
  else if (!$("options").hidden) {
    setOptions(false);
    $("toggle").focus();
  }
});
$("stop").addEventListener("click", () => {
  running?.abort();
  prompt.focus();
});
$("fresh").addEventListener("click", freshChat);
$("toggle").addEventListener("click", () => {
  setOptions($("options").hidden);
  if (!$("options").hidden) system.focus();
});
$("ideas").addEventListener("click", (event) => {
  if (event.target.tagName !== "BUTTON") return;
  prompt.value = event.target.textContent;
  submit();
});
temperature.addEventListener("input", () => ($("shown").value = Number(temperature.value).toFixed(1)));
key.addEventListener("change", () => {
  if (key.value.trim()) sessionStorage.setItem(KEY, key.value.trim());
  else sessionStorage.removeItem(KEY);
  loadModels();
});

key.value = sessionStorage.getItem(KEY) ?? "";
loadModels();
