"""The keys of run pages."""

import pytest
from prefect.client.schemas.actions import ArtifactCreate

from impart_flows.run_page import page_key


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("math@cr16", "delta-math-cr16"),
        ("WizardMath-13B@prod", "delta-wizardmath-13b-prod"),
        ("a__b.c-", "delta-a-b-c"),
        ("0123456789ab", "delta-0123456789ab"),
    ],
)
def test_a_key_follows_from_the_name_and_is_valid_in_prefect(name: str, key: str) -> None:
    assert page_key("delta", name) == key
    assert ArtifactCreate(key=key).key == key
