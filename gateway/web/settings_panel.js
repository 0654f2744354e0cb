/** The settings as fields: grouped by stage, each with its true value, an explanation and a way back to the default. */

import { byId, createElement, setProps } from "./dom.js";
import { PRESETS, SETTINGS } from "./settings.js";
import { STAGES } from "./stages.js";
import { announce } from "./notifications.js";
import { load, save } from "./storage.js";
import { t } from "./texts.js";

/** @typedef {import("./settings.js").Setting} Setting */

export class SettingsPanel {
  /** @param {import("./settings.js").Settings} settings */
  constructor(settings) {
    this.settings = settings;
    this.root = byId("settings");
    /** @type {{setting: Setting, input: any, reset: any, row: any}[]} */
    this.rows = [];
    /** @type {Object<string, any>} */
    this.sizes = {};
    this.presets = createElement("select", { id: "preset", onchange: () => this.usePreset(this.presets.value) });
    this.build();
    settings.onChange(() => this.update());
  }

  build() {
    const groups = STAGES.map((stage) => this.group(stage));
    const resetAll = createElement("button", { type: "button", id: "reset-settings", text: t("settings.reset_all"), onclick: () => this.resetAll() });
    const keep = createElement("button", { type: "button", text: t("settings.keep_preset"), onclick: () => this.keepPreset() });
    this.forget = createElement("button", { type: "button", text: t("settings.forget_preset"), onclick: () => this.forgetPreset() });
    this.root.append(
      createElement("p", { class: "hint", text: t("settings.intro") }),
      createElement("div", { class: "row presets" }, createElement("label", { for: "preset", text: t("settings.preset") }), this.presets, keep, this.forget, resetAll),
      createElement("div", { class: "groups" }, ...groups),
    );
    this.listPresets();
  }

  /** @param {string} stage */
  group(stage) {
    const of = (/** @type {string} */ group) => SETTINGS.filter((one) => one.stage === stage && one.group === group).map((one) => this.row(one));
    const [basic, advanced] = [of("basic"), of("advanced")];
    this.sizes[stage] = createElement("p", { class: "help" });
    return createElement(
      "fieldset",
      {},
      createElement("legend", { text: t(`stage.${stage}`) }),
      this.sizes[stage],
      ...basic,
      advanced.length ? createElement("details", {}, createElement("summary", { text: t("settings.advanced") }), ...advanced) : null,
    );
  }

  /** @param {Setting} setting */
  row(setting) {
    const { stage, name, kind } = setting;
    const id = `${stage}-${name}`;
    const label = t(`setting.${stage}.${name}`);
    const described = { id, "aria-describedby": `${id}-help` };
    const input =
      kind === "choice"
        ? createElement("select", described, ...(setting.options ?? []).map((value) => createElement("option", { value })))
        : createElement("input", { ...described, type: kind, ...(kind === "number" ? { step: setting.step, inputmode: "decimal" } : { maxlength: 500 }) });
    input.addEventListener("change", () => this.read(setting, input));
    const reset = createElement("button", {
      type: "button",
      class: "reset",
      text: t("settings.default"),
      "aria-label": t("settings.default_of", { name: label }),
      hidden: true,
      onclick: () => {
        this.settings.set(stage, name, undefined);
        input.focus();
      },
    });
    const row = createElement(
      "div",
      { class: `setting ${kind === "number" ? "number" : "text"}` },
      createElement("label", { for: id, text: label }),
      input,
      createElement("span", { class: "help", id: `${id}-help`, text: t(`help.${stage}.${name}`) }),
      reset,
    );
    this.rows.push({ setting, input, reset, row });
    return row;
  }

  /** @param {Setting} setting @param {any} input */
  read({ stage, name, kind }, input) {
    const text = input.value.trim();
    if (kind === "number" && (text === "" || !input.checkValidity())) {
      if (text !== "") input.reportValidity();
      else this.settings.set(stage, name, undefined);
      return;
    }
    this.settings.set(stage, name, kind === "number" ? Number(text) : text);
  }

  update() {
    for (const { setting, input, reset, row } of this.rows) {
      const { stage, name } = setting;
      const value = this.settings.valueOf(stage, name);
      // Nothing is touched that somebody is typing into.
      if (document.activeElement !== input || input.checkValidity()) input.value = value ?? "";
      if (setting.kind === "choice") for (const option of input.options) setProps(option, { text: choiceText(this.settings, setting, option.value) });
      setProps(input, setting.kind === "number" ? this.settings.rangeOf(setting) : {});
      const isChanged = this.settings.isChanged(stage, name);
      reset.hidden = !isChanged;
      row.classList.toggle("changed", isChanged);
      // Without a model that has it there is nothing to set.
      row.hidden = value === undefined;
    }
    for (const [stage, box] of Object.entries(this.sizes)) setProps(box, { text: sizeText(stage, this.settings) });
    const count = this.settings.numChanged;
    setProps(byId("settings-button-count"), { text: count ? String(count) : "" });
    setProps(byId("settings-button"), { "aria-label": count ? t("settings.button_changed", { count }) : null });
  }

  resetAll() {
    this.settings.reset();
    this.presets.value = "";
    announce(t("settings.were_reset"));
  }

  listPresets() {
    const own = Object.keys(load("presets", {}));
    const option = (/** @type {string} */ value, /** @type {string} */ text) => createElement("option", { value, text });
    this.presets.replaceChildren(
      option("", t("settings.no_preset")),
      ...Object.keys(PRESETS).map((name) => option(name, t(`preset.${name}`))),
      ...own.map((name) => option(`own:${name}`, name)),
    );
    this.forget.hidden = !own.length;
  }

  /** @param {string} name */
  usePreset(name) {
    const own = load("presets", {})[name.replace("own:", "")];
    this.settings.restore((name.startsWith("own:") ? own : PRESETS[name]) ?? {});
  }

  keepPreset() {
    const presets = load("presets", {});
    const name = t("settings.own_preset", { number: Object.keys(presets).length + 1 });
    save("presets", { ...presets, [name]: this.settings.snapshot() });
    this.listPresets();
    this.presets.value = `own:${name}`;
    announce(t("settings.preset_kept", { name }));
  }

  forgetPreset() {
    const presets = load("presets", {});
    delete presets[this.presets.value.replace("own:", "")];
    save("presets", presets);
    this.listPresets();
  }
}

/** @param {import("./settings.js").Settings} settings @param {Setting} setting @param {string} value */
export function choiceText(settings, { stage, name }, value) {
  const side = name === "final" ? settings.finalSize(value === "upscaled") : 0;
  return t(`choice.${stage}.${name}.${value}`) + (side ? ` (${side} × ${side})` : "");
}

/** @param {string} stage @param {import("./settings.js").Settings} settings */
function sizeText(stage, settings) {
  const model = settings.models[stage];
  if (!model) return t("settings.no_worker");
  if (stage === "upscale") return t("settings.scale", { scale: model.scale || 4, model: model.name });
  if (!model.image_size) return t("settings.model", { model: model.name });
  return t("settings.size", { size: model.image_size, model: model.name });
}
