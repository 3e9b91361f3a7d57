"""What a task records of the run that it belongs to."""

import pytest
from prefect import flow, task
from prefect.runtime import flow_run

from impart_tasks.watch import start_watch


def test_outside_of_a_flow_there_is_no_run() -> None:
    made = start_watch(base="/models/base").provenance()
    assert (made.run, made.sources) == ("", {"base": "/models/base"})


@pytest.mark.e2e
@pytest.mark.usefixtures("prefect_api")
def test_every_task_of_a_flow_records_its_run() -> None:
    @task
    def work() -> str:
        return start_watch().provenance().run

    @flow
    def both() -> tuple[str, list[str]]:
        return str(flow_run.id), [work(), work.submit().result()]

    run, recorded = both()
    assert len(run) == 36
    assert recorded == [run, run]
