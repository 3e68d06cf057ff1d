"""Embed a Kubernetes API server: a pure core, and a TLS HTTP server around it."""

from .core import Api
from .local import LocalClient
from .messages import ApiError, Request, Response

__all__ = ["Api", "ApiError", "LocalClient", "Request", "Response"]
