/** What a newcomer sees before the first run: example prompts with their pictures, and one run from first to last. */

import { byId, createElement, setProps } from "./dom.js";
import { getExamples } from "./api.js";
import { addressOfPath } from "./image_urls.js";
import { unknownWords, knownTo } from "./vocabulary.js";
import { scoreText } from "./labels.js";
import { t } from "./texts.js";

const NUM_EXAMPLES = 6;
const POLL_MS = 3_000;

export class Welcome {
  /** @param {(prompt: string, seed?: string) => void} onPick */
  constructor(onPick) {
    this.onPick = onPick;
    this.examples = createElement("ul", { class: "examples" });
    this.tour = createElement("div", { class: "tour", hidden: true });
    this.section = byId("welcome");
    this.heading = createElement("h2", { hidden: true, id: "examples-title", text: t("welcome.examples") });
    this.note = createElement("p", { class: "hint", role: "status" });
    this.section.append(createElement("section", { "aria-labelledby": "examples-title" }, this.heading, this.examples, this.note), this.tour, createElement("section", { id: "vocabulary", class: "vocabulary", hidden: true }));
    /** @type {any} */
    this.model = null;
    this.shown = "";
    this.asked = "";
  }

  /** @param {any} model ModelInfo of the generator */
  setModel(model) {
    this.model = model;
    const prompts = this.prompts();
    this.heading.hidden = !prompts.length;
    this.showExamples(prompts.map((prompt) => ({ prompt })));
    if (model && this.asked !== model.digest) {
      this.asked = model.digest;
      this.load();
    }
  }

  /** @returns {string[]} those that say nothing the model lacks come first: nobody's first picture should disappoint */
  prompts() {
    const known = knownTo(this.model);
    const all = this.model?.example_prompts ?? [];
    return [...all].sort((a, b) => unknownWords(a, known).length - unknownWords(b, known).length).slice(0, NUM_EXAMPLES);
  }

  /** Asks for the pictures until the models have made them. */
  async load() {
    clearTimeout(this.timer);
    try {
      const { state, examples, run, version } = await getExamples();
      if (version) dispatchEvent(new CustomEvent("gateway-version", { detail: version }));
      const byPrompt = new Map(examples.map((/** @type {any} */ one) => [one.prompt, one]));
      this.showExamples(this.prompts().map((prompt) => byPrompt.get(prompt) ?? { prompt }));
      if (run) this.showTour(run);
      setProps(this.note, { text: state === "making" ? t("welcome.making") : "" });
      if (state === "making") this.timer = setTimeout(() => this.load(), POLL_MS);
    } catch {
      // The prompts are there without their pictures.
      setProps(this.note, { text: "" });
    }
  }

  /** @param {{prompt: string, seed?: string, image?: string}[]} examples */
  showExamples(examples) {
    const key = JSON.stringify(examples);
    if (key === this.shown) return;
    this.shown = key;
    this.examples.replaceChildren(
      ...examples.map(({ prompt, seed, image }) => {
        const img = image ? createElement("img", { alt: "", decoding: "async" }) : null;
        if (image) addressOfPath(image).then((address) => (img.src = address), () => null);
        const button = createElement("button", { type: "button", class: image ? "example" : "example plain", onclick: () => this.onPick(prompt, seed) }, img, createElement("span", { text: prompt }));
        return createElement("li", {}, button);
      }),
    );
  }

  /** @param {any} run {prompt, seed, stages: [{stage, images: [{image, score, is_chosen}]}]} */
  showTour(run) {
    if (!this.tour.hidden) return;
    this.tour.hidden = false;
    const panel = (/** @type {any} */ stage) =>
      createElement(
        "li",
        { class: "tour-stage", "data-stage": stage.stage },
        createElement("div", { class: `tour-images of-${stage.images.length}` }, ...stage.images.map((/** @type {any} */ one) => this.tourImage(one, run.prompt))),
        createElement("h3", { text: t(`tour.${stage.stage}`) }),
        createElement("p", { class: "hint", text: t(`tour.${stage.stage}_text`) }),
      );
    this.tour.append(
      createElement("h2", { id: "tour-title", text: t("tour.title") }),
      createElement("p", { class: "hint", text: t("tour.prompt", { prompt: run.prompt, seed: run.seed }) }),
      createElement("ol", { class: "tour-stages" }, ...run.stages.map(panel)),
      createElement("button", { type: "button", text: t("tour.use"), onclick: () => this.onPick(run.prompt, run.seed) }),
    );
  }

  /** @param {{image: string, score?: number, is_chosen?: boolean}} image @param {string} prompt */
  tourImage({ image, score, is_chosen: isChosen }, prompt) {
    const img = createElement("img", { alt: prompt, loading: "lazy" });
    addressOfPath(image).then((address) => (img.src = address), () => null);
    const badge = score === undefined ? null : createElement("span", { class: "badge", text: t("score.short", { score: scoreText(score) }) });
    return createElement("span", { class: isChosen ? "tour-image chosen" : "tour-image" }, img, badge);
  }
}
