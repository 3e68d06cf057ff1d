"""Define the phases of a migration and what each one promises."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """Where a migration stands, as its record in the cluster says."""

    PLANNED = "planned"  # preflight passed; nothing but the record and the snapshot exists
    PROVISIONED = "provisioned"  # TPU nodes are ready
    DEPLOYED = "deployed"  # vLLM-TPU objects exist; pods may still load and compile
    WARM = "warm"  # every shape is compiled, a second pass compiled nothing
    GATED = "gated"  # the verdict is in the record; only `pass` moves on
    SHIFTING = "shifting"  # users are moving; the source is pinned at full strength
    SOAKING = "soaking"  # users are on the target; the source still is at full strength
    COMMITTED = "committed"  # the soak passed; from here on the target is the safe side
    DECOMMISSIONING = "decommissioning"  # the source is being drained and released
    MIGRATED = "migrated"  # the end: the source is parked or gone
    PROVEN = "proven"  # the end of a proof of concept: verdict kept, TPU released, no traffic moved
    FALLING_BACK = "falling_back"  # the route is restored; the TPU is being released
    FALLEN_BACK = "fallen_back"  # the end: users on the source, nothing of the target left
    REJECTED = "rejected"  # the end: people said no; users on the source
    HELD = "held"  # the end: users on the source; the TPU is kept for a closer look


# Users have been sent, or may be sent, to the target on the run's own word.
USERS_MAY_BE_ON_TARGET = frozenset({Phase.SHIFTING, Phase.SOAKING})

# The point of no return has passed: the safe side is the target while it serves.
AFTER_COMMIT = frozenset({Phase.COMMITTED, Phase.DECOMMISSIONING, Phase.MIGRATED})

# Nobody works on the migration in these; a new run may begin.
ENDED = frozenset(
    {Phase.MIGRATED, Phase.PROVEN, Phase.FALLEN_BACK, Phase.REJECTED, Phase.HELD},
)

_FORWARD: dict[Phase, frozenset[Phase]] = {
    Phase.PLANNED: frozenset({Phase.PROVISIONED}),
    Phase.PROVISIONED: frozenset({Phase.DEPLOYED}),
    Phase.DEPLOYED: frozenset({Phase.WARM}),
    Phase.WARM: frozenset({Phase.GATED}),
    Phase.GATED: frozenset({Phase.SHIFTING, Phase.PROVEN, Phase.HELD, Phase.REJECTED}),
    Phase.SHIFTING: frozenset({Phase.SOAKING}),
    Phase.SOAKING: frozenset({Phase.COMMITTED}),
    Phase.COMMITTED: frozenset({Phase.DECOMMISSIONING}),
    Phase.DECOMMISSIONING: frozenset({Phase.MIGRATED}),
    Phase.FALLING_BACK: frozenset({Phase.FALLEN_BACK, Phase.REJECTED, Phase.HELD}),
}


def may_follow(current: Phase, following: Phase) -> bool:
    """Tell whether a record may go from `current` to `following`.

    Before the commit every phase may fall back; after it none may: the source may be gone, and going
    back begins by making it whole (`Record.taken_back`).
    """
    if following is current:
        return True
    if following is Phase.FALLING_BACK:
        return current not in AFTER_COMMIT and current not in ENDED - {Phase.HELD}
    return following in _FORWARD.get(current, frozenset())
