"use strict";

const D = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

/* Elements: el("td", {class: "x", onclick: f}, child, "text", ...). */
function build(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter(child => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

/* Numbers. */
const MINUS = "\u2212";
const minus = text => text.replace("-", MINUS);
const fixed = (value, digits) => minus(value.toFixed(digits));
const signed = (value, digits) => (value > 0 ? "+" : "") + fixed(value, digits);
const percent = value => signed(value, 1) + " %";
const isRatio = title => title.startsWith("ms-ssim") || title.startsWith("lpips");
const score = (value, title) => value === null || value === undefined ? "–" : fixed(value, isRatio(title) ? 4 : 2);
const unit = metric => metric.title.startsWith("psnr") || metric.decibels ? "dB" : metric.title.startsWith("lpips") ? "" : "%";
/* The scale of plots and comparisons: MS-SSIM in dB. */
function onScale(value, metric) {
  if (value === null || value === undefined) return null;
  if (!metric.decibels) return value;
  return -10 * Math.log10(Math.max(1 - value, 1e-10));
}
/* Scores that are better when lower are negated for comparison. */
const offScale = (value, metric) => metric.lower_is_better ? -value : value;

/* Marker shapes distinguish the curves without color. */
const SHAPES = [null, [[-1, -1], [1, -1], [1, 1], [-1, 1]], [[0, -1.25], [1.2, 0.95], [-1.2, 0.95]], [[0, -1.4], [1.4, 0], [0, 1.4], [-1.4, 0]],
  [[0, 1.25], [1.2, -0.95], [-1.2, -0.95]], [[-.4, -1.3], [.4, -1.3], [.4, -.4], [1.3, -.4], [1.3, .4], [.4, .4], [.4, 1.3], [-.4, 1.3], [-.4, .4],
  [-1.3, .4], [-1.3, -.4], [-.4, -.4]]];
function marker(index, x, y, r, fill) {
  const shape = SHAPES[index % SHAPES.length];
  return shape ? svg("polygon", {points: shape.map(([u, v]) => `${x + r * u},${y + r * v}`).join(" "), fill})
    : svg("circle", {cx: x, cy: y, r, fill});
}
const color = index => D.colors[index % D.colors.length];
const dashes = curve => curve.preference === null ? "6 4" : null;

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map(f => f * power).find(s => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

/* A plot of one metric; redraws when curves are hidden or the rate axis changes. */
function plot(section, metric, state) {
  const W = 520, H = 340, left = 46, right = 12, top = 10, bottom = 38;
  const tip = el("div", {class: "tip", hidden: true});
  const image = svg("svg", {viewBox: `0 0 ${W} ${H}`, tabindex: 0, role: "img",
    "aria-label": `${metric.title} over bits per pixel; arrow keys read the points`});
  const figure = el("figure", {class: "plot", "data-metric": metric.title},
    el("figcaption", {}, metric.title + (metric.decibels ? " (dB)" : metric.lower_is_better ? " (lower is better)" : "")), image, tip);
  let points = [], chosen = null;

  function draw() {
    image.replaceChildren();
    points = [];
    const shown = section.curves.map((curve, index) => ({curve, index,
      rows: curve.settings.map((setting, i) => ({setting, index, curve, bpp: curve.results.bpp[i],
        raw: (curve.results[metric.title] || [])[i], y: onScale((curve.results[metric.title] || [])[i], metric)}))
        .filter(row => row.y !== null)})).filter(c => !state.hidden.has(c.curve.name) && c.rows.length);
    const all = shown.flatMap(c => c.rows);
    if (!all.length) { image.append(svg("text", {x: W / 2, y: H / 2, "text-anchor": "middle"}, "nothing to show")); return; }
    const original = section.originals[metric.title];
    const line = original !== undefined && original !== null && !metric.title.startsWith("agreement") ? original : null;
    const ys = all.map(p => p.y).concat(line === null ? [] : [line]), xs = all.map(p => p.bpp);
    const pad = 0.06 * (Math.max(...ys) - Math.min(...ys) || 1);
    const y0 = Math.min(...ys) - pad, y1 = Math.max(...ys) + pad;
    const x0 = state.log ? Math.min(...xs) / 1.1 : 0, x1 = Math.max(...xs) * (state.log ? 1.1 : 1.04);
    const X = v => left + (W - left - right) * (state.log ? Math.log(v / x0) / Math.log(x1 / x0) : (v - x0) / (x1 - x0));
    const Y = v => H - bottom - (H - top - bottom) * (v - y0) / (y1 - y0);
    for (const t of ticks(y0, y1, 6)) image.append(
      svg("line", {class: "grid", x1: left, x2: W - right, y1: Y(t), y2: Y(t)}),
      svg("text", {x: left - 6, y: Y(t) + 4, "text-anchor": "end"}, minus(String(t))));
    const rates = state.log ? [.02, .05, .1, .2, .3, .5, .7, 1, 1.5, 2, 3, 5, 8].filter(t => t >= x0 && t <= x1) : ticks(x0, x1, 7);
    for (const t of rates) image.append(
      svg("line", {class: "grid", x1: X(t), x2: X(t), y1: top, y2: H - bottom}),
      svg("text", {x: X(t), y: H - bottom + 16, "text-anchor": "middle"}, String(t)));
    image.append(svg("line", {class: "axis", x1: left, x2: W - right, y1: H - bottom, y2: H - bottom}),
      svg("text", {x: (left + W - right) / 2, y: H - 5, "text-anchor": "middle"}, "bits per pixel"));
    if (line !== null) image.append(svg("line", {class: "original", x1: left, x2: W - right, y1: Y(line), y2: Y(line)}),
      svg("text", {x: W - right - 4, y: Y(line) - 5, "text-anchor": "end"}, `original ${score(line, metric.title)}`));
    for (const {curve, index, rows} of shown) {
      image.append(svg("polyline", {points: rows.map(p => `${X(p.bpp)},${Y(p.y)}`).join(" "), fill: "none", stroke: color(index),
        "stroke-width": curve.preference === null ? 1.5 : 2.4, "stroke-dasharray": dashes(curve)}));
      for (const row of rows) {
        row.px = X(row.bpp); row.py = Y(row.y);
        image.append(marker(index, row.px, row.py, 4, color(index)));
        points.push(row);
      }
    }
    image.append(svg("circle", {class: "ring", r: 8, fill: "none", stroke: "currentColor", "stroke-width": 1.5, visibility: "hidden"}));
  }

  function show(point) {
    chosen = point;
    const ring = image.querySelector(".ring");
    if (!ring) return;
    ring.setAttribute("visibility", point ? "visible" : "hidden");
    tip.hidden = !point;
    if (!point) return;
    ring.setAttribute("cx", point.px); ring.setAttribute("cy", point.py);
    const value = metric.decibels ? `${score(point.raw, metric.title)} = ${fixed(point.y, 2)} dB`
      : `${score(point.raw, metric.title)} ${unit(metric)}`;
    tip.replaceChildren(el("b", {}, point.curve.name), el("br"), `${point.bpp.toFixed(4)} bpp`, el("br"), value, el("br"),
      el("small", {}, `setting ${+point.setting.toFixed(4)}`));
    const scale = image.getBoundingClientRect().width / W;
    const x = point.px * scale + 10;
    tip.style.left = Math.min(x + 14, figure.clientWidth - tip.offsetWidth - 6) + "px";
    tip.style.top = Math.max(0, figure.querySelector("figcaption").offsetHeight + point.py * scale - tip.offsetHeight - 6) + "px";
  }

  image.addEventListener("pointermove", event => {
    const box = image.getBoundingClientRect(), scale = W / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = null, distance = 60 ** 2;
    for (const p of points) {
      const d = (p.px - x) ** 2 + (p.py - y) ** 2;
      if (d < distance) { best = p; distance = d; }
    }
    show(best);
  });
  image.addEventListener("pointerleave", () => show(null));
  image.addEventListener("blur", () => show(null));
  image.addEventListener("keydown", event => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key], jump = {ArrowUp: -1, ArrowDown: 1}[event.key];
    if (event.key === "Escape") return show(null);
    if ((!step && !jump) || !points.length) return;
    event.preventDefault();
    if (!chosen || !points.includes(chosen)) return show(points[0]);
    if (step) {
      const same = points.filter(p => p.index === chosen.index);
      return show(same[Math.max(0, Math.min(same.length - 1, same.indexOf(chosen) + step))]);
    }
    const curves = [...new Set(points.map(p => p.index))];
    const next = curves[(curves.indexOf(chosen.index) + jump + curves.length) % curves.length];
    const near = points.filter(p => p.index === next);
    show(near.reduce((a, b) => Math.abs(b.bpp - chosen.bpp) < Math.abs(a.bpp - chosen.bpp) ? b : a));
  });
  draw();
  return {figure, draw: () => { show(null); draw(); }};
}

function plots(section) {
  const state = {hidden: new Set(), log: false};
  const drawn = [...section.metrics].sort((a, b) => (b.method === "isotonic") - (a.method === "isotonic"))
    .map(metric => plot(section, metric, state));
  const redraw = () => drawn.forEach(p => p.draw());
  const legend = el("ul", {class: "legend"}, section.curves.map((curve, index) => {
    const sample = svg("svg", {viewBox: "0 0 26 12", "aria-hidden": true},
      svg("line", {x1: 0, x2: 26, y1: 6, y2: 6, stroke: color(index), "stroke-width": 2, "stroke-dasharray": dashes(curve)}),
      marker(index, 13, 6, 4, color(index)));
    const button = el("button", {"aria-pressed": "true", title: "show or hide", onclick: () => {
      const hide = !state.hidden.delete(curve.name);
      if (hide) state.hidden.add(curve.name);
      button.setAttribute("aria-pressed", String(!hide));
      redraw();
    }}, sample, curve.name);
    return el("li", {}, button);
  }));
  const log = el("button", {class: "log", "aria-pressed": "false", onclick: () => {
    state.log = !state.log;
    log.setAttribute("aria-pressed", String(state.log));
    redraw();
  }}, "logarithmic rate");
  legend.append(el("li", {}, log));
  return [legend, el("div", {class: "plots"}, drawn.map(p => p.figure))];
}

/* Bjøntegaard deltas. */
function deltaCell(delta, metric, kind) {
  if (delta.value === null) return el("td", {class: "faint"}, delta.note);
  const unsure = delta.interval ? delta.interval[0] <= 0 && delta.interval[1] >= 0 : Math.abs(delta.value) < 0.05;
  const good = kind === "rate" ? delta.value < 0 : delta.value > 0;
  const value = kind === "rate" ? percent(delta.value) : `${signed(delta.value, 2)} ${unit(metric)}`;
  const digits = kind === "score" ? 2 : isRatio(metric.title) && !metric.decibels ? 3 : 1;
  let ends = [delta.low, delta.high];
  if (kind === "rate") ends = ends.map(v => offScale(v, metric)).sort((a, b) => a - b);
  const range = ends.map(v => fixed(v, digits)).join(" … ") + (kind === "rate" ? ` ${unit(metric)}` : " bpp");
  return el("td", {class: unsure ? null : good ? "good" : "bad",
    title: `over ${range}, ${Math.round(100 * delta.share)} % of the range of both curves` + (delta.note ? `; ${delta.note}` : "")},
    value + (delta.note.includes("narrow overlap") ? " †" : "") + (delta.note.includes("rough") ? " ‡" : ""),
    delta.interval ? el("small", {}, `95 %: ${signed(delta.interval[0], 0)} … ${signed(delta.interval[1], 0)}`) : null,
    el("small", {}, range));
}

function deltas(section) {
  const metric = el("select", {"aria-label": "score"}, section.metrics.map((m, i) => el("option", {value: i}, m.title)));
  const kind = el("select", {"aria-label": "kind"}, el("option", {value: "rate"}, "rate at equal score (BD-rate)"),
    el("option", {value: "score"}, "score at equal rate"));
  const place = el("div", {class: "scroll"});
  const method = el("p", {class: "faint"});
  function draw() {
    const m = section.metrics[metric.value], names = section.curves.map(c => c.name);
    const rows = new Map(section.deltas.filter(d => d.metric === m.title).map(d => [d.test + "\u0000" + d.reference, d[kind.value]]));
    place.replaceChildren(el("table", {class: "deltas"},
      el("thead", {}, el("tr", {}, el("th", {}, kind.value === "rate" ? "rate needed by ↓ against →" : "score of ↓ above →"),
        names.map(n => el("th", {scope: "col"}, n)))),
      el("tbody", {}, names.map(test => el("tr", {}, el("th", {scope: "row"}, test), names.map(reference => {
        const delta = rows.get(test + "\u0000" + reference);
        return delta ? deltaCell(delta, m, kind.value) : el("td", {class: "faint"}, test === reference ? "" : "–");
      }))))));
    method.textContent = m.method === "pchip"
      ? "Points are joined by monotone cubics (pchip) in log rate. The small numbers are the range that both curves reach, over which the mean is taken. Nothing is extrapolated."
      : "Accuracy is noisy: curves are made monotone by least squares and joined by straight lines in log rate. The small numbers are a 95 % bootstrap interval over images (for scores that are means over images) and the range that both curves reach. Nothing is extrapolated.";
    method.textContent += " † marks an overlap of less than a quarter of the range of the two curves, ‡ an interval over fewer than 10 images, which is too narrow.";
  }
  metric.addEventListener("change", draw);
  kind.addEventListener("change", draw);
  draw();
  return [el("h3", {}, "Bjøntegaard deltas"), el("div", {class: "controls"}, el("label", {}, "score", metric), el("label", {}, "compare", kind)),
    place, method];
}

/* The first table: ugicm against each baseline, at equal score. */
function summary(section) {
  const conditioned = section.curves.filter(c => c.preference !== null), baselines = section.curves.filter(c => c.preference === null);
  if (!conditioned.length || !baselines.length) return null;
  const human = conditioned[0], machine = conditioned[conditioned.length - 1];
  const columns = [];
  for (const m of section.metrics) {
    if (m.title === "psnr-rgb" || m.title === "ms-ssim-rgb" || m.title === "lpips") columns.push([m, human]);
    else if (/^(top-1|mask AP|box AP|mAP|mIoU) \(/.test(m.title)) columns.push([m, machine]);
  }
  return [el("h3", {}, "Bytes needed for the same score"), el("div", {class: "scroll"}, el("table", {class: "summary"},
    el("thead", {}, el("tr", {}, el("th", {}, "against"), columns.map(([m, c]) => el("th", {}, m.title, el("small", {}, c.name))))),
    el("tbody", {}, baselines.map(baseline => el("tr", {}, el("th", {scope: "row"}, baseline.name), columns.map(([m, c]) => {
      const row = section.deltas.find(d => d.metric === m.title && d.test === c.name && d.reference === baseline.name);
      return row ? deltaCell(row.rate, m, "rate") : el("td", {}, "–");
    }))))))];
}

function pointsTable(section) {
  const titles = ["bpp", ...new Set(section.curves.flatMap(c => Object.keys(c.results)))].filter((t, i, all) => all.indexOf(t) === i
    && section.curves.some(c => (c.results[t] || []).some(v => v !== null)));
  return el("details", {}, el("summary", {}, "All rate points"), el("div", {class: "scroll"}, el("table", {},
    el("thead", {}, el("tr", {}, ["curve", "setting", ...titles].map(t => el("th", {}, t)))),
    el("tbody", {}, section.curves.flatMap(c => c.settings.map((setting, i) => el("tr", {}, el("td", {}, c.name),
      el("td", {}, String(+setting.toFixed(4))),
      titles.map(t => el("td", {}, t === "bpp" ? c.results.bpp[i].toFixed(4) : score((c.results[t] || [])[i], t))))))))));
}

/* Original | human | chosen preference | baseline, with one magnifier over all four. */
function viewer(data, number) {
  const state = {image: 0, point: 0, preference: 0, baseline: 0};
  const select = (label, name, options, onchange) => {
    const node = el("select", {class: name, onchange: () => onchange(+node.value)}, options.map((o, i) => el("option", {value: i}, o)));
    return [node, el("label", {}, label, node)];
  };
  const preferences = data.images[0].points[0].decodes.map(d => d.preference);
  state.preference = preferences.length - 1;
  const baselines = data.images[0].points[0].baselines.map(b => b.codec);
  const [, imageControl] = select("image", "pick", data.images.map(p => p.name), v => { state.image = v; draw(); });
  const [, pointControl] = select("quality", "point", data.images[0].points.map(p => String(p.setting)), v => { state.point = v; draw(); });
  const [baselineNode, baselineControl] = select("compare with", "baseline", baselines, v => { state.baseline = v; draw(); });
  if (!baselines.length) baselineControl.hidden = true;
  else baselineNode.value = state.baseline = baselines.length - 1;
  const shownPreference = el("output", {}, "");
  const slider = el("input", {type: "range", class: "preference", min: 0, max: preferences.length - 1, step: 1, value: state.preference,
    "aria-label": "preference", oninput: () => { state.preference = +slider.value; draw(); }});
  const zoom = el("input", {type: "range", class: "zoom", min: 1, max: 8, step: 1, value: 3, "aria-label": "magnification"});
  const panes = ["original", "human", "preference", "baseline"].map(kind => {
    const image = el("img", {alt: kind, draggable: "false"}), lens = el("div", {class: "lens"});
    const frame = el("div", {class: "frame"}, image, lens), caption = el("figcaption", {});
    return {kind, image, lens, frame, caption, figure: el("figure", {class: `pane ${kind}`}, frame, caption)};
  });

  const named = p => p === 0 ? "0 (human)" : p === 1 ? "1 (machine)" : String(p);

  function fill(pane, title, rate, entry) {
    pane.image.src = entry.src;
    pane.lens.style.backgroundImage = `url("${entry.src}")`;
    pane.caption.replaceChildren(el("b", {}, title), rate,
      entry.psnr ? ` · ${entry.psnr.toFixed(2)} dB` : "",
      ...entry.predictions.map(p => el("div", {class: p.correct ? "right" : "wrong", title: p.classifier}, p.label, el("small", {}, ` ${p.classifier}`))));
  }

  function draw() {
    const image = data.images[state.image], point = image.points[state.point];
    const rate = `${point.bytes.toLocaleString("en")} bytes, ${point.bpp.toFixed(3)} bpp`;
    const chosen = point.decodes[state.preference], baseline = point.baselines[state.baseline];
    slider.setAttribute("aria-valuetext", named(chosen.preference));
    shownPreference.textContent = named(chosen.preference);
    fill(panes[0], "original", `${image.size[0]}×${image.size[1]}`, image.original);
    fill(panes[1], `preference ${named(point.decodes[0].preference)}`, rate, point.decodes[0]);
    fill(panes[2], `preference ${named(chosen.preference)}`, "same file", chosen);
    panes[3].figure.hidden = !baseline;
    if (baseline) fill(panes[3], `${baseline.codec} at nearest size`, `${baseline.bytes.toLocaleString("en")} bytes, ${baseline.bpp.toFixed(3)} bpp`, baseline);
  }

  /* Every lens shows the same place of its image, enlarged. */
  function magnify(event, pane) {
    const box = pane.image.getBoundingClientRect();
    const u = (event.clientX - box.left) / box.width, v = (event.clientY - box.top) / box.height;
    if (u < 0 || v < 0 || u > 1 || v > 1) return hide();
    for (const p of panes) {
      if (!p.image.naturalWidth || p.figure.hidden) continue;
      const side = Math.min(p.frame.clientWidth * 0.5, 220), factor = +zoom.value;
      const width = p.image.naturalWidth * factor, height = p.image.naturalHeight * factor;
      Object.assign(p.lens.style, {
        display: "block", width: side + "px", height: side + "px",
        left: u * p.frame.clientWidth - side / 2 + "px", top: v * p.frame.clientHeight - side / 2 + "px",
        backgroundSize: `${width}px ${height}px`,
        backgroundPosition: `${side / 2 - u * width}px ${side / 2 - v * height}px`,
      });
    }
  }
  const hide = () => panes.forEach(p => { p.lens.style.display = "none"; });
  for (const pane of panes) {
    pane.frame.addEventListener("pointermove", event => magnify(event, pane));
    pane.frame.addEventListener("pointerdown", event => magnify(event, pane));
    pane.frame.addEventListener("pointerleave", hide);
  }
  draw();
  return [el("h3", {}, "Side by side"), el("div", {class: "viewer", id: `viewer-${number}`},
    el("div", {class: "controls"}, imageControl, pointControl, baselineControl,
      el("label", {}, el("span", {}, "preference: ", shownPreference), slider), el("label", {}, "magnifier", zoom)),
    el("div", {class: "panes"}, panes.map(p => p.figure)),
    el("p", {class: "faint"}, "Point at an image to magnify the same place in all images. All steps of the slider are decoded from the same file."))];
}

function environment() {
  const m = D.meta;
  return [el("h2", {id: "how"}, "How this was measured"),
    el("p", {}, "bpp counts the whole file, headers included, per pixel of the image. No file holds color profiles or other metadata. Averages are over images, every image counting the same whatever its size. The settings of the baseline codecs were chosen on four images to cover the range of rates of ugicm, and then measured on all images."),
    D.notes.length ? el("ul", {class: "notes"}, D.notes.map(n => el("li", {}, n))) : null,
    el("details", {}, el("summary", {}, "Codecs, networks, machine, command"),
      el("pre", {}, m.command),
      el("pre", {}, JSON.stringify({...m, command: undefined}, null, 1)),
      D.sections.map(s => el("pre", {}, `${s.name}: ${s.images} images, digest ${s.digest}\n`
        + s.curves.map(c => `${c.name}: ${c.identity}\n`).join("") + s.evaluators.map(e => `${e.name}: ${e.identity}\n`).join("")))),
  ];
}

document.getElementById("lead").append(
  `${D.sections.map(s => `${s.images} images of ${s.name}`).join(", ")}; measured on ${D.meta.time.slice(0, 10)}`
  + ` with ugicm ${D.meta.ugicm}` + (D.meta.revision ? ` (${D.meta.revision})` : "") + ".");
document.getElementById("contents").append(...(D.home ? [el("a", {href: D.home, id: "home"}, "home")] : []), ...D.sections.map((s, i) => el("a", {href: `#section-${i}`}, s.name)), el("a", {href: "#how"}, "how this was measured"));
document.getElementById("sections").replaceChildren(...D.sections.flatMap((section, i) => {
  const originals = Object.entries(section.originals).filter(([t, v]) => v !== null && !t.startsWith("agreement") && section.metrics.some(m => m.title === t));
  return [el("section", {id: `section-${i}`}, el("h2", {}, section.name),
    el("p", {class: "faint"}, `${section.images} images.`
      + (originals.length ? ` Originals: ${originals.map(([t, v]) => `${t} ${fixed(v, 1)} %`).join(", ")}.` : "")),
    summary(section), el("h3", {}, "Curves"), plots(section), D.viewers[i] ? viewer(D.viewers[i], i) : null, deltas(section), pointsTable(section))];
}), el("section", {}, environment()));
