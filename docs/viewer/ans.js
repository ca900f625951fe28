// Strings of docs/bitstream.md: rANS with 32-bit words, a 64-bit state in two halves, and 24-bit probabilities.

import { StreamError, crc32 } from "./bitstream.js";

const ESCAPE_BYTES = 4;
const BYTE = Uint32Array.from({ length: 257 }, (_, n) => 256 * n); // CDF of a byte of an excess
const TWO_16 = 2 ** 16, TWO_24 = 2 ** 24, TWO_32 = 2 ** 32;

/** Return the tables of a prior in tables.json, for use with the coders below. */
export const readTables = ({ cdfs, offsets }) => ({ cdfs: cdfs.map((cdf) => Uint32Array.from(cdf)), offsets });

/** Return positions sorted by table row; those of the same row keep their order. */
function sortedByRow(rows) {
  const next = new Uint32Array(257);
  for (const row of rows) next[row + 1]++;
  for (let row = 0; row < 256; row++) next[row + 1] += next[row];
  const order = new Uint32Array(rows.length);
  for (let position = 0; position < rows.length; position++) order[next[rows[position]]++] = position;
  return order;
}

const crcOf = (symbols, crc) => crc32(new Uint8Array(symbols.buffer, symbols.byteOffset, symbols.byteLength), crc);

/** Reads a string: a Uint8Array. Any bytes decode to some symbols. Throws StreamError for what no encoder writes. */
export class SymbolDecoder {
  #high = 0;
  #low = 0;
  #words;
  #position = 0;
  #crc = 0;

  constructor(string) {
    if (string[0] === 0) throw new StreamError("corrupt bitstream: a string starts with a zero byte");
    const size = string.length ? string.length + 1 : 0; // with a zero byte at the end
    const bytes = new Uint8Array(Math.ceil(size / 4) * 4);
    bytes.set(string, bytes.length - size);
    const view = new DataView(bytes.buffer);
    this.#words = Uint32Array.from({ length: bytes.length / 4 }, (_, n) => view.getUint32(4 * n));
  }

  /** 16 bits that depend on all symbols so far. */
  get digest() {
    return this.#crc & 0xffff;
  }

  #index(cdf, length) {
    while (this.#high === 0 && this.#position < this.#words.length) {
      this.#high = this.#low;
      this.#low = this.#words[this.#position++];
    }
    const remainder = this.#low & 0xffffff, target = remainder >>> 8;
    let index = 0;
    for (let above = length - 1; above - index > 1; ) {
      const middle = (index + above) >> 1;
      if (cdf[middle] <= target) index = middle;
      else above = middle;
    }
    const frequency = 256 * (cdf[index + 1] - cdf[index]);
    // state = (state >> 24) * frequency + remainder - start, in parts that a double holds exactly
    const upper = (this.#high >>> 16) * frequency;
    const lower = ((this.#high & 0xffff) * 256 + (this.#low >>> 24)) * frequency + remainder - 256 * cdf[index];
    const sum = (upper % 256) * TWO_24 + lower;
    this.#high = Math.floor(upper / 256) + Math.floor(sum / TWO_32);
    this.#low = sum >>> 0;
    return index;
  }

  /** Return the symbols of one call, an Int32Array, given their table rows, integers from 0 to 255. */
  decode(rows, { cdfs, offsets }) {
    const symbols = new Int32Array(rows.length), escaped = [];
    for (const position of sortedByRow(rows)) {
      const row = rows[position], cdf = cdfs[row], index = this.#index(cdf, cdf.length);
      symbols[position] = offsets[row] + index;
      if (index === cdf.length - 2) escaped.push(position);
    }
    const excess = this.#excess(escaped.length);
    escaped.forEach((position, n) => {
      const half = excess[n] >> 1;
      if (excess[n] & 1) symbols[position] = offsets[rows[position]] - 1 - half;
      else symbols[position] += half;
    });
    this.#crc = crcOf(symbols, this.#crc);
    return symbols;
  }

  #excess(count) {
    const excess = new Int32Array(count);
    let pending = Array.from(excess.keys());
    for (let step = 0; pending.length; step++) {
      if (step === ESCAPE_BYTES) throw new StreamError(`corrupt bitstream: an escape of more than ${ESCAPE_BYTES} bytes`);
      pending = pending.filter((n) => {
        const byte = this.#index(BYTE, 257);
        excess[n] |= (byte & 127) << (7 * step);
        return byte > 127;
      });
    }
    return excess;
  }

  /** Throw StreamError unless the string is used up exactly. */
  finish() {
    if (this.#high || this.#low || this.#position < this.#words.length)
      throw new StreamError("corrupt bitstream: a string does not end with its last symbol");
  }
}

/** Writes a string. Indexes are kept until `flush` encodes them from the last to the first. */
export class SymbolEncoder {
  #crc = 0;
  #cdfs = [];
  #indexes = [];

  get digest() {
    return this.#crc & 0xffff;
  }

  #push(cdf, index) {
    this.#cdfs.push(cdf);
    this.#indexes.push(index);
  }

  /** Append the symbols of one call, an Int32Array, given their table rows. */
  encode(symbols, rows, { cdfs, offsets }) {
    this.#crc = crcOf(symbols, this.#crc);
    let excess = [];
    for (const position of sortedByRow(rows)) {
      const cdf = cdfs[rows[position]], size = cdf.length - 2, index = symbols[position] - offsets[rows[position]];
      const inside = index >= 0 && index < size;
      this.#push(cdf, inside ? index : size);
      if (!inside) excess.push(index < 0 ? -2 * index - 1 : 2 * (index - size));
    }
    while (excess.length) {
      for (const value of excess) this.#push(BYTE, value > 127 ? (value & 127) | 128 : value);
      excess = excess.filter((value) => value > 127).map((value) => value >> 7);
    }
  }

  /** Return the string. */
  flush() {
    let high = 0, low = 0;
    const words = [];
    for (let n = this.#indexes.length - 1; n >= 0; n--) {
      const cdf = this.#cdfs[n], index = this.#indexes[n];
      const frequency = 256 * (cdf[index + 1] - cdf[index]);
      if (high >>> 8 >= frequency) {
        words.push(low);
        low = high;
        high = 0;
      }
      // Long division of the state by the frequency, 16 bits at a time.
      const first = Math.floor(high / frequency);
      let rest = (high - first * frequency) * TWO_16 + (low >>> 16);
      const second = Math.floor(rest / frequency);
      rest = (rest - second * frequency) * TWO_16 + (low & 0xffff);
      const third = Math.floor(rest / frequency);
      const quotient = first * TWO_32 + second * TWO_16 + third;
      high = Math.floor(quotient / 256);
      low = ((quotient % 256) * TWO_24 + rest - third * frequency + 256 * cdf[index]) >>> 0;
    }
    words.push(low, high);
    const view = new DataView(new ArrayBuffer(4 * words.length));
    words.reverse().forEach((word, n) => view.setUint32(4 * n, word));
    const bytes = new Uint8Array(view.buffer);
    const start = bytes.findIndex((byte) => byte !== 0);
    return start < 0 ? new Uint8Array() : bytes.slice(start, -1);
  }
}
