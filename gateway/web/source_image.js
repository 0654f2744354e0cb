/** Pictures that the person brings: dropped, pasted, picked or photographed; made fit for the models. */

import { byId, createElement } from "./dom.js";
import { t } from "./texts.js";

// What a request may carry, with room for base64; beyond it a picture is made smaller.
const MAX_SIDE_PX = 2048;
const MAX_BYTES = 8 * 2 ** 20;
// Of each side of the few pixels that the borders are made of.
const BORDER_COLOURS = 8;

/**
 * @typedef {object} SourceImage
 * @property {Blob} blob a PNG or JPEG
 * @property {string} url of the blob
 * @property {number} width
 * @property {number} height
 * @property {string} name of the file
 * @property {Object<string, string>} text the settings in the file
 */

/** @param {Blob} file @returns {Promise<SourceImage>} rejects for what is no picture */
export async function readSource(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const { readPngText } = await import("./png_text.js");
  const text = readPngText(bytes);
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  const scale = Math.min(1, MAX_SIDE_PX / Math.max(bitmap.width, bitmap.height));
  const isFine = scale === 1 && bytes.length <= MAX_BYTES && /^image\/(png|jpeg|webp)$/.test(file.type) && file.type !== "image/jpeg";
  const [width, height] = [Math.round(bitmap.width * scale), Math.round(bitmap.height * scale)];
  // A JPEG may be turned by its orientation tag, so it is always drawn anew.
  const blob = isFine ? file : await drawn(bitmap, [0, 0, bitmap.width, bitmap.height], width, height);
  bitmap.close();
  return { blob, url: URL.createObjectURL(blob), width, height, name: /** @type {File} */ (file).name ?? "", text };
}

/**
 * A square of a picture: the models draw squares.
 * @param {Blob} blob
 * @param {string} fit "middle", "start" or "end" crop it; "whole" keeps all of it, between blurred borders
 */
export async function makeSquare(blob, fit) {
  const bitmap = await createImageBitmap(blob);
  const { width, height } = bitmap;
  const side = fit === "whole" ? Math.max(width, height) : Math.min(width, height);
  const share = fit === "start" ? 0 : fit === "end" ? 1 : 0.5;
  const square = fit === "whole" ? await bordered(bitmap, side) : await drawn(bitmap, [(width - side) * share, (height - side) * share, side, side], side, side);
  bitmap.close();
  return { blob: square, side };
}

/** The picture in the middle of a square of its own colours. @param {ImageBitmap} bitmap @param {number} side */
async function bordered(bitmap, side) {
  const { width, height } = bitmap;
  const colours = createElement("canvas", { width: BORDER_COLOURS, height: BORDER_COLOURS });
  colours.getContext("2d").drawImage(bitmap, 0, 0, BORDER_COLOURS, BORDER_COLOURS);
  const canvas = createElement("canvas", { width: side, height: side });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(colours, 0, 0, side, side);
  context.drawImage(bitmap, (side - width) / 2, (side - height) / 2);
  return encoded(canvas);
}

/** @param {ImageBitmap} bitmap @param {[number, number, number, number]} part @param {number} width @param {number} height @returns {Promise<Blob>} */
async function drawn(bitmap, part, width, height) {
  const canvas = createElement("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, ...part, 0, 0, width, height);
  return encoded(canvas);
}

/** @param {any} canvas @returns {Promise<Blob>} */
async function encoded(canvas) {
  const png = await toBlob(canvas, "image/png");
  return png.size <= MAX_BYTES ? png : toBlob(canvas, "image/jpeg", 0.92);
}

/** @param {any} canvas @param {string} type @param {number} [quality] @returns {Promise<Blob>} */
export function toBlob(canvas, type, quality) {
  return new Promise((resolve, reject) => canvas.toBlob((/** @type {Blob|null} */ blob) => (blob ? resolve(blob) : reject(new Error("the browser cannot encode this picture"))), type, quality));
}

/** As the contract's JSON has a picture. @param {Blob} blob @param {number} width @param {number} height */
export async function toImageData(blob, width, height) {
  return { mime_type: blob.type, data: await toBase64(blob), width, height };
}

/** @param {Blob} blob @returns {Promise<string>} */
function toBase64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result).replace(/^[^,]*,/, ""));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/**
 * Lets pictures in: dropped anywhere, pasted, picked, or taken with a phone's camera.
 * @param {(file: Blob, second?: Blob) => void} onFile two may be dropped at once
 */
export function acceptFiles(onFile) {
  const picker = createElement("input", { type: "file", accept: "image/*", id: "file-picker", hidden: true });
  const camera = createElement("input", { type: "file", accept: "image/*", capture: "environment", id: "camera-picker", hidden: true });
  for (const input of [picker, camera]) {
    input.addEventListener("change", () => {
      if (input.files[0]) onFile(input.files[0]);
      input.value = "";
    });
    document.body.append(input);
  }
  byId("add-picture").addEventListener("click", () => picker.click());
  byId("add-photo").addEventListener("click", () => camera.click());

  const veil = createElement("div", { class: "drop-veil", hidden: true, "aria-hidden": true }, createElement("p", { text: t("source.drop") }));
  document.body.append(veil);
  const hasFile = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    veil.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) veil.hidden = true;
  });
  addEventListener("drop", (event) => {
    veil.hidden = true;
    if (!hasFile(event)) return;
    event.preventDefault();
    const [file, second] = [...(event.dataTransfer?.files ?? [])].filter((one) => one.type.startsWith("image/"));
    if (file) onFile(file, second);
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    onFile(file);
  });
}
