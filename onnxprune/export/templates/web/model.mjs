// Loads the model of this folder and runs it: text or an image in, scores out.
//
//   import { load } from "./model.mjs";
//   const model = await load();
//   const { scores } = await model.predict("a warm, funny film");        // or an <img>, a File, a canvas
//
// onnxruntime-web is taken from runtime/ or, after `npm install` in this folder, from node_modules/.

import { Tokenizer } from "./tokenizer.mjs";
import { pixels } from "./image.mjs";

const HERE = new URL("./", import.meta.url);
const PLACES = ["runtime/", "node_modules/onnxruntime-web/dist/"];
const BUNDLES = { wasm: "ort.wasm.min.mjs", webgpu: "ort.webgpu.min.mjs", webnn: "ort.webgpu.min.mjs" };
const ARRAYS = {
  float32: Float32Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array, int8: Int8Array,
  float64: Float64Array, bool: Uint8Array,
};

/** The module onnxruntime-web, with threads where the page is isolated. */
export async function runtime(provider = "wasm", threads = 1) {
  for (const place of PLACES) {
    const folder = new URL(place, HERE);
    const found = await fetch(new URL(BUNDLES[provider], folder), { method: "HEAD" }).catch(() => null);
    if (!found?.ok) continue;
    const ort = await import(new URL(BUNDLES[provider], folder));
    ort.env.wasm.wasmPaths = folder.href;
    ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? threads : 1;
    return ort;
  }
  throw new Error("onnxruntime-web is not here: run `npm install` in this folder, or copy its dist/ to runtime/");
}

/** Opens a model of this folder. `progress(loaded, total)` is called while it downloads. */
export async function load({ file = "model.onnx", base = HERE, provider = "wasm", threads = 1, progress } = {}) {
  const folder = new URL(base, HERE);
  const recipe = await json(new URL("preprocess.json", folder));
  const ort = await runtime(provider, threads);
  const bytes = await download(new URL(file, folder), progress);
  const session = await ort.InferenceSession.create(bytes, { executionProviders: [provider] });
  let tokenizer = null, why = "";
  if (recipe.kind === "text") {
    try {
      tokenizer = new Tokenizer(await json(new URL(recipe.tokenizer, folder)), recipe);
    } catch (error) {
      why = error.message;
    }
  }
  return new Model(ort, session, recipe, tokenizer, bytes.length, why);
}

export class Model {
  constructor(ort, session, recipe, tokenizer, bytes, why) {
    Object.assign(this, { ort, session, recipe, tokenizer, bytes, why });
  }

  /** Feeds for a text or an image. */
  async feeds(input) {
    if (this.recipe.kind === "text") {
      if (!this.tokenizer) throw new Error(`this page cannot read the tokenizer: ${this.why}`);
      const encoded = this.tokenizer.encode(input, this.recipe.padded_to["model.onnx"] ?? null);
      const columns = { input_ids: encoded.ids, attention_mask: encoded.mask, token_type_ids: encoded.types };
      return Object.fromEntries(this.recipe.inputs.map((spec) => {
        const column = columns[this.recipe.roles[spec.name]] ?? encoded.ids.map((_, i) => i);
        return [spec.name, this.tensor(spec.type, column, [1, column.length])];
      }));
    }
    if (this.recipe.kind === "image") {
      const { data, shape } = await pixels(input, this.recipe);
      return { [this.recipe.input]: this.tensor("float32", data, shape) };
    }
    throw new Error("this model takes tensors: use run(feeds)");
  }

  tensor(type, data, shape) {
    const values = type === "int64" ? BigInt64Array.from(data, BigInt) : ARRAYS[type].from(data);
    return new this.ort.Tensor(type, values, shape);
  }

  /** Outputs by name. */
  run(feeds) {
    return this.session.run(feeds);
  }

  /** Text or image in; the first output's values, and class probabilities where it holds scores. */
  async predict(input) {
    return this.read(await this.run(await this.feeds(input)));
  }

  read(outputs) {
    const output = outputs[this.recipe.output.name] ?? Object.values(outputs)[0];
    const values = Array.from(output.data, Number);
    const classes = output.dims.at(-1);
    const scores = this.recipe.output.scores && output.dims.length === 2 ? softmax(values.slice(0, classes)) : null;
    return { values, shape: output.dims, scores, labels: this.recipe.output.labels };
  }
}

/** A tensor of samples.json. */
export function decode(ort, told) {
  const bytes = Uint8Array.from(atob(told.data), (c) => c.charCodeAt(0));
  return new ort.Tensor(told.type, new ARRAYS[told.type](bytes.buffer), told.shape);
}

/** Runs the samples of a model: the largest difference, relative to the outputs' scale. */
export async function selfCheck(model, samples) {
  let worst = 0;
  for (const sample of samples) {
    const feeds = Object.fromEntries(Object.entries(sample.feeds).map(([k, v]) => [k, decode(model.ort, v)]));
    const outputs = await model.run(feeds);
    for (const [name, told] of Object.entries(sample.expected)) {
      const should = decode(model.ort, told).data, is = outputs[name].data;
      let scale = 0, apart = 0;
      for (let i = 0; i < should.length; i++) {
        scale = Math.max(scale, Math.abs(Number(should[i])));
        apart = Math.max(apart, Math.abs(Number(should[i]) - Number(is[i])));
      }
      worst = Math.max(worst, apart / (scale || 1));
    }
  }
  return worst;
}

export function softmax(values) {
  const top = Math.max(...values), powers = values.map((v) => Math.exp(v - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((p) => p / sum);
}

export async function json(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
  return answer.json();
}

async function download(url, progress) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
  const total = Number(answer.headers.get("content-length")) || 0;
  const parts = [];
  let loaded = 0;
  for (const reader = answer.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    loaded += value.length;
    progress?.(loaded, total);
  }
  const bytes = new Uint8Array(loaded);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}
