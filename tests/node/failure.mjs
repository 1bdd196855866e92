// What openai-node makes of a server that fails. argv: base URL, API key.
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey });
const search = { strategy: { kind: "beam", width: 2, branch: 2 } };
const messages = [{ role: "user", content: "Why?" }];
try {
  const stream = await client.chat.completions.create({
    model: "fake",
    messages,
    search,
    stream: true,
  });
  for await (const _ of stream);
  console.log(JSON.stringify({ name: "none" }));
} catch (error) {
  const { status, code, message, constructor } = error;
  console.log(JSON.stringify({ name: constructor.name, status, code, message }));
}
