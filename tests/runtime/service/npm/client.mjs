// Asks the service with OpenAI's package for Node and prints what the package makes of the answers.
// Usage: node client.mjs SITE.json, with {url, keys: {full, once, poor}, picture}.

import { readFileSync } from "node:fs";
import OpenAI from "openai";

const site = JSON.parse(readFileSync(process.argv[2], "utf8"));

function client(apiKey) {
  return new OpenAI({ baseURL: `${site.url}/v1`, apiKey, maxRetries: 0, timeout: 20_000 });
}

const full = client(site.keys.full);
const question = [{ role: "user", content: "What is 17 + 25?" }];
const tools = [
  {
    type: "function",
    function: {
      name: "add",
      description: "Adds.",
      parameters: {
        type: "object",
        properties: { a: { type: "integer" }, b: { type: "integer" } },
        required: ["a", "b"],
      },
    },
  },
];

async function refused(call) {
  try {
    await call();
  } catch (error) {
    return {
      name: error.constructor.name,
      isApiError: error instanceof OpenAI.APIError,
      status: error.status,
      code: error.code,
      type: error.type,
      param: error.param,
      retryAfter: error.headers?.get("retry-after") ?? null,
      decision: error.headers?.get("x-router-decision-id") ?? null,
    };
  }
  return { name: "no error" };
}

async function collected(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const scenarios = {
  async chat() {
    const { data, response } = await full.chat.completions
      .create({ model: "auto", messages: question })
      .withResponse();
    return {
      model: data.model,
      content: data.choices[0].message.content,
      tokens: data.usage.total_tokens,
      told: response.headers.get("x-router-model"),
    };
  },

  async stream() {
    const chunks = await collected(
      await full.chat.completions.create({ model: "auto", messages: question, stream: true }),
    );
    return {
      content: chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join(""),
      finish: chunks.map((chunk) => chunk.choices[0]?.finish_reason).filter(Boolean),
      usages: chunks.filter((chunk) => chunk.usage).length,
    };
  },

  async streamWithUsage() {
    const chunks = await collected(
      await full.chat.completions.create({
        model: "sim-small-text",
        messages: question,
        stream: true,
        stream_options: { include_usage: true },
      }),
    );
    return { usages: chunks.filter((chunk) => chunk.usage).length };
  },

  async streamHelper() {
    const runner = full.chat.completions.stream({ model: "sim-small-text", messages: question });
    return { content: await runner.finalContent() };
  },

  async tools() {
    const answer = await full.chat.completions.create({
      model: "sim-large-text",
      messages: question,
      tools,
      tool_choice: "required",
    });
    const call = answer.choices[0].message.tool_calls[0];
    return { name: call.function.name, given: JSON.parse(call.function.arguments) };
  },

  async streamedTools() {
    const runner = full.chat.completions.stream({
      model: "sim-large-text",
      messages: question,
      tools,
      tool_choice: "required",
    });
    const call = (await runner.finalMessage()).tool_calls[0];
    return { name: call.function.name, given: JSON.parse(call.function.arguments) };
  },

  async jsonMode() {
    const answer = await full.chat.completions.create({
      model: "sim-large-text",
      messages: [{ role: "user", content: "Answer as JSON: what is 17 + 25?" }],
      response_format: { type: "json_object" },
    });
    return { parsed: JSON.parse(answer.choices[0].message.content) };
  },

  async picture() {
    const answer = await full.chat.completions.create({
      model: "auto",
      messages: [
        {
          role: "user",
          content: [
            { type: "text", text: "How many squares?" },
            { type: "image_url", image_url: { url: site.picture } },
          ],
        },
      ],
    });
    return { model: answer.model, content: answer.choices[0].message.content };
  },

  async twoChoices() {
    const answer = await full.chat.completions.create({
      model: "sim-small-text",
      messages: question,
      n: 2,
    });
    return { indices: answer.choices.map((choice) => choice.index) };
  },

  async unknownField() {
    const answer = await full.chat.completions.create({
      model: "sim-small-text",
      messages: question,
      field_that_nobody_knows: { deep: [1, null, "ü"] },
    });
    return { content: answer.choices[0].message.content };
  },

  async controls() {
    const { data, response } = await full.chat.completions
      .create({ model: "auto", messages: question, router: { allow: ["sim-large-text"] } })
      .withResponse();
    return { model: data.model, reason: response.headers.get("x-router-reason") };
  },

  async dryRun() {
    const told = await full.chat.completions.create({
      model: "auto",
      messages: question,
      router: { dry_run: true },
    });
    return { object: told.object, ranking: told.ranking };
  },

  async models() {
    const ids = [];
    for await (const model of full.models.list()) ids.push(model.id);
    return { ids, one: (await full.models.retrieve("sim-small-vl")).id };
  },

  async embeddings() {
    const answer = await full.embeddings.create({ model: "sim-embedding", input: ["one", "two"] });
    return { lengths: answer.data.map((entry) => entry.embedding.length) };
  },

  wrongKey: () => refused(() => client("mr-unknown").models.list()),
  noSuchModel: () =>
    refused(() => full.chat.completions.create({ model: "gpt-nothing", messages: question })),
  wrongControl: () =>
    refused(() =>
      full.chat.completions.create({ model: "auto", messages: question, router: { colour: 1 } }),
    ),
  notAllowed: () =>
    refused(() =>
      client(site.keys.once).chat.completions.create({ model: "sim-large-vl", messages: question }),
    ),

  async limited() {
    const once = client(site.keys.once);
    await once.chat.completions.create({ model: "sim-small-text", messages: question });
    return refused(() =>
      once.chat.completions.create({ model: "sim-small-text", messages: question }),
    );
  },

  broke: () =>
    refused(() =>
      client(site.keys.poor).chat.completions.create({ model: "sim-large-vl", messages: question }),
    ),
  brokenStream: () =>
    refused(async () =>
      collected(
        await full.chat.completions.create({ model: "cut", messages: question, stream: true }),
      ),
    ),
};

const found = {};
for (const [name, scenario] of Object.entries(scenarios)) {
  try {
    found[name] = await scenario();
  } catch (error) {
    found[name] = { failed: `${error.constructor.name}: ${error.message}` };
  }
}
console.log(JSON.stringify(found));
