// The page: one input, both models, predictions and latencies side by side.

import { load, decode, json, selfCheck } from "./model.mjs";
import { compare, median, sorted } from "./timing.mjs";

const RUNS = 35, FEWEST = 15, LONGEST = 6000, TICK = 5; // pairs of runs, fewer of slow models; ms in all; ms that a clock tells apart
const at = (id) => document.getElementById(id);
const make = (tag, attributes = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children);
  return node;
};
const state = { sides: [], input: null };

const about = await json("page.json");
const told = await json("samples.json");
const samples = told.models["model.onnx"];

function say(text, bad = false) {
  at("status").textContent = text;
  at("status").classList.toggle("bad", bad);
}

const megabytes = (bytes) => (bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

// ---- the two sides

function side(name, what, base) {
  const load = make("div", { className: "load" }, make("i"));
  const result = make("div", { className: "result" });
  const node = make("div", { className: "side" }, make("h2", { textContent: name }), make("div", { className: "what", textContent: what }), load, result);
  at("pair").append(node);
  return { name, base, load, result, node, model: null };
}

async function open(provider) {
  document.body.dataset.state = "loading";
  at("go").disabled = true;
  for (const held of state.sides) {
    held.load.classList.remove("done");
    say(`Loading the ${held.name.toLowerCase()} model …`);
    held.model = await load({ base: held.base, provider, progress: (done, total) => (held.load.firstChild.style.width = `${(100 * done) / (total || done)}%`) });
    held.load.classList.add("done");
  }
  const pruned = state.sides.at(-1).model;
  const worst = await selfCheck(pruned, samples);
  const good = worst <= told.tolerance["model.onnx"];
  at("check").textContent = `Self-check: ${samples.length} samples ${good ? "give what they gave in Python" : "DIFFER from Python"}, ${worst ? `off by ${worst.toExponential(1)} of the outputs' scale` : "to the last bit"}.`;
  Object.assign(document.body.dataset, { state: "ready", worst: String(worst), good: String(good) });
  at("go").disabled = !state.input;
  say(pruned.why ? `Its tokenizer is not known to this page (${pruned.why}): the samples alone can run` : "Ready");
}

// ---- the input

function textInput() {
  const area = make("textarea", { id: "text", placeholder: "Type a sentence", spellcheck: false });
  area.addEventListener("input", () => {
    state.input = area.value.trim() || null;
    at("go").disabled = !state.input || document.body.dataset.state === "loading";
  });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.metaKey || event.ctrlKey)) run();
  });
  at("input").append(area);
  for (const sample of samples) {
    const text = sample.row?.text;
    if (text) at("samples").append(make("button", { textContent: text, title: text, onclick: () => { area.value = text; state.input = text; run(); } }));
  }
}

let preview = null;

function imageInput() {
  preview = make("canvas", { width: 1, height: 1, hidden: true });
  const file = make("input", { type: "file", accept: "image/*", hidden: true, id: "file" });
  const drop = make("label", { className: "drop", tabIndex: 0 }, preview, make("span", { textContent: "Drop an image here, or choose one" }), file);
  const take = async (image) => {
    const bitmap = await createImageBitmap(image);
    showPicture(bitmap, bitmap.width, bitmap.height);
    state.input = image;
    run();
  };
  file.addEventListener("change", () => file.files[0] && take(file.files[0]));
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  at("input").append(drop);
}

function showPicture(picture, width, height) {
  Object.assign(preview, { width, height, hidden: false });
  preview.getContext("2d").drawImage(picture, 0, 0);
}

/** Buttons for samples that are tensors: an image is drawn, anything else is numbered. */
function tensorSamples(recipe) {
  samples.forEach((sample, i) => {
    const button = make("button", { title: `sample ${i + 1}`, onclick: () => { state.input = sample; run(); } });
    const first = sample.feeds[recipe.input ?? ""];
    if (recipe.kind === "image" && first) {
      const picture = drawn(first, recipe);
      button.className = "picture";
      button.append(picture);
      button.addEventListener("click", () => showPicture(picture, picture.width, picture.height));
    } else button.textContent = `Sample ${i + 1}`;
    at("samples").append(button);
  });
}

function drawn(tensor, recipe) {
  const values = decode({ Tensor: class { constructor(_, data) { this.data = data; } } }, tensor).data;
  const [, a, b, c] = tensor.shape;
  const [channels, height, width] = recipe.channels_last ? [c, a, b] : [a, b, c];
  const canvas = make("canvas", { width, height });
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  let low = Infinity, high = -Infinity;
  for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
  for (let i = 0; i < width * height; i++) {
    for (let k = 0; k < 3; k++) {
      const channel = Math.min(k, channels - 1);
      const v = values[recipe.channels_last ? i * channels + channel : channel * width * height + i];
      image.data[4 * i + k] = (255 * (v - low)) / (high - low || 1);
    }
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// ---- running

async function run() {
  if (!state.input || document.body.dataset.state === "loading") return;
  document.body.dataset.state = "running";
  at("go").disabled = true;
  say("Running …");
  try {
    const sides = state.sides;
    const feeds = [], answers = [], times = sides.map(() => []);
    for (const { model } of sides) feeds.push(await feedsOf(model));
    for (let i = 0; i < sides.length; i++) answers.push(sides[i].model.read(await sides[i].model.run(feeds[i])));
    const timed = async (i, times) => {
      const start = performance.now();
      for (let k = 0; k < times; k++) await sides[i].model.run(feeds[i]);
      return (performance.now() - start) / times;
    };
    // Clocks of browsers are coarse: what takes less than they tell is run several times.
    const repeats = [];
    for (let i = 0; i < sides.length; i++) repeats.push(Math.ceil(TICK / Math.max(await timed(i, 3), 0.05)));
    const began = performance.now();
    for (let turn = 0; turn < RUNS && (turn < FEWEST || performance.now() - began < LONGEST); turn++) {
      // Turn by turn, so that a busy moment hits both.
      for (const i of turn % 2 ? sides.keys() : [...sides.keys()].reverse()) times[i].push(await timed(i, repeats[i]));
      if (turn % 4 === 0) await new Promise((resume) => setTimeout(resume));
    }
    sides.forEach((held, i) => show(held, answers[i], times[i]));
    verdict(answers, times);
    window.results = sides.map((held, i) => ({ name: held.name, ...answers[i], ms: median(times[i]) }));
    document.body.dataset.state = "done";
    say(`${times[0].length} timings each, turn by turn; medians`);
  } catch (error) {
    document.body.dataset.state = "error";
    say(error.message, true);
  }
  at("go").disabled = false;
}

async function feedsOf(model) {
  if (state.input.feeds) {
    return Object.fromEntries(Object.entries(state.input.feeds).map(([k, v]) => [k, decode(model.ort, v)]));
  }
  return model.feeds(state.input);
}

function show(held, answer, times) {
  const ordered = sorted(times), shown = median(times);
  held.result.replaceChildren(
    make("div", { className: "ms" }, shown.toFixed(shown < 10 ? 2 : 1), make("small", { textContent: " ms" })),
    make("div", { className: "note", textContent: `between ${ordered[0].toFixed(1)} and ${ordered.at(-1).toFixed(1)} ms` }),
    ...(answer.scores ? classes(answer) : vector(answer)),
  );
}

function classes({ scores, labels }) {
  const order = scores.map((score, i) => [score, i]).sort((a, b) => b[0] - a[0]).slice(0, 5);
  return order.map(([score, i], place) => {
    const filled = make("i");
    filled.style.width = `${100 * score}%`;
    return make("div", { className: place ? "class" : "class top" },
      make("span", { textContent: labels?.[i] ?? `class ${i}`, title: labels?.[i] ?? "" }),
      make("span", { className: "track" }, filled), make("span", { textContent: `${(100 * score).toFixed(1)}%` }));
  });
}

function vector({ values, shape }) {
  const head = values.slice(0, 6).map((v) => v.toFixed(3)).join("  ");
  return [make("div", { className: "note", textContent: `output [${shape.join(", ")}]` }), make("div", { className: "values", textContent: `${head} …` })];
}

const top = (scores) => scores.indexOf(Math.max(...scores));

function verdict(answers, times) {
  at("verdict").replaceChildren();
  if (answers.length < 2) return;
  const [dense, pruned] = answers, speed = compare(...times), sizes = state.sides.map((held) => held.model.bytes);
  const same = dense.scores
    ? top(dense.scores) === top(pruned.scores) ? "the same answer" : "another answer"
    : `a cosine of ${cosine(dense.values, pruned.values).toFixed(4)} between the outputs`;
  window.speed = speed;
  const said = speed.said[0].toUpperCase() + speed.said.slice(1);
  at("verdict").append(
    speed.clear ? make("em", { textContent: said, className: speed.ratio > 1 ? "" : "slower" }) : said,
    `, ${Math.round(100 * (1 - sizes[1] / sizes[0]))}% less to download, and ${same}.`,
  );
}

function cosine(a, b) {
  let dot = 0, x = 0, y = 0;
  for (let i = 0; i < Math.min(a.length, b.length); i++) { dot += a[i] * b[i]; x += a[i] ** 2; y += b[i] ** 2; }
  return dot / Math.sqrt(x * y || 1);
}

// ---- start

try {
  at("title").textContent = document.title = about.name;
  const last = about.models.at(-1), first = about.models[0];
  at("lead").textContent = about.models.length > 1
    ? `Pruned${last.numbers === "fp32" ? "" : " and quantised"} from ${megabytes(first.bytes)} to ${megabytes(last.bytes)}. See what that changes.`
    : `${megabytes(last.bytes)} to download.`;
  at("pair").classList.toggle("alone", about.models.length < 2);
  state.sides = about.models.map((m) => side(m.name, `${megabytes(m.bytes)}, ${m.numbers}`, m.base));
  const recipe = await json("preprocess.json");
  if (recipe.kind === "text") textInput();
  else if (recipe.kind === "image") imageInput();
  if (recipe.kind !== "text" || !samples.some((s) => s.row?.text)) tensorSamples(recipe);
  at("go").onclick = run;
  if (!navigator.gpu) at("provider").querySelector("[value=webgpu]").disabled = true;
  if (!navigator.ml) at("provider").querySelector("[value=webnn]").disabled = true;
  at("provider").onchange = (event) => open(event.target.value).catch((error) => {
    document.body.dataset.state = "error";
    say(`${event.target.value} does not run it: ${error.message}`, true);
  });
  await open("wasm");
} catch (error) {
  document.body.dataset.state = "error";
  say(error.message, true);
}
