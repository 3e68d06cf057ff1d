"""Write a program down as Envoy's listeners, routes, clusters and endpoints; pure.

Two choices that are not obvious:

* Envoy never cuts a stream of an endpoint that is taken away, it only drains; GKE cuts it when no
  draining is set. So each endpoint is reached through a hop of its own, a TCP proxy on an abstract unix
  socket inside this Envoy: taking the hop's listener away is what closes its streams.
* Weights, timeouts and errors are all in the route file: listeners of users are never replaced, which
  would cut everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sandbox.gateway.envoy_routes import FAULT_FILTER
from sandbox.gateway.model import Backend, Endpoint, HealthCheck

Resource = dict[str, Any]
_TYPE = "type.googleapis.com/envoy."
_HUGE = {"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000, "max_retries": 100}


class EnvoyConfig:
    """Make the resources of one Envoy; `directory` holds its files, `token` keeps its sockets apart."""

    def __init__(self, directory: str, token: str, address: str, speed: float) -> None:
        self._directory = directory
        self._token = token
        self._address = address
        self._speed = speed

    def bootstrap(self) -> Resource:
        """Return the static part: where the rest is read from, and an admin socket that no network reaches."""
        return {
            "node": {"id": "gateway", "cluster": "sandbox"},
            "admin": {"address": {"pipe": {"path": self._socket("admin")}}},
            "dynamic_resources": {
                "lds_config": self._source("lds.json"),
                "cds_config": self._source("cds.json"),
            },
        }

    # ------------------------------------------------------------- listeners

    def listeners(self, ports: Iterable[int], hops: Iterable[Endpoint]) -> list[Resource]:
        """Return the users' listeners and one hop an endpoint."""
        return [self._users_listener(port) for port in sorted(ports)] + [self._hop(hop) for hop in sorted(hops)]

    def _users_listener(self, port: int) -> Resource:
        connection_manager = {
            "@type": _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": f"port-{port}",
            "rds": {"route_config_name": f"port-{port}", "config_source": self._source(f"rds-{port}.json")},
            # Only timeoutSec ends a stream on GKE; 610 s is its keep-alive towards clients.
            "stream_idle_timeout": "0s",
            "common_http_protocol_options": {"idle_timeout": "610s"},
            "use_remote_address": True,
            "generate_request_id": False,
            "preserve_external_request_id": True,
            "server_header_transformation": "PASS_THROUGH",
            # GKE answers 502 where Envoy says 503: no connection, or one that broke before the answer.
            "local_reply_config": {
                "mappers": [
                    {
                        "filter": {"response_flag_filter": {"flags": ["UF", "UC"]}},
                        "status_code": 502,
                    }
                ]
            },
            "http_filters": [
                _filter(FAULT_FILTER, "extensions.filters.http.fault.v3.HTTPFault"),
                _filter(
                    "envoy.filters.http.router",
                    "extensions.filters.http.router.v3.Router",
                    suppress_envoy_headers=True,
                ),
            ],
        }
        return {
            "@type": _TYPE + "config.listener.v3.Listener",
            "name": f"port-{port}",
            "address": _socket_address((self._address, port)),
            "filter_chains": [
                {
                    "filters": [
                        {
                            "name": "envoy.filters.network.http_connection_manager",
                            "typed_config": connection_manager,
                        }
                    ]
                }
            ],
        }

    def _hop(self, endpoint: Endpoint) -> Resource:
        name = hop_name(endpoint)
        proxy = _filter(
            "envoy.filters.network.tcp_proxy",
            "extensions.filters.network.tcp_proxy.v3.TcpProxy",
            stat_prefix="hop",
            cluster=name,
            idle_timeout="0s",
        )
        return {
            "@type": _TYPE + "config.listener.v3.Listener",
            "name": name,
            "address": {"pipe": {"path": self._socket(name)}},
            "filter_chains": [{"filters": [proxy]}],
        }

    # -------------------------------------------------------------- clusters

    def clusters(self, backends: Iterable[Backend], hops: Iterable[Endpoint]) -> list[Resource]:
        """Return one cluster a backend, health-checked, and one a hop."""
        by_name = sorted(backends, key=lambda backend: backend.name)
        return [self._backend(backend) for backend in by_name] + [_hop_cluster(hop) for hop in sorted(hops)]

    def _backend(self, backend: Backend) -> Resource:
        options = {
            "@type": _TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http_protocol_options": {}},
            # GKE's is 600 s, with stray 502s from servers that close idle connections earlier (vLLM:
            # 5 s). Those would be dice in every test, so idle connections go first here.
            "common_http_protocol_options": {"idle_timeout": "4s"},
        }
        return {
            "@type": _TYPE + "config.cluster.v3.Cluster",
            "name": backend.name,
            "type": "EDS",
            "eds_cluster_config": {"eds_config": self._source(endpoints_file(backend.name))},
            "connect_timeout": "5s",
            "lb_policy": "ROUND_ROBIN",
            "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
            "ignore_health_on_host_removal": True,
            "circuit_breakers": {"thresholds": [_HUGE]},
            "health_checks": [self._health_check(backend.health_check)],
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        }

    def _health_check(self, check: HealthCheck) -> Resource:
        interval = f"{max(check.interval_s / self._speed, 0.2):.3f}s"
        result: Resource = {
            "timeout": f"{check.timeout_s:.3f}s",
            "interval": interval,
            "no_traffic_interval": interval,
            "no_traffic_healthy_interval": interval,
            "healthy_threshold": check.healthy,
            "unhealthy_threshold": check.unhealthy,
        }
        if check.kind == "TCP":
            return {**result, "tcp_health_check": {}}
        any_status = [{"start": 100, "end": 200}, {"start": 201, "end": 600}]
        http: Resource = {"path": check.path, "retriable_statuses": any_status}
        return {**result, "http_health_check": {**http, **({"host": check.host} if check.host else {})}}

    def endpoints(self, backend: Backend, draining: Iterable[Endpoint]) -> Resource:
        """Return where a backend's requests go; draining endpoints get no new ones."""
        listed = [(endpoint, "HEALTHY") for endpoint in sorted(backend.endpoints)]
        listed += [(endpoint, "DRAINING") for endpoint in sorted(draining)]
        return {
            "@type": _TYPE + "config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": backend.name,
            "endpoints": [
                {
                    "lb_endpoints": [
                        {
                            "health_status": health,
                            "endpoint": {
                                "address": {"pipe": {"path": self._socket(hop_name(endpoint))}},
                                "hostname": f"{endpoint[0]}:{endpoint[1]}",
                                "health_check_config": {
                                    "address": _socket_address((endpoint[0], backend.health_check.port or endpoint[1]))
                                },
                            },
                        }
                        for endpoint, health in listed
                    ]
                }
            ],
        }

    def _source(self, name: str) -> Resource:
        return {"path_config_source": {"path": f"{self._directory}/{name}"}, "resource_api_version": "V3"}

    def _socket(self, name: str) -> str:
        return f"@sandbox-gateway-{self._token}-{name}"  # abstract: no file to leave behind


def hop_name(endpoint: Endpoint) -> str:
    """Return the name of an endpoint's hop."""
    return f"hop-{endpoint[0]}-{endpoint[1]}"


def endpoints_file(backend: str) -> str:
    """Return the file of a backend's endpoints (Envoy wants one a cluster)."""
    return f"eds-{backend.replace('/', '_').replace(':', '_')}.json"


def _hop_cluster(endpoint: Endpoint) -> Resource:
    name = hop_name(endpoint)
    return {
        "@type": _TYPE + "config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [_HUGE]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _socket_address(endpoint)}}]}],
        },
    }


def _socket_address(endpoint: Endpoint) -> Resource:
    return {"socket_address": {"address": endpoint[0], "port_value": endpoint[1]}}


def _filter(name: str, kind: str, **options: Any) -> Resource:
    return {"name": name, "typed_config": {"@type": _TYPE + kind, **options}}
