/** The run that is open: followed, shown in the panels, chosen from. One is open at a time. */

import { byId, createElement, prefersStillness, setProps } from "./dom.js";
import { ImageDetail } from "./image_detail.js";
import { EventStream } from "./event_stream.js";
import { GatewayError, cancelRun, getRun, withRetry, newRequestId, selectImages } from "./api.js";
import { ImageGrid, bestOf } from "./image_grid.js";
import { download } from "./image_urls.js";
import { RunState } from "./run_state.js";
import { clearError, connection, announce, showError } from "./notifications.js";
import { RunTree } from "./run_tree.js";
import { ImageViewer } from "./image_viewer.js";
import { MANY, WORKERS, capital, duration, errorInWords, fileName, nameOf, stateInWords } from "./labels.js";

/** @typedef {import("./run_state.js").Picture} Picture */

export class RunController {
  /**
   * @param {object} page
   * @param {() => Object<string, any>} page.models ModelInfo by the stage's name
   * @param {(spec: any) => void} page.onReuse
   * @param {() => void} page.onChange a run has begun or ended
   */
  constructor(page) {
    this.page = page;
    /** @type {RunState|null} */
    this.run = null;
    /** @type {EventStream|null} */
    this.follower = null;
    this.selected = "";
    // As far as the gateway has said that there are events.
    this.lastSequence = 0;
    // Of an enlargement that was asked for: looked at as soon as it has a name.
    this.awaited = "";
    const pick = (/** @type {string} */ name) => this.pick(name);
    this.sketches = new ImageGrid(byId("panel-generate"), "generate", "Sketch", (name) => this.pickSketch(name));
    this.variations = new ImageGrid(byId("panel-refine"), "refine", "Refine", (name) => this.pick(name, "panel-easel"));
    this.easel = new ImageDetail(byId("panel-easel"), {
      enlarge: (picture) => this.take(picture, "upscale"),
      refine: (picture) => this.take(picture, "refine"),
      view: (picture) => this.viewer.open(picture, this.prompt),
      download: (picture) => this.download(picture),
      pick,
    });
    this.tree = new RunTree(pick);
    this.viewer = new ImageViewer((picture) => this.download(picture));
    this.cancelButton = createElement("button", { type: "button", text: "Cancel", onclick: () => this.cancel() });
    this.reuseButton = createElement("button", { type: "button", class: "plain", text: "Same prompt and seed again", onclick: () => this.run && page.onReuse(this.run.spec) });
    byId("run-actions").append(this.cancelButton, this.reuseButton);
    this.isDrawing = false;
    this.render();
  }

  get prompt() {
    return this.run?.spec?.prompt ?? "";
  }

  /** @param {string} name "runs/{id}" @param {any} [snapshot] the run as the gateway told it last */
  async open(name, snapshot) {
    this.close();
    const run = new RunState(name);
    this.run = run;
    try {
      run.applySnapshot(snapshot ?? (await withRetry(() => getRun(name))));
    } catch (error) {
      if (this.run === run) {
        this.close();
        showError(error, () => this.open(name));
      }
      return;
    }
    if (this.run !== run) return;
    if (run.isFinished) this.selected = initialSelection(run);
    this.follow(0);
    this.draw();
  }

  close() {
    this.follower?.stop();
    this.follower = null;
    this.run = null;
    this.selected = this.awaited = "";
    this.lastSequence = 0;
    connection("ended");
    this.draw();
  }

  /** @param {number} afterSequence */
  follow(afterSequence) {
    const run = /** @type {RunState} */ (this.run);
    this.follower?.stop();
    this.follower = new EventStream(run.name, afterSequence, {
      onEvent: (event) => this.onEvent(run, event),
      onConnection: (state) => {
        connection(state);
        // Something was chosen while the stream of a finished run was ending.
        if (state === "ended") this.catchUp();
      },
      onError: (error) => showError(error, () => this.follow(this.follower?.place ?? 0)),
    });
  }

  /** Follows a run that had ended and goes on. */
  catchUp() {
    const { follower } = this;
    if (follower?.isOver && this.lastSequence > follower.place) this.follow(follower.place);
  }

  /** @param {RunState} run @param {any} event */
  onEvent(run, event) {
    if (this.run !== run) return;
    run.apply(event);
    if (event.image_ready || event.finished || event.selection_required) this.announceEvent(run, event);
    const awaited = this.awaited && run.selected.get(this.awaited);
    if (awaited) {
      this.awaited = "";
      this.selected = awaited[0];
    }
    if (event.state || event.finished) this.page.onChange();
    this.draw();
  }

  /** News for ears. @param {RunState} run @param {any} event */
  announceEvent(run, event) {
    if (Number(event.sequence) <= run.knownSequence) return;
    if (event.finished) announce(`${stateInWords(run.state)}. ${run.error ? errorInWords(run.error) : ""}`);
    else if (event.selection_required) announce("Ready: choose a sketch to refine it.");
    else {
      const stage = /** @type {Picture} */ (run.pictures.get(event.image_ready.image.name)).stage;
      const all = run.of(stage);
      announce(`${all.filter((one) => one.state === "ready").length} of ${all.length} ${MANY[stage]} are ready.`);
    }
  }

  /** A click on a sketch refines it, the first time. @param {string} name */
  pickSketch(name) {
    this.pick(name, "panel-refine");
    const picture = this.run?.pictures.get(name);
    if (picture && !this.run?.childrenOf(name).length) this.take(picture, "refine");
  }

  /** @param {string} name @param {string} [panel] to be scrolled into sight where the panels stand one below the other */
  pick(name, panel) {
    this.selected = name;
    this.draw();
    const box = panel && byId(panel);
    if (box && box.getBoundingClientRect().top > innerHeight * 0.6) {
      box.scrollIntoView({ behavior: prefersStillness() ? "auto" : "smooth", block: "start" });
    }
  }

  /** @param {Picture} picture @param {"refine"|"upscale"} stage @param {string} [requestId] */
  async take(picture, stage, requestId = newRequestId()) {
    const run = /** @type {RunState} */ (this.run);
    if (!this.page.models()[stage] && Object.keys(this.page.models()).length) {
      showError(new GatewayError(`no ${WORKERS[stage]}`, { status: 503, reason: "NO_WORKER" }), () => this.take(picture, stage));
      return;
    }
    clearError();
    announce(stage === "refine" ? `Refining ${nameOf(picture)}.` : `Enlarging ${nameOf(picture)}.`);
    if (stage === "upscale") this.awaited = requestId;
    try {
      // Settings that the run has not are left to it; the request_id makes a repeated call harmless.
      const told = await withRetry(() => selectImages(run.name, requestId, [{ image: picture.name, [stage]: {} }]));
      if (this.run !== run) return;
      this.lastSequence = Number(told.last_sequence);
      this.catchUp();
    } catch (error) {
      this.awaited = "";
      showError(error, () => this.take(picture, stage, requestId));
    }
  }

  async cancel() {
    const run = this.run;
    if (!run) return;
    try {
      await withRetry(() => cancelRun(run.name));
      announce("Cancelled.");
    } catch (error) {
      showError(error, () => this.cancel());
    }
  }

  /** @param {Picture} picture */
  download(picture) {
    download(picture, fileName(this.prompt, picture)).catch((error) => showError(error, () => this.download(picture)));
  }

  /** Draws soon, once for all that has changed. */
  draw() {
    if (this.isDrawing) return;
    this.isDrawing = true;
    requestAnimationFrame(() => {
      this.isDrawing = false;
      this.render();
    });
  }

  render() {
    const { run } = this;
    const picture = this.currentPicture();
    const path = new Set(picture ? pathTo(run, picture) : []);
    const sketches = run?.of("generate") ?? [];
    const origin = picture ? originOf(run, picture) : null;
    const variations = run?.of("refine", origin ?? undefined) ?? [];
    this.sketches.update(run, { pictures: sketches, path, hint: this.sketchHint(sketches), action: "Refine it" });
    this.variations.update(run, { pictures: variations, path, hint: this.refineHint(variations), action: "Look at it beside its sketch" });
    this.easel.update(run, picture ?? null, picture ? "" : this.easelHint(), this.page.models().upscale?.scale || 4);
    this.tree.update(run, path);
    this.renderHead();
  }

  /** What is on the easel: what was picked, or, where CLIP chooses, what it came to. @returns {Picture|undefined} */
  currentPicture() {
    const picked = this.run?.pictures.get(this.selected);
    return picked ?? (this.run?.spec?.manual ? undefined : this.run?.of("upscale").at(-1));
  }

  /** @param {Picture[]} sketches */
  sketchHint(sketches) {
    if (!this.run) return "Candidates for your prompt appear here: a blur at first, then sharper and sharper.";
    if (!sketches.length) return "This run began with pictures of its own.";
    const isReady = sketches.some((one) => one.state === "ready");
    return isReady ? "Click the one you like: it is refined." : "You can click a sketch as soon as it is ready.";
  }

  /** @param {Picture[]} variations */
  refineHint(variations) {
    if (!this.run) return "The sketch you click comes back here as variations of itself.";
    if (variations.length) return variations.some((one) => one.state === "ready") ? "Click one to see it beside its sketch." : "";
    return "No variations yet: click a sketch.";
  }

  easelHint() {
    if (!this.run) return "The variation you choose is made four times as wide and high.";
    return "What you click is shown here at its size, beside what it was made from.";
  }

  renderHead() {
    const { run } = this;
    byId("run").hidden = !run?.spec;
    document.body.classList.toggle("has-run", Boolean(run?.spec));
    document.title = "Triptych";
    if (!run?.spec) return;
    const isBusy = !run.isFinished && run.state !== "AWAITING_SELECTION";
    setProps(byId("run-title"), { text: run.spec.prompt || "Pictures of one's own" });
    setProps(byId("run-facts"), { text: this.facts(run, isBusy) });
    byId("run").classList.toggle("failed", run.state === "FAILED");
    const bar = byId("run-progress");
    bar.hidden = !isBusy;
    bar.value = run.done;
    this.cancelButton.hidden = run.isFinished;
    setProps(this.cancelButton, { text: isBusy ? "Cancel" : "End this run" });
    document.title = `${isBusy ? `${Math.round(run.done * 100)} % · ` : ""}${run.spec.prompt} · Triptych`;
  }

  /** @param {RunState} run @param {boolean} isBusy */
  facts(run, isBusy) {
    const facts = [stateInWords(run.state)];
    if (isBusy && run.queue) {
      facts.push(`place ${run.queue.position} in the queue`);
      if (run.queue.waitS) facts.push(`its turn in about ${duration(run.queue.waitS)}`);
    }
    const left = isBusy ? run.secondsLeft : null;
    if (left) facts.push(`about ${duration(left)} left`);
    facts.push(`seed ${run.spec.seed}`);
    if (run.error) facts.push(errorInWords(run.error));
    else if (isBusy && run.note) facts.push(capital(run.note.message));
    return facts.join("  ·  ");
  }
}

/** @param {RunState|null} run @param {Picture} picture @returns {string[]} it and what it came from */
function pathTo(run, picture) {
  const names = [];
  for (let one = /** @type {Picture|undefined} */ (picture); one && !names.includes(one.name); one = run?.parentOf(one.name)) {
    names.push(one.name);
  }
  return names;
}

/** What the variations beside a picture are of. @param {RunState|null} run @param {Picture} picture @returns {string} */
function originOf(run, picture) {
  if (picture.stage !== "generate" && run?.of("refine", picture.name).length) return picture.name;
  const enlarged = picture.stage === "upscale" ? run?.parentOf(picture.name) : picture;
  if (!enlarged) return picture.parent;
  return enlarged.stage === "refine" ? enlarged.parent : enlarged.name;
}

/** What one wants to see first of a run that is over. @param {RunState} run */
function initialSelection(run) {
  const ready = (/** @type {any} */ stage) => run.of(stage).filter((one) => one.state === "ready");
  return ready("upscale").at(-1)?.name ?? bestOf(ready("refine"))?.name ?? ready("refine")[0]?.name ?? "";
}
