"""A run that is lost goes on elsewhere from what an S3 server holds: real client, real server, on this machine."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import perceptron
import pytest

Outcome = tuple[int, str, str]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket."""
    pytest.importorskip("s3fs", reason="no s3fs")
    server = pytest.importorskip("moto.server", reason="no moto: there is no S3 server to try")
    boto3 = pytest.importorskip("boto3", reason="no boto3")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    serving = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    serving.start()
    host, port = serving.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "anyone")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="runs")
    yield "s3://runs/of-a-team"
    serving.stop()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_sweep_goes_on_from_a_bucket(run: Callable[..., Outcome], bucket: str, tmp_path: Path) -> None:
    import boto3

    model = perceptron.write(tmp_path / "model.onnx")
    rows = perceptron.write_rows(tmp_path / "rows.jsonl", 40)

    def swept(folder: str, budgets: str) -> Outcome:
        return run(
            "sweep", str(model), "--flops", budgets, "--calib", str(rows), "-o", str(tmp_path / folder), "--no-latency",
            "--store", bucket,
        )  # fmt: skip

    assert swept("first", "0.8")[0] == 0
    listed = boto3.client("s3").list_objects_v2(Bucket="runs")["Contents"]
    kinds = {one["Key"].split("/")[1] for one in listed}
    assert kinds == {"scores", "plans", "seen"}
    assert swept("second", "0.8")[0] == 0
    first, second = (next((tmp_path / f).glob("*0.8.onnx")) for f in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    took = [json.loads(f.with_suffix(".report.json").read_text())["seconds"].keys() for f in (first, second)]
    assert {"score", "table", "search"} <= took[0]
    assert not {"score", "table", "search"} & took[1]
