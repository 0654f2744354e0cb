/** What the page can do, and its keys. Loaded when it is first needed, with its texts in English and Chinese. */

import { byId, createElement } from "./dom.js";
import { addTexts, t } from "./texts.js";

addTexts({
  "help.text_prompt": ["Write what the picture should show and press Enter. A small model knows a list of words; the page shows which of yours it does not know.", "写下想画的内容并按回车。小模型只认识一部分词，页面会提示它不认识的词。"],
  "help.text_choose": ["A click on a picture shows it large and costs nothing. Refine, Vary, Edit a part and Upscale make new pictures from it.", "点击图片可放大查看，不消耗计算。细化、变化、局部修改和放大会由它生成新图。"],
  "help.text_own": ["Drop, paste or pick a picture to start from it. A picture made by Triptych brings its prompt, seed and settings back.", "拖入、粘贴或选择图片即可从它开始。Triptych 生成的图片会恢复其提示词、种子和设置。"],
  "help.text_settings": ["Settings apply to the next thing you make and are kept in this browser.", "设置用于下一次生成，并保存在此浏览器中。"],
  "help.text_runs": ["Runs go on without the page. The view “Runs” has them all, to be searched, saved and deleted.", "关闭页面后生成仍会继续。“记录”中可以搜索、保存和删除。"],
  "help.keys": ["Keys", "快捷键"],
  "help.key_enter": ["Enter", "回车"],
  "help.does_enter": ["makes pictures; with Shift it begins a new line", "生成图像；加 Shift 换行"],
  "help.key_up": ["↑ ↓ in the prompt", "提示词中的 ↑ ↓"],
  "help.does_up": ["earlier prompts", "以前的提示词"],
  "help.key_arrows": ["Arrow keys in the gallery", "图库中的方向键"],
  "help.does_arrows": ["move from picture to picture; Enter shows one large", "在图片间移动；回车放大显示"],
  "help.key_viewer": ["← → + − 0 1 in full size", "全屏中的 ← → + − 0 1"],
  "help.does_viewer": ["next picture, zoom, fit, one pixel for one pixel", "切换、缩放、适应、一比一"],
  "help.key_mask": ["Space, [ ], B, E, I in the mask", "涂抹中的空格、[ ]、B、E、I"],
  "help.does_mask": ["paint, brush size, brush, eraser, invert", "涂抹、大小、画笔、橡皮、反选"],
});

byId("help").append(
  createElement("header", {}, createElement("h2", { id: "help-title", text: t("help.title") }), createElement("button", { type: "button", text: t("viewer.close"), onclick: () => byId("help").close() })),
  ...["prompt", "choose", "own", "settings", "runs"].map((topic) => createElement("p", { text: t(`help.text_${topic}`) })),
  createElement("h3", { text: t("help.keys") }),
  createElement("dl", { class: "keys" }, ...["enter", "up", "arrows", "viewer", "mask"].flatMap((key) => [createElement("dt", { text: t(`help.key_${key}`) }), createElement("dd", { text: t(`help.does_${key}`) })])),
);

export function showHelp() {
  byId("help").showModal();
}
