/** How long the rest will take, measured from how fast the work has gone. */

const WINDOW_MS = 20_000;
// Less would be a guess.
const MIN_MS = 700;
const MIN_DONE = 0.05;

export class ProgressRate {
  constructor() {
    /** @type {{atMs: number, done: number}[]} */
    this.samples = [];
    this.key = "";
  }

  /**
   * @param {string} key what is being worked on: each stage has a pace of its own
   * @param {number} atMs by the gateway's clock, so that a replay measures the same
   * @param {number} done pictures, in parts of one
   */
  note(key, atMs, done) {
    const last = this.samples.at(-1);
    // What is begun anew elsewhere, or joins, sets the sum back.
    if (key !== this.key || (last && done < last.done)) this.samples = [];
    this.key = key;
    this.samples.push({ atMs, done });
    while (this.samples.length > 2 && atMs - this.samples[0].atMs > WINDOW_MS) this.samples.shift();
  }

  /** @param {number} left pictures, in parts of one @returns {number|null} seconds; null where nothing is known yet */
  secondsFor(left) {
    const [first, last] = [this.samples[0], this.samples.at(-1)];
    if (!first || !last || last.atMs - first.atMs < MIN_MS || last.done - first.done < MIN_DONE) return null;
    return (left * (last.atMs - first.atMs)) / (last.done - first.done) / 1000;
  }
}
