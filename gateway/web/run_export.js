/** Saves runs as one ZIP file: every picture as its file to keep, and what the gateway knows of each run as JSON. */

import { fetchFrom, getRun } from "./api.js";
import { downloadPath, saveBlob } from "./image_urls.js";
import { STAGE_NAMES } from "./stages.js";
import { fileName, slug } from "./labels.js";
import { announce, showError } from "./notifications.js";
import { makeZip } from "./zip_writer.js";
import { t } from "./texts.js";

/** @param {string[]} names of runs */
export async function saveRuns(names) {
  announce(t("zip.making"));
  try {
    const files = [];
    for (const name of names) files.push(...(await filesOf(await getRun(name))));
    const first = names.length === 1 ? files[0].name.split("/")[0] : `triptych-${names.length}-runs`;
    saveBlob(makeZip(files), `${first}.zip`);
  } catch (error) {
    showError(error, () => saveRuns(names));
  }
}

/** @param {any} run @returns {Promise<{name: string, bytes: Uint8Array}[]>} */
async function filesOf(run) {
  const prompt = run.spec?.prompt ?? "";
  const folder = `${slug(prompt)}-${run.name.split("/")[1].slice(0, 8)}`;
  const files = [{ name: `${folder}/run.json`, bytes: new TextEncoder().encode(JSON.stringify(run, null, 2)) }];
  for (const image of run.images ?? []) {
    const name = fileName(prompt, { stage: STAGE_NAMES[image.stage], index: image.index });
    const response = await fetchFrom(downloadPath(image.name, name));
    files.push({ name: `${folder}/${name}`, bytes: new Uint8Array(await response.arrayBuffer()) });
  }
  return files;
}
