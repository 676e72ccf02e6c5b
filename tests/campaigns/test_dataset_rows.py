"""Dataset folders that somebody meant harm with: their rows are read, or the folder is refused in a line."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.regions.targets import MIXTURE_WEIGHTS
from data.store.parquet import FEATURES, encode_columns, write_rows
from data.store.reader import load_samples
from data.store.sample_maker import TargetScale
from tests.campaigns.test_images import png
from tests.helpers.campaign import campaign, trial
from tests.helpers.hostile_folders import JSON, replaced, write_folder
from tests.helpers.hub_server import folder_files

NAME = "dataset rows"
SIDE = 16


def whole_rows() -> list[dict]:
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8) for name in ("gt", "sr", "syn")}
    pictures |= {"lq": pictures["gt"][::4, ::4], "mask": pictures["gt"][..., 0]}
    maps = ("degradation_map", "sr_degradation_map", "pixel_map", "feature_map", "sr_pixel_map", "sr_feature_map")
    encoded = encode_columns({**pictures, **{name: rng.random((SIDE, SIDE)).astype(np.float32) for name in maps}})
    values = {
        "area": 0.5,
        "severity": 0.5,
        "map_mask_correlation": 0.1,
        "is_control": False,
        "control": "",
        "task": "sr",
    }
    words = {"restorer": "bicubic", "mask_kind": "blobs", "source": "lake", "image_id": "lake/1", "parameters": "{}"}
    return [{**encoded, **values, **words, "index": index, "region": 0} for index in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def dataset(folder) -> dict[str, bytes]:
    scale = {"pixel_quantile": 0.1, "feature_quantile": 0.2, "feature_peak": 1.0}
    write_rows(folder / "whole" / "data" / "train-00000-of-00001.parquet", whole_rows(), rows_per_pair=2)
    (folder / "whole" / "normaliser.json").write_text(
        json.dumps({**scale, "mixture_quantiles": [1.0] * len(MIXTURE_WEIGHTS)})
    )
    (folder / "whole" / "config.yaml").write_text("targets: {pixel_weight: 0.5, features: gradients}\n")
    (folder / "whole" / "summary.json").write_text("{}")
    return folder_files(folder / "whole")


def read(dataset: Path, folder: Path, pixel_weight: float | None) -> None:
    with trial(NAME, folder):
        samples = load_samples(dataset, "train", pixel_weight=pixel_weight)
        for index in range(min(4, len(samples))):
            sample = samples[index]
            assert sample.gt.shape == sample.syn.shape
            samples.parameters(index)
        samples.column("restorer")
        TargetScale.of(dataset)


@campaign(slice_of=40, whole=1500)
@given(data=st.data(), pixel_weight=st.sampled_from([None, 0.3]))
def test_damaged_folders(folder, dataset, data, pixel_weight):
    write_folder(folder / "attacked", dataset, *data.draw(replaced(dataset)))
    read(folder / "attacked", folder, pixel_weight)


def encoded(mode: str, size: tuple[int, int], form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, form)
    return buffer.getvalue()


PICTURES = st.one_of(
    st.builds(
        encoded,
        st.sampled_from(["RGB", "RGBA", "L", "LA", "P", "1", "I;16"]),
        st.tuples(st.sampled_from([1, 4, SIDE, SIDE + 1]), st.sampled_from([1, 4, SIDE, 300])),
    ),
    st.sampled_from([encoded("RGB", (SIDE, SIDE), "JPEG"), encoded("RGB", (SIDE, SIDE), "EPS"), b"", b"\x89PNG"]),
    st.builds(
        png, st.sampled_from([SIDE, 30_000, 2**31 - 1]), st.integers(1, 30_000), st.just(8), st.just(2), st.just(b"")
    ),
    st.none(),
)
VALUES = {
    "double": st.floats(),
    "string": st.text(max_size=5) | st.none(),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "bool": st.booleans() | st.none(),
    "float": st.floats(width=32) | st.none(),
}


@campaign(slice_of=40, whole=1500)
@given(data=st.data(), pixel_weight=st.sampled_from([None, 0.3]))
def test_rows_of_another_kind(folder, dataset, data, pixel_weight):
    columns = {name: [row[name] for row in whole_rows()] for name in FEATURES}
    schema = FEATURES.arrow_schema
    for name in data.draw(st.lists(st.sampled_from(sorted(FEATURES)), min_size=1, max_size=2, unique=True)):
        place = schema.get_field_index(name)
        match data.draw(st.sampled_from(["value", "value", "value", "kind", "drop"])):
            case "value" if isinstance(columns[name][0], dict):
                columns[name][0] = data.draw(st.builds(lambda b: {"bytes": b, "path": None}, PICTURES) | st.none())
            case "value":
                drawn = data.draw(VALUES.get(str(schema.field(place).type), st.none()))
                columns[name][0] = np.float32(drawn) if isinstance(drawn, float) and math.isfinite(drawn) else drawn
            case "kind":
                kind = data.draw(st.sampled_from(sorted(VALUES)))
                columns[name] = [data.draw(VALUES[kind]) for _ in range(3)]
                schema = schema.set(place, pa.field(name, kind))
            case "drop":
                columns.pop(name)
                schema = schema.remove(place)
    write_folder(folder / "attacked", dataset, "", b"")
    path = folder / "attacked" / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pa.table(columns, schema=schema.remove_metadata()), path)
    read(folder / "attacked", folder, pixel_weight)


@campaign(slice_of=10, whole=200)
@given(data=st.data(), name=st.sampled_from(["normaliser.json", "config.yaml"]))
def test_scales_of_another_kind(folder, dataset, data, name):
    place = json.dumps(
        data.draw(st.dictionaries(st.sampled_from(["targets", "feature_peak", "mixture_quantiles"]), JSON))
    )
    write_folder(folder / "attacked", dataset, name, place.encode())
    read(folder / "attacked", folder, 0.3)
