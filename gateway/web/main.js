/** Puts the page together: the form begins runs, the address says which is open, the models say what can be asked for. */

import { Ask } from "./prompt_form.js";
import { byId, make, prefersStillness } from "./dom.js";
import { createRun, insist, listModels, newRequestId } from "./api.js";
import { Past } from "./run_history.js";
import { calm, say, trouble } from "./notifications.js";
import { Session } from "./run_controller.js";
import { WORKERS } from "./labels.js";

const MODELS_EVERY_MS = 5_000;
const MODELS_SELDOM_MS = 10_000;
const RUN_ADDRESS = /^#\/(runs\/[\w-]+)$/;

const ask = new Ask((spec) => begin(spec));
const past = new Past((name) => {
  if (session.run?.name === name) location.hash = "#/";
});
const session = new Session({
  models: () => ask.models,
  onReuse: (spec) => {
    ask.fill(spec);
    byId("prompt").focus();
  },
  onChange: soon(() => past.load()),
});

/** @param {any} spec @param {string} [requestId] kept by repeated attempts: they make no second run */
async function begin(spec, requestId = newRequestId()) {
  calm();
  byId("begin").disabled = true;
  say("Asking for sketches.");
  try {
    const run = await insist(() => createRun(requestId, spec));
    session.open(run.name, run);
    history.pushState(null, "", `#/${run.name}`);
    past.mark(run.name);
    past.load();
    byId("run").scrollIntoView({ behavior: prefersStillness() ? "auto" : "smooth", block: "nearest" });
  } catch (error) {
    trouble(error, () => begin(spec, requestId));
  } finally {
    byId("begin").disabled = false;
  }
}

/** Opens what the address names. */
function route() {
  const name = RUN_ADDRESS.exec(location.hash)?.[1];
  past.mark(name ?? "");
  if (name === session.run?.name) return;
  calm();
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
      trouble(error, start);
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
  byId("models").replaceChildren(make("span", { class: missing.length ? "light off" : "light", "aria-hidden": true }), text);
}

/** @param {() => void} act @returns {() => void} does it once for all calls of half a second */
function soon(act) {
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
