"""ONNX Runtime sessions: the only place that makes them.

Three things go wrong silently in ONNX Runtime and are made loud here: a provider that the installed build lacks, a
provider whose libraries do not load (the session then runs on the CPU), and nodes that the provider refuses (they run
on the CPU too). The first two are errors; the third is counted by `coverage`.
"""

from __future__ import annotations

import logging
import os
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from onnxprune.documents import utf8
from onnxprune.errors import CheckError, DataError, ModelError, OnnxPruneError, UnsupportedError, UsageError
from onnxprune.graph import outputs, patience, stand_ins
from onnxprune.graph.providers import CPU, FIXED_SHAPES, add_provider, message_of, resolve_providers, unloaded
from onnxprune.graph.widened import widened

if TYPE_CHECKING:
    import onnxruntime as ort

log = logging.getLogger(__name__)

Feeds = Mapping[str, np.ndarray]
Session: TypeAlias = "ort.InferenceSession"
SavedStyle = Literal["fixed", "runtime", "applied"]

_WIDENED: weakref.WeakSet[Any] = weakref.WeakSet()
"""Sessions of graphs in bfloat16 that compute in single precision."""

_COMPILING = frozenset(
    name + "ExecutionProvider"
    for name in ("OpenVINO", "QNN", "Tensorrt", "NvTensorRTRTX", "CoreML", "Nnapi", "MIGraphX", "VitisAI", "WebNN")
)
"""Providers that compile whole subgraphs; each subgraph they take is one partition."""

_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}


@dataclass(frozen=True)
class Coverage:
    """Where the nodes of a session run.

    Attributes:
        provider: the provider asked for first.
        nodes_on_provider: nodes of the partitioned graph (after constant folding and the like) placed on it.
        nodes: all nodes of that graph.
        partitions: subgraphs the provider runs without leaving it; None where ONNX Runtime does not tell (a provider
            with single kernels that shares the graph with the CPU).
    """

    provider: str
    nodes_on_provider: int
    nodes: int
    partitions: int | None

    @property
    def complete(self) -> bool:
        """Whether every node runs on the provider."""
        return self.nodes_on_provider == self.nodes

    @staticmethod
    def all(several: Sequence[Coverage]) -> Coverage:
        """Of sessions on one provider, all together."""
        parts = [one.partitions for one in several]
        return Coverage(
            several[0].provider,
            sum(one.nodes_on_provider for one in several),
            sum(one.nodes for one in several),
            None if None in parts else sum(part or 0 for part in parts),
        )


def optimization_levels() -> tuple[str, ...]:
    """What `session` takes as its optimization, from none to all, as far as this build has them."""
    import onnxruntime as ort

    return tuple(name for name, level in _LEVELS.items() if hasattr(ort.GraphOptimizationLevel, level))


@cache
def _untold() -> None:
    """Have ONNX Runtime tell nobody what it opens, also where it was loaded before this package."""
    import onnxruntime as ort

    if os.environ.get("ORT_DISABLE_TELEMETRY") == "1" and hasattr(ort, "disable_telemetry_events"):
        ort.disable_telemetry_events()


def session(
    model: str | os.PathLike[str] | bytes,
    providers: Sequence[str] = (CPU,),
    *,
    threads: int = 1,
    spinning: bool = False,
    optimization: str = "all",
    dims: Mapping[str, int] | None = None,
    profile: str | os.PathLike[str] | None = None,
    provider_options: Mapping[str, Mapping[str, str]] | None = None,
    config: Mapping[str, str] | None = None,
) -> Session:
    """Open a model in ONNX Runtime.

    Args:
        model: a file (external data beside it) or a serialised model.
        providers: full or short provider names, by priority; the CPU takes what they leave.
        threads: threads inside one operator.
        spinning: whether idle threads burn their core while they wait for work.
        optimization: `none`, `basic`, `extended` or `all`.
        dims: sizes for the graph's symbolic dimensions, by name; some providers take fixed shapes only.
        profile: prefix of the file where the profile of every run goes; None: no profiling.
        provider_options: options by full provider name.
        config: further session configuration entries, as ONNX Runtime names them.

    Raises:
        UsageError: a provider that is not there or does not load, or an unknown optimization level.
        ModelError: the file is missing or damaged.
        UnsupportedError: an operator that none of the providers implements.
    """
    import onnxruntime as ort

    _untold()
    names = resolve_providers(providers)
    if optimization not in _LEVELS:
        raise UsageError(f"optimization {optimization!r} is unknown; choose from {', '.join(_LEVELS)}")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised below, with its message
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[optimization])
    entries = {"session.intra_op.allow_spinning": str(int(spinning)), "session.record_ep_graph_assignment_info": "1"}
    for key, value in (entries | dict(config or {})).items():
        options.add_session_config_entry(key, value)
    for name, size in (dims or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile)
    for name in names:
        add_provider(options, name, (provider_options or {}).get(name, {}))
    label = "the serialised model" if isinstance(model, bytes) else utf8(os.fspath(model))
    try:
        opened = ort.InferenceSession(model if isinstance(model, bytes) else label, options)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        wide = _widened(model, options) if set(names) == {CPU} and type(error).__name__ == "NotImplemented" else None
        if wide is None:
            raise _refusal(label, options, error) from error
        opened = wide
    opened.disable_fallback()
    missing = [name for name in names if name not in opened.get_providers()]
    if missing:
        raise unloaded(missing[0])
    return opened


def _widened(model: str | os.PathLike[str] | bytes, options: ort.SessionOptions) -> Session | None:
    """A session of a graph in bfloat16, computed in single precision; None if there is none of that either."""
    import onnxruntime as ort

    with outputs.scratch() as folder:
        try:
            file = widened(model, folder)
            opened = None if file is None else ort.InferenceSession(os.fspath(file), options)
        except Exception as error:  # the graph is at fault beside its type: what was first said of it stands
            log.debug("no session in single precision either: %s", error)
            return None
    if opened is not None:
        _WIDENED.add(opened)
    return opened


def in_single_precision(opened: Any) -> bool:
    """Whether a session computes in single precision what its graph has in bfloat16, for want of kernels."""
    return any(opened is held for held in _WIDENED)


def save_optimized(source: str | os.PathLike[str], target: str | os.PathLike[str], style: SavedStyle = "fixed") -> None:
    """Write a model in ORT format, optimised for ARM processors.

    Args:
        source: a `.onnx` file.
        target: the `.ort` file.
        style: `fixed`: optimised now; `runtime`: basic optimizations now, the others saved for a session that asks for
            them; `applied`: what that session would run.

    Raises:
        ModelError: ONNX Runtime cannot read or convert the file.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = os.fspath(target)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    if style != "fixed":
        entry = {"runtime": "save", "applied": "apply"}[style]
        options.add_session_config_entry("optimization.minimal_build_optimizations", entry)
    # Blocked layouts are for x86. Folding would turn weights that are stored small into large ones again.
    left_out = ["NchwcTransformer", "ConstantFolding", "FuseFp16InitializerToFp32NodeTransformer"]
    try:
        ort.InferenceSession(os.fspath(source), options, providers=[CPU], disabled_optimizers=left_out)
    except Exception as error:
        raise _opening_error(os.fspath(source), error) from error


def compile_ahead(source: str | os.PathLike[str], target: str | os.PathLike[str], provider: str) -> None:
    """Compile a model for a provider ahead of time: an EPContext model, which opens without compiling.

    Raises:
        UsageError: the provider is not there.
        UnsupportedError: it compiles nothing ahead of time, or not this model.
    """
    import onnxruntime as ort

    (name,) = resolve_providers(provider)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    add_provider(options, name, {})
    try:
        compiler = ort.ModelCompiler(options, os.fspath(source), embed_compiled_data_into_model=True)
        compiler.compile_to_file(os.fspath(target))
    except Exception as error:
        raise UnsupportedError(f"{name} compiles no {os.fspath(source)} ahead of time: {message_of(error)}") from error


def coverage(opened: Session) -> Coverage:
    """How much of the graph the session's first provider runs.

    Raises:
        UnsupportedError: this build of ONNX Runtime does not record placement (older than 1.24).
    """
    first = opened.get_providers()[0]
    try:
        groups = [(group.ep_name, len(group.get_nodes())) for group in opened.get_provider_graph_assignment_info()]
    except (AttributeError, RuntimeError) as error:
        raise UnsupportedError(
            "this build of ONNX Runtime does not tell where nodes run; 1.24 or newer does"
        ) from error
    own = [nodes for provider, nodes in groups if provider == first]
    total = sum(nodes for _, nodes in groups)
    partitions: int | None = len(own)
    if first not in _COMPILING:
        partitions = {total: 1, 0: 0}.get(sum(own))
    return Coverage(first, sum(own), total, partitions)


def placed(opened: Session, label: str = "the model") -> Coverage:
    """`coverage`, where something is covered.

    Raises:
        CheckError: the session's first provider takes none of the nodes: what is measured would be the CPU's.
    """
    found = coverage(opened)
    if found.nodes and not found.nodes_on_provider:
        fixed = " (it takes fixed shapes only)" if found.provider in FIXED_SHAPES else ""
        raise CheckError(
            f"{found.provider} takes none of the {found.nodes} nodes of {label}{fixed}: they would run on the CPU, and "
            "what is measured would not be the provider's"
        )
    return found


def run(opened: Session, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """One forward pass; outputs by name. Feeds that the graph does not take are left out.

    Raises:
        DataError: an input is missing, or has the wrong type or shape.
        ModelError: a node failed.
        LimitError: a loop does not end.
    """
    wanted = list(outputs) if outputs is not None else [o.name for o in opened.get_outputs()]
    feeds = _fed(opened, feeds)
    with _running():
        return dict(zip(wanted, patience.run(opened, wanted, feeds), strict=True))


def run_all(
    opened: Session, batches: Sequence[Feeds], outputs: Sequence[str] | None = None
) -> list[dict[str, np.ndarray]]:
    """`run` of several batches; in segments (`segments.opened`), each is opened once for all of them.

    Raises:
        as `run`, about any of them.
    """
    together = getattr(opened, "run_all", None)
    if together is None:
        return [run(opened, feeds, outputs) for feeds in batches]
    wanted = list(outputs) if outputs is not None else [o.name for o in opened.get_outputs()]
    taken = [_fed(opened, feeds) for feeds in batches]
    with _running():
        return [dict(zip(wanted, values, strict=True)) for values in together(wanted, taken)]


def _fed(opened: Session, feeds: Feeds) -> dict[str, Any]:
    """What the graph takes of some feeds."""
    taken = {i.name for i in opened.get_inputs()}
    missing = sorted(taken - set(feeds))
    if missing:
        raise DataError(f"the rows hold no values for the graph's input {', '.join(missing)}")
    given = {name: value for name, value in feeds.items() if name in taken}
    if in_single_precision(opened):
        given = {n: v.astype(np.float32) if v.dtype.name == "bfloat16" else v for n, v in given.items()}
    return given


@contextmanager
def _running() -> Iterator[None]:
    try:
        yield
    except OnnxPruneError:
        raise
    except Exception as error:  # as above
        kind = DataError if type(error).__name__ == "InvalidArgument" or isinstance(error, RuntimeError) else ModelError
        raise kind(f"ONNX Runtime could not run the graph: {message_of(error)}") from error


def evaluate(
    opened: Session, batches: Iterable[Any], outputs: Sequence[str] | None = None
) -> dict[str, list[np.ndarray]]:
    """Every batch's outputs: one array [rows, …] per batch, by output name.

    Args:
        opened: a session.
        batches: feeds, or objects that carry them in `.feeds`.
        outputs: the outputs wanted; None for all.
    """
    wanted = list(outputs) if outputs is not None else [o.name for o in opened.get_outputs()]
    gathered: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for batch in batches:
        for name, value in run(opened, getattr(batch, "feeds", batch), wanted).items():
            gathered[name].append(value)
    return gathered


def _refusal(label: str, options: ort.SessionOptions, error: Exception) -> OnnxPruneError:
    """Why a file does not open; of one that stands for several of the user's, which of those it is because of."""
    import onnxruntime as ort

    parts = stand_ins.parts_of(label)
    for part, source in parts.items():
        try:
            ort.InferenceSession(utf8(os.fspath(part)), options)
        except Exception as own:
            return _opening_error(os.fspath(source), own)
    return _opening_error(" and ".join(str(source) for source in dict.fromkeys(parts.values())) or label, error)


def _opening_error(label: str, error: Exception) -> OnnxPruneError:
    if type(error).__name__ == "NoSuchFile" and "\ufffd" in label:  # bytes that are no text (`utf8`)
        return ModelError(
            f"{label}: the name is not UTF-8, which ONNX Runtime takes names for: rename the file, or its folder"
        )
    if type(error).__name__ == "NotImplemented":
        return UnsupportedError(f"{label}: no provider of this session implements it: {message_of(error)}")
    if (found := _UNREGISTERED.search(str(error))) is not None:
        return UnsupportedError(
            f"{label}: ONNX Runtime has no operator {found[1]}, and what follows from it cannot be compared: give the "
            "graph up to it (onnx.utils.extract_model), and put the rest behind the pruned one"
        )
    return ModelError(f"{label}: ONNX Runtime cannot open it: {message_of(error)}")


_UNREGISTERED = re.compile(r"([\w.:]+)\(-?\d+\) is not a registered function/op")
