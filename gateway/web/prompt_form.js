/** The form: from what a person wants to a RunSpec, with what the loaded models say of themselves. */

import { byId, createElement } from "./dom.js";
import { knownTo, unknownWords } from "./vocabulary.js";
import { STAGE_NAMES } from "./run_state.js";

const NUM_EXAMPLES = 5;
// So many previews of a picture are worth their decoding.
const NUM_PREVIEWS = 8;
const SKETCH_PREVIEW_EVERY = 32;

/**
 * @typedef {object} Setting
 * @property {string} stage
 * @property {string} name as the contract has it
 * @property {string} label
 * @property {string} help
 * @property {Object<string, any>} [input] attributes
 */

/** @type {Setting[]} */
const SETTINGS = [
  { stage: "generate", name: "temperature", label: "Temperature", help: "below 1 safer, above 1 wilder", input: { min: 0.01, step: "any" } },
  { stage: "generate", name: "guidance_scale", label: "Guidance", help: "how hard the prompt is followed", input: { step: "any" } },
  { stage: "generate", name: "top_k", label: "Top k", help: "choose among the k likeliest tokens; 0: all", input: { min: 0, step: 1 } },
  { stage: "generate", name: "top_p", label: "Top p", help: "choose among the likeliest that reach this", input: { min: 0.01, max: 1, step: "any" } },
  { stage: "refine", name: "count", label: "Variations", help: "of each sketch you click", input: { min: 1, max: 64, step: 1, placeholder: 6 } },
  { stage: "refine", name: "skip_ratio", label: "Keep of the sketch", help: "0: little, near 1: nearly all", input: { min: 0, max: 0.99, step: "any" } },
  { stage: "refine", name: "num_steps", label: "Steps", help: "points of the noise schedule", input: { min: 1, max: 1000, step: 1 } },
  { stage: "refine", name: "guidance_scale", label: "Guidance", help: "how hard the prompt is followed", input: { step: "any" } },
  { stage: "refine", name: "negative_prompt", label: "Without", help: "what it should not show", input: { type: "text", maxlength: 500 } },
  { stage: "upscale", name: "tile_size", label: "Tile", help: "its side in pixels; 0: in one piece", input: { min: 0, max: 4096, step: 1 } },
  { stage: "upscale", name: "tile_overlap", label: "Overlap", help: "pixels that tiles share", input: { min: 0, max: 1024, step: 1 } },
];
const TITLES = { generate: "Sketch", refine: "Refine", upscale: "Enlarge" };
const DEFAULT_VARIATIONS = 6;

export class PromptForm {
  /** @param {(spec: object) => void} begin */
  constructor(begin) {
    this.form = byId("ask");
    this.prompt = byId("prompt");
    /** @type {Object<string, any>} ModelInfo by the stage's name */
    this.models = {};
    this.build();
    this.form.addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      if (this.prompt.value.trim()) begin(this.spec());
    });
    this.prompt.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
    this.prompt.addEventListener("input", () => this.onPrompt());
    addEventListener("resize", () => this.fitPrompt());
    for (const name of ["advanced", "vocabulary"]) {
      byId(`${name}-button`).addEventListener("click", () => fold(name));
    }
  }

  build() {
    const stages = ["generate", "refine", "upscale"].map((stage) =>
      createElement(
        "fieldset",
        {},
        createElement("legend", { text: TITLES[/** @type {keyof TITLES} */ (stage)] }),
        ...SETTINGS.filter((one) => one.stage === stage).map(settingRow),
      ),
    );
    const choose = createElement(
      "fieldset",
      { class: "mode" },
      createElement("legend", { text: "Who chooses" }),
      radio("manual", "I do: click what is to be refined and enlarged", true),
      radio("automatic", "CLIP does: the best sketch is refined, the best variation enlarged", false),
    );
    this.model = createElement("select", { id: "model", name: "model" });
    this.modelRow = createElement("label", { class: "setting", hidden: true }, createElement("span", { text: "Models" }), this.model);
    byId("advanced").append(choose, ...stages, this.modelRow);
  }

  /** What each stage serves now. @param {any[]} served */
  setModels(served) {
    this.models = {};
    for (const { model } of served) this.models[STAGE_NAMES[model.stage]] ??= model;
    const names = [...new Set(served.map(({ model }) => model.name))];
    this.model.replaceChildren(createElement("option", { value: "", text: "whatever is served" }), ...names.map((name) => createElement("option", { value: name, text: name })));
    this.modelRow.hidden = names.length < 2;
    for (const { stage, name } of SETTINGS) {
      const value = this.models[stage]?.defaults?.[name];
      if (value !== undefined) byId(`${stage}-${name}`).placeholder = String(Math.round(value * 1000) / 1000);
    }
    const most = this.models.generate?.limits?.max_images;
    if (most) byId("count").max = String(Math.min(64, most));
    this.showVocabulary();
    this.showExamples();
    this.onPrompt();
  }

  showVocabulary() {
    const kinds = Object.entries(this.models.generate?.vocabulary ?? {});
    // The contract's map has no order. What there is most of is what pictures are about.
    kinds.sort(([a, of], [b, than]) => than.words.length - of.words.length || a.localeCompare(b));
    byId("vocabulary-button").hidden = !kinds.length;
    const name = this.models.generate?.name;
    byId("vocabulary").replaceChildren(
      createElement("p", { text: `The generator “${name}” was taught these words, and pictures of nothing else. Click one to add it.` }),
      createElement(
        "dl",
        {},
        ...kinds.flatMap(([kind, list]) => [
          createElement("dt", { text: kind }),
          createElement("dd", {}, ...list.words.map((/** @type {string} */ word) => wordButton(word, () => this.add(word)))),
        ]),
      ),
    );
  }

  showExamples() {
    const known = knownTo(this.models.generate);
    const all = this.models.generate?.example_prompts ?? [];
    // Those that say nothing the list lacks come first: nobody's first picture should disappoint.
    const sorted = [...all].sort((a, b) => unknownWords(a, known).length - unknownWords(b, known).length);
    const box = byId("examples");
    box.hidden = !sorted.length;
    const use = (/** @type {string} */ text) => () => {
      this.fill({ prompt: text });
      this.prompt.focus();
    };
    box.replaceChildren(
      createElement("span", { text: "Try", "aria-hidden": true }),
      ...sorted.slice(0, NUM_EXAMPLES).map((text) => wordButton(text, use(text))),
    );
  }

  /** @param {string} word */
  add(word) {
    this.prompt.value = `${this.prompt.value.trimEnd()} ${word}`.trimStart();
    this.onPrompt();
  }

  /** The field is as high as what is written in it. */
  fitPrompt() {
    this.prompt.style.height = "auto";
    this.prompt.style.height = `${this.prompt.scrollHeight}px`;
  }

  onPrompt() {
    this.fitPrompt();
    const known = knownTo(this.models.generate);
    const unknown = known.length ? unknownWords(this.prompt.value, known) : [];
    const words = unknown.map((word) => `“${word}”`).join(", ");
    const text = unknown.length ? `The model may not know ${words}, and would read over ${unknown.length > 1 ? "them" : "it"}.` : "";
    if (byId("unknown").textContent !== text) byId("unknown").textContent = text;
  }

  /** Puts a run's spec, or a part of one, into the form. @param {any} spec */
  fill(spec) {
    this.prompt.value = spec.prompt;
    if (spec.seed !== undefined) byId("seed").value = spec.seed;
    if (spec.generate?.count) byId("count").value = spec.generate.count;
    for (const { stage, name } of SETTINGS) {
      const value = name === "count" ? spec[stage]?.count : spec[stage]?.settings?.[name];
      if (spec.generate) byId(`${stage}-${name}`).value = value ?? "";
    }
    this.onPrompt();
  }

  /** @returns {any} the RunSpec that the form means */
  spec() {
    const isAutomatic = this.form.elements.mode.value === "automatic";
    /** @type {any} */
    const spec = { prompt: this.prompt.value.trim(), model: this.model.value };
    if (byId("seed").value.trim()) spec.seed = byId("seed").value.trim();
    spec.generate = { count: Number(byId("count").value || 8), settings: { preview_every: SKETCH_PREVIEW_EVERY } };
    spec.refine = { count: DEFAULT_VARIATIONS, settings: { preview_every: this.refinePreviewEvery() } };
    spec.upscale = { settings: { preview_every: 4 } };
    for (const { stage, name, input } of SETTINGS) {
      const text = byId(`${stage}-${name}`).value.trim();
      if (!text) continue;
      const value = input?.type === "text" ? text : Number(text);
      if (name === "count") spec.refine.count = value;
      else spec[stage].settings[name] = value;
    }
    // Without its worker a stage cannot be planned; it can be chosen later, when one has come.
    for (const stage of ["refine", "upscale"]) {
      if (this.models.generate && !this.models[stage]) delete spec[stage];
    }
    spec[isAutomatic ? "automatic" : "manual"] = {};
    return spec;
  }

  refinePreviewEvery() {
    const value = (/** @type {string} */ name) =>
      Number(byId(`refine-${name}`).value || this.models.refine?.defaults?.[name] || 0);
    return Math.max(1, Math.round((value("num_steps") * (1 - value("skip_ratio"))) / NUM_PREVIEWS));
  }
}

/** @param {string} name of a folded part */
function fold(name) {
  const isOpen = byId(name).hidden;
  byId(name).hidden = !isOpen;
  byId(`${name}-button`).setAttribute("aria-expanded", String(isOpen));
}

/** @param {Setting} setting */
function settingRow({ stage, name, label, help, input }) {
  const id = `${stage}-${name}`;
  const field = createElement("input", { id, type: "number", "aria-describedby": `${id}-help`, ...input });
  return createElement(
    "div",
    { class: "setting" },
    createElement("label", { for: id, text: label }),
    field,
    createElement("span", { class: "help", id: `${id}-help`, text: help }),
  );
}

/** @param {string} value @param {string} text @param {boolean} isChosen */
function radio(value, text, isChosen) {
  return createElement("label", {}, createElement("input", { type: "radio", name: "mode", value, checked: isChosen }), ` ${text}`);
}

/** @param {string} text @param {() => void} use */
function wordButton(text, use) {
  return createElement("button", { type: "button", class: "word", text, onclick: use });
}
