/** The words that the served generator knows: folded, objects first, searchable; a click adds one to the prompt. */

import { byId, createElement, setProps } from "./dom.js";
import { t, hasText } from "./texts.js";

export class VocabularyPanel {
  /** @param {(word: string) => void} onPick */
  constructor(onPick) {
    this.onPick = onPick;
    this.root = byId("vocabulary");
    this.search = createElement("input", { id: "word-search", type: "search", placeholder: t("vocabulary.search"), "aria-label": t("vocabulary.search") });
    this.search.addEventListener("input", () => this.filter());
    this.summary = createElement("summary", {});
    this.intro = createElement("p", { class: "hint" });
    this.list = createElement("dl", {});
    this.none = createElement("p", { class: "hint", hidden: true, role: "status" });
    this.details = createElement("details", {}, this.summary, this.intro, this.search, this.list, this.none);
    this.root.append(this.details);
    addEventListener("show-vocabulary", () => this.open());
  }

  /** @param {any} model ModelInfo of the generator */
  setModel(model) {
    const kinds = Object.entries(model?.vocabulary ?? {});
    this.root.hidden = !kinds.length;
    // The contract's map has no order. Objects are what pictures are about; then what there is most of.
    const rank = (/** @type {string} */ kind) => (kind.startsWith("object") ? 0 : 1);
    kinds.sort(([a, of], [b, than]) => rank(a) - rank(b) || than.words.length - of.words.length || a.localeCompare(b));
    const count = kinds.reduce((sum, [, list]) => sum + list.words.length, 0);
    setProps(this.summary, { text: t("vocabulary.title", { count }) });
    setProps(this.intro, { text: t("vocabulary.intro", { model: model?.name ?? "" }) });
    this.list.replaceChildren(
      ...kinds.flatMap(([kind, list]) => [
        createElement("dt", { text: hasText(`kind.${kind}`) ? t(`kind.${kind}`) : kind }),
        createElement("dd", {}, ...list.words.map((/** @type {string} */ word) => createElement("button", { type: "button", class: "word", text: word, onclick: () => this.onPick(word) }))),
      ]),
    );
    this.filter();
  }

  filter() {
    const query = this.search.value.trim().toLowerCase();
    let found = 0;
    for (const dd of this.list.querySelectorAll("dd")) {
      let visible = 0;
      for (const button of dd.children) {
        button.hidden = !button.textContent.toLowerCase().includes(query);
        if (!button.hidden) visible++;
      }
      dd.hidden = dd.previousElementSibling.hidden = !visible;
      found += visible;
    }
    this.none.hidden = found > 0;
    setProps(this.none, { text: found ? "" : t("vocabulary.none", { word: query }) });
  }

  open() {
    this.details.open = true;
    this.details.scrollIntoView({ block: "nearest" });
    this.search.focus();
  }
}
