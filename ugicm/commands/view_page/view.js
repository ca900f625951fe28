// Shows the images that the server decodes. The slider asks for one image at a time, the latest position wins.

const element = (id) => document.getElementById(id);
const files = await (await fetch("files.json")).json();
let wanted = null, loading = false;

const current = () => files[element("file").value];
const scrolled = [...document.querySelectorAll("figure div")];

/** Show /image/INDEX/NAME in a figure. */
async function show(figure, name) {
  const response = await fetch(`image/${element("file").value}/${name}`);
  if (!response.ok) throw new Error(await response.text());
  const image = element(figure).querySelector("img");
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(await response.blob());
  await image.decode();
}

/** Run an action, and show what goes wrong. */
async function during(action) {
  const status = element("status");
  status.className = "";
  status.textContent = "Decoding …";
  try {
    await action();
    status.textContent = "";
  } catch (error) {
    status.className = "error";
    status.textContent = error.message;
  }
}

async function showPreference() {
  wanted = element("preference").valueAsNumber;
  if (loading) return;
  loading = true;
  try {
    while (wanted !== null) {
      const shown = wanted;
      wanted = null;
      await show("between", shown);
      element("value").textContent = shown.toFixed(2);
      element("between").querySelector("figcaption").textContent = `preference ${shown.toFixed(2)}`;
    }
  } finally {
    loading = false;
  }
}

async function showFile() {
  const { width, height, bytes, bpp, quality, stored, original } = current();
  const rate = stored ? "stored without loss" : `quality ${quality.toFixed(3)}`;
  element("facts").textContent =
    `${width} × ${height} pixels, ${bytes.toLocaleString("en")} bytes, ${bpp.toFixed(3)} bits per pixel, ${rate}`;
  element("original").hidden = !original;
  zoom();
  if (original) await show("original", "original");
  await show("human", 0);
  await show("machine", 1);
  await showPreference();
}

function zoom() {
  const factor = Number(element("zoom").value); // NaN: fit
  document.querySelector("main").classList.toggle("zoomed", factor > 0);
  for (const image of document.querySelectorAll("img")) image.width = factor ? factor * current().width : current().width;
}

/** Scroll all images together. */
function follow({ target }) {
  for (const other of scrolled) {
    if (other.scrollLeft !== target.scrollLeft) other.scrollLeft = target.scrollLeft;
    if (other.scrollTop !== target.scrollTop) other.scrollTop = target.scrollTop;
  }
}

element("file").append(...files.map(({ name }, index) => new Option(name, index)));
element("file-label").hidden = files.length < 2;
element("file").onchange = () => during(showFile);
element("preference").oninput = () => during(showPreference);
element("zoom").onchange = zoom;
for (const one of scrolled) one.onscroll = follow;
await during(showFile);
