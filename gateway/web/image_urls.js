/** Where an <img> finds its picture: previews from the events, finished ones from the gateway, with the token if need be. */

import { fetchFrom, token } from "./api.js";

/** @typedef {import("./run_state.js").Picture} Picture */

// Files fetched with a token, by their sha256, the oldest forgotten first.
const MAX_FETCHED = 256;
/** @type {Map<string, Promise<string>>} */
const fetched = new Map();

/** @param {string} sha256 @returns {Promise<string>} an address that an element can load */
export function addressOf(sha256) {
  const path = `images/${sha256}`;
  if (!token()) return Promise.resolve(path);
  let address = fetched.get(sha256);
  if (!address) {
    address = fetchFrom(path).then((response) => response.blob()).then((blob) => URL.createObjectURL(blob));
    address.catch(() => fetched.delete(sha256));
    fetched.set(sha256, address);
    if (fetched.size > MAX_FETCHED) {
      const [oldest] = fetched.keys();
      fetched.get(oldest)?.then((url) => URL.revokeObjectURL(url), () => null);
      fetched.delete(oldest);
    }
  }
  return address;
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
    img.hidden = true;
    img.removeAttribute("src");
    return;
  }
  try {
    const address = picture.image ? await addressOf(picture.image.sha256) : previewAddress(picture);
    if (img.shows !== key) return;
    const old = img.src;
    img.src = address;
    await img.decode().catch(() => null);
    if (old.startsWith("blob:") && img.isPreview) URL.revokeObjectURL(old);
    if (img.shows !== key) return;
    img.isPreview = !picture.image;
    img.hidden = false;
  } catch {
    // It is shown again with the next change of the run, or when the page is opened anew.
    if (img.shows === key) img.shows = "";
  }
}

/** @param {Picture|undefined} picture @returns {string} what it looks like now, as a name */
function keyOf(picture) {
  if (picture?.image) return picture.image.sha256;
  return picture?.preview ? `${picture.name}@${picture.preview.sequence}` : "";
}

/** @param {Picture} picture */
function previewAddress(picture) {
  const { mime, data } = /** @type {any} */ (picture.preview);
  const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: mime }));
}

/**
 * Saves a picture as a file that says how it was made.
 * @param {Picture} picture
 * @param {string} name
 */
export async function download(picture, name) {
  const [run, image] = picture.name.split("/images/");
  const path = `${run}/images/${image}?download=${encodeURIComponent(name)}`;
  if (!token()) return save(path, name);
  const url = URL.createObjectURL(await (await fetchFrom(path)).blob());
  save(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** @param {string} address @param {string} name */
function save(address, name) {
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
}
