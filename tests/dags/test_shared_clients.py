"""Two hundred migrations of one triggerer reach their cluster over one client, and another cluster over another."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tpu_migration.domain.plan import Plan
from tpu_migration.errors import TransientError
from tpu_migration.hooks import migration
from tpu_migration.hooks.migration import MigrationHook
from tpu_migration.hooks.shared import Shared


@pytest.fixture
def reached(monkeypatch):
    """Count the clusters that were reached, by their place."""
    places = []

    def reach(*place):
        places.append(place)
        return SimpleNamespace(kubernetes=object(), token=lambda: "t")

    monkeypatch.setattr(migration, "_reach", reach)
    monkeypatch.setattr(migration, "_clusters", Shared(600.0))
    return places


def test_workloads_of_one_cluster_share_its_client(reached):
    hooks = [MigrationHook(Plan(workload=f"vllm-{number}", cluster="a")) for number in range(200)]
    assert len({id(hook.kubernetes()) for hook in hooks}) == 1
    assert len(reached) == 1


@pytest.mark.parametrize("field", ["gcp_conn_id", "project_id", "location", "cluster"])
def test_whatever_tells_clusters_apart_tells_their_clients_apart(reached, field):
    one, other = MigrationHook(Plan()), MigrationHook(Plan(**{field: "another"}))
    assert one.kubernetes() is not other.kubernetes()
    assert len(reached) == 2


def test_a_cluster_that_did_not_answer_is_asked_again(reached, monkeypatch):
    def away(*_):
        raise TransientError("the GKE API does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(migration, "_reach", away)
        with pytest.raises(TransientError):
            MigrationHook(Plan()).kubernetes()
    assert MigrationHook(Plan()).kubernetes()


def test_a_hook_reaches_nothing_before_it_is_asked_for_a_client(reached):
    assert MigrationHook(Plan()).monitoring() is None
    assert reached == []
