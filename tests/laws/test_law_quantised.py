"""Quantised in, quantised out: the laws on graphs whose weights are integers.

What is written is compared without fusions: ONNX Runtime's integer kernels move the dense file's outputs too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from plans import Arrays, Subject, distance, random_plan
from quantised_by_runtime import by_runtime, fused, looked_up, packed
from quantised_graphs import FORMS, attention, convolutions, dequantized, mlp, plain, recurrent, rounded_before, save
from zoo import ZooModel

import onnxprune
from onnxprune.errors import NothingToPruneError, UsageError
from onnxprune.export import vocabulary
from onnxprune.export.precision import quantize
from onnxprune.graph import model as models
from onnxprune.graph import model_files
from onnxprune.graph.plan import Plan
from onnxprune.graph.quantised import Quantised
from onnxprune.graph.structure.linear_layers import find_linears
from onnxprune.measure.cost import Costs
from onnxprune.measure.unrounded import unrounded, unrounded_file
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter
from onnxprune.refit.compensate import writable_intercept

BIASES = {"float": plain, "int32": dequantized(TensorProto.INT32), "uint8": dequantized(TensorProto.UINT8, zero=True)}
WIDE = {TensorProto.INT64, TensorProto.BOOL}
"""Element types of shapes and indices."""


def run(file: Path, feeds: Arrays) -> Arrays:
    """ONNX Runtime's outputs, the graph computed as it is written."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def feeds_for(file: Path, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    found = {}
    for value in onnx.load(file).graph.input:
        shape = [d.dim_value or 3 for d in value.type.tensor_type.shape.dim]
        whole = value.type.tensor_type.elem_type == TensorProto.INT64
        found[value.name] = rng.integers(0, 20, shape) if whole else rng.normal(size=shape).astype(np.float32)
    return found


def on_grid(subject: Subject, plan: Plan) -> Plan:
    """The plan with weights and intercepts as refits give them: such as can be written."""
    linears = {x.matrix.output: x for x in find_linears(subject.model.graph, subject.structure)}
    return replace(
        plan,
        weights={n: subject.gates.writable(n, w) for n, w in plan.weights.items()},
        intercepts={n: writable_intercept(linears[n], v) for n, v in plan.intercepts.items()},
    )


def operators(file: Path) -> Counter[str]:
    """How many there are of each; constants may have been put into shape beforehand."""
    return Counter(n.op_type for n in onnx.load(file).graph.node if n.op_type != "Reshape")


def types_of(graph: onnx.GraphProto) -> dict[str, int]:
    """Element type of every initializer."""
    return {t.name: t.data_type for t in graph.initializer}


def types(file: Path) -> Counter[int]:
    return Counter(t.data_type for t in onnx.load(file).graph.initializer if t.data_type not in WIDE)


def holds(file: Path, folder: Path, *, tolerance: float = 1e-4, seeds: int = 2) -> None:
    """Laws 1, 3 and 4 on a file."""
    subject, feeds = Subject.load(file), feeds_for(file)
    assert subject.structure.groups, "nothing can be cut"
    assert distance(subject.dense(feeds), run(file, feeds)) < tolerance
    (same,) = models.save(subject.rewritten(Plan(subject.model.digest)), folder / "same.onnx")
    assert distance(run(same, feeds), run(file, feeds)) < 1e-6
    assert (operators(same), types(same)) == (operators(file), types(file))
    costs = Costs(subject.model, subject.structure, {"batch": 1, "tokens": 1})
    assert costs.params() == numbers(file)
    for seed in range(seeds):
        plan = random_plan(subject, np.random.default_rng(seed), tile=0, drop=0)
        plan = on_grid(subject, subject.complete(plan, feeds))
        (cut,) = models.save(subject.rewritten(plan), folder / "cut.onnx")
        onnx.checker.check_model(cut, full_check=True)
        assert distance(run(cut, feeds), subject.gated(plan, feeds)) < tolerance
        kept = replace(plan, weights={}, intercepts={})
        (cut,) = models.save(subject.rewritten(kept), folder / "cut.onnx")
        assert (operators(cut), types(cut)) == (operators(file), types(file))
        assert numbers(cut) == costs.params(kept)
        spent, told = model_files.size(cut), costs.total("size", kept)
        assert spent <= told < spent + 2048
    # A plan that a file was made by is a plan of the file's own numbers: nothing is rounded anew.
    assert distance(run(cut, feeds), Subject.load(cut).dense(feeds)) < tolerance


def numbers(file: Path) -> int:
    """Of all weights of a file; those that are packed into bytes, two a byte, by what they are."""
    graph = onnx.load(file).graph
    found = {t.name: int(np.prod(t.dims)) for t in graph.initializer if t.data_type not in WIDE}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            told = {a.name: a.i for a in node.attribute}
            blocks = -(-told["K"] // told["block_size"])
            counts = {1: told["K"] * told["N"], 3: blocks * told["N"]}
            found |= {node.input[i]: n for i, n in counts.items() if i < len(node.input) and node.input[i]}
        if node.op_type == "GatherBlockQuantized" and found[node.input[0]]:
            dims = {t.name: t.dims for t in graph.initializer}
            told = {a.name: a.i for a in node.attribute}
            blocks = dims[node.input[2]]
            per = 8 // told["bits"] if types_of(graph)[node.input[0]] == TensorProto.UINT8 else 1
            found[node.input[0]] *= per
            found |= {node.input[3]: int(np.prod(blocks))} if len(node.input) > 3 else {}
    return sum(found.values())


@pytest.mark.parametrize("form", FORMS)
def test_matrices(form: str, tmp_path: Path) -> None:
    holds(mlp(tmp_path / "model.onnx", FORMS[form]), tmp_path)


@pytest.mark.parametrize("form", ["tensor", "output", "output-uint8", "input", "trained", "cast"])
@pytest.mark.parametrize("bias", BIASES)
def test_gemms(form: str, bias: str, tmp_path: Path) -> None:
    holds(mlp(tmp_path / "model.onnx", FORMS[form], gemm=True, bias=BIASES[bias]), tmp_path, seeds=1)


@pytest.mark.parametrize("form", ["tensor-uint8", "output", "input", "trained", "cast-uint8"])
def test_convolutions(form: str, tmp_path: Path) -> None:
    holds(convolutions(tmp_path / "model.onnx", FORMS[form], bias=BIASES["int32"]), tmp_path)


STEPS = 2e-2
"""Where activations are rounded, a last digit decides between two steps."""
STATIC = ["qdq", "qdq-channels", "integers", "integers-channels"]


@pytest.mark.parametrize("how", ["dynamic", "dynamic-channels", *STATIC, "nbits", "nbits-zero", "nbits-qdq"])
def test_matrices_that_onnx_runtime_quantised(how: str, tmp_path: Path) -> None:
    file = mlp(tmp_path / "float.onnx", FORMS["plain"])
    quantised = by_runtime(how, file, [feeds_for(file, seed) for seed in range(4)])
    holds(quantised, tmp_path, tolerance=1e-4 if "nbits" in how else STEPS)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero", ["", "codes", "floats"])
def test_packed_codes(bits: int, zero: str, tmp_path: Path) -> None:
    """MatMulNBits of every width; zero points may lie between codes (ONNX Runtime has no such kernel of 8 bits)."""
    if (bits, zero) == (8, "floats"):
        pytest.skip("ONNX Runtime does not run it")
    file = mlp(tmp_path / "float.onnx", FORMS["plain"])
    holds(packed(file, tmp_path / "packed.onnx", bits=bits, zero=zero), tmp_path, seeds=1)


def test_packed_codes_whose_blocks_are_told(tmp_path: Path) -> None:
    """`g_idx` may say what is so without it; inputs in any other order stay, and it is said why."""
    file = mlp(tmp_path / "float.onnx", FORMS["plain"])
    told = packed(file, tmp_path / "plain.onnx", bits=4, order="plain")
    holds(told, tmp_path, seeds=1)
    mixed = packed(file, tmp_path / "mixed.onnx", bits=4, order="mixed")
    with pytest.raises(NothingToPruneError, match="act_order or desc_act off"):
        onnxprune.prune(mixed, flops=0.5, shape={"batch": 1, "tokens": 4}, measure_latency=False)


@pytest.mark.parametrize("zero", ["", "floats"])
def test_outputs_of_packed_codes_in_another_order_go(zero: str, tmp_path: Path) -> None:
    """Where `g_idx` mixes the inputs (act_order), outputs are cut, and refits find the scale of every input."""
    file = mlp(tmp_path / "float.onnx", FORMS["plain"], across=64)
    mixed = packed(file, tmp_path / "mixed.onnx", bits=4, zero=zero, order="mixed", only=("w0_up", "w1_up"))
    holds(mixed, tmp_path)
    tensor = next(t for t in held(mixed) if t.parts.owners is not None)
    again = tensor.rounded(tensor.numpy())
    assert np.array_equal(again.numpy(), tensor.numpy())


TABLES = {
    "bytes": (TensorProto.UINT8, 8), "nibbles": (TensorProto.UINT8, 4), "int4": (TensorProto.INT4, 4),
    "uint4": (TensorProto.UINT4, 4),
}  # fmt: skip


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("kind", TABLES)
def test_tables_in_blocks(kind: str, zero: bool, tmp_path: Path) -> None:
    """GatherBlockQuantized: the axis of the blocks loses whole ones, and every row of the table stays."""
    file = looked_up(tmp_path / "model.onnx", *TABLES[kind], zero=zero)
    holds(file, tmp_path, seeds=1)
    (group,) = (g for g in Subject.load(file).structure.groups if g.size == 4)
    assert group.kind != "blocks"
    (table,) = held(file)
    assert np.array_equal(table.rounded(table.numpy()).numpy(), table.numpy())


def test_a_table_in_blocks_has_its_rows_cut(tmp_path: Path) -> None:
    """What takes rows out of the vocabulary leaves the others as the codes that they were."""
    dense = models.load(looked_up(tmp_path / "model.onnx", TensorProto.UINT8, 4, zero=True))
    rows = [3, 7, 8]
    smaller = vocabulary.cut(dense, {old: new for new, old in enumerate(rows)})
    (file,) = models.save(smaller.normal, tmp_path / "cut.onnx")
    assert held(file)[0].parts.codes.dtype.name == "UINT4"
    assert np.array_equal(held(file)[0].numpy(), held(tmp_path / "model.onnx")[0].numpy()[rows])


def held(file: Path) -> list[Quantised]:
    """The quantised weights of a file."""
    found = (v.const_value for v in models.load(file).graph.initializers.values())
    return [t for t in found if isinstance(t, Quantised)]


@pytest.mark.parametrize("how", STATIC)
def test_gemms_that_onnx_runtime_quantised(how: str, tmp_path: Path) -> None:
    file = mlp(tmp_path / "float.onnx", FORMS["plain"], gemm=True)
    holds(by_runtime(how, file, [feeds_for(file, seed) for seed in range(4)]), tmp_path, tolerance=STEPS, seeds=1)


@pytest.mark.parametrize("how", ["dynamic", *STATIC])
def test_convolutions_that_onnx_runtime_quantised(how: str, tmp_path: Path) -> None:
    file = convolutions(tmp_path / "float.onnx", FORMS["plain"])
    holds(by_runtime(how, file, [feeds_for(file, seed) for seed in range(4)]), tmp_path, tolerance=STEPS, seeds=1)


@pytest.mark.parametrize("how", ["dynamic", "dynamic-channels"])
@pytest.mark.parametrize("known", [False, True], ids=["own-range", "known-scale"])
def test_attention_on_integers(how: str, known: bool, tmp_path: Path) -> None:
    file = by_runtime(how, attention(tmp_path / "float.onnx"), [])
    file = rounded_before(file) if known else file
    assert operators(file)["QAttention"] == 2
    assert {g.kind for g in Subject.load(file).structure.groups} == {"heads", "head_dims", "neurons"}
    holds_unrounded(file, feeds_for(file), tmp_path)
    holds_written(file, tmp_path)


def test_products_that_onnx_runtime_fused(tmp_path: Path) -> None:
    """MatMulIntegerToFloat, where several products share what was rounded, and DynamicQuantizeMatMul."""
    file = fused(by_runtime("dynamic", mlp(tmp_path / "float.onnx", FORMS["plain"], shared=True), []))
    assert operators(file)["MatMulIntegerToFloat"] and operators(file)["DynamicQuantizeMatMul"]
    holds(file, tmp_path, tolerance=STEPS)


@pytest.mark.parametrize("how", ["dynamic", "dynamic-channels"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_recurrences_on_integers(how: str, direction: str, tmp_path: Path) -> None:
    file = by_runtime(how, recurrent(tmp_path / "float.onnx", direction), [])
    assert operators(file)["DynamicQuantizeLSTM"] == 1
    assert Subject.load(file).structure.groups
    holds_unrounded(file, feeds_for(file), tmp_path)
    holds_written(file, tmp_path)


def holds_written(file: Path, folder: Path) -> None:
    """A plan of nothing writes the file's own operators and numbers, and they compute what it computes."""
    subject, feeds = Subject.load(file), feeds_for(file)
    (same,) = models.save(subject.rewritten(Plan(subject.model.digest)), folder / "same.onnx")
    assert distance(run(same, feeds), run(file, feeds)) < 1e-6
    assert (operators(same), types(same)) == (operators(file), types(file))
    assert distance(subject.dense(feeds), run(file, feeds)) < STEPS


def holds_unrounded(file: Path, feeds: Arrays, folder: Path) -> None:
    """Laws 1 and 3 on a deep graph whose activations are rounded: without that rounding, of which it makes much."""
    subject = Subject.load(file)
    interpreter = Interpreter(unrounded(subject.model.normal).graph)
    gates = Gates(subject.structure, interpreter)
    for seed in range(2):
        plan = random_plan(subject, np.random.default_rng(seed), tile=0)
        plan = on_grid(subject, subject.complete(plan, feeds))
        (cut,) = models.save(subject.rewritten(plan), folder / "cut.onnx")
        onnx.checker.check_model(cut, full_check=True)
        run(cut, feeds)
        with unrounded_file(cut) as copy, torch.inference_mode():
            gated = gates.gated(plan)
            wanted = interpreter.run(feeds, weights=gated.weights, edit=gated.edit)
            assert distance(run(copy, feeds), {n: t.numpy() for n, t in wanted.items()}) < 1e-4
    kept = replace(plan, weights={}, intercepts={}, drop=(), rests={})
    (cut,) = models.save(subject.rewritten(kept), folder / "cut.onnx")
    assert counted(cut) == counted(file)


def counted(file: Path) -> dict[str, int]:
    """How many operators there are that read integers, or multiply matrices; constants may have been rounded before."""
    return {op: n for op, n in operators(file).items() if op in PRODUCTS or "Integer" in op or "QLinear" in op}


PRODUCTS = ("MatMul", "Gemm", "Conv", "MatMulNBits", "QGemm", "QAttention", "DynamicQuantizeLSTM")


@pytest.mark.parametrize("how", ["dynamic", "qdq-channels", "integers", "nbits"])
@pytest.mark.parametrize("family", ["bert", "vit", "resnet"])
def test_exports_that_onnx_runtime_quantised(
    zoo: Callable[..., ZooModel], family: str, how: str, tmp_path: Path
) -> None:
    if family == "resnet" and how == "nbits":
        pytest.skip("it has one matrix")
    model = zoo(family, "torchscript", "eager")
    file = tmp_path / "float.onnx"
    file.write_bytes(model.path.read_bytes())
    quantised = by_runtime(how, file, [model.sample(seed=seed) for seed in range(3)])
    holds_unrounded(quantised, model.sample(seed=5), tmp_path)


@pytest.mark.parametrize("how", ["dynamic", "half"])
def test_heads_in_fewer_bits_are_searched_and_checked(zoo: Callable[..., ZooModel], how: str, tmp_path: Path) -> None:
    """Their dimensions are counted in a basis that the grid can hold."""
    model = zoo("bert", "torchscript", "eager")
    file = tmp_path / "float.onnx"
    file.write_bytes(model.path.read_bytes())
    if how == "half":
        quantised = quantize(file, tmp_path / "half.onnx", "fp16")
    else:
        quantised = by_runtime(how, file, [model.sample(seed=seed) for seed in range(3)])
    rows = [{name: array[0] for name, array in model.sample(batch=1, seed=seed).items()} for seed in range(24)]
    result = onnxprune.prune(
        quantised, tmp_path / "small.onnx", flops=0.6, calibration=rows, round_to=1, measure_latency=False
    )  # fmt: skip
    assert result.report.flops.ratio <= 0.6


def test_what_is_rounded_by_its_own_range_is_gated_before(tmp_path: Path) -> None:
    """Units that go take part in no range: the file has none of them."""
    file = mlp(tmp_path / "float.onnx", FORMS["plain"])
    subject = Subject.load(by_runtime("dynamic", file, []))
    reader = next(g for g in subject.structure.groups if g.kind == "neurons").readers[0]
    plan = random_plan(subject, np.random.default_rng(0), drop=0, refit=0, tile=0)
    gated = subject.gates.gated(plan)
    assert (reader.node, reader.input) in gated.edit and reader.weight not in gated.weights


def test_gradients_pass_what_is_rounded(tmp_path: Path) -> None:
    file = mlp(tmp_path / "float.onnx", FORMS["plain"])
    for how in ("dynamic", "qdq", "integers"):
        subject = Subject.load(by_runtime(how, file, [feeds_for(file, seed) for seed in range(3)]))
        x = torch.from_numpy(feeds_for(file)["x"]).requires_grad_()
        (found,) = subject.interpreter.run({"x": x}).values()
        found.square().sum().backward()
        assert x.grad is not None and float(x.grad.abs().min()) > 0, how


def test_what_cannot_be_told_for_a_weight_is_refused(tmp_path: Path) -> None:
    """Integers that are no product of numbers: the float model is asked for."""
    made = [
        helper.make_node("MatMulInteger", ["x", "w"], ["y"], name="first"),
        helper.make_node("Cast", ["y"], ["f"], to=TensorProto.FLOAT),
    ]
    faces = [
        helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", 8]),
        helper.make_tensor_value_info("f", TensorProto.FLOAT, ["batch", 6]),
    ]
    weight = onnx.numpy_helper.from_array(np.ones((8, 6), np.int8), "w")
    file = save(tmp_path / "model.onnx", made, [weight], faces[:1], faces[1:])
    with pytest.raises(NothingToPruneError, match="give the float model; `--quantize int8` gives it back"):
        onnxprune.prune(file, flops=0.5, measure_latency=False)


def test_a_quantised_model_is_not_quantised_again(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="quantised already"):
        onnxprune.prune(mlp(tmp_path / "m.onnx", FORMS["output"]), flops=0.5, quantize="int8")


def test_what_is_stored_in_half_precision_stays_so(tmp_path: Path) -> None:
    file = mlp(tmp_path / "model.onnx", FORMS["half"])
    rows = [{"x": feeds_for(file, seed)["x"][0]} for seed in range(24)]
    small = tmp_path / "small.onnx"
    result = onnxprune.prune(
        file, small, flops=0.6, calibration=rows, quantize="int8-dynamic", measure_latency=False
    )  # fmt: skip
    assert result.report.flops.ratio <= 0.6 and len(result.report.steps) == 3
    assert types(small)[TensorProto.FLOAT16] == types(file)[TensorProto.FLOAT16]
    assert operators(small)["Cast"] == operators(file)["Cast"]
    assert small.stat().st_size < file.stat().st_size


def test_from_a_file_to_a_file_with_refits_on_the_grid(tmp_path: Path) -> None:
    file = mlp(tmp_path / "model.onnx", FORMS["output"])
    rows = [{"x": feeds_for(file, seed)["x"][0]} for seed in range(24)]
    result = onnxprune.prune(file, tmp_path / "small.onnx", flops=0.6, calibration=rows, measure_latency=False)
    assert result.report.flops.ratio <= 0.6
    assert types(tmp_path / "small.onnx")[TensorProto.INT8] == types(file)[TensorProto.INT8]
    assert operators(tmp_path / "small.onnx")["DequantizeLinear"] == operators(file)["DequantizeLinear"]
