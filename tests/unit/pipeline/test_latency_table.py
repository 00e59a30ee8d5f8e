"""A table of a device is measured by the worker that owns it, which is sent the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import perceptron
import pytest

from onnxprune.errors import UsageError
from onnxprune.pipeline.latency_table import profile
from onnxprune.search import workers as engines


class Owner:
    """A cluster of one worker, which is this process and has a phone."""

    count, cores = 1, 0

    def share(self, value: Any) -> Any:
        return value

    def run(
        self, function: Callable[..., Any], tasks: Sequence[Any], *shared: Any, tag: str | None = None
    ) -> Iterator[tuple[int, Any]]:
        assert tag == "phone"
        for i, task in enumerate(tasks):
            yield i, function(task, *shared)


def test_where_the_device_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = perceptron.write(tmp_path / "model.onnx")

    @contextmanager
    def opened(count: int | None, cluster: str) -> Iterator[Owner]:
        assert (count, cluster) == (None, "dask://lab:8786")
        yield Owner()

    monkeypatch.setattr(engines, "opened", opened)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked: dict[str, Any] = {"shapes": [{"batch": 2}], "units": ["neurons"]}
    (table,) = profile(file, **asked, cluster="dask://lab:8786", on="phone")
    assert dict(table.shape) == {"batch": 2}
    assert {e.kind for e in table.entries} >= {"neurons"}
    with pytest.raises(UsageError, match="--cluster URL and --on TAG"):
        profile(file, **asked, on="phone")
