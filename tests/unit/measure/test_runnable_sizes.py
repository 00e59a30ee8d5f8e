"""Sizes nobody stated: the first that a graph takes is counted at, and that is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from graphs import written

from onnxprune.errors import UsageError
from onnxprune.graph import model as models
from onnxprune.measure import runnable_sizes
from onnxprune.measure.footprint import footprint
from onnxprune.measure.runnable_sizes import runnable
from onnxprune.pipeline.rows import shape_of

TEXT = """
<ir_version: 9, opset_import: ["" : 17]>
net (float[N, 2, L] x, float[N, past_length, 4] cache, float[N, M, 4] more, float[8, 2, 200] w)
    => (float[N, 8, K] y, float[N, R, 4] z) {
    y = Conv(x, w)
    z = Concat <axis = 1> (cache, more)
}
"""


def test_a_size_that_runs_is_found_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dense = models.load(written(tmp_path, TEXT, {"w": (8, 2, 200)}))
    found = runnable(dense, {}, 128)
    assert found["N"] == 1 and found["L"] == 256
    assert "cannot run with" in caplog.text and "=128: counted at 256" in caplog.text


def test_a_stated_size_stays_and_nothing_is_run_where_all_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dense = models.load(written(tmp_path, TEXT, {"w": (8, 2, 200)}))
    stated = {"L": 300, "past_length": 3, "M": 2}
    monkeypatch.setattr("onnxprune.graph.segments.opened", lambda *a, **k: pytest.fail("the graph is run"))
    assert runnable(dense, stated, 128) == {**stated, "N": 1}
    assert not caplog.text


def test_where_none_runs_the_first_is_taken_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dense = models.load(written(tmp_path, TEXT, {"w": (8, 2, 200)}))
    assert runnable(dense, {"L": 9}, 128)["M"] == 128
    assert "at none of the sizes" in caplog.text


def test_sizes_that_take_gigabytes_are_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = models.load(written(tmp_path, TEXT, {"w": (8, 2, 200)}))
    tried: list[int] = []
    monkeypatch.setattr(runnable_sizes, "run", lambda _, feeds: tried.append(feeds["x"].shape[2]))
    sizes = {"N": 1, "L": 64, "past_length": 64, "M": 64}
    monkeypatch.setattr(runnable_sizes, "HELD", footprint(dense, sizes).activations)
    assert runnable(dense, {}, 128)["L"] == 64 and tried == [64]


CACHED = """
<ir_version: 9, opset_import: ["" : 17]>
net (float[N, past, 4] cache, float[N, total] mask, float[N, new, 4] x) => (float[N, K, 4] y) {
    axes = Constant <value_ints = [2]> ()
    seen = Unsqueeze (mask, axes)
    all = Concat <axis = 1> (cache, x)
    kept = Mul (all, seen)
    y = MatMul (kept, w)
}
"""


def test_one_length_may_be_the_sum_of_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A dynamo export of a decoder names the length of its mask apart from the past and the new."""
    path = written(tmp_path, CACHED, {"w": (4, 4)})
    assert runnable(models.load(path), {}, 128) == {"N": 1, "past": 128, "total": 256, "new": 128}
    assert "total=256, the sum of the others" in caplog.text


def test_sizes_that_are_asked_for_run(tmp_path: Path) -> None:
    dense = models.load(written(tmp_path, CACHED, {"w": (4, 4)}))
    with pytest.raises(UsageError, match="--shape new=128,past=128,total=256"):
        shape_of(dense, {}, None)
