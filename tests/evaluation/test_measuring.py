"""Measure cells: intervals, pairs, real images of the same groups, tables and figures."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments import COUNT, NETWORKS, broken, experiment
from PIL import Image

from cotrunk.evaluation.experiment import Experiment
from cotrunk.evaluation.figures import write_curves, write_grid
from cotrunk.evaluation.measuring import Measures, Result
from cotrunk.evaluation.metrics import Change, Figure
from cotrunk.evaluation.observation import Cell
from cotrunk.evaluation.paper import Design, write_paper
from cotrunk.evaluation.tables import Comparison, scheme, write_comparisons, write_json, write_table

REAL = torch.randint(0, 255, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
REAL_GROUPS = [[0, 1, 2], [3, 4, 5, 0], [6, 7]]


def measures(out: Path, own: Experiment | None = None) -> Measures:
    return Measures(experiment(out) if own is None else own, REAL, REAL_GROUPS)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Cell, Result]:
    own = measures(tmp_path_factory.mktemp("cells"))
    cells = [*Design(["pre-trained"], [0.25, 0.5], 4).table(), Cell("pre-trained", 0.0, 2)]
    return {cell: own.of([cell]) for cell in cells}


def test_cells_cost_as_many_rows_as_their_schemes_imply(results: dict[Cell, Result]) -> None:
    rows = {(cell.share, cell.steps): result.rows for cell, result in results.items()}
    assert rows[0.0, 4] == 8
    assert rows[0.0, 2] == 4
    # groups of 2 and 3 share one step of four, or two; the last prompt is alone
    assert rows[0.25, 4] == pytest.approx(2 * (COUNT * 4 - 1 * 1 - 2 * 1) / COUNT)
    assert rows[0.5, 4] == pytest.approx(2 * (COUNT * 4 - 1 * 2 - 2 * 2) / COUNT)


def test_every_figure_lies_in_its_interval(results: dict[Cell, Result]) -> None:
    for result in results.values():
        assert set(result.figures) == {"frechet", "alignment", "diversity", "bleed"}
        for figure in result.figures.values():
            assert figure.low - 1e-9 <= figure.value <= figure.high + 1e-9


def test_seeds_are_pooled_and_groups_may_be_chosen(tmp_path: Path) -> None:
    own = measures(tmp_path)
    cells = [Cell("pre-trained", 0.5, 2, seed) for seed in (0, 1)]
    one, other, both = own.of(cells[:1]), own.of(cells[1:]), own.of(cells)
    assert both.seeds == 2
    assert both.figures["alignment"].value == pytest.approx(
        (one.figures["alignment"].value + other.figures["alignment"].value) / 2
    )
    assert one.figures["frechet"] != other.figures["frechet"]
    assert own.of(cells, [0, 1]).figures["alignment"].value != both.figures["alignment"].value
    assert np.isnan(own.experiment.observe(cells[0]).diversity[2])


def test_chosen_groups_are_compared_with_their_own_real_images(tmp_path: Path) -> None:
    own, cell = experiment(tmp_path), Cell("pre-trained", 0.5, 2)
    some = Measures(own, REAL, REAL_GROUPS).of([cell], [0, 1]).figures["frechet"]
    # the real images of other groups do not matter
    elsewhere = REAL.clone()
    elsewhere[6:] = 255
    assert Measures(own, elsewhere, REAL_GROUPS).of([cell], [0, 1]).figures["frechet"] == some
    whole = Measures(own, REAL[:6], [*REAL_GROUPS[:2], []]).of([cell], [0, 1])
    assert whole.figures["frechet"] == some


def test_measurements_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [Cell("pre-trained", 0.5, 2)], [Cell("pre-trained", 0.0, 2)]
    own = measures(tmp_path)
    first, compared = own.of(cells[0]), own.compare(*cells)
    for name in ("frechet", "frechet_change", "mean", "change"):
        monkeypatch.setattr(f"cotrunk.evaluation.metrics.{name}", lambda *_: pytest.fail("measured again"))
    again = measures(tmp_path)
    assert again.of(cells[0]) == first
    assert again.compare(*cells) == compared
    other = Measures(experiment(tmp_path), REAL.flip(0), REAL_GROUPS)
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        other.of(cells[0])


def test_a_cell_equals_itself_and_differences_are_paired(tmp_path: Path) -> None:
    own = measures(tmp_path)
    cell, other = Cell("pre-trained", 0.5, 2), Cell("pre-trained", 0.0, 2)
    for change in own.compare([cell], [cell]).values():
        assert change.absolute.value == change.relative.value == pytest.approx(0, abs=1e-9)
    found = own.compare([cell], [other])
    mine, theirs = (own.of([one]).figures["alignment"].value for one in (cell, other))
    assert found["alignment"].absolute.value == pytest.approx(mine - theirs, abs=1e-6)
    assert found["alignment"].relative.value == pytest.approx((mine - theirs) / theirs, abs=1e-6)


def test_images_with_a_nan_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = measures(tmp_path / "fine")
    cells = [Cell("pre-trained", 0.5, 2, seed) for seed in (0, 1)]
    seen = fine.experiment.observe(cells[0])
    own = measures(tmp_path / "broken")
    own.experiment.observe(cells[1])  # the other seed is whole
    broken(own.experiment, monkeypatch, 0, 3)
    result = own.of(cells[:1])
    good = [1, 2, 4, 5]
    texts = NETWORKS.alignment.text_vectors(fine.experiment.prompts)
    assert result.failed == 2
    assert result.figures["alignment"].value == pytest.approx(float((seen.vectors * texts).sum(1)[good].mean()))
    assert all(np.isfinite(figure.value) for figure in own.of(cells).figures.values())
    same = own.compare(cells[:1], [Cell("pre-trained", 0.5, 2, 1)])
    assert np.isfinite(same["frechet"].absolute.value)
    assert "| 2 |" in write_table([result], NETWORKS, tmp_path)


def test_equal_cost_is_the_most_steps_that_cost_no_more(tmp_path: Path) -> None:
    own = experiment(tmp_path)
    cell = Cell("pre-trained", 0.5, 8)
    equal = own.equal_cost(cell)
    assert own.rows(equal) <= own.rows(cell) < own.rows(Cell("pre-trained", 0.0, equal.steps + 1))


def test_baselines_are_the_own_model_and_the_first_one(tmp_path: Path, trained_lora: Path) -> None:
    own = experiment(tmp_path, tuned=trained_lora)
    design = Design(["pre-trained", "tuned"], [0.5], 8, [2, 4, 6, 12])
    tuned, equal = Cell("tuned", 0.5, 8), own.equal_cost(Cell("tuned", 0.5, 8)).steps
    against = {other for this, other in design.pairs(own) if this == tuned}
    alone = {Cell(name, 0.0, steps) for name in ("pre-trained", "tuned") for steps in (8, equal)}
    assert against == alone | {Cell("pre-trained", 0.5, 8)}
    assert against <= set(design.cells(own))
    knees = design.knees(own)
    assert {(tuned, Cell(name, 0.0, 8)) for name in ("pre-trained", "tuned")} <= set(knees)
    for this, other in knees:
        assert own.rows(this) <= 0.8 * own.rows(other)
        assert other in design.cells(own)
    assert not Design(["pre-trained", "tuned"], [0.5], 8).knees(own)
    assert [cell.model for cell in design.cells(own)] == sorted(cell.model for cell in design.cells(own))


def test_every_way_to_sample_trunks_is_compared(tmp_path: Path) -> None:
    """Independent sampling has no trunk, so it occurs once."""
    own = measures(tmp_path)
    design = Design(["pre-trained"], [0.5], 4, [6], more_shares=[0.25], trunks=[("common", 1.0), ("own", 0.0)])
    assert [scheme(cell) for cell in design.table()] == [
        "independent, 4 steps",
        "shared 50%, 4 steps",
        "shared 50%, 4 steps, own noise, unguided trunk",
    ]
    published, unguided = design.table()[1:]
    assert (unguided, published) in design.pairs(own.experiment)
    assert (unguided, Cell("pre-trained", 0.0, 4)) in design.pairs(own.experiment)
    assert scheme(Cell("a", 0.3, noise="common", trunk_guidance=0.5)) == "shared 30%, 30 steps, trunk guidance 0.5"
    text = write_paper(own, design, {0.5: [0, 1], 0.9: [1, 2]}, tmp_path)
    assert "| shared 50%, 4 steps, own noise, unguided trunk | pre-trained |" in text
    found = json.loads((tmp_path / "results.json").read_text())
    assert [Cell(**one["cell"]) for one in found["cells"]] == design.cells(own.experiment)
    assert len(found["similarity"]) == 4
    schemes = ("independent", "shared 50%", "shared 50%, own noise, unguided trunk")
    assert [
        ", ".join([part for part in one[0].split(", ") if "steps" not in part])
        for one in csv.reader((tmp_path / "curve.csv").open())
    ][1:] == [one for one in schemes for _ in range(2)]


@pytest.mark.slow
def test_results_json_has_the_numbers_of_the_tables(tmp_path: Path, trained_lora: Path) -> None:
    own = measures(tmp_path, experiment(tmp_path, tuned=trained_lora))
    design = Design(["pre-trained", "tuned"], [0.5], 4, [6])
    counts: list[tuple[int, int]] = []
    text = write_paper(own, design, {0.5: [0, 1], 0.9: [1, 2]}, tmp_path, lambda *state: counts.append(state))
    assert [done for done, _ in counts] == list(range(1, counts[-1][1] + 1))
    found = json.loads((tmp_path / "results.json").read_text())
    cells = design.cells(own.experiment)
    assert [Cell(**one["cell"]) for one in found["cells"]] == cells
    assert all(set(one["figures"]) == {"frechet", "alignment", "diversity", "bleed"} for one in found["cells"])
    assert len(found["similarity"]) == 4
    assert {one["similarity"] for one in found["similarity"]} == {0.5, 0.9}
    first = found["differences"][0]
    assert (first["this"], first["other"]) == ("pre-trained, shared 50%, 4 steps", "pre-trained, independent, 4 steps")
    assert {"value", "low", "high"} == set(first["alignment"]["relative"])
    assert all(one["rows_saved"] >= 0.2 for one in found["knee"])
    made = {file.name for file in tmp_path.iterdir() if file.is_file()}
    assert {"table1.md", "table1.csv", "differences.md", "knee.md", "results.json"} <= made
    assert {f"{name}.{form}" for name in ("figure2", "figure3", "figure4", "rows") for form in ("png", "svg")} <= made
    assert (tmp_path / "knee.md").read_text() in text


@pytest.mark.slow
def test_the_curve_table_has_the_points_of_the_curves(tmp_path: Path, trained_lora: Path) -> None:
    """The table lists the curves one by one, from few to many rows, including the steps of the table."""
    own = measures(tmp_path, experiment(tmp_path, tuned=trained_lora))
    design = Design(["pre-trained", "tuned"], [0.5], 4, [6, 2])
    text = write_paper(own, design, {0.5: [0, 1]}, tmp_path)
    assert (tmp_path / "curve.md").read_text() in text
    with (tmp_path / "curve.csv").open() as file:
        heads, *lines = csv.reader(file)
    with (tmp_path / "table1.csv").open() as file:
        table = list(csv.reader(file))
    assert heads == table[0]
    assert [(line[1], line[0]) for line in lines] == [
        (model, f"{scheme}, {steps} steps")
        for model in design.models
        for scheme in ("independent", "shared 50%")
        for steps in (2, 4, 6)
    ]
    rows = [float(line[heads.index("rows per image")]) for line in lines]
    assert all(rows[start : start + 3] == sorted(set(rows[start : start + 3])) for start in range(0, len(rows), 3))
    assert [line for line in lines if line[0] == "shared 50%, 4 steps"] == [
        line for line in table if line[0] == "shared 50%, 4 steps"
    ]


def test_more_shares_are_in_figure_4_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, tuple[list[int], list[Cell]]] = {}

    def curves(lines: dict[str, list[Result]], places: list[int], out: Path, name: str, **_: str) -> None:
        drawn[name] = places, [result.cell for result in lines["pre-trained"]]

    monkeypatch.setattr("cotrunk.evaluation.paper.write_curves", curves)
    design = Design(["pre-trained"], [0.5], 4, more_shares=[0.75, 0.25])
    text = write_paper(measures(tmp_path), design, {0.5: [0, 1]}, tmp_path)
    shares = [0.0, 0.25, 0.5, 0.75]
    assert drawn["figure4"] == ([0, 1, 2, 3], [Cell("pre-trained", share, 4) for share in shares])
    assert "shared 50%" in text
    assert "shared 25%" not in text + (tmp_path / "table1.md").read_text()
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert {0.25, 0.75} <= {own["cell"]["share"] for own in cells}
    assert len([own for own in cells if own["cell"]["steps"] != 4]) == 1  # only the equal cost of one half shared


def test_curves_have_no_points_without_shared_steps(tmp_path: Path) -> None:
    own, design = experiment(tmp_path), Design(["pre-trained"], [0.3], 8, [2, 3, 4])
    assert [cell.steps for cell in design.curve(own, "pre-trained", 0.3)] == [4, 8]  # 0.6 and 0.9 steps round down to 0
    assert [cell.steps for cell in design.curve(own, "pre-trained", 0.0)] == [2, 3, 4, 8]
    assert all(own.shares(cell) for cell, _ in design.knees(own))


def test_some_groups_can_be_compared(tmp_path: Path) -> None:
    own = measures(tmp_path)
    cell, other = Cell("pre-trained", 0.5, 2), Cell("pre-trained", 0.0, 2)
    part = own.compare([cell], [other], [0, 1])
    assert part["alignment"] != own.compare([cell], [other])["alignment"]
    for measure, change in part.items():
        apart = [own.of([one], [0, 1]).figures[measure].value for one in (cell, other)]
        assert change.absolute.value == pytest.approx(apart[0] - apart[1], abs=1e-6)


def test_a_design_without_sharing_works(tmp_path: Path) -> None:
    text = write_paper(measures(tmp_path), Design(["pre-trained"], [], 2, [3]), {0.5: [0, 1]}, tmp_path)
    assert "| independent, 2 steps | pre-trained |" in text
    assert json.loads((tmp_path / "results.json").read_text())["similarity"] == []
    assert not (tmp_path / "figure3.png").exists()
    assert "| independent, 3 steps | pre-trained |" in (tmp_path / "curve.md").read_text()


def test_without_other_steps_there_is_no_curve(tmp_path: Path) -> None:
    write_paper(measures(tmp_path), Design(["pre-trained"], [], 2), {}, tmp_path)
    assert (tmp_path / "table1.md").exists()
    assert not any((tmp_path / name).exists() for name in ("curve.md", "curve.csv", "rows.png"))


def test_tables_and_figures(results: dict[Cell, Result], tmp_path: Path) -> None:
    text = write_table(list(results.values()), NETWORKS, tmp_path)
    assert "| shared 25%, 4 steps | pre-trained |" in text
    assert "the features of mean colours (images resized to 1 x 1 pixel, mean; the first 64" in text
    assert "FID" not in text
    assert "CLIP" not in text
    with (tmp_path / "table1.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + len(results)
    lines = {"independent": [result for cell, result in results.items() if not cell.share]}
    write_curves(lines, "rows", tmp_path, "rows", label="rows")
    with Image.open(tmp_path / "rows.png") as image:
        assert image.width > 100
    assert (tmp_path / "rows.svg").read_text().startswith("<?xml")


def changed(value: float, part: float) -> Change:
    return Change(Figure(value, value - 0.1, value + 0.1), Figure(part, part - 0.05, part + 0.05))


def test_differences_are_also_relative(tmp_path: Path) -> None:
    one, two = Cell("a", 0.3), Cell("b", 0.0)
    better = Comparison(one, two, 0.25, {"alignment": changed(0.2, 0.1), "frechet": changed(0.05, 0.3)})
    worse = Comparison(one, two, 0.25, {"alignment": changed(-0.2, -0.1), "frechet": changed(0.05, 0.3)})
    message = write_comparisons([better, worse], NETWORKS, tmp_path)
    start = "| a, shared 30%, 30 steps | b, independent, 30 steps |"
    assert f"{start} **0.2 [0.1, 0.3]** (+10.0% [+5.0%, +15.0%]) | 0.05 [-0.05, 0.15] (+30.0% [" in message
    assert "| 25.0% | yes |" in message
    assert "| 25.0% | no |" in message


def test_a_change_relative_to_zero_is_null(tmp_path: Path) -> None:
    write_json({"a": [float("nan"), 1.0], "b": (float("inf"),)}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, 1.0], "b": [None]}


def test_the_grid_of_images(tmp_path: Path) -> None:
    from xml.etree import ElementTree

    images = np.random.default_rng(0).integers(0, 255, (2, 3, 32, 32), dtype=np.uint8)
    write_grid({"one & all": images, "two": images}, ["a <b>", "c " * 20], tmp_path)
    with Image.open(tmp_path / "figure2.png") as image:
        size = image.size
    svg = ElementTree.parse(tmp_path / "figure2.svg").getroot()
    assert (int(svg.attrib["width"]), int(svg.attrib["height"])) == size
    texts = [node.text for node in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "one & all"
    assert "a <b>" in texts
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}image"))) == 4
