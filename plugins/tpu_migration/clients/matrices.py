"""Fetch published support matrices from GitHub, a mirror, or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tpu_migration.errors import TransientError

PUBLISHED = "https://raw.githubusercontent.com/vllm-project/tpu-inference/main/support_matrices"
_TIMEOUT_S = 10.0
_MOST_BYTES = 1_000_000  # they have a few kilobytes


class Matrices:
    """Read files below one address, or one folder."""

    def __init__(self, source: str = PUBLISHED, session: Any = None) -> None:
        self.source = source.rstrip("/")
        self._session = session

    def read(self, path: str) -> str | None:
        """Return a file's text, None if there is no such file; TransientError for anything that says neither."""
        where = f"{self.source}/{path}"
        if not self.source.startswith(("http://", "https://")):
            return _of_folder(Path(self.source), Path(where))
        import requests

        session = self._session or requests
        try:
            answer = session.get(where, timeout=_TIMEOUT_S)
        except requests.RequestException as error:
            raise TransientError(f"{where} does not answer: {type(error).__name__}") from error
        if answer.status_code == 404:
            return None
        if answer.status_code != 200 or len(answer.content) > _MOST_BYTES:
            raise TransientError(f"{where} answers {answer.status_code} with {len(answer.content)} bytes")
        return str(answer.content.decode("utf-8", errors="replace"))


def _of_folder(folder: Path, file: Path) -> str | None:
    if not folder.is_dir():
        raise TransientError(f"folder {folder} is not there")
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise TransientError(f"{file} cannot be read: {error}") from error
