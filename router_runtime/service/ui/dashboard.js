// The caller's own figures, read again every few seconds while they are looked at.

import { $, ask, bar, count, drawn, duration, element, moment, NONE, percent, table, usd, usdColumn } from "./common.js";

const REFRESH_MS = 3000;
const NUMBER = "number";
const CLIENT_LEFT = 499;

let shown = "";
let asking = false;
let failed = null;

function tile(name, value, hint) {
  return element(
    "div",
    {},
    element("dt", {}, name),
    element("dd", {}, element("span", { class: "figure" }, value), hint ? element("span", { class: "hint" }, hint) : null)
  );
}

function drawTotals(found) {
  const share = found.requests ? found.errors / found.requests : null;
  const only = found.decided_only ? `${count(found.decided_only)} decided only` : null;
  const left = found.left ? `${count(found.left)} left by clients` : null;
  const saved = found.saved_share === null ? null : `${percent(found.saved_share)} less than`;
  $("totals").replaceChildren(
    tile("Requests", count(found.requests), [only, left].filter(Boolean).join(", ")),
    tile("Failed", count(found.errors), share === null ? null : percent(share)),
    tile("Spent", usd(found.cost_usd), found.estimated_usd > 0 ? `${usd(found.estimated_usd)} estimated` : null),
    tile("Saved", usd(found.saved_usd), saved && found.baseline ? `${saved} ${found.baseline}` : null),
    tile("In flight now", count(found.in_flight), found.records_lost ? `${count(found.records_lost)} records lost` : null)
  );
}

function drawTimeline({ timeline, requests }) {
  if (!requests) return $("timeline").replaceChildren(element("p", { class: "hint" }, "No requests in this window."));
  const most = Math.max(...timeline.map((slot) => slot.requests));
  const height = (value) => (100 * value) / most;
  const shapes = timeline.flatMap((slot, at) => [
    drawn("rect", { class: "value", x: at + 0.08, width: 0.84, y: 100 - height(slot.requests), height: height(slot.requests) }),
    drawn("rect", { class: "failed", x: at + 0.08, width: 0.84, y: 100 - height(slot.errors), height: height(slot.errors) }),
  ]);
  const frame = {
    viewBox: `0 0 ${timeline.length} 100`,
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": `Requests over time; at most ${count(most)} in one bar`,
  };
  const minutes = (timeline[1].at - timeline[0].at) / 60;
  const width = minutes >= 60 ? `${Number((minutes / 60).toFixed(1))} h` : `${Number(minutes.toFixed(1))} min`;
  $("timeline").replaceChildren(
    element("div", { class: "timeline" }, drawn("svg", frame, ...shapes)),
    element(
      "p",
      { class: "axis hint" },
      element("span", {}, moment(timeline[0].at)),
      element("span", {}, `a bar is ${width}, the tallest ${count(most)}; failed ones at its foot`),
      element("span", {}, "now")
    )
  );
}

function drawModels({ models }) {
  const cost = usdColumn(models.map((each) => each.cost_usd));
  const rows = models.map((each) => [
    [each.model, "model"],
    [bar(each.share), "drawing"],
    [percent(each.share), NUMBER],
    [each.failed ? count(each.failed) : NONE, each.failed ? "number bad" : NUMBER],
    [cost(each.cost_usd), NUMBER],
  ]);
  const columns = [["Model"], ["Share of answers", "drawing"], ["", NUMBER], ["Failed", NUMBER], ["USD", NUMBER]];
  $("shares").replaceChildren(table(columns, rows, "No calls in this window."));
}

function drawLatency({ latency }) {
  const rows = latency.map((each) => [[each.part], [duration(each.p50_s), NUMBER], [duration(each.p95_s), NUMBER]]);
  $("latency").replaceChildren(table([["Part"], ["Median", NUMBER], ["95th", NUMBER]], rows, "No answers in this window."));
}

function drawBreakers({ breakers }) {
  const kinds = { closed: "good", half_open: "warn" };
  const told = { closed: "closed", half_open: "trying again", open: "open, resting" };
  const rows = breakers.map((each) => [
    [each.model, "model"],
    [told[each.state] ?? each.state, `${kinds[each.state] ?? "bad"} nowrap`],
  ]);
  $("breakers").replaceChildren(table([["Target"], ["State"]], rows, "No targets."));
}

function drawRecent({ recent }) {
  const cost = usdColumn(recent.map((each) => each.cost_usd));
  const answeredBy = (each) => each.served ?? (each.status < 400 ? `${each.chosen ?? NONE} (not called)` : NONE);
  const verdict = (score) => (score === null ? NONE : score === 1 ? "good" : score === 0 ? "bad" : score.toFixed(2));
  const rows = recent.map((each) => [
    [moment(each.at), "nowrap"],
    [each.requested, "model"],
    [answeredBy(each), "model"],
    [(each.error ?? each.reason ?? NONE).replaceAll("_", " "), "nowrap"],
    [String(each.status), each.status < 400 ? "good" : each.status === CLIENT_LEFT ? "warn" : "bad"],
    [duration(each.total_s), NUMBER],
    [each.served === null && each.cost_usd === 0 ? NONE : cost(each.cost_usd), NUMBER],
    [verdict(each.score)],
  ]);
  const columns = [
    ["Time"], ["Asked for"], ["Answered by"], ["Why"], ["Status"], ["Took", NUMBER], ["USD", NUMBER], ["Feedback"],
  ];
  $("recent").replaceChildren(table(columns, rows, "No decisions yet. Ask something in the playground."));
}

export async function refresh() {
  if (asking) return;
  asking = true;
  try {
    const found = await (await ask(`ui/api/summary?seconds=${$("window").value}`)).json();
    const now = JSON.stringify(found);
    if (now !== shown) {
      for (const draw of [drawTotals, drawTimeline, drawModels, drawLatency, drawBreakers, drawRecent]) draw(found);
    }
    shown = now;
    $("fresh").textContent = `as of ${new Date().toLocaleTimeString("en-GB")}`;
    failed(null);
  } catch (error) {
    failed(error);
  } finally {
    asking = false;
  }
}

export function startDashboard(onFailure) {
  failed = onFailure;
  $("window").addEventListener("change", refresh);
  $("live").addEventListener("change", () => $("live").checked && refresh());
  setInterval(() => {
    if (!$("dashboard").hidden && !document.hidden && $("live").checked) refresh();
  }, REFRESH_MS);
}
