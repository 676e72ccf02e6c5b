"""Publishes a policy or a reward model on the Hub: private unless told, with a card, and nothing of this machine.

python -m rl_finetune.push folder=runs/mine/rl_sr repo=user/name licence=apache-2.0 manifest=pictures/MANIFEST.tsv
python -m rl_finetune.push folder=runs/mine/reward_model/checkpoint repo=user/name licence=apache-2.0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from reward_model.network.checkpoint import push_checkpoint
from rl_finetune.shipping.learnt_pictures import learnt_from
from rl_finetune.shipping.making import Making
from rl_finetune.shipping.manifest import Learnt, Manifest
from rl_finetune.shipping.policy_card import run_sections
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.words import read_words
from shared.policies.policy_folder import read_policy_config
from shared.policies.policy_hub import SETTINGS_FILE, origin_in, publication_of_policy
from shared.publishing.hub_card import PICTURES_FILE
from shared.publishing.portable_settings import portable
from shared.publishing.publication import Publication
from shared.runs.run_folder import RunFolder


@dataclass(frozen=True)
class PushConfig:
    """What is published where, and under which licence."""

    folder: str  # a finished run, a policy's folder, or a reward model's checkpoint
    repo: str = ""  # user/name on the Hub, made when missing; needed
    licence: str = ""  # the weights' licence as the Hub spells it, such as apache-2.0 or cc-by-4.0; needed
    revision: str | None = None  # a branch, made when missing
    public: bool = False  # whether a repository that this makes can be seen by everybody
    # A file with path, source and licence of a run's pictures, tab-separated.
    manifest: str = ""
    pictures: str = (
        ""  # in place of a manifest, what the card says of a run's pictures: "my own photographs, CC BY 4.0"
    )
    commit: str = ""  # the commit of the code that made the run; empty: the checkout's now
    hardware: str = ""  # what the run was made on, for the card; empty: this machine

    def __post_init__(self) -> None:
        if self.repo.count("/") != 1:
            raise ValueError(f"expected repo=user/name on the Hub, got {self.repo or 'nothing'}")
        if not self.licence:
            raise ValueError("expected licence=<the licence of the weights>, such as licence=apache-2.0")


def main(argv: Sequence[str]) -> None:
    config = read_words(PushConfig, argv, expected="folder=<a finished run or a checkpoint>")
    folder, kept = Path(config.folder), "public" if config.public else "private"
    print(f"pushing {folder} to {config.repo}, {kept} where it is new, under the licence {config.licence}", flush=True)
    how = {"licence": config.licence, "revision": config.revision, "private": not config.public}
    checkpoint = folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder
    if "stages" in read_policy_config(checkpoint):
        address = push_checkpoint(checkpoint, config.repo, **how)
    else:
        publication = publication_of_run(config, RunFolder(folder))
        address = publication.publish(config.repo, message="Upload a restore-rl policy", beside=folder, **how)
    print(f"pushed {folder}: {address}")


def publication_of_run(config: PushConfig, run: RunFolder) -> Publication:
    """Returns what is sent of a finished run, its settings and its pictures' sources told; of a mere policy, its folder."""
    named = {"licence": config.licence, "revision": config.revision}
    if not run.config_path.is_file():
        return publication_of_policy(run.path, config.repo, **named)
    making = Making.of(run, commit=config.commit, hardware=config.hardware)
    learnt = Learnt(others=(config.pictures,)) if config.pictures else pictures_behind(config, making)
    texts = {SETTINGS_FILE: OmegaConf.to_yaml(OmegaConf.create(portable(making.settings)))}
    if learnt.attributions:
        texts[PICTURES_FILE] = learnt.as_tsv()
    origin = origin_in(read_policy_config(run.path))
    sections = run_sections(run.path, origin=origin, making=making, learnt=learnt)
    return publication_of_policy(run.path, config.repo, sections=sections, texts=texts, **named)


def pictures_behind(config: PushConfig, making: Making) -> Learnt:
    """Returns the pictures that a run learnt from. Raises UserError for files of which nobody says where they are from."""
    try:
        return learnt_from(making.settings, Manifest.read(config.manifest) if config.manifest else None)
    except UserError as error:
        raise UserError(f"{error}; or say in pictures= what the card is to tell of them") from None


if __name__ == "__main__":
    run_command(main)
