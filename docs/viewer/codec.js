// Decoding and encoding with the files of `ugicm export`, by ONNX Runtime.

import { SymbolDecoder, SymbolEncoder, readTables } from "./ans.js";
import {
  StreamError, VERSION, Y_STRIDE, Z_STRIDE, codedExtent, cut, pack, paddedBox, parse, quantizeQuality, tooLarge,
} from "./bitstream.js";
import { alphaOf, storedPixels, toGray } from "./image_files.js";

const WINDOW = 1024; // analysis and synthesis process at most this side, and a halo around it, at once
const TILE = 1024; // side of the tiles of images with more than TILED_FROM pixels, padded
const TILED_FROM = 2 ** 22;

/** Return a box in units of `step` pixels. */
const scaled = (box, step) =>
  Object.fromEntries(Object.entries(box).map(([side, value]) => [side, Math.ceil(value / step)]));

const sides = (box) => [box.bottom - box.top, box.right - box.left];

/** Return a box extended by `margin`, but not beyond `limit`, to multiples of `step`. */
function grown(box, margin, limit, step) {
  const down = (value) => Math.floor(value / step) * step, up = (value) => Math.ceil(value / step) * step;
  return {
    left: down(Math.max(box.left - margin, limit.left)), top: down(Math.max(box.top - margin, limit.top)),
    right: up(Math.min(box.right + margin, limit.right)), bottom: up(Math.min(box.bottom + margin, limit.bottom)),
  };
}

/** Values [channels, height, width] in a Float32Array. */
class Planes {
  constructor(channels, height, width, data = new Float32Array(channels * height * width)) {
    Object.assign(this, { channels, height, width, data });
  }

  #rows(box, each) {
    for (let c = 0, n = 0; c < this.channels; c++)
      for (let row = box.top; row < box.bottom; row++, n++) each((c * this.height + row) * this.width + box.left, n);
  }

  crop(box) {
    const [height, width] = sides(box);
    if (height === this.height && width === this.width) return this;
    const part = new Planes(this.channels, height, width);
    this.#rows(box, (start, n) => part.data.set(this.data.subarray(start, start + width), n * width));
    return part;
  }

  paste(part, box) {
    this.#rows(box, (start, n) => this.data.set(part.data.subarray(n * part.width, (n + 1) * part.width), start));
  }
}

/** A model of `ugicm export`. Use `Codec.load`. */
export class Codec {
  #ort;
  #base;
  #sessions = {};

  /**
   * Load a model: its tables, and the graphs that decode.
   *
   * @param ort the module of ONNX Runtime
   * @param base URL of the folder, ending in a slash
   * @param device "wasm", or "webgpu" for analysis and synthesis; integer networks always run on the CPU
   */
  static async load(ort, base, device = "wasm") {
    const codec = new Codec();
    const [model, tables] = await Promise.all(["model", "tables"].map(async (name) => {
      const response = await fetch(`${base}${name}.json`);
      if (!response.ok) throw new Error(`no model in ${base}: run scripts/build_viewer.py`);
      return response.json();
    }));
    if (model.bitstream_version !== VERSION) throw new Error(`no model of bitstream version ${VERSION} in ${base}`);
    codec.#ort = ort;
    codec.#base = base;
    const { M, N, slice_widths } = model.config;
    Object.assign(codec, {
      device, model, channels: M, zChannels: N, widths: slice_widths,
      zTables: readTables(tables.z), yTables: readTables(tables.y),
    });
    const indices = slice_widths.map((_, k) => `indices_${k}`);
    for (const name of ["hyper_synthesis", ...indices, "means", "synthesis"]) await codec.#session(name);
    return codec;
  }

  async #session(name) {
    const onDevice = name === "synthesis" || name === "analysis";
    this.#sessions[name] ??= await this.#ort.InferenceSession.create(
      `${this.#base}${name}.onnx`, { executionProviders: onDevice && this.device === "webgpu" ? ["webgpu"] : ["wasm"] });
    return this.#sessions[name];
  }

  /** Run a graph on Planes and numbers. Returns an array of Planes. */
  async #run(name, ...inputs) {
    const session = await this.#session(name);
    const feeds = Object.fromEntries(inputs.map((value, n) => {
      const shape = typeof value === "number" ? [1] : [1, value.channels, value.height, value.width];
      const data = typeof value === "number" ? Float32Array.of(value) : value.data;
      const input = session.inputNames[n];
      return [input, new this.#ort.Tensor("float32", data, input === "coded" ? shape.slice(2) : shape)];
    }));
    const results = await session.run(feeds);
    return session.outputNames.map((output) => new Planes(...results[output].dims.slice(1), results[output].data));
  }

  /**
   * Entropy-decode a file. Throws StreamError.
   *
   * Returns {parsed, yHat (Planes), seconds: {symbols, means}, alpha, cache (of synthesize)}; with `pixels` instead of
   * yHat for a stored image. `onSymbols` is called with the residuals of every tile.
   */
  async decode(data, onSymbols = () => {}) {
    const parsed = parse(data), seconds = { symbols: 0, means: 0 };
    if (parsed.stored) return { parsed, seconds, pixels: await storedPixels(parsed), alpha: await alphaOf(parsed) };
    if (parsed.fingerprint !== this.model.fingerprint)
      throw new StreamError(`the bitstream was written by another model: its fingerprint is ${parsed.fingerprint}, ` +
        `this model's is ${this.model.fingerprint}`);
    const yHat = new Planes(this.channels, ...sides(scaled(paddedBox(parsed.width, parsed.height), Y_STRIDE)));
    for (const [n, tile] of parsed.tiles.entries()) {
      const start = performance.now();
      const { hyper, residuals } = await this.#decodeSymbols(parsed, n, tile);
      onSymbols(residuals.data);
      const middle = performance.now();
      const [part] = await this.#run("means", hyper, residuals);
      yHat.paste(part, scaled(tile, Y_STRIDE));
      seconds.symbols += (middle - start) / 1000;
      seconds.means += (performance.now() - middle) / 1000;
    }
    return { parsed, yHat, seconds, alpha: await alphaOf(parsed), cache: {} };
  }

  async #decodeSymbols(parsed, n, tile) {
    const decoder = new SymbolDecoder(parsed.strings[n]);
    const zSize = sides(scaled(tile, Z_STRIDE)), size = sides(scaled(tile, Y_STRIDE)), area = size[0] * size[1];
    const z = decoder.decode(this.#hyperRows(zSize), this.zTables);
    const [hyper] = await this.#run("hyper_synthesis", new Planes(this.zChannels, ...zSize, Float32Array.from(z)));
    const residuals = new Planes(this.channels, ...size), coded = this.#coded(parsed, tile);
    let start = 0;
    for (const [k, width] of this.widths.entries()) {
      const earlier = new Planes(start, ...size, residuals.data.subarray(0, start * area));
      const [rows] = await this.#run(`indices_${k}`, hyper, ...(k ? [earlier] : []));
      const positions = codedPositions(rows.data, coded.data);
      const symbols = decoder.decode(positions.map((position) => rows.data[position]), this.yTables);
      positions.forEach((position, i) => (residuals.data[start * area + position] = symbols[i]));
      start += width;
    }
    decoder.finish();
    if (decoder.digest !== parsed.digests[n])
      throw new StreamError("corrupt bitstream: its symbols do not match their digest");
    return { hyper, residuals };
  }

  /** Return the table row of every position of z: its channel. */
  #hyperRows([height, width]) {
    return Uint32Array.from({ length: this.zChannels * height * width }, (_, n) => Math.floor(n / (height * width)));
  }

  /** Return which positions of y in a tile are coded: Planes of 1 and 0. */
  #coded({ width, height }, tile) {
    const extent = codedExtent(tile, width, height), coded = new Planes(1, ...sides(scaled(tile, Y_STRIDE)));
    for (let row = 0; row < extent.rows; row++)
      coded.data.fill(1, row * coded.width, row * coded.width + extent.columns);
    return coded;
  }

  /** Return the image of decoded latents for a preference in [0, 1]: RGBA, a Uint8ClampedArray. */
  async synthesize(decoded, beta) {
    const pixels = decoded.pixels?.slice() ?? (await this.#synthesize(decoded, beta));
    if (decoded.parsed.gray) toGray(pixels);
    decoded.alpha?.forEach((value, n) => (pixels[4 * n + 3] = value));
    return pixels;
  }

  async #synthesize({ parsed, yHat, cache }, beta) {
    const { width, height, quality } = parsed, pixels = new Uint8ClampedArray(4 * width * height).fill(255);
    const windows = cut({ left: 0, top: 0, right: width, bottom: height }, WINDOW);
    for (const window of windows) {
      const around = grown(window, this.model.halo, paddedBox(width, height), Y_STRIDE);
      const latents = yHat.crop(scaled(around, Y_STRIDE));
      const results = cache.results ?? (await this.#run("synthesis", latents, quality));
      if (windows.length === 1) cache.results = results;
      copyPixels(...results, beta, around, window, pixels, width);
    }
    return pixels;
  }

  /**
   * Encode an image: RGBA, a Uint8ClampedArray. Alpha is ignored.
   *
   * Returns {data (the file), seconds}.
   */
  async encode(pixels, width, height, quality) {
    const complaint = tooLarge(width, height);
    if (complaint) throw new Error(`the image has ${complaint}`);
    const start = performance.now(), padded = paddedBox(width, height);
    quality = quantizeQuality(this.model.has_quality ? quality : 0.5);
    const tile = padded.right * padded.bottom > TILED_FROM ? TILE : 0;
    const y = await this.#analyze(pixels, width, height, quality);
    const [z] = await this.#run("hyper_analysis", y);
    const fields = { width, height, fingerprint: this.model.fingerprint, quality, tile };
    const tiles = await this.encodeLatents(y, z, fields);
    const data = pack({ ...fields, digests: tiles.map((t) => t.digest), strings: tiles.map((t) => t.string) });
    return { data, seconds: (performance.now() - start) / 1000, y, z };
  }

  async #analyze(pixels, width, height, quality) {
    const padded = paddedBox(width, height), y = new Planes(this.channels, ...sides(scaled(padded, Y_STRIDE)));
    for (const window of cut(padded, WINDOW)) {
      const around = grown(window, this.model.halo, padded, Z_STRIDE);
      const image = new Planes(3, ...sides(around));
      for (let row = 0, n = 0; row < image.height; row++) {
        const line = Math.min(around.top + row, height - 1) * width;
        for (let column = 0; column < image.width; column++, n++) {
          const pixel = 4 * (line + Math.min(around.left + column, width - 1));
          for (let c = 0; c < 3; c++) image.data[c * image.height * image.width + n] = pixels[pixel + c] / 255;
        }
      }
      const [part] = await this.#run("analysis", image, quality);
      const [within, own] = [around, window].map((box) => scaled(box, Y_STRIDE));
      y.paste(part.crop({
        left: own.left - within.left, top: own.top - within.top,
        right: own.right - within.left, bottom: own.bottom - within.top,
      }), own);
    }
    return y;
  }

  /** Return {string, digest} of every tile, given y and the symbols of z of the whole image. */
  async encodeLatents(y, z, fields) {
    const results = [];
    for (const tile of cut(paddedBox(fields.width, fields.height), fields.tile)) {
      const encoder = new SymbolEncoder(), coded = this.#coded(fields, tile);
      const zTile = z.crop(scaled(tile, Z_STRIDE)), yTile = y.crop(scaled(tile, Y_STRIDE));
      encoder.encode(Int32Array.from(zTile.data), this.#hyperRows([zTile.height, zTile.width]), this.zTables);
      const [hyper] = await this.#run("hyper_synthesis", zTile);
      const [residuals, rows] = await this.#run("residuals", hyper, yTile, coded);
      let start = 0;
      for (const width of this.widths) {
        const end = start + width * yTile.height * yTile.width;
        const [values, own] = [residuals, rows].map(({ data }) => data.subarray(start, end));
        const positions = codedPositions(own, coded.data);
        encoder.encode(Int32Array.from(positions, (p) => values[p]), positions.map((p) => own[p]), this.yTables);
        start = end;
      }
      results.push({ string: encoder.flush(), digest: encoder.digest });
    }
    return results;
  }
}

/** Return the positions of a slice whose row is not 0 and that are inside of the extent. */
function codedPositions(rows, coded) {
  const positions = new Uint32Array(rows.length);
  let count = 0;
  for (let position = 0; position < rows.length; position++)
    if (rows[position] > 0 && coded[position % coded.length]) positions[count++] = position;
  return positions.subarray(0, count);
}

/** Write the part of an image in `window` into RGBA pixels: image + beta * difference. */
function copyPixels(human, difference, beta, around, window, pixels, width) {
  const area = human.height * human.width;
  for (let row = window.top; row < window.bottom; row++)
    for (let column = window.left; column < window.right; column++) {
      const source = (row - around.top) * human.width + column - around.left, target = 4 * (row * width + column);
      for (let c = 0; c < 3; c++) {
        const change = beta * difference.data[source + c * area];
        pixels[target + c] = 255 * (human.data[source + c * area] + change); // clamped, rounded half to even
      }
    }
}
