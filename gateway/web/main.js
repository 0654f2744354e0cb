/** Puts the page together: the form begins runs, the address says which is open, the models say what can be asked for. */

import { PromptForm } from "./prompt_form.js";
import { byId, createElement, prefersStillness } from "./dom.js";
import { createRun, withRetry, listModels, newRequestId } from "./api.js";
import { RunHistory } from "./run_history.js";
import { clearError, announce, showError } from "./notifications.js";
import { RunController } from "./run_controller.js";
import { WORKERS } from "./labels.js";

const MODELS_EVERY_MS = 5_000;
const MODELS_SELDOM_MS = 10_000;
const RUN_ADDRESS = /^#\/(runs\/[\w-]+)$/;

const ask = new PromptForm((spec) => begin(spec));
const past = new RunHistory((name) => {
  if (session.run?.name === name) location.hash = "#/";
});
const session = new RunController({
  models: () => ask.models,
  onReuse: (spec) => {
    ask.fill(spec);
    byId("prompt").focus();
  },
  onChange: debounce(() => past.load()),
});

/** @param {any} spec @param {string} [requestId] kept by repeated attempts: they make no second run */
async function begin(spec, requestId = newRequestId()) {
  clearError();
  byId("begin").disabled = true;
  announce("Asking for sketches.");
  try {
    const run = await withRetry(() => createRun(requestId, spec));
    session.open(run.name, run);
    history.pushState(null, "", `#/${run.name}`);
    past.mark(run.name);
    past.load();
    byId("run").scrollIntoView({ behavior: prefersStillness() ? "auto" : "smooth", block: "nearest" });
  } catch (error) {
    showError(error, () => begin(spec, requestId));
  } finally {
    byId("begin").disabled = false;
  }
}

/** Opens what the address names. */
function route() {
  const name = RUN_ADDRESS.exec(location.hash)?.[1];
  past.mark(name ?? "");
  if (name === session.run?.name) return;
  clearError();
  if (name) session.open(name);
  else session.close();
}

/** What was served when it was asked last, as text. */
let lastServed = "";

/** Asks what is served, again and again: often while a stage is missing, now and then once all are there. */
async function loadModels() {
  let isWhole = false;
  try {
    const served = await listModels();
    // Nothing is touched that somebody may be typing into.
    if (JSON.stringify(served) !== lastServed) {
      lastServed = JSON.stringify(served);
      ask.setModels(served);
      showModels(served);
    }
    isWhole = Object.keys(ask.models).length === Object.keys(WORKERS).length;
  } catch (error) {
    lastServed = "";
    byId("models").replaceChildren("The gateway does not answer yet.");
    if (/** @type {any} */ (error).status === 401) {
      showError(error, start);
      return;
    }
  }
  setTimeout(loadModels, isWhole ? MODELS_SELDOM_MS : MODELS_EVERY_MS);
}

/** @param {any[]} served */
function showModels(served) {
  const missing = Object.entries(WORKERS).filter(([stage]) => !ask.models[stage]).map(([, worker]) => worker);
  const names = [...new Set(served.map(({ model }) => model.name))].join(", ");
  const text = missing.length ? `No ${missing.join(" and no ")} yet` : `Models: ${names}`;
  byId("models").replaceChildren(createElement("span", { class: missing.length ? "light off" : "light", "aria-hidden": true }), text);
}

/** @param {() => void} act @returns {() => void} does it once for all calls of half a second */
function debounce(act) {
  /** @type {number|undefined} */
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, 500);
  };
}

/** @param {HTMLElement} box */
function goTo(box) {
  box.scrollIntoView({ behavior: prefersStillness() ? "auto" : "smooth", block: "start" });
  box.focus({ preventScroll: true });
}

function start() {
  loadModels();
  past.load();
  route();
}

byId("skip").addEventListener("click", (/** @type {Event} */ event) => {
  event.preventDefault();
  goTo(byId("panels"));
});
byId("to-past").addEventListener("click", () => goTo(byId("past")));
byId("loading").remove();
addEventListener("hashchange", route);
addEventListener("popstate", route);
start();
