"""Restorers by name that are no diffusion policies: built-in ones, published networks and pipelines, folders saved here."""

from __future__ import annotations

from pathlib import Path

from shared.app.errors import UserError
from shared.restorers.interpolation import BUILT_IN
from shared.restorers.protocol import Restorer, RestorerSettings, names_pipeline
from shared.restorers.published import load_published, names_published
from shared.weights import read_description

_DESCRIPTION = "config.json"


def named_restorer(where: str, settings: RestorerSettings) -> Restorer | None:
    """Returns the restorer that `where` names, or None where it is a folder of another kind: a policy's.

    Raises UserError when there is no such restorer.
    """
    if where in BUILT_IN:
        return BUILT_IN[where](settings.scale)
    if names_published(where):
        return load_published(where, revision=settings.revision)
    path = Path(where)
    if names_pipeline(where):
        from shared.restorers.diffusers_upscaler import load_upscaler  # diffusers' pipelines take seconds to import

        return load_upscaler(where, settings)
    if not path.is_dir():
        raise UserError(
            f"expected {' or '.join(BUILT_IN)}, a restorer's folder or a checkpoint file, but {where} is missing"
        )
    match _kind(path):
        case "feed_forward":
            from shared.restorers.feed_forward import FeedForwardRestorer

            return FeedForwardRestorer.from_folder(path)
        case "exemplar":
            from shared.restorers.exemplar import ExemplarRestorer

            return ExemplarRestorer.from_folder(path)
    return None


def _kind(folder: Path) -> object:
    try:
        return read_description(folder / _DESCRIPTION, advice="train or download it again").get("kind")
    except FileNotFoundError:
        raise UserError(f"no {_DESCRIPTION} in {folder}: it is no finished restorer; train it first") from None
