/** What is known of a run, from its events: its pictures, how far each is, and which was made from which. No element, no fetch. */

import { ProgressRate } from "./eta.js";
import { DRAWS, STAGES, STAGE_NAMES } from "./stages.js";

/**
 * @typedef {import("./stages.js").Stage|"init"} StageName
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
 * @property {{reason: string, message: string}|null} problem why it failed
 * @property {boolean} isFlat whether it has one colour alone, and so cannot be the best
 * @property {import("./source_image.js").SourceImage} [own] of a picture that is in no run yet
 */

/**
 * @typedef {object} Group what one action made
 * @property {string} key
 * @property {StageName} stage
 * @property {string} parent a picture's name; "" for none, or for several
 * @property {Picture[]} pictures
 */

const FINAL = new Set(["SUCCEEDED", "PARTIALLY_SUCCEEDED", "CANCELLED", "FAILED"]);

export class RunState {
  /** @param {string} name "runs/{id}" */
  constructor(name) {
    this.name = name;
    /** @type {any} */
    this.spec = null;
    this.state = "QUEUED";
    // What is drawn for the prompt, where that is something else.
    this.drawnPrompt = "";
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
    this.computeS = 0;
    /** @type {Set<string>} of those whose timing is in `computeS` */
    this.timed = new Set();
    this.startTime = "";
    this.endTime = "";
    this.createTime = "";
  }

  get isFinished() {
    return FINAL.has(this.state);
  }

  /** Whether something is being made, or will be. */
  get isBusy() {
    return !this.isFinished && this.state !== "AWAITING_SELECTION";
  }

  /** @returns {Group[]} the newest first */
  get groups() {
    /** @type {Map<string, Group>} */
    const groups = new Map();
    for (const picture of this.pictures.values()) {
      if (picture.stage === "init") continue;
      const parent = DRAWS.has(picture.stage) ? picture.parent : "";
      const key = `${picture.stage} ${parent}`;
      const group = groups.get(key) ?? { key, stage: picture.stage, parent, pictures: [] };
      group.pictures.push(picture);
      groups.set(key, group);
    }
    for (const group of groups.values()) group.pictures.sort((a, b) => a.index - b.index);
    return [...groups.values()].reverse();
  }

  /** Seconds of compute of all pictures, and of the whole run by the clock; null where not known. */
  get time() {
    const end = this.endTime ? Date.parse(this.endTime) : null;
    const start = this.startTime ? Date.parse(this.startTime) : null;
    return { computeS: this.computeS, wallS: start !== null && end !== null ? (end - start) / 1000 : null };
  }

  /** @returns {Picture[]} those that the run makes */
  get all() {
    return [...this.pictures.values()].filter((one) => one.stage !== "init");
  }

  /** @returns {Picture[]} */
  get unfinished() {
    return this.all.filter((one) => one.state === "waiting" || one.state === "working");
  }

  /** @param {StageName} stage @param {string} [parent] of these only @returns {Picture[]} by index */
  of(stage, parent) {
    const found = this.all.filter(
      (one) => one.stage === stage && (parent === undefined || one.parent === parent),
    );
    return found.sort((a, b) => a.index - b.index);
  }

  /** @param {string} name @returns {Picture[]} what was made from it, oldest first */
  childrenOf(name) {
    return STAGES.flatMap((stage) => this.of(stage, name));
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
    const { all } = this;
    return all.length ? all.reduce((sum, one) => sum + progressOf(one), 0) / all.length : 0;
  }

  /** The run as GetRun returns it. @param {any} run */
  applySnapshot(run) {
    this.spec = run.spec;
    this.knownSequence = Number(run.last_sequence);
    this.state = stateOf(run.state);
    this.drawnPrompt = run.prompt_reading?.prompt ?? "";
    this.error = this.isFinished ? runError(run.error) : null;
    this.createTime = run.create_time ?? "";
    this.startTime = run.start_time ?? "";
    this.endTime = run.end_time ?? "";
    this.expectInits();
    this.expectSketches();
    for (const image of run.images ?? []) this.keepImage(image);
    for (const timing of run.timings ?? []) this.onTiming(timing);
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
    else if (event.timing) this.onTiming(event.timing);
    else if (event.warning) this.onWarning(event.warning, isNews);
    else if (event.finished && isNews) this.onFinished(event.finished, event.time);
    this.measure(Date.parse(event.time));
  }

  onState(message, isNews) {
    if (message.spec) this.spec ??= message.spec;
    if (message.prompt_reading) this.drawnPrompt = message.prompt_reading.prompt;
    this.expectInits();
    this.expectSketches();
    if (!isNews) return;
    this.state = stateOf(message.state);
    if (!this.isBusy) this.queue = null;
    if (!this.isFinished) this.error = this.note = null;
  }

  onTiming(message) {
    if (this.timed.has(message.image)) return;
    this.timed.add(message.image);
    this.computeS += Number.parseFloat(message.compute ?? "0") || 0;
  }

  onQueued(message) {
    const waitS = message.estimated_wait ? Number.parseFloat(message.estimated_wait) : null;
    const stage = STAGE_NAMES[message.stage] ?? null;
    this.queue = message.position ? { stage, position: message.position, waitS } : null;
  }

  onStarted(message, isOver) {
    for (const index of message.indexes ?? []) {
      const picture = this.expect(STAGE_NAMES[message.stage], index, message.parent ?? "");
      if (picture.state === "ready" || picture.state === "failed") continue;
      Object.assign(picture, { state: isOver ? "cancelled" : "working", step: 0, numSteps: 0 });
    }
  }

  onProgress(message) {
    const picture = this.expect(STAGE_NAMES[message.stage], message.index);
    if (picture.state === "ready") return;
    Object.assign(picture, { state: "working", step: message.step, numSteps: message.num_steps });
  }

  onPreview(message, sequence) {
    const picture = this.expect(STAGE_NAMES[message.stage], message.index);
    if (picture.state === "ready") return;
    const preview = { mime: message.image.mime_type, data: message.image.data, sequence };
    Object.assign(picture, { state: "working", step: message.step, numSteps: message.num_steps, preview });
  }

  onRanked(message) {
    for (const { image, clip_score: score } of message.scores ?? []) {
      const picture = this.pictures.get(image);
      if (picture) picture.score = score;
    }
  }

  onSelected(message) {
    /** @type {string[]} */
    const names = [];
    for (const { selection, indexes } of message.choices ?? []) {
      const stage = STAGES.find((one) => selection[one]) ?? STAGES[0];
      for (const index of indexes ?? []) names.push(this.expect(stage, index, selection.image).name);
    }
    this.selected.set(message.request_id, names);
  }

  onWarning(message, isNews) {
    const picture = this.pictures.get(message.image);
    if (message.given_up && picture && picture.state !== "ready") {
      const isCancelled = message.reason === "CANCELLED";
      Object.assign(picture, { state: isCancelled ? "cancelled" : "failed", problem: { reason: message.reason, message: message.message }, preview: null });
    }
    if (isNews && message.reason !== "CANCELLED" && !message.given_up) this.note = message;
  }

  onFinished(message, time) {
    this.state = stateOf(message.state);
    this.error = runError(message.error);
    this.queue = this.note = null;
    this.endTime = time ?? "";
    this.giveUpTheRest();
  }

  /** The pictures that the run began with. Their files are at their names. */
  expectInits() {
    (this.spec?.init_images ?? []).forEach((image, index) => {
      const picture = this.expect("init", index);
      if (picture.image) return;
      Object.assign(picture, { state: "ready", image: { name: picture.name, width: image.width, height: image.height, sha256: "" } });
    });
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
      const fresh = { state: "waiting", step: 0, numSteps: 0, preview: null, image: null, score: null, problem: null, isFlat: false };
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
    const current = this.all.filter((one) => stages.includes(one.stage));
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
