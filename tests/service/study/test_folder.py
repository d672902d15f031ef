"""A study's folder survives being killed and refuses to mix studies."""

from pathlib import Path

import pytest

from models.errors import InputError
from service.study.folder import CONFIG, RESULTS, StudyFolder
from service.study.record import SampleResult

PINNED = {"model": "m", "simulations": 200, "temperatures": (1.0, 2.0)}


def test_results_come_back_in_the_order_of_the_dataset(tmp_path: Path, results: list[SampleResult]) -> None:
    folder = StudyFolder(tmp_path / "deep" / "out", PINNED)
    for result in reversed(results):
        folder.append(result)
    folder.close()
    again = StudyFolder(tmp_path / "deep" / "out", PINNED)
    assert again.results() == results
    again.close()


def test_torn_last_line_is_dropped_and_what_follows_is_whole(tmp_path: Path, results: list[SampleResult]) -> None:
    folder = StudyFolder(tmp_path, PINNED)
    folder.append(results[0])
    folder.close()
    with (tmp_path / RESULTS).open("a") as file:
        file.write(results[1].model_dump_json()[:100])
    folder = StudyFolder(tmp_path, PINNED)
    assert folder.results() == results[:1]
    folder.append(results[1])
    assert folder.results() == results[:2]
    folder.close()


def test_line_that_is_whole_but_no_result_is_refused_by_number(tmp_path: Path, results: list[SampleResult]) -> None:
    (tmp_path / RESULTS).write_text(f"{results[0].model_dump_json()}\n{{}}\n")
    folder = StudyFolder(tmp_path, PINNED)
    with pytest.raises(InputError, match="line 2 is no result"):
        folder.results()
    folder.close()


def test_other_configuration_is_refused_by_name(tmp_path: Path) -> None:
    StudyFolder(tmp_path, PINNED).close()
    with pytest.raises(InputError, match="holds a study with simulations 200 and this one has 50"):
        StudyFolder(tmp_path, {**PINNED, "simulations": 50})
    assert '"simulations": 200' in (tmp_path / CONFIG).read_text()


def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    first = StudyFolder(tmp_path, PINNED)
    with pytest.raises(InputError, match="in use by another run"):
        StudyFolder(tmp_path, PINNED)
    first.close()
    StudyFolder(tmp_path, PINNED).close()
