/** Two pictures on top of each other and a line to drag between them: what a picture was, and what became of it. */

import { make, set } from "./dom.js";
import { show } from "./image_urls.js";
import { doneOf } from "./run_state.js";
import { capital, nameOf } from "./labels.js";

/** @typedef {import("./run_state.js").Picture} Picture */

export class Compare {
  constructor() {
    this.before = make("img", { class: "before", alt: "", hidden: true, draggable: false });
    this.after = make("img", { class: "after", alt: "", hidden: true, draggable: false });
    this.line = make("span", { class: "cut-line", "aria-hidden": true }, make("span"));
    this.range = make("input", { type: "range", min: 0, max: 100, value: 0, step: 1, class: "cut" });
    this.range.addEventListener("input", () => this.cut());
    this.tags = make("span", { class: "cut-tags", "aria-hidden": true }, make("span"), make("span"));
    this.element = make("div", { class: "compare" }, this.before, this.after, this.line, this.tags, this.range);
    this.shown = "";
  }

  /** @param {Picture} picture @param {Picture|undefined} parent @param {string} prompt */
  update(picture, parent, prompt) {
    const isReady = picture.state === "ready";
    const canCompare = isReady && Boolean(parent?.image);
    if (this.shown !== picture.name) {
      this.shown = picture.name;
      this.range.value = 0;
      this.cut();
    }
    const isBorrowed = !isReady && !picture.preview && parent?.image;
    show(this.after, isBorrowed ? parent : picture);
    show(this.before, canCompare ? parent : undefined);
    this.element.style.setProperty("--fog", String(isReady ? 0 : 1 - doneOf(picture)));
    this.element.classList.toggle("comparable", canCompare);
    set(this.after, { alt: `${capital(nameOf(picture))}: ${prompt}` });
    this.range.hidden = this.line.hidden = this.tags.hidden = !canCompare;
    if (!parent) return;
    set(this.range, { "aria-label": `Compare with its ${nameOf(parent)}` });
    const [left, right] = this.tags.children;
    set(left, { text: nameOf(parent) });
    set(right, { text: nameOf(picture) });
  }

  cut() {
    const share = Number(this.range.value);
    this.element.style.setProperty("--cut", `${share}%`);
    set(this.range, { "aria-valuetext": `${share} percent of what it was made from` });
    this.element.classList.toggle("cutting", share > 0);
  }
}
