"""Make .env with passwords and keys of its own for docker-compose.yaml; one that is there stays as it is.

Runs on any Python 3, before anything is installed: `make up` calls it.
"""

from __future__ import annotations

import argparse
import base64
import os
import secrets
import sys
from pathlib import Path

HEAD = """\
# Made by deployment/make_env.py for docker-compose.yaml. Keep it: with another FERNET_KEY Airflow cannot read its
# connections again, and the database knows POSTGRES_PASSWORD from its first start.
# The UI is http://127.0.0.1:8080, the user admin.
"""


def values() -> dict[str, str]:
    """Return every variable that docker-compose.yaml needs, the secret ones drawn anew."""
    return {
        "AIRFLOW_PASSWORD": secrets.token_urlsafe(12),
        "POSTGRES_PASSWORD": secrets.token_hex(24),  # part of URLs: only letters and digits
        "REDIS_PASSWORD": secrets.token_hex(24),
        "FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "API_SECRET_KEY": secrets.token_urlsafe(32),
        "JWT_SECRET": secrets.token_urlsafe(64),
        # cluster: Airflow alone. sandbox: with the embedded cloud.
        "COMPOSE_PROFILES": "cluster",
    }


def main(arguments: list[str] | None = None) -> int:
    """Write the file, for its owner's eyes only; exit 0 also if it was there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(".env"))
    path: Path = parser.parse_args(arguments).out
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return 0
    with os.fdopen(descriptor, "w") as file:
        file.write(HEAD + "".join(f"{name}={value}\n" for name, value in values().items()))
    print(f"{path} is made; the password of admin in Airflow's UI is AIRFLOW_PASSWORD in it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
