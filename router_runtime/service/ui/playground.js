// Ask something, see the decision, watch the answer, say whether it was good.

import { $, ask, count, duration, element, notice, usd } from "./common.js";
import { decided } from "./decision.js";

let pictures = [];
let running = null;
let answered = null; // decision id of the answer on show

export async function loadModels() {
  const { data } = await (await ask("v1/models")).json();
  const before = $("model").value;
  const option = (model) => element("option", { value: model.id }, model.id);
  const routed = data.filter((model) => isRouted(model.id));
  const straight = data.filter((model) => !isRouted(model.id));
  $("model").replaceChildren(
    element("optgroup", { label: "Routed, by policy" }, ...routed.map(option)),
    element("optgroup", { label: "Straight to one model" }, ...straight.map(option))
  );
  if (data.some((model) => model.id === before)) $("model").value = before;
}

const isRouted = (model) => model === "auto" || model.startsWith("auto:");

// ------------------------------------------------------------------------------------- pictures

function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve({ name: file.name, uri: reader.result });
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

function showPictures() {
  const shown = pictures.map((picture, at) => {
    const remove = element("button", { type: "button", "aria-label": `Remove ${picture.name}` }, "×");
    remove.addEventListener("click", () => {
      pictures.splice(at, 1);
      showPictures();
      $("pictures").focus();
    });
    return element("li", {}, element("img", { src: picture.uri, alt: picture.name }), remove);
  });
  $("thumbnails").replaceChildren(...shown);
}

async function addPictures() {
  try {
    pictures.push(...(await Promise.all([...$("pictures").files].map(dataUri))));
  } catch {
    notice("The picture cannot be read.");
  }
  $("pictures").value = "";
  showPictures();
}

// ------------------------------------------------------------------------------------- asking

function request() {
  const text = $("text").value;
  const parts = pictures.map(({ uri }) => ({ type: "image_url", image_url: { url: uri } }));
  const words = text ? [{ type: "text", text }] : [];
  const content = parts.length ? [...words, ...parts] : text;
  return { model: $("model").value, messages: [{ role: "user", content }] };
}

async function decide() {
  $("decision").replaceChildren(element("p", { class: "hint" }, "Deciding …"));
  try {
    const answer = await ask("v1/route", { body: request(), signal: running.signal });
    $("decision").replaceChildren(...decided(await answer.json()));
  } catch (error) {
    $("decision").replaceChildren(element("p", { class: "hint" }, "No decision."));
    throw error;
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const line = part.split(/\r?\n/).find((each) => each.startsWith("data:"));
      if (line) yield line.slice(5).trim();
    }
  }
}

function facts(sent) {
  const told = (name) => sent.headers.get(`x-router-${name}`);
  const attempts = Number(told("attempts"));
  const cost = told("cost-usd");
  return [
    told("model"),
    attempts > 1 ? `after ${count(attempts - 1)} failed` : null,
    cost === null ? null : `${usd(Number(cost))} expected`,
    `router took ${duration(Number(told("overhead-ms")) / 1000)}`,
  ].filter(Boolean).join(" · ");
}

async function answer() {
  const stream = { stream: true, stream_options: { include_usage: true } };
  $("answer").textContent = "";
  $("answer").hidden = $("verdict").hidden = true;
  $("told").textContent = "Waiting for the first word …";
  let known = null;
  let ended = "";
  try {
    const body = { ...request(), ...stream };
    const headers = { "x-router-debug": "true" };
    const sent = await ask("v1/chat/completions", { body, headers, signal: running.signal });
    known = facts(sent);
    answered = sent.headers.get("x-router-decision-id");
    $("told").textContent = `${known} · answering …`;
    $("answer").hidden = false;
    let used = "";
    for await (const event of events(sent.body)) {
      if (event === "[DONE]") {
        ended = `done${used}`;
        return;
      }
      const chunk = JSON.parse(event);
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) used = `, ${count(chunk.usage.prompt_tokens)} + ${count(chunk.usage.completion_tokens)} tokens`;
      const delta = chunk.choices?.[0]?.delta ?? {};
      $("answer").append(delta.content ?? delta.refusal ?? "");
    }
    throw new Error("The stream ended before the answer did.");
  } catch (error) {
    const broke = known === null ? error.message : `broke off: ${error.message}`;
    ended = error.name === "AbortError" ? "stopped" : broke;
    throw error;
  } finally {
    showEnd(known, ended);
  }
}

function showEnd(known, ended) {
  $("told").replaceChildren(known === null ? `No answer: ${ended}` : `${known} · ${ended}`);
  if (known === null) return;
  $("told").append(element("br"), "Decision ", element("code", {}, answered));
  for (const button of verdicts) button.setAttribute("aria-pressed", "false");
  $("verdict-said").textContent = "";
  $("verdict").hidden = false;
}

async function work(...steps) {
  if (running) return;
  if (!$("text").value.trim() && !pictures.length) {
    notice("There is nothing to ask yet: type a prompt or choose a picture.", "plain");
    $("text").focus();
    return;
  }
  notice("");
  running = new AbortController();
  $("send").disabled = $("explain").disabled = true;
  $("stop").hidden = false;
  try {
    for (const step of steps) await step();
  } catch (error) {
    if (error.name !== "AbortError") failed(error);
  } finally {
    running = null;
    const stopped = document.activeElement === $("stop");
    $("send").disabled = $("explain").disabled = false;
    $("stop").hidden = true;
    if (stopped) $("send").focus();
  }
}

// ------------------------------------------------------------------------------------- feedback

const verdicts = [...$("verdict").querySelectorAll("button")];

async function judge(button) {
  $("verdict-said").textContent = "";
  try {
    await ask("v1/feedback", { body: { decision_id: answered, verdict: button.dataset.verdict } });
    for (const each of verdicts) each.setAttribute("aria-pressed", String(each === button));
    $("verdict-said").textContent = "Thank you, kept.";
  } catch (error) {
    failed(error);
  }
}

let failed = null;

export function startPlayground(onFailure) {
  failed = onFailure;
  $("pictures").addEventListener("change", addPictures);
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    work(decide, answer);
  });
  $("explain").addEventListener("click", () => work(decide));
  $("stop").addEventListener("click", () => running?.abort());
  $("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit($("send"));
  });
  for (const button of verdicts) button.addEventListener("click", () => judge(button));
}
