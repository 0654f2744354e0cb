/** Prompts that wait in this browser until an earlier run is done: they can be put in another order and taken out. */

import { byId, createElement, icon, ICONS, setProps, syncChildren } from "./dom.js";
import { GatewayError, createRun, getRun, isAway, newRequestId } from "./api.js";
import { announce, showError, showNote } from "./notifications.js";
import { load, save } from "./storage.js";
import { stateOf } from "./run_state.js";
import { t } from "./texts.js";

const POLL_MS = 1_500;
const OVER = new Set(["AWAITING_SELECTION", "SUCCEEDED", "PARTIALLY_SUCCEEDED", "CANCELLED", "FAILED"]);

/** @typedef {{id: string, spec: any}} Waiting `id` is the request's: two tabs that begin it make one run */

export class RunQueue {
  /** @param {(run: any) => void} onBegun */
  constructor(onBegun) {
    this.onBegun = onBegun;
    this.root = byId("queue");
    /** @type {Waiting[]} */
    this.waiting = load("queue", []);
    /** @type {string} the run that the others wait for */
    this.active = load("queue-active", "");
    /** @type {Map<string, any>} */
    this.items = new Map();
    this.title = createElement("h2", { id: "queue-title" });
    this.list = createElement("ol", {});
    this.root.append(this.title, createElement("p", { class: "hint", text: t("queue.hint") }), this.list);
    addEventListener("storage", (event) => {
      if (event.key?.endsWith("queue")) (this.waiting = load("queue", [])), this.render();
    });
    this.render();
    this.poll();
  }

  /** @param {any} run one that was begun by this page */
  follow(run) {
    if (OVER.has(stateOf(run.state ?? ""))) return;
    this.active = run.name;
    save("queue-active", this.active);
    this.poll();
  }

  /** Whether a new prompt has to wait. */
  get isBusy() {
    return Boolean(this.active);
  }

  /** @param {any} spec */
  add(spec) {
    this.waiting.push({ id: newRequestId(), spec });
    this.keep();
    announce(t("queue.added", { position: this.waiting.length }));
    this.poll();
  }

  keep() {
    save("queue", this.waiting);
    this.render();
  }

  /** @param {string} id @param {number} step -1: earlier */
  move(id, step) {
    const index = this.waiting.findIndex((one) => one.id === id);
    const [item] = this.waiting.splice(index, 1);
    this.waiting.splice(Math.max(0, index + step), 0, item);
    this.keep();
    announce(t("queue.moved", { position: this.waiting.indexOf(item) + 1 }));
    // The button moved with its row, and keeps the focus unless it is at the end of its way.
    const [up, down] = this.items.get(id).querySelectorAll("button");
    (step < 0 ? (up.disabled ? down : up) : down.disabled ? up : down).focus();
  }

  /** @param {string} id */
  remove(id) {
    const index = this.waiting.findIndex((one) => one.id === id);
    const [item] = this.waiting.splice(index, 1);
    this.keep();
    showNote(t("queue.removed", { prompt: item.spec.prompt }), {
      undo: () => {
        this.waiting.splice(index, 0, item);
        this.keep();
        this.poll();
      },
    });
  }

  /** @param {string} id begins now, whatever else is under way */
  async begin(id) {
    const item = this.waiting.find((one) => one.id === id);
    if (!item) return;
    try {
      const run = await createRun(item.id, item.spec);
      this.waiting = load("queue", []).filter((/** @type {Waiting} */ one) => one.id !== id);
      this.keep();
      this.active = run.name;
      save("queue-active", this.active);
      this.onBegun(run);
    } catch (error) {
      // It stays where it is: the gateway is asked again.
      if (isAway(error) || /** @type {GatewayError} */ (error).status === 429) return;
      this.waiting = this.waiting.filter((one) => one.id !== id);
      this.keep();
      showError(error);
    }
  }

  async poll() {
    clearTimeout(this.timer);
    if (this.active && this.waiting.length) {
      try {
        if (OVER.has(stateOf((await getRun(this.active)).state))) this.setIdle();
      } catch (error) {
        if (!isAway(error)) this.setIdle();
      }
    }
    if (!this.active && this.waiting.length) await this.begin(this.waiting[0].id);
    clearTimeout(this.timer);
    if (this.waiting.length) this.timer = setTimeout(() => this.poll(), POLL_MS);
  }

  setIdle() {
    this.active = "";
    save("queue-active", "");
  }

  /** The open run has ended, as its events have it. @param {string} name */
  ended(name) {
    if (name !== this.active) return;
    this.setIdle();
    this.poll();
  }

  render() {
    this.root.hidden = !this.waiting.length;
    setProps(this.title, { text: t("queue.title", { count: this.waiting.length }) });
    for (const id of this.items.keys()) if (!this.waiting.some((one) => one.id === id)) this.items.delete(id);
    syncChildren(this.list, this.waiting.map((item, index) => this.item(item, index)));
  }

  /** @param {Waiting} item @param {number} index */
  item({ id, spec }, index) {
    let item = this.items.get(id);
    if (!item) {
      const button = (/** @type {string} */ name, /** @type {any} */ face, /** @type {() => void} */ onclick) =>
        createElement("button", { type: "button", class: "icon-button", "aria-label": t(`queue.${name}`, { prompt: spec.prompt }), title: t(`queue.${name}`, { prompt: spec.prompt }), onclick }, face);
      item = createElement(
        "li",
        {},
        createElement("span", { class: "queue-prompt", text: spec.prompt }),
        button("up", icon(ICONS.up), () => this.move(id, -1)),
        button("down", icon(ICONS.down), () => this.move(id, 1)),
        createElement("button", { type: "button", text: t("queue.now"), onclick: () => this.begin(id) }),
        button("remove", icon(ICONS.close), () => this.remove(id)),
      );
      this.items.set(id, item);
    }
    const [up, down] = item.querySelectorAll("button");
    up.disabled = index === 0;
    down.disabled = index === this.waiting.length - 1;
    return item;
  }
}
