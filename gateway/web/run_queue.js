/** Runs under way: those that wait to begin can be put in another order and taken out. The gateway keeps them and begins them. */

import { byId, createElement, icon, ICONS, setProps, syncChildren } from "./dom.js";
import { GatewayError, cancelRun, createRun, deleteRun, listBusyRuns, moveRun, newRequestId, withRetry } from "./api.js";
import { announce, showError, showNote, showWaiting } from "./notifications.js";
import { load, save } from "./storage.js";
import { stateOf } from "./run_state.js";
import { t } from "./texts.js";

const POLL_MS = 1_000;
// Where nobody looks, or nobody answers.
const POLL_SELDOM_MS = 5_000;
// Of runs begun in this browser: a prompt waits for those, and for nobody else's.
const MAX_OWN = 200;

export class RunQueue {
  /**
   * @param {object} page
   * @param {(run: any) => void} page.onBegun
   * @param {(numBusy: number) => void} page.onChange a run has begun, ended or come
   * @param {(error: unknown) => void} page.onAnswer whether the gateway answers: its error, or null
   */
  constructor(page) {
    this.page = page;
    this.root = byId("queue");
    /** @type {any[]} as the gateway lists them: queued or running */
    this.busy = [];
    /** @type {string[]} names of runs that were begun here, newest last */
    this.own = load("own-runs", []);
    // The run that is open: the panel leaves it out.
    this.open = "";
    // A list from before a change, or from before the gateway has made it, is not shown.
    this.numChanges = 0;
    this.numAsked = 0;
    this.lastKnown = "";
    /** @type {Promise<unknown>} */
    this.moving = Promise.resolve();
    /** @type {Map<string, any>} */
    this.items = new Map();
    this.title = createElement("h2", { id: "queue-title" });
    this.list = createElement("ol", {});
    this.root.append(this.title, createElement("p", { class: "hint", text: t("queue.hint") }), this.list);
    addEventListener("visibilitychange", () => document.hidden || this.poll());
    this.render();
    this.poll();
  }

  /** @returns {any[]} those that wait, the next one first */
  get waiting() {
    const order = (/** @type {any} */ run) => BigInt(run.queue_order ?? 0);
    return this.busy.filter((run) => order(run) > 0n).sort((a, b) => (order(a) < order(b) ? -1 : 1));
  }

  /** Whether a new prompt has to wait for a run that was begun here. */
  get isBusy() {
    return this.busy.some((run) => this.own.includes(run.name));
  }

  /** @param {any} run one that was begun by this page */
  follow(run) {
    this.own = [...load("own-runs", []), run.name].slice(-MAX_OWN);
    save("own-runs", this.own);
    if (isBusy(run)) this.change([...this.busy.filter((one) => one.name !== run.name), run]);
    this.poll();
  }

  /** @param {any} run that waits for its turn */
  add(run) {
    this.follow(run);
    announce(t("queue.added", { position: this.waiting.findIndex((one) => one.name === run.name) + 1 }));
  }

  /** @param {string} name of the run that is open; "" for none */
  show(name) {
    this.open = name;
    this.render();
  }

  /** @param {any[]} busy what is known without asking the gateway */
  change(busy) {
    this.numChanges += 1;
    this.busy = busy;
    this.render();
  }

  /** @param {string} name @param {number} step -1: earlier */
  move(name, step) {
    const { waiting } = this;
    const index = waiting.findIndex((run) => run.name === name);
    const other = waiting[index + step];
    if (!other) return;
    const order = waiting[index].queue_order;
    waiting[index].queue_order = other.queue_order;
    other.queue_order = order;
    this.change(this.busy);
    announce(t("queue.moved", { position: index + step + 1 }));
    // The button moved with its row, and keeps the focus unless it is at the end of its way.
    const [up, down] = this.items.get(name).querySelectorAll("button");
    (step < 0 ? (up.disabled ? down : up) : down.disabled ? up : down).focus();
    this.ask(() => moveRun(name, step < 0 ? { before: other.name } : { after: other.name }));
  }

  /** @param {string} name begins now, whatever else is under way */
  async begin(name) {
    const run = await this.ask(() => moveRun(name, { now: true }));
    if (!run) return;
    this.change(this.busy.map((one) => (one.name === name ? run : one)));
    this.page.onBegun(run);
  }

  /** @param {string} name */
  async remove(name) {
    const { waiting } = this;
    const index = waiting.findIndex((run) => run.name === name);
    const [run, next] = [waiting[index], waiting[index + 1]];
    this.change(this.busy.filter((one) => one !== run));
    // Nothing was made of it: it leaves no trace in the list of runs.
    await this.ask(() => cancelRun(name).then(() => deleteRun(name)));
    showNote(t("queue.removed", { prompt: run.spec.prompt }), { undo: () => this.restore(run, next) });
  }

  /** @param {any} run that was taken out @param {any} next the run that it stood before */
  restore(run, next) {
    return this.ask(async () => {
      const again = await createRun(newRequestId(), run.spec, true);
      this.follow(again);
      if (next && this.busy.some((one) => one.name === next.name)) await moveRun(again.name, { before: next.name });
    });
  }

  /** Asks the gateway for a change, after those before it; then the list is what the gateway has. @param {() => Promise<any>} request */
  ask(request) {
    this.numAsked += 1;
    const asked = this.moving.then(async () => {
      try {
        return await withRetry(request, showWaiting);
      } catch (error) {
        // It has begun, or is gone: the list shows that.
        if (!(error instanceof GatewayError) || !["RUN_NOT_QUEUED", "NOT_FOUND"].includes(error.reason)) showError(error);
        return null;
      } finally {
        this.numAsked -= 1;
        this.numChanges += 1;
        this.poll();
      }
    });
    this.moving = asked;
    return asked;
  }

  async poll() {
    clearTimeout(this.timer);
    const { numChanges } = this;
    let failure = null;
    try {
      const busy = await listBusyRuns();
      if (numChanges === this.numChanges && !this.numAsked) this.take(busy);
    } catch (error) {
      failure = error;
    }
    this.page.onAnswer(failure);
    clearTimeout(this.timer);
    const isSoon = !failure && (this.busy.length || document.hasFocus());
    if (!document.hidden) this.timer = setTimeout(() => this.poll(), isSoon ? POLL_MS : POLL_SELDOM_MS);
  }

  /** @param {any[]} busy */
  take(busy) {
    const began = this.waiting.map((run) => busy.find((one) => one.name === run.name)).filter((run) => run && stateOf(run.state) === "RUNNING");
    this.busy = busy;
    this.render();
    for (const run of began) if (run.name !== this.open && this.own.includes(run.name)) this.page.onBegun(run);
    const known = busy.map((run) => `${run.name} ${run.state}`).sort().join();
    if (known === this.lastKnown) return;
    this.lastKnown = known;
    this.page.onChange(busy.length);
  }

  render() {
    const { waiting } = this;
    const shown = [...this.busy.filter((run) => !waiting.includes(run) && run.name !== this.open && this.own.includes(run.name)), ...waiting];
    this.root.hidden = !shown.length;
    setProps(this.title, { text: waiting.length ? t("queue.title", { count: waiting.length }) : t("queue.title_now") });
    for (const name of this.items.keys()) if (!shown.some((run) => run.name === name)) this.items.delete(name);
    syncChildren(this.list, shown.map((run) => this.item(run, waiting)));
  }

  /** @param {any} run @param {any[]} waiting */
  item(run, waiting) {
    const { name } = run;
    const prompt = run.spec?.prompt || t("run.own_pictures");
    let item = this.items.get(name);
    if (!item) {
      const button = (/** @type {string} */ id, /** @type {any} */ face, /** @type {() => void} */ onclick) =>
        createElement("button", { type: "button", class: "icon-button", "aria-label": t(`queue.${id}`, { prompt }), title: t(`queue.${id}`, { prompt }), onclick }, face);
      item = createElement(
        "li",
        { "data-run": name },
        createElement("a", { class: "queue-prompt", href: `#/${name}`, text: prompt }),
        createElement("span", { class: "facts" }),
        button("up", icon(ICONS.up), () => this.move(name, -1)),
        button("down", icon(ICONS.down), () => this.move(name, 1)),
        createElement("button", { type: "button", text: t("queue.now"), "aria-label": t("queue.now_of", { prompt }), onclick: () => this.begin(name) }),
        button("remove", icon(ICONS.close), () => this.remove(name)),
      );
      this.items.set(name, item);
    }
    const index = waiting.indexOf(run);
    item.classList.toggle("now", index < 0);
    setProps(item.querySelector(".facts"), { text: index < 0 ? t("state.RUNNING") : "" });
    const [up, down, ...rest] = item.querySelectorAll("button");
    for (const one of [up, down, ...rest]) one.hidden = index < 0;
    up.disabled = index === 0;
    down.disabled = index === waiting.length - 1;
    return item;
  }
}

/** @param {any} run */
function isBusy(run) {
  return ["QUEUED", "RUNNING"].includes(stateOf(run.state ?? ""));
}
