/** The picture that is looked at, large: beside what it was made from, what it is, and what can be done with it. */

import { byId, createElement, setProps } from "./dom.js";
import { CompareSlider } from "./compare_slider.js";
import { NUM_VARIATIONS, SETTINGS } from "./settings.js";
import { choiceText } from "./settings_panel.js";
import { capital, duration, errorInWords, nameOf, scoreText } from "./labels.js";
import { ACTIONS, DRAWS } from "./stages.js";
import { t } from "./texts.js";

/** @typedef {import("./run_state.js").Picture} Picture */
/** @typedef {import("./run_state.js").RunState} RunState */

/** @typedef {import("./stages.js").Action|"variations"|"view"|"download"|"copy"|"again"|"seed"|"more"|"close"} ActionName */

export class ImageDetail {
  /** @param {import("./settings.js").Settings} settings @param {(action: ActionName, picture: Picture) => void} onAction */
  constructor(settings, onAction) {
    this.settings = settings;
    this.root = byId("detail");
    this.onAction = onAction;
    /** @type {Picture|null} */
    this.picture = null;
    this.compare = new CompareSlider();
    this.title = createElement("h3", { id: "detail-title" });
    this.best = createElement("span", { class: "pill best-pill", text: t("score.best_pill"), hidden: true });
    this.score = createElement("details", { class: "score" }, createElement("summary", {}), createElement("p", { class: "help", text: t("score.explained") }));
    this.text = createElement("p", { class: "detail-text", role: "status" });
    this.note = createElement("p", { class: "hint action-note" });
    this.facts = createElement("p", { class: "facts" });
    /** @type {Object<string, any>} */
    this.buttons = {};
    const button = (/** @type {ActionName} */ name, kind = "") => {
      this.buttons[name] = createElement("button", { type: "button", class: kind, id: `action-${name}`, text: t(`action.${name}`), title: t(`action.${name}_title`), onclick: () => this.picture && onAction(name, this.picture) });
      return this.buttons[name];
    };
    this.actions = createElement("div", { class: "actions", role: "group", "aria-label": t("action.group") }, ...ACTIONS.map((name, index) => button(name, index ? "" : "primary")), button("variations"), button("again", "primary"));
    // Filled when a generator that draws from pictures is there.
    this.mixing = createElement("div", { class: "mixing", hidden: true });
    this.fit = createElement("select", { id: "picture-fit", onchange: () => settings.set("refine", "fit", this.fit.value) });
    this.fitRow = createElement("p", { class: "row hint", hidden: true }, createElement("label", { for: "picture-fit", text: t("note.square") }), this.fit);
    setProps(this.buttons.variations, { title: t("action.variations_title", { count: NUM_VARIATIONS }) });
    this.minor = createElement("div", { class: "actions minor", role: "group", "aria-label": t("action.minor") }, button("view"), button("download"), button("copy"), button("more"), button("seed"), button("close"));
    const fit = /** @type {import("./settings.js").Setting} */ (SETTINGS.find((one) => one.name === "fit"));
    this.fit.append(...(fit.options ?? []).map((value) => createElement("option", { value, text: choiceText(settings, fit, value) })));
    this.root.append(
      createElement("figure", {}, this.compare.element),
      createElement("div", { class: "detail-head" }, this.title, this.best, this.score),
      this.text,
      this.actions,
      this.mixing,
      this.fitRow,
      this.note,
      this.minor,
      this.facts,
    );
    // A click on the picture itself looks at it in full size.
    this.compare.element.addEventListener("click", (/** @type {MouseEvent} */ event) => {
      if (event.target !== this.compare.range && this.picture?.state === "ready") onAction("view", this.picture);
    });
  }

  /**
   * @param {RunState|null} run
   * @param {Picture|null} picture
   * @param {{isBest: boolean, note: string, prompt: string, scale: number, canVary: boolean}} look
   */
  update(run, picture, look) {
    this.picture = picture;
    this.root.hidden = !picture;
    if (!picture) return;
    const isReady = picture.state === "ready";
    const isOwn = Boolean(picture.own);
    this.compare.update(picture, run?.parentOf(picture.name), look.prompt);
    setProps(this.title, { text: isOwn ? t("source.title") : capital(nameOf(picture)) });
    this.best.hidden = !look.isBest;
    this.score.hidden = picture.score === null || picture.isFlat;
    if (picture.score !== null) setProps(this.score.firstElementChild, { text: t("score.long", { score: scoreText(picture.score) }) });
    setProps(this.text, { text: textFor(run, picture) });
    setProps(this.note, { text: isReady ? look.note : "" });
    this.fitRow.hidden = !isReady || picture.image.width === picture.image.height;
    this.fit.value = String(this.settings.valueOf("refine", "fit"));
    const canRepeat = picture.state === "failed" || picture.state === "cancelled";
    this.actions.hidden = !isReady && !canRepeat;
    for (const name of ACTIONS) this.buttons[name].hidden = !isReady;
    this.buttons.variations.hidden = this.mixing.hidden = !isReady || !look.canVary;
    this.buttons.again.hidden = !canRepeat;
    this.minor.hidden = !isReady;
    this.buttons.more.hidden = this.buttons.seed.hidden = picture.stage !== "generate";
    this.buttons.close.hidden = !isOwn;
    setProps(this.buttons.upscale, { text: t("action.upscale_by", { scale: look.scale }) });
    setProps(this.facts, { text: factsOf(picture) });
  }
}

/** @param {RunState|null} run @param {Picture} picture */
function textFor(run, picture) {
  const name = capital(nameOf(picture));
  if (picture.state === "failed") return t("card.failed", { name, why: picture.problem ? errorInWords(picture.problem) : "" });
  if (picture.state === "cancelled") return t("card.cancelled", { name });
  if (picture.state === "ready") return picture.isFlat ? t("score.flat_explained") : "";
  const left = run?.secondsLeft;
  return left ? t("detail.left", { time: duration(left) }) : t("detail.coming");
}

/** @param {Picture} picture */
function factsOf(picture) {
  const { image } = picture;
  if (!image) return "";
  const parts = [`${image.width} × ${image.height}`];
  if (picture.own?.name) parts.push(picture.own.name);
  if (image.seed !== undefined && DRAWS.has(picture.stage)) parts.push(t("detail.seed", { seed: image.seed }));
  if (image.model_name) parts.push(t("detail.model", { model: image.model_name }));
  return parts.join("  ·  ");
}
