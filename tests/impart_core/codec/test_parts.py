"""A part of codes is taken when it is the tensor that the format says."""

import pytest
import torch

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.parts import read_part


def test_a_part_of_the_codes_is_given_when_its_dtype_and_shape_are_right() -> None:
    part = torch.ones(3, 4).half()
    assert read_part({"u": part}, "w", "u", torch.float16, None, 4) is part


@pytest.mark.parametrize(
    ("part", "dtype", "shape"),
    [
        ("v", torch.float16, (3, 4)),
        ("u", torch.float32, (3, 4)),
        ("u", torch.float16, (3, 5)),
        ("u", torch.float16, (None,)),
        ("u", torch.float16, (3, 4, None)),
    ],
)
def test_a_part_that_is_missing_or_another_tensor_is_refused_by_name(
    part: str, dtype: torch.dtype, shape: tuple[int | None, ...]
) -> None:
    with pytest.raises(CorruptArtifactError, match=f"codes of 'w' .*'{part}'|'{part}' of the codes of 'w'"):
        read_part({"u": torch.ones(3, 4).half()}, "w", part, dtype, *shape)
