"""Keep the migration's truth in the cluster: one ConfigMap a workload, written by compare-and-swap only.

The record's epoch says whose word counts: a writer that holds an older one has been restored or superseded, however
late its call arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tpu_migration.clients.kubernetes import CONFIG_MAPS, Kubernetes, Object
from tpu_migration.errors import ConflictError, SupersededError, TransientError
from tpu_migration.names import MANAGED_BY, RECORD_LABEL, WORKLOAD_LABEL, record_name
from tpu_migration.record import Record, RecordError

_MAX_BYTES = 256 * 1024
_CAS_TRIES = 8


class Records:
    """Read and write the record of one workload."""

    def __init__(self, kube: Kubernetes, namespace: str, workload: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self.workload = workload
        self.name = record_name(workload)
        self._seen: Object | None = None  # as last read or written, for the next compare-and-swap
        self.on_change: Callable[[Record | None, Record], object] = lambda before, after: None  # told of each write

    def read(self) -> Record | None:
        """Return the record, or None if there is none."""
        self._seen = self._kube.get(CONFIG_MAPS, self.name, self._namespace)
        return _record_in(self._seen) if self._seen else None

    def begin(self, record: Record) -> None:
        """Write the first record of a run, over an ended one or over none.

        Raises ConflictError if another run was quicker.
        """
        found = self._kube.get(CONFIG_MAPS, self.name, self._namespace)
        if found is None:
            self._kube.create(self._config_map(record))
            self.on_change(None, record)
            return
        previous = _record_in(found)
        if previous.active and previous.run_id != record.run_id:
            raise SupersededError(
                f"{self.name} belongs to run {previous.run_id} (phase {previous.phase}): wait for its end, "
                f"or send users home with `tpu-migration restore {self.workload}` and start again"
            )
        self._kube.replace(self._config_map(record, found["metadata"]["resourceVersion"]))
        self.on_change(previous, record)

    def update(self, run_id: str, epoch: int, change: Callable[[Record], Record]) -> Record:
        """Change the record of this run and epoch by compare-and-swap and return it as written.

        What was read or written last is tried first: where nobody wrote since, that saves a call.
        Raises SupersededError if a newer epoch or another run owns it, RecordError if it is gone.
        """
        for _ in range(_CAS_TRIES):
            seen = self._take_seen(run_id, epoch)
            found = seen or self._kube.get(CONFIG_MAPS, self.name, self._namespace)
            if found is None:
                raise RecordError(f"the record {self.name} is gone in the middle of run {run_id}")
            record = _record_in(found)
            _check_owner(record, run_id, epoch)
            changed = change(record)
            if changed == record:
                if seen:
                    continue  # that it is so already must be true now, not when it was last looked at
                return record
            try:
                self._seen = self._kube.replace(self._config_map(changed, found["metadata"]["resourceVersion"]))
            except ConflictError:
                continue
            self.on_change(record, changed)
            return changed
        raise TransientError(f"{self.name} is written by others all the time: lost {_CAS_TRIES} times")

    def _take_seen(self, run_id: str, epoch: int) -> Object | None:
        """Return what was seen last, once, if it is of this run and epoch; a refusal needs a fresh look."""
        seen, self._seen = self._seen, None
        if seen is None:
            return None
        record = _record_in(seen)
        return seen if (record.run_id, record.epoch) == (run_id, epoch) else None

    def force(self, change: Callable[[Record], Record]) -> Record | None:
        """Change whatever record is there, whoever owns it; for a restore. None if there is none."""
        for _ in range(_CAS_TRIES):
            found = self._kube.get(CONFIG_MAPS, self.name, self._namespace)
            if found is None:
                return None
            record = _record_in(found)
            if (changed := change(record)) == record:
                return record
            try:
                self._kube.replace(self._config_map(changed, found["metadata"]["resourceVersion"]))
            except ConflictError:
                continue
            return changed
        raise TransientError(f"{self.name} is written by others all the time: lost {_CAS_TRIES} times")

    def _config_map(self, record: Record, resource_version: str = "") -> Object:
        text = record.to_json()
        if len(text) > _MAX_BYTES:
            raise RecordError(f"the record would take {len(text)} bytes, more than {_MAX_BYTES}")
        metadata: dict[str, Any] = {
            "name": self.name,
            "namespace": self._namespace,
            "labels": {**MANAGED_BY, RECORD_LABEL: "true", WORKLOAD_LABEL: self.workload},
        }
        if resource_version:
            metadata["resourceVersion"] = resource_version
        data = {"record.json": text, "phase": str(record.phase), "epoch": str(record.epoch)}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def all_records(kube: Kubernetes, namespace: str) -> dict[str, Record | RecordError]:
    """Return every workload's record, or what is wrong with it: one damaged record must not hide the others."""
    found: dict[str, Record | RecordError] = {}
    for each in kube.list(CONFIG_MAPS, namespace, labels=f"{RECORD_LABEL}=true"):
        metadata = each["metadata"]
        workload = (metadata.get("labels") or {}).get(WORKLOAD_LABEL) or metadata["name"].removeprefix("tpu-migration-")
        try:
            found[workload] = _record_in(each)
        except RecordError as error:
            error.phase = str((each.get("data") or {}).get("phase", ""))
            found[workload] = error
    return found


def _record_in(config_map: Object) -> Record:
    return Record.from_json((config_map.get("data") or {}).get("record.json", ""))


def _check_owner(record: Record, run_id: str, epoch: int) -> None:
    if record.run_id != run_id:
        raise SupersededError(
            f"{record.workload} belongs to run {record.run_id} now (phase {record.phase}), not to {run_id}"
        )
    if record.epoch != epoch:
        by = f": {record.fallback.actor} restored it, {record.fallback.reason}" if record.fallback else ""
        raise SupersededError(f"{record.workload} is at epoch {record.epoch}, this worker knows {epoch}{by}")
