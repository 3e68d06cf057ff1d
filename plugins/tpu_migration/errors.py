"""Name what went wrong: permanently, for now, or because somebody else holds the work."""

from __future__ import annotations

from tpu_migration.domain.masking import masked


class MigrationError(Exception):
    """Base of every error that this package raises on purpose.

    Its message, which may repeat a server's answer or a log, shows no secret: it goes into logs, records and notices.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(masked(str(message)))


class PermanentError(MigrationError):
    """Report a state that calling again will not change; the message names the remedy."""


class NotServedError(PermanentError):
    """Report an API that the cluster does not have: its CRD is not installed, or the namespace is missing."""


class NoCapacityError(PermanentError):
    """Report a node pool that did not come, or did not last: another kind of capacity or zone may do better."""


class TransientError(MigrationError):
    """Report a state that may pass by itself: a timeout, a busy server, a lost connection."""


class ThrottledError(TransientError):
    """Report a request that the API server refused before looking at it: it says nothing of what was asked about."""


class ConflictError(TransientError):
    """Report a compare-and-swap that lost: somebody wrote the object in between."""


class NotHolderError(PermanentError):
    """Report that this worker may not change anything: another holds the migration, or its lease ran out."""


class SupersededError(PermanentError):
    """Report that a newer epoch exists: somebody restored or took over, and this run's plan is history."""
