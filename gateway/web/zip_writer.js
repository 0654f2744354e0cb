/** Makes a ZIP file of files as they are (stored: pictures are compressed already). */

const TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** @param {Uint8Array} bytes */
function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/**
 * @param {{name: string, bytes: Uint8Array}[]} files names in UTF-8, with / between folders
 * @param {Date} [time]
 * @returns {Blob}
 */
export function makeZip(files, time = new Date()) {
  const stamp = ((time.getHours() << 11) | (time.getMinutes() << 5) | (time.getSeconds() >> 1)) >>> 0;
  const day = (((time.getFullYear() - 1980) << 9) | ((time.getMonth() + 1) << 5) | time.getDate()) >>> 0;
  /** @type {BlobPart[]} */
  const parts = [];
  /** @type {BlobPart[]} */
  const directory = [];
  let offset = 0;
  let directoryBytes = 0;
  for (const { name, bytes } of files) {
    const encoded = new TextEncoder().encode(name);
    // Version 2.0, names in UTF-8 (bit 11), stored.
    const common = [20, 0x0800, 0, stamp, day];
    const sizes = [crc32(bytes), bytes.length, bytes.length];
    const local = header(0x04034b50, common, sizes, [encoded.length, 0]);
    parts.push(local, encoded, /** @type {any} */ (bytes));
    const central = header(0x02014b50, [20, ...common], sizes, [encoded.length, 0, 0, 0, 0, 0, 0, offset & 0xffff, offset >>> 16]);
    directory.push(central, encoded);
    directoryBytes += central.length + encoded.length;
    offset += local.length + encoded.length + bytes.length;
  }
  const end = header(0x06054b50, [0, 0, files.length, files.length], [directoryBytes, offset], [0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** Little-endian: a signature of 32 bits, then numbers of 16, of 32 and of 16 bits. @param {number} signature @param {number[]} shorts @param {number[]} longs @param {number[]} more */
function header(signature, shorts, longs, more) {
  const bytes = new Uint8Array(4 + shorts.length * 2 + longs.length * 4 + more.length * 2);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, signature, true);
  let at = 4;
  for (const value of shorts) (view.setUint16(at, value, true), (at += 2));
  for (const value of longs) (view.setUint32(at, value, true), (at += 4));
  for (const value of more) (view.setUint16(at, value, true), (at += 2));
  return bytes;
}
