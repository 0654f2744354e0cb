/** The prompt, what the model makes of its words, the seed, and the button that spends the first compute. */

import { byId, createElement, debounce, icon, ICONS, setProps } from "./dom.js";
import { readPrompt } from "./api.js";
import { earlierPrompts, load, rememberPrompt, save } from "./storage.js";
import { checkWords, PUBLISHED_MODELS } from "./vocabulary.js";
import { listText } from "./labels.js";
import { t } from "./texts.js";

// Of typing that pauses.
const READ_AFTER_MS = 250;
const NUM_SUGGESTIONS = 3;

/**
 * @typedef {object} Request
 * @property {string} prompt
 * @property {string} seed empty: one is drawn
 * @property {boolean} isAutomatic
 */

export class PromptForm {
  /**
   * @param {import("./settings.js").Settings} settings
   * @param {(request: Request) => void} onSubmit
   */
  constructor(settings, onSubmit) {
    this.settings = settings;
    this.form = byId("ask");
    this.build();
    this.prompt = byId("prompt");
    this.seed = byId("seed");
    // Where in the earlier prompts the arrow keys stand; what was being written before them.
    this.recall = { index: -1, draft: "" };
    // The reading of a prompt by the model, and that prompt.
    this.reading = { prompt: "", result: /** @type {any} */ (undefined) };
    this.askReading = debounce(() => this.read(), READ_AFTER_MS);
    this.listen(onSubmit);
    byId("generator").addEventListener("change", () => settings.chooseGenerator(byId("generator").value));
    settings.onChange(() => {
      this.showGenerators();
      this.onPrompt();
    });
    this.restoreDraft();
  }

  build() {
    const radio = (/** @type {string} */ value, /** @type {boolean} */ checked) =>
      createElement("label", { class: "choice" }, createElement("input", { type: "radio", name: "mode", value, checked }), createElement("span", { text: t(`mode.${value}`) }));
    this.form.append(
      createElement("label", { class: "question", for: "prompt", text: t("prompt.label") }),
      createElement(
        "div",
        { class: "prompt" },
        createElement("textarea", { id: "prompt", name: "prompt", rows: 1, maxlength: 2000, required: true, enterkeyhint: "go", placeholder: t("prompt.placeholder"), "aria-describedby": "word-check" }),
        createElement("button", { type: "submit", class: "primary", id: "begin", text: t("prompt.submit") }),
      ),
      createElement("div", { id: "word-check", class: "word-check", role: "status" }),
      createElement(
        "div",
        { class: "choices" },
        createElement("div", { class: "modes", role: "radiogroup", "aria-label": t("mode.label") }, radio("manual", true), radio("automatic", false)),
        createElement(
          "div",
          { class: "seed" },
          createElement("label", { for: "seed", text: t("seed.label") }),
          createElement("input", { id: "seed", name: "seed", type: "text", inputmode: "numeric", pattern: "[0-9]{1,20}", placeholder: t("seed.random"), autocomplete: "off", "aria-describedby": "seed-help" }),
          createElement("button", { type: "button", id: "seed-random", class: "icon-button", "aria-label": t("seed.make_random"), title: t("seed.make_random"), onclick: () => this.setSeed("") }, icon(ICONS.dice)),
          createElement("span", { id: "seed-help", class: "unseen", text: t("seed.help") }),
        ),
        createElement("label", { class: "generator", hidden: true }, createElement("span", { text: t("generator.label") }), createElement("select", { id: "generator" })),
        createElement("button", { type: "button", id: "add-picture", class: "quiet" }, icon(ICONS.image), createElement("span", { text: t("source.add") })),
        createElement("button", { type: "button", id: "add-photo", class: "quiet touch-only" }, icon(ICONS.camera), createElement("span", { text: t("source.camera") })),
        createElement("button", { type: "button", id: "settings-button", class: "quiet", "aria-expanded": "false", "aria-controls": "settings" }, icon(ICONS.sliders), createElement("span", { text: t("settings.button") }), createElement("span", { id: "settings-button-count", class: "pill" })),
      ),
      createElement("div", { id: "settings", class: "fold", hidden: true }),
    );
  }

  /** @param {(request: Request) => void} onSubmit */
  listen(onSubmit) {
    this.form.addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      const prompt = this.text;
      if (!prompt) return;
      this.remember();
      onSubmit(this.request());
    });
    this.prompt.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.onKey(event));
    this.prompt.addEventListener("input", () => {
      this.recall.index = -1;
      this.onPrompt();
    });
    this.seed.addEventListener("input", () => this.saveDraft());
    this.form.addEventListener("change", () => this.saveDraft());
    addEventListener("resize", () => this.fitPrompt());
    byId("settings-button").addEventListener("click", () => {
      const isOpen = byId("settings").hidden;
      byId("settings").hidden = !isOpen;
      setProps(byId("settings-button"), { "aria-expanded": String(isOpen) });
    });
  }

  /** There is nothing to choose where one is served. */
  showGenerators() {
    const { generators, models } = this.settings;
    const select = byId("generator");
    const names = generators.map((one) => one.name);
    if (names.join() !== [...select.options].map((one) => one.value).join()) {
      select.replaceChildren(...names.map((name) => createElement("option", { value: name, text: name })));
    }
    select.value = models.generate?.name ?? "";
    select.parentElement.hidden = names.length < 2;
  }

  get text() {
    return this.prompt.value.trim();
  }

  /** @returns {Request} */
  request() {
    return { prompt: this.text, seed: this.seed.value.trim(), isAutomatic: this.form.elements.mode.value === "automatic" };
  }

  /** @param {string} text */
  setPrompt(text) {
    this.prompt.value = text;
    this.onPrompt();
  }

  /** Opening a run shows its prompt; what was written before is an arrow key away. @param {string} text */
  replacePrompt(text) {
    this.remember();
    this.setPrompt(text);
  }

  remember() {
    rememberPrompt(this.text);
    this.recall = { index: -1, draft: "" };
  }

  /** @param {string|number} seed empty: one is drawn */
  setSeed(seed) {
    this.seed.value = String(seed);
    this.saveDraft();
  }

  /** @param {string} word */
  addWord(word) {
    this.setPrompt(`${this.prompt.value.trimEnd()} ${word}`.trimStart());
  }

  focus() {
    this.prompt.focus();
    this.prompt.setSelectionRange(this.prompt.value.length, this.prompt.value.length);
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.form.requestSubmit();
    }
    const { value, selectionStart, selectionEnd } = this.prompt;
    const isPlain = !event.shiftKey && !event.ctrlKey && !event.altKey && !event.metaKey && selectionStart === selectionEnd;
    const isAtTop = !value.slice(0, selectionStart).includes("\n");
    const isAtBottom = !value.slice(selectionEnd).includes("\n");
    if (isPlain && event.key === "ArrowUp" && isAtTop) this.recallBy(1, event);
    if (isPlain && event.key === "ArrowDown" && isAtBottom) this.recallBy(-1, event);
  }

  /** @param {number} step 1: an earlier prompt @param {KeyboardEvent} event */
  recallBy(step, event) {
    const all = earlierPrompts().filter((one) => one !== this.recall.draft || this.recall.index >= 0).reverse();
    const { index } = this.recall;
    const next = Math.max(-1, Math.min(all.length - 1, index + step));
    if (next === index) return;
    event.preventDefault();
    if (index < 0) this.recall.draft = this.prompt.value;
    this.recall.index = next;
    this.prompt.value = next < 0 ? this.recall.draft : all[next];
    this.prompt.setSelectionRange(this.prompt.value.length, this.prompt.value.length);
    this.onPrompt();
  }

  saveDraft() {
    save("draft", { prompt: this.prompt.value, seed: this.seed.value, mode: this.form.elements.mode.value });
  }

  restoreDraft() {
    const draft = load("draft", { prompt: "", seed: "", mode: "manual" });
    this.prompt.value = draft.prompt;
    this.seed.value = draft.seed;
    for (const radio of this.form.elements.mode) radio.checked = radio.value === draft.mode;
    this.onPrompt();
  }

  /** The field is as high as what is written in it. */
  fitPrompt() {
    this.prompt.style.height = "auto";
    this.prompt.style.height = `${this.prompt.scrollHeight}px`;
  }

  onPrompt() {
    this.fitPrompt();
    this.saveDraft();
    if (this.text && this.reading.prompt !== this.text) this.askReading();
    this.showWords();
  }

  /** Asks what the model replaces. Without an answer the page's own check of the words stays. */
  async read() {
    const prompt = this.text;
    const model = this.settings.models.generate;
    if (!prompt || !Object.keys(model?.vocabulary ?? {}).length) return;
    try {
      const result = await readPrompt(prompt, model.name);
      this.reading = { prompt, result };
      this.showWords();
    } catch {
      // The gateway is away: sending the prompt reports it.
    }
  }

  showWords() {
    const reading = this.reading.prompt === this.text ? this.reading.result : undefined;
    const { replaced, ignored, isHopeless, suggestions, drawn } = checkWords(this.text, this.settings.models.generate, reading);
    const lines = [];
    if (replaced.length) lines.push(t("words.replaced", { words: listText(replaced.map(([word, by]) => t("words.pair", { word, by }))) }));
    if (drawn) lines.push(t("words.another", { prompt: drawn, command: PUBLISHED_MODELS }));
    else if (isHopeless) lines.push(t("words.hopeless"));
    else if (ignored.length) lines.push(t(ignored.length > 1 ? "words.ignored_many" : "words.ignored_one", { words: listText(ignored.map((word) => t("words.quoted", { word }))) }));
    const box = byId("word-check");
    const text = lines.join(" ") + suggestions.join();
    if (box.dataset.text === text) return;
    box.dataset.text = text;
    box.classList.toggle("hopeless", isHopeless);
    box.replaceChildren(createElement("span", { text: lines.join(" ") }));
    for (const prompt of suggestions.slice(0, NUM_SUGGESTIONS)) box.append(" ", createElement("button", { type: "button", class: "link", text: prompt, onclick: () => this.setPrompt(prompt) }));
    if (isHopeless) box.append(" ", createElement("button", { type: "button", class: "link", text: t("words.show"), onclick: () => dispatchEvent(new CustomEvent("show-vocabulary")) }));
  }
}
