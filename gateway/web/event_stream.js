/** Follows a run's events over connections that may break: what has come is never asked for again. */

import { GatewayError, fetchFrom } from "./api.js";

// The gateway shows a sign of life every 15 s: silence of more than two of them is a dead connection.
const SILENCE_MS = 35_000;
const FIRST_DELAY_MS = 400;
const MAX_DELAY_MS = 5_000;
// Nothing that another attempt could help.
const FINAL = new Set([400, 401, 403, 404]);

/**
 * @typedef {object} Reader
 * @property {(event: any) => void} onEvent
 * @property {(state: "live"|"lost"|"ended", delayMs?: number) => void} onConnection
 * @property {(error: GatewayError) => void} onError called last, with the error
 */

export class EventStream {
  /** @param {string} name "runs/{id}" @param {number} afterSequence @param {Reader} reader */
  constructor(name, afterSequence, reader) {
    this.name = name;
    this.position = afterSequence;
    this.reader = reader;
    this.abort = new AbortController();
    this.isOver = false;
    this.follow();
  }

  stop() {
    this.isOver = true;
    this.abort.abort();
  }

  async follow() {
    let delayMs = FIRST_DELAY_MS;
    while (!this.isOver) {
      try {
        const isWhole = await this.readOnce(() => (delayMs = FIRST_DELAY_MS));
        if (this.isOver) return;
        if (isWhole) {
          this.isOver = true;
          this.reader.onConnection("ended");
          return;
        }
      } catch (error) {
        if (this.isOver) return;
        if (error instanceof GatewayError && FINAL.has(error.status)) {
          this.isOver = true;
          this.reader.onError(error);
          return;
        }
      }
      this.reader.onConnection("lost", delayMs);
      await waitOrOnline(delayMs, this.abort.signal);
      delayMs = Math.min(MAX_DELAY_MS, delayMs * 2);
    }
  }

  /** One connection. @param {() => void} onLife @returns {Promise<boolean>} whether the run has said its last */
  async readOnce(onLife) {
    const connection = new AbortController();
    const stop = () => connection.abort();
    this.abort.signal.addEventListener("abort", stop);
    let timer = setTimeout(stop, SILENCE_MS);
    try {
      const path = `${this.name}/events?after_sequence=${this.position}`;
      const response = await fetchFrom(path, { signal: connection.signal, cache: "no-store" });
      if (response.status === 204) return true;
      this.reader.onConnection("live");
      let isWhole = false;
      const alive = () => {
        onLife();
        clearTimeout(timer);
        timer = setTimeout(stop, SILENCE_MS);
      };
      for await (const message of readMessages(/** @type {any} */ (response.body), alive)) {
        if (message.event === "error") {
          throw new GatewayError(JSON.parse(message.data).error?.message ?? "the gateway broke off");
        }
        const event = JSON.parse(message.data);
        this.position = Number(event.sequence);
        isWhole = "finished" in event;
        this.reader.onEvent(event);
      }
      return isWhole;
    } finally {
      clearTimeout(timer);
      this.abort.signal.removeEventListener("abort", stop);
      connection.abort();
    }
  }
}

/**
 * Reads server-sent events. The browser's own EventSource cannot send a token and hides the status.
 * @param {ReadableStream<Uint8Array>} stream
 * @param {() => void} onBytes
 */
export async function* readMessages(stream, onBytes) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    onBytes();
    rest += value;
    const blocks = rest.split("\n\n");
    rest = /** @type {string} */ (blocks.pop());
    for (const block of blocks) {
      const message = { event: "message", data: "" };
      for (const line of block.split("\n")) {
        const [, field, text] = /^(\w*): ?(.*)$/.exec(line) ?? [];
        if (field === "data") message.data += text;
        else if (field === "event") message.event = text;
      }
      if (message.data) yield message;
    }
  }
}

/** @param {number} delayMs @param {AbortSignal} signal */
function waitOrOnline(delayMs, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, delayMs);
    function done() {
      clearTimeout(timer);
      removeEventListener("online", done);
      signal.removeEventListener("abort", done);
      resolve(undefined);
    }
    addEventListener("online", done);
    signal.addEventListener("abort", done);
  });
}
