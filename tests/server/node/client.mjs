// Talks to the server at argv[2] as users of the official client do, and prints one line of JSON with what it got.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const model = process.argv[3];
const messages = [{ role: "user", content: "hi" }];
const tools = [{ type: "function", function: { name: "add", parameters: { type: "object", properties: {} } } }];

/** The error's class, status, code and parameter. */
async function refused(call) {
  try {
    await call;
  } catch (error) {
    return [error.constructor.name, error.status, error.code, error.param];
  }
  throw new Error("not refused");
}

const text = await client.completions.create({ model, prompt: "hi" });
let textStream = "";
for await (const chunk of await client.completions.create({ model, prompt: "hi", stream: true })) {
  textStream += chunk.choices[0].text;
}
const chat = await client.chat.completions.create({ model, messages });
let chatStream = "";
let usage = null;
for await (const chunk of await client.chat.completions.create({
  model,
  messages,
  stream: true,
  stream_options: { include_usage: true },
})) {
  chatStream += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
const called = await client.chat.completions.create({ model, messages, tools });
const followed = client.chat.completions.stream({ model, messages, tools });
const calledStream = await followed.finalChatCompletion();
const again = await client.chat.completions.create({
  model,
  messages: [
    ...messages,
    called.choices[0].message,
    { role: "tool", tool_call_id: called.choices[0].message.tool_calls?.[0].id ?? "none", content: "2" },
  ],
  tools,
});
const models = [];
for await (const one of client.models.list()) models.push(one.id);

console.log(
  JSON.stringify({
    text: text.choices[0],
    textStream,
    chat: chat.choices[0],
    chatStream,
    usage,
    called: called.choices[0],
    calledStream: calledStream.choices[0],
    again: again.choices[0].finish_reason,
    models,
    unknownModel: await refused(client.completions.create({ model: "gpt", prompt: "hi" })),
    badValue: await refused(client.chat.completions.create({ model, messages, temperature: 3 })),
    badStream: await refused(client.chat.completions.create({ model, messages, top_p: 0, stream: true })),
  }),
);
