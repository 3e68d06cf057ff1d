"""Stand in for GKE's Gateway: a real Envoy, programmed from Gateway API objects with GKE's defaults."""

from sandbox.gateway.controller import run_gateway

__all__ = ["run_gateway"]
