// Dense against pruned in onnxruntime-node or onnxruntime-web, turn by turn; what to do comes on stdin, as JSON.
// {package, module, dense, pruned, feeds: [{name, type, shape, data}], threads, runs, warmup}
//   -> {version, walls: [dense ms, pruned ms], cpus: the same, outputs: [dense, pruned]}
import { readFile } from "node:fs/promises";
import path from "node:path";
import { pathToFileURL } from "node:url";

const pieces = [];
for await (const piece of process.stdin) pieces.push(piece);
const asked = JSON.parse(Buffer.concat(pieces).toString());
const imported = await import(pathToFileURL(asked.module).href);
const ort = imported.InferenceSession ? imported : imported.default;
const web = asked.package === "onnxruntime-web";
if (web) {
  ort.env.wasm.wasmPaths = pathToFileURL(path.dirname(asked.module) + "/").href;
  ort.env.wasm.numThreads = asked.threads;
}
ort.env.logLevel = "fatal";
const options = web
  ? { executionProviders: ["wasm"], graphOptimizationLevel: "all" }
  : { executionProviders: ["cpu"], graphOptimizationLevel: "all", intraOpNumThreads: asked.threads, interOpNumThreads: 1,
      extra: { session: { intra_op: { allow_spinning: "0" } } } };

const arrays = { float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, int16: Int16Array,
  int8: Int8Array, uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array, bool: Uint8Array,
  float16: globalThis.Float16Array ?? Uint16Array };
const decode = ({ type, shape, data }) =>
  new ort.Tensor(type, new arrays[type](Uint8Array.from(Buffer.from(data, "base64")).buffer), shape);
const sessions = [];
for (const file of [asked.dense, asked.pruned])
  sessions.push(await ort.InferenceSession.create(web ? new Uint8Array(await readFile(file)) : file, options));
const feeds = Object.fromEntries(asked.feeds.map((f) => [f.name, decode(f)]));

const outputs = [];
for (let i = 0; i < Math.max(asked.warmup, 1); i++)
  for (const which of [0, 1]) outputs[which] = await sessions[which].run(feeds);
const walls = [[], []], cpus = [[], []];
for (let turn = 0; turn < asked.runs; turn++)
  for (const which of turn % 2 ? [1, 0] : [0, 1]) {
    const cpu = process.cpuUsage(), wall = performance.now();
    await sessions[which].run(feeds);
    walls[which].push(performance.now() - wall);
    const used = process.cpuUsage(cpu);
    cpus[which].push((used.user + used.system) / 1000);
  }
const told = outputs.map((found) => Object.fromEntries(Object.entries(found).filter(([, t]) => t.type === "float32")
  .map(([name, t]) => [name, Buffer.from(t.data.buffer, t.data.byteOffset, t.data.byteLength).toString("base64")])));
console.log(JSON.stringify({ version: ort.env.versions?.node ?? ort.env.versions?.common ?? "", walls, cpus, outputs: told }));
process.exit(0);
