"""docs/how-to/undo.md, "By hand, without the tool": what it tells a person to do brings users home, run or no run."""

from __future__ import annotations

import json

import pytest

from sandbox.workload import NAMESPACE, WORKLOAD
from tests.docs.markdown import ROOT
from tests.simulation.harness import Phase, Scene

PAGE = (ROOT / "docs" / "how-to" / "undo.md").read_text()
RECORD, ANNOTATION = f"tpu-migration-{WORKLOAD}", f"tpu-migration/epoch.{WORKLOAD}"


def by_hand(scene: Scene) -> None:
    """Put the recorded rules back, and raise the epoch: `kubectl get` and `kubectl edit`, and nothing of ours."""
    data = scene.world.client.get("configmaps", NAMESPACE, RECORD)["data"]
    route = scene.world.client.get("httproutes", NAMESPACE, WORKLOAD)
    route["spec"]["rules"] = json.loads(data["record.json"])["source"]["rules"]
    annotations = route["metadata"]["annotations"]
    annotations[ANNOTATION] = str(int(annotations[ANNOTATION]) + 1)
    scene.world.client.update("httproutes", route)


def test_the_page_names_what_this_test_uses():
    for name in (RECORD, r".data.record\.json", ".source.rules", ANNOTATION):
        assert name in PAGE


@pytest.mark.parametrize("percent", [10, 100])
def test_users_who_were_sent_home_by_hand_stay_there_and_the_run_cleans_up(percent):
    scene = Scene()
    scene.when_percent(percent, lambda: by_hand(scene))
    airflow = scene.airflow().run()
    assert "above the record's" in airflow.reasons()
    assert scene.record.phase is Phase.FALLEN_BACK
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()
    scene.assert_nothing_left()
