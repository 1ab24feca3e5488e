// Reads back with OpenAI's SDK for Node what a proxy has recorded: every operation. Usage: read_back.mjs BASE_URL
// The proxy holds 250 completions of one session already, and nothing else.

import assert from 'node:assert/strict';
import OpenAI, { BadRequestError, NotFoundError } from 'openai';

const client = new OpenAI({ baseURL: process.argv[2], apiKey: 'any', maxRetries: 0 });

async function all(pages) {
  const found = [];
  for await (const each of pages) found.push(each);
  return found;
}

// Stored chat completions.
const completions = client.chat.completions;
const recorded = await all(completions.list({ limit: 100 }));
assert.deepEqual(
  recorded.map((each) => each.choices[0].message.content),
  Array.from({ length: 250 }, (_, number) => `answer ${number}`),
);
assert.deepEqual(await all(completions.list({ order: 'desc' })), recorded.toReversed());
assert.equal((await all(completions.list({ metadata: { parity: 'odd', number: '7' } }))).length, 1);
assert.equal((await all(completions.list({ metadata: { parity: 'odd', number: '8' } }))).length, 0);
const session = recorded[0].metadata.session_id;
assert.equal((await all(completions.list({ metadata: { session_id: session }, model: recorded[0].model }))).length, 250);

const made = await completions.create({
  model: 'm',
  messages: [{ role: 'system', content: 'be brief' }, { role: 'user', content: [{ type: 'text', text: 'hello' }] }],
  metadata: { topic: 'node' },
});
const stored = await completions.retrieve(made.id);
assert.deepEqual(stored.choices[0].message, made.choices[0].message);
assert.equal(stored.choices[0].finish_reason, 'stop');
assert.equal(stored.metadata.topic, 'node');
const messages = await all(completions.messages.list(made.id, { limit: 1 }));
assert.deepEqual(messages.map((each) => [each.role, each.content]), [['system', 'be brief'], ['user', 'hello']]);
assert.deepEqual(messages[1].content_parts, [{ type: 'text', text: 'hello' }]);
const updated = await completions.update(made.id, { metadata: { topic: 'changed' } });
assert.equal(updated.metadata.topic, 'changed');
assert.equal((await completions.delete(made.id)).deleted, true);
await assert.rejects(completions.retrieve(made.id), NotFoundError);
await assert.rejects(all(completions.list({ limit: 1000 })), BadRequestError);

// Conversations.
const { conversations } = client;
const conversation = await conversations.create({
  metadata: { topic: 'node' },
  items: [{ type: 'message', role: 'user', content: 'What is the weather?' }],
});
assert.deepEqual(await conversations.retrieve(conversation.id), conversation);
assert.deepEqual((await conversations.update(conversation.id, { metadata: { a: 'b' } })).metadata, { a: 'b' });
const added = await conversations.items.create(conversation.id, {
  items: [
    { type: 'function_call', call_id: 'c1', name: 'weather', arguments: '{}' },
    { type: 'function_call_output', call_id: 'c1', output: 'sunny' },
  ],
});
assert.equal(added.data.length, 2);
const options = { method: 'POST', headers: { 'x-session-id': conversation.id } };
const named = await completions.create({ model: 'm', messages: [{ role: 'user', content: 'And tomorrow?' }] }, options);
const items = await all(conversations.items.list(conversation.id, { limit: 1, order: 'asc' }));
assert.deepEqual(
  items.map((item) => item.type),
  ['message', 'function_call', 'function_call_output', 'message', 'message'],
);
assert.equal(items[4].content[0].text, named.choices[0].message.content);
assert.deepEqual(await all(conversations.items.list(conversation.id)), items.toReversed());
const one = { conversation_id: conversation.id };
assert.deepEqual(await conversations.items.retrieve(items[1].id, one), items[1]);
assert.equal((await conversations.items.delete(items[1].id, one)).id, conversation.id);
await assert.rejects(conversations.items.retrieve(items[1].id, one), NotFoundError);
assert.equal((await conversations.delete(conversation.id)).deleted, true);
await assert.rejects(conversations.retrieve(conversation.id), NotFoundError);

console.log('all of it was read back');
