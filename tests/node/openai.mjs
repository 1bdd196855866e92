// Drives a running Ponder by the unmodified openai-node SDK.
// argv: base URL, API key, the policy's name, a question.
// Prints one JSON object for tests/test_api_sdk_node.py to judge.
import OpenAI from "openai";

const [baseURL, apiKey, policy = "fake", question = "Why?"] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey });
const messages = [{ role: "user", content: question }];
const ask = { model: "ponder-best-of-n", messages, seed: 3 };

async function stream() {
  const chunks = [];
  const options = { ...ask, stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.chat.completions.create(options)) chunks.push(chunk);
  return chunks;
}

async function helper() {
  const runner = client.chat.completions.stream(ask);
  let content = "";
  runner.on("content", (delta) => (content += delta));
  const final = await runner.finalChatCompletion();
  return { content, final };
}

async function conversation() {
  const first = await client.chat.completions.create(ask);
  const more = [...messages, first.choices[0].message, ...messages];
  return client.chat.completions.create({ ...ask, messages: more });
}

async function models() {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  return { names, one: await client.models.retrieve(names[0]) };
}

async function failure(options, using = client) {
  try {
    const made = await using.chat.completions.create({ ...ask, ...options });
    if (options.stream) for await (const _ of made);
  } catch (error) {
    const { status, param, code, requestID, constructor } = error;
    return { name: constructor.name, status, param, code, requestID };
  }
  return { name: "none" };
}

const search = { strategy: { kind: "beam", width: 2, branch: 2 } };
console.log(
  JSON.stringify({
    whole: await client.chat.completions.create(ask),
    native: await client.chat.completions.create({ ...ask, model: policy, search }),
    chunks: await stream(),
    helper: await helper(),
    conversation: await conversation(),
    models: await models(),
    bad: await failure({ n: 99 }),
    missing: await failure({ model: "gpt-4" }),
    stranger: await failure({}, new OpenAI({ baseURL, apiKey: "wrong" })),
    badStream: await failure({ tools: [{ type: "function" }], stream: true }),
  }),
);
