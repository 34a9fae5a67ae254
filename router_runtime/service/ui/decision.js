// A decision of /v1/route as a list of candidates, best first: what each is worth and why not.

import { bar, element, NONE, percent, usdColumn } from "./common.js";

const REASONS = {
  cheapest_qualified: "the cheapest of those that reach their threshold",
  none_qualified_highest_probability: "none reaches its threshold, so the most probable one",
  highest_utility: "the best probability for its price",
  highest_probability: "the highest probability",
  fixed: "the policy always takes this one",
  fixed_ineligible_highest_probability: "the policy's own cannot serve this, so the most probable one",
  only_eligible: "the only one that can serve this",
  novel_query_fallback: "the query is unlike the training data, so the one that is best alone",
  low_confidence_fallback: "no prediction is sure enough, so the one that is best alone",
  sticky: "the conversation stays with the model that it began with",
  router_failure: "the router failed, so a default model",
  requested: "the request names the model, so nothing is predicted",
};

const words = (reason) => reason.replaceAll("_", " ");
const number = (value, digits) => (value === null || value === undefined ? NONE : value.toFixed(digits));

// U = P - lambda x cost, where the policy weighs so; null elsewhere or where the cost is unknown.
function utility(candidate, lambda) {
  const known = typeof candidate.probability === "number" && typeof candidate.expected_cost === "number";
  return known && lambda !== undefined ? candidate.probability - lambda * candidate.expected_cost : null;
}

function remark(candidate, worth, below) {
  if (!candidate.eligible) return `left out: ${words(candidate.reason ?? "unknown")}`;
  if (typeof candidate.threshold === "number") {
    return `${below ? "below" : "reaches"} its threshold of ${candidate.threshold.toFixed(2)}`;
  }
  return worth === null ? null : `worth ${worth.toFixed(3)} after its price`;
}

function row(candidate, { chosen, lambda, usd }) {
  const { probability, threshold, eligible } = candidate;
  const known = typeof probability === "number";
  const below = known && typeof threshold === "number" && probability < threshold;
  const said = remark(candidate, utility(candidate, lambda), below);
  const kind = ["candidate", chosen ? "chosen" : null, eligible ? null : "out"].filter(Boolean).join(" ");
  return element(
    "li",
    { class: kind },
    element("span", { class: "name" }, candidate.model, chosen ? element("span", { class: "badge" }, "chosen") : null),
    element("span", { class: "probability" }, number(probability, 3)),
    element("span", { class: "cost" }, usd(candidate.expected_cost)),
    known ? bar(probability, { threshold, below: below || !eligible }) : null,
    said ? element("span", { class: "remark" }, said) : null
  );
}

function steps(found) {
  const line = (step) => {
    const detail = Object.entries(step.detail)
      .filter(([, value]) => typeof value !== "object" && String(value).length <= 40)
      .map(([name, value]) => `${words(name)} ${typeof value === "number" ? Number(value.toPrecision(4)) : value}`);
    return element("li", {}, `${step.name}: ${words(step.reason)}`, detail.length ? ` (${detail.join(", ")})` : null);
  };
  return element("details", {}, element("summary", {}, "Steps"), element("ol", {}, ...found.steps.map(line)));
}

export function decided(found) {
  const predicted = found.candidates.some((each) => typeof each.probability === "number");
  const lambda = found.steps.find((step) => step.name === "policy")?.detail.lambda_per_usd;
  const thresholds = Object.keys(found.thresholds).length > 0;
  const usd = usdColumn(found.candidates.map((each) => each.expected_cost));
  const facts = [
    found.policy ? `Policy ${found.policy}` : null,
    lambda === undefined ? null : `a cent weighs ${Number((lambda / 100).toPrecision(3))} of P(good)`,
    found.novelty === null ? null : `novelty ${percent(found.novelty)}`,
  ].filter(Boolean);
  const legend = [
    element("span", { class: "name" }, thresholds ? "Candidate, with its threshold as a line" : "Candidate"),
    element("span", { class: "probability" }, "P(good)"),
    element("span", { class: "cost" }, "USD a call"),
  ];
  const show = (each) => row(each, { chosen: each.model === found.model, lambda, usd });
  // A conversation may stay with a candidate that is not the policy's first.
  const chosenFirst = [...found.candidates].sort((a, b) => (b.model === found.model) - (a.model === found.model));
  return [
    element("p", { class: "lead" }, element("strong", {}, found.model), ` – ${REASONS[found.reason] ?? words(found.reason)}`),
    facts.length ? element("p", { class: "hint" }, facts.join(" · ")) : null,
    predicted ? element("div", { class: "candidate legend", "aria-hidden": "true" }, ...legend) : null,
    predicted ? element("ol", { class: "candidates", "aria-label": "Candidates" }, ...chosenFirst.map(show)) : null,
    steps(found),
    element("p", { class: "hint" }, "Decision ", element("code", {}, found.decision_id)),
  ].filter(Boolean);
}
