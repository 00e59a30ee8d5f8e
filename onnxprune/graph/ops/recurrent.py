"""Recurrences: LSTM, GRU and RNN, whose hidden units read themselves, one step after another.

Shapes, for D directions, H hidden units, G gates (LSTM 4, GRU 3, RNN 1), S steps and a batch of B:

    X [S, B, in]   W [D, G·H, in]   R [D, G·H, H]   B [D, 2·G·H]   P [D, 3·H] (LSTM's peepholes)
    Y [S, D, B, H]   Y_h, Y_c and the initial states [D, B, H]        (layout 1 has the batch first everywhere)

A hidden unit is one for all gates and both directions. It is read by R, along its last axis, and by whatever reads the
outputs. R meets the states and nothing else, so that a gate on R is a gate on what the recurrence reads of itself.

`run` gives, in front of the operator's outputs, the states that were read: [S, B, D·H], h before each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.graph.ops.base import Change, Constraints, Sizes, attribute, operand, outcome, register

Activation = Callable[[Any], Any]
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ALPHA = {"LeakyRelu": 0.01, "ThresholdedRelu": 1.0, "ScaledTanh": 1.0, "HardSigmoid": 0.2, "Elu": 1.0, "Affine": 1.0}
_BETA = {"ScaledTanh": 1.0, "HardSigmoid": 0.5}
WEIGHT, RECURRENCE = 1, 2
"""Which operands are W and R."""


def _activations(torch: Any, node: Any) -> list[Activation]:
    """The activation functions of all directions, one after another, with their alpha and beta."""
    kinds = attribute(node, "activations") or _DEFAULTS[node.op_type] * (2 if _directions(node) == 2 else 1)
    alphas, betas = iter(attribute(node, "activation_alpha", ())), iter(attribute(node, "activation_beta", ()))
    found = []
    for name in (k.decode() if isinstance(k, bytes) else str(k) for k in kinds):
        canonical = next((k for k in {**_ALPHA, **_BETA} if k.lower() == name.lower()), name)
        alpha = next(alphas, _ALPHA[canonical]) if canonical in _ALPHA else 0.0
        beta = next(betas, _BETA.get(canonical, 0.0)) if canonical in _BETA or canonical == "Affine" else 0.0
        found.append(_activation(torch, canonical, alpha, beta))
    return found


def _activation(torch: Any, name: str, alpha: float, beta: float) -> Activation:
    functional = torch.nn.functional
    table: dict[str, Activation] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
        "softsign": functional.softsign,
        "softplus": functional.softplus,
        "affine": lambda x: alpha * x + beta,
        "leakyrelu": lambda x: functional.leaky_relu(x, alpha),
        "thresholdedrelu": lambda x: torch.where(x > alpha, x, torch.zeros_like(x)),
        "scaledtanh": lambda x: alpha * torch.tanh(beta * x),
        "hardsigmoid": lambda x: (alpha * x + beta).clamp(0, 1),
        "elu": lambda x: functional.elu(x, alpha),
    }
    if name.lower() not in table:
        raise NotImplementedError(f"the activation {name} of a recurrence")
    return table[name.lower()]


def _directions(node: Any) -> int:
    return 2 if attribute(node, "direction", "forward") == "bidirectional" else 1


@dataclass(frozen=True)
class _Direction:
    """One direction's parameters, without the axis of directions.

    Attributes:
        recurrence: R transposed, [H, G·H].
        bias: of R, [G·H], where a cell needs it apart; 0 where it is in the input's already.
        peepholes: LSTM's, [3, H]: input, output, forget; None without.
    """

    torch: Any
    node: Any
    recurrence: Any
    bias: Any
    peepholes: Any
    activations: Sequence[Activation]

    def clipped(self, x: Any) -> Any:
        limit = attribute(self.node, "clip")
        return x if limit is None else x.clamp(-limit, limit)


def _lstm_cell(d: _Direction, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    h, c = state
    f, g, out = d.activations
    enter, leave, forget, new = (x + h @ d.recurrence).chunk(4, -1)
    if d.peepholes is not None:
        enter, forget = enter + d.peepholes[0] * c, forget + d.peepholes[2] * c
    enter = f(d.clipped(enter))
    forget = 1 - enter if attribute(d.node, "input_forget", 0) else f(d.clipped(forget))
    c = forget * c + enter * g(d.clipped(new))
    leave = leave if d.peepholes is None else leave + d.peepholes[1] * c
    return f(d.clipped(leave)) * out(c), c


def _gru_cell(d: _Direction, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    (h,) = state
    f, g = d.activations
    width = h.shape[-1]
    seen = h @ d.recurrence[:, : 2 * width] + x[..., : 2 * width]
    update, reset = f(d.clipped(seen)).chunk(2, -1)
    inner, own = d.recurrence[:, 2 * width :], d.bias
    if attribute(d.node, "linear_before_reset", 0):
        new = x[..., 2 * width :] + reset * (h @ inner + own)
    else:
        new = x[..., 2 * width :] + (reset * h) @ inner + own
    return ((1 - update) * g(d.clipped(new)) + update * h,)


def _rnn_cell(d: _Direction, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    (h,) = state
    return (d.activations[0](d.clipped(x + h @ d.recurrence)),)


_CELLS = {"LSTM": _lstm_cell, "GRU": _gru_cell, "RNN": _rnn_cell}


def _run(torch: Any, node: Any, *inputs: Any) -> tuple[Any, ...]:
    """(states read [S, B, D·H], Y, Y_h, and of LSTM Y_c)"""
    given: list[Any] = [*inputs, *[None] * (8 - len(inputs))]
    x, w, r, b, lengths, *rest = given
    first = rest[: 2 if node.op_type == "LSTM" else 1]
    peepholes = rest[2] if node.op_type == "LSTM" else None
    batch_first = bool(attribute(node, "layout", 0))
    if batch_first:
        x = x.transpose(0, 1)
        first = [s if s is None else s.transpose(0, 1) for s in first]
    functions = _activations(torch, node)
    per = len(functions) // w.shape[0]
    parts = []
    for i in range(w.shape[0]):
        bias, own = _biases(node, None if b is None else b[i], r.shape[-1], w)
        holes = None if peepholes is None else peepholes[i].reshape(3, -1)
        direction = _Direction(torch, node, r[i].transpose(0, 1), own, holes, functions[i * per : (i + 1) * per])
        start = tuple(x.new_zeros(x.shape[1], r.shape[-1]) if s is None else s[i] for s in first)
        backwards = i == 1 or attribute(node, "direction", "forward") == "reverse"
        parts.append(_steps(direction, x @ w[i].transpose(0, 1) + bias, start, lengths, backwards))
    read = torch.cat([p[0] for p in parts], -1)
    y = torch.stack([p[1] for p in parts], 2 if batch_first else 1)
    last = [torch.stack(states) for states in zip(*(p[2] for p in parts), strict=True)]
    if batch_first:
        y, last = y.transpose(0, 1), [s.transpose(0, 1) for s in last]
    return (read, y, *last)


def _biases(node: Any, b: Any, width: int, w: Any) -> tuple[Any, Any]:
    """(of the inputs, with R's where it may be added at once; R's of GRU's new state, which stands by itself)"""
    if b is None:
        return w.new_zeros(()), w.new_zeros(())
    half = b.shape[0] // 2
    of_w, of_r = b[:half], b[half:]
    if node.op_type != "GRU":
        return of_w + of_r, w.new_zeros(())
    return of_w + of_r * (w.new_ones(half).cumsum(0) <= 2 * width), of_r[2 * width :]


def _steps(
    d: _Direction, x: Any, state: tuple[Any, ...], lengths: Any, backwards: bool
) -> tuple[Any, Any, tuple[Any, ...]]:
    """One direction over x [S, B, G·H]: (h before each step [S, B, H], h after it, the last states [B, H]).

    Rows shorter than S are read up to their length; behind it Y is 0 and the state stays. Backwards, each row begins at
    its own end.
    """
    torch, count = d.torch, x.shape[0]
    order = None
    if backwards and lengths is not None:
        steps = torch.arange(count, device=x.device)[:, None]
        order = torch.where(steps < lengths, lengths - 1 - steps, steps)
        x = x.gather(0, order[..., None].expand_as(x))
    elif backwards:
        x = x.flip(0)
    before, after = [], []
    for step in range(count):
        before.append(state[0])
        moved = _CELLS[d.node.op_type](d, x[step], state)
        if lengths is None:
            state = moved
            after.append(moved[0])
            continue
        going = (step < lengths)[:, None]
        state = tuple(torch.where(going, new, old) for new, old in zip(moved, state, strict=True))
        after.append(torch.where(going, moved[0], torch.zeros_like(moved[0])))
    found = [torch.stack(states) if states else x.new_zeros(0, *state[0].shape) for states in (before, after)]
    if order is not None:
        found = [s.gather(0, order[..., None].expand_as(s)) for s in found]
    elif backwards:
        found = [s.flip(0) for s in found]
    return found[0], found[1], state


def _axes(node: Any, c: Constraints) -> None:
    """Inputs are read by W; hidden units stand in W, R, the biases, peepholes and states, and are read by R."""
    x, w, r = node.inputs[:3]
    batch_first = bool(attribute(node, "layout", 0))
    steps, rows = (1, 0) if batch_first else (0, 1)
    gates, width = _GATES[node.op_type], c.sizes(r)[2]
    unit, turn, batch = c.fresh(width), c.fresh(c.sizes(w)[0]), c.dims(x)[rows]
    c.same(c.dims(x)[2], c.dims(w)[2])
    c.reads(node, 0, 2)
    c.reads(node, WEIGHT, 2)
    c.reads(node, RECURRENCE, 2)
    c.same(c.dims(r)[2], unit)
    for value, parts in ((w, gates), (r, gates), (operand(node, 3), 2 * gates), (operand(node, 7), 3)):
        if value is not None:
            part = c.fresh(parts)
            c.flat([c.dims(value)[1]], [part, unit])
            c.hold(part, "the gates of a recurrence")
            c.same(c.dims(value)[0], turn)
    if (lengths := operand(node, 4)) is not None:
        c.same(c.dims(lengths)[0], batch)
    for state in (operand(node, 5), operand(node, 6), outcome(node, 1), outcome(node, 2)):
        if state is not None:
            c.same(c.dims(state)[2], unit)
            c.same(c.dims(state)[1 if batch_first else 0], turn)
            c.same(c.dims(state)[0 if batch_first else 1], batch)
    if (y := outcome(node, 0)) is not None:
        c.same(c.dims(y)[steps], c.dims(x)[steps])
        c.same(c.dims(y)[2 if batch_first else 1], turn)
        c.same(c.dims(y)[0 if batch_first else 2], batch)
        c.same(c.dims(y)[3], unit)
    c.hold(turn, "the directions of a recurrence")
    c.pin(x, [steps], "the steps of a recurrence")


def _macs(node: Any, s: Sizes) -> int:
    """Every step of every row reads W and R once."""
    x, w, r = [s.shape(v) for v in node.inputs[:3]]
    return math.prod(x[:2]) * math.prod(w[:2]) * (w[2] + r[2])


def _resize(node: Any, s: Sizes) -> Change:
    if "hidden_size" not in node.attributes:
        return Change()
    return Change(attributes={"hidden_size": s.shape(node.inputs[RECURRENCE])[2]})


register(dict.fromkeys(_CELLS, _run), axes=_axes, macs=_macs, resize=_resize, states=RECURRENCE)
