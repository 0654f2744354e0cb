/** What the page remembers in this browser: draft, earlier prompts, presets, favourites, runs begun here. */

const PREFIX = "triptych-";

/** @param {string} key @param {any} fallback @returns {any} */
export function load(key, fallback) {
  try {
    const text = localStorage.getItem(PREFIX + key);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}

/** A browser that keeps nothing, or is full, loses memory and nothing else. @param {string} key @param {any} value */
export function save(key, value) {
  try {
    localStorage.setItem(PREFIX + key, JSON.stringify(value));
  } catch {
    // Private windows and full disks.
  }
}

const MAX_PROMPTS = 100;

/** @returns {string[]} newest last */
export function earlierPrompts() {
  return load("prompts", []);
}

/** @param {string} prompt */
export function rememberPrompt(prompt) {
  if (!prompt) return;
  save("prompts", [...earlierPrompts().filter((one) => one !== prompt), prompt].slice(-MAX_PROMPTS));
}

/** @returns {Set<string>} names of runs */
export function favourites() {
  return new Set(load("favourites", []));
}

/** @param {string} run @param {boolean} isFavourite */
export function setFavourite(run, isFavourite) {
  const all = favourites();
  if (isFavourite) all.add(run);
  else all.delete(run);
  save("favourites", [...all]);
}
