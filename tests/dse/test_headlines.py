"""Claims of papers: the files, the verdicts, and the claims that ship."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dse.headlines import FOLDER, Headlines, headlines
from dse.reproduction.claim import LOOSEST, ClaimError, read
from dse.reproduction.verdict import judge
from spaces.hardware.formulas import BadFormulas

STATE = {"ask": "state", "parameters": 1e9, "ranks": 4, "zero_stage": 3}


def written(folder: Path, **changes: Any) -> Path:
    """A claim's file: 16 GB of state over four ranks are 4 GB each."""
    claim: dict[str, Any] = {
        "kind": "reproduction",
        "paper": "A paper",
        "where": "Table 1",
        "claim": "state is divided",
        "setup": "four ranks",
        "tolerance": "5 %",
        "cases": {"divided": STATE},
        "figures": [{"name": "each", "published": "4 GB", "predicted": "divided.bytes"}],
    }
    path = folder / "claim.yaml"
    path.write_text(yaml.safe_dump(claim | changes))
    return path


def figure(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": "each", "published": "4 GB", "predicted": "divided.bytes"} | changes]


@pytest.fixture(scope="module")
def shipped() -> Headlines:
    return headlines()


@pytest.mark.parametrize(
    ("published", "holds", "reproduced"),
    [
        ("4 GB", "near", True),
        ("4.19 GB", "near", True),
        ("3.8 GB", "near", False),
        ("4.22 GB", "near", False),
        ("3 GB", "at_least", True),
        ("4.001 GB", "at_least", False),
        ("5 GB", "at_most", True),
        ("3.999 GB", "at_most", False),
    ],
)
def test_a_verdict_follows_from_difference_and_side(tmp_path: Path, published: str, holds: str, reproduced: bool) -> None:
    verdict = judge("claim", read(written(tmp_path, figures=figure(published=published, holds=holds))))
    assert verdict.reproduced is reproduced
    assert bool(verdict.reason) is not reproduced


def test_one_figure_that_misses_decides(tmp_path: Path) -> None:
    two = [*figure(), *figure(name="other", published="8 GB")]
    verdict = judge("claim", read(written(tmp_path, figures=two, reason="it is divided by two there")))
    assert not verdict.reproduced
    assert verdict.worst is not None
    assert verdict.worst.name == "other"
    assert verdict.reason == "it is divided by two there"


def test_a_formula_converts_to_the_published_unit(tmp_path: Path) -> None:
    verdict = judge("claim", read(written(tmp_path, figures=figure(published="4000 MB", predicted="divided.bytes * 2 / 2"))))
    assert verdict.figures[0].predicted == pytest.approx(4000.0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tolerance": "16 %"}, "tolerance: a tolerance is more than 0 and at most 15%"),
        ({"tolerance": 0}, "more than 0"),
        ({"cases": {"divided": STATE | {"ask": "stat"}}}, "the nearest are state"),
        ({"cases": {"divided": {"parameters": 1}}}, "expected a mapping with ask"),
        ({"figures": []}, "figures"),
        ({"figures": [*figure(), *figure()]}, "two figures share a name"),
        ({"figures": figure(published="four")}, "expected a number"),
        ({"figures": figure(holds="about")}, "figures.0.holds"),
        ({"kind": "training"}, "kind"),
        ({"verdict": "reproduced"}, "unknown key"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ClaimError, match=r"claim\.yaml") as caught:
        read(path)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("predicted", "told"),
    [("divided.byte", "the nearest are divided.bytes"), ("divided.bytes / '2 s'", "comes out in"), ("1 +", "is no formula")],
)
def test_a_bad_formula_is_refused(tmp_path: Path, predicted: str, told: str) -> None:
    with pytest.raises(BadFormulas, match=told):
        judge("claim", read(written(tmp_path, figures=figure(predicted=predicted))))


def test_a_case_that_cannot_be_answered_is_a_verdict_with_the_reason(tmp_path: Path) -> None:
    verdict = judge("claim", read(written(tmp_path, cases={"divided": STATE | {"zero_stage": 4}})))
    assert not verdict.reproduced
    assert "zero_stage must be 0, 1, 2 or 3" in verdict.reason


def test_every_claim_that_ships_is_judged_and_most_come_out(shipped: Headlines) -> None:
    assert len(shipped.verdicts) >= 12
    assert shipped.reproduced >= 10
    for verdict in shipped.verdicts:
        assert not verdict.trouble, verdict.name
        assert verdict.claim.tolerance <= LOOSEST
        assert verdict.reproduced or verdict.claim.reason, f"{verdict.name} does not come out, and its file does not say why"


def test_figures_are_numbers_and_every_file_is_there(shipped: Headlines) -> None:
    rows = json.loads(json.dumps(shipped.to_json()))
    assert len({row["claim"] for row in rows}) == len(list(FOLDER.glob("*.yaml")))
    for row in rows:
        assert isinstance(row["published"], int | float)
        assert isinstance(row["predicted"], int | float)
        assert row["verdict"] in ("reproduced", "not reproduced")
        assert (row["verdict"] == "reproduced") is all(figure["met"] for figure in row["figures"])


def test_the_page_names_what_does_not_come_out(shipped: Headlines) -> None:
    page = str(shipped)
    for verdict in shipped.verdicts:
        assert (f"not reproduced: {verdict.claim.paper}: {verdict.claim.claim}" in page) is not verdict.reproduced
    assert f"{shipped.reproduced} of {len(shipped.verdicts)} claims" in page
