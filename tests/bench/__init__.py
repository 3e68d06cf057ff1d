"""The measured claims: `python -m tests.bench` (or `make bench`) writes their figures to out/bench.json."""
