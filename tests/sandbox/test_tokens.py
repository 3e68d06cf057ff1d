"""The OAuth endpoint, against google-auth itself."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import google.auth.crypt
import google.auth.jwt
import google.auth.transport.requests
import grpc
import pytest
from google.auth.exceptions import RefreshError
from google.cloud import container_v1
from google.oauth2 import service_account

from sandbox.api import Api
from sandbox.api.http import serve
from sandbox.clock import SystemClock, VirtualClock
from sandbox.gke.core import GkeCloud
from sandbox.gke.nodes import MemoryNodes
from sandbox.gke.server import SERVICE, serve_gke
from sandbox.gke.tokens import (
    CLOUD_PLATFORM,
    EMAIL_SCOPE,
    GRANT_TYPE,
    OAUTH_AUDIENCE,
    InvalidGrantError,
    TokenIssuer,
    serve_tokens,
)
from sandbox.kube import KubeClient, KubeError
from sandbox.kubeconfig import Access
from sandbox.pki import CertificateAuthority

EMAIL = "airflow@sandbox-project.iam.gserviceaccount.com"


@pytest.fixture
async def issuer():
    issuer = TokenIssuer(SystemClock())
    runner = await serve_tokens(issuer, "127.0.0.1")
    yield issuer
    await runner.cleanup()


def refresh(key, *scopes):
    scopes = scopes or (CLOUD_PLATFORM, EMAIL_SCOPE)
    credentials = service_account.Credentials.from_service_account_info(key, scopes=scopes)
    credentials.refresh(google.auth.transport.requests.Request())
    return credentials


async def test_google_auth_gets_a_token_that_stands_for_the_account(issuer):
    key = issuer.new_service_account_key(EMAIL, "sandbox-project")
    credentials = await asyncio.to_thread(refresh, json.loads(json.dumps(key)))
    assert credentials.valid
    assert issuer.authenticate(credentials.token) == EMAIL
    assert issuer.authenticate(credentials.token + "x") is None


async def test_an_account_without_the_scope_of_emails_is_a_number(issuer):
    key = issuer.new_service_account_key(EMAIL, "sandbox-project")
    credentials = await asyncio.to_thread(refresh, key, CLOUD_PLATFORM)
    assert issuer.authenticate(credentials.token) == key["client_id"]


async def test_a_key_that_somebody_else_made_gets_no_token(issuer):
    stranger = TokenIssuer(SystemClock(), token_uri=issuer.token_uri)
    key = stranger.new_service_account_key(EMAIL, "sandbox-project")
    with pytest.raises(RefreshError, match="account not found"):
        await asyncio.to_thread(refresh, key)


async def test_a_stolen_key_id_does_not_help_without_the_private_key(issuer):
    real = issuer.new_service_account_key(EMAIL, "sandbox-project")
    forged = TokenIssuer(SystemClock(), token_uri=issuer.token_uri).new_service_account_key(EMAIL, "p")
    with pytest.raises(RefreshError, match="Invalid JWT Signature"):
        await asyncio.to_thread(refresh, {**forged, "private_key_id": real["private_key_id"]})


@pytest.mark.parametrize("form", [{}, {"grant_type": "password"}, {"grant_type": GRANT_TYPE, "assertion": "a.b"}])
async def test_a_malformed_request_is_a_400_with_an_oauth_error(issuer, form):
    async with aiohttp.ClientSession() as session, session.post(issuer.token_uri, data=form) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"] in {"unsupported_grant_type", "invalid_grant"}


def jwt(key, **claims):
    from google.auth import crypt
    from google.auth import jwt as google_jwt

    signer = crypt.RSASigner.from_service_account_info(key)
    return google_jwt.encode(signer, {"iss": key["client_email"], "sub": key["client_email"], **claims}).decode()


def test_a_self_signed_jwt_is_good_for_the_container_api_only_and_for_an_hour_at_most():
    clock = VirtualClock()
    issuer = TokenIssuer(clock, token_uri="http://127.0.0.1/token")
    key = issuer.new_service_account_key(EMAIL, "p")
    now = int(clock.now())
    times = {"iat": now, "exp": now + 3600}
    good = jwt(key, aud="https://container.googleapis.com/", **times)
    assert issuer.authenticate(good) == EMAIL
    assert issuer.authenticate(jwt(key, scope=CLOUD_PLATFORM, **times)) == EMAIL
    assert issuer.authenticate(jwt(key, aud="https://storage.googleapis.com/", **times)) is None
    assert issuer.authenticate(jwt(key, **times)) is None
    assert issuer.authenticate(jwt(key, scope=CLOUD_PLATFORM, iat=now, exp=now + 7200)) is None
    head, body, _ = good.split(".")
    assert issuer.authenticate(f"{head}.{body}.AAAA") is None
    clock.advance(3700)
    assert issuer.authenticate(good) is None


def test_an_assertion_for_another_endpoint_is_refused():
    clock = VirtualClock()
    issuer = TokenIssuer(clock, token_uri="http://127.0.0.1/token")
    key = issuer.new_service_account_key(EMAIL, "p")
    now = int(clock.now())
    with pytest.raises(InvalidGrantError, match="audience"):
        issuer.exchange(jwt(key, aud="https://container.googleapis.com/", iat=now, exp=now + 600))


def test_an_issued_token_expires():
    clock = VirtualClock()
    issuer = TokenIssuer(clock, token_uri="http://127.0.0.1/token")
    key = issuer.new_service_account_key(EMAIL, "p")
    now = int(clock.now())
    token, lifetime = issuer.exchange(jwt(key, scope=EMAIL_SCOPE, aud=issuer.token_uri, iat=now, exp=now + 3600))
    assert issuer.authenticate(token) == EMAIL
    clock.advance(lifetime + 1)
    assert issuer.authenticate(token) is None


def test_a_static_token_stands_for_its_user_until_revoked():
    issuer = TokenIssuer(VirtualClock())
    issuer.add_static("abc", "system:serviceaccount:inference:guard")
    assert issuer.authenticate("abc") == "system:serviceaccount:inference:guard"
    assert issuer.authenticate(None) is None
    assert issuer.authenticate("") is None
    issuer.revoke("abc")
    assert issuer.authenticate("abc") is None


def test_a_key_of_an_earlier_run_is_trusted_again():
    clock = VirtualClock()
    key = TokenIssuer(clock, token_uri="http://127.0.0.1/token").new_service_account_key(EMAIL, "p")
    issuer = TokenIssuer(clock, token_uri="http://127.0.0.1/token")
    now = int(clock.now())
    token = jwt(key, scope=CLOUD_PLATFORM, iat=now, exp=now + 600)
    assert issuer.authenticate(token) is None
    issuer.trust(key)
    assert issuer.authenticate(token) == EMAIL


async def test_an_expired_token_and_a_wrong_one_are_refused_by_both_apis(tmp_path):
    clock = VirtualClock()
    issuer = TokenIssuer(clock, token_uri="http://127.0.0.1/token")
    account = issuer.new_service_account_key(EMAIL, "p")
    issued = {"iat": clock.now(), "exp": clock.now() + 3600, "iss": EMAIL, "aud": OAUTH_AUDIENCE, "scope": EMAIL_SCOPE}
    signer = google.auth.crypt.RSASigner.from_service_account_info(account)
    token, lifetime_s = issuer.exchange(google.auth.jwt.encode(signer, issued).decode())
    authority = CertificateAuthority(tmp_path)
    tls = authority.issue("server", ["localhost", "127.0.0.1"])
    cloud = await serve_gke(GkeCloud(clock, MemoryNodes()), "127.0.0.1", 0, tls, issuer.authenticate)
    api = Api(clock, superusers=(EMAIL,))
    server = await serve(api, "127.0.0.1", 0, tls.cert, tls.key, issuer.authenticate)

    async def both(bearer: str) -> tuple[object, int]:
        channel = grpc.aio.secure_channel(f"localhost:{cloud.port}", grpc.ssl_channel_credentials(authority.pem))
        request = container_v1.ListClustersRequest(parent="projects/sandbox-project/locations/us-west4")
        call = channel.unary_unary(f"/{SERVICE}/ListClusters", container_v1.ListClustersRequest.serialize)
        try:
            await call(request, metadata=[("authorization", f"Bearer {bearer}")])
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            code = error.code()
        await channel.close()
        async with KubeClient(Access(f"https://127.0.0.1:{server.port}", str(authority.cert_path), bearer)) as kube:
            try:
                await kube.list("pods", "default")
                return code, 200
            except KubeError as error:
                return code, error.code

    refused = (grpc.StatusCode.UNAUTHENTICATED, 401)
    assert await both(token) == (grpc.StatusCode.OK, 200)
    assert await both(token + "x") == refused
    clock.advance(lifetime_s)
    assert await both(token) == refused
    await server.close()
    await cloud.stop()
