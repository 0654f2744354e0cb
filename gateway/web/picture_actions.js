/** Takes pictures to a stage: in their own run where that can be, else in a new run that begins with them. */

import { GatewayError, createRun, newRequestId, selectImages, withRetry } from "./api.js";
import { fileOf } from "./image_urls.js";
import { showWaiting } from "./notifications.js";
import { makeSquare, toImageData } from "./source_image.js";
import { DRAWS, STAGE_OF_ACTION, WORKERS } from "./stages.js";

/** @typedef {import("./run_state.js").Picture} Picture */
/** @typedef {import("./run_state.js").RunState} RunState */

/**
 * @typedef {object} Action
 * @property {import("./stages.js").Action} kind
 * @property {string} prompt
 * @property {any} [mask] ImageData in JSON
 * @property {string} [seed]
 */

/** Whether pictures have to leave their run for this. @param {RunState|null} run @param {Picture[]} pictures @param {Action} action */
export function needsNewRun(run, pictures, action) {
  if (!run) return true;
  const stage = STAGE_OF_ACTION[action.kind];
  if (!DRAWS.has(stage)) return pictures.some((one) => one.stage === stage);
  return action.prompt !== (run.spec?.prompt ?? "");
}

/**
 * @param {RunState|null} run
 * @param {Picture[]} pictures
 * @param {Action} action
 * @param {import("./settings.js").Settings} settings
 * @param {string} [requestId] kept by repeated attempts: they make nothing twice
 * @returns {Promise<{run: any, isNew: boolean, requestId: string}>} the run as the gateway has it
 */
export async function take(run, pictures, action, settings, requestId = newRequestId()) {
  const stage = STAGE_OF_ACTION[action.kind];
  const { models } = settings;
  if (!models[stage] && Object.keys(models).length) {
    throw new GatewayError(`no ${WORKERS[stage]} is here`, { status: 503, reason: "NO_WORKER" });
  }
  if (DRAWS.has(stage) && !action.prompt) throw new GatewayError("no prompt", { status: 400, reason: "NO_PROMPT" });
  const message = settings.messageOf(action.kind, action.mask);
  if (run && !needsNewRun(run, pictures, action)) {
    const selections = pictures.map((one) => ({ image: one.name, [stage]: message }));
    const answer = await withRetry(() => selectImages(run.name, requestId, selections), showWaiting);
    return { run: answer, isNew: false, requestId };
  }
  // In turn: each may be of some megabytes.
  const images = [];
  const fit = stage === "refine" && !action.mask ? String(settings.valueOf("refine", "fit")) : "";
  for (const picture of pictures) images.push(await asImageData(picture, fit));
  const spec = { prompt: action.prompt, init_images: images, [stage]: message, manual: {}, ...(action.seed && { seed: action.seed }) };
  return { run: await withRetry(() => createRun(requestId, spec), showWaiting), isNew: true, requestId };
}

/**
 * A new run of variations: of a picture, or of a mixture with a second one.
 * @param {Picture} picture
 * @param {{source: import("./source_image.js").SourceImage, share: number}|null} mixture `share` of the second picture, 0 to 1
 * @param {string} prompt "": the pictures alone
 * @param {import("./settings.js").Settings} settings
 * @param {string} requestId kept by repeated attempts
 * @returns {Promise<any>} the run as the gateway has it
 */
export async function makeVariations(picture, mixture, prompt, settings, requestId) {
  const imagePrompts = [{ image: await asImageData(picture, ""), weight: mixture ? 1 - mixture.share : 1 }];
  if (mixture) {
    const { blob, width, height } = mixture.source;
    imagePrompts.push({ image: await toImageData(blob, width, height), weight: mixture.share });
  }
  const spec = settings.variationSpec(prompt, imagePrompts);
  return withRetry(() => createRun(requestId, spec), showWaiting);
}

/** @param {Picture} picture @param {string} fit how it is made square, where the models would stretch it; "": it stays as it is */
async function asImageData(picture, fit) {
  const blob = await fileOf(picture);
  const { width, height } = picture.image;
  if (!fit || width === height) return toImageData(blob, width, height);
  const square = await makeSquare(blob, fit);
  return toImageData(square.blob, square.side, square.side);
}
