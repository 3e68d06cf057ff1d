#!/usr/bin/env python3
"""Deploy the vLLM stack without Airflow; the older command line, which is `tpu-migration deploy` now."""

import sys

try:
    from tpu_migration.cli import main
except ModuleNotFoundError as error:
    if error.name != "tpu_migration":
        raise
    sys.exit("tpu_migration is not installed here: run `make setup`, then .venv/bin/python deployment/deploy_all.py")

if __name__ == "__main__":
    sys.exit(main(["deploy", *sys.argv[1:]]))
