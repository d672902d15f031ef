"""What `test_every_form` holds, of the forms that take longest to write."""

from collections.abc import Iterator

import pytest

from models.artifact import Format
from tests.contracts.families import FAMILIES
from tests.contracts.made import TRACED, Made, assert_answers, made_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with made_of(request.param, tmp_path_factory.mktemp(request.param.name)) as one:
        yield one


@pytest.mark.parametrize("format", TRACED)
def test_form_answers_within_its_tolerance_through_the_service(made: Made, format: Format) -> None:
    assert_answers(made, format)


def test_only_what_cannot_be_is_refused(made: Made) -> None:
    wanted = {format: reason for format, reason in made.family.cannot.items() if format in TRACED}
    assert made.artifact("pt2").refused == wanted
