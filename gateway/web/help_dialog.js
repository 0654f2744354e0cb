/** What the page can do, and its keys. Loaded when it is first needed. */

import { byId, createElement } from "./dom.js";
import { t } from "./texts.js";

byId("help").append(
  createElement("header", {}, createElement("h2", { id: "help-title", text: t("help.title") }), createElement("button", { type: "button", text: t("viewer.close"), onclick: () => byId("help").close() })),
  ...["prompt", "choose", "own", "settings", "runs"].map((topic) => createElement("p", { text: t(`help.text_${topic}`) })),
  createElement("h3", { text: t("help.keys") }),
  createElement("dl", { class: "keys" }, ...["enter", "up", "arrows", "viewer", "mask"].flatMap((key) => [createElement("dt", { text: t(`help.key_${key}`) }), createElement("dd", { text: t(`help.does_${key}`) })])),
);

export function showHelp() {
  byId("help").showModal();
}
