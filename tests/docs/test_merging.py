"""docs/merging.md lists every merge method with its options and defaults."""

import json
import re
from pathlib import Path

from impart_core.merging.method import Option
from impart_core.merging.methods import MERGE_METHODS

TEXT = (Path(__file__).parents[2] / "docs" / "merging.md").read_text()
ROWS = {
    match[1]: [cell.strip() for cell in re.split(r"(?<!\\)\|", match[0])[1:-1]]
    for match in re.finditer(r"^\| `(\w+)` \|.*\|$", TEXT.partition("### TIES")[0], re.MULTILINE)
}


def written(option: Option) -> str:
    default = option.default if isinstance(option.default, str) else json.dumps(option.default)
    return f"`{option.name}` {'required' if option.required else default}"


def test_the_table_has_every_method_with_its_options_and_source() -> None:
    assert set(ROWS) == set(MERGE_METHODS)
    for name, (_, _, options, source) in ROWS.items():
        method = MERGE_METHODS.get(name)
        assert options == (", ".join(map(written, method.options.values())) or "none"), name
        if method.source.startswith("arXiv"):
            assert f"[{method.source}](https://arxiv.org/abs/{method.source.split()[1]})" in source, name
