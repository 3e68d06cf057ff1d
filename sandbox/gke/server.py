"""Serve a `GkeCloud` as google.container.v1.ClusterManager: gRPC over TLS, bearer tokens checked.

The unmodified Google client talks to it; point `GRPC_DEFAULT_SSL_ROOTS_FILE_PATH` at the sandbox's
authority before the first channel and give it `ClientOptions(api_endpoint="HOST:PORT")`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.api_core import exceptions
from google.cloud import container_v1
from google.protobuf import empty_pb2

from sandbox.gke.autoscaler import SCAN_S
from sandbox.gke.core import GkeCloud
from sandbox.gke.nodes import KubeNodes
from sandbox.pki import Issued

SERVICE = "google.container.v1.ClusterManager"
TICK_S = 0.1
_UNAUTHENTICATED = (
    "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other"
    " valid authentication credential."
)

_METHODS: dict[str, tuple[str, Any, Any]] = {
    "ListClusters": ("list_clusters", container_v1.ListClustersRequest, container_v1.ListClustersResponse),
    "GetCluster": ("get_cluster", container_v1.GetClusterRequest, container_v1.Cluster),
    "GetServerConfig": ("get_server_config", container_v1.GetServerConfigRequest, container_v1.ServerConfig),
    "ListNodePools": ("list_node_pools", container_v1.ListNodePoolsRequest, container_v1.ListNodePoolsResponse),
    "GetNodePool": ("get_node_pool", container_v1.GetNodePoolRequest, container_v1.NodePool),
    "CreateNodePool": ("create_node_pool", container_v1.CreateNodePoolRequest, container_v1.Operation),
    "DeleteNodePool": ("delete_node_pool", container_v1.DeleteNodePoolRequest, container_v1.Operation),
    "SetNodePoolSize": ("set_node_pool_size", container_v1.SetNodePoolSizeRequest, container_v1.Operation),
    "SetNodePoolAutoscaling": (
        "set_node_pool_autoscaling",
        container_v1.SetNodePoolAutoscalingRequest,
        container_v1.Operation,
    ),
    "SetNodePoolManagement": (
        "set_node_pool_management",
        container_v1.SetNodePoolManagementRequest,
        container_v1.Operation,
    ),
    "ListOperations": ("list_operations", container_v1.ListOperationsRequest, container_v1.ListOperationsResponse),
    "GetOperation": ("get_operation", container_v1.GetOperationRequest, container_v1.Operation),
    "CancelOperation": ("cancel_operation", container_v1.CancelOperationRequest, None),
}


class GkeServer:
    """A running gRPC server; `port` is the one it got."""

    def __init__(self, server: grpc.aio.Server, port: int) -> None:
        self._server = server
        self.port = port

    async def stop(self) -> None:
        """Stop at once: calls in flight are cancelled."""
        await self._server.stop(grace=None)


async def serve_gke(
    cloud: GkeCloud, host: str, port: int, tls: Issued, authenticate: Callable[[str | None], str | None]
) -> GkeServer:
    """Serve `cloud` on `host`:`port` (0 = any free one); `authenticate` turns a bearer token into a user."""
    server = grpc.aio.server()
    handlers = {
        rpc: grpc.unary_unary_rpc_method_handler(
            _handler(cloud, method, authenticate),
            request_deserializer=request.deserialize,
            response_serializer=_serialize if answer is None else answer.serialize,
        )
        for rpc, (method, request, answer) in _METHODS.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    credentials = grpc.ssl_server_credentials([(tls.key.read_bytes(), tls.cert.read_bytes())])
    bound = server.add_secure_port(f"{host}:{port}", credentials)
    await server.start()
    return GkeServer(server, bound)


async def run_cloud(cloud: GkeCloud, nodes: KubeNodes) -> None:
    """Advance the cloud by its clock, write its nodes and autoscale them, until cancelled."""
    scan_at = 0.0
    while True:
        cloud.tick()
        await nodes.flush()
        now = asyncio.get_running_loop().time()
        if cloud.autoscaled and now >= scan_at:
            scan_at = now + SCAN_S / cloud.speed
            await nodes.autoscale(cloud.autoscale)
        await asyncio.sleep(TICK_S)


def _serialize(message: empty_pb2.Empty) -> bytes:
    return message.SerializeToString()


def _handler(
    cloud: GkeCloud, method: str, authenticate: Callable[[str | None], str | None]
) -> Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]:
    call = getattr(cloud, method)

    async def handle(request: Any, context: grpc.aio.ServicerContext) -> Any:
        if authenticate(_bearer(context)) is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, _UNAUTHENTICATED)
        cloud.tick()
        try:
            answer = call(request)
        except exceptions.GoogleAPICallError as error:
            await context.abort(error.grpc_status_code or grpc.StatusCode.UNKNOWN, error.message)
        return empty_pb2.Empty() if answer is None else answer

    return handle


def _bearer(context: grpc.aio.ServicerContext) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            scheme, _, token = (value.decode() if isinstance(value, bytes) else value).partition(" ")
            return token.strip() if scheme.lower() == "bearer" else None
    return None
