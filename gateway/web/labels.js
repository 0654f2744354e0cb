/** What stages, states, errors, times and files are called, made of the page's texts. */

import { STAGES, WORKERS } from "./stages.js";
import { hasText, language, t } from "./texts.js";

/** @typedef {import("./run_state.js").Picture} Picture */

// As workers and hosts are named in messages: nothing that a visitor can use.
const ADDRESSES = /(?:https?:\/\/)?(?:\[[0-9a-f:.]+\]|(?:\d{1,3}\.){3}\d{1,3}|localhost|[\w-]+(?:\.[\w-]+)*)(?::\d{2,5})\b(?:\/\S*)?|\b(?:\d{1,3}\.){3}\d{1,3}\b/gi;

/** @param {string} state "RUNNING" */
export function stateInWords(state) {
  return hasText(`state.${state}`) ? t(`state.${state}`) : state;
}

/** @param {any} error GatewayError, or a reason and a message @returns {string} */
export function errorInWords(error) {
  const violations = Object.entries(error.violations ?? {});
  if (violations.length) return violations.map(([field, why]) => t("error.field", { field: fieldInWords(field), why: withoutAddresses(String(why)) })).join(" ");
  if (error.reason === "NO_WORKER") {
    const worker = Object.values(WORKERS).find((name) => error.message.includes(name)) ?? "worker";
    return t("error.NO_WORKER", { worker: hasText(`worker.${worker}`) ? t(`worker.${worker}`) : worker, command: `triptych serve ${worker}` });
  }
  if (hasText(`error.${error.reason}`)) return t(`error.${error.reason}`);
  return sentence(withoutAddresses(error.message || error.reason));
}

/** @param {string} text */
function withoutAddresses(text) {
  return text.replace(ADDRESSES, t("error.a_worker"));
}

/** @param {string} field a path in the request, such as "spec.refine.settings.num_steps" */
function fieldInWords(field) {
  if (hasText(`field.${field}`)) return t(`field.${field}`);
  const [stage, name] = [STAGES.find((one) => field.includes(one)) ?? "", field.split(".").at(-1) ?? ""];
  if (hasText(`setting.${stage}.${name}`)) return t("field.setting", { stage: t(`stage.${stage}`), name: t(`setting.${stage}.${name}`) });
  return t("field.other", { name: field.replaceAll(/[._]/g, " ") });
}

/** @param {string} text */
function sentence(text) {
  const begun = capital(text);
  return /[.!?。]$/.test(begun) ? begun : `${begun}.`;
}

/** @param {Picture} picture "sketch 3": people count from one */
export function nameOf(picture) {
  if (picture.stage === "init") return t("one.init");
  return t(`one.${picture.stage}`, { number: picture.index + 1 });
}

/** @param {string} text */
export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** @param {string[]} items */
export function listText(items) {
  return new Intl.ListFormat(language(), { type: "conjunction" }).format(items);
}

/** @param {number} seconds */
export function duration(seconds) {
  const unit = (/** @type {number} */ value, /** @type {string} */ name) =>
    new Intl.NumberFormat(language(), { style: "unit", unit: name, unitDisplay: "long", maximumFractionDigits: value < 10 && name !== "second" ? 1 : 0 }).format(value);
  if (seconds < 90) return unit(Math.max(1, Math.round(seconds)), "second");
  if (seconds < 5400) return unit(Math.round(seconds / 60), "minute");
  return unit(seconds / 3600, "hour");
}

/** @param {number} score */
export function scoreText(score) {
  return score.toFixed(2);
}

/** @param {string} time RFC 3339 */
export function ago(time) {
  const seconds = (Date.now() - Date.parse(time)) / 1000;
  if (!(seconds >= 60)) return t("time.now");
  const format = new Intl.RelativeTimeFormat(language(), { numeric: "auto" });
  if (seconds < 3600) return format.format(-Math.round(seconds / 60), "minute");
  if (seconds < 86_400) return format.format(-Math.round(seconds / 3600), "hour");
  return format.format(-Math.round(seconds / 86_400), "day");
}

/** @param {string} time RFC 3339 */
export function dateText(time) {
  return new Intl.DateTimeFormat(language(), { dateStyle: "medium", timeStyle: "short" }).format(new Date(time));
}

/** A file's name for a picture. @param {string} prompt @param {{stage: string, index: number}} picture */
export function fileName(prompt, picture) {
  return `${slug(prompt)}-${picture.stage}-${picture.index}.png`;
}

/** @param {string} prompt */
export function slug(prompt) {
  const words = prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  return words.join("-").slice(0, 60);
}
