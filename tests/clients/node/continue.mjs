// Continue's adapters: list, chat, complete, fill in, embed.
import assert from "node:assert/strict";
import { constructLlmApi } from "@continuedev/openai-adapters";

const [apiBase, model, embedding] = process.argv.slice(2);
const api = constructLlmApi({ provider: "openai", apiKey: "unused", apiBase });
const signal = new AbortController().signal;
const messages = [{ role: "user", content: "Hi" }];

const ids = (await api.list()).map((entry) => entry.id);
assert.ok(ids.includes(model), ids.join());

const whole = await api.chatCompletionNonStream({ model, messages, max_tokens: 12 }, signal);
assert.ok(whole.choices[0].message.content.length > 0);

let text = "", usage;
for await (const chunk of api.chatCompletionStream({ model, messages, max_tokens: 12, stream: true }, signal)) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.ok(text.length > 0);

const completed = await api.completionNonStream({ model, prompt: "One, two,", max_tokens: 8 }, signal);
assert.equal(typeof completed.choices[0].text, "string");

const vectors = await api.embed({ model: embedding, input: ["a", "b"] });
assert.equal(vectors.data.length, 2);
console.log(JSON.stringify({ text, whole: whole.choices[0].message.content, usage: usage ?? null }));
