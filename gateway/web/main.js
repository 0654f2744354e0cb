/** Builds the page from its parts: form, address, models, runs. */

import { byId, createElement, debounce, scrollTo, setProps } from "./dom.js";
import { GatewayError, createRun, isAway, listModels, newRequestId, withRetry } from "./api.js";
import { PromptForm } from "./prompt_form.js";
import { RunController } from "./run_controller.js";
import { RunHistory } from "./run_history.js";
import { RunQueue } from "./run_queue.js";
import { Settings } from "./settings.js";
import { SettingsPanel } from "./settings_panel.js";
import { StatusBar } from "./status_bar.js";
import { VocabularyPanel } from "./vocabulary_panel.js";
import { Welcome } from "./welcome.js";
import { acceptFiles, readSource } from "./source_image.js";
import { announce, clearError, showConnection, showError, showNote, showWaiting } from "./notifications.js";
import { STAGES, STAGE_NAMES } from "./stages.js";
import { LANGUAGES, language, setLanguage, t } from "./texts.js";

const MODELS_EVERY_MS = 3_000;
const MODELS_SELDOM_MS = 10_000;
const RUN_ADDRESS = /^#\/(runs\/[\w-]+)(?:\/([\w-]+))?$/;
const MAX_SEED = 2n ** 64n;

/** Loaded when it is first needed. @param {string[]} names */
const saveRuns = async (names) => (await import("./run_export.js")).saveRuns(names);

buildFrame();
const settings = new Settings();
const form = new PromptForm(settings, submit);
new SettingsPanel(settings);
const statusBar = new StatusBar();
const welcome = new Welcome((prompt, seed) => {
  form.replacePrompt(prompt);
  form.setSeed(seed ?? "");
  form.focus();
  scrollTo(byId("ask"), "nearest");
});
const vocabulary = new VocabularyPanel((word) => {
  form.addWord(word);
  announce(t("vocabulary.added", { word }));
});
/** @type {any} */
let shownGenerator;
settings.onChange(() => {
  statusBar.showModels(settings.models);
  const { generate } = settings.models;
  if (generate === shownGenerator) return;
  shownGenerator = generate;
  vocabulary.setModel(generate);
  welcome.setModel(generate);
});
const queue = new RunQueue({
  onBegun: (run) => showNote(t("queue.begun", { prompt: run.spec.prompt })),
  onChange: (numBusy) => {
    setProps(byId("nav-busy"), { text: numBusy ? String(numBusy) : "" });
    refreshRuns();
  },
  onAnswer,
});
const controller = new RunController({
  settings,
  prompt: () => form.text,
  onShow: (run, image) => history.replaceState(null, "", `#/${run}/${image}`),
  onNewRun: (run) => show(run),
  onOpen: (name) => queue.show(name),
  onReuse,
  onChange: () => {
    refreshBusy();
    refreshRuns();
  },
  onZip: saveRuns,
});
const runs = new RunHistory({
  onDeleted: (name) => {
    if (controller.run?.name === name) controller.close();
  },
  onZip: saveRuns,
});
const refreshRuns = debounce(() => runs.load());
const refreshBusy = debounce(() => queue.poll(), 50);

/** The parts that stand there from the beginning. Their texts are in the person's language. */
function buildFrame() {
  document.documentElement.lang = language();
  document.title = t("page.title");
  setProps(byId("skip"), { text: t("page.skip") });
  setProps(byId("page-heading"), { text: t("page.heading") });
  setProps(byId("brand"), { "aria-label": t("page.home") });
  setProps(byId("nav"), { "aria-label": t("page.nav") });
  setProps(byId("nav-create-text"), { text: t("page.create") });
  setProps(byId("nav-runs-text"), { text: t("page.runs") });
  setProps(byId("ask"), { "aria-label": t("prompt.form") });
  setProps(byId("run-progress"), { "aria-label": t("run.progress") });
  const other = Object.keys(LANGUAGES).find((one) => one !== language()) ?? "en";
  const button = createElement("button", { type: "button", class: "link", id: "language", lang: other, text: LANGUAGES[other], onclick: () => setLanguage(other) });
  byId("nav").append(button);
}

/** @param {import("./prompt_form.js").Request} request */
function submit(request) {
  const spec = settings.promptSpec(request.prompt, request);
  begin(spec, queue.isBusy);
}

/** @param {any} spec @param {boolean} [inTurn] after what was begun here before @param {string} [requestId] kept by repeated attempts: they make no second run */
async function begin(spec, inTurn = false, requestId = newRequestId()) {
  clearError();
  byId("begin").disabled = true;
  announce(t("announce.begin"));
  try {
    const run = await withRetry(() => createRun(requestId, spec, inTurn), showWaiting);
    clearError();
    if (inTurn && Number(run.queue_order)) {
      queue.add(run);
      showNote(t("queue.note", { prompt: spec.prompt }));
    } else show(run);
  } catch (error) {
    showError(error, () => begin(spec, inTurn, requestId));
  } finally {
    byId("begin").disabled = false;
  }
}

/** A run that has just begun. @param {any} run */
function show(run) {
  queue.follow(run);
  history.pushState(null, "", `#/${run.name}`);
  controller.open(run.name, run);
  showView(false);
  runs.mark(run.name);
  refreshRuns();
  scrollTo(byId("studio"), "nearest");
}

/** @param {any} spec @param {"again"|"more"|"seed"|"restore"} action @param {import("./run_state.js").Picture} [picture] */
function onReuse(spec, action, picture) {
  if (!spec) return;
  // The gateway keeps pictures by their sha256; they are not sent again from here.
  const hasPictures = spec.init_images?.length || spec.generate?.image_prompts?.length;
  if (action === "restore") {
    form.replacePrompt(spec.prompt);
    form.setSeed(spec.seed ?? "");
    settings.restoreSpec(spec);
    showNote(t("reuse.restored"));
  } else if (action === "seed") {
    form.setSeed(picture?.image?.seed ?? "");
    showNote(t("reuse.seed", { seed: picture?.image?.seed ?? "" }));
  } else if (hasPictures) {
    showNote(t("reuse.no_picture"));
  } else if (action === "more" && spec.generate) {
    // Image i of a run has the seed plus i: the first that the run has not used; one that failed has its own again.
    const offset = picture && picture.state !== "ready" ? picture.index : Number(spec.generate.count);
    const seed = String((BigInt(spec.seed) + BigInt(offset)) % MAX_SEED);
    begin({ ...spec, seed, generate: { ...spec.generate, count: 1 } });
  } else {
    const { seed: _, ...rest } = spec;
    begin(rest);
  }
}

/** Pictures that the person brought: of two the second is mixed into the first, where that is served. @param {Blob} file @param {Blob} [second] */
async function onFile(file, second) {
  clearError();
  try {
    const source = await readSource(file);
    history.pushState(null, "", "#/");
    showView(false);
    runs.mark("");
    controller.openOwn(source, second && (await readSource(second)));
    if (source.text.prompt && source.text.Software?.startsWith("triptych")) restoreFrom(source.text);
    scrollTo(byId("studio"), "nearest");
  } catch {
    showError(new GatewayError("", { status: 400, reason: "NOT_A_PICTURE" }));
  }
}

/** The settings in an image's file. @param {Object<string, string>} text */
function restoreFrom(text) {
  form.replacePrompt(text.prompt);
  form.setSeed((text.stage === "generate" ? text.seed : text["base-seed"] ?? text.seed) ?? "");
  try {
    if (text.settings) settings.restoreSpec(JSON.parse(text.settings));
  } catch {
    // Written by another program: the prompt and the seed are all there is.
  }
  showNote(t("source.restored"));
}

/** @param {boolean} isRuns */
function showView(isRuns) {
  byId("create").hidden = isRuns;
  byId("runs").hidden = !isRuns;
  setProps(byId("nav-create"), { "aria-current": !isRuns && "page" });
  setProps(byId("nav-runs"), { "aria-current": isRuns && "page" });
}

let isFirst = true;

/** Opens what the address names. */
function route() {
  const [, name, image] = RUN_ADDRESS.exec(location.hash) ?? [];
  const isRuns = location.hash === "#/runs";
  showView(isRuns);
  if (isRuns) {
    runs.load();
    return;
  }
  runs.mark(name ?? "");
  if (name && name === controller.run?.name) {
    if (image) controller.pick(`${name}/images/${image}`);
  } else if (name) {
    clearError();
    const hadDraft = isFirst && form.text;
    controller.open(name, undefined, image).then(() => {
      const prompt = controller.run?.spec?.prompt;
      if (controller.run?.name === name && prompt && !hadDraft && prompt !== form.text) form.replacePrompt(prompt);
    });
  } else if (!controller.own) {
    controller.close();
  }
  isFirst = false;
}

let wasAway = false;

/** The gateway went away, or came back, while nothing was asked of it. @param {any} error of the newest poll, or null */
function onAnswer(error) {
  if (error?.status === 401 || error?.status === 403) showError(error, start);
  const away = isAway(error);
  if (away) {
    statusBar.showAway();
    showConnection("lost");
  } else if (wasAway && !error) {
    lastServed = "";
    showConnection("live");
    clearTimeout(modelsTimer);
    loadModels();
  }
  wasAway = away;
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
      /** @type {Object<string, any[]>} */
      const models = {};
      for (const { model } of served) (models[STAGE_NAMES[model.stage]] ??= []).push(model);
      settings.setModels(models);
    }
    isWhole = Object.keys(settings.models).length === STAGES.length;
  } catch (error) {
    lastServed = "";
    statusBar.showAway();
    if (/** @type {any} */ (error).status === 401 || /** @type {any} */ (error).status === 403) {
      showError(error, start);
      return;
    }
  }
  modelsTimer = setTimeout(loadModels, isWhole ? MODELS_SELDOM_MS : MODELS_EVERY_MS);
}

/** @type {number|undefined} */
let modelsTimer;

function start() {
  clearTimeout(modelsTimer);
  loadModels();
  runs.load();
  route();
}

byId("skip").addEventListener("click", (/** @type {Event} */ event) => {
  event.preventDefault();
  byId("main").focus();
});
byId("brand").addEventListener("click", () => {
  if (controller.own) controller.close();
});
byId("loading").remove();
acceptFiles(onFile);
addEventListener("hashchange", route);
addEventListener("popstate", route);
start();
