"""Check what pods read: secrets in plain text, Secrets and ConfigMaps that are gone, volumes.

Nothing here keeps a value of the environment or of a Secret: findings name variables, never what is in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tpu_migration.domain.preflight.findings import BLOCKER, WARNING, Finding, Observed, title_of
from tpu_migration.domain.preflight.pods import containers_of, references

_SECRET_NAME = re.compile(r"TOKEN(?!S|IZ)|API_?KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL|(?<![A-Z])KEY(?![A-Z])", re.I)
_NAMES_A_PLACE = re.compile(r"_(FILE|PATH|DIR|NAME|ID)$", re.I)
_SECRET_FLAG = re.compile(r"--(api-key|hf-token|[a-z-]*password)(=(.+))?", re.I)
_REFERENCE = re.compile(r"\$\(\w+\)|\$\{?\w+\}?")


def literal_secrets(observed: Observed) -> Iterator[Finding]:
    """Warn of secrets written into the Deployment; they are named, and never repeated."""
    for container in containers_of(observed.deployment):
        for variable in container.get("env") or []:
            name, value = str(variable.get("name")), str(variable.get("value") or "")
            if _SECRET_NAME.search(name) and not _NAMES_A_PLACE.search(name) and _is_literal(value):
                yield _literal(observed, f"container {container.get('name')}, variable {name}")
        line = [*(container.get("command") or []), *(container.get("args") or [])]
        words = [word.strip("\"'") for each in line for word in str(each).split()]  # a shell's string too
        for word, following in zip(words, [*words[1:], ""], strict=False):
            flag = _SECRET_FLAG.fullmatch(word)
            if flag and _is_literal(flag[3] or ("" if flag[2] or following.startswith("-") else following)):
                yield _literal(observed, f"container {container.get('name')}, argument --{flag[1]}")


def _is_literal(value: str) -> bool:
    return bool(value) and not _REFERENCE.fullmatch(value.strip("\"'"))


def _literal(observed: Observed, where: str) -> Finding:
    return Finding(
        WARNING,
        "literal-secret",
        f"{title_of(observed.deployment)}, {where}",
        "holds a secret as plain text, and the target takes it over",
        "put it into a Secret and read it by secretKeyRef",
    )


def storage(observed: Observed) -> Iterator[Finding]:
    """Refuse claims that are gone; which ones a TPU pod can mount, the translation tells."""
    for name, claim in observed.claims.items():
        if claim is None:
            yield Finding(
                BLOCKER, "claim-missing", f"PersistentVolumeClaim {name}", "is mounted and does not exist", "create it"
            )


def secrets_and_config(observed: Observed) -> Iterator[Finding]:
    """Refuse pods that could not start again: what they read is gone, though those that run still have it."""
    for each in references(observed.deployment):
        if (each.kind, each.name) not in observed.held:
            continue
        keys = observed.held[each.kind, each.name]
        if keys is None or (each.key and each.key not in keys):
            what = "does not exist" if keys is None else f"has no key {each.key}"
            yield Finding(
                BLOCKER,
                "reference-missing",
                f"{each.kind} {each.name}",
                f"is read by {title_of(observed.deployment)} and {what}: no new pod starts",
                "create it" if keys is None else "add the key",
            )
