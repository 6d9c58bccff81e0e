"use strict";
// Images with zoom, pan, a divider between two of them, and the value under the pointer. The data are made by
// images.py, the elements by page.html.jinja. All panes of a viewer show the same part of their images.

const COLORS = {
  gray: ["#000000", "#ffffff"],
  viridis: ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"],
  diverging: ["#123a6b", "#3f7fb8", "#a9cbe3", "#f5f5f3", "#ecb49a", "#c65a43", "#7a1420"],
  phase: ["#e2d9e2", "#c4ced4", "#95b5c7", "#7297c1", "#6276ba", "#5e51ad", "#592a8f", "#45135c", "#2f1436", "#4a1342",
    "#741e4f", "#983550", "#b25652", "#c27c63", "#cca389", "#d8c7be", "#e2d9e2"],
};
const MOST_ZOOM = 64;

/** Red, green and blue at a part, 0 to 1, of a row of colors. */
function colorAt(stops, part) {
  const place = Math.min(Math.max(part, 0), 1) * (stops.length - 1);
  const first = Math.min(Math.floor(place), stops.length - 2);
  const channel = (stop, k) => parseInt(stops[stop].slice(1 + 2 * k, 3 + 2 * k), 16);
  return [0, 1, 2].map((k) => channel(first, k) + (place - first) * (channel(first + 1, k) - channel(first, k)));
}

async function inflated(text) {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

const numbers = async (text) => (text ? new Float32Array(await inflated(text)) : null);

/** Codes of an image, which come as all low bytes before all high bytes, and how to read them. */
async function unpacked(image) {
  const raw = new Uint8Array(await inflated(image.codes));
  const [height, width] = image.shape;
  const codes = new Uint16Array(height * width);
  codes.forEach((_, i) => (codes[i] = raw[i] | (raw[i + codes.length] << 8)));
  return { ...image, codes, height, width };
}

function valueOf(image, code) {
  const kept = image.low + image.step * (code - 1);
  return image.squared ? kept * kept : kept;
}

const short = (value) => (Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(1) : String(+value.toPrecision(3)));

/** The number under the pointer, with as many digits as its step is worth. */
function written(image, code) {
  if (!code) return "unknown";
  const value = valueOf(image, code);
  const last = (1 << image.bits) - 1;
  const beyond = !image.clipped ? "" : code === 1 ? "≤ " : code === last ? "≥ " : "";
  const step = image.squared ? 2 * Math.sqrt(value) * image.step : image.step;
  const digits = Math.max(0, Math.min(8, Math.ceil(-Math.log10(step || 1))));
  const size = Math.abs(value);
  return beyond + (size && (size >= 1e6 || size < 1e-4) ? value.toExponential(3) : value.toFixed(digits));
}

/** A canvas with an image in its colors, one pixel for each. */
function painted(image, quantity) {
  let [low, high] = quantity.limits;
  const scaled = quantity.intensity ? (v) => Math.log(Math.max(v, low) / low) / Math.log(high / low) : (v) => (v - low) / (high - low);
  const palette = new Uint32Array(1 << image.bits);
  for (let code = 1; code < palette.length; code++) {
    const [r, g, b] = colorAt(COLORS[quantity.colors], scaled(valueOf(image, code)));
    palette[code] = (255 << 24) | (Math.round(b) << 16) | (Math.round(g) << 8) | Math.round(r);
  }
  const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
  const pixels = new ImageData(image.width, image.height);
  const out = new Uint32Array(pixels.data.buffer);
  image.codes.forEach((code, i) => (out[i] = palette[code]));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function roundLength(meters) {
  const power = 10 ** Math.floor(Math.log10(meters));
  const length = [5, 2, 1].find((step) => step * power <= meters * 1.000001) * power;
  const [unit, size] = [["mm", 1e-3], ["µm", 1e-6], ["nm", 1e-9], ["pm", 1e-12]].find(([, s]) => length >= s * 0.999) || ["pm", 1e-12];
  return [length, `${+(length / size).toPrecision(3)} ${unit}`];
}

class Viewer {
  constructor(root) {
    this.root = root;
    this.zoom = 1;
    this.divider = 0.5;
    this.cursor = null;
    this.drawing = false;
  }

  async start() {
    this.data = JSON.parse(this.root.querySelector("script").textContent);
    const data = this.data;
    this.images = await Promise.all(data.things.map((thing) => Promise.all(thing.images.map(unpacked))));
    if (data.points) {
      for (const name of ["at", "moved", "values", "rows"]) data.points[name] = await numbers(data.points[name]);
    }
    this.painted = new Map();
    const { width, height } = this.images[0][0];
    Object.assign(this, { width, height, center: [width / 2, height / 2] });
    this.panes = [...this.root.querySelectorAll("figure")].map((figure, i) => this.pane(figure, ...data.panes[i]));
    for (const element of this.root.querySelectorAll("[data-role]")) {
      element.addEventListener("input", () => this.chosen());
    }
    for (const button of this.root.querySelectorAll("[data-zoom]")) {
      button.addEventListener("click", () => this.zoomBy(+button.dataset.zoom, this.center));
    }
    this.readout = this.root.querySelector(".readout");
    this.chosen();
    this.root.dataset.ready = "true";
  }

  pane(figure, quantity, thing) {
    const canvas = figure.querySelector("canvas");
    canvas.style.aspectRatio = `${this.width} / ${this.height}`;
    const pane = { canvas, figure, quantity, thing };
    new ResizeObserver(() => this.redraw()).observe(canvas);
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("wheel", (event) => this.wheel(event, pane), { passive: false });
    canvas.addEventListener("pointerleave", () => this.pointers.size || this.point(null));
    for (const kind of ["down", "move", "up", "cancel"]) {
      canvas.addEventListener("pointer" + kind, (event) => this.pointer(kind, event, pane));
    }
    this.pointers = new Map();
    return pane;
  }

  value(role, otherwise) {
    const element = this.root.querySelector(`[data-role="${role}"]`);
    return element ? (element.type === "checkbox" ? element.checked : +element.value) : otherwise;
  }

  /** Take over what the reader chose. */
  chosen() {
    this.left = this.value("left", 0);
    this.right = this.value("right", null);
    this.divider = this.value("divider", 50) / 100;
    const quantity = this.value("quantity", 0);
    this.marks = this.data.points && (this.data.always_points || this.value("points", false));
    for (const pane of this.panes) {
      pane.shown = pane.quantity ?? quantity;
      const { limits, colors, unit } = this.data.quantities[pane.shown];
      const [low, bar, high, name] = pane.figure.querySelector(".scale").children;
      [low.textContent, high.textContent, name.textContent] = [...limits.map(short), unit];
      bar.style.background = `linear-gradient(to right, ${COLORS[colors].join(", ")})`;
    }
    this.redraw();
    this.point(this.cursor);
  }

  redraw() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      this.panes.forEach((pane) => this.draw(pane));
      Object.assign(this.root.dataset, { zoom: this.zoom, center: this.center.map((v) => v.toFixed(2)).join(), divider: this.divider });
    });
  }

  /** Pixels of the screen for one of the image, and where on the screen the image begins. */
  frame(pane) {
    const { clientWidth: w, clientHeight: h } = pane.canvas;
    const scale = (Math.min(w / this.width, h / this.height) || 1) * this.zoom;
    return { w, h, scale, x: w / 2 - this.center[0] * scale, y: h / 2 - this.center[1] * scale };
  }

  picture(thing, quantity) {
    const key = `${thing} ${quantity}`;
    if (!this.painted.has(key)) this.painted.set(key, painted(this.images[thing][quantity], this.data.quantities[quantity]));
    return this.painted.get(key);
  }

  draw(pane) {
    const { canvas } = pane;
    const frame = this.frame(pane);
    const dense = window.devicePixelRatio || 1;
    canvas.width = frame.w * dense;
    canvas.height = frame.h * dense;
    const context = canvas.getContext("2d");
    context.scale(dense, dense);
    context.imageSmoothingEnabled = false;
    const put = (thing, from, to) => {
      context.save();
      context.beginPath();
      context.rect(from, 0, to - from, frame.h);
      context.clip();
      context.drawImage(this.picture(thing, pane.shown), frame.x, frame.y, this.width * frame.scale, this.height * frame.scale);
      context.restore();
    };
    const parted = pane.thing === null && this.right !== null;
    const line = this.divider * frame.w;
    put(pane.thing ?? this.left, 0, parted ? line : frame.w);
    if (parted) {
      put(this.right, line, frame.w);
      context.fillStyle = "#ffffff";
      context.fillRect(line - 1.5, 0, 3, frame.h);
      context.fillStyle = "#c0392b";
      context.fillRect(line - 0.5, 0, 1, frame.h);
      this.name(context, this.data.things[this.left].name, line - 6, "right");
      this.name(context, this.data.things[this.right].name, line + 6, "left");
    }
    if (this.marks) this.drawPoints(context, frame);
    if (this.data.pixel_m) this.drawScale(context, frame);
    if (this.cursor) {
      const [x, y] = [frame.x + (this.cursor[0] + 0.5) * frame.scale, frame.y + (this.cursor[1] + 0.5) * frame.scale];
      for (const [width, color] of [[3, "#000000"], [1, "#ffffff"]]) {
        context.lineWidth = width;
        context.strokeStyle = color;
        context.stroke(new Path2D(`M${x - 9} ${y}h6M${x + 3} ${y}h6M${x} ${y - 9}v6M${x} ${y + 3}v6`));
      }
    }
  }

  plate(context, text, x, y, align, width) {
    context.font = "12px system-ui, sans-serif";
    context.textAlign = align;
    const half = width ?? context.measureText(text).width;
    const start = align === "right" ? x - half : align === "center" ? x - half / 2 : x;
    context.fillStyle = "rgba(0, 0, 0, 0.6)";
    context.fillRect(start - 4, y - 13, half + 8, 18);
    context.fillStyle = "#ffffff";
    context.fillText(text, x, y);
  }

  name(context, text, x, align) {
    this.plate(context, text, x, 19, align);
  }

  drawScale(context, { w, h, scale }) {
    const perPixel = scale / this.data.binned / this.data.pixel_m;
    const [length, text] = roundLength(w / 4 / perPixel);
    const long = length * perPixel;
    this.plate(context, text, 12 + long / 2, h - 17, "center", Math.max(long, context.measureText(text).width));
    context.fillStyle = "rgba(0, 0, 0, 0.6)";
    context.fillRect(8, h - 12, long + 8, 7);
    context.fillStyle = "#ffffff";
    context.fillRect(12, h - 11, long, 3);
  }

  /** Where a position of the canvas lies on the image. */
  onImage(array, i) {
    const { origin, binned } = this.data;
    return [1, 0].map((axis) => (array[2 * i + axis] - origin[axis] + 0.5) / binned);
  }

  drawPoints(context, frame) {
    const { at, moved, values, far } = this.data.points;
    const size = Math.max(1.4, Math.min(4, frame.scale / 2));
    const known = values ? values.filter((v) => !Number.isNaN(v)).sort() : [];
    const [low, high] = [known[0], known[Math.floor(0.98 * known.length)]];
    const place = (array, i) => {
      const [x, y] = this.onImage(array, i);
      return [frame.x + x * frame.scale, frame.y + y * frame.scale];
    };
    for (let i = 0; 2 * i < at.length; i++) {
      const [x, y] = place(at, i);
      const value = values && !Number.isNaN(values[i]) ? (values[i] - low) / (high - low || 1) : null;
      const outer = value === null ? size : size + 2;
      context.fillStyle = "rgba(0, 0, 0, 0.6)";
      context.fillRect(x - outer / 2 - 0.5, y - outer / 2 - 0.5, outer + 1, outer + 1);
      context.fillStyle = value === null ? "#ffffff" : `rgb(${colorAt(["#4fc3f7", "#ffd54f", "#e53935"], value).map(Math.round)})`;
      context.fillRect(x - outer / 2, y - outer / 2, outer, outer);
      if (moved) {
        const [toX, toY] = place(moved, i);
        context.strokeStyle = "#ff4fa3";
        context.lineWidth = 1.5;
        context.stroke(new Path2D(`M${x} ${y}L${toX} ${toY}`));
      }
    }
    context.strokeStyle = "#ff3b30";
    context.lineWidth = 2;
    for (const i of far) {
      const [x, y] = place(at, i);
      context.stroke(new Path2D(`M${x - 6} ${y - 6}h12v12h-12z`));
    }
  }

  inside([x, y]) {
    return x >= 0 && y >= 0 && x < this.width && y < this.height;
  }

  /** Put the cursor on a pixel, [column, row], or nowhere, and write what is there. */
  point(pixel) {
    this.cursor = pixel && this.inside(pixel) ? pixel : null;
    this.redraw();
    if (!this.cursor) return;
    const [x, y] = this.cursor;
    const { origin, binned, pixel_m: meters, quantities, things, points } = this.data;
    const onCanvas = [origin[0] + binned * (y + 0.5) - 0.5, origin[1] + binned * (x + 0.5) - 0.5];
    const lengths = meters ? ` (${onCanvas.map((v) => (v * meters * 1e6).toFixed(3)).join(", ")} µm)` : "";
    const parts = [document.createTextNode(`y ${onCanvas[0]}, x ${onCanvas[1]}${lengths}`)];
    const code = (image) => image.codes[y * this.width + x];
    const shown = [...new Set(this.panes.map((pane) => pane.shown))];
    const things_of = (q) => {
      const fixed = this.panes.filter((pane) => pane.shown === q && pane.thing !== null).map((pane) => pane.thing);
      const chosen = this.panes.some((pane) => pane.thing === null) ? [this.left, this.right] : [];
      return [...new Set([...chosen, ...fixed])].filter((thing) => thing !== null);
    };
    for (const q of shown) {
      const named = things.length > 1;
      const values = things_of(q).map((t) => `${named ? things[t].name + " " : ""}${written(this.images[t][q], code(this.images[t][q]))}`);
      const strong = document.createElement("b");
      strong.textContent = values.join(" | ");
      parts.push(` · ${quantities[q].name} `, strong, ` ${quantities[q].unit}`);
    }
    if (this.marks) parts.push(this.nearest(points));
    this.readout.replaceChildren(...parts);
  }

  nearest(points) {
    let [best, distance] = [-1, Infinity];
    for (let i = 0; 2 * i < points.at.length; i++) {
      const [x, y] = this.onImage(points.at, i);
      const apart = Math.hypot(x - this.cursor[0] - 0.5, y - this.cursor[1] - 0.5);
      if (apart < distance) [best, distance] = [i, apart];
    }
    const value = points.values?.[best];
    const says = value === undefined || Number.isNaN(value) ? "" : `, ${points.value_name} ${+value.toPrecision(3)}`;
    return ` · nearest pattern ${points.rows ? points.rows[best] : best} at y ${points.at[2 * best].toFixed(1)}, x ${points.at[2 * best + 1].toFixed(1)}${says}`;
  }

  zoomBy(factor, about) {
    const before = this.zoom;
    this.zoom = factor ? Math.min(Math.max(before * factor, 1), MOST_ZOOM) : 1;
    const part = before / this.zoom;
    this.moveTo(about.map((v, k) => v + (this.center[k] - v) * part));
    this.panes.forEach((pane) => pane.canvas.classList.toggle("zoomed", this.zoom > 1));
  }

  /** Show the part around a point; never beyond the image. */
  moveTo([x, y]) {
    const limit = (v, side) => Math.min(Math.max(v, side / 2 / this.zoom), side - side / 2 / this.zoom);
    this.center = [limit(x, this.width), limit(y, this.height)];
    this.redraw();
  }

  key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const middle = this.center.map(Math.floor);
    const factor = { "+": 2, "=": 2, "-": 0.5, 0: 0 }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey || (!step && factor === undefined)) return;
    event.preventDefault();
    if (factor !== undefined) return this.zoomBy(factor, this.cursor ?? this.center);
    const far = event.shiftKey ? 10 : 1;
    const from = this.cursor ?? middle;
    const to = from.map((v, k) => Math.min(Math.max(v + far * step[k], 0), (k ? this.height : this.width) - 1));
    this.point(to);
    const reach = [this.width, this.height].map((side) => side / 2 / this.zoom - 1);
    this.moveTo(this.center.map((v, k) => Math.min(Math.max(v, to[k] + 1 - reach[k]), to[k] + reach[k])));
  }

  /** The place in the image, in its pixels, under an event. */
  at(event, pane) {
    const box = pane.canvas.getBoundingClientRect();
    const frame = this.frame(pane);
    return [(event.clientX - box.left - frame.x) / frame.scale, (event.clientY - box.top - frame.y) / frame.scale];
  }

  /** The wheel scrolls the page; with a modifier, or over an image that has the focus, it zooms. */
  wheel(event, pane) {
    if (!event.ctrlKey && !event.metaKey && document.activeElement !== pane.canvas) return;
    event.preventDefault();
    this.zoomBy(2 ** (-event.deltaY / 200), this.at(event, pane));
  }

  pointer(kind, event, pane) {
    const place = this.at(event, pane);
    if (kind === "down") {
      pane.canvas.setPointerCapture(event.pointerId);
      const line = pane.canvas.getBoundingClientRect().left + this.divider * pane.canvas.clientWidth;
      this.dragsDivider = this.right !== null && pane.thing === null && Math.abs(event.clientX - line) < 8;
    }
    const before = this.pointers.get(event.pointerId);
    if (kind === "down" || (before && kind === "move")) this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (kind === "up" || kind === "cancel") this.pointers.delete(event.pointerId);
    if (kind === "move" && before) this.drag(event, before, pane);
    this.point(place.map(Math.floor));
  }

  drag(event, before, pane) {
    const other = [...this.pointers].find(([id]) => id !== event.pointerId);
    const now = [event.clientX, event.clientY];
    const { scale } = this.frame(pane);
    if (this.dragsDivider) {
      const box = pane.canvas.getBoundingClientRect();
      const slider = this.root.querySelector('[data-role="divider"]');
      slider.value = (100 * (event.clientX - box.left)) / box.width;
      this.chosen();
    } else if (other) {
      const apart = ([x, y]) => Math.hypot(x - other[1][0], y - other[1][1]);
      this.zoomBy(apart(now) / (apart(before) || 1), this.at(event, pane));
    } else {
      this.moveTo(this.center.map((v, k) => v - (now[k] - before[k]) / scale));
    }
  }
}

const theme = document.getElementById("theme");
function setTheme(name) {
  document.documentElement.style.colorScheme = name;
  theme.textContent = name === "dark" ? "light page" : "dark page";
}
setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
theme.addEventListener("click", () => setTheme(document.documentElement.style.colorScheme === "dark" ? "light" : "dark"));

for (const root of document.querySelectorAll(".viewer")) {
  new Viewer(root).start().catch((error) => {
    root.querySelector(".readout").textContent = `These images cannot be shown: ${error}`;
    console.error(error);
  });
}
