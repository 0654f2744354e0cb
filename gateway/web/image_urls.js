/** Where an <img> finds its picture: previews from the events, finished ones from the gateway, with the token if need be. */

import { fetchFrom, token } from "./api.js";

/** @typedef {import("./run_state.js").Picture} Picture */

// Files fetched with a token, by their path, the oldest forgotten first.
const MAX_FETCHED = 256;
/** @type {Map<string, Promise<string>>} */
const fetched = new Map();

/** @param {Picture} picture a finished one @returns {Promise<string>} an address that an element can load */
export function addressOf(picture) {
  return picture.own ? Promise.resolve(picture.own.url) : addressOfPath(pathOf(picture.image));
}

/** @param {any} image as the contract has it @returns {string} */
export function pathOf(image) {
  return image.sha256 ? `images/${image.sha256}` : image.name;
}

/** @param {string} path @returns {Promise<string>} */
export function addressOfPath(path) {
  if (!token()) return Promise.resolve(path);
  let address = fetched.get(path);
  if (!address) {
    address = fetchFrom(path).then((response) => response.blob()).then((blob) => URL.createObjectURL(blob));
    address.catch(() => fetched.delete(path));
    fetched.set(path, address);
    if (fetched.size > MAX_FETCHED) {
      const [oldest] = fetched.keys();
      fetched.get(oldest)?.then((url) => URL.revokeObjectURL(url), () => null);
      fetched.delete(oldest);
    }
  }
  return address;
}

/** @param {Picture} picture a finished one @returns {Promise<Blob>} its file */
export async function fileOf(picture) {
  if (picture.own) return picture.own.blob;
  return (await fetchFrom(pathOf(picture.image))).blob();
}

/**
 * Shows what there is of a picture; a newer call wins, and what is shown stays until the next is decoded.
 * @param {any} img an <img>
 * @param {Picture|undefined} picture
 */
export async function show(img, picture) {
  const key = keyOf(picture);
  if (img.shows === key) return;
  img.shows = key;
  if (!picture || !key) {
    forgetPreview(img);
    img.hidden = true;
    img.removeAttribute("src");
    return;
  }
  try {
    const address = picture.image ? await addressOf(picture) : previewAddress(picture);
    if (img.shows !== key) {
      if (!picture.image) URL.revokeObjectURL(address);
      return;
    }
    const old = img.preview;
    img.preview = picture.image ? "" : address;
    img.src = address;
    await img.decode().catch(() => null);
    if (old) URL.revokeObjectURL(old);
    if (img.shows !== key) return;
    img.hidden = false;
  } catch {
    // It is shown again with the next change of the run, or when the page is opened anew.
    if (img.shows === key) img.shows = "";
  }
}

/** @param {any} img */
function forgetPreview(img) {
  if (img.preview) URL.revokeObjectURL(img.preview);
  img.preview = "";
}

/** @param {Picture|undefined} picture @returns {string} what it looks like now, as a name */
function keyOf(picture) {
  if (picture?.image) return picture.own?.url ?? pathOf(picture.image);
  return picture?.preview ? `${picture.name}@${picture.preview.sequence}` : "";
}

/** @param {Picture} picture */
function previewAddress(picture) {
  const { mime, data } = /** @type {any} */ (picture.preview);
  const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: mime }));
}

/** The path of an image's file to keep, with its settings inside. @param {string} imageName @param {string} name */
export function downloadPath(imageName, name) {
  const [run, image] = imageName.split("/images/");
  return `${run}/images/${image}?download=${encodeURIComponent(name)}`;
}

/**
 * Saves an image as a file with its settings inside.
 * @param {Picture} picture
 * @param {string} name
 */
export async function download(picture, name) {
  if (picture.own) return saveAs(picture.own.url, picture.own.name || name);
  const path = downloadPath(picture.name, name);
  if (!token()) return saveAs(path, name);
  saveBlob(await (await fetchFrom(path)).blob(), name);
}

/** @param {Blob} blob @param {string} name */
export function saveBlob(blob, name) {
  const url = URL.createObjectURL(blob);
  saveAs(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** @param {string} address @param {string} name */
function saveAs(address, name) {
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
}

/** @type {Map<string, Promise<boolean>>} */
const flatness = new Map();

/** Whether a finished picture has one colour alone, as failed pictures have. @param {Picture} picture @returns {Promise<boolean>} */
export function isFlat(picture) {
  const key = keyOf(picture);
  let known = flatness.get(key);
  if (!known) {
    known = measureFlat(picture).catch(() => false);
    flatness.set(key, known);
    if (flatness.size > 1024) flatness.delete(/** @type {string} */ (flatness.keys().next().value));
  }
  return known;
}

const SIDE_PX = 16;
// Of 255: the codec's noise in one colour is below it, the faintest drawing above.
const MIN_DEVIATION = 3;

/** @param {Picture} picture */
async function measureFlat(picture) {
  const img = new Image();
  img.src = await addressOf(picture);
  await img.decode();
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE_PX;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  context.drawImage(img, 0, 0, SIDE_PX, SIDE_PX);
  const { data } = context.getImageData(0, 0, SIDE_PX, SIDE_PX);
  return [0, 1, 2].every((channel) => {
    const values = Array.from({ length: SIDE_PX * SIDE_PX }, (_, index) => data[index * 4 + channel]);
    const mean = values.reduce((sum, one) => sum + one, 0) / values.length;
    return Math.sqrt(values.reduce((sum, one) => sum + (one - mean) ** 2, 0) / values.length) < MIN_DEVIATION;
  });
}
