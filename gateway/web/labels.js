/** The page's words: what stages, states and errors are called, and what to do about them. */

/** @typedef {import("./run_state.js").Picture} Picture */

/** @type {Object<string, string>} one picture of a stage, and several */
export const ONE = { generate: "sketch", refine: "variation", upscale: "enlargement" };
export const MANY = { generate: "sketches", refine: "variations", upscale: "enlargements" };
export const WORKERS = { generate: "generator", refine: "refiner", upscale: "upscaler" };

const STATES = {
  QUEUED: "Waiting for its turn",
  RUNNING: "At work",
  AWAITING_SELECTION: "Waiting for your choice",
  SUCCEEDED: "Done",
  PARTIALLY_SUCCEEDED: "Done; some pictures failed",
  CANCELLED: "Cancelled",
  FAILED: "Failed",
};

/** By reason: what happened, and what the person can do about it. */
const ADVICE = {
  UNREACHABLE: "The gateway does not answer. Is it running? Your prompt is kept; try again when it is back.",
  QUEUE_FULL: "Everybody is drawing: the gateway has no room for another run now.",
  RATE_LIMITED: "That was more than your share for the moment.",
  NOT_FOUND: "That is not here, or not any more. It may have been deleted, or the gateway may have lost its runs.",
  TOKEN_MISSING: "This gateway asks for a token.",
  TOKEN_UNKNOWN: "This gateway does not know that token. PromptForm whoever runs it for another.",
  WORKER_LOST: "The machine that made it went away, and so did a second one. Try again.",
  WORKER_STALLED: "The machine that made it fell silent. Try again.",
  WORKER_BROKEN: "The machine that made it answered nonsense. The gateway's log says more; try again.",
  DEVICE_OOM: "There was not enough memory on the device. PromptForm for fewer pictures, or smaller tiles.",
  INTERNAL: "Something broke in the gateway; its log says what. Trying again may help.",
};
const FIELDS = {
  "spec.prompt": "The prompt",
  "spec.generate.count": "The number of sketches",
  "spec.seed": "The seed",
  "spec.model": "The model",
};

/** @param {string} state */
export function stateInWords(state) {
  return STATES[/** @type {keyof typeof STATES} */ (state)] ?? state;
}

/** @param {import("./api.js").GatewayError|{reason: string, message: string}} error @returns {string} */
export function errorInWords(error) {
  const violations = Object.entries(/** @type {any} */ (error).violations ?? {});
  if (violations.length) {
    return violations.map(([field, why]) => `${fieldInWords(field)} ${why}`).join(". ") + ".";
  }
  if (error.reason === "NO_WORKER") {
    const worker = Object.values(WORKERS).find((name) => error.message.includes(name)) ?? "worker";
    return `No ${worker} is running now. Start one with “triptych serve ${worker}”, or “triptych up” for all.`;
  }
  return ADVICE[/** @type {keyof typeof ADVICE} */ (error.reason)] ?? sentence(error.message || error.reason);
}

/** @param {string} field a path in the request, such as "spec.refine.settings.num_steps" */
function fieldInWords(field) {
  const known = FIELDS[/** @type {keyof typeof FIELDS} */ (field)];
  return known ?? `“${field.split(".").slice(1).join(" ").replace("settings ", "").replaceAll("_", " ") || field}”`;
}

/** @param {string} text */
function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

/** @param {Picture} picture "sketch 3": people count from one */
export function nameOf(picture) {
  return `${ONE[picture.stage]} ${picture.index + 1}`;
}

/** @param {string} text */
export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 1.5) return "a second";
  if (seconds < 60) return `${Math.round(seconds)} seconds`;
  if (seconds < 100) return "a minute and a half";
  if (seconds < 5400) return `${Math.round(seconds / 60)} minutes`;
  return `${Math.round(seconds / 3600)} hours`;
}

/** @param {number} score */
export function scoreText(score) {
  return score.toFixed(2);
}

/** @param {string} time RFC 3339 */
export function ago(time) {
  const seconds = (Date.now() - Date.parse(time)) / 1000;
  if (!(seconds >= 60)) return "just now";
  const format = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  if (seconds < 3600) return format.format(-Math.round(seconds / 60), "minute");
  if (seconds < 86_400) return format.format(-Math.round(seconds / 3600), "hour");
  return format.format(-Math.round(seconds / 86_400), "day");
}

/** A file's name for a picture. @param {string} prompt @param {Picture} picture */
export function fileName(prompt, picture) {
  const words = prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  return `${words.join("-").slice(0, 60)}-${picture.stage}-${picture.index}.png`;
}
