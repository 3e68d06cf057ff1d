"""Issue and check bearer tokens the way Google's OAuth endpoint does.

Two kinds of token are good, as with the real APIs: an opaque one that this endpoint issued for a JWT
assertion signed by a known key, and a JWT that a client library signed itself (AIP-4111: the
generated clients always do so). Both prove possession of the service account's private key.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from sandbox.clock import Clock

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"
EMAIL_SCOPE = "https://www.googleapis.com/auth/userinfo.email"
# google-auth puts this audience into every assertion, wherever the key's token_uri points.
OAUTH_AUDIENCE = "https://oauth2.googleapis.com/token"
CONTAINER_AUDIENCE = "https://container.googleapis.com/"
LIFETIME_S = 3600  # Google's own; a JWT may not claim more
SKEW_S = 60


class InvalidGrantError(Exception):
    """The assertion proves nothing; the message says why."""


@dataclass(frozen=True)
class _Key:
    email: str
    unique_id: str
    public: rsa.RSAPublicKey


class TokenIssuer:
    """Know service accounts by their public keys and say who a bearer token belongs to."""

    def __init__(self, clock: Clock, token_uri: str = "", lifetime_s: float = LIFETIME_S) -> None:
        self._clock = clock
        self.token_uri = token_uri
        self._lifetime_s = lifetime_s
        self._keys: dict[str, _Key] = {}
        self._issued: dict[str, tuple[str, float]] = {}
        self._static: dict[str, str] = {}
        self.withheld: set[str] = set()  # IAM permissions that nobody has

    def new_service_account_key(self, email: str, project: str) -> dict[str, str]:
        """Make and trust a key; return it as the JSON object that `keyfile_dict` and google-auth take."""
        if not self.token_uri:
            raise ValueError("start the token endpoint first: a key must name its token_uri")
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        key = {
            "type": "service_account",
            "project_id": project,
            "private_key_id": secrets.token_hex(20),
            "private_key": pem.decode(),
            "client_email": email,
            "client_id": str(10**20 + secrets.randbelow(10**20)),
            "token_uri": self.token_uri,
            "universe_domain": "googleapis.com",
        }
        self.trust(key)
        return key

    def trust(self, key: dict[str, str]) -> None:
        """Accept what `key` signs, keeping its public half only (for a key of an earlier run)."""
        private = serialization.load_pem_private_key(key["private_key"].encode(), password=None)
        public = private.public_key()
        if not isinstance(public, rsa.RSAPublicKey):
            raise ValueError(f"key {key['private_key_id']} of {key['client_email']} is not an RSA key")
        self._keys[key["private_key_id"]] = _Key(key["client_email"], key["client_id"], public)

    def add_static(self, token: str, user: str) -> None:
        """Let `token` stand for `user` for ever: a Kubernetes service account's token."""
        self._static[token] = user

    def revoke(self, token: str) -> None:
        """Forget a static or issued token."""
        self._static.pop(token, None)
        self._issued.pop(token, None)

    def exchange(self, assertion: str) -> tuple[str, float]:
        """Return an opaque token and its lifetime in seconds for a signed assertion, or raise InvalidGrantError.

        Whoever does not ask for the scope of e-mails is known by a number, as on GKE.
        """
        key, claims = self._verify(assertion, lambda claims: claims.get("aud") in (OAUTH_AUDIENCE, self.token_uri))
        user = key.email if EMAIL_SCOPE in str(claims.get("scope", "")).split() else key.unique_id
        token, _ = self.issue(user, self._lifetime_s)
        return token, self._lifetime_s

    def issue(self, user: str, lifetime_s: float) -> tuple[str, float]:
        """Return a new opaque token for `user`, and the Unix time when it ends."""
        now = self._clock.now()
        self._issued = {token: entry for token, entry in self._issued.items() if entry[1] > now}
        token = "ya29." + secrets.token_urlsafe(48)
        self._issued[token] = (user, now + lifetime_s)
        return token, now + lifetime_s

    def authenticate(self, token: str | None) -> str | None:
        """Return the user that a bearer token stands for, or None if it stands for nobody (any more)."""
        if not token:
            return None
        if token in self._static:
            return self._static[token]
        if token in self._issued:
            user, expiry = self._issued[token]
            return user if self._clock.now() < expiry else None
        if token.count(".") == 2:
            try:
                return self._verify(token, _is_for_google_apis)[0].email
            except InvalidGrantError:
                return None
        return None

    def _verify(self, token: str, audience_ok: Callable[[dict[str, Any]], bool]) -> tuple[_Key, dict[str, Any]]:
        header, claims, signed, signature = _parse(token)
        key = self._keys.get(str(header.get("kid")))
        if key is None or header.get("alg") != "RS256":
            raise InvalidGrantError("Invalid grant: account not found")
        try:
            key.public.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            raise InvalidGrantError("Invalid JWT Signature.") from None
        if claims.get("iss") != key.email:
            raise InvalidGrantError("Invalid grant: the issuer is not the key's account")
        if not audience_ok(claims):
            raise InvalidGrantError("Invalid JWT: failed audience check")
        issued, expires, now = claims.get("iat"), claims.get("exp"), self._clock.now()
        if not isinstance(issued, int | float) or not isinstance(expires, int | float):
            raise InvalidGrantError("Invalid JWT: iat and exp must be numbers")
        if not (issued - SKEW_S <= now < expires + SKEW_S and expires - issued <= LIFETIME_S):
            raise InvalidGrantError(
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe."
            )
        return key, claims


def _is_for_google_apis(claims: dict[str, Any]) -> bool:
    if "aud" in claims:
        return claims["aud"] == CONTAINER_AUDIENCE
    # With scopes given, google-auth signs a JWT that names scopes and no audience.
    return CLOUD_PLATFORM in str(claims.get("scope", "")).split()


def _parse(token: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    try:
        head, body, signature = token.split(".")
        header, claims = json.loads(_unbase64(head)), json.loads(_unbase64(body))
        raw_signature = _unbase64(signature)
    except (ValueError, binascii.Error):
        raise InvalidGrantError("Bad Request: the assertion is not a JWT") from None
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise InvalidGrantError("Bad Request: the assertion is not a JWT")
    return header, claims, f"{head}.{body}".encode(), raw_signature


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


async def serve_tokens(issuer: TokenIssuer, host: str, port: int = 0) -> web.AppRunner:
    """Serve /token and testIamPermissions on loopback, set `issuer.token_uri`; end it with `await runner.cleanup()`."""

    async def token(request: web.Request) -> web.Response:
        form = await request.post()
        if form.get("grant_type") != GRANT_TYPE:
            return _error("unsupported_grant_type", f"grant_type must be {GRANT_TYPE}")
        try:
            access_token, lifetime = issuer.exchange(str(form.get("assertion", "")))
        except InvalidGrantError as error:
            return _error("invalid_grant", str(error))
        # One second less, as Google does, so that a client refreshes before the server refuses.
        body = {"access_token": access_token, "expires_in": int(lifetime) - 1, "token_type": "Bearer"}
        return web.json_response(body, headers={"Cache-Control": "no-store"})

    async def permissions(request: web.Request) -> web.Response:
        # testIamPermissions of Resource Manager and of IAM: the one service account here owns its project.
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if issuer.authenticate(bearer) is None:
            return web.json_response({"error": {"code": 401, "status": "UNAUTHENTICATED"}}, status=401)
        asked = (await request.json()).get("permissions") or []
        return web.json_response({"permissions": [each for each in asked if each not in issuer.withheld]})

    app = web.Application()
    app.router.add_post("/token", token)
    app.router.add_post("/v1/projects/{project}:testIamPermissions", permissions)
    app.router.add_post("/v1/projects/-/serviceAccounts/{account}:testIamPermissions", permissions)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    issuer.token_uri = f"http://{host}:{runner.addresses[0][1]}/token"
    return runner


def _error(code: str, description: str) -> web.Response:
    return web.json_response({"error": code, "error_description": description}, status=400)
