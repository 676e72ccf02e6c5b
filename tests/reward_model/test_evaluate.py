"""`python -m reward_model.evaluate` on a tiny finished dataset and real triples: its tables, thresholds, sets and bounds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.store.dataset_sample import Sample
from data.store.reader import load_samples
from data.store.sample_maker import SampleMaker, TargetScale
from reward_model.evaluate import EvaluateRmConfig, _spread, choose_thresholds, main, measure_methods
from reward_model.measuring.baselines import no_reference_baselines, upper_bounds
from reward_model.measuring.bootstrap import Interval
from reward_model.measuring.detection import PixelCounts, count_pixels
from reward_model.measuring.predict import Predictions, Scorer, pixel_labels
from reward_model.measuring.sample_sets import CropConfig, read_triples, swapped_by_restorer
from reward_model.measuring.tables import MethodRow, as_json, figures, markdown, markdown_by_area
from reward_model.network.model import RewardModelConfig
from shared.app.errors import UserError
from shared.policies.load import load_restorer
from tests.helpers.places import CONFIGS
from tests.helpers.reward_models import build
from tests.helpers.reward_samples import SCALE, tiny_sample
from tests.helpers.tiny import save_tiny_reward_model

pytest_plugins = ["tests.helpers.small_dataset"]
YAML = str(CONFIGS / "eval_rm.yaml")
SWAPS = SampleMaker(SCALE)
STAGES, BASELINES, BOUNDS = {f"RM_{k}" for k in range(4)}, set(no_reference_baselines()), set(upper_bounds(SWAPS))
SPLITS = {"test": 6, "test_restorer": 4, "test_source": 4}  # their rows
# Of the triples below: lake, 64×96 px, has six crops of 32, of which two are taken; town, 40×50, has one.
REAL = {"real triples: blur": 3, "real triples: grain": 2, "real triples": 5}


@pytest.fixture(scope="module")
def triples(tmp_path_factory) -> Path:
    folder, mask = tmp_path_factory.mktemp("triples"), np.zeros((64, 96))
    mask[4:20, 2:60] = mask[40:50, 2:60] = 255
    # Red and green say where a pixel is, its row and its column; blue which picture it is of.
    places = np.mgrid[:64, :96].transpose(1, 2, 0)
    gt, blur, grain, syn = (np.dstack([places, np.full((64, 96), blue)]) for blue in (0, 80, 160, 240))
    pictures = {"lake_gt": gt, "lake_blur": blur, "lake_grain": grain, "lake_mask": mask, "lake_syn": syn}
    pictures |= {"town_gt": gt[:40, :50], "town_blur": blur[:40, :50], "town_mask": mask[:40, :50]}
    pictures |= {"lake_lq": gt[::4, ::4], "torn_gt": gt, "torn_blur": blur[:, :64], "lonely_blur": blur}
    for name, levels in pictures.items():
        Image.fromarray(levels.astype(np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def evaluated(dataset, here, triples, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    save_tiny_reward_model(folder / "checkpoint")
    words = [f"checkpoint={folder / 'checkpoint'}", f"dataset={dataset}", f"triples={triples}", "crop_px=32"]
    words += [f"restorers=[{here / 'runs' / 'sr'}]", "splits=[test,test_restorer,test_source,night]"]
    main([YAML, *words, "crops_per_picture=2", "bootstrap_rounds=4"])
    return folder


def test_every_method_is_measured_on_every_set(evaluated, dataset):
    found = json.loads((evaluated / "evaluation" / "evaluation.json").read_text())
    enlarged = {"never met: sr": sum(not s.is_control and s.lq.shape[-1] == 8 for s in load_samples(dataset, "test"))}
    assert {title: rows["RM_0"]["samples"] for title, rows in found.items()} == SPLITS | REAL | enlarged
    page = (evaluated / "evaluation" / "evaluation.md").read_text()
    for title, rows in found.items():
        assert set(rows) == STAGES | BASELINES | BOUNDS
        for section in (title, f"{title}, by defect area"):
            table = page.split(f"## {section}\n\n")[1].split("\n\n")[0]
            assert all(f"\n| {method} | " in table for method in rows)
        assert set(rows["RM_0"]["overall"]) == {"SR<syn", "syn<GT", "SR<GT", "triplet"}  # it has no map
        assert set(rows["RM_1"]["overall"]) > {"AUROC", "IoU", "F1", "pointing", "seam AUROC", "triplet"}
    for split in SPLITS:
        value = {m: {name: i["value"] for name, i in row["overall"].items()} for m, row in found[split].items()}
        assert [value["constant map"][name] for name in ("AUROC", "SR<syn", "triplet")] == [0.5, 0.5, 0.0]
        for bound in BOUNDS:  # swaps are all that differs from gt
            assert value[bound]["AUROC"] > 0.99
            assert [value[bound][name] for name in ("SR<syn", "triplet", "clean area")] == [1, 1, 0]
    notes = page.split("## Notes\n\n")[1].strip().splitlines()
    assert notes[0].startswith("- no split 'night' in ")
    assert notes[1:] == ["- torn_blur.png: sizes differ (gt (64, 96), sr (64, 64))"]


def test_a_model_that_takes_lq_is_measured_without_and_with_it(dataset, triples, tmp_path):
    build(RewardModelConfig(takes_lq=True), 1).save_pretrained(tmp_path / "checkpoint")
    words = [f"checkpoint={tmp_path / 'checkpoint'}", f"dataset={dataset}", f"triples={triples}", "crop_px=32"]
    main([YAML, *words, "crops_per_picture=2", "bootstrap_rounds=2", "splits=[test]"])
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert set(found["test"]) == {"RM_1", "RM_1 with lq"} | BASELINES | BOUNDS
    assert found["test"]["RM_1 with lq"]["samples"] == SPLITS["test"]
    counted = {name: found["real triples"][name]["samples"] for name in ("RM_1", "RM_1 with lq")}
    assert counted == {"RM_1": 5, "RM_1 with lq": 4}  # town has no lq
    main([YAML, *words, "crops_per_picture=2", "bootstrap_rounds=2", "splits=[test]", "triples_lq_scale=4"])
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert found["real triples"]["RM_1 with lq"]["samples"] == 5


def test_pixels_of_the_mask_that_hardly_changed_are_neither_defect_nor_clean():
    plane = torch.tensor([[[0.0, 0.0, 0.3, 1.0, 1.0]]])
    sample = dataclasses.replace(
        tiny_sample(0), mask=plane, degradation_map=torch.tensor([[[0.5, 0.0, 0.5, 0.09, 0.1]]])
    )
    defect, counted = pixel_labels(sample)
    assert defect.ravel().tolist() == [False, False, False, False, True]
    assert counted.ravel().tolist() == [True, True, False, False, True]
    control = dataclasses.replace(sample, is_control=True, degradation_map=torch.zeros_like(plane))
    defect, counted = pixel_labels(control)
    assert (defect.ravel().tolist(), counted.ravel().tolist()) == (
        [False] * 3 + [True] * 2,
        [True, True, False, True, True],
    )


def test_the_model_card_gets_the_tables(evaluated, dataset, tmp_path):
    card, page = evaluated / "checkpoint" / "README.md", (evaluated / "evaluation" / "evaluation.md").read_text()
    before, table = card.read_text(), page.split("## test_source\n\n")[1].split("\n\n")[0]
    assert f"## test_source\n\n{table}\n" in before
    assert json.loads((card.parent / "metrics.json").read_text())["evaluation"].keys() > SPLITS.keys()
    words = [f"checkpoint={card.parent}", f"dataset={dataset}", f"out={tmp_path}", "splits=[test_source]", "stages=[1]"]
    main([YAML, *words, "update_card=false", "samples_per_set=1", "bootstrap_rounds=2"])
    rows = json.loads((tmp_path / "evaluation.json").read_text())["test_source"]
    assert set(rows) == {"RM_1"} | BASELINES | BOUNDS
    assert (rows["RM_1"]["samples"], _spread(range(6), 4)) == (1, [0, 1, 3, 4])  # 6/4 apart
    assert card.read_text() == before


def test_thresholds_are_chosen_on_validation(monkeypatch):
    def flat(level: float, *, is_control: bool = False) -> Sample:
        gt, mask = torch.full((3, 4, 4), level), (torch.arange(4) == 0).float().expand(1, 4, 4)
        swap = {"gt": gt, "syn": gt + 0.05 * mask, "sr": gt + 0.05, "mask": mask, "image_id": str(level)}
        swap["degradation_map"] = mask
        return dataclasses.replace(tiny_sample(0, side_px=32), is_control=is_control, **swap)

    # The map of each sample: inside its defect, a column of four, outside it, and everywhere on gt.
    says = {0.25: (0.6, 0.1, 0.3), 0.5: (0.1, 0.5, 0.3), 0.75: (0.9, 0.7, 0.8)}
    splits = {"val": [flat(0.25), flat(0.5, is_control=True)], "test": [flat(0.75)]}

    def scores(pictures: torch.Tensor, gt: torch.Tensor, _lq: None) -> tuple[torch.Tensor, torch.Tensor]:
        maps = torch.empty(len(gt), 1, 4, 4)
        for index, (picture, clean) in enumerate(zip(pictures, gt, strict=True)):
            inside, outside, on_gt = says[clean[0, 0, 0].item()]
            changed = (picture != clean).any(dim=0)
            maps[index, 0] = torch.where(changed, inside, outside) if changed.any() else on_gt
        return -maps.mean(dim=(1, 2, 3)), maps

    scorer, blind = Scorer(scores), Scorer(lambda pictures, gt, _lq: (gt.sum((1, 2, 3)), None))
    monkeypatch.setattr("reward_model.evaluate.load_samples", lambda folder, split: splits[split])
    config = EvaluateRmConfig(max_clean_area=0.0, bootstrap_rounds=2)
    thresholds = choose_thresholds(config, {"map": scorer, "no map": blind})
    # The defect is .6, clean pictures .3. The control, with .5 around its harmless swap, does not count, nor does test.
    assert thresholds == {"map": pytest.approx(0.3, abs=0.001)}
    row = measure_methods(config, {"map": scorer}, {"night": splits["test"]}, thresholds)["night"]["map"].overall
    # All 16 pixels are above it: 4 hits and 12 false alarms, F1 8 / 20; all of gt is called broken.
    assert (row["F1"].value, row["clean area"].value) == (pytest.approx(0.4), 1.0)
    loud = choose_thresholds(dataclasses.replace(config, max_clean_area=1.0), {"map": scorer})
    assert loud == {"map": pytest.approx(0.1, abs=0.001)}


def test_known_regions_are_taken_as_they_are_and_others_drawn(triples):
    every = [read_triples(triples, SWAPS, CropConfig(32, 4, seed=seed))[0] for seed in (0, 0, 1)]
    for kind, blue in (("blur", 80), ("grain", 160)):
        corners = []
        for sample in (s for s in every[0] if (s.image_id, s.restorer) == ("lake", kind)):
            gt, sr, syn = ((picture * 255).round() for picture in (sample.gt, sample.sr, sample.syn))
            assert [picture[2].unique().tolist() for picture in (gt, sr, syn)] == [[0], [blue], [240]]
            assert torch.equal(sr[:2], gt[:2])
            rows, columns = gt[0], gt[1]
            inside = ((rows >= 4) & (rows < 20) | (rows >= 40) & (rows < 50)) & (columns >= 2) & (columns < 60)
            assert torch.equal(sample.mask[0], inside.float())
            corners.append((rows[0, 0].item(), columns[0, 0].item()))
        assert corners == [(0, 0), (0, 32), (32, 0), (32, 32)]  # of six number 0, 6/4, 12/4 and 18/4: 0, 1, 3 and 4
    town, again, other = (next(s for s in samples if s.image_id == "town") for samples in every)
    assert torch.equal(town.syn * (town.mask == 0), town.gt * (town.mask == 0))
    assert torch.equal(town.syn * (town.mask == 1), town.sr * (town.mask == 1))
    assert 0 < town.mask.sum() != 16 * 30  # not the file's, which says nothing without its syn
    assert torch.equal(town.mask, again.mask)
    assert not torch.equal(town.mask, other.mask)


def test_another_restorer_is_swapped_into_the_same_regions(dataset, here):
    samples, net, swaps = load_samples(dataset, "test"), str(here / "runs" / "sr"), SampleMaker(TargetScale.of(dataset))
    fitting = [sample for sample in samples if not sample.is_control and sample.lq.shape[-1] == 8]
    for new, old in zip(swapped_by_restorer(samples, net, swaps), fitting, strict=True):
        assert torch.equal(torch.cat([new.gt, new.mask]), torch.cat([old.gt, old.mask]))
        sr = load_restorer(net).restore(old.lq[None], sample_seeds=[0])[0]
        assert (new.sr - sr.clamp(0, 1)).abs().mean() < 0.02  # up to the noise it draws
    with pytest.raises(UserError, match="enlarges 4 times, and no sample's lq asks for that"):
        swapped_by_restorer([dataclasses.replace(sample, lq=sample.gt) for sample in fitting], net, swaps)


REFUSED = {
    **{word: word.partition("=")[0] for word in ("samples_per_set=0", "crop_px=31", "crops_per_picture=0")},
    **{word: word.partition("=")[0] for word in ("bootstrap_rounds=1", "max_clean_area=1.5")},
    "stages=[9]": "holds stages 0, 1, 2, 3, not stage 9",
    "splits=[night]": "asked for night of .* and no triples",
    "splits=[]": "asked for no split of .* and no triples",
    "splits=[night] triples={triples} restorers=[x.pth]": "restorers need the split test",
    "triples={triples} crop_px=65": "no triples in .*at least 65 px",
    "dataset=nowhere": "no dataset folder nowhere",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(words, evaluated, dataset, triples, tmp_path):
    given = [f"checkpoint={evaluated / 'checkpoint'}", f"dataset={dataset}", f"out={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=REFUSED[words]) as refusal:
        main([YAML, *given, *words.format(triples=triples).split()])
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_cells_and_json_of_a_row():
    some, none = Interval(0.5, 0.25, 0.75), Interval(np.nan, np.nan, np.nan)
    rows = {"a": MethodRow({"F1": some, "AP": none}, {"0%–2% (1)": {"F1": none}}, 3)}
    rows["b"] = MethodRow({"triplet": some}, {"0%–2% (1)": {"triplet": some}}, 3)
    head, *cells = markdown(rows).splitlines()
    assert head == "| method | F1 | AP | triplet |"
    assert cells[1:] == ["| a | 0.500 [0.250, 0.750] | – | – |", "| b | – | – | 0.500 [0.250, 0.750] |"]
    head, *cells = markdown_by_area(rows).splitlines()
    assert head == "| method | area (samples) | F1 | triplet |"
    assert cells[1:] == ["| a | 0%–2% (1) | – | – |", "| b | 0%–2% (1) | – | 0.500 [0.250, 0.750] |"]
    plain, null = {"value": 0.5, "low": 0.25, "high": 0.75}, dict.fromkeys(("value", "low", "high"))
    by_area = {"0%–2% (1)": {"F1": null}}
    assert as_json(rows["a"]) == {"samples": 3, "overall": {"F1": plain, "AP": null}, "by_area": by_area}


def test_figures_by_area_leave_controls_out():
    # Four pixels a sample, the first of them defect. The map is right on three, wrong on one, right on the control.
    right, wrong, first = np.array([0.9, 0.1, 0.1, 0.1]), np.array([0.1, 0.9, 0.9, 0.9]), np.arange(4) == 0
    counted = [count_pixels(its_map, first) for its_map in (right, right, right, wrong, right)]
    clean = [count_pixels(np.full(4, level), np.zeros(4, bool)) for level in (0.6, 0.1, 0.1, 0.1, 0.9)]
    counts = [PixelCounts(*map(np.stack, zip(*side, strict=True))) for side in (counted, clean)]
    scores = np.zeros(5), np.array([0.1, 0.2, -0.3, 0.1, 0.9]), np.array([0.2, 0.1, 0.3, 0.4, 0.0])  # sr, syn, gt
    area, pointing, ids = np.array([0.02, 0.1, 0.11, 0.5, 0.05]), np.array([1, 1, 1, 0, 1]), np.array(list("aabbc"))
    row = figures(Predictions(*scores, *counts, pointing, area, area, np.arange(5) == 4, ids), 0.5, rounds=20, seed=0)
    names = ("AUROC", "SR<syn", "syn<GT", "SR<GT", "triplet")
    small, middle, large = ([of[name].value for name in names] for of in row.by_area.values())
    assert list(row.by_area) == ["0%–2% (1)", "2%–10% (1)", "10%–100% (2)"]
    assert (small, middle) == ([1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0, 0.0])
    # .9 beats its own three .1 and ties with wrong's .9; wrong's .1 ties with right's and loses to its own: 6 of 12.
    assert large == [0.5, 0.5, 1.0, 1.0, 0.5]
    value = {name: interval.value for name, interval in row.overall.items()}
    # At .5: 3 hits, 3 false alarms, 1 missed. One of four clean pictures is called broken, and one in four of control.
    assert (value["IoU"], value["F1"], value["clean area"], value["pointing"]) == (3 / 7, 0.6, 0.25, 0.75)
    assert (value["control area"], value["seam AUROC"], row.samples) == (0.25, 1.0, 5)
    assert row.overall["triplet"] == Interval(0.5, 0.5, 0.5)  # half of a's and half of b's, whichever are drawn


def test_baselines_by_hand():
    board = ((torch.arange(24)[:, None] + torch.arange(24)) % 2).float().expand(3, -1, -1)
    # A pixel is 4/9 from its 3×3 mean, which is 5/9 or 4/9; a 7×7 window holds 24 or 25 ones of 49, 20/441 from that.
    raw = 4 / 9, (24 * 25) ** 0.5 / 49, 0.02 * 4 / 9 / (20 / 441 + 0.004)
    detail, contrast, share = (value / (value + 0.02) for value in raw)
    expected = {  # on the checkerboard, on flat grey
        "constant map": (0.5, 0.5),
        "|x − blur(x)|": (detail, 0.0),
        "smoothness: 1 − |x − blur(x)|": (1 - detail, 1.0),
        "local contrast": (contrast, 0.0),
        "flatness: 1 − local contrast": (1 - contrast, 1.0),
        "finest octave's share": (share, 0.0),
    }
    for name, scorer in no_reference_baselines().items():
        pair = torch.stack([board, torch.full((3, 24, 24), 0.5)])
        scores, maps = scorer.function(pair, torch.rand(2, 3, 24, 24), None)
        for level, its_map, score in zip(expected[name], maps, scores, strict=True):
            assert its_map.numpy() == pytest.approx(np.full((1, 24, 24), level), abs=2e-3)
            assert score == pytest.approx(0 if name == "constant map" else -level, abs=2e-3)


def test_bounds_look_at_the_truth():
    sample = tiny_sample(0)
    gt, sr, target = (picture[None] for picture in (sample.gt, sample.sr, sample.sr_degradation_map))
    scores, maps = upper_bounds(SWAPS)["full reference: the target map"].function(sr, gt, None)
    torch.testing.assert_close(maps, target)
    assert scores.item() == pytest.approx(-target.mean().item())
    ((_, distance),) = upper_bounds(None).items()  # without a dataset's scale there is no target
    shifted = gt - 0.1 * torch.nn.functional.pad(torch.ones(10, 10), (10, 28, 10, 28))
    scores, maps = distance.function(torch.cat([shifted, gt]), torch.cat([gt, gt]), None)
    assert maps[0, 0, 11:19, 11:19].numpy() == pytest.approx(0.1 / 0.12, abs=1e-4)
    assert not maps[0, 0, 21:].any()
    assert not maps[1].any()
    assert scores[0] < scores[1] == 1
