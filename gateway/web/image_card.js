/** One picture of a panel: a blur that sharpens, then something to click. */

import { createElement, setProps } from "./dom.js";
import { show } from "./image_urls.js";
import { progressOf } from "./run_state.js";
import { capital, nameOf, scoreText } from "./labels.js";

/** @typedef {import("./run_state.js").Picture} Picture */

/**
 * @typedef {object} Look what a card needs to know beside its picture
 * @property {string} prompt
 * @property {boolean} isCurrent on the way to what is looked at
 * @property {boolean} isBest
 * @property {Picture|undefined} parent
 * @property {string} action what a click does, for ears
 * @property {number} numChildren
 */

export class ImageCard {
  /** @param {string} name @param {(name: string) => void} onPick */
  constructor(name, onPick) {
    this.img = createElement("img", { alt: "", hidden: true, draggable: false });
    this.badge = createElement("span", { class: "badge", "aria-hidden": true });
    this.bar = createElement("span", { class: "card-bar", "aria-hidden": true }, createElement("span"));
    this.note = createElement("span", { class: "card-note", "aria-hidden": true });
    this.button = createElement("button", { type: "button", class: "face" }, this.img, this.note, this.bar);
    this.button.addEventListener("click", () => {
      if (this.button.getAttribute("aria-disabled") !== "true") onPick(name);
    });
    // Below the picture and not on it: it would hide what it is about.
    this.element = createElement("li", { class: "card" }, this.button, this.badge);
  }

  /** @param {Picture} picture @param {Look} look */
  update(picture, look) {
    const isReady = picture.state === "ready";
    const done = progressOf(picture);
    this.element.dataset.state = picture.state;
    this.element.dataset.name = picture.name.split("/").at(-1);
    // What it is made from stands in for it, under a thick fog, until there is a first preview.
    const showsParent = !isReady && !picture.preview && look.parent?.image;
    const hasGivenUp = picture.state === "failed" || picture.state === "cancelled";
    show(this.img, hasGivenUp ? undefined : showsParent ? look.parent : picture);
    this.element.classList.toggle("borrowed", Boolean(showsParent));
    this.element.classList.toggle("best", look.isBest);
    this.element.style.setProperty("--fog", String(isReady ? 0 : 1 - done));
    this.element.style.setProperty("--done", String(done));
    setProps(this.button, {
      "aria-current": look.isCurrent && "true",
      "aria-disabled": !isReady && "true",
      "aria-label": wordsFor(picture, look),
    });
    setProps(this.img, { alt: isReady ? `${capital(nameOf(picture))}: ${look.prompt}` : "" });
    setProps(this.badge, { text: picture.score === null ? "" : scoreText(picture.score) });
    setProps(this.note, { text: noteOf(picture), title: picture.problem || null });
  }
}

/** @param {Picture} picture */
function noteOf(picture) {
  return { failed: "failed", cancelled: "cancelled", waiting: "", working: "", ready: "" }[picture.state];
}

/** @param {Picture} picture @param {Look} look */
function wordsFor(picture, look) {
  const name = capital(nameOf(picture));
  if (picture.state === "failed") return `${name} failed: ${picture.problem}`;
  if (picture.state === "cancelled") return `${name} was cancelled`;
  if (picture.state === "waiting") return `${name} is waiting`;
  if (picture.state === "working") return `${name}, ${Math.round(progressOf(picture) * 10) * 10} percent`;
  const score = picture.score === null ? "" : `, score ${scoreText(picture.score)}${look.isBest ? ", the best" : ""}`;
  const children = look.numChildren ? `, ${look.numChildren} made from it` : "";
  return `${name}: ${look.prompt}${score}${children}. ${look.action}`;
}
