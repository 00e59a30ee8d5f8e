// onnxruntime-web's WASM in Node on the samples of an exported folder: prints the largest difference, relative to scale.
//   node node_check.mjs FOLDER path/to/onnxruntime-web/dist
import { readFile } from "node:fs/promises";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [folder, dist] = process.argv.slice(2);
const ort = await import(pathToFileURL(path.resolve(dist, "ort.wasm.min.mjs")));
ort.env.wasm.wasmPaths = pathToFileURL(path.resolve(dist) + "/").href;
ort.env.wasm.numThreads = 1;
const told = JSON.parse(await readFile(path.join(folder, "samples.json")));
const arrays = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array };
const decode = (t) => new ort.Tensor(t.type, new arrays[t.type](Uint8Array.from(Buffer.from(t.data, "base64")).buffer), t.shape);

const session = await ort.InferenceSession.create(new Uint8Array(await readFile(path.join(folder, "model.onnx"))));
let worst = 0;
for (const { feeds, expected } of told.models["model.onnx"]) {
  const outputs = await session.run(Object.fromEntries(Object.entries(feeds).map(([k, v]) => [k, decode(v)])));
  for (const [name, t] of Object.entries(expected)) {
    const should = decode(t).data, scale = Math.max(...should.map(Math.abs));
    should.forEach((v, i) => (worst = Math.max(worst, Math.abs(v - outputs[name].data[i]) / scale)));
  }
}
console.log(JSON.stringify({ worst, samples: told.models["model.onnx"].length }));
