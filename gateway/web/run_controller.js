/** What is open: a run, or a picture that the person brought. Followed, shown, chosen from; one is open at a time. */

import { byId, createElement, scrollTo, setProps } from "./dom.js";
import { cancelRun, getRun, newRequestId, withRetry } from "./api.js";
import { copyPicture, copyText } from "./clipboard.js";
import { EventStream } from "./event_stream.js";
import { ImageDetail } from "./image_detail.js";
import { ImageGrid, bestOf } from "./image_grid.js";
import { RunState } from "./run_state.js";
import { RunTree } from "./run_tree.js";
import { download } from "./image_urls.js";
import { makeVariations, needsNewRun, take } from "./picture_actions.js";
import { COMMON_ACTIONS, DRAWS, STAGES } from "./stages.js";
import { announce, clearError, showConnection, showError, showWaiting } from "./notifications.js";
import { duration, errorInWords, fileName, nameOf, stateInWords } from "./labels.js";
import { t } from "./texts.js";

/** @typedef {import("./run_state.js").Picture} Picture */

/**
 * @typedef {object} Page what the rest of the page does for it
 * @property {import("./settings.js").Settings} settings
 * @property {() => string} prompt what is in the prompt's field
 * @property {(name: string, picture: string) => void} onShow the address follows what is looked at
 * @property {(run: any) => void} onNewRun
 * @property {(name: string) => void} onOpen a run is open, or ("") none
 * @property {(spec: any, action: "again"|"more"|"seed"|"restore", picture?: Picture) => void} onReuse
 * @property {() => void} onChange a run has begun or ended
 * @property {(names: string[]) => void} onZip
 */

export class RunController {
  /** @param {Page} page */
  constructor(page) {
    this.page = page;
    /** @type {RunState|null} */
    this.run = null;
    /** @type {Picture|null} a picture that is in no run yet */
    this.own = null;
    /** @type {EventStream|null} */
    this.stream = null;
    this.selected = "";
    // Of an action: what it makes is looked at as soon as it has a name.
    this.awaited = "";
    this.lastSequence = 0;
    this.isDrawing = false;
    this.grid = new ImageGrid({
      pick: (name) => this.pick(name, true),
      take: (names, kind) => this.take(this.named(names), kind),
      download: (names) => names.forEach((name) => this.download(this.named([name])[0])),
      redraw: () => this.draw(),
    });
    this.detail = new ImageDetail(page.settings, (action, picture) => this.onAction(action, picture));
    this.tree = new RunTree((name) => this.pick(name, true));
    /** @type {import("./image_viewer.js").ImageViewer|null} */
    this.viewer = null;
    /** @type {import("./mask_editor.js").MaskEditor|null} */
    this.editor = null;
    /** @type {import("./mix_panel.js").MixPanel|null} */
    this.mixPanel = null;
    this.isWide = matchMedia("(min-width: 1000px)");
    this.isWide.addEventListener("change", () => this.draw());
    this.buildHead();
    page.settings.onChange(() => this.draw());
    byId("prompt").addEventListener("input", () => this.draw());
    this.render();
  }

  buildHead() {
    const button = (/** @type {string} */ id, /** @type {() => void} */ onclick) => createElement("button", { type: "button", class: "quiet", id: `run-${id}`, text: t(`run.${id}`), onclick });
    this.cancelButton = button("cancel", () => this.cancel());
    byId("run-actions").append(
      this.cancelButton,
      button("again", () => this.run && this.page.onReuse(this.run.spec, "again")),
      button("restore", () => this.run && this.page.onReuse(this.run.spec, "restore")),
      button("copy_prompt", () => copyText(this.prompt, t("copied.prompt"))),
      button("share", () => copyText(location.href, t("copied.link"))),
      button("zip", () => this.run && this.page.onZip([this.run.name])),
    );
  }

  get prompt() {
    return this.run?.spec?.prompt ?? "";
  }

  /** @param {string[]} names @returns {Picture[]} */
  named(names) {
    return /** @type {Picture[]} */ (names.map((name) => this.run?.pictures.get(name)).filter(Boolean));
  }

  /** @param {string} name "runs/{id}" @param {any} [snapshot] the run as the gateway had it last @param {string} [image] to be looked at */
  async open(name, snapshot, image = "") {
    this.close();
    const run = new RunState(name);
    this.run = run;
    this.page.onOpen(name);
    this.selected = image && `${name}/images/${image}`;
    this.draw();
    try {
      run.applySnapshot(snapshot ?? (await withRetry(() => getRun(name), showWaiting)));
      if (!snapshot) clearError();
    } catch (error) {
      if (this.run === run) {
        this.close();
        showError(error, () => this.open(name, undefined, image));
      }
      return;
    }
    if (this.run !== run) return;
    if (!run.isBusy && !this.selected) this.selected = initialSelection(run);
    this.follow(0);
    this.draw();
  }

  /** @param {import("./source_image.js").SourceImage} source @param {import("./source_image.js").SourceImage} [second] to be mixed into it */
  openOwn(source, second) {
    this.close();
    if (second) this.withMixPanel((panel) => panel.take(second));
    const image = { width: source.width, height: source.height, name: "", sha256: "" };
    this.own = { name: "own", stage: "init", index: 0, parent: "", state: "ready", step: 0, numSteps: 0, preview: null, image, score: null, problem: null, isFlat: false, own: source };
    this.draw();
    announce(t("source.ready"));
  }

  close() {
    this.stream?.stop();
    this.stream = null;
    if (this.own?.own) URL.revokeObjectURL(this.own.own.url);
    this.run = this.own = null;
    this.selected = this.awaited = "";
    this.lastSequence = 0;
    this.mixPanel?.clear();
    this.page.onOpen("");
    showConnection("ended");
    this.draw();
  }

  /** @param {number} afterSequence */
  follow(afterSequence) {
    const run = /** @type {RunState} */ (this.run);
    this.stream?.stop();
    this.stream = new EventStream(run.name, afterSequence, {
      onEvent: (event) => this.onEvent(run, event),
      onConnection: (state) => {
        showConnection(state);
        // Something was chosen while the stream of a finished run was ending.
        if (state === "ended") this.catchUp();
      },
      onError: (error) => showError(error, () => this.follow(this.stream?.position ?? 0)),
    });
  }

  /** Follows a run that had ended and goes on. */
  catchUp() {
    const { stream } = this;
    if (stream?.isOver && this.lastSequence > stream.position) this.follow(stream.position);
  }

  /** @param {RunState} run @param {any} event */
  onEvent(run, event) {
    if (this.run !== run) return;
    run.apply(event);
    if (event.image_ready || event.finished || event.selection_required) this.announceEvent(run, event);
    this.showAwaited(run);
    if (event.finished && !this.selected && run.spec?.automatic) this.selected = initialSelection(run);
    if (event.state || event.finished) this.page.onChange();
    this.draw();
  }

  /** Looks at what an action makes, once that has names: its event may come before the answer, or after it. @param {RunState|null} run */
  showAwaited(run) {
    const made = this.awaited && run?.selected.get(this.awaited);
    if (!made) return;
    this.awaited = "";
    this.pick(made[0]);
  }

  /** @param {RunState} run @param {any} event */
  announceEvent(run, event) {
    if (Number(event.sequence) <= run.knownSequence) return;
    if (event.finished) announce(`${stateInWords(run.state)}. ${run.error ? errorInWords(run.error) : ""}`);
    else if (event.selection_required) announce(t("announce.choose"));
    else {
      const stage = /** @type {Picture} */ (run.pictures.get(event.image_ready.image.name)).stage;
      const all = run.of(stage);
      announce(t("announce.ready", { ready: all.filter((one) => one.state === "ready").length, count: all.length, what: t(`group.${stage}`) }));
    }
  }

  /** @param {string} name @param {boolean} [isByHand] then it is brought into sight */
  pick(name, isByHand = false) {
    this.selected = name;
    if (this.run) this.page.onShow(this.run.name, name.split("/images/")[1]);
    this.render();
    const box = byId("detail").getBoundingClientRect();
    if (isByHand && (box.top < 0 || box.top > innerHeight * 0.4)) scrollTo(byId("detail"), "start");
  }

  /** @param {import("./image_detail.js").ActionName} action @param {Picture} picture */
  onAction(action, picture) {
    const common = COMMON_ACTIONS.find((one) => one === action);
    if (common) this.take([picture], common);
    else if (action === "variations") this.makeVariations(picture);
    else if (action === "edit") this.openEditor(picture);
    else if (action === "view") this.openViewer(picture);
    else if (action === "download") this.download(picture);
    else if (action === "copy") copyPicture(picture);
    else if (action === "again") this.makeAgain(picture);
    else if (action === "close") this.close();
    else this.page.onReuse(this.run?.spec, action === "more" ? "more" : "seed", picture);
  }

  // Both are loaded when they are first needed: a first visit does without them.

  /** @param {Picture} picture */
  async openViewer(picture) {
    const { ImageViewer } = await import("./image_viewer.js");
    this.viewer ??= new ImageViewer((one) => this.download(one), (one) => this.pick(one.name));
    this.viewer.open(picture, this.prompt, this.run ? this.inOrder() : [picture]);
  }

  /** @param {Picture} picture */
  async openEditor(picture) {
    const { MaskEditor } = await import("./mask_editor.js");
    this.editor ??= new MaskEditor((one, edit) => this.take([one], "edit", edit));
    this.editor.open(picture, this.promptFor());
  }

  /** Loaded when a generator that draws from pictures is there. @param {(panel: import("./mix_panel.js").MixPanel) => void} act */
  async withMixPanel(act) {
    const { MixPanel } = await import("./mix_panel.js");
    this.mixPanel ??= new MixPanel(this.detail.mixing, {
      onError: (error) => showError(error),
      onMake: () => {
        const picture = this.currentPicture();
        if (picture) this.makeVariations(picture);
      },
    });
    act(this.mixPanel);
  }

  /** @param {Picture} picture @param {string} [requestId] */
  async makeVariations(picture, requestId = newRequestId()) {
    clearError();
    announce(t("announce.variations", { name: nameOf(picture) }));
    this.setBusy(true);
    try {
      const mixture = this.mixPanel?.mixture ?? null;
      const run = await makeVariations(picture, mixture, this.promptFor(), this.page.settings, requestId);
      clearError();
      this.page.onNewRun(run);
    } catch (error) {
      showError(error, () => this.makeVariations(picture, requestId));
    } finally {
      this.setBusy(false);
    }
  }

  /** @returns {Picture[]} the finished ones, as the gallery has them */
  inOrder() {
    return (this.run?.groups ?? []).flatMap((group) => group.pictures).filter((one) => one.state === "ready");
  }

  /** What is in the prompt's field; the run's own where it is empty. */
  promptFor() {
    return this.page.prompt() || this.prompt;
  }

  /** A picture that failed is made once more. @param {Picture} picture */
  makeAgain(picture) {
    const parent = this.run?.parentOf(picture.name);
    if (picture.stage === "generate" || !parent) this.page.onReuse(this.run?.spec, "more", picture);
    else this.take([parent], /** @type {import("./stages.js").Action} */ (picture.stage));
  }

  /**
   * @param {Picture[]} pictures
   * @param {import("./stages.js").Action} kind
   * @param {{prompt: string, mask: any}} [edit]
   * @param {string} [requestId]
   */
  async take(pictures, kind, edit, requestId) {
    const run = this.run;
    const action = { kind, prompt: edit?.prompt ?? this.promptFor(), mask: edit?.mask };
    clearError();
    announce(t(`announce.${kind}`, { name: pictures.length === 1 ? nameOf(pictures[0]) : t("choose.count", { count: pictures.length }) }));
    this.setBusy(true);
    try {
      const taken = await take(run, pictures, action, this.page.settings, requestId);
      clearError();
      if (taken.isNew) {
        this.page.onNewRun(taken.run);
        return;
      }
      if (this.run !== run) return;
      this.awaited = taken.requestId;
      this.showAwaited(run);
      this.lastSequence = Number(taken.run.last_sequence);
      this.catchUp();
    } catch (error) {
      showError(error, () => this.take(pictures, kind, edit, requestId));
    } finally {
      this.setBusy(false);
    }
  }

  /** A click is answered at once. @param {boolean} isBusy */
  setBusy(isBusy) {
    byId("detail").classList.toggle("sending", isBusy);
  }

  async cancel() {
    const run = this.run;
    if (!run) return;
    try {
      await withRetry(() => cancelRun(run.name), showWaiting);
      clearError();
      announce(t("announce.cancelled"));
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
    const path = new Set(picture && run ? pathTo(run, picture) : []);
    this.grid.update(run, path, picture?.name ?? "");
    const isBest = Boolean(picture && run?.groups.some((group) => bestOf(group.pictures) === picture));
    this.detail.update(run, picture ?? null, { isBest, note: picture ? this.noteFor(picture) : "", prompt: this.prompt, scale: this.page.settings.models.upscale?.scale || 4, canVary: Boolean(this.page.settings.variationModel) });
    if (picture && this.page.settings.variationModel && !this.mixPanel) this.withMixPanel((panel) => panel.show());
    this.tree.update(run, path);
    this.renderHead();
    byId("studio").hidden = !run && !this.own;
    byId("studio").classList.toggle("alone", !run);
    document.body.classList.toggle("has-run", Boolean(run || this.own));
  }

  /** What is shown large: what was picked, or the furthest that there is. @returns {Picture|undefined} */
  currentPicture() {
    if (this.own) return this.own;
    const picked = this.run?.pictures.get(this.selected);
    // Where both do not fit beside each other, the gallery comes first until something is picked.
    if (picked || !this.run || !this.isWide.matches) return picked;
    const [newest] = this.run.groups;
    return newest && (bestOf(newest.pictures) ?? newest.pictures.find((one) => one.state === "ready") ?? newest.pictures[0]);
  }

  /** What the next action does with it. @param {Picture} picture */
  noteFor(picture) {
    const prompt = this.promptFor();
    const notes = [];
    if (!prompt) notes.push(t("note.no_prompt"));
    else notes.push(t("note.makes", { count: Number(this.page.settings.valueOf("refine", "count")) }));
    if (prompt && needsNewRun(this.run, [picture], { kind: "refine", prompt })) notes.push(t(this.run ? "note.new_prompt" : "note.own_prompt", { prompt }));
    const { variationModel } = this.page.settings;
    if (variationModel) notes.push(t("note.variations", { model: variationModel.name }));
    return notes.join(" ");
  }

  renderHead() {
    const { run } = this;
    byId("run").hidden = !run?.spec;
    document.title = t("page.title");
    if (!run?.spec) return;
    setProps(byId("run-title"), { text: run.spec.prompt || t("run.own_pictures") });
    setProps(byId("run-facts"), { text: this.facts(run) });
    byId("run").classList.toggle("failed", run.state === "FAILED");
    const bar = byId("run-progress");
    bar.hidden = !run.isBusy;
    bar.value = run.done;
    this.cancelButton.hidden = !run.isBusy;
    document.title = `${run.isBusy ? `${Math.round(run.done * 100)} % · ` : ""}${run.spec.prompt} · ${t("page.title")}`;
  }

  /** @param {RunState} run */
  facts(run) {
    const facts = [stateInWords(run.state)];
    if (run.drawnPrompt && run.drawnPrompt !== run.spec.prompt) facts.push(t("run.drawn", { prompt: run.drawnPrompt }));
    if (run.isBusy && run.queue) {
      facts.push(t("run.position", { position: run.queue.position }));
      if (run.queue.waitS) facts.push(t("run.turn", { time: duration(run.queue.waitS) }));
    }
    const left = run.isBusy ? run.secondsLeft : null;
    if (left) facts.push(t("detail.left", { time: duration(left) }));
    facts.push(t("detail.seed", { seed: run.spec.seed ?? "" }));
    if (run.computeS >= 0.5) facts.push(t("run.compute", { time: duration(run.computeS) }));
    if (run.error) facts.push(errorInWords(run.error));
    else if (run.isBusy && run.note) facts.push(errorInWords(run.note));
    return facts.join("  ·  ");
  }
}

/** @param {RunState} run @param {Picture} picture @returns {string[]} it and what it came from */
function pathTo(run, picture) {
  const names = [];
  for (let one = /** @type {Picture|undefined} */ (picture); one && !names.includes(one.name); one = run.parentOf(one.name)) names.push(one.name);
  return names;
}

/** What one wants to see first of a run that is over. @param {RunState} run */
function initialSelection(run) {
  const ready = (/** @type {any} */ stage) => run.of(stage).filter((one) => one.state === "ready");
  const best = (/** @type {any} */ stage) => bestOf(ready(stage)) ?? ready(stage)[0];
  const furthest = STAGES.findLast((stage) => ready(stage).length);
  if (!furthest) return "";
  return (DRAWS.has(furthest) ? best(furthest) : ready(furthest).at(-1))?.name ?? "";
}
