/** Settings of the stages: what there is, their true values, and the requests they become. No element. */

import { STAGES, STAGE_OF_ACTION } from "./stages.js";
import { load, save } from "./storage.js";

/** @typedef {import("./run_state.js").StageName} StageName */

/**
 * @typedef {object} Setting
 * @property {StageName} stage
 * @property {string} name as the contract has it; those in PAGE_OWN are the page's own
 * @property {"basic"|"advanced"} group
 * @property {"number"|"text"|"choice"} kind
 * @property {string[]} [options] of a choice
 * @property {number} [min] of the page's own; others have the range that the model reports
 * @property {number} [max]
 * @property {number|"any"} [step]
 * @property {number|string} [fallback] where the model has no default
 */

/** @type {Setting[]} */
export const SETTINGS = [
  { stage: "generate", name: "count", group: "basic", kind: "number", min: 1, max: 64, step: 1, fallback: 8 },
  { stage: "generate", name: "guidance_scale", group: "basic", kind: "number", step: "any" },
  { stage: "generate", name: "temperature", group: "basic", kind: "number", step: "any" },
  { stage: "generate", name: "top_k", group: "advanced", kind: "number", step: 1 },
  { stage: "generate", name: "top_p", group: "advanced", kind: "number", step: "any" },
  // Of unCLIP alone.
  { stage: "generate", name: "prior_guidance_scale", group: "advanced", kind: "number", step: "any" },
  { stage: "generate", name: "prior_num_steps", group: "advanced", kind: "number", step: 1 },
  { stage: "generate", name: "decoder_num_steps", group: "advanced", kind: "number", step: 1 },
  { stage: "generate", name: "super_res_num_steps", group: "advanced", kind: "number", step: 1 },
  { stage: "refine", name: "count", group: "basic", kind: "number", min: 1, max: 64, step: 1, fallback: 4 },
  { stage: "refine", name: "negative_prompt", group: "basic", kind: "text", fallback: "" },
  { stage: "refine", name: "skip_ratio", group: "basic", kind: "number", step: "any" },
  { stage: "refine", name: "vary_keep", group: "basic", kind: "number", step: "any" },
  // What the square models are given of a picture of another shape.
  { stage: "refine", name: "fit", group: "basic", kind: "choice", options: ["middle", "start", "end", "whole"], fallback: "middle" },
  { stage: "refine", name: "num_steps", group: "advanced", kind: "number", step: 1 },
  { stage: "refine", name: "guidance_scale", group: "advanced", kind: "number", step: "any" },
  { stage: "upscale", name: "final", group: "basic", kind: "choice", options: ["upscaled", "refined"], fallback: "upscaled" },
  { stage: "upscale", name: "tile_size", group: "advanced", kind: "number", step: 1 },
  { stage: "upscale", name: "tile_overlap", group: "advanced", kind: "number", step: 1 },
];
const PAGE_OWN = new Set(["count", "vary_keep", "fit", "final"]);
// So many previews of a picture are worth their decoding.
const NUM_PREVIEWS = 8;
const SKETCH_PREVIEW_EVERY = 32;
const DECODER_PREVIEW_EVERY = 4;
export const NUM_VARIATIONS = 4;
const UPSCALE_PREVIEW_EVERY = 4;
// An input element includes its bounds.
const JUST_INSIDE = 0.01;
// How much less of a picture "Vary" keeps than "Refine".
const VARY_SHARE = 0.5;

export class Settings {
  constructor() {
    /** @type {Object<string, any>} ModelInfo by the stage's name; of the generator the chosen one */
    this.models = {};
    /** @type {any[]} ModelInfo of every generator that is served, the gateway's default first */
    this.generators = [];
    /** @type {Object<string, Object<string, number|string>>} what the person has set, by "stage:model" */
    this.changed = load("settings", {});
    /** @type {Set<() => void>} */
    this.listeners = new Set();
  }

  /** @param {Object<string, any[]>} served by the stage's name, the gateway's default first */
  setModels(served) {
    this.models = Object.fromEntries(Object.entries(served).map(([stage, models]) => [stage, models[0]]));
    this.generators = served.generate ?? [];
    this.useGenerator(load("generator", ""));
  }

  /** @param {string} name of one that is served; else the gateway's default is used */
  useGenerator(name) {
    const model = this.generators.find((one) => one.name === name) ?? this.generators[0];
    if (model) this.models = { ...this.models, generate: model };
    this.notify();
  }

  /** @param {string} name */
  chooseGenerator(name) {
    save("generator", name);
    this.useGenerator(name);
  }

  /** What draws from pictures: the chosen generator if it can, else the first that does. @returns {any} ModelInfo or undefined */
  get variationModel() {
    const canVary = (/** @type {any} */ model) => Number(model?.limits?.max_image_prompts ?? 0) > 0;
    return canVary(this.models.generate) ? this.models.generate : this.generators.find(canVary);
  }

  /** @param {() => void} listener */
  onChange(listener) {
    this.listeners.add(listener);
  }

  notify() {
    for (const listener of this.listeners) listener();
  }

  /** Of each model its own. @param {string} stage @param {any} [model] */
  keyOf(stage, model = this.models[stage]) {
    return `${stage}:${model?.name ?? ""}`;
  }

  /** @param {string} stage @param {string} name @param {any} [model] @returns {number|string|undefined} what an unset field takes */
  defaultOf(stage, name, model = this.models[stage]) {
    const defaults = model?.defaults ?? {};
    if (name === "vary_keep") return defaults.skip_ratio === undefined ? undefined : round(defaults.skip_ratio * VARY_SHARE);
    const setting = SETTINGS.find((one) => one.stage === stage && one.name === name);
    return defaults[name] === undefined ? setting?.fallback : round(defaults[name]);
  }

  /** @param {string} stage @param {string} name @param {any} [model] @returns {number|string|undefined} what the next action takes */
  valueOf(stage, name, model = this.models[stage]) {
    return this.changed[this.keyOf(stage, model)]?.[name] ?? this.defaultOf(stage, name, model);
  }

  /** @param {string} stage @param {string} name */
  isChanged(stage, name) {
    return this.changed[this.keyOf(stage)]?.[name] !== undefined;
  }

  /** @returns {number} how many differ from the model's defaults */
  get numChanged() {
    return SETTINGS.filter((one) => this.isChanged(one.stage, one.name)).length;
  }

  /** What a setting may be with the served model. @param {Setting} setting @returns {{min?: number, max?: number}} */
  rangeOf({ stage, name, min, max }) {
    const model = this.models[stage];
    const range = model?.ranges?.[name === "vary_keep" ? "skip_ratio" : name];
    if (range) {
      const { lowest = 0, highest, excludes_lowest: isAbove, excludes_highest: isBelow } = range;
      return { min: isAbove ? lowest + JUST_INSIDE : lowest, max: isBelow ? highest - JUST_INSIDE : highest };
    }
    if (name === "count" && model?.limits?.max_images) return { min, max: Math.min(64, model.limits.max_images) };
    return { min, max };
  }

  /** The side in pixels of what a finished run ends with, as the models fix it; 0: not known. @param {boolean} isEnlarged */
  finalSize(isEnlarged) {
    const side = Number((this.models.refine ?? this.models.generate)?.image_size ?? 0);
    return side * (isEnlarged ? Number(this.models.upscale?.scale || 4) : 1);
  }

  /** @param {string} stage @param {string} name @param {number|string|undefined} value undefined: the model's default */
  set(stage, name, value) {
    const key = this.keyOf(stage);
    const own = { ...this.changed[key] };
    if (value === undefined || value === this.defaultOf(stage, name)) delete own[name];
    else own[name] = value;
    this.changed = { ...this.changed, [key]: own };
    save("settings", this.changed);
    this.notify();
  }

  /** @param {string} [stage] none: all */
  reset(stage) {
    for (const one of stage ? [stage] : STAGES) delete this.changed[this.keyOf(one)];
    save("settings", this.changed);
    this.notify();
  }

  /** @returns {Object<string, Object<string, number|string>>} as a preset keeps them, by stage */
  snapshot() {
    return Object.fromEntries(STAGES.map((stage) => [stage, { ...this.changed[this.keyOf(stage)] }]));
  }

  /** @param {Object<string, Object<string, number|string>>} values by stage */
  restore(values) {
    this.reset();
    for (const { stage, name } of SETTINGS) {
      const value = values[stage]?.[name];
      if (value !== undefined && value !== "") this.set(stage, name, value);
    }
  }

  /** The settings of a run or of a picture's file. @param {any} spec */
  restoreSpec(spec) {
    if (spec.generate?.model) this.chooseGenerator(spec.generate.model);
    /** @type {Object<string, any>} */
    const values = {};
    for (const stage of STAGES) {
      if (spec[stage]) values[stage] = { ...spec[stage].settings, count: spec[stage].count };
    }
    for (const { stage, name } of SETTINGS) {
      if (values[stage]?.[name] !== undefined) this.set(stage, name, values[stage][name]);
    }
  }

  /** @param {string} stage @param {any} [model] @returns {Object<string, any>} every true value, in the contract's names */
  ofStage(stage, model = this.models[stage]) {
    /** @type {Object<string, any>} */
    const settings = {};
    for (const one of SETTINGS) {
      const value = one.stage === stage && !PAGE_OWN.has(one.name) ? this.valueOf(stage, one.name, model) : undefined;
      if (value !== undefined) settings[one.name] = value;
    }
    return settings;
  }

  /** @param {{model?: any, count?: number}} [more] @returns {any} GenerateStage */
  generateStage({ model = this.models.generate, count } = {}) {
    // unCLIP has some dozens of steps, DALL·E Mini hundreds.
    const every = model?.defaults?.decoder_num_steps === undefined ? SKETCH_PREVIEW_EVERY : DECODER_PREVIEW_EVERY;
    const settings = { ...this.ofStage("generate", model), preview_every: every };
    const named = this.generators.length > 1 && { model: model.name };
    return { count: count ?? Number(this.valueOf("generate", "count", model)), settings, ...named };
  }

  /**
   * A run of variations of a picture, or of a mixture of several.
   * @param {string} prompt "": pictures alone
   * @param {{image: any, weight: number}[]} imagePrompts with ImageData in JSON
   * @param {string} [seed]
   */
  variationSpec(prompt, imagePrompts, seed) {
    const generate = this.generateStage({ model: this.variationModel, count: NUM_VARIATIONS });
    const spec = this.promptSpec(prompt, { seed });
    // Nothing is refined without words.
    if (!prompt) delete spec.refine;
    return { ...spec, generate: { ...generate, image_prompts: imagePrompts } };
  }

  /**
   * @param {{isVary?: boolean, mask?: any, keep?: number, count?: number}} [action] `mask` as ImageData in JSON
   * @returns {any} RefineStage
   */
  refineStage({ isVary = false, mask, keep, count } = {}) {
    const settings = this.ofStage("refine");
    if (isVary) settings.skip_ratio = this.valueOf("refine", "vary_keep") ?? settings.skip_ratio;
    // What is repainted becomes another picture, unless something of it is to show through.
    if (mask) settings.skip_ratio = keep ?? 0;
    const numSteps = Number(settings.num_steps ?? 0) * (1 - Number(settings.skip_ratio ?? 0));
    settings.preview_every = Math.max(1, Math.round(numSteps / NUM_PREVIEWS));
    return { count: count ?? Number(this.valueOf("refine", "count")), settings, ...(mask && { mask }) };
  }

  /** @returns {any} UpscaleStage */
  upscaleStage() {
    return { settings: { ...this.ofStage("upscale"), preview_every: UPSCALE_PREVIEW_EVERY } };
  }

  /** @param {import("./stages.js").Action} action @param {any} [mask] ImageData in JSON @returns {any} the message of its stage */
  messageOf(action, mask) {
    return STAGE_OF_ACTION[action] === "upscale" ? this.upscaleStage() : this.refineStage({ isVary: action === "vary", mask });
  }

  /** A run from a prompt. @param {string} prompt @param {{seed?: string, isAutomatic?: boolean, model?: string}} more */
  promptSpec(prompt, { seed, isAutomatic = false, model = "" } = {}) {
    /** @type {any} */
    const spec = { prompt, model, generate: this.generateStage(), [isAutomatic ? "automatic" : "manual"]: {} };
    // Without its worker a stage cannot be planned; it can be chosen later, when one has come.
    if (this.models.refine) spec.refine = this.refineStage();
    const isEnlarged = !isAutomatic || this.valueOf("upscale", "final") === "upscaled";
    if (this.models.upscale && isEnlarged) spec.upscale = this.upscaleStage();
    if (seed) spec.seed = seed;
    return spec;
  }

  /**
   * A run from a picture that the person brought, or from one of another run.
   * @param {string} prompt
   * @param {any} picture ImageData in JSON
   * @param {"refine"|"upscale"} stage
   * @param {any} settings as the stage's message
   * @param {string} [seed]
   */
  pictureSpec(prompt, picture, stage, settings, seed) {
    return { prompt, init_images: [picture], [stage]: settings, manual: {}, ...(seed && { seed }) };
  }
}

/** @param {number|string} value @returns {any} a double of the contract as people write it */
function round(value) {
  return typeof value === "number" ? Math.round(value * 1000) / 1000 : value;
}

/** @type {Object<string, Object<string, any>>} besides the person's own: what the names stand for, by stage */
export const PRESETS = {
  quick: { generate: { count: 4 }, refine: { count: 2 } },
  many: { generate: { count: 16 }, refine: { count: 8 } },
  bold: { refine: { skip_ratio: 0.3, vary_keep: 0.1 } },
};
