"""What `test_every_form` holds, of machine code: a minute or more for each family, by `make compiled`.

One small model is compiled in every run of the tests, by `tests/exporters/test_aoti.py`.
"""

from pathlib import Path

import pytest

from tests.contracts.families import FAMILIES, Family
from tests.contracts.made import assert_answers, made_of

pytestmark = [pytest.mark.compiled, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_machine_code_answers_within_its_tolerance_through_the_service(family: Family, tmp_path: Path) -> None:
    with made_of(family, tmp_path) as made:
        assert_answers(made, "aoti")
