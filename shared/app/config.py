"""One yaml and dotted overrides in, one frozen dataclass out; a misspelt key or a wrong type is refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from shared.app.errors import UserError

Schema = TypeVar("Schema")


def load_config(schema: type[Schema], argv: Sequence[str]) -> Schema:
    """Returns `schema` filled from `config.yaml key=value …`; later values win over earlier ones.

    Raises UserError for a missing file, an unknown key (with the nearest known one), a wrong type, a bad choice, a
    missing value, or a broken invariant (a ValueError raised in a `__post_init__`).
    """
    paths = [word for word in argv if "=" not in word]
    overrides = [word for word in argv if "=" in word]
    if len(paths) != 1:
        raise UserError(f"expected one config file and key=value overrides, got {' '.join(argv) or 'nothing'}")
    path = Path(paths[0])
    if not path.is_file():
        raise UserError(f"no config file {path}; the shipped ones are in configs/")
    try:
        written = _parsed(OmegaConf.load, path, name=str(path))
        overriding = [_parsed(OmegaConf.from_dotlist, [word], name=word) for word in overrides]
        return OmegaConf.to_object(OmegaConf.merge(_writable(OmegaConf.structured(schema)), written, *overriding))
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_one_line(error)}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, IndexError):  # OmegaConf's own, of words that are no dotted key of this config
        raise UserError(
            f"{path}: expected keys and values, and overrides key=value with dotted keys; a list is given whole: "
            "key='[{name: psnr, weight: 1}]'"
        ) from None


def from_dict(schema: type[Schema], values: dict[str, Any]) -> Schema:
    """Returns `schema` filled from a nested dict, such as one read back from json; the inverse of dataclasses.asdict."""
    return OmegaConf.to_object(OmegaConf.merge(_writable(OmegaConf.structured(schema)), values))


def to_yaml(config: Any) -> str:
    """Returns the resolved config as yaml text."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def flatten(config: Any) -> dict[str, Any]:
    """Returns {dotted key: leaf value} of a config dataclass, or of a plain nested dict read back from yaml."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif isinstance(value, list | tuple) and value:
            for index, inner in enumerate(value):
                walk(f"{prefix}.{index}", inner)
        else:
            flat[prefix] = list(value) if isinstance(value, tuple) else value

    walk("", config)
    return flat


def require_range(**bounds: tuple[float, float, float]) -> None:
    """Raises ValueError unless low <= value <= high for every name=(value, low, high)."""
    for name, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must lie between {low:g} and {high:g}, got {value:g}")


def _parsed(parse: Callable[[Any], Any], what: Any, *, name: str) -> Any:
    try:
        return parse(what)
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise UserError(f"{name} is not valid yaml: {_one_line(error)}") from None
        raise


def _writable(node: DictConfig) -> DictConfig:
    # A frozen dataclass becomes a read-only node, at every depth; the overrides still have to go in.
    OmegaConf.set_readonly(node, False)
    for key in node:
        inner = node._get_node(key)
        if isinstance(inner, DictConfig) and not inner._is_none() and not inner._is_missing():
            _writable(inner)
    return node


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(line for line in lines if not line.startswith("object_type="))
