/** The gateway's HTTP routes as functions. Every failure is a GatewayError; a token, where one is needed, goes along. */

const TOKEN_KEY = "triptych-token";

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
    if (options.signal?.aborted) throw error;
    throw new GatewayError("the gateway does not answer");
  }
  if (!response.ok) throw await errorFromResponse(response);
  return response;
}

/** @param {Response} response */
async function errorFromResponse(response) {
  const told = await response.json().then((body) => body.error, () => null);
  return new GatewayError(told?.message ?? `the gateway answered ${response.status}`, {
    status: response.status,
    reason: told?.reason ?? (response.status >= 500 ? "UNREACHABLE" : "UNKNOWN"),
    violations: told?.violations ?? {},
    retryAfterS: Number(response.headers.get("retry-after") ?? 0),
  });
}

/** @param {string} path @param {object} body */
async function post(path, body) {
  const headers = { "content-type": "application/json" };
  const response = await fetchFrom(path, { method: "POST", headers, body: JSON.stringify(body) });
  return response.json();
}

/** @returns {Promise<any[]>} what each stage serves: {model, num_workers} */
export async function listModels() {
  return (await (await fetchFrom("models")).json()).models ?? [];
}

/** @param {string} requestId @param {object} spec */
export function createRun(requestId, spec) {
  return post("runs", { request_id: requestId, spec, detach: true });
}

/** @param {string} name "runs/{id}" */
export async function getRun(name) {
  return (await fetchFrom(name)).json();
}

/** @param {number} pageSize @param {string} pageToken */
export async function listRuns(pageSize, pageToken) {
  const query = new URLSearchParams({ page_size: String(pageSize), page_token: pageToken });
  return (await fetchFrom(`runs?${query}`)).json();
}

/** @param {string} name */
export async function deleteRun(name) {
  await fetchFrom(name, { method: "DELETE" });
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

/**
 * Repeats what a request_id makes safe to repeat, while the gateway is out of reach.
 * @template T
 * @param {() => Promise<T>} attempt
 * @param {number[]} delaysS
 * @returns {Promise<T>}
 */
export async function withRetry(attempt, delaysS = [0.5, 1, 2, 4]) {
  for (const delayS of [...delaysS, null]) {
    try {
      return await attempt();
    } catch (error) {
      const isOut = error instanceof GatewayError && (error.reason === "UNREACHABLE" || error.reason === "NOT_READY");
      if (!isOut || delayS === null) throw error;
      await new Promise((resolve) => setTimeout(resolve, delayS * 1000));
    }
  }
  throw new GatewayError("the gateway does not answer");
}
