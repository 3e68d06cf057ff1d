"""Find the kubelet that has a container's log, and turn its refusals into the API's."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

from .messages import ApiError, bad_request
from .store import Entry, Store


def log_url(store: Store, pod: Entry, container: str, query: Mapping[str, str]) -> str | None:
    """Return the URL of a log on its node's kubelet; None while the pod is on no node."""
    meta, name = pod.obj["metadata"], pod.obj["spec"].get("nodeName")
    if not name:
        return None
    node = store.get("nodes", "", name)
    status = node.obj.get("status", {}) if node else {}
    address = next((a["address"] for a in status.get("addresses", ()) if a["type"] == "InternalIP"), None)
    port = status.get("daemonEndpoints", {}).get("kubeletEndpoint", {}).get("Port")
    if not address or not port:
        raise ApiError(500, "InternalError", f"no preferred addresses found; known addresses: [] (node {name})")
    wanted = {key: value for key, value in query.items() if key != "container"}
    path = f"containerLogs/{meta['namespace']}/{meta['name']}/{container}"
    return f"https://{address}:{port}/{path}" + (f"?{urlencode(wanted)}" if wanted else "")


def refusal(status: int, text: str) -> ApiError:
    """Return what the client is told when a kubelet refuses."""
    if status == 400:
        return bad_request(text)
    if status == 404:
        return ApiError(404, "NotFound", text)
    return ApiError(500, "InternalError", f"Internal error occurred: {text}")
