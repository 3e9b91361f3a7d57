"""What several files of end-to-end tests share."""

from pathlib import Path

import pytest

from tests.e2e.quantised import Quantised, Report, quantise_all
from tests.support import Environment


@pytest.fixture(scope="session")
def quantised(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    """The zoo's math model, quantised by every method."""
    return quantise_all(tmp_path_factory.mktemp("quantised") / "store", environment)


@pytest.fixture
def store(quantised: Quantised) -> Path:
    """The store that holds them."""
    return quantised.store


@pytest.fixture
def reports(quantised: Quantised) -> dict[str, Report]:
    """What each request's compression printed."""
    return quantised.reports
