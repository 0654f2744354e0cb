/** The table of the stages, as triptych/stages.py has it, and of the actions that take a picture to one. No element. */

/** @typedef {"generate"|"refine"|"upscale"} Stage */
/** @typedef {"refine"|"vary"|"edit"|"upscale"} Action */

/** @type {Stage[]} in their order */
export const STAGES = ["generate", "refine", "upscale"];

/** @type {Object<string, string>} the process of each stage */
export const WORKERS = { generate: "generator", refine: "refiner", upscale: "upscaler" };

/** @type {Object<string, Stage>} by their names in the contract */
export const STAGE_NAMES = { STAGE_GENERATE: "generate", STAGE_REFINE: "refine", STAGE_UPSCALE: "upscale" };

/** @type {Set<string>} those that draw several pictures from a seed; of others a picture has one result */
export const DRAWS = new Set(["generate", "refine"]);

/** @type {Object<Action, Stage>} what can be done with a picture, and the stage that does it */
export const STAGE_OF_ACTION = { refine: "refine", vary: "refine", edit: "refine", upscale: "upscale" };
/** @type {Action[]} */
export const ACTIONS = /** @type {any} */ (Object.keys(STAGE_OF_ACTION));
/** @type {Action[]} those that need nothing but the picture, and so can be done with several at once */
export const COMMON_ACTIONS = ACTIONS.filter((action) => action !== "edit");
