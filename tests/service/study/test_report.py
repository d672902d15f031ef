"""The report of four hand-written results: the same bytes every time, controls in the very same table."""

import json
from pathlib import Path
from xml.etree import ElementTree

from service.study.record import SampleResult
from service.study.write import write_report

PINNED = {"model": "tiny", "simulations": 4}


def test_controls_stand_beside_every_oracle_number(tmp_path: Path, results: list[SampleResult]) -> None:
    page = write_report(tmp_path, results, PINNED).read_text()
    assert "| all | 4 | 25 | 75 / 50 | 50 / 0 | 50 / 25 | 75 / 0 | 67 / 42 | 1e5.0 |" in page
    assert "| all | 3 | 67 / 67 | 33 / 0 | 33 / 0 | 67 / 0 | 55 / 24 | 33 / 33 | +0 ± 0 | +67 ± 33 |" in page
    assert "| add | 1 | 100 / 0 | 100 / 0 | 0 / 0 | 0 / 0 | +100 | 2.0 | 5.0 | 3.0 | 2 | 50 | 3.0 |" in page
    assert "| one chain, one sample | 25.00 / 16.67 |" in page
    assert "14 of 14 winners gave their answer again" in page


def test_numbers_are_in_the_json_and_shares_are_fractions(tmp_path: Path, results: list[SampleResult]) -> None:
    write_report(tmp_path, results, PINNED)
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers["study"] == PINNED
    assert numbers["groups"]["all"]["accuracy"]["both"]["target"] == 0.75


def test_what_a_person_wrote_heads_the_page(tmp_path: Path, results: list[SampleResult]) -> None:
    (tmp_path / "reading.md").write_text("It is luck.\n")
    page = write_report(tmp_path, results, PINNED).read_text()
    assert page.index("It is luck.") < page.index("## Accuracy")


def test_figures_are_small_svg_and_come_out_the_same_again(tmp_path: Path, results: list[SampleResult]) -> None:
    first = write_report(tmp_path, results, PINNED)
    pictures = {file.name: file.read_bytes() for file in tmp_path.glob("*.svg")}
    assert pictures.keys() == {"accuracy.svg", "corrected.svg", "layers.svg"}
    write_report(tmp_path, results, PINNED)
    for name, picture in pictures.items():
        assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
        assert len(picture) < 60_000
        assert (tmp_path / name).read_bytes() == picture
        assert f"]({name})" in first.read_text()
