"""What docs/install.md has people type: a plain kubectl does it, and what is removed spares a migrated workload."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from kubectl_shell import Shell
from served_api import needs_kubectl, serving

from tests.docs.markdown import ROOT, commands
from tpu_migration.names import MANAGED_BY, RECORD_LABEL, Names

pytestmark = [needs_kubectl, pytest.mark.asyncio]
INSTALL = ROOT / "docs" / "install.md"
NAMESPACE = "inference"
NAMES = Names("vllm-gemma3-27b", "run-1")


def _kubectl(verb: str) -> list[list[str]]:
    """Return the page's commands of a verb without the program; the namespace is the shell's."""
    return [shlex.split(each.text)[1:] for each in commands(INSTALL) if each.text.startswith(f"kubectl {verb}")]


def _labelled(kind: str, name: str, labels: dict[str, str]) -> dict[str, object]:
    version = "coordination.k8s.io/v1" if kind == "Lease" else "v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}}


async def test_what_is_applied_is_there_and_what_is_removed_spares_what_serves(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    async with serving(tmp_path) as cluster:
        shell = Shell(cluster, NAMESPACE)
        for command in _kubectl("apply"):
            await shell.run(*command)
        assert "deployment.apps/tpu-migration-guard" in await shell.run("get deployments -o name")

        kept = {**MANAGED_BY, RECORD_LABEL: "true"}
        for kind, resource in (("ConfigMap", "configmaps"), ("Secret", "secrets"), ("Lease", "leases")):
            cluster.local.create(resource, _labelled(kind, "of-the-bookkeeping", kept))
            cluster.local.create(resource, _labelled(kind, "of-the-target", NAMES.labels))
            cluster.local.create(resource, _labelled(kind, "of-somebody-else", {"app": "other"}))
        for command in _kubectl("delete"):
            await shell.run(*command)

        left = await shell.run("get configmaps,secrets,leases,deployments,roles,rolebindings,serviceaccounts -o name")
        ours = {each for each in left.split() if "tpu-migration" in each or "of-the" in each}
        assert ours == {f"{kind}/of-the-target" for kind in ("configmap", "secret", "lease.coordination.k8s.io")}
        assert left.count("of-somebody-else") == 3
        assert "tpu-migration" not in await shell.run("get clusterroles,clusterrolebindings -o name")
