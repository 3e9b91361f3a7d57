"""What several files of end-to-end tests share."""

import pytest

from tests.e2e.quantised import Quantised, quantise_all
from tests.support import Environment


@pytest.fixture(scope="session")
def quantised(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    """The zoo's math model, quantised by every method."""
    return quantise_all(tmp_path_factory.mktemp("quantised") / "store", environment)
