// OpenAI's client for Node against a server whose engine follows a script.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 2 });
const model = "scripted";
const messages = [{ role: "user", content: "Hi" }];
const schema = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", strict: true, parameters: schema } }];

const ids = (await client.models.list()).data.map((entry) => entry.id);
assert.ok(ids.includes(model));
assert.equal((await client.models.retrieve(model)).id, model);

const whole = await client.chat.completions.create({ model, messages });
assert.equal(whole.choices[0].message.content, "Hello there");
assert.equal(whole.usage.prompt_tokens, 7);
assert.equal(whole.usage.prompt_tokens_details.cached_tokens, 4);

const stream = client.chat.completions.stream({
  model,
  messages: [{ role: "user", content: [{ type: "text", text: "Hi" }] }],
  stream_options: { include_usage: true },
});
let text = "";
stream.on("content", (delta) => (text += delta));
const final = await stream.finalChatCompletion();
assert.equal(text, "Hello there");
assert.equal(final.choices[0].finish_reason, "stop");
assert.equal(final.usage.completion_tokens, 3);

const called = await client.chat.completions
  .stream({ model, messages: [{ role: "user", content: "weather" }], tools, tool_choice: "required" })
  .finalChatCompletion();
assert.equal(called.choices[0].finish_reason, "tool_calls");
assert.deepEqual(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments), { city: "Rome" });

const format = { type: "json_schema", json_schema: { name: "place", strict: true, schema } };
const parsed = await client.chat.completions.parse({
  model,
  messages: [{ role: "user", content: "json" }],
  response_format: format,
});
assert.deepEqual(parsed.choices[0].message.parsed ?? JSON.parse(parsed.choices[0].message.content), { city: "Rome" });

const embedded = await client.embeddings.create({ model: "scripted-embedding", input: ["a", "b"] });
assert.equal(embedded.data.length, 2);
assert.equal(embedded.data[1].embedding.length, 4);

const response = await client.responses.create({ model, input: "Hi" });
assert.equal(response.output_text, "Hello there");
let streamed = "";
for await (const event of await client.responses.create({ model, input: "Hi", stream: true })) {
  if (event.type === "response.output_text.delta") streamed += event.delta;
}
assert.equal(streamed, "Hello there");

await assert.rejects(client.chat.completions.create({ model: "none", messages }), (error) => {
  assert.ok(error instanceof OpenAI.NotFoundError);
  assert.equal(error.code, "model_not_found");
  return true;
});
await assert.rejects(
  client.chat.completions.create({ model, messages: [{ role: "user", content: "too long" }] }),
  (error) => error instanceof OpenAI.BadRequestError && error.code === "context_length_exceeded",
);
// Twice refused with 429, then answered: the client waits as the headers say.
const patient = await client.chat.completions.create({ model, messages: [{ role: "user", content: "busy" }] });
assert.equal(patient.choices[0].message.content, "Hello there");

const leaving = await client.chat.completions.create({ model, messages: [{ role: "user", content: "for ever" }], stream: true });
for await (const chunk of leaving) if (chunk.choices[0]?.delta?.content) break;
console.log("done");
