"""The exhaustive proofs: too long for every change, and resumable."""
