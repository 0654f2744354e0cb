/** A second picture to mix into the one that is looked at, and how much of it. Loaded when it is first needed. */

import { createElement, setProps } from "./dom.js";
import { GatewayError } from "./api.js";
import { NUM_VARIATIONS } from "./settings.js";
import { readSource } from "./source_image.js";
import { t } from "./texts.js";

/** @typedef {import("./source_image.js").SourceImage} SourceImage */

export class MixPanel {
  /**
   * @param {HTMLElement} root
   * @param {{onMake: () => void, onError: (error: unknown) => void}} actions
   */
  constructor(root, actions) {
    this.root = root;
    this.actions = actions;
    /** @type {SourceImage|null} */
    this.source = null;
    this.picker = createElement("input", { type: "file", accept: "image/*", id: "mix-picker", hidden: true, onchange: () => this.onFile(this.picker.files[0]) });
    this.add = createElement("button", { type: "button", class: "quiet", id: "mix-add", text: t("mix.add"), onclick: () => this.picker.click() });
    this.hint = createElement("span", { class: "hint", text: t("mix.drop") });
    this.image = createElement("img", { alt: t("mix.second") });
    this.range = createElement("input", { type: "range", id: "mix-weight", min: 0, max: 100, step: 5, value: 50, oninput: () => this.show() });
    this.value = createElement("output", { for: "mix-weight" });
    const make = createElement("button", { type: "button", class: "primary", id: "mix-make", text: t("mix.make", { count: NUM_VARIATIONS }), onclick: () => actions.onMake() });
    const remove = createElement("button", { type: "button", class: "link", id: "mix-remove", text: t("mix.remove"), onclick: () => this.clear() });
    this.chosen = createElement(
      "div",
      { class: "mix-chosen" },
      this.image,
      createElement("div", { class: "mix-weight" }, createElement("label", { for: "mix-weight", text: t("mix.weight") }), this.range, this.value),
      createElement("div", { class: "row" }, make, remove),
    );
    root.append(this.picker, this.add, this.hint, this.chosen);
    this.listen();
    this.show();
  }

  /** A picture that is dropped here is the second one; anywhere else it takes the first one's place. */
  listen() {
    this.root.addEventListener("drop", (event) => {
      const file = [...(event.dataTransfer?.files ?? [])].find((one) => one.type.startsWith("image/"));
      if (!file) return;
      event.preventDefault();
      event.stopPropagation();
      dispatchEvent(new Event("dragleave"));
      this.onFile(file);
    });
  }

  /** @param {Blob|undefined} file */
  async onFile(file) {
    this.picker.value = "";
    if (!file) return;
    try {
      this.take(await readSource(file));
    } catch {
      this.actions.onError(new GatewayError("", { status: 400, reason: "NOT_A_PICTURE" }));
    }
  }

  /** @param {SourceImage} source */
  take(source) {
    this.clear();
    this.source = source;
    this.image.src = source.url;
    this.show();
  }

  clear() {
    if (this.source) URL.revokeObjectURL(this.source.url);
    this.source = null;
    this.image.removeAttribute("src");
    this.show();
  }

  show() {
    const percent = Number(this.range.value);
    setProps(this.range, { "aria-valuetext": t("mix.value", { percent }) });
    setProps(this.value, { text: `${percent} %` });
    this.chosen.hidden = !this.source;
    this.add.hidden = this.hint.hidden = Boolean(this.source);
  }

  /** @returns {{source: SourceImage, share: number}|null} */
  get mixture() {
    return this.source && { source: this.source, share: Number(this.range.value) / 100 };
  }
}
