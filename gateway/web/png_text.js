/** Reads how a picture was made from its PNG file's text chunks; the twin of triptych/png_text.py. */

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

/**
 * @param {Uint8Array} bytes a file
 * @returns {Object<string, string>} text by keyword; empty for other files and for PNGs without text
 */
export function readPngText(bytes) {
  /** @type {Object<string, string>} */
  const texts = {};
  if (!SIGNATURE.every((byte, index) => bytes[index] === byte)) return texts;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const body = bytes.subarray(at + 8, at + 8 + length);
    if (type === "iTXt") addText(texts, body);
    if (type === "IEND") break;
    at += 12 + length;
  }
  return texts;
}

/** @param {Object<string, string>} texts @param {Uint8Array} body keyword, 0, flag, method, language, 0, translated, 0, text */
function addText(texts, body) {
  const end = body.indexOf(0);
  // Only text that is not compressed: ours never is.
  if (end < 1 || body[end + 1] !== 0) return;
  const language = body.indexOf(0, end + 3);
  const translated = body.indexOf(0, language + 1);
  if (language < 0 || translated < 0) return;
  const keyword = new TextDecoder("latin1").decode(body.subarray(0, end));
  texts[keyword] = new TextDecoder().decode(body.subarray(translated + 1));
}
