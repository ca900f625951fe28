// Runs the codec in a thread of its own, so that the page stays responsive. Answers one message at a time.

import { Codec } from "./codec.js";

let codec, decoded;

const commands = {
  async load(device) {
    const ort = await import(device === "webgpu" ? "./lib/ort.webgpu.min.mjs" : "./lib/ort.wasm.min.mjs");
    ort.env.logLevel = "error";
    ort.env.wasm.wasmPaths = new URL("./lib/", import.meta.url).href;
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
    codec = await Codec.load(ort, new URL("./model/", import.meta.url).href, device);
    decoded = undefined;
    return codec.model;
  },
  async decode(data) {
    decoded = await codec.decode(data);
    const { width, height, quality, tiles } = decoded.parsed;
    return { width, height, quality, tiles: tiles.length, seconds: decoded.seconds };
  },
  async synthesize(beta) {
    const start = performance.now(), pixels = await codec.synthesize(decoded, beta);
    return { pixels, seconds: (performance.now() - start) / 1000 };
  },
  async encode({ pixels, width, height, quality }) {
    const { data, seconds } = await codec.encode(pixels, width, height, quality);
    return { data, seconds };
  },
};

let last = Promise.resolve();
onmessage = ({ data: { id, command, argument } }) => {
  last = last.then(async () => {
    try {
      const result = await commands[command](argument);
      postMessage({ id, result }, [result.pixels, result.data].filter(Boolean).map((array) => array.buffer));
    } catch (error) {
      postMessage({ id, error: error.message });
    }
  });
};
