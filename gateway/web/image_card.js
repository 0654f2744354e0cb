/** One image of the grid: blurred previews while it is made, then a button that shows it large and a checkbox. */

import { createElement, setProps } from "./dom.js";
import { isFlat, show } from "./image_urls.js";
import { progressOf } from "./run_state.js";
import { capital, errorInWords, nameOf, scoreText } from "./labels.js";
import { t } from "./texts.js";

/** @typedef {import("./run_state.js").Picture} Picture */

/**
 * @typedef {object} Look what a card shows beside its picture
 * @property {string} prompt
 * @property {boolean} isCurrent it is shown large
 * @property {boolean} isOnPath it is an ancestor of the one that is shown large
 * @property {boolean} isChosen it is selected for an action on several
 * @property {boolean} isBest
 * @property {Picture|undefined} parent
 * @property {number} numChildren
 */

export class ImageCard {
  /** @param {string} name @param {{onPick: (name: string) => void, onChoose: (name: string, isChosen: boolean, isRange: boolean) => void, onFlat: () => void}} actions */
  constructor(name, actions) {
    this.onFlat = actions.onFlat;
    this.img = createElement("img", { alt: "", hidden: true, draggable: false });
    this.badge = createElement("span", { class: "badge", "aria-hidden": true });
    this.bar = createElement("span", { class: "card-bar", "aria-hidden": true }, createElement("span"));
    this.note = createElement("span", { class: "card-note", "aria-hidden": true });
    this.button = createElement("button", { type: "button", class: "face" }, this.img, this.note, this.bar);
    this.button.addEventListener("click", () => actions.onPick(name));
    this.choose = createElement("input", { type: "checkbox", class: "choose" });
    // A click, not a change: that does not know of the shift key. The space key clicks, too.
    this.choose.addEventListener("click", (/** @type {MouseEvent} */ event) => actions.onChoose(name, this.choose.checked, event.shiftKey));
    this.label = createElement("span", { class: "card-name", "aria-hidden": true });
    this.element = createElement("li", { class: "card" }, this.button, createElement("label", { class: "choose-box" }, this.choose), createElement("span", { class: "card-line" }, this.label, this.badge));
  }

  /** @param {Picture} picture @param {Look} look */
  update(picture, look) {
    const isReady = picture.state === "ready";
    const done = progressOf(picture);
    this.element.dataset.state = picture.state;
    this.element.dataset.name = picture.name.split("/").at(-1);
    // Until the first preview: the blurred parent.
    const showsParent = !isReady && !picture.preview && look.parent?.image;
    const hasGivenUp = picture.state === "failed" || picture.state === "cancelled";
    show(this.img, hasGivenUp ? undefined : showsParent ? look.parent : picture);
    if (isReady && !this.wasChecked) this.checkFlat(picture);
    this.element.classList.toggle("borrowed", Boolean(showsParent));
    this.element.classList.toggle("best", look.isBest);
    this.element.classList.toggle("on-path", look.isOnPath);
    this.element.style.setProperty("--fog", String(isReady ? 0 : 1 - done));
    this.element.style.setProperty("--done", String(done));
    setProps(this.button, { "aria-current": look.isCurrent && "true", "aria-label": describe(picture, look) });
    setProps(this.img, { alt: isReady ? `${capital(nameOf(picture))}: ${look.prompt}` : "" });
    setProps(this.label, { text: capital(nameOf(picture)) });
    const score = picture.isFlat ? t("score.flat") : picture.score === null ? "" : t(look.isBest ? "score.best" : "score.short", { score: scoreText(picture.score) });
    setProps(this.badge, { text: score });
    setProps(this.note, { text: hasGivenUp ? t(`picture.${picture.state}`) : "" });
    this.choose.checked = look.isChosen;
    this.choose.parentElement.hidden = !isReady;
    setProps(this.choose, { "aria-label": t("choose.one", { name: nameOf(picture) }) });
  }

  /** @param {Picture} picture */
  async checkFlat(picture) {
    this.wasChecked = true;
    if (!(await isFlat(picture))) return;
    picture.isFlat = true;
    this.onFlat();
  }

  /** Frees the object URL of its image, too. */
  remove() {
    show(this.img, undefined);
    this.element.remove();
  }
}

/** @param {Picture} picture @param {Look} look */
function describe(picture, look) {
  const name = capital(nameOf(picture));
  if (picture.state === "failed") return t("card.failed", { name, why: picture.problem ? errorInWords(picture.problem) : "" });
  if (picture.state === "cancelled") return t("card.cancelled", { name });
  if (picture.state === "waiting") return t("card.waiting", { name });
  if (picture.state === "working") return t("card.working", { name, percent: Math.round(progressOf(picture) * 10) * 10 });
  const parts = [`${name}: ${look.prompt}`];
  if (picture.isFlat) parts.push(t("score.flat"));
  else if (picture.score !== null) parts.push(t(look.isBest ? "score.best" : "score.short", { score: scoreText(picture.score) }));
  if (look.numChildren) parts.push(t("card.children", { count: look.numChildren }));
  return parts.join(", ");
}
