// Reads a JSON list of streams, each a list of chunks, and writes what OpenAI's SDK for Node has accumulated of each.

import { readFileSync } from "node:fs";
import { ChatCompletionStream } from "openai/lib/ChatCompletionStream";

async function accumulated(chunks) {
  const lines = chunks.map((chunk) => JSON.stringify(chunk) + "\n").join("");
  const runner = ChatCompletionStream.fromReadableStream(new Blob([lines]).stream());
  let snapshot = null;
  runner.on("chunk", (_, so_far) => (snapshot = structuredClone(so_far)));
  runner.on("error", () => {}); // a stream without a finish reason is none to the SDK; what it has so far counts
  await runner.done().catch(() => {});
  return snapshot;
}

const results = [];
for (const chunks of JSON.parse(readFileSync(0, "utf8"))) results.push(await accumulated(chunks));
process.stdout.write(JSON.stringify(results));
