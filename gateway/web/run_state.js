/** What is known of a run, from its events: its pictures, how far each is, and what came of what. No element, no fetch. */

import { ProgressRate } from "./eta.js";

/**
 * @typedef {"generate"|"refine"|"upscale"} StageName
 * @typedef {object} Picture
 * @property {string} name "runs/{id}/images/{stage}-{index}"
 * @property {StageName} stage
 * @property {number} index
 * @property {string} parent a picture's name, or ""
 * @property {"waiting"|"working"|"ready"|"failed"|"cancelled"} state
 * @property {number} step
 * @property {number} numSteps
 * @property {{mime: string, data: string, sequence: number}|null} preview the newest
 * @property {any} image the finished one, as the contract has it, or null
 * @property {number|null} score
 * @property {string} problem why it failed
 */

/** @type {Object<string, StageName>} */
export const STAGE_NAMES = { STAGE_GENERATE: "generate", STAGE_REFINE: "refine", STAGE_UPSCALE: "upscale" };
const FINAL = new Set(["SUCCEEDED", "PARTIALLY_SUCCEEDED", "CANCELLED", "FAILED"]);

export class RunState {
  /** @param {string} name "runs/{id}" */
  constructor(name) {
    this.name = name;
    /** @type {any} */
    this.spec = null;
    this.state = "QUEUED";
    /** @type {Map<string, Picture>} */
    this.pictures = new Map();
    /** @type {{stage: StageName|null, position: number, waitS: number|null}|null} */
    this.queue = null;
    /** @type {{reason: string, message: string}|null} */
    this.error = null;
    /** @type {{reason: string, message: string, image: string}|null} the newest that did not end anything */
    this.note = null;
    /** @type {Map<string, string[]>} what a selection became, by its request_id */
    this.selected = new Map();
    this.rate = new ProgressRate();
    // Up to here the snapshot knows better than the replayed events how the run stands.
    this.knownSequence = 0;
  }

  get isFinished() {
    return FINAL.has(this.state);
  }

  /** @returns {Picture[]} */
  get unfinished() {
    return [...this.pictures.values()].filter((one) => one.state === "waiting" || one.state === "working");
  }

  /** @param {StageName} stage @param {string} [parent] of these only @returns {Picture[]} by index */
  of(stage, parent) {
    const found = [...this.pictures.values()].filter(
      (one) => one.stage === stage && (parent === undefined || one.parent === parent),
    );
    return found.sort((a, b) => a.index - b.index);
  }

  /** @param {string} name @returns {Picture[]} what was made from it, oldest first */
  childrenOf(name) {
    return [...this.of("refine", name), ...this.of("upscale", name)];
  }

  /** @param {string} name @returns {Picture|undefined} */
  parentOf(name) {
    return this.pictures.get(this.pictures.get(name)?.parent ?? "");
  }

  /** Seconds until what is under way is done; null: not known. */
  get secondsLeft() {
    const left = this.unfinished.reduce((sum, one) => sum + 1 - progressOf(one), 0);
    return left ? this.rate.secondsFor(left) : 0;
  }

  /** How far what was asked for is, from 0 to 1. */
  get done() {
    const all = [...this.pictures.values()];
    return all.length ? all.reduce((sum, one) => sum + progressOf(one), 0) / all.length : 0;
  }

  /** The run as GetRun tells it. @param {any} run */
  applySnapshot(run) {
    this.spec = run.spec;
    this.knownSequence = Number(run.last_sequence);
    this.state = stateOf(run.state);
    this.error = this.isFinished ? runError(run.error) : null;
    this.expectSketches();
    for (const image of run.images ?? []) this.keepImage(image);
    if (this.isFinished) this.giveUpTheRest();
  }

  /** One event of the log, in order. @param {any} event */
  apply(event) {
    const sequence = Number(event.sequence);
    const isNews = sequence > this.knownSequence;
    // What a finished run once was on its way to is of no interest any more.
    const isOver = !isNews && this.isFinished;
    if (event.state) this.onState(event.state, isNews);
    else if (event.queued) this.onQueued(event.queued);
    else if (event.stage_started) this.onStarted(event.stage_started, isOver);
    else if (event.progress && !isOver) this.onProgress(event.progress);
    else if (event.preview && !isOver) this.onPreview(event.preview, sequence);
    else if (event.image_ready) this.keepImage(event.image_ready.image);
    else if (event.ranked) this.onRanked(event.ranked);
    else if (event.selected) this.onSelected(event.selected);
    else if (event.warning) this.onWarning(event.warning, isNews);
    else if (event.finished && isNews) this.onFinished(event.finished);
    this.measure(Date.parse(event.time));
  }

  onState(told, isNews) {
    if (told.spec) this.spec ??= told.spec;
    this.expectSketches();
    if (!isNews) return;
    this.state = stateOf(told.state);
    if (!this.isFinished) this.error = null;
  }

  onQueued(told) {
    const waitS = told.estimated_wait ? Number.parseFloat(told.estimated_wait) : null;
    const stage = STAGE_NAMES[told.stage] ?? null;
    this.queue = told.position ? { stage, position: told.position, waitS } : null;
  }

  onStarted(told, isOver) {
    for (const index of told.indexes ?? []) {
      const picture = this.expect(STAGE_NAMES[told.stage], index, told.parent ?? "");
      if (picture.state === "ready" || picture.state === "failed") continue;
      Object.assign(picture, { state: isOver ? "cancelled" : "working", step: 0, numSteps: 0 });
    }
  }

  onProgress(told) {
    const picture = this.expect(STAGE_NAMES[told.stage], told.index);
    if (picture.state === "ready") return;
    Object.assign(picture, { state: "working", step: told.step, numSteps: told.num_steps });
  }

  onPreview(told, sequence) {
    const picture = this.expect(STAGE_NAMES[told.stage], told.index);
    if (picture.state === "ready") return;
    const preview = { mime: told.image.mime_type, data: told.image.data, sequence };
    Object.assign(picture, { state: "working", step: told.step, numSteps: told.num_steps, preview });
  }

  onRanked(told) {
    for (const { image, clip_score: score } of told.scores ?? []) {
      const picture = this.pictures.get(image);
      if (picture) picture.score = score;
    }
  }

  onSelected(told) {
    /** @type {string[]} */
    const names = [];
    for (const { selection, indexes } of told.choices ?? []) {
      const stage = selection.refine ? "refine" : "upscale";
      for (const index of indexes ?? []) names.push(this.expect(stage, index, selection.image).name);
    }
    this.selected.set(told.request_id, names);
  }

  onWarning(told, isNews) {
    const picture = this.pictures.get(told.image);
    if (told.given_up && picture && picture.state !== "ready") {
      const isCancelled = told.reason === "CANCELLED";
      Object.assign(picture, { state: isCancelled ? "cancelled" : "failed", problem: told.message, preview: null });
    }
    if (isNews && told.reason !== "CANCELLED") this.note = told;
  }

  onFinished(told) {
    this.state = stateOf(told.state);
    this.error = runError(told.error);
    this.queue = null;
    this.giveUpTheRest();
  }

  /** The sketches that are to come have their places at once. */
  expectSketches() {
    const count = this.spec?.generate?.count ?? 0;
    for (let index = 0; index < count; index++) this.expect("generate", index);
  }

  /** @param {StageName} stage @param {number} index @param {string} [parent] @returns {Picture} */
  expect(stage, index, parent) {
    const name = `${this.name}/images/${stage}-${index}`;
    let picture = this.pictures.get(name);
    if (!picture) {
      const fresh = { state: "waiting", step: 0, numSteps: 0, preview: null, image: null, score: null, problem: "" };
      picture = /** @type {Picture} */ ({ name, stage, index, parent: "", ...fresh });
      this.pictures.set(name, picture);
    }
    if (parent) picture.parent = parent;
    return picture;
  }

  keepImage(image) {
    const picture = this.expect(STAGE_NAMES[image.stage], image.index, image.parent);
    Object.assign(picture, { state: "ready", image, preview: null });
    if (image.clip_score !== undefined && image.clip_score !== null) picture.score = image.clip_score;
  }

  giveUpTheRest() {
    for (const picture of this.unfinished) Object.assign(picture, { state: "cancelled", preview: null });
  }

  measure(atMs) {
    const unfinished = this.unfinished;
    if (!unfinished.length) return;
    const stages = [...new Set(unfinished.map((one) => one.stage))];
    const current = [...this.pictures.values()].filter((one) => stages.includes(one.stage));
    this.rate.note(stages.join(), atMs, current.reduce((sum, one) => sum + progressOf(one), 0));
  }
}

/** @param {Picture} picture @returns {number} from 0 to 1 */
export function progressOf(picture) {
  if (picture.state === "waiting") return 0;
  if (picture.state === "working") return picture.numSteps ? Math.min(1, picture.step / picture.numSteps) : 0;
  return 1;
}

/** @param {string} state "RUN_STATE_RUNNING" */
export function stateOf(state) {
  return state.replace("RUN_STATE_", "");
}

/** @param {any} error */
function runError(error) {
  return error?.message || error?.reason ? { reason: error.reason, message: error.message } : null;
}
