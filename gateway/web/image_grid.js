/** The gallery of a run: what each action made, the newest on top; any number can be chosen for a common action. */

import { byId, createElement, moveByArrows, setProps, syncChildren } from "./dom.js";
import { ImageCard } from "./image_card.js";
import { nameOf } from "./labels.js";
import { COMMON_ACTIONS } from "./stages.js";
import { t } from "./texts.js";

/** @typedef {import("./run_state.js").Picture} Picture */
/** @typedef {import("./run_state.js").RunState} RunState */

/**
 * @typedef {object} GridActions
 * @property {(name: string) => void} pick
 * @property {(names: string[], action: import("./stages.js").Action) => void} take
 * @property {(names: string[]) => void} download
 * @property {() => void} redraw
 */

export class ImageGrid {
  /** @param {GridActions} actions */
  constructor(actions) {
    this.actions = actions;
    this.root = byId("gallery");
    /** @type {Map<string, ImageCard>} */
    this.cards = new Map();
    /** @type {Map<string, {section: any, title: any, count: any, list: any}>} */
    this.sections = new Map();
    /** @type {Set<string>} */
    this.chosen = new Set();
    // A tick with the shift key reaches from here.
    this.lastChosen = "";
    /** @type {RunState|null} */
    this.run = null;
    this.chosenText = createElement("span", {});
    const take = (/** @type {import("./stages.js").Action} */ action) =>
      createElement("button", { type: "button", text: t(`action.${action}`), onclick: () => this.takeChosen((names) => actions.take(names, action)) });
    this.bar = createElement(
      "div",
      { class: "choice-bar", role: "group", "aria-label": t("choose.bar"), hidden: true },
      this.chosenText,
      ...COMMON_ACTIONS.map(take),
      createElement("button", { type: "button", text: t("action.download"), onclick: () => actions.download([...this.chosen]) }),
      createElement("button", { type: "button", class: "link", text: t("choose.none"), onclick: () => this.takeChosen(() => {}) }),
    );
    this.groups = createElement("div", {});
    this.root.append(this.bar, this.groups);
  }

  /** @param {(names: string[]) => void} act */
  takeChosen(act) {
    const names = [...this.chosen];
    this.chosen.clear();
    act(names);
    this.actions.redraw();
  }

  /** @param {RunState|null} run @param {Set<string>} path names of what is shown large and what it came from @param {string} current */
  update(run, path, current) {
    for (const [name, card] of this.cards) {
      if (run?.pictures.has(name)) continue;
      card.remove();
      this.cards.delete(name);
      this.chosen.delete(name);
    }
    this.run = run;
    const groups = run?.groups ?? [];
    for (const key of this.sections.keys()) if (!groups.some((one) => one.key === key)) this.sections.delete(key);
    syncChildren(this.groups, groups.map((group) => this.section(/** @type {RunState} */ (run), group, path, current)));
    this.bar.hidden = !this.chosen.size;
    setProps(this.chosenText, { text: t("choose.count", { count: this.chosen.size }) });
    this.root.hidden = !groups.length;
  }

  /** @param {RunState} run @param {import("./run_state.js").Group} group @param {Set<string>} path @param {string} current */
  section(run, group, path, current) {
    const parts = this.sections.get(group.key) ?? this.makeSection(group);
    const best = bestOf(group.pictures);
    const cards = group.pictures.map((picture) => {
      let card = this.cards.get(picture.name);
      if (!card) {
        card = new ImageCard(picture.name, { onPick: this.actions.pick, onChoose: (name, isChosen, isRange) => this.onChoose(name, isChosen, isRange), onFlat: this.actions.redraw });
        this.cards.set(picture.name, card);
      }
      card.update(picture, {
        prompt: run.spec?.prompt ?? "",
        isCurrent: picture.name === current,
        isOnPath: path.has(picture.name),
        isChosen: this.chosen.has(picture.name),
        isBest: picture === best,
        parent: run.parentOf(picture.name),
        numChildren: run.childrenOf(picture.name).length,
      });
      return card.element;
    });
    syncChildren(parts.list, cards);
    const numReady = group.pictures.filter((one) => one.state === "ready").length;
    const parent = run.pictures.get(group.parent);
    setProps(parts.title, { text: parent ? t(`group.${group.stage}_of`, { name: nameOf(parent) }) : t(`group.${group.stage}`) });
    setProps(parts.count, { text: numReady === group.pictures.length ? String(numReady) : t("group.count", { ready: numReady, count: group.pictures.length }) });
    return parts.section;
  }

  /** @param {import("./run_state.js").Group} group */
  makeSection(group) {
    const id = `group-${group.key.replaceAll(/\W+/g, "-")}`;
    const title = createElement("h3", { id });
    const count = createElement("span", { class: "count" });
    const list = createElement("ul", { class: "cards", role: "list", "aria-labelledby": id });
    moveByArrows(list);
    const section = createElement("section", { class: "group", "data-stage": group.stage, "aria-labelledby": id }, createElement("header", {}, title, count), list);
    const parts = { section, title, count, list };
    this.sections.set(group.key, parts);
    return parts;
  }

  /** @param {string} name @param {boolean} isChosen @param {boolean} isRange with the shift key: so are all from the last one that was ticked on */
  onChoose(name, isChosen, isRange) {
    const shown = [...this.groups.querySelectorAll(".card[data-state=ready]")].map((card) => this.run?.pictures.get(`${this.run.name}/images/${card.dataset.name}`)?.name ?? "");
    for (const one of isRange ? between(shown, this.lastChosen, name) : [name]) {
      if (isChosen) this.chosen.add(one);
      else this.chosen.delete(one);
    }
    this.lastChosen = name;
    this.actions.redraw();
  }
}

/** @param {string[]} names @param {string} first @param {string} last @returns {string[]} those from one to the other; only `last` where `first` is not there */
export function between(names, first, last) {
  const [from, to] = [names.indexOf(first), names.indexOf(last)].sort((a, b) => a - b);
  return from < 0 ? [last] : names.slice(from, to + 1);
}

/** @param {Picture[]} pictures @returns {Picture|undefined} the one of the highest score, where there are several to compare */
export function bestOf(pictures) {
  const scored = pictures.filter((one) => one.state === "ready" && one.score !== null && !one.isFlat);
  if (scored.length < 2) return undefined;
  const [first, second] = scored.toSorted((a, b) => /** @type {number} */ (b.score) - /** @type {number} */ (a.score));
  return first.score === second.score ? undefined : first;
}
