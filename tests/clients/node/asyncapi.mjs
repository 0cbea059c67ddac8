// Read an AsyncAPI document with AsyncAPI's own parser: what it holds, and what it says about it.
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[2], "utf8"));
console.log(
  JSON.stringify({
    version: document?.version(),
    channels: document?.channels().all().map((channel) => channel.id()),
    operations: document?.operations().all().map((operation) => operation.id()),
    said: diagnostics.map(({ severity, code, message }) => ({ severity, code, message })),
  }),
);
