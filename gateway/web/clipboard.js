/** Copies texts and images, and announces it. */

import { GatewayError } from "./api.js";
import { fileOf } from "./image_urls.js";
import { showError, showNote } from "./notifications.js";
import { t } from "./texts.js";

/** @param {string} text @param {string} done */
export async function copyText(text, done) {
  try {
    await navigator.clipboard.writeText(text);
    showNote(done);
  } catch {
    // Without https a browser lets nobody write: the text is there to be copied by hand.
    showNote(t("copied.by_hand", { text }));
  }
}

/** @param {import("./run_state.js").Picture} picture */
export async function copyPicture(picture) {
  try {
    const blob = await fileOf(picture);
    await navigator.clipboard.write([new ClipboardItem({ [blob.type]: blob })]);
    showNote(t("copied.picture"));
  } catch (error) {
    if (error instanceof GatewayError) showError(error, () => copyPicture(picture));
    else showNote(t("copied.no_picture"));
  }
}
