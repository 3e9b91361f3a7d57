"""Requests as parameters of deployments: Prefect checks them against a schema before a run begins."""

from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import validate

from impart_core.engine.requests import CompressRequest, MergeRequest
from impart_core.engine.search import SearchRequest
from impart_core.engine.zoo_jobs import ZooRequest
from impart_core.merging.file import merge_of
from impart_core.methods import METHODS
from impart_core.searching.file import parse_search
from impart_core.zoo.file import parse_zoo
from impart_flows.compress import compress
from impart_flows.merge import merge
from impart_flows.search import search
from impart_flows.zoo import zoo


def check(flow: Any, request: Any) -> None:
    """Check a request as a server and a worker do."""
    values = {"request": request.model_dump(mode="json")}
    validate(values, flow.parameters.model_dump_for_openapi(), raise_on_error=True)
    assert flow.validate_parameters(values)["request"] == request


@pytest.mark.parametrize("method", list(METHODS))
def test_options_of_every_method_are_taken(method: str) -> None:
    options = METHODS.get(method).options_model().model_dump(mode="json")
    request = CompressRequest(base="a/b", finetuned="c/d", config={"cr": 4, "method": method, "options": options})
    check(compress, request)


def test_merges_are_taken() -> None:
    content = {
        "merge_method": "ties",
        "base_model": "a/b",
        "models": [{"model": "c/d+e/f", "parameters": {"weight": [0.2, 1], "density": 0.5}}, {"model": "math@prod"}],
        "tokenizer": {"source": "union", "tokens": {"<x>": {"source": {"kind": "zero"}}}},
        "impart": {"sparsify": {"cr": 4}, "models": {"math@prod": {"sparsify": None}}, "compress": {"cr": 16}},
    }
    check(merge, MergeRequest(stages=(merge_of(content),)))


def test_searches_are_taken() -> None:
    template = {"base": "a/b", "finetuned": "c/d", "method": {"choose": ["impart", "dare"]}, "cr": 16}
    content = {
        "compress": template,
        "tasks": {"t": "acc"},
        "objectives": ["mean", "bytes"],
        "constraints": ["bytes <= 5"],
    }
    check(search, SearchRequest(file=parse_search({**content, "sampler": "grid", "items": 8})))


def test_a_whole_zoo_is_taken() -> None:
    steps = [{"cr": 64, "options": {"beta": 0.5}}, {"method": "dare", "cr": 4}]
    model = {"name": "math", "base": "a/b", "finetuned": "c/d", "tasks": ["tinyzoo_math"]}
    both = {"name": "both", "merge": {"merge_method": "linear", "models": [{"model": "a"}]}}
    content = {"recipes": {"default": {"steps": steps}}, "models": [model], "merges": [both]}
    check(zoo, ZooRequest(zoo=parse_zoo(content)))
