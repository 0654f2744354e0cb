/** Notifications: errors with a remedy, the connection, short notes, announcements. */

import { byId, createElement } from "./dom.js";
import { GatewayError, keepToken } from "./api.js";
import { errorInWords } from "./labels.js";
import { t } from "./texts.js";

const MIN_BETWEEN_MS = 3_000;
const NOTE_MS = 8_000;

/**
 * An error in words, with a button to try again where that can help.
 * @param {unknown} error
 * @param {(() => void)|null} [again]
 */
export function showError(error, again = null) {
  const known = error instanceof GatewayError ? error : new GatewayError(String(error), { reason: "PAGE" });
  if (!(error instanceof GatewayError)) console.error(error);
  if (known.status === 401 || known.reason === "TOKEN_UNKNOWN") {
    askForToken(known, again ?? (() => location.reload()));
    return;
  }
  const canHelp = again && known.status !== 400 && known.status !== 404;
  byId("errors").replaceChildren(
    createElement("p", { text: errorInWords(known) }),
    createElement(
      "div",
      { class: "row" },
      canHelp && createElement("button", { type: "button", onclick: () => (clearError(), again()), text: againText(known) }),
      createElement("button", { type: "button", class: "link", onclick: clearError, text: t("error.dismiss") }),
    ),
  );
}

/** The gateway is away and will be asked again by itself. @param {unknown} error */
export function showWaiting(error) {
  byId("errors").replaceChildren(createElement("p", { text: `${errorInWords(error)} ${t("error.trying")}` }));
}

/** @param {GatewayError} error */
function againText(error) {
  return error.retryAfterS > 1 ? t("error.again_in", { seconds: error.retryAfterS }) : t("error.again");
}

export function clearError() {
  byId("errors").replaceChildren();
}

/** @param {GatewayError} error @param {() => void} again */
function askForToken(error, again) {
  if (byId("token")) return;
  const field = createElement("input", { id: "token", type: "password", autocomplete: "off", required: true });
  const keep = (/** @type {Event} */ event) => {
    event.preventDefault();
    keepToken(field.value.trim());
    clearError();
    again();
  };
  byId("errors").replaceChildren(
    createElement(
      "form",
      { class: "token", onsubmit: keep },
      createElement("p", { text: errorInWords(error) }),
      createElement("label", { for: "token", text: t("token.label") }),
      createElement("div", { class: "row" }, field, createElement("button", { type: "submit", text: t("token.use") })),
    ),
  );
  field.focus();
}

/** @param {"live"|"lost"|"ended"} state */
export function showConnection(state) {
  const box = byId("connection");
  const wasLost = box.dataset.state === "lost";
  box.dataset.state = state;
  if (state === "lost") box.textContent = t("connection.lost");
  else if (wasLost) {
    box.textContent = t("connection.back");
    setTimeout(() => box.dataset.state !== "lost" && (box.textContent = ""), 4_000);
  }
}

/**
 * A short note at the bottom, which can be undone while it is there.
 * @param {string} text
 * @param {{undo?: () => void, done?: () => void}} [more] `done`: it went away and was not undone
 */
export function showNote(text, { undo, done } = {}) {
  const note = createElement("div", { class: "note", role: "status" }, createElement("span", { text }));
  let isOver = false;
  const end = (/** @type {boolean} */ isUndone) => {
    if (isOver) return;
    isOver = true;
    clearTimeout(timer);
    removeEventListener("pagehide", finish);
    note.remove();
    if (isUndone) undo?.();
    else done?.();
  };
  const finish = () => end(false);
  if (undo) note.append(createElement("button", { type: "button", text: t("note.undo"), onclick: () => end(true) }));
  note.append(createElement("button", { type: "button", class: "link", text: t("note.close"), onclick: finish }));
  byId("notes").append(note);
  const timer = setTimeout(finish, NOTE_MS);
  addEventListener("pagehide", finish);
}

let announcedAt = 0;
/** @type {number|undefined} */
let waiting;

/** Announces text to screen readers; throttled, the latest wins. @param {string} text */
export function announce(text) {
  clearTimeout(waiting);
  const now = () => {
    announcedAt = Date.now();
    byId("announcements").textContent = text;
  };
  const delayMs = announcedAt + MIN_BETWEEN_MS - Date.now();
  if (delayMs <= 0) now();
  else waiting = setTimeout(now, delayMs);
}
