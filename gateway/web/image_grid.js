/** A panel of pictures to choose from: the sketches, or the variations of one of them. */

import { syncChildren, createElement, moveByArrows, setProps } from "./dom.js";
import { ImageCard } from "./image_card.js";
import { MANY } from "./labels.js";

/** @typedef {import("./run_state.js").Picture} Picture */
/** @typedef {import("./run_state.js").RunState} RunState */

/**
 * @typedef {object} Shown
 * @property {Picture[]} pictures
 * @property {Set<string>} path names of what is looked at and what it came from
 * @property {string} hint
 * @property {string} action what a click on a card does, for ears
 */

export class ImageGrid {
  /**
   * @param {any} root
   * @param {"generate"|"refine"} stage
   * @param {string} title
   * @param {(name: string) => void} onPick
   */
  constructor(root, stage, title, onPick) {
    this.stage = stage;
    this.onPick = onPick;
    /** @type {Map<string, ImageCard>} */
    this.cards = new Map();
    this.count = createElement("span", { class: "count" });
    this.hint = createElement("p", { class: "hint" });
    this.list = createElement("ul", { class: "cards", role: "list" });
    moveByArrows(this.list);
    root.append(
      createElement("header", {}, createElement("h2", { id: `title-${stage}`, text: title }), this.count),
      this.list,
      this.hint,
    );
  }

  /** @param {RunState|null} run @param {Shown} shown */
  update(run, shown) {
    const { pictures } = shown;
    const best = bestOf(pictures);
    for (const name of this.cards.keys()) if (!run?.pictures.has(name)) this.cards.delete(name);
    const elements = pictures.map((picture) => {
      let card = this.cards.get(picture.name);
      if (!card) this.cards.set(picture.name, (card = new ImageCard(picture.name, this.onPick)));
      card.update(picture, {
        prompt: run?.spec?.prompt ?? "",
        isCurrent: shown.path.has(picture.name),
        isBest: picture === best,
        parent: run?.parentOf(picture.name),
        action: shown.action,
        numChildren: run?.childrenOf(picture.name).length ?? 0,
      });
      return card.element;
    });
    syncChildren(this.list, elements);
    this.list.hidden = !elements.length;
    this.list.classList.toggle("many", elements.length > 12);
    const numReady = pictures.filter((one) => one.state === "ready").length;
    const isWhole = numReady === pictures.length;
    setProps(this.count, { text: !pictures.length ? "" : isWhole ? `${numReady}` : `${numReady} of ${pictures.length}` });
    setProps(this.list, { "aria-label": MANY[this.stage] });
    setProps(this.hint, { text: shown.hint });
    this.hint.hidden = !shown.hint;
  }
}

/** @param {Picture[]} pictures @returns {Picture|undefined} the one of the highest score, where there are several */
export function bestOf(pictures) {
  const scored = pictures.filter((one) => one.score !== null);
  if (scored.length < 2) return undefined;
  return scored.reduce((best, one) => (/** @type {number} */ (one.score) > /** @type {number} */ (best.score) ? one : best));
}
