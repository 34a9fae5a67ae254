// The page of the service: tabs and the key. The key stays in this tab's session storage.

import { $, key, notice } from "./common.js";
import { refresh, startDashboard } from "./dashboard.js";
import { loadModels, startPlayground } from "./playground.js";

// ------------------------------------------------------------------------------------- tabs

const tabs = [$("tab-playground"), $("tab-dashboard")];

function show(tab) {
  for (const each of tabs) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", String(chosen));
    each.tabIndex = chosen ? 0 : -1;
    $(each.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (tab === $("tab-dashboard")) refresh();
}

for (const tab of tabs) {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const at = tabs.indexOf(tab);
    const places = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 };
    if (!(event.key in places)) return;
    event.preventDefault();
    const next = tabs.at(places[event.key] % tabs.length);
    show(next);
    next.focus();
  });
}

// ------------------------------------------------------------------------------------- the key

function showKey(wanted) {
  const held = key.get();
  $("key-form").hidden = !wanted;
  $("key-held").hidden = wanted || !held;
  $("key-id").textContent = held ? held.split("-").slice(0, 2).join("-") : "";
}

let troubled = false; // the notice on show is the dashboard's

function failed(error) {
  if (error.status !== 401) return notice(error.message);
  const held = key.get();
  key.forget();
  showKey(true);
  if (held) notice(error.message);
  else notice("This service wants an API key: enter yours above. It stays in this tab.", "plain");
}

function dashboardTold(error) {
  if (error) failed(error);
  else if (troubled) notice("");
  troubled = error !== null;
}

async function enter() {
  try {
    await loadModels();
    notice("");
    showKey(false);
    if (!$("dashboard").hidden) refresh();
  } catch (error) {
    failed(error);
  }
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const typed = $("key").value.trim();
  $("key").value = "";
  if (!/^[\x21-\x7e]+$/.test(typed)) return notice("That is no API key: a key has letters, digits and dashes.");
  key.set(typed);
  enter();
});

$("key-forget").addEventListener("click", () => {
  key.forget();
  location.reload();
});

startPlayground(failed);
startDashboard(dashboardTold);
enter();
