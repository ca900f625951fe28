// The page: files in, canvases and facts out. All computation is in worker.js.

const element = (id) => document.getElementById(id);
const GAIN = 8; // of the difference image

/** The worker of a device, as functions that return promises. */
class Thread {
  #worker = new Worker("worker.js", { type: "module" });
  #waiting = new Map();
  #count = 0;

  constructor() {
    this.#worker.onmessage = ({ data: { id, result, error } }) => {
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error === undefined) resolve(result);
      else reject(new Error(error));
    };
  }

  call(command, argument) {
    return new Promise((resolve, reject) => {
      this.#waiting.set(++this.#count, { resolve, reject });
      this.#worker.postMessage({ id: this.#count, command, argument });
    });
  }
}

const worker = new Thread();
let shown; // what the page shows: {data, header, human}

/** Show a message. `state` is "busy", "ready" or "error". */
function status(text, state) {
  element("status").textContent = text;
  element("status").dataset.state = state;
}

/** Run an action and show what goes wrong. One at a time: controls are disabled meanwhile. */
async function during(text, action) {
  status(text, "busy");
  const controls = document.querySelectorAll("form input, form select");
  controls.forEach((control) => (control.disabled = true));
  try {
    await action();
    status("", "ready");
  } catch (error) {
    status(error.message, "error");
  } finally {
    controls.forEach((control) => (control.disabled = false));
  }
}

function draw(id, pixels, { width, height }) {
  const canvas = element(id);
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
}

/** Return the image of amplified differences around gray, and the largest and the mean difference in levels. */
function difference(a, b) {
  const pixels = new Uint8ClampedArray(a.length).fill(255);
  let largest = 0, sum = 0;
  for (let n = 0; n < a.length; n++) {
    if (n % 4 === 3) continue;
    const apart = b[n] - a[n];
    largest = Math.max(largest, Math.abs(apart));
    sum += Math.abs(apart);
    pixels[n] = 128 + GAIN * apart;
  }
  return { pixels, largest, mean: sum / (0.75 * a.length) };
}

function facts(rows) {
  element("facts").replaceChildren(...rows.map(([name, value]) => {
    const row = document.createElement("tr"), head = document.createElement("th"), cell = document.createElement("td");
    head.textContent = name;
    cell.textContent = value;
    row.append(head, cell);
    return row;
  }));
}

const seconds = (value) => `${value.toFixed(2)} s`;

async function show(data) {
  const header = await worker.call("decode", data.slice());
  const human = await worker.call("synthesize", 0);
  shown = { data, header, human };
  document.querySelector("main").hidden = false;
  element("download").hidden = true;
  draw("human", human.pixels, header);
  await showPreference();
}

let wanted = null, busy = false;

/** Synthesize for the position of the slider. While that is in progress, only the latest position is remembered. */
async function showPreference() {
  wanted = element("preference").valueAsNumber;
  if (busy) return;
  busy = true;
  try {
    while (wanted !== null) {
      const beta = wanted, { header, human, data } = shown;
      wanted = null;
      const image = beta === 0 ? human : await worker.call("synthesize", beta);
      draw("image", image.pixels, header);
      const apart = difference(human.pixels, image.pixels);
      draw("difference", apart.pixels, header);
      element("preference-value").textContent = beta.toFixed(2);
      element("image-caption").textContent = `preference ${beta.toFixed(2)}`;
      element("difference-caption").textContent =
        `difference, ${GAIN} times: mean ${apart.mean.toFixed(2)}, largest ${apart.largest} levels`;
      facts([
        ["size", `${header.width} × ${header.height} pixels`],
        ["quality", header.quality.toFixed(3)],
        ["file", `${data.length.toLocaleString("en")} bytes`],
        ["rate", `${((8 * data.length) / (header.width * header.height)).toFixed(3)} bits per pixel`],
        ["tiles", header.tiles],
        ["entropy decoding", seconds(header.seconds.symbols)],
        ["means", seconds(header.seconds.means)],
        ["synthesis", seconds(image.seconds)],
      ]);
    }
  } finally {
    busy = false;
  }
}

async function encode(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "default" });
  const { width, height } = bitmap, canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
  context.fillStyle = "white"; // under transparent images
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  const { data: pixels } = context.getImageData(0, 0, width, height);
  const quality = element("quality").valueAsNumber;
  const encoded = await worker.call("encode", { pixels, width, height, quality });
  await show(encoded.data);
  offer(element("download"), new Blob([encoded.data]), file.name.replace(/\.[^.]*$/, "") + ".ugic");
  element("download").textContent = `Download ${element("download").download}, encoded in ${seconds(encoded.seconds)}`;
}

function offer(link, blob, name) {
  URL.revokeObjectURL(link.href);
  Object.assign(link, { href: URL.createObjectURL(blob), download: name, hidden: false });
}

async function open(file) {
  if (file.type.startsWith("image/")) return during(`Encoding ${file.name} …`, () => encode(file));
  return during(`Decoding ${file.name} …`, async () => show(new Uint8Array(await file.arrayBuffer())));
}

async function openSample(name) {
  await during(`Decoding ${name} …`, async () => {
    const response = await fetch(`samples/${name}`);
    await show(new Uint8Array(await response.arrayBuffer()));
  });
}

function listen() {
  element("file").onchange = ({ target }) => target.files.length && open(target.files[0]);
  element("sample").onchange = ({ target }) => target.value && openSample(target.value);
  element("preference").oninput = () => showPreference().catch((error) => status(error.message, "error"));
  element("quality").oninput = ({ target }) => (element("quality-value").textContent = target.valueAsNumber.toFixed(2));
  element("webgpu").onchange = ({ target }) =>
    during("Loading the model …", () => worker.call("load", target.checked ? "webgpu" : "wasm"));
  element("png").onclick = () => element("image").toBlob((blob) => {
    const link = document.createElement("a");
    offer(link, blob, "image.png");
    link.click();
  });
  ondragover = (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  };
  ondragleave = () => document.body.classList.remove("dropping");
  ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
  };
}

await during("Loading the model …", async () => {
  await worker.call("load", "wasm");
  const samples = await (await fetch("samples/index.json")).json();
  element("sample").append(...samples.map((name) => new Option(name)));
  element("webgpu-label").hidden = !(await navigator.gpu?.requestAdapter());
  listen();
});
