/** The gateway's HTTP routes as functions. Every failure is a GatewayError; a token, where one is needed, goes along. */

const TOKEN_KEY = "triptych-token";
// Of a request whose answer takes the gateway no time: after it the gateway counts as away.
const TIMEOUT_MS = 15_000;

export class GatewayError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, reason?: string, violations?: Object<string, string>, retryAfterS?: number}} [more]
   */
  constructor(message, { status = 0, reason = "UNREACHABLE", violations = {}, retryAfterS = 0 } = {}) {
    super(message);
    this.status = status;
    this.reason = reason;
    this.violations = violations;
    this.retryAfterS = retryAfterS;
  }
}

/** @returns {string} empty where none is known */
export function token() {
  return sessionStorage.getItem(TOKEN_KEY) ?? "";
}

/** Kept as long as the tab is open. @param {string} text */
export function keepToken(text) {
  if (text) sessionStorage.setItem(TOKEN_KEY, text);
  else sessionStorage.removeItem(TOKEN_KEY);
}

/**
 * @param {string} path relative to the page, so that it also works behind a proxy's prefix
 * @param {RequestInit} [options]
 * @returns {Promise<Response>} an answer without an error
 */
export async function fetchFrom(path, options = {}) {
  const headers = new Headers(options.headers);
  if (token()) headers.set("authorization", `Bearer ${token()}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted && options.signal.reason?.name !== "TimeoutError") throw error;
    throw new GatewayError("the gateway does not answer");
  }
  if (!response.ok) throw await errorFromResponse(response);
  return response;
}

/** @param {Response} response */
async function errorFromResponse(response) {
  const body = await response.json().then((json) => json.error, () => null);
  return new GatewayError(body?.message ?? `the gateway answered ${response.status}`, {
    status: response.status,
    reason: body?.reason ?? (response.status >= 500 ? "UNREACHABLE" : "UNKNOWN"),
    violations: body?.violations ?? {},
    retryAfterS: Number(response.headers.get("retry-after") ?? 0),
  });
}

/** @param {string} path @param {RequestInit} [options] @returns {Promise<any>} */
async function getJson(path, options = {}) {
  return (await fetchFrom(path, { signal: AbortSignal.timeout(TIMEOUT_MS), ...options })).json();
}

/** @param {string} path @param {object} body */
async function post(path, body) {
  const headers = { "content-type": "application/json" };
  return (await fetchFrom(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

/** @returns {Promise<any[]>} what each stage serves: {model, num_workers} */
export async function listModels() {
  return (await getJson("models")).models ?? [];
}

/** @returns {Promise<{state: string, examples: any[], run: any}>} what the served models made of their example prompts */
export function getExamples() {
  return getJson("examples");
}

/** @param {string} prompt @param {string} model @returns {Promise<any>} PromptReading: what the model makes of its words */
export async function readPrompt(prompt, model) {
  return (await post("prompts/read", { prompt, model })).reading;
}

/** @param {string} requestId @param {object} spec @param {boolean} [inTurn] it waits until no other run of the caller is under way */
export function createRun(requestId, spec, inTurn = false) {
  return post("runs", { request_id: requestId, spec, detach: true, in_turn: inTurn });
}

/** Gives a run that waits another place; with nothing it is the next. @param {string} name @param {{before?: string, after?: string, now?: boolean}} to */
export function moveRun(name, to = {}) {
  return post(`${name}/move`, to);
}

/** @param {string} name "runs/{id}" */
export function getRun(name) {
  return getJson(name);
}

/** @param {number} pageSize @param {string} pageToken */
export function listRuns(pageSize, pageToken) {
  return getJson(`runs?${new URLSearchParams({ page_size: String(pageSize), page_token: pageToken })}`);
}

/** @returns {Promise<any[]>} the runs that are queued or running */
export async function listBusyRuns() {
  return (await getJson("runs?states=RUN_STATE_QUEUED&states=RUN_STATE_RUNNING&page_size=200", { cache: "no-store" })).runs ?? [];
}

/** @param {string} name */
export async function deleteRun(name) {
  await fetchFrom(name, { method: "DELETE" });
}

/** Ends a run that is under way, or waits for a choice, before it deletes it. @param {string} name */
export async function endAndDelete(name) {
  try {
    await deleteRun(name);
  } catch (error) {
    if (!(error instanceof GatewayError)) throw error;
    if (error.status === 404) return;
    if (error.reason !== "RUN_UNDER_WAY") throw error;
    await cancelRun(name);
    await deleteRun(name);
  }
}

/** @param {string} name @param {string[]} images none: the whole run */
export function cancelRun(name, images = []) {
  return post(`${name}/cancel`, { images });
}

/** @param {string} name @param {string} requestId @param {object[]} selections */
export function selectImages(name, requestId, selections) {
  return post(`${name}/selections`, { request_id: requestId, selections });
}

/** A name for a request, so that it can be repeated. crypto.randomUUID is missing on plain http beyond loopback. */
export function newRequestId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {unknown} error */
export function isAway(error) {
  return error instanceof GatewayError && (error.reason === "UNREACHABLE" || error.reason === "NOT_READY");
}

/**
 * Repeats what a request_id makes safe to repeat, while the gateway is out of reach.
 * @template T
 * @param {() => Promise<T>} attempt
 * @param {(error: unknown) => void} [onWaiting] called before each wait, so that the person knows at once
 * @param {number[]} delaysS
 * @returns {Promise<T>}
 */
export async function withRetry(attempt, onWaiting = () => {}, delaysS = [0.5, 1, 2, 4]) {
  for (const delayS of [...delaysS, null]) {
    try {
      return await attempt();
    } catch (error) {
      if (!isAway(error) || delayS === null) throw error;
      onWaiting(error);
      await new Promise((resolve) => setTimeout(resolve, delayS * 1000));
    }
  }
  throw new GatewayError("the gateway does not answer");
}
