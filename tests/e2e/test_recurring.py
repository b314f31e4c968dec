"""Recurring runs through the stock SDK."""
import time

import pipelines as p
from conftest import wait


def test_schedule_starts_runs_until_it_is_disabled(client, tmp_path):
    def ticks(word: str = "tick"):
        p.check(text=word, want="tock")

    package = p.write(tmp_path / "ticks.yaml", "ticks", ticks)
    experiment = client.create_experiment("schedules")
    schedule = client.create_recurring_run(
        experiment.experiment_id, "every second", pipeline_package_path=package, interval_second=1, params={"word": "tock"},
        max_concurrency=2, enable_caching=False)
    deadline = time.monotonic() + 60
    runs = []
    while len(runs) < 3 and time.monotonic() < deadline:
        runs = client.list_runs(experiment_id=experiment.experiment_id, page_size=50).runs or []
        time.sleep(0.2)
    client.disable_recurring_run(schedule.recurring_run_id)
    assert len(runs) >= 3, "the schedule must start runs"
    for run in runs[:3]:
        assert wait(client, run.run_id).state == "SUCCEEDED"
        assert run.recurring_run_id == schedule.recurring_run_id
    assert client.get_recurring_run(schedule.recurring_run_id).status == "DISABLED"
    client.enable_recurring_run(schedule.recurring_run_id)
    listed = client.list_recurring_runs(experiment_id=experiment.experiment_id).recurring_runs
    assert [r.recurring_run_id for r in listed] == [schedule.recurring_run_id]
    client.delete_recurring_run(schedule.recurring_run_id)
