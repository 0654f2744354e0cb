/** The third panel: the picture that is looked at, beside what it was made from, and what can be done with it. */

import { createElement, setProps } from "./dom.js";
import { CompareSlider } from "./compare_slider.js";
import { capital, duration, nameOf, scoreText } from "./labels.js";

/** @typedef {import("./run_state.js").Picture} Picture */
/** @typedef {import("./run_state.js").RunState} RunState */

/**
 * @typedef {object} Actions
 * @property {(picture: Picture) => void} enlarge
 * @property {(picture: Picture) => void} refine
 * @property {(picture: Picture) => void} view
 * @property {(picture: Picture) => void} download
 * @property {(name: string) => void} pick
 */

export class ImageDetail {
  /** @param {any} root @param {Actions} actions */
  constructor(root, actions) {
    this.actions = actions;
    /** @type {Picture|null} */
    this.picture = null;
    this.count = createElement("span", { class: "count" });
    this.compare = new CompareSlider();
    this.caption = createElement("figcaption", {});
    this.path = createElement("p", { class: "steps" });
    this.figure = createElement("figure", { hidden: true }, this.compare.element, this.caption);
    this.buttons = {
      enlarge: this.button("Enlarge ×4", "primary", actions.enlarge),
      refine: this.button("More variations", "", actions.refine),
      view: this.button("Full size", "", actions.view),
      download: this.button("Download", "", actions.download),
    };
    this.row = createElement("div", { class: "row", role: "group", "aria-label": "With this picture", hidden: true }, ...Object.values(this.buttons));
    this.hint = createElement("p", { class: "hint" });
    this.versions = createElement("div", { class: "versions" });
    root.append(
      createElement("header", {}, createElement("h2", { id: "title-easel", text: "Enlarge" }), this.count),
      this.figure,
      this.row,
      this.versions,
      this.hint,
    );
  }

  /** @param {string} text @param {string} kind @param {(picture: Picture) => void} act */
  button(text, kind, act) {
    return createElement("button", { type: "button", class: kind, text, onclick: () => this.picture && act(this.picture) });
  }

  /** @param {RunState|null} run @param {Picture|null} picture @param {string} hint @param {number} scale */
  update(run, picture, hint, scale) {
    this.picture = picture;
    this.figure.hidden = this.row.hidden = !picture;
    setProps(this.hint, { text: hint });
    this.hint.hidden = !hint;
    if (!run || !picture) {
      setProps(this.count, { text: "" });
      this.versions.replaceChildren();
      return;
    }
    const isReady = picture.state === "ready";
    const enlarged = run.of("upscale", picture.name);
    this.compare.update(picture, run.parentOf(picture.name), run.spec?.prompt ?? "");
    setProps(this.count, { text: nameOf(picture) });
    setProps(this.caption, { text: captionOf(run, picture) });
    setProps(this.buttons.enlarge, { text: `Enlarge ×${scale}`, hidden: picture.stage === "upscale" || enlarged.length > 0 });
    this.buttons.download.classList.toggle("primary", picture.stage === "upscale");
    setProps(this.buttons.refine, { text: refineText(run, picture) });
    for (const button of Object.values(this.buttons)) button.disabled = !isReady;
    this.showVersions(enlarged);
  }

  /** What the picture has been enlarged to already. @param {Picture[]} enlarged */
  showVersions(enlarged) {
    const key = enlarged.map((one) => one.name).join();
    if (this.versions.dataset.key === key) return;
    this.versions.dataset.key = key;
    const buttons = enlarged.map((one) =>
      createElement("button", { type: "button", class: "primary", text: "See it enlarged", onclick: () => this.actions.pick(one.name) }),
    );
    this.versions.replaceChildren(...buttons.slice(-1));
  }
}

/** @param {RunState} run @param {Picture} picture */
function refineText(run, picture) {
  return run.of("refine", picture.name).length ? "More variations" : "Make variations";
}

/** @param {RunState} run @param {Picture} picture */
function captionOf(run, picture) {
  const { image } = picture;
  if (picture.state === "failed") return `${capital(nameOf(picture))} failed: ${picture.problem}.`;
  if (picture.state === "cancelled") return `${capital(nameOf(picture))} was cancelled.`;
  if (!image) {
    const left = run.secondsLeft;
    return left ? `About ${duration(left)} to go.` : "On its way.";
  }
  const parts = [`${image.width} × ${image.height}`];
  if (picture.stage !== "upscale") parts.push(`seed ${image.seed}`);
  if (picture.score !== null) parts.push(`score ${scoreText(picture.score)}`);
  parts.push(`model ${image.model_name}`);
  return parts.join("  ·  ");
}
