/** Paints which part of a picture is to be made anew: brush, eraser, size, undo, invert; mouse, pen, touch and keyboard. */

import { byId, createElement, setProps } from "./dom.js";
import { addressOf } from "./image_urls.js";
import { toBlob, toImageData } from "./source_image.js";
import { t } from "./texts.js";

const MAX_UNDO = 30;
const COLOUR = "rgb(255 70 40)";
const CURSOR_STEP = 0.02;

/**
 * @typedef {object} Edit
 * @property {string} prompt
 * @property {any} mask ImageData in JSON, of the picture's size: transparent where it is repainted
 */

export class MaskEditor {
  /** @param {(picture: import("./run_state.js").Picture, edit: Edit) => void} onApply */
  constructor(onApply) {
    this.onApply = onApply;
    this.dialog = byId("mask-editor");
    this.img = createElement("img", { alt: "", draggable: false });
    this.canvas = createElement("canvas", { tabindex: 0, role: "application", "aria-label": t("mask.canvas"), "aria-describedby": "mask-help" });
    this.cursor = createElement("span", { class: "brush-cursor", "aria-hidden": true, hidden: true });
    this.frame = createElement("div", { class: "mask-frame" }, this.img, this.canvas, this.cursor);
    this.size = createElement("input", { id: "brush-size", type: "range", min: 1, max: 50, value: 12, "aria-label": t("mask.size") });
    this.prompt = createElement("textarea", { id: "mask-prompt", rows: 2, maxlength: 2000 });
    this.status = createElement("p", { class: "hint", role: "status" });
    const button = (/** @type {string} */ id, /** @type {() => void} */ onclick) => createElement("button", { type: "button", id: `mask-${id}`, text: t(`mask.${id}`), onclick });
    this.tools = {
      brush: button("brush", () => this.useTool("brush")),
      eraser: button("eraser", () => this.useTool("eraser")),
    };
    this.apply = createElement("button", { type: "button", class: "primary", id: "mask-apply", text: t("mask.apply"), onclick: () => this.finish() });
    this.undoButton = button("undo", () => this.undo());
    this.dialog.append(
      createElement("header", {}, createElement("h2", { id: "mask-title", text: t("mask.title") }), createElement("button", { type: "button", text: t("mask.cancel"), onclick: () => this.dialog.close() })),
      createElement(
        "div",
        { class: "mask-body" },
        this.frame,
        createElement(
          "div",
          { class: "mask-side" },
          createElement("p", { class: "hint", id: "mask-help", text: t("mask.help") }),
          createElement("div", { class: "row", role: "group", "aria-label": t("mask.tools") }, this.tools.brush, this.tools.eraser, this.undoButton, button("invert", () => this.invert()), button("clear", () => this.clear())),
          createElement("label", { class: "brush-size" }, createElement("span", { text: t("mask.size") }), this.size),
          createElement("label", { for: "mask-prompt", text: t("mask.prompt") }),
          this.prompt,
          this.status,
          this.apply,
        ),
      ),
    );
    this.tool = "brush";
    /** @type {any} */
    this.picture = null;
    /** @type {ImageData[]} */
    this.undone = [];
    // The keyboard's brush, in parts of the picture.
    this.key = { x: 0.5, y: 0.5, isDown: false };
    /** @type {{x: number, y: number}|null} */
    this.last = null;
    this.listen();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
      event.preventDefault();
      canvas.focus();
      canvas.setPointerCapture(event.pointerId);
      this.begin();
      this.last = this.pointOf(event);
      this.stroke(this.last);
    });
    canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
      const point = this.pointOf(event);
      this.showCursor(point);
      if (this.last && event.buttons) this.stroke(point);
    });
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => this.end());
    canvas.addEventListener("pointerleave", () => (this.cursor.hidden = true));
    canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.onKey(event));
    canvas.addEventListener("blur", () => (this.cursor.hidden = true));
    this.size.addEventListener("input", () => this.showCursor(this.key));
  }

  /** @param {import("./run_state.js").Picture} picture @param {string} prompt */
  async open(picture, prompt) {
    this.picture = picture;
    const { width, height } = picture.image;
    setProps(this.canvas, { width, height });
    setProps(this.img, { width, height });
    this.frame.style.setProperty("--ratio", String(width / height));
    this.prompt.value = prompt;
    this.undone = [];
    this.useTool("brush");
    this.dialog.showModal();
    this.canvas.focus();
    this.update();
    this.img.src = await addressOf(picture);
  }

  get context() {
    return this.canvas.getContext("2d", { willReadFrequently: true });
  }

  /** @param {"brush"|"eraser"} tool */
  useTool(tool) {
    this.tool = tool;
    for (const [name, button] of Object.entries(this.tools)) setProps(button, { "aria-pressed": String(name === tool) });
  }

  begin() {
    this.undone.push(this.context.getImageData(0, 0, this.canvas.width, this.canvas.height));
    if (this.undone.length > MAX_UNDO) this.undone.shift();
  }

  /** @param {{x: number, y: number}} point in parts of the picture */
  stroke(point) {
    const { context, canvas } = this;
    const from = this.last ?? point;
    context.globalCompositeOperation = this.tool === "eraser" ? "destination-out" : "source-over";
    context.strokeStyle = context.fillStyle = COLOUR;
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = this.widthPx;
    context.beginPath();
    context.moveTo(from.x * canvas.width, from.y * canvas.height);
    context.lineTo(point.x * canvas.width + 0.01, point.y * canvas.height);
    context.stroke();
    this.last = point;
  }

  end() {
    if (!this.last) return;
    this.last = null;
    this.update();
  }

  get widthPx() {
    return Math.max(1, (Number(this.size.value) / 100) * Math.min(this.canvas.width, this.canvas.height));
  }

  undo() {
    const image = this.undone.pop();
    if (image) this.context.putImageData(image, 0, 0);
    this.update();
  }

  invert() {
    this.begin();
    const { context, canvas } = this;
    context.globalCompositeOperation = "xor";
    context.fillStyle = COLOUR;
    context.fillRect(0, 0, canvas.width, canvas.height);
    this.update();
  }

  clear() {
    this.begin();
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.update();
  }

  /** @returns {number} of the picture that is painted, from 0 to 1 */
  get share() {
    const { data } = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    let painted = 0;
    for (let at = 3; at < data.length; at += 4) if (data[at] >= 128) painted++;
    return painted / (data.length / 4);
  }

  update() {
    const { share } = this;
    this.apply.disabled = share === 0;
    this.undoButton.disabled = !this.undone.length;
    setProps(this.status, { text: share ? t("mask.share", { percent: Math.max(1, Math.round(share * 100)) }) : t("mask.nothing") });
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if ((event.ctrlKey || event.metaKey) && event.key === "z") {
      event.preventDefault();
      this.undo();
      return;
    }
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    /** @type {Object<string, () => void>} */
    const keys = {
      " ": () => this.paintAtKey(),
      b: () => this.useTool("brush"),
      e: () => this.useTool("eraser"),
      i: () => this.invert(),
      "[": () => (this.size.value = String(Number(this.size.value) - 2)),
      "]": () => (this.size.value = String(Number(this.size.value) + 2)),
    };
    if (!move && !keys[event.key]) return;
    event.preventDefault();
    if (move) {
      const before = { ...this.key };
      this.key.x = Math.max(0, Math.min(1, this.key.x + move[0] * CURSOR_STEP));
      this.key.y = Math.max(0, Math.min(1, this.key.y + move[1] * CURSOR_STEP));
      // With shift the brush is down while it moves.
      if (event.shiftKey) {
        this.begin();
        this.last = before;
        this.stroke(this.key);
        this.end();
      }
    } else {
      keys[event.key]();
    }
    this.showCursor(this.key);
  }

  paintAtKey() {
    this.begin();
    this.last = null;
    this.stroke({ ...this.key });
    this.end();
  }

  /** @param {{x: number, y: number}} point */
  showCursor(point) {
    this.cursor.hidden = false;
    this.cursor.style.left = `${point.x * 100}%`;
    this.cursor.style.top = `${point.y * 100}%`;
    this.cursor.style.width = `${(this.widthPx / this.canvas.width) * 100}%`;
  }

  /** @param {MouseEvent} event */
  pointOf(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }

  async finish() {
    const { width, height } = this.canvas;
    const mask = createElement("canvas", { width, height });
    const context = mask.getContext("2d");
    const { data } = this.context.getImageData(0, 0, width, height);
    const pixels = context.createImageData(width, height);
    for (let at = 0; at < data.length; at += 4) {
      pixels.data.fill(255, at, at + 3);
      pixels.data[at + 3] = data[at + 3] >= 128 ? 0 : 255;
    }
    context.putImageData(pixels, 0, 0);
    const blob = await toBlob(mask, "image/png");
    this.dialog.close();
    this.onApply(this.picture, { prompt: this.prompt.value.trim(), mask: await toImageData(blob, width, height) });
  }
}
