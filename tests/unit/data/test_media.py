"""Images, masks and audio: prepared as the model's own preprocessor would, or plainly and said."""

from __future__ import annotations

import io
import json
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.data import Dataset, read
from onnxprune.errors import DataError
from onnxprune.graph.model import InputSpec

Image = pytest.importorskip("PIL.Image")
F32 = np.dtype(np.float32)


def pixel_input(channels: int | str = 3, height: int | str = "height", width: int | str = "width") -> InputSpec:
    return InputSpec("pixel_values", F32, ("batch", channels, height, width))


def picture(height: int, width: int, channels: int = 3) -> np.ndarray[Any, Any]:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(height * 1000 + width).integers(0, 256, shape).astype(np.uint8)


def save(path: Path, array: np.ndarray[Any, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def pixels(data: Dataset, row: int = 0) -> np.ndarray[Any, Any]:
    return data.examples[row].feeds["pixel_values"]


def configured(folder: Path, **config: Any) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


SIZES = [(40, 60), (31, 17), (24, 24), (9, 30)]
SQUARE = {"height": 24, "width": 20}
COMMON: dict[str, Any] = {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.27, 0.28], "do_normalize": True}
PROCESSORS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {"size": SQUARE, "do_resize": True, "resample": 2},
    "DeiTImageProcessor": {"size": {"height": 28, "width": 28}, "crop_size": SQUARE, "do_center_crop": True},
    "CLIPImageProcessor": {
        "size": {"shortest_edge": 22},
        "crop_size": {"height": 25, "width": 24},
        "do_center_crop": True,
    },
    "BitImageProcessor": {
        "size": {"shortest_edge": 24},
        "crop_size": {"height": 20, "width": 20},
        "do_center_crop": True,
    },
    "SiglipImageProcessor": {"size": SQUARE, "resample": 3},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 24}, "crop_pct": 0.875, "resample": 3},
    "BeitImageProcessor": {"size": SQUARE, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True},
    "MobileViTImageProcessor": {"size": {"shortest_edge": 26}, "crop_size": SQUARE, "do_flip_channel_order": True},
    "MobileNetV2ImageProcessor": {"size": {"shortest_edge": 26}, "crop_size": SQUARE},
    "SegformerImageProcessor": {"size": SQUARE},
    "BlipImageProcessor": {"size": SQUARE},
    "LevitImageProcessor": {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_prepared_as_transformers_does(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    keys = PROCESSORS[name] | (COMMON if name != "MobileViTImageProcessor" else {})
    reference = getattr(transformers, name)(**keys)
    reference.save_pretrained(tmp_path)
    images = [picture(*size) for size in SIZES]
    with pytest.MonkeyPatch.context() as patch:
        if name != "LevitImageProcessor":  # which means more by its sizes than they say, and is run itself
            patch.setitem(sys.modules, "transformers", None)
        data = read([{"image": image} for image in images], [pixel_input()], folder=tmp_path)
    for row, image in enumerate(images):
        wanted = reference(images=Image.fromarray(image), return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(pixels(data, row), wanted, atol=1e-5)


def test_old_configurations_with_a_number_as_size(tmp_path: Path) -> None:
    configured(tmp_path, feature_extractor_type="CLIPFeatureExtractor", size=20, crop_size=20, do_center_crop=True)
    assert pixels(read([{"image": picture(40, 60)}], [pixel_input()], folder=tmp_path)).shape == (1, 3, 20, 20)
    configured(tmp_path, feature_extractor_type="ViTFeatureExtractor", size=20, do_resize=True)
    assert pixels(read([{"image": picture(40, 60)}], [pixel_input()], folder=tmp_path)).shape == (1, 3, 20, 20)
    configured(tmp_path, feature_extractor_type="CLIPFeatureExtractor", size=20, do_center_crop=False)
    assert pixels(read([{"image": picture(40, 60)}], [pixel_input()], folder=tmp_path)).shape == (1, 3, 20, 30)


@pytest.mark.parametrize("step", ["do_resize", "do_rescale", "do_normalize", "do_center_crop"])
def test_steps_are_wanted_or_not(tmp_path: Path, step: str) -> None:
    """A word such as "false" would count as true."""
    wrong: list[Any] = ["false", [], 2, float("nan"), {"a": 1}]
    for odd in wrong:
        configured(tmp_path, image_processor_type="ViTImageProcessor", size=SQUARE, **COMMON | {step: odd})
        with pytest.raises(DataError, match=f"{step} is .*neither true nor false"):
            read([{"image": picture(9, 9)}], [pixel_input()], folder=tmp_path)
    configured(tmp_path, do_normalize="no", sampling_rate=8000)
    with pytest.raises(DataError, match="do_normalize is 'no', neither"):
        read([{"audio": TONE}], [WAVE], folder=tmp_path)


def test_processors_that_do_more_are_run_by_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(tmp_path, image_processor_type="LevitImageProcessor", size={"shortest_edge": 24})
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DataError, match="LevitImageProcessor is run with the package transformers: pip install"):
        read([{"image": picture(9, 9)}], [pixel_input()], folder=tmp_path)


def test_without_a_configuration_the_graphs_size_is_used_and_said(tmp_path: Path) -> None:
    white = np.full((10, 12, 3), 255, np.uint8)
    data = read([{"image": white}], [pixel_input(3, 8, 6)])
    assert pixels(data).shape == (1, 3, 8, 6)
    assert (pixels(data) == 1).all()
    assert any("resized to 8 x 6 and scaled to 0..1" in note for note in data.description)
    with pytest.raises(DataError, match="nothing says the size"):
        read([{"image": white}], [pixel_input()])


def test_grey_channels_last_and_integer_inputs() -> None:
    grey = picture(8, 8, 1)
    np.testing.assert_allclose(pixels(read([{"image": grey}], [pixel_input(1, 8, 8)]))[0, 0], grey / 255, atol=1e-6)
    colour = picture(8, 6)
    last = InputSpec("data", F32, ("batch", 8, 6, 3))
    np.testing.assert_allclose(read([{"image": colour}], [last]).examples[0].feeds["data"][0], colour / 255, atol=1e-6)
    whole = InputSpec("data", np.dtype(np.uint8), ("batch", 3, 8, 6))
    data = read([{"image": colour}], [whole])
    np.testing.assert_array_equal(data.examples[0].feeds["data"][0], colour.transpose(2, 0, 1))
    assert any("left at 0..255" in note for note in data.description)


def test_a_grey_model_with_a_configuration(tmp_path: Path) -> None:
    configured(tmp_path, size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.25], do_normalize=True)
    data = read([{"image": picture(8, 8)}], [pixel_input(1, 8, 8)], folder=tmp_path)
    wanted = (np.asarray(Image.fromarray(picture(8, 8)).convert("L")) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(pixels(data)[0, 0], wanted, atol=1e-5)


def test_files_bytes_and_dictionaries(tmp_path: Path) -> None:
    array = picture(8, 8)
    path = save(tmp_path / "images" / "a.png", array)
    (tmp_path / "rows.jsonl").write_text('{"image": "images/a.png", "label": 3}\n')
    spec = [pixel_input(3, 8, 8)]
    data = read(tmp_path / "rows.jsonl", spec)
    assert data.labels == (3,)
    assert data.kind == "image"
    for value in (
        path,
        path.read_bytes(),
        {"bytes": path.read_bytes(), "path": None},
        Image.open(path),
        array.tolist(),
    ):
        np.testing.assert_array_equal(pixels(read([{"image": value}], spec)), pixels(data))


def test_rotated_photographs_are_turned_upright(tmp_path: Path) -> None:
    image = Image.fromarray(picture(6, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "a.png", exif=exif)
    data = read([{"image": tmp_path / "a.png"}], [pixel_input(3, 8, 6)])
    np.testing.assert_allclose(pixels(data)[0], np.rot90(picture(6, 8), -1).transpose(2, 0, 1) / 255, atol=1e-6)


def test_a_folder_of_images(tmp_path: Path) -> None:
    for name in ("dog/b.png", "cat/a.jpg", "cat/deep/c.png", ".hidden/d.png", "dog/notes.txt"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("no image")
        else:
            save(tmp_path / name, picture(8, 8))
    spec = [pixel_input(3, 8, 8)]
    data = read(tmp_path, spec)
    assert [Path(e.source).name for e in data.examples] == ["a.jpg", "c.png", "b.png"]
    assert data.labels == (0, 0, 1)
    assert any("sorted order (cat=0, dog=1)" in note for note in data.description)
    (tmp_path / "config.json").write_text(json.dumps({"label2id": {"Cat": 7, "Dog": 5}}))
    assert read(tmp_path, spec, folder=tmp_path).labels == (7, 7, 5)


def test_a_part_of_a_folder_is_drawn_and_not_of_one_label(tmp_path: Path) -> None:
    for label in range(2):
        for number in range(20):
            save(tmp_path / str(label + 3) / f"{number}.png", picture(4, 4))
    data = read(tmp_path, [pixel_input(3, 4, 4)], limit=20, seed=1)
    assert len(data) == 20
    assert set(data.labels or ()) == {3, 4}
    again = read(tmp_path, [pixel_input(3, 4, 4)], limit=20, seed=1)
    assert [e.source for e in data.examples] == [e.source for e in again.examples]


def test_masks_become_labels_of_the_images_size(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 30:] = 2
    save(tmp_path / "mask.png", mask)
    save(tmp_path / "image.png", picture(40, 60))
    rows = [{"image": str(tmp_path / "image.png"), "mask": str(tmp_path / "mask.png")}]
    configured(tmp_path, image_processor_type="SegformerImageProcessor", size={"height": 20, "width": 30})
    label = read(rows, [pixel_input()], folder=tmp_path).examples[0].label
    np.testing.assert_array_equal(label, mask[::2, ::2])
    configured(tmp_path, image_processor_type="SegformerImageProcessor", size=[20, 30], do_reduce_labels=True)
    label = read(rows, [pixel_input()], folder=tmp_path).examples[0].label
    assert set(np.unique(label)) == {1, 255}
    save(tmp_path / "mask.png", mask[:10])
    with pytest.raises(DataError, match="make them equal"):
        read(rows, [pixel_input()], folder=tmp_path)


def test_bad_images(tmp_path: Path) -> None:
    spec = [pixel_input(3, 8, 8)]
    good = {"image": picture(8, 8)}
    (tmp_path / "a.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    for value, says in (
        ("none.png", "no file none.png: paths are relative"),
        (str(tmp_path / "a.png"), "cannot be read as an image"),
        (str(tmp_path / "deep.png"), "8 bits a channel"),
        (None, "no field 'image'"),
        (3, "cannot be read as an image"),
    ):
        with pytest.raises(DataError, match="list:2: ") as caught:
            read([good, {"image": value}], spec)
        assert says in str(caught.value)
    configured(tmp_path, size={"height": 9, "width": 9})
    with pytest.raises(DataError, match=r"prepared as 9 x 9.*own preprocessor_config"):
        read([good], spec, folder=tmp_path)
    with pytest.raises(DataError, match="none of the fields 'image'"):
        read([good], [InputSpec("input_ids", np.dtype(np.int64), ("batch", "sequence"))])


@pytest.mark.parametrize(
    ("dtype", "odd"),
    [
        (np.float32, {"image_mean": 1e308, "image_std": [0.5, 0.5, 0.5]}),
        (np.float32, {"image_mean": [0.5, 0.5, 0.5], "image_std": 1e-300}),
        (np.float16, {"image_mean": [1e6, 0.5, 0.5], "image_std": [1, 1, 1]}),
        (np.float64, {"rescale_factor": 1e308}),
    ],
)
def test_pixels_that_are_no_numbers_any_more_are_refused(dtype: Any, odd: dict[str, Any], tmp_path: Path) -> None:
    """In one line, and without the warnings of what computed them."""
    configured(tmp_path, image_processor_type="ViTImageProcessor", size={"height": 4, "width": 4}, **odd)
    spec = InputSpec("pixel_values", np.dtype(dtype), ("batch", 3, "height", "width"))
    with pytest.raises(DataError, match="prepared as numbers of"):
        read([{"image": picture(6, 5)}], [spec], folder=tmp_path)


def test_text_and_image_of_one_row(tmp_path: Path) -> None:
    ids = InputSpec("input_ids", np.dtype(np.int64), ("texts", "sequence"))
    data = read([{"image": picture(4, 4), "input_ids": [1, 2]}], [ids, pixel_input(3, 4, 4)])
    assert {name: feed.shape for name, feed in data.examples[0].feeds.items()} == {
        "input_ids": (1, 2),
        "pixel_values": (1, 3, 4, 4),
    }


WAVE = InputSpec("input_values", F32, ("batch", "samples"))
TONE = np.sin(np.arange(400) / 9) * 0.5


def sound(samples: np.ndarray[Any, Any], width: int = 2, rate: int = 16000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(rate)
        whole = np.round(samples * (2 ** (8 * width - 1) - 1)).astype(np.int64)
        if width == 1:
            writer.writeframes((whole + 128).astype(np.uint8).tobytes())
        else:
            writer.writeframes(b"".join(int(v).to_bytes(width, "little", signed=True) for v in whole))
    return file.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_files_of_all_widths(width: int, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(sound(TONE, width))
    (tmp_path / "rows.jsonl").write_text('{"audio": "a.wav", "label": 1}')
    data = read(tmp_path / "rows.jsonl", [WAVE])
    feed = data.examples[0].feeds["input_values"]
    assert (data.kind, data.labels, feed.dtype.name, feed.shape) == ("audio", (1,), "float32", (1, 400))
    np.testing.assert_allclose(feed[0], TONE, atol=2.5 / 2 ** (8 * width - 1) + 1e-6)


def test_audio_is_normalised_mixed_down_and_may_be_an_array(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": 8000}))
    stereo = np.stack([TONE, TONE * 0.5], axis=1).reshape(-1)
    feed = (
        read([{"audio": sound(stereo, rate=8000, channels=2)}], [WAVE], folder=tmp_path)
        .examples[0]
        .feeds["input_values"]
    )
    np.testing.assert_allclose(feed[0], (TONE - TONE.mean()) / TONE.std(), atol=1e-3)
    row = {"audio": {"array": TONE, "sampling_rate": 8000, "path": None}}
    again = read([row], [WAVE], folder=tmp_path).examples[0].feeds["input_values"]
    np.testing.assert_allclose(again, feed, atol=1e-3)


def test_a_fixed_length_of_audio_is_said() -> None:
    for length in (300, 500):
        data = read([{"audio": TONE}], [InputSpec("input_values", F32, ("batch", length))])
        feed = data.examples[0].feeds["input_values"]
        assert feed.shape == (1, length)
        np.testing.assert_allclose(feed[0, :300], TONE[:300], atol=1e-6)
        assert (feed[0, 400:] == 0).all()
        assert any(f"to the {length} samples" in note for note in data.description)


def test_audio_features_are_the_extractors(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1, n_fft=64, hop_length=32)
    reference.save_pretrained(tmp_path)
    spec = InputSpec("input_features", F32, ("batch", 8, 500))
    feed = read([{"audio": TONE}], [spec], folder=tmp_path).examples[0].feeds["input_features"]
    wanted = reference(TONE.astype(np.float32), sampling_rate=16000, return_tensors="np")["input_features"]
    np.testing.assert_allclose(feed, wanted, atol=1e-5)
    with pytest.raises(DataError, match=r"put preprocessor_config\.json beside"):
        read([{"audio": TONE}], [spec])


def test_audio_inputs_of_other_names_and_ranks() -> None:
    for name, shape in (("signal", ("batch", "samples")), ("x", ("batch", 1, "samples"))):
        length = InputSpec("length", np.dtype(np.int64), ("batch", 1))
        data = read([{"audio": TONE, "length": [400]}], [InputSpec(name, F32, shape), length])
        assert data.examples[0].feeds[name].shape == (1, *[1] * (len(shape) - 2), 400)
        assert data.kind == "audio"


def test_bad_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    for value, says in (
        ("none.wav", "no file none.wav"),
        (sound(TONE, rate=44100), "has 44100 Hz and the model takes 16000"),
        (b"fLaC and so on", "pip install soundfile"),
        (np.zeros((2, 3)), "one axis of samples"),
        ([], "one axis of samples"),
        (["a"], "a path or samples"),
        (None, "no field 'audio'"),
    ):
        with pytest.raises(DataError, match="list:2: ") as caught:
            read([{"audio": TONE}, {"audio": value}], [WAVE])
        assert says in str(caught.value)


STREAM = (
    InputSpec("input", F32, ("batch", "samples")),
    InputSpec("state", F32, (2, "batch", 8)),
    InputSpec("sr", np.dtype(np.int64), ()),
)


def test_a_folder_of_sounds_for_a_streaming_model(tmp_path: Path) -> None:
    """The state begins at nothing, the rate is the sound's own, and a stated length is cut where it is loud."""
    quiet = np.zeros(900)
    quiet[600] = 0.5
    for name in ("a", "b"):
        (tmp_path / f"{name}.wav").write_bytes(sound(quiet, 2, rate=8000))
    rows = read(tmp_path, STREAM, shape={"samples": 64})
    first = rows.examples[0].feeds
    assert (len(rows), rows.kind, first["sr"].tolist(), first["state"].shape) == (2, "audio", 8000, (2, 1, 8))
    assert not first["state"].any()
    assert first["input"].shape == (1, 64)
    assert np.argmax(np.abs(first["input"])) == 32
    assert any("64 samples that --shape states" in line for line in rows.description)


def test_a_state_of_open_size_is_asked_for() -> None:
    with pytest.raises(DataError, match="state them with --shape"):
        read(
            [{"audio": np.ones(9, np.float32)}], [STREAM[0], InputSpec("state", F32, (2, "batch", "width")), STREAM[2]]
        )
