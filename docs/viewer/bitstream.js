// The file format of docs/bitstream.md: parsing and packing, tiles, extents, CRC-32.

export const VERSION = 4; // that is written
const EXTENDED_VERSION = 5; // with flags and boxes
export const Y_STRIDE = 16;
export const Z_STRIDE = 64;
const MARGIN = 4; // pixels outside of the image whose latents are coded
const MAX_PIXELS = 2 ** 24; // of the padded image: a page has less memory than the package, which accepts 2 ** 26
const QUALITY_STEPS = 65535;
const GRAY = 1, STORED = 2; // flags
const BOXES = { 1: "alpha", 2: "exif", 3: "xmp" };

/** A file that is corrupt, truncated, of an unsupported version, or written by another model. */
export class StreamError extends Error {}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

/** Return the CRC-32 of bytes that follow others of CRC-32 `crc`. */
export function crc32(bytes, crc = 0) {
  crc = ~crc;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** Return the smallest multiple of `step` that is not smaller than `value`. */
export const alignUp = (value, step) => Math.ceil(value / step) * step;

/** Cut a box {left, top, right, bottom} into squares of `side`, row by row. 0: no cut. */
export function cut(box, side) {
  if (!side) return [box];
  const boxes = [];
  for (let top = box.top; top < box.bottom; top += side)
    for (let left = box.left; left < box.right; left += side)
      boxes.push({ left, top, right: Math.min(left + side, box.right), bottom: Math.min(top + side, box.bottom) });
  return boxes;
}

/** Return the box of an image, padded to multiples of 64. */
export const paddedBox = (width, height) =>
  ({ left: 0, top: 0, right: alignUp(width, Z_STRIDE), bottom: alignUp(height, Z_STRIDE) });

/** Return how many rows and columns of y are coded in a tile. */
export function codedExtent(tile, width, height) {
  const count = (start, end, size) => Math.ceil((Math.min(end, size + MARGIN) - start) / Y_STRIDE);
  return { rows: count(tile.top, tile.bottom, height), columns: count(tile.left, tile.right, width) };
}

/** Return the quality that a header can hold: the nearest, the even one of two. */
export function quantizeQuality(quality) {
  const steps = quality * QUALITY_STEPS, rounded = Math.round(steps);
  return (rounded - steps === 0.5 && rounded % 2 ? rounded - 1 : rounded) / QUALITY_STEPS;
}

/** Return a complaint about the size of an image, or null. */
export function tooLarge(width, height) {
  const { right, bottom } = paddedBox(width, height);
  if (right * bottom <= MAX_PIXELS) return null;
  return `${width}x${height} pixels, ${right}x${bottom} as coded: more than the limit of ${MAX_PIXELS}`;
}

/** Reads fields from the front of a header. */
class Reader {
  constructor(data, position) {
    this.data = data;
    this.position = position;
  }

  require(size) {
    if (this.data.length < size) throw new StreamError(`truncated bitstream: ${this.data.length} bytes end inside the header`);
  }

  integer(size) {
    this.require(this.position + size);
    let value = 0;
    for (let n = 0; n < size; n++) value += this.data[this.position++] * 2 ** (8 * n);
    return value;
  }

  varint() {
    let value = 0;
    for (let n = 0; n < 5; n++) {
      const byte = this.integer(1);
      value += (byte & 127) * 2 ** (7 * n);
      if (byte < 128) return value;
    }
    throw new StreamError("corrupt bitstream: a varint of more than 5 bytes");
  }
}

/** Return bytes as Python prints them. */
function shown(bytes) {
  const quote = bytes.includes(39) && !bytes.includes(34) ? '"' : "'";
  const escapes = { 9: "\\t", 10: "\\n", 13: "\\r", 92: "\\\\" };
  const text = Array.from(bytes, (byte) => {
    if (byte in escapes) return escapes[byte];
    if (byte < 32 || byte > 126) return `\\x${byte.toString(16).padStart(2, "0")}`;
    return String.fromCharCode(byte) === quote ? `\\${quote}` : String.fromCharCode(byte);
  });
  return `b${quote}${text.join("")}${quote}`;
}

const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Return the contents of the boxes in a file, from `position` to `end`, by name. Others than known ones are left out. */
function parseBoxes(data, position, end) {
  const boxes = {}, reader = new Reader(data, position);
  while (reader.position < end) {
    const name = BOXES[reader.integer(1)], length = reader.varint(), start = reader.position;
    reader.position += length;
    if (reader.position > end || name in boxes)
      throw new StreamError("corrupt bitstream: a box is longer than the file, or there are two of a type");
    if (name) boxes[name] = data.subarray(start, reader.position);
  }
  return boxes;
}

/**
 * Parse a file: a Uint8Array. Checks all that can be checked without a model. Throws StreamError.
 *
 * Returns {width, height, fingerprint (hexadecimal digits), quality, tile (side in pixels), tiles (boxes), digests,
 * strings (Uint8Arrays), gray, stored, boxes (Uint8Arrays by name)}.
 */
export function parse(data) {
  if (hex(data.subarray(0, 3)) !== "554749") {
    const found = data.length ? `it starts with ${shown(data.subarray(0, 4))}` : "it is empty";
    throw new StreamError(`not a ugicm bitstream: ${found}, expected b'UGI'`);
  }
  const reader = new Reader(data, 3);
  const version = reader.integer(1);
  if (version !== VERSION && version !== EXTENDED_VERSION)
    throw new StreamError(`unsupported version of the bitstream: ${version}; ` +
      `this program reads versions ${VERSION} and ${EXTENDED_VERSION}`);
  const fingerprint = hex(data.subarray(4, 7));
  reader.position = 7;
  const width = reader.varint(), height = reader.varint();
  reader.require(reader.position + 3);
  const quality = reader.integer(2) / QUALITY_STEPS, tile = reader.integer(1) * Z_STRIDE;
  if (!width || !height) throw new StreamError(`corrupt bitstream: it declares an image of ${width}x${height}`);
  let flags = 0, boxBytes = 0;
  if (version === EXTENDED_VERSION) {
    [flags, boxBytes] = [reader.integer(1), reader.varint()];
    if (flags & ~(GRAY | STORED) || (flags & STORED && tile))
      throw new StreamError(`corrupt bitstream: flags ${flags} with tiles of ${tile}`);
  }
  const complaint = tooLarge(width, height);
  if (complaint) throw new StreamError(`the bitstream declares ${complaint}`);
  const tiles = cut(paddedBox(width, height), tile);
  reader.require(reader.position + 3 * tiles.length - 1);
  const digests = [], lengths = [];
  for (let n = 0; n < tiles.length; n++) {
    digests.push(reader.integer(2));
    if (n < tiles.length - 1) lengths.push(reader.varint());
  }
  let position = reader.position;
  const end = data.length - 4;
  const last = end - boxBytes - position - lengths.reduce((a, b) => a + b, 0);
  if (last < 0) throw new StreamError(`truncated bitstream: ${data.length} of at least ${data.length - last} bytes`);
  lengths.push(last);
  if (new Reader(data, end).integer(4) !== crc32(data.subarray(0, end)))
    throw new StreamError("corrupt bitstream: the checksum does not match; the file is damaged or incomplete");
  const strings = lengths.map((length) => data.subarray(position, (position += length)));
  const gray = Boolean(flags & GRAY), stored = Boolean(flags & STORED), boxes = parseBoxes(data, position, end);
  return { width, height, fingerprint, quality, tile, tiles, digests, strings, gray, stored, boxes };
}

function varint(value) {
  const bytes = [];
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value & 127) | 128);
  return [...bytes, value];
}

/** Return the bytes of a file of version 4, with the fields that `parse` returns. */
export function pack({ width, height, fingerprint, quality, tile, digests, strings }) {
  const little = (value, size) => Array.from({ length: size }, (_, n) => Math.floor(value / 2 ** (8 * n)) & 255);
  const table = digests.flatMap((digest, n) =>
    [...little(digest, 2), ...(n < digests.length - 1 ? varint(strings[n].length) : [])]);
  const head = [
    0x55, 0x47, 0x49, VERSION, ...fingerprint.match(/../g).map((digits) => parseInt(digits, 16)),
    ...varint(width), ...varint(height), ...little(Math.round(quality * QUALITY_STEPS), 2), tile / Z_STRIDE, ...table,
  ];
  const size = strings.reduce((total, string) => total + string.length, head.length);
  const data = new Uint8Array(size + 4);
  data.set(head);
  let position = head.length;
  for (const string of strings) {
    data.set(string, position);
    position += string.length;
  }
  data.set(little(crc32(data.subarray(0, size)), 4), size);
  return data;
}
