/** The runs that there were: they outlive this page and the gateway's process. */

import { byId, createElement, setProps } from "./dom.js";
import { GatewayError, cancelRun, deleteRun, listRuns } from "./api.js";
import { addressOf } from "./image_urls.js";
import { STAGE_NAMES, stateOf } from "./run_state.js";
import { askToConfirm, announce, showError } from "./notifications.js";
import { ago, stateInWords } from "./labels.js";

const PAGE_SIZE = 12;

export class RunHistory {
  /** @param {(name: string) => void} onDeleted */
  constructor(onDeleted) {
    this.onDeleted = onDeleted;
    this.pageToken = "";
    this.list = createElement("ul", { class: "gallery" });
    this.empty = createElement("p", { class: "hint", text: "Nothing yet. What you make stays here, also when the gateway is started anew." });
    this.more = createElement("button", { type: "button", text: "Show older ones", hidden: true, onclick: () => this.load(this.pageToken) });
    byId("past").append(createElement("h2", { id: "past-title", text: "Past runs" }), this.list, this.empty, this.more);
    this.current = "";
    // An answer that a newer question has overtaken is not shown.
    this.numLoads = 0;
  }

  /** @param {string} [pageToken] empty: from the newest on */
  async load(pageToken = "") {
    const load = ++this.numLoads;
    try {
      const { runs, next_page_token: next } = await listRuns(PAGE_SIZE, pageToken);
      if (load !== this.numLoads) return;
      const items = (runs ?? []).map((/** @type {any} */ run) => this.item(run));
      if (pageToken) this.list.append(...items);
      else this.list.replaceChildren(...items);
      this.pageToken = next ?? "";
      this.more.hidden = !this.pageToken;
      this.empty.hidden = this.list.children.length > 0;
      this.mark(this.current);
    } catch (error) {
      showError(error, () => this.load(pageToken));
    }
  }

  /** Shows which of them is open. @param {string} name */
  mark(name) {
    this.current = name;
    for (const link of this.list.querySelectorAll("a")) setProps(link, { "aria-current": link.dataset.run === name && "page" });
  }

  /** @param {any} run */
  item(run) {
    const prompt = run.spec?.prompt || "pictures of one's own";
    const img = createElement("img", { alt: "", loading: "lazy", hidden: true });
    const best = coverOf(run.images ?? []);
    if (best) {
      addressOf(best.sha256).then((address) => {
        img.src = address;
        img.hidden = false;
      }, () => null);
    }
    const count = (run.images ?? []).length;
    const facts = `${stateInWords(stateOf(run.state))} · ${count} ${count === 1 ? "picture" : "pictures"} · ${ago(run.create_time)}`;
    const link = createElement(
      "a",
      { href: `#/${run.name}`, "data-run": run.name },
      createElement("span", { class: "cover" }, img),
      createElement("span", { class: "past-prompt", text: prompt }),
      createElement("span", { class: "facts", text: facts }),
    );
    const remove = createElement("button", {
      type: "button",
      class: "plain remove",
      text: "Delete",
      "aria-label": `Delete the run “${prompt}”`,
      onclick: () => this.remove(run.name, prompt),
    });
    return createElement("li", {}, link, remove);
  }

  /** @param {string} name @param {string} prompt */
  async remove(name, prompt) {
    if (!(await askToConfirm(`Delete “${prompt}” and its pictures? They cannot be brought back.`, "Delete"))) return;
    try {
      await endAndDelete(name);
    } catch (error) {
      showError(error, () => this.remove(name, prompt));
      return;
    }
    announce("The run is deleted.");
    this.onDeleted(name);
    await this.load();
    byId("past").focus();
  }
}

/** A run that is under way, or waits for a choice, is ended first. @param {string} name */
async function endAndDelete(name) {
  try {
    await deleteRun(name);
  } catch (error) {
    if (!(error instanceof GatewayError) || error.reason !== "RUN_UNDER_WAY") throw error;
    await cancelRun(name);
    await deleteRun(name);
  }
}

/** What stands for a run: the newest of its furthest stage, the best where there are scores. @param {any[]} images */
function coverOf(images) {
  const rank = ["generate", "refine", "upscale"];
  const worth = (/** @type {any} */ image) => rank.indexOf(STAGE_NAMES[image.stage]) * 10 + (image.clip_score ?? 0);
  return images.reduce((best, image) => (!best || worth(image) >= worth(best) ? image : best), null);
}
