/** A picture at full size, over everything: zoom by wheel, pinch, keys or buttons; drag to move it; arrow keys to the next. */

import { byId, createElement, icon, ICONS, setProps } from "./dom.js";
import { addressOf } from "./image_urls.js";
import { capital, nameOf } from "./labels.js";
import { t } from "./texts.js";

const MIN_SCALE = 0.1;
const MAX_SCALE = 32;
const KEY_STEP = 1.25;
const KEY_MOVE_PX = 60;
const SWIPE_PX = 60;

export class ImageViewer {
  /**
   * @param {(picture: import("./run_state.js").Picture) => void} onDownload
   * @param {(picture: import("./run_state.js").Picture) => void} onShow another picture is looked at
   */
  constructor(onDownload, onShow) {
    this.onShow = onShow;
    /** @type {import("./run_state.js").Picture[]} */
    this.pictures = [];
    this.dialog = byId("viewer");
    this.img = createElement("img", { alt: "", draggable: false });
    this.stage = createElement("div", { class: "viewer-stage", tabindex: 0, role: "group" }, this.img);
    this.title = createElement("h2", { id: "viewer-title" });
    this.zoom = createElement("output", { class: "zoom", "aria-live": "polite" });
    const button = (/** @type {string} */ text, /** @type {string} */ label, /** @type {() => void} */ onclick) =>
      createElement("button", { type: "button", text, "aria-label": label, onclick });
    this.dialog.append(
      createElement(
        "header",
        {},
        this.title,
        createElement(
          "div",
          { class: "row" },
          button("−", t("viewer.smaller"), () => this.zoomBy(1 / KEY_STEP)),
          this.zoom,
          button("+", t("viewer.larger"), () => this.zoomBy(KEY_STEP)),
          button(t("viewer.fit"), t("viewer.fit_title"), () => this.fit()),
          button("1:1", t("viewer.pixels"), () => this.zoomTo(1)),
          createElement("button", { type: "button", text: t("action.download"), onclick: () => onDownload(this.picture) }),
          createElement("button", { type: "button", class: "primary", text: t("viewer.close"), onclick: () => this.dialog.close() }),
        ),
      ),
      this.stage,
      (this.previous = createElement("button", { type: "button", class: "turn previous", "aria-label": t("viewer.previous"), onclick: () => this.turn(-1) }, icon(ICONS.left))),
      (this.next = createElement("button", { type: "button", class: "turn next", "aria-label": t("viewer.next"), onclick: () => this.turn(1) }, icon(ICONS.right))),
    );
    this.at = { x: 0, y: 0, scale: 1 };
    /** @type {Map<number, {x: number, y: number}>} */
    this.fingers = new Map();
    this.listen();
  }

  listen() {
    this.stage.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.onKey(event));
    this.stage.addEventListener("wheel", (/** @type {WheelEvent} */ event) => {
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY / 400), this.pointOf(event));
    }, { passive: false });
    this.stage.addEventListener("dblclick", (/** @type {MouseEvent} */ event) => {
      if (Math.abs(this.at.scale - this.fitScale()) < 0.01) this.zoomTo(this.fitScale() * 3, this.pointOf(event));
      else this.fit();
    });
    this.stage.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
      this.stage.setPointerCapture(event.pointerId);
      this.fingers.set(event.pointerId, this.pointOf(event));
      this.swipe = this.isFitted && this.fingers.size === 1 ? this.pointOf(event) : null;
    });
    this.stage.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => this.onMove(event));
    for (const kind of ["pointerup", "pointercancel"]) {
      this.stage.addEventListener(kind, (/** @type {PointerEvent} */ event) => {
        this.fingers.delete(event.pointerId);
        if (!this.swipe || kind === "pointercancel") return;
        const moved = this.pointOf(event).x - this.swipe.x;
        this.swipe = null;
        if (Math.abs(moved) > SWIPE_PX) this.turn(moved < 0 ? 1 : -1);
        else if (this.fingers.size === 0) this.fit();
      });
    }
    addEventListener("resize", () => this.dialog.open && this.fit());
  }

  /**
   * @param {import("./run_state.js").Picture} picture
   * @param {string} prompt
   * @param {import("./run_state.js").Picture[]} [pictures] those that the arrow keys lead to, in order
   */
  open(picture, prompt, pictures = [picture]) {
    this.prompt = prompt;
    this.pictures = pictures;
    if (!this.dialog.open) this.dialog.showModal();
    this.stage.focus();
    this.show(picture);
  }

  /** @param {import("./run_state.js").Picture} picture */
  async show(picture) {
    this.picture = picture;
    const { width, height } = picture.image;
    const name = picture.own ? t("source.title") : capital(nameOf(picture));
    setProps(this.title, { text: `${name}, ${width} × ${height}` });
    setProps(this.img, { alt: `${name}: ${this.prompt}`, width, height });
    setProps(this.stage, { "aria-label": t("viewer.help") });
    this.previous.hidden = this.next.hidden = this.pictures.length < 2;
    // What was upscaled is shown pixel for pixel where that fits; all else as large as the window.
    if (picture.stage === "upscale" && this.fitScale() >= 1 / devicePixelRatio) this.zoomTo(1 / devicePixelRatio, undefined, true);
    else this.fit();
    const address = await addressOf(picture);
    if (this.picture === picture) this.img.src = address;
  }

  /** @param {number} step 1: the next picture */
  turn(step) {
    const index = this.pictures.indexOf(this.picture);
    const next = this.pictures[(index + step + this.pictures.length) % this.pictures.length];
    if (!next || next === this.picture) return;
    this.show(next);
    this.onShow(next);
  }

  get isFitted() {
    return this.at.scale <= Math.max(this.fitScale(), this.start ?? 0) + 0.001;
  }

  fitScale() {
    const { clientWidth, clientHeight } = this.stage;
    return Math.min(clientWidth / this.img.width, clientHeight / this.img.height) * 0.94 || 1;
  }

  fit() {
    this.start = 0;
    this.at = { x: 0, y: 0, scale: this.fitScale() };
    this.place();
  }

  /** @param {number} factor @param {{x: number, y: number}} [around] from the middle of the stage */
  zoomBy(factor, around) {
    this.zoomTo(this.at.scale * factor, around);
  }

  /** @param {number} scale @param {{x: number, y: number}} [around] */
  zoomTo(scale, around = { x: 0, y: 0 }) {
    const next = Math.min(MAX_SCALE, Math.max(MIN_SCALE, scale));
    const ratio = next / this.at.scale;
    this.at = { x: around.x - (around.x - this.at.x) * ratio, y: around.y - (around.y - this.at.y) * ratio, scale: next };
    this.place();
  }

  /** @param {number} x @param {number} y */
  moveBy(x, y) {
    this.at.x += x;
    this.at.y += y;
    this.place();
  }

  place() {
    // Something of it stays in sight.
    const room = (/** @type {number} */ side, /** @type {number} */ window) => (side * this.at.scale) / 2 + window / 2 - 40;
    const bound = (/** @type {number} */ value, /** @type {number} */ most) => Math.max(-most, Math.min(most, value));
    this.at.x = bound(this.at.x, room(this.img.width, this.stage.clientWidth));
    this.at.y = bound(this.at.y, room(this.img.height, this.stage.clientHeight));
    this.img.style.transform = `translate(-50%, -50%) translate(${this.at.x}px, ${this.at.y}px) scale(${this.at.scale})`;
    // Beyond that one wants to see the pixels themselves.
    this.img.classList.toggle("pixels", this.at.scale >= 6);
    setProps(this.zoom, { text: `${Math.round(this.at.scale * 100)} %` });
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    /** @type {Object<string, () => void>} */
    const keys = {
      "+": () => this.zoomBy(KEY_STEP),
      "=": () => this.zoomBy(KEY_STEP),
      "-": () => this.zoomBy(1 / KEY_STEP),
      0: () => this.fit(),
      1: () => this.zoomTo(1),
      ArrowLeft: () => (this.isFitted ? this.turn(-1) : this.moveBy(KEY_MOVE_PX, 0)),
      ArrowRight: () => (this.isFitted ? this.turn(1) : this.moveBy(-KEY_MOVE_PX, 0)),
      ArrowUp: () => this.moveBy(0, KEY_MOVE_PX),
      ArrowDown: () => this.moveBy(0, -KEY_MOVE_PX),
    };
    if (event.ctrlKey || event.metaKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  }

  /** One finger moves, two zoom about their middle. @param {PointerEvent} event */
  onMove(event) {
    const before = this.fingers.get(event.pointerId);
    if (!before) return;
    const now = this.pointOf(event);
    const other = [...this.fingers].find(([id]) => id !== event.pointerId)?.[1];
    this.fingers.set(event.pointerId, now);
    if (!other) {
      this.moveBy(now.x - before.x, now.y - before.y);
      return;
    }
    const apart = (/** @type {{x: number, y: number}} */ one) => Math.hypot(one.x - other.x, one.y - other.y) || 1;
    this.zoomBy(apart(now) / apart(before), { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 });
  }

  /** @param {MouseEvent} event @returns {{x: number, y: number}} from the middle of the stage */
  pointOf(event) {
    const box = this.stage.getBoundingClientRect();
    return { x: event.clientX - box.left - box.width / 2, y: event.clientY - box.top - box.height / 2 };
  }
}
