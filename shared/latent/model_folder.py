"""A latent-diffusion model where people have it: a diffusers folder on disk or on the Hub, read part by part."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.app.errors import UserError
from shared.files import personal_path
from shared.hub import fetch_snapshot
from shared.hub_names import HUB_PREFIX
from shared.restorers.protocol import PIPELINE_INDEX
from shared.weights import read_description

DiffusersPart = Any  # a network of diffusers or transformers, whose layers publish no types
PRE_RESTORER_FILE = "pre_restorer.safetensors"  # the first stage that DiffBIR v1's checkpoint holds, beside the parts
# What a part's folder calls the file that describes it, where that is not config.json.
DESCRIPTIONS = {
    **dict.fromkeys(("scheduler", "low_res_scheduler"), "scheduler_config.json"),
    "tokenizer": "tokenizer_config.json",
}
_ON_HUB = re.compile(rf"{HUB_PREFIX}([^/@\s]+/[^/@\s]+)(?:@([^@\s]+))?")
_AGAIN = "fetch or convert it again"


@dataclass(frozen=True)
class ModelFolder:
    """A diffusers folder on this machine."""

    where: str  # as it was asked for
    path: Path
    commit: str | None = None  # of the Hub's repository it was fetched from
    variant: str = ""  # of its files of weights: fp16, or the plain ones

    def has(self, part: str) -> bool:
        """Whether the folder holds this part."""
        return (self.path / part / DESCRIPTIONS.get(part, "config.json")).is_file()

    def description(self, part: str) -> dict[str, Any]:
        """Returns a part's config. Raises UserError where the folder has no such part."""
        try:
            return read_description(self.path / part / DESCRIPTIONS.get(part, "config.json"), advice=_AGAIN)
        except FileNotFoundError:
            there = sorted(path.name for path in self.path.iterdir() if path.is_dir())
            raise UserError(
                f"{self.where} has no {part}; its parts are {', '.join(there) or 'none'}: name a folder that is whole"
            ) from None

    @property
    def repository(self) -> str:
        """The name without a revision: hf:owner/name, or the folder."""
        on_hub = _ON_HUB.fullmatch(self.where)
        return f"{HUB_PREFIX}{on_hub[1]}" if on_hub else self.where


def open_model_folder(
    where: str,
    parts: Sequence[str],
    *,
    pipelines: Sequence[str],
    optional: Sequence[str] = (),
    revision: str | None = None,
    variant: str = "",
) -> ModelFolder:
    """Returns the folder of `hf:owner/name` or `hf:owner/name@revision`, fetched or cached, or a local one as it is.

    `parts` must be there, `optional` ones may. A folder that says which pipeline it is of must be one of `pipelines`; what
    `convert` writes says none. On the Hub this is looked at before anything large is fetched, and safetensors alone are.
    """
    on_hub = _ON_HUB.fullmatch(where)
    if on_hub is None:
        if where.startswith(HUB_PREFIX):
            raise UserError(f"expected {HUB_PREFIX}owner/name or {HUB_PREFIX}owner/name@revision, got {where}")
        folder = ModelFolder(where, personal_path(where), variant=variant)
        if not folder.path.is_dir():
            raise UserError(f"{where} is no folder; expected a diffusers folder, or {HUB_PREFIX}owner/name@revision")
    else:
        repo, revision = on_hub[1], on_hub[2] or revision
        configs = [f"*/{name}" for name in ("config.json", *DESCRIPTIONS.values())]
        first = fetch_snapshot(repo, revision=revision, patterns=[PIPELINE_INDEX, *configs])
        folder = ModelFolder(where, first, commit=first.name, variant=variant)
    _require_pipeline(folder, pipelines)
    for part in parts:
        folder.description(part)
    if on_hub is not None:
        fetch_snapshot(repo, revision=revision, patterns=_patterns([*parts, *optional], variant))
    return folder


def load_part(folder: ModelFolder, part: str, classes: Sequence[str]) -> DiffusersPart:
    """Returns a part in float32 and evaluation mode, an instance of the one of diffusers' `classes` that its config names.

    Raises UserError for a part that is missing, of another class, without safetensors, or not the one its config says.
    """
    import diffusers  # takes seconds to import

    named = str(folder.description(part).get("_class_name"))
    if named not in classes:
        raise UserError(f"the {part} of {folder.where} is a {named}; expected {' or '.join(classes)}")
    return _read_part(getattr(diffusers, named), folder, part)


def load_text_encoder(folder: ModelFolder) -> DiffusersPart:
    """Returns the CLIP text encoder of a folder, in float32 and evaluation mode."""
    try:
        from transformers import CLIPTextModel
    except ImportError:
        raise UserError(
            f"{folder.where} reads a text, which needs transformers: pip install 'restore-rl[clip]'"
        ) from None
    folder.description("text_encoder")
    with without_bars():
        return _read_part(CLIPTextModel, folder, "text_encoder")


@contextmanager
def without_bars() -> Iterator[None]:
    """Within, diffusers and transformers show no bars of their own."""
    import diffusers.utils.logging
    import transformers.utils.logging

    loggers = [each for each in (diffusers.utils.logging, transformers.utils.logging) if each.is_progress_bar_enabled()]
    for each in loggers:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in loggers:
            each.enable_progress_bar()


def _read_part(reader: Any, folder: ModelFolder, part: str) -> DiffusersPart:
    try:
        # Pickled weights could run anything: only safetensors are read.
        model, report = reader.from_pretrained(
            folder.path / part,
            use_safetensors=True,
            local_files_only=True,
            variant=folder.variant or None,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers and transformers raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"the {part} of {folder.where} does not load ({reason[:160]}); expected safetensors weights that fit its "
            "config, with variant: fp16 where they are in half precision only"
        ) from None
    missing = [*report["missing_keys"], *report["mismatched_keys"]]
    if missing:
        raise UserError(
            f"the {part} of {folder.where} lacks {len(missing)} of the tensors that its config asks for, first "
            f"{missing[0]}; {_AGAIN}"
        )
    return model.float().eval().requires_grad_(False)


def pipeline_of(folder: ModelFolder) -> str | None:
    """Returns the class of the diffusers pipeline that the folder says it is of, or None where it does not say."""
    try:
        return str(read_description(folder.path / PIPELINE_INDEX, advice=_AGAIN).get("_class_name"))
    except FileNotFoundError:
        return None


def _require_pipeline(folder: ModelFolder, pipelines: Sequence[str]) -> None:
    kind = pipeline_of(folder)
    if kind is not None and kind not in pipelines:
        raise UserError(f"{folder.where} is a {kind}; expected a {' or a '.join(pipelines)}")


def _patterns(parts: Sequence[str], variant: str) -> list[str]:
    """Returns the files of these parts: configs, vocabularies, and one set of weights of the many that repositories hold."""
    middle = f".{variant}" if variant else ""
    weights = [f"{stem}{middle}" for stem in ("model", "diffusion_pytorch_model")]
    files = [f"{stem}{ending}.safetensors" for stem in weights for ending in ("", "-?????-of-?????")]
    return [f"{part}/{name}" for part in parts for name in ("*.json", "*.txt", *files)] + [PRE_RESTORER_FILE]
