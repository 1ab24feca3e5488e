// Reads back with OpenAI's SDK for Node what a proxy has recorded of Responses and Messages. Usage:
// read_back_responses.mjs URL MODEL

import assert from 'node:assert/strict';
import Anthropic from '@anthropic-ai/sdk';
import OpenAI, { NotFoundError } from 'openai';

const [url, model] = process.argv.slice(2);
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'any', maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey: 'any', authToken: null, maxRetries: 0 });

async function all(pages) {
  const found = [];
  for await (const each of pages) found.push(each);
  return found;
}

async function read(path) {
  const reply = await fetch(`${url}${path}`);
  assert.equal(reply.status, 200, path);
  return reply.json();
}

// A response, read back, gone on from, and continued where its stream was left.
const more = { model, max_output_tokens: 12 };
const first = await openai.responses.create({ ...more, input: 'hi', metadata: { topic: 'node' } });
const back = await openai.responses.retrieve(first.id);
assert.deepEqual(back.output, first.output);
assert.deepEqual([back.id, back.status, back.metadata.topic], [first.id, first.status, 'node']);
const events = await all(
  await openai.responses.create({ ...more, input: 'more', previous_response_id: first.id, stream: true }),
);
const second = events.at(-1).response;
const rest = await all(await openai.responses.retrieve(second.id, { stream: true, starting_after: 2 }));
assert.deepEqual(rest, events.slice(3));
const asked = await all(openai.responses.inputItems.list(second.id, { order: 'asc', limit: 2 }));
assert.deepEqual(
  asked.map((item) => item.type),
  ['message', ...first.output.map((item) => item.type), 'message'],
);
assert.deepEqual((await openai.responses.cancel(first.id)).output, first.output);

// The same conversation by its other routes.
const [stored] = await all(openai.chat.completions.list());
const session = stored.metadata.session_id;
const items = await all(openai.conversations.items.list(`conv_${session}`, { order: 'asc', limit: 3 }));
assert.equal(items.length, asked.length + second.output.length);
const third = await openai.responses.create({ ...more, input: 'on', conversation: `conv_${session}` });
const shown = await read(`/v1/sessions/${session}/messages?format=responses&limit=100`);
assert.deepEqual(shown.messages.slice(-third.output.length), third.output);
const { messages } = await read(`/v1/sessions/${session}/messages?format=anthropic&limit=100`);
messages.push({ role: 'user', content: 'and with Anthropic' });
const said = await anthropic.messages.create({ model, max_tokens: 12, messages });
const { messages: whole } = await read(`/v1/sessions/${session}/messages?format=anthropic&limit=100`);
assert.deepEqual(whole, [...messages, { role: 'assistant', content: said.content }]);
assert.equal((await read('/v1/sessions')).sessions.length, 1);

await openai.responses.delete(third.id);
await assert.rejects(openai.responses.retrieve(third.id), NotFoundError);
console.log('all of it was read back');
