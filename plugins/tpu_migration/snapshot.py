"""Keep the immutable snapshot of the source: enough to rebuild it, one for each run."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict

from tpu_migration.clients.kubernetes import SECRETS, Kubernetes, Object
from tpu_migration.errors import PermanentError
from tpu_migration.names import MANAGED_BY, RUN_LABEL, WORKLOAD_LABEL, record_name, run_hash
from tpu_migration.record import RecordError, Source


class Snapshots:
    """Write and read the immutable snapshot of the source: enough to rebuild it."""

    def __init__(self, kube: Kubernetes, namespace: str, workload: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self._workload = workload

    def name(self, epoch: int) -> str:
        """Return the Secret's name for an epoch; one a run, so none ever finds an old one."""
        return f"{record_name(self._workload)}-snapshot-{epoch}"

    def take(self, epoch: int, run_id: str, objects: Sequence[Object], source: Source) -> None:
        """Keep the objects and the routing; the first snapshot of an epoch stays, whoever calls again."""
        payload = {"objects": list(objects), "source": asdict(source)}
        packed = base64.b64encode(gzip.compress(json.dumps(payload).encode(), mtime=0)).decode()
        labels = {**MANAGED_BY, WORKLOAD_LABEL: self._workload, RUN_LABEL: run_hash(run_id)}
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": self.name(epoch), "namespace": self._namespace, "labels": labels},
            "type": "tpu-migration/snapshot",
            "immutable": True,
            "data": {"snapshot.json.gz": packed},
        }
        existing = self._kube.get(SECRETS, self.name(epoch), self._namespace)
        if existing is None:
            self._kube.create(secret)
        elif existing["metadata"].get("labels", {}).get(RUN_LABEL) != run_hash(run_id):
            raise PermanentError(
                f"Secret {self.name(epoch)} is the snapshot of another run; delete it if that run is over"
            )

    def read(self, epoch: int) -> tuple[list[Object], Source]:
        """Return the snapshot's objects and routing; RecordError if it is gone."""
        secret = self._kube.get(SECRETS, self.name(epoch), self._namespace)
        if secret is None:
            raise RecordError(f"Secret {self.name(epoch)}, the snapshot of the source, is gone")
        return _unpack(secret)

    def newest(self) -> tuple[list[Object], Source] | None:
        """Return the newest snapshot of the workload, for a restore whose record is lost."""
        found = self._newest()
        return _unpack(found) if found else None

    def next_epoch(self, run_id: str, above: int) -> int:
        """Return the epoch of a run that begins: above all others, or the one of its own earlier try."""
        found = self._newest()
        newest = _epoch_in(found) if found else 0
        if self.newest_is_of(run_id) and newest > above:
            return newest
        return max(above, newest) + 1

    def newest_is_of(self, run_id: str) -> bool:
        """Tell whether a run took the newest snapshot: it began, whatever became of its record."""
        found = self._newest()
        return found is not None and found["metadata"]["labels"].get(RUN_LABEL) == run_hash(run_id)

    def _newest(self) -> Object | None:
        selector = ",".join(f"{k}={v}" for k, v in {**MANAGED_BY, WORKLOAD_LABEL: self._workload}.items())
        found = [
            each
            for each in self._kube.list(SECRETS, self._namespace, labels=selector)
            if each.get("type") == "tpu-migration/snapshot"
        ]
        return max(found, key=_epoch_in, default=None)


def _epoch_in(snapshot: Object) -> int:
    return int(snapshot["metadata"]["name"].rpartition("-")[2])


def _unpack(secret: Object) -> tuple[list[Object], Source]:
    try:
        payload = json.loads(gzip.decompress(base64.b64decode(secret["data"]["snapshot.json.gz"])))
        return payload["objects"], Source.from_dict(payload["source"])
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"Secret {secret['metadata']['name']}, the snapshot of the source, is damaged ({error!r}): set the "
            "HTTPRoute's backendRefs by hand"
        ) from error
