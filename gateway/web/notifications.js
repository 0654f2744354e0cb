/** What the page says aside from the pictures: troubles with a way out, the state of the connection, news for ears. */

import { byId, createElement } from "./dom.js";
import { GatewayError, keepToken } from "./api.js";
import { errorInWords } from "./labels.js";

const MIN_BETWEEN_MS = 3_000;

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
  byId("trouble").replaceChildren(
    createElement("p", { text: errorInWords(known) }),
    createElement(
      "div",
      { class: "row" },
      canHelp ? createElement("button", { type: "button", onclick: () => (clearError(), again()), text: againText(known) }) : null,
      createElement("button", { type: "button", class: "plain", onclick: clearError, text: "Dismiss" }),
    ),
  );
}

/** @param {GatewayError} error */
function againText(error) {
  return error.retryAfterS > 1 ? `Try again (in ${error.retryAfterS} s at best)` : "Try again";
}

/** There is no trouble any more. */
export function clearError() {
  byId("trouble").replaceChildren();
}

/** @param {GatewayError} error @param {() => void} again */
function askForToken(error, again) {
  const field = createElement("input", { id: "token", type: "password", autocomplete: "off", required: true });
  const keep = (/** @type {Event} */ event) => {
    event.preventDefault();
    keepToken(field.value.trim());
    clearError();
    again();
  };
  byId("trouble").replaceChildren(
    createElement(
      "form",
      { class: "token", onsubmit: keep },
      createElement("p", { text: errorInWords(error) }),
      createElement("label", { for: "token", text: "Token (kept until this tab is closed)" }),
      createElement("div", { class: "row" }, field, createElement("button", { type: "submit", text: "Use it" })),
    ),
  );
  field.focus();
}

/** @param {"live"|"lost"|"ended"} state */
export function connection(state) {
  const box = byId("connection");
  const wasLost = box.dataset.state === "lost";
  box.dataset.state = state;
  if (state === "lost") box.textContent = "The connection is lost. Nothing else is: trying to get back …";
  else if (wasLost) {
    box.textContent = "Connected again.";
    setTimeout(() => box.dataset.state !== "lost" && (box.textContent = ""), 4_000);
  }
}

let saidAt = 0;
/** @type {number|undefined} */
let waiting;

/** Tells it to whoever listens; of news that come fast, the newest. @param {string} text */
export function announce(text) {
  clearTimeout(waiting);
  const now = () => {
    saidAt = Date.now();
    byId("said").textContent = text;
  };
  const delayMs = saidAt + MIN_BETWEEN_MS - Date.now();
  if (delayMs <= 0) now();
  else waiting = setTimeout(now, delayMs);
}

/**
 * Asks before something is lost for good.
 * @param {string} text
 * @param {string} yes
 * @returns {Promise<boolean>}
 */
export function askToConfirm(text, yes) {
  const box = byId("question");
  return new Promise((resolve) => {
    const close = (/** @type {boolean} */ answer) => {
      resolve(answer);
      box.close();
    };
    box.replaceChildren(
      createElement("p", { id: "question-title", text }),
      createElement(
        "div",
        { class: "row" },
        createElement("button", { type: "button", class: "primary", onclick: () => close(true), text: yes }),
        createElement("button", { type: "button", autofocus: true, onclick: () => close(false), text: "No" }),
      ),
    );
    box.onclose = () => resolve(false);
    box.showModal();
  });
}
