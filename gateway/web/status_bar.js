/** The foot of the page: what serves, its version, help and licence. */

import { byId, createElement, setProps } from "./dom.js";
import { listText } from "./labels.js";
import { WORKERS } from "./stages.js";
import { t } from "./texts.js";

export class StatusBar {
  constructor() {
    this.light = createElement("span", { class: "light", "aria-hidden": true });
    this.text = createElement("span", { id: "server-state" });
    this.version = createElement("span", { id: "version" });
    const help = createElement("button", { type: "button", class: "link", text: t("help.title"), onclick: showHelp });
    byId("foot").append(
      createElement("p", { role: "status" }, this.light, this.text),
      createElement("p", { class: "row" }, this.version, help, createElement("a", { href: "openapi.json", text: t("foot.api") }), createElement("span", { text: t("foot.licence") })),
    );
    addEventListener("gateway-version", (/** @type {any} */ event) => setProps(this.version, { text: t("foot.version", { version: event.detail }) }));
  }

  /** @param {Object<string, any>} models ModelInfo by the stage's name */
  showModels(models) {
    const missing = Object.entries(WORKERS).filter(([stage]) => !models[stage]).map(([, worker]) => t(`worker.${worker}`));
    const names = [...new Set(Object.values(models).map((model) => model.name))];
    this.set(missing.length ? "off" : "on", missing.length ? t("foot.missing", { workers: listText(missing) }) : t("foot.ready", { models: listText(names) }));
  }

  showAway() {
    this.set("off", t("foot.away"));
  }

  /** @param {"on"|"off"} state @param {string} text */
  set(state, text) {
    this.light.className = state === "on" ? "light" : "light off";
    setProps(this.text, { text });
  }
}

/** Loaded when it is first needed. */
async function showHelp() {
  (await import("./help_dialog.js")).showHelp();
}
