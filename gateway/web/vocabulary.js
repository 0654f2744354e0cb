/** Which words of a prompt a small model does not know or replaces; the twin of triptych/vocabulary.py. */

// Words that join others: no list of things to draw has them, and a model may read over them.
const JOINING = new Set(
  wordsOf(
    "a an the this that these those some one and or of in on at by to from near next beside behind before during " +
      "under below beneath over above with without into onto up down is are there it its",
  ),
);

// Fetches the published models, which know all words.
export const PUBLISHED_MODELS = "triptych weights pull mini";

/** @param {string} text @returns {string[]} */
export function wordsOf(text) {
  return text.toLowerCase().match(/[\p{L}\p{Nl}\p{No}]+/gu) ?? [];
}

/**
 * The prompt's words, in order and once each, that are in none of the `known` words or phrases.
 * @param {string} prompt
 * @param {string[]} known
 * @returns {string[]}
 */
export function unknownWords(prompt, known) {
  const vocabulary = new Set([...known.flatMap(wordsOf), ...JOINING]);
  const isKnown = (/** @type {string} */ word) =>
    ["", "s", "es"].some((ending) => word.endsWith(ending) && vocabulary.has(word.slice(0, word.length - ending.length)));
  return [...new Set(wordsOf(prompt).filter((word) => !isKnown(word)))];
}

/** @param {any} model ModelInfo @returns {string[]} every word or phrase that it lists */
export function knownTo(model) {
  return Object.values(model?.vocabulary ?? {}).flatMap((kind) => kind.words ?? []);
}

/**
 * @typedef {object} WordCheck
 * @property {[string, string][]} replaced words and what is drawn in their place
 * @property {string[]} ignored words that mean nothing to the model
 * @property {boolean} isHopeless whether nothing of the prompt is known
 * @property {string[]} suggestions prompts that the model draws well, where nothing is known
 * @property {string} drawn what is drawn where nothing is known, if the gateway has said so
 */

/**
 * What a model makes of a prompt's words, before any time is spent.
 * @param {string} prompt
 * @param {any} model ModelInfo; one that lists no words knows more than a list can say
 * @param {any} [reading] PromptReading of this prompt, where the gateway has answered
 * @returns {WordCheck}
 */
export function checkWords(prompt, model, reading) {
  const known = knownTo(model);
  if (!known.length) return { replaced: [], ignored: [], isHopeless: false, suggestions: [], drawn: "" };
  const replaced = /** @type {[string, string][]} */ (
    (reading?.replacements ?? []).map((/** @type {any} */ one) => [one.word.toLowerCase(), one.replacement])
  );
  // A name of several words may be replaced, and some of them known by themselves.
  const told = new Set(replaced.flatMap(([name]) => wordsOf(name)));
  const ignored = unknownWords(prompt, known).filter((word) => !told.has(word));
  const telling = wordsOf(prompt).filter((word) => !JOINING.has(word));
  const isHopeless = reading ? Boolean(reading.is_unknown) : telling.length > 0 && telling.every((word) => ignored.includes(word));
  const suggestions = isHopeless ? reading?.suggestions ?? [] : [];
  return { replaced, ignored, isHopeless, suggestions, drawn: isHopeless ? reading?.prompt ?? "" : "" };
}
