/** All runs: found by their words, model, state or star; several at once deleted, saved or starred. They outlive the page. */

import { byId, createElement, icon, ICONS, setProps, syncChildren } from "./dom.js";
import { cancelRun, endAndDelete, listRuns } from "./api.js";
import { addressOfPath, pathOf } from "./image_urls.js";
import { between } from "./image_grid.js";
import { stateOf } from "./run_state.js";
import { STAGES, STAGE_NAMES } from "./stages.js";
import { announce, showError, showNote } from "./notifications.js";
import { ago, dateText, duration, stateInWords } from "./labels.js";
import { copyText } from "./clipboard.js";
import { favourites, load, save, setFavourite } from "./storage.js";
import { t } from "./texts.js";

const PAGE_SIZE = 48;
// Of runs that are looked through for a word.
const MAX_SEARCHED = 1_000;
const MIN_NAME_CHARS = 6;

export class RunHistory {
  /** @param {{onDeleted: (name: string) => void, onZip: (names: string[]) => void}} page */
  constructor(page) {
    this.page = page;
    /** @type {any[]} newest first */
    this.runs = [];
    this.pageToken = "";
    /** @type {Map<string, {run: any, element: any, parts: any}>} */
    this.items = new Map();
    /** @type {Set<string>} */
    this.chosen = new Set();
    /** @type {Set<string>} deleted, unless it is undone */
    this.hidden = new Set();
    this.current = "";
    this.lastChosen = "";
    // An answer that a newer question has overtaken is not shown.
    this.numLoads = 0;
    this.isLoaded = false;
    this.build();
  }

  build() {
    const select = (/** @type {string} */ id) => createElement("select", { id, "aria-label": t(`runs.${id}`), onchange: () => this.render() });
    this.search = createElement("input", { id: "run-search", type: "search", placeholder: t("runs.search"), "aria-label": t("runs.search") });
    this.search.addEventListener("input", () => this.onSearch());
    this.model = select("filter-model");
    this.state = select("filter-state");
    const states = ["", "busy", "SUCCEEDED", "AWAITING_SELECTION", "PARTIALLY_SUCCEEDED", "FAILED", "CANCELLED"];
    this.state.append(...states.map((value) => createElement("option", { value, text: value === "" ? t("runs.any_state") : value === "busy" ? t("runs.busy") : stateInWords(value) })));
    this.starred = createElement("input", { id: "filter-starred", type: "checkbox", onchange: () => this.render() });
    this.price = createElement("input", { id: "price", type: "number", min: 0, step: "any", inputmode: "decimal", value: load("price", ""), "aria-describedby": "price-help" });
    this.price.addEventListener("change", () => {
      save("price", this.price.value);
      this.render();
    });
    this.list = createElement("ul", { class: "runs-list" });
    this.summary = createElement("p", { class: "hint", role: "status" });
    this.more = createElement("button", { type: "button", text: t("runs.older"), hidden: true, onclick: () => this.load(this.pageToken) });
    const act = (/** @type {string} */ id, /** @type {() => void} */ onclick) => createElement("button", { type: "button", id: `runs-${id}`, text: t(`runs.${id}`), onclick });
    this.allButton = act("all", () => this.chooseAll());
    this.bar = createElement(
      "div",
      { class: "choice-bar", role: "group", "aria-label": t("choose.bar") },
      this.allButton,
      (this.chosenParts = createElement("span", { class: "row", hidden: true }, (this.chosenText = createElement("span", {})), act("delete", () => this.remove([...this.chosen])), act("zip", () => this.page.onZip([...this.chosen])), act("star", () => this.starChosen()), act("none", () => this.chooseNone()))),
    );
    byId("runs").append(
      createElement("h2", { id: "runs-title", text: t("runs.title") }),
      createElement(
        "div",
        { class: "filters", role: "search" },
        this.search,
        this.state,
        this.model,
        createElement("label", { class: "choice" }, this.starred, createElement("span", { text: t("runs.starred") })),
      ),
      this.bar,
      this.summary,
      this.list,
      this.more,
      createElement("details", { class: "cost" }, createElement("summary", { text: t("runs.cost") }), createElement("label", { for: "price", text: t("runs.price") }), this.price, createElement("p", { class: "help", id: "price-help", text: t("runs.price_help") })),
    );
  }

  /** @param {string} [pageToken] empty: from the newest on */
  async load(pageToken = "") {
    const load = ++this.numLoads;
    try {
      const { runs, next_page_token: next } = await listRuns(PAGE_SIZE, pageToken);
      if (load !== this.numLoads) return;
      this.runs = pageToken ? [...this.runs, ...(runs ?? [])] : runs ?? [];
      this.pageToken = next ?? "";
      this.isLoaded = true;
      this.render();
    } catch (error) {
      if (!byId("runs").hidden) showError(error, () => this.load(pageToken));
    }
  }

  /** What is looked for may be older than what is here. */
  async onSearch() {
    this.render();
    const query = this.search.value;
    while (query && query === this.search.value && this.pageToken && this.runs.length < MAX_SEARCHED) await this.load(this.pageToken);
  }

  /** Shows which of them is open. @param {string} name */
  mark(name) {
    this.current = name;
    this.render();
  }

  /** @returns {any[]} */
  get shown() {
    const query = this.search.value.trim().toLowerCase();
    const starred = favourites();
    return this.runs.filter((run) => {
      const state = stateOf(run.state);
      if (this.hidden.has(run.name)) return false;
      if (this.starred.checked && !starred.has(run.name)) return false;
      if (this.state.value === "busy" ? !isBusy(state) : this.state.value && state !== this.state.value) return false;
      if (this.model.value && !(run.models ?? []).some((/** @type {any} */ one) => one.name === this.model.value)) return false;
      // A short word is in many names by chance.
      const isNamed = query.length >= MIN_NAME_CHARS && run.name.includes(query);
      return !query || isNamed || `${run.spec?.prompt ?? ""} ${run.spec?.seed ?? ""}`.toLowerCase().includes(query);
    });
  }

  render() {
    const { shown } = this;
    const names = [...new Set(this.runs.flatMap((run) => (run.models ?? []).map((/** @type {any} */ one) => one.name)))].sort();
    if (this.model.dataset.names !== names.join()) {
      this.model.dataset.names = names.join();
      const { value } = this.model;
      this.model.replaceChildren(createElement("option", { value: "", text: t("runs.any_model") }), ...names.map((name) => createElement("option", { value: name, text: name })));
      this.model.value = names.includes(value) ? value : "";
    }
    const known = new Set(this.runs.map((run) => run.name));
    for (const name of this.items.keys()) if (!known.has(name)) this.items.delete(name);
    for (const name of this.chosen) if (!shown.some((run) => run.name === name)) this.chosen.delete(name);
    const starred = favourites();
    syncChildren(this.list, shown.map((run) => this.item(run, starred)));
    this.more.hidden = !this.pageToken;
    const isEmpty = this.isLoaded && !this.runs.length;
    setProps(this.summary, { text: isEmpty ? t("runs.empty") : shown.length || !this.isLoaded ? t("runs.count", { count: shown.length }) : t("runs.nothing") });
    this.bar.hidden = !shown.length;
    this.bar.classList.toggle("idle", !this.chosen.size);
    this.chosenParts.hidden = !this.chosen.size;
    setProps(this.chosenText, { text: t("choose.count", { count: this.chosen.size }) });
  }

  /** @param {any} run @param {Set<string>} starred */
  item(run, starred) {
    let known = this.items.get(run.name);
    if (!known) {
      known = { run, ...this.makeItem(run) };
      this.items.set(run.name, known);
    }
    known.run = run;
    const { parts, element } = known;
    const cover = coverOf(run.images ?? []);
    if (cover && parts.img.dataset.path !== pathOf(cover)) {
      parts.img.dataset.path = pathOf(cover);
      addressOfPath(pathOf(cover)).then((address) => {
        parts.img.src = address;
        parts.img.hidden = false;
      }, () => null);
    }
    const state = stateOf(run.state);
    const count = (run.images ?? []).length;
    const facts = [stateInWords(state), t("runs.pictures", { count }), ago(run.create_time), ...costOf(run, this.price.value)];
    setProps(parts.facts, { text: facts.join(" · ") });
    setProps(parts.seed, { text: t("detail.seed", { seed: run.spec?.seed ?? "" }) });
    setProps(parts.star, { "aria-pressed": String(starred.has(run.name)) });
    parts.cancel.hidden = !isBusy(state);
    parts.choose.checked = this.chosen.has(run.name);
    setProps(parts.link, { "aria-current": run.name === this.current && "page" });
    element.classList.toggle("chosen", this.chosen.has(run.name));
    return element;
  }

  /** @param {any} run */
  makeItem(run) {
    const prompt = run.spec?.prompt || t("run.own_pictures");
    const { name } = run;
    const img = createElement("img", { alt: "", loading: "lazy", hidden: true });
    const facts = createElement("span", { class: "facts" });
    const seed = createElement("span", { class: "facts", title: dateText(run.create_time) });
    const link = createElement("a", { href: `#/${name}` }, createElement("span", { class: "cover" }, img), createElement("span", { class: "run-prompt", text: prompt }), facts, seed);
    const small = (/** @type {string} */ id, /** @type {() => void} */ onclick) =>
      createElement("button", { type: "button", class: "link", text: t(`runs.one_${id}`), "aria-label": t(`runs.one_${id}_of`, { prompt }), onclick });
    const cancel = small("cancel", () => this.cancel(name));
    const star = createElement("button", { type: "button", class: "icon-button star", "aria-label": t("runs.star_of", { prompt }), onclick: () => this.star(name) }, icon(ICONS.star));
    const choose = createElement("input", { type: "checkbox", class: "choose", "aria-label": t("choose.one", { name: prompt }) });
    choose.addEventListener("click", (/** @type {MouseEvent} */ event) => this.choose(name, choose.checked, event.shiftKey));
    const element = createElement(
      "li",
      { class: "run-item", "data-run": name },
      link,
      createElement("label", { class: "choose-box" }, choose),
      star,
      createElement("span", { class: "row small" }, cancel, small("copy", () => copyText(prompt, t("copied.prompt"))), small("share", () => copyText(new URL(`#/${name}`, location.href).href, t("copied.link"))), small("delete", () => this.remove([name]))),
    );
    return { element, parts: { img, facts, seed, link, star, choose, cancel } };
  }

  /** @param {string} name @param {boolean} isChosen @param {boolean} isRange with the shift key: so are all from the last one that was ticked on */
  choose(name, isChosen, isRange) {
    for (const one of isRange ? between(this.shown.map((run) => run.name), this.lastChosen, name) : [name]) {
      if (isChosen) this.chosen.add(one);
      else this.chosen.delete(one);
    }
    this.lastChosen = name;
    this.render();
  }

  chooseAll() {
    for (const run of this.shown) this.chosen.add(run.name);
    this.render();
  }

  chooseNone() {
    this.chosen.clear();
    this.render();
  }

  /** @param {string} name */
  star(name) {
    setFavourite(name, !favourites().has(name));
    this.render();
  }

  starChosen() {
    for (const name of this.chosen) setFavourite(name, true);
    this.chooseNone();
  }

  /** They go away at once, and from the gateway when there is no way back any more. @param {string[]} names */
  remove(names) {
    if (!names.length) return;
    for (const name of names) this.hidden.add(name);
    this.chosen.clear();
    this.render();
    names.forEach((name) => this.page.onDeleted(name));
    this.search.focus();
    showNote(t("runs.deleted", { count: names.length }), {
      undo: () => {
        for (const name of names) this.hidden.delete(name);
        this.render();
        announce(t("runs.restored"));
      },
      done: () => this.removeForGood(names),
    });
  }

  /** @param {string[]} names */
  async removeForGood(names) {
    for (const name of names) {
      try {
        await endAndDelete(name);
        this.runs = this.runs.filter((run) => run.name !== name);
      } catch (error) {
        showError(error, () => this.removeForGood([name]));
      }
      this.hidden.delete(name);
    }
    this.render();
  }

  /** @param {string} name */
  async cancel(name) {
    try {
      await cancelRun(name);
      announce(t("announce.cancelled"));
      await this.load();
    } catch (error) {
      showError(error, () => this.cancel(name));
    }
  }
}

/** @param {string} state */
function isBusy(state) {
  return state === "QUEUED" || state === "RUNNING";
}

/** The compute of a run, and its price where the person knows one. @param {any} run @param {string} price an hour */
function costOf(run, price) {
  const seconds = (run.timings ?? []).reduce((/** @type {number} */ sum, /** @type {any} */ one) => sum + (Number.parseFloat(one.compute ?? "0") || 0), 0);
  if (seconds < 0.05) return [];
  const cost = Number(price) > 0 ? [t("runs.money", { amount: ((seconds / 3600) * Number(price)).toPrecision(2) })] : [];
  return [t("run.compute", { time: duration(seconds) }), ...cost];
}

/** What stands for a run: the newest of its furthest stage, the best where there are scores. @param {any[]} images */
function coverOf(images) {
  const worth = (/** @type {any} */ image) => STAGES.indexOf(STAGE_NAMES[image.stage]) * 10 + (image.clip_score ?? 0);
  return images.reduce((best, image) => (!best || worth(image) >= worth(best) ? image : best), null);
}
