// What both views share: making elements, asking the service, telling numbers. Everything that
// comes from a request or an answer is set as text, never as markup.

export const $ = (id) => document.getElementById(id);

const KEY = "model-router-key";
const SVG = "http://www.w3.org/2000/svg";

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const element = (tag, attributes = {}, ...children) =>
  filled(document.createElement(tag), attributes, children);

export const drawn = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);

// ------------------------------------------------------------------------------------- the service

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

export class Failure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export async function ask(path, { body, ...options } = {}) {
  const held = key.get();
  const headers = { ...options.headers };
  if (held) headers.authorization = `Bearer ${held}`;
  if (body) headers["content-type"] = "application/json";
  const method = body ? "POST" : "GET";
  const sent = body ? JSON.stringify(body) : undefined;
  let answer;
  try {
    answer = await fetch(path, { ...options, method, body: sent, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The service does not answer.", 0);
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  const message = told?.error?.message ?? `The service answered with status ${answer.status}.`;
  throw new Failure(message, answer.status);
}

export function notice(text, kind = "bad") {
  $("notice").textContent = text;
  $("notice").className = kind;
}

// ------------------------------------------------------------------------------------- numbers

const MOST_DECIMALS = 6;
const missing = (value) => value === null || value === undefined;

export const NONE = "–";
export const count = (value) => value.toLocaleString("en");
export const percent = (share) => (missing(share) ? NONE : `${(100 * share).toFixed(1)} %`);

function decimals(value) {
  const size = Math.abs(value);
  return size === 0 || size >= 1 ? 2 : Math.min(9, 1 + Math.ceil(-Math.log10(size)));
}

const dollars = (value, digits) => {
  const shown = Math.abs(value).toLocaleString("en", {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
  return `${value < 0 ? "−" : ""}$${shown}`;
};

export const usd = (value) =>
  missing(value) ? NONE : value === 0 ? "$0" : dollars(value, decimals(value));

// Amounts below one another: as many decimals for all as the smallest needs.
export function usdColumn(values) {
  const digits = values.filter((value) => value).map(decimals);
  const most = Math.min(MOST_DECIMALS, Math.max(2, ...digits));
  const least = 10 ** -most;
  return (value) => {
    if (missing(value)) return NONE;
    if (value === 0) return "$0";
    return Math.abs(value) < least ? `<${dollars(least, most)}` : dollars(value, most);
  };
}

export function duration(seconds) {
  if (missing(seconds)) return NONE;
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  const ms = 1000 * seconds;
  return `${ms.toFixed(ms >= 100 ? 0 : ms >= 10 ? 1 : 2)} ms`;
}

export function moment(at) {
  const date = new Date(1000 * at);
  const time = date.toLocaleTimeString("en-GB");
  const today = date.toDateString() === new Date().toDateString();
  return today ? time : `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${time}`;
}

// ------------------------------------------------------------------------------------- drawing

const VALUE_WIDTH = 100;

export function bar(value, { threshold = null, below = false } = {}) {
  const shapes = [drawn("rect", { class: below ? "value below" : "value", width: VALUE_WIDTH * value, height: 10 })];
  if (!missing(threshold)) {
    const x = VALUE_WIDTH * threshold;
    shapes.push(drawn("line", { class: "threshold", x1: x, x2: x, y1: 0, y2: 10 }));
  }
  const frame = { viewBox: `0 0 ${VALUE_WIDTH} 10`, preserveAspectRatio: "none", "aria-hidden": "true" };
  return element("div", { class: "bar" }, drawn("svg", frame, ...shapes));
}

// Rows of cells; a cell is [content, class]. A column is [name, class].
export function table(columns, rows, empty) {
  if (!rows.length) return element("p", { class: "hint" }, empty);
  const head = columns.map(([name, kind]) => element("th", { class: kind, scope: "col" }, name));
  const line = (row) => element("tr", {}, ...row.map(([content, kind]) => element("td", { class: kind }, content)));
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...rows.map(line))
  );
}
