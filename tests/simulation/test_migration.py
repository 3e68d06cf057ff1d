"""A whole migration in virtual time."""

from __future__ import annotations

from tests.simulation.harness import Phase, Scene


def test_a_migration_moves_users_to_tpu_and_gives_the_gpus_back():
    scene = Scene()
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    assert scene.record.phase is Phase.MIGRATED
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()
    assert "h100-pool" not in scene.pools()
    assert scene.leftovers() == [
        "deployments/vllm-gemma3-27b-tpu", "services/vllm-gemma3-27b-tpu",
        "poddisruptionbudgets/vllm-gemma3-27b-tpu", "healthcheckpolicies/vllm-gemma3-27b-tpu",
        "gcpbackendpolicies/vllm-gemma3-27b-tpu", "horizontalpodautoscalers/vllm-gemma3-27b-tpu",
        "podmonitorings/vllm-gemma3-27b-tpu",
    ]  # fmt: skip
