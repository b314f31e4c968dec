"""Recurring runs through the stock SDK."""
import json
import time
import urllib.request

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


def patch(server, schedule_id, change):
    """What upstream's API does not have and its SDK does not know."""
    url = f"{server.host}/apis/v2beta1/recurringruns/{schedule_id}"
    request = urllib.request.Request(url, json.dumps(change).encode(), {"Content-Type": "application/json"}, method="PATCH")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_schedule_is_changed_in_place(server, client, tmp_path):
    def word(text: str = "tick"):
        p.check(text=text, want="tock")

    package = p.write(tmp_path / "word.yaml", "word", word)
    experiment = client.create_experiment("changed schedules")
    schedule = client.create_recurring_run(
        experiment.experiment_id, "yearly", pipeline_package_path=package, cron_expression="0 0 0 1 1 *",
        params={"text": "tick"}, max_concurrency=1, enable_caching=False)
    schedule_id = schedule.recurring_run_id
    changed = patch(server, schedule_id, {
        "trigger": {"periodic_schedule": {"interval_second": 1}}, "runtime_config": {"parameters": {"text": "tock"}},
        "max_concurrency": 2, "description": "every second"})
    assert len(changed["next_fire_times"]) == 5
    # The stock client reads on, whatever it does not know.
    seen = client.get_recurring_run(schedule_id)
    assert (seen.description, seen.max_concurrency, seen.status) == ("every second", "2", "ENABLED")
    assert seen.trigger.periodic_schedule.interval_second == "1"
    assert not hasattr(seen, "next_fire_times")
    deadline = time.monotonic() + 60
    runs = []
    while not runs and time.monotonic() < deadline:
        runs = client.list_runs(experiment_id=experiment.experiment_id).runs or []
        time.sleep(0.2)
    client.disable_recurring_run(schedule_id)
    assert runs, "the changed schedule must start runs"
    assert wait(client, runs[0].run_id).state == "SUCCEEDED"
    client.delete_recurring_run(schedule_id)
