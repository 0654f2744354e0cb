/** Two pictures on top of each other and a line to drag between them: a picture and its result. */

import { createElement, setProps } from "./dom.js";
import { show } from "./image_urls.js";
import { progressOf } from "./run_state.js";
import { capital, nameOf } from "./labels.js";
import { t } from "./texts.js";

/** @typedef {import("./run_state.js").Picture} Picture */

export class CompareSlider {
  constructor() {
    this.before = createElement("img", { class: "before", alt: "", hidden: true, draggable: false });
    this.after = createElement("img", { class: "after", alt: "", hidden: true, draggable: false });
    this.line = createElement("span", { class: "cut-line", "aria-hidden": true }, createElement("span"));
    this.range = createElement("input", { type: "range", min: 0, max: 100, value: 50, step: 1, class: "cut" });
    this.range.addEventListener("input", () => this.cut());
    this.tags = createElement("span", { class: "cut-tags", "aria-hidden": true }, createElement("span"), createElement("span"));
    this.element = createElement("div", { class: "compare" }, this.before, this.after, this.line, this.tags, this.range);
    this.shown = "";
  }

  /** @param {Picture} picture @param {Picture|undefined} parent @param {string} prompt */
  update(picture, parent, prompt) {
    const isReady = picture.state === "ready";
    const canCompare = isReady && Boolean(parent?.image);
    if (this.shown !== picture.name) {
      this.shown = picture.name;
      // In the middle, where both are seen.
      this.range.value = 50;
      this.cut();
    }
    const showsParent = !isReady && !picture.preview && parent?.image;
    show(this.after, showsParent ? parent : picture);
    show(this.before, canCompare ? parent : undefined);
    this.element.style.setProperty("--fog", String(isReady ? 0 : 1 - progressOf(picture)));
    this.element.classList.toggle("comparable", canCompare);
    // Not larger than it is: what was upscaled is judged at its own pixels.
    const isLarge = isReady && picture.stage === "upscale";
    this.element.style.setProperty("--own-width", isLarge ? `${picture.image.width / devicePixelRatio}px` : "100%");
    setProps(this.after, { alt: prompt ? `${capital(nameOf(picture))}: ${prompt}` : capital(nameOf(picture)) });
    this.range.hidden = this.line.hidden = this.tags.hidden = !canCompare;
    if (!parent) return;
    setProps(this.range, { "aria-label": t("compare.label", { name: nameOf(parent) }) });
    const [left, right] = this.tags.children;
    setProps(left, { text: nameOf(parent) });
    setProps(right, { text: nameOf(picture) });
  }

  cut() {
    const share = Number(this.range.value);
    this.element.style.setProperty("--cut", `${share}%`);
    setProps(this.range, { "aria-valuetext": t("compare.value", { percent: share }) });
  }
}
