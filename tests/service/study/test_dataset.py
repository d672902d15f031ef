"""Rows come as written, or with the line that is wrong."""

from pathlib import Path

import pytest

from models.errors import InputError
from service.study.dataset import Row, read_rows


def test_rows_keep_their_lines_and_defaults(write_rows) -> None:
    file = write_rows({"prompt": "1+1=", "target": "2", "family": "add", "level": 1}, "", {"inputs": [0], "target": 3})
    assert read_rows(file) == [Row(1, "1+1=", "2", "add", 1), Row(3, [0], 3, "all", 0)]


def test_limit_takes_evenly_from_every_family_and_level(write_rows) -> None:
    cells = [("add", 1)] * 3 + [("add", 2)] * 3 + [("sort", 1)] * 1
    rows = [{"prompt": "1", "target": "2", "family": family, "level": level} for family, level in cells]
    assert [row.line for row in read_rows(write_rows(*rows), limit=5)] == [1, 2, 4, 5, 7]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 is no JSON"),
        ("[1]", "line 2 is a list"),
        ('{"target": "2"}', "line 2 needs either 'prompt'"),
        ('{"prompt": "1", "inputs": [1], "target": "2"}', "line 2 needs either 'prompt'"),
        ('{"prompt": 1, "target": "2"}', "line 2: prompt is 1, which is no str"),
        ('{"prompt": "1"}', "line 2 has no 'target'"),
        ('{"prompt": "1", "target": 2}', "line 2: target is 2, which is no str"),
        ('{"inputs": [1], "target": true}', "line 2: target is True, which is no int"),
        ('{"prompt": "1", "target": "2", "famliy": "add"}', "line 2 has 'famliy', which is no field"),
        ('{"prompt": "1", "target": "2", "level": "1"}', "line 2: level is '1', which is no int"),
        ('{"prompt": "1", "target": "2", "decoy": "2"}', "line 2: the decoy is the target"),
    ],
)
def test_bad_row_is_named_by_its_line(write_rows, line: str, words: str) -> None:
    file = write_rows({"prompt": "1", "target": "2"}, line)
    with pytest.raises(InputError, match=words):
        read_rows(file)


def test_file_without_rows_or_without_existence_is_refused(write_rows, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no rows"):
        read_rows(write_rows(""))
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl")
