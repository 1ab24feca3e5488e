// Asks every endpoint with the official SDKs for Node, whole and streamed, with a tool call, and writes what they gave
// as JSON. Usage: dialogues.mjs URL MODEL

import Anthropic from '@anthropic-ai/sdk';
import OpenAI from 'openai';

const [url, model] = process.argv.slice(2);
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'any', maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey: 'any', authToken: null, maxRetries: 0 });
const question = { role: 'user', content: 'call the tool' };
const schema = { type: 'object', properties: {} };
const given = [];

async function all(events) {
  const found = [];
  for await (const event of events) found.push(event);
  given.push(found);
  return found;
}

function keep(whole) {
  given.push(whole);
  return whole;
}

async function chats(stream) {
  const tools = [{ type: 'function', function: { name: 'tool', parameters: schema } }];
  const messages = [question];
  for (let turn = 0; turn < 3; turn++) {
    let message;
    if (stream) {
      const runner = openai.chat.completions.stream({ model, messages, tools, max_tokens: 60, temperature: 0 });
      await all(runner);
      message = keep(await runner.finalChatCompletion()).choices[0].message;
    } else {
      message = keep(await openai.chat.completions.create({ model, messages, tools, max_tokens: 60, temperature: 0 })).choices[0].message;
    }
    messages.push(message);
    for (const call of message.tool_calls ?? []) messages.push({ role: 'tool', tool_call_id: call.id, content: 'done' });
    messages.push({ role: 'user', content: 'and then?' });
  }
}

async function responses(stream) {
  const tools = [{ type: 'function', name: 'tool', parameters: schema, strict: false }];
  const input = [question];
  for (let turn = 0; turn < 3; turn++) {
    let response;
    if (stream) {
      const runner = openai.responses.stream({ model, input, tools, max_output_tokens: 60, temperature: 0 });
      await all(runner);
      response = keep(await runner.finalResponse());
    } else {
      response = keep(await openai.responses.create({ model, input, tools, max_output_tokens: 60, temperature: 0 }));
    }
    for (const item of response.output) {
      input.push(item);
      if (item.type === 'function_call') {
        input.push({ type: 'function_call_output', call_id: item.call_id, output: 'done' });
      }
    }
    input.push({ role: 'user', content: 'and then?' });
  }
}

async function messages(stream) {
  const tools = [{ name: 'tool', input_schema: schema }];
  const history = [question];
  for (let turn = 0; turn < 3; turn++) {
    const asked = { model, max_tokens: 60, temperature: 0, messages: history, tools };
    let message;
    if (stream) {
      const runner = anthropic.messages.stream(asked);
      await all(runner);
      message = keep(await runner.finalMessage());
    } else {
      message = keep(await anthropic.messages.create(asked));
    }
    history.push({ role: 'assistant', content: message.content });
    const results = message.content
      .filter((block) => block.type === 'tool_use')
      .map((block) => ({ type: 'tool_result', tool_use_id: block.id, content: 'done' }));
    history.push({ role: 'user', content: [...results, { type: 'text', text: 'and then?' }] });
  }
}

for (const dialogue of [chats, responses, messages]) {
  await dialogue(false);
  await dialogue(true);
}
process.stdout.write(JSON.stringify(given));
