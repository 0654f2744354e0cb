/** A picture at full size, over everything: zoom by wheel, pinch, keys or buttons; drag or arrow keys to move it. */

import { byId, createElement, setProps } from "./dom.js";
import { addressOf } from "./image_urls.js";
import { capital, nameOf } from "./labels.js";

const MIN_SCALE = 0.1;
const MAX_SCALE = 32;
const KEY_STEP = 1.25;
const KEY_MOVE_PX = 60;

export class ImageViewer {
  /** @param {(picture: import("./run_state.js").Picture) => void} onDownload */
  constructor(onDownload) {
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
          button("−", "Smaller", () => this.zoomBy(1 / KEY_STEP)),
          this.zoom,
          button("+", "Larger", () => this.zoomBy(KEY_STEP)),
          button("Fit", "Fit to the window", () => this.fit()),
          button("1:1", "One pixel for one pixel", () => this.zoomTo(1)),
          createElement("button", { type: "button", text: "Download", onclick: () => onDownload(this.picture) }),
          createElement("button", { type: "button", class: "primary", text: "Close", onclick: () => this.dialog.close() }),
        ),
      ),
      this.stage,
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
    });
    this.stage.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => this.onMove(event));
    for (const kind of ["pointerup", "pointercancel"]) {
      this.stage.addEventListener(kind, (/** @type {PointerEvent} */ event) => this.fingers.delete(event.pointerId));
    }
    addEventListener("resize", () => this.dialog.open && this.fit());
  }

  /** @param {import("./run_state.js").Picture} picture @param {string} prompt */
  async open(picture, prompt) {
    this.picture = picture;
    const { width, height, sha256 } = picture.image;
    setProps(this.title, { text: `${capital(nameOf(picture))}, ${width} × ${height}` });
    setProps(this.img, { alt: `${capital(nameOf(picture))}: ${prompt}`, width, height });
    setProps(this.stage, { "aria-label": "The picture: plus and minus zoom, arrow keys move, 0 fits it to the window" });
    this.dialog.showModal();
    this.stage.focus();
    this.fit();
    this.img.src = await addressOf(sha256);
  }

  fitScale() {
    const { clientWidth, clientHeight } = this.stage;
    return Math.min(clientWidth / this.img.width, clientHeight / this.img.height) * 0.94 || 1;
  }

  fit() {
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
      ArrowLeft: () => this.moveBy(KEY_MOVE_PX, 0),
      ArrowRight: () => this.moveBy(-KEY_MOVE_PX, 0),
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
