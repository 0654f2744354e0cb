/** The whole run as a tree: each sketch that was taken further, its results, and theirs. One click goes there. */

import { syncChildren, byId, createElement, moveByArrows, setProps } from "./dom.js";
import { show } from "./image_urls.js";
import { capital, nameOf, scoreText } from "./labels.js";
import { STAGES } from "./stages.js";
import { t } from "./texts.js";

/** @typedef {import("./run_state.js").Picture} Picture */
/** @typedef {import("./run_state.js").RunState} RunState */

export class RunTree {
  /** @param {(name: string) => void} onPick */
  constructor(onPick) {
    this.onPick = onPick;
    /** @type {Map<string, {item: any, button: any, img: any, text: any, list: any, name: string}>} */
    this.nodes = new Map();
    this.root = createElement("ul", { class: "branches" });
    this.section = byId("tree");
    this.section.append(createElement("h2", { id: "tree-title", text: t("tree.title") }), this.root);
    moveByArrows(this.root);
  }

  /** @param {RunState|null} run @param {Set<string>} path */
  update(run, path) {
    const roots = run ? [...[...run.pictures.values()].filter((one) => one.stage === "init"), ...run.of("generate"), ...rootless(run)] : [];
    this.section.hidden = !run || !run.all.some((one) => one.parent);
    for (const name of this.nodes.keys()) if (!run?.pictures.has(name)) this.nodes.delete(name);
    if (this.section.hidden || !run) return;
    syncChildren(this.root, this.inOrder(run, roots).map((one) => this.node(run, one, path)));
  }

  /** What was taken further stands first, each on a line of its own. @param {RunState} run @param {Picture[]} pictures */
  inOrder(run, pictures) {
    const isTaken = (/** @type {Picture} */ one) => run.childrenOf(one.name).length > 0;
    return [...pictures.filter(isTaken), ...pictures.filter((one) => !isTaken(one))];
  }

  /** @param {RunState} run @param {Picture} picture @param {Set<string>} path @returns {any} */
  node(run, picture, path) {
    const node = this.nodes.get(picture.name) ?? this.makeNode(picture.name);
    const children = run.childrenOf(picture.name);
    show(node.img, picture);
    node.item.dataset.state = picture.state;
    node.item.classList.toggle("leaf", !children.length);
    const parts = [capital(nameOf(picture))];
    if (picture.score !== null) parts.push(t("score.short", { score: scoreText(picture.score) }));
    if (picture.state !== "ready") parts.push(t(`picture.${picture.state}`));
    setProps(node.text, { text: parts.join("\n") });
    setProps(node.button, { "aria-current": path.has(picture.name) && "true" });
    if (children.length && !node.list) {
      node.list = createElement("ul", {});
      node.item.append(node.list);
    }
    if (node.list) syncChildren(node.list, this.inOrder(run, children).map((one) => this.node(run, one, path)));
    return node.item;
  }

  /** @param {string} name */
  makeNode(name) {
    const img = createElement("img", { alt: "", hidden: true, draggable: false });
    const text = createElement("span", { class: "node-text" });
    const button = createElement("button", { type: "button", class: "node", onclick: () => this.onPick(name) }, createElement("span", { class: "node-face" }, img), text);
    const node = { item: createElement("li", {}, button), button, img, text, list: null, name };
    this.nodes.set(name, node);
    return node;
  }
}

/** What was made from nothing, or from pictures that the caller brought. @param {RunState} run */
function rootless(run) {
  return STAGES.slice(1).flatMap((stage) => run.of(stage)).filter((one) => !run.pictures.has(one.parent));
}
