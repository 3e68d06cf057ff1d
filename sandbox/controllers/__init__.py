"""Run the controllers that a migration leans on: workloads, scheduling, endpoints, clean-up."""

from .manager import Manager

__all__ = ["Manager"]
