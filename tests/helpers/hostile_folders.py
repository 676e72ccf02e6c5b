"""What a campaign does to one file of a folder that was whole: damage, other json, other tensors, links out of the folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.helpers.damage import damaged

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
NUMBER = st.one_of(st.integers(-2, 9), st.sampled_from([2**31, 2**63, 10**30, 65536, 0.5, -0.0, math.nan, math.inf]))
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    NUMBER,
    TEXT,
    st.sampled_from(
        ["own", "none", "bicubic", "shipped:base_sr", "..", "/dev/zero", "hf:", "${seed}", "tu-hf-hub:a/b"]
    ),
    st.sampled_from(["resnet50", "tu-eva02_enormous_patch14_clip_224"]),
)
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)


@st.composite
def other_json(draw: st.DrawFn, content: bytes) -> bytes:
    """Draws the json with some of its values replaced, dropped, or repeated many times."""
    value = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        node, last = value, None
        while isinstance(node, dict | list) and node and (last is None or draw(st.integers(0, 5))):
            parent, last = node, draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            node = parent[last]
        if last is None:
            break
        if isinstance(parent, dict) and draw(st.integers(0, 7)) == 0:
            del parent[last]
        elif draw(st.integers(0, 9)) == 0:
            parent[last] = [node] * draw(st.sampled_from([2, 100, 5000]))
        else:
            parent[last] = draw(JSON)
    return json.dumps(value).encode()


@st.composite
def other_tensors(draw: st.DrawFn, content: bytes) -> bytes:
    """Draws the safetensors file with another header: names, shapes, kinds, offsets, its length."""
    size = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    for name in draw(st.lists(st.sampled_from(sorted(header)), min_size=1, max_size=2)):
        tensor = header[name] if isinstance(header.get(name), dict) else {}
        match draw(st.sampled_from(["shape", "dtype", "offsets", "name", "drop", "flat", "any"])):
            case "shape":
                tensor["shape"] = draw(st.lists(st.sampled_from([0, 1, 2, 3, 2**31, 2**62, -1]), max_size=5))
            case "dtype":
                tensor["dtype"] = draw(st.sampled_from(["F16", "F64", "I64", "BOOL", "F8_E4M3", "F1024", ""]))
            case "offsets":
                tensor["data_offsets"] = draw(st.lists(st.integers(0, 2**63), min_size=2, max_size=2))
            case "name":
                header[draw(TEXT)] = header.pop(name, {})
            case "drop":
                header.pop(name, None)
            case "flat":
                tensor["shape"] = [math.prod(tensor.get("shape", [1]))]
            case "any":
                header[name] = draw(JSON)
    written = json.dumps(header).encode()
    length = draw(st.sampled_from([len(written)] * 6 + [0, 1, 2**31, 2**63, 2**64 - 1]))
    return struct.pack("<Q", length) + written + body


@st.composite
def hostile(draw: st.DrawFn, content: bytes, name: str) -> bytes:
    """Draws what may lie in place of a file of that name and content."""
    kinds = [damaged(content)]
    if name.endswith(".json"):
        kinds += [other_json(content)] * 3 + [
            st.sampled_from([b"[" * 3_000, b"{}", b"[]", b"1", b"", b"nul", b"\xff\xfe"])
        ]
    if name.endswith(".safetensors"):
        kinds += [other_tensors(content)] * 2
    return draw(st.one_of(kinds))


@st.composite
def replaced(draw: st.DrawFn, whole: dict[str, bytes]) -> tuple[str, bytes | str]:
    """Draws one file of a folder and what lies in its place: other content, or a kind of link (a word)."""
    name = draw(st.sampled_from(sorted(whole)))
    if draw(st.integers(0, 19)) == 0:
        return name, draw(st.sampled_from(["endless", "loop", "outside", "folder", "pipe", "missing"]))
    return name, draw(hostile(whole[name], name))


def write_folder(folder: Path, whole: dict[str, bytes], name: str, place: bytes | str) -> None:
    """Makes the folder anew, with the one file replaced; a link leads out of the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for other, content in whole.items():
        path = folder / other
        path.parent.mkdir(parents=True, exist_ok=True)
        if other != name:
            path.write_bytes(content)
        elif isinstance(place, bytes):
            path.write_bytes(place)
        else:
            match place:
                case "endless":
                    path.symlink_to("/dev/zero")
                case "loop":
                    path.symlink_to(path)
                case "outside":
                    path.symlink_to("/etc/passwd")
                case "folder":
                    path.mkdir()
                case "pipe":
                    os.mkfifo(path)


def with_checksums(folder: Path, config_name: str, listed: dict[str, Any]) -> None:
    """Writes the checksums of files anew, so that damage gets past them: whoever means harm can do so as well."""
    path = folder / config_name
    if not all((folder / name).is_file() for name in (config_name, *listed)):
        return  # a pipe would be read for ever
    try:
        config = json.loads(path.read_text())
        for name, place in listed.items():
            content = (folder / name).read_bytes()
            node = config
            for key in place[:-1]:
                node = node[key]
            node[place[-1]] = hashlib.sha256(content).hexdigest()
            if "bytes" in node:
                node["bytes"] = len(content)
        path.write_text(json.dumps(config))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # the description is what was damaged
