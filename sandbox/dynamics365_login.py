"""The login authority of the Dynamics 365 simulator: discovery, client-credential tokens and the store that both apps share.

Follows the OAuth 2.0 client credentials page of Microsoft Entra ID (fact sheet, section 1). Serve it over TLS: msal refuses http.
"""

import base64
import dataclasses
import json
import re
import secrets
import uuid
from datetime import datetime, timedelta
from urllib.parse import parse_qs

from aiohttp import web

from sandbox.simulator import Clock, Simulator

DEFAULT_TENANT = "11111111-2222-3333-4444-555555555555"
DEFAULT_CLIENT = "aaaaaaaa-0000-0000-0000-00000000c0de"
DEFAULT_SECRET = "sandbox-secret"
SCOPE = re.compile(r"(https?://[^/\s]+)/\.default")


@dataclasses.dataclass(frozen=True)
class Grant:
    """What one access token allows."""

    client_id: str
    audience: str  # the environment's root URL, no trailing slash
    expires_at: datetime


class TokenStore:
    """App registrations of one tenant and the access tokens given to them."""

    def __init__(self, clock: Clock | None = None, tenant: str = DEFAULT_TENANT, lifetime_s: int = 3599) -> None:
        self.clock = clock or Clock()
        self.tenant = tenant
        self.lifetime_s = lifetime_s
        self.secrets = {DEFAULT_CLIENT: DEFAULT_SECRET}  # client id -> secret
        self._grants: dict[str, Grant] = {}

    def issue(self, audience: str, client_id: str = DEFAULT_CLIENT) -> str:
        """Return a new token for an environment's root URL."""
        expires_at = self.clock.now() + timedelta(seconds=self.lifetime_s)
        claims = {"aud": audience, "appid": client_id, "tid": self.tenant, "exp": int(expires_at.timestamp())}
        parts = ({"typ": "JWT", "alg": "RS256"}, claims)
        encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
        token = ".".join([*encoded, secrets.token_urlsafe(32)])
        self._grants[token] = Grant(client_id, audience, expires_at)
        return token

    def find(self, token: str) -> Grant | None:
        """Return the grant of a token that is known and not expired."""
        grant = self._grants.get(token)
        return grant if grant and grant.expires_at > self.clock.now() else None

    def expire_all(self) -> None:
        """Make every token given out so far invalid."""
        self._grants.clear()


class EntraLogin(Simulator):
    """The login host; shares its TokenStore (and clock) with the Dynamics 365 app."""

    name = "entra"

    def __init__(self, tokens: TokenStore) -> None:
        self.tokens = tokens
        super().__init__(tokens.clock)

    def add_routes(self, routes: web.UrlDispatcher) -> None:
        """Add discovery and the token endpoint."""
        routes.add_get("/{tenant}/v2.0/.well-known/openid-configuration", self._discover)
        routes.add_post("/{tenant}/oauth2/v2.0/token", self._give_token)

    def expire_tokens(self) -> None:
        """Make every token given out so far invalid."""
        self.tokens.expire_all()

    def error_response(self, status: int) -> web.Response:
        """Return a token error for a status that a fault asks for."""
        return self._refuse(
            status, "temporarily_unavailable", 90033, "A transient error has occurred. Please try again."
        )

    async def _discover(self, request: web.Request) -> web.Response:
        tenant = request.match_info["tenant"]
        if not self._knows(tenant):
            return self._refuse(400, "invalid_tenant", 90002, f"Tenant '{tenant}' not found.")
        base = f"https://{request.host}/{tenant}"
        return web.json_response(
            {
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
                "jwks_uri": f"{base}/discovery/v2.0/keys",
                "issuer": f"{base}/v2.0",
                "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
                "response_types_supported": ["code", "id_token"],
                "scopes_supported": ["openid", "profile", "email", "offline_access"],
            }
        )

    async def _give_token(self, request: web.Request) -> web.Response:
        tenant = request.match_info["tenant"]
        if request.content_type != "application/x-www-form-urlencoded":
            return self._refuse(400, "invalid_request", 900144, "The request body must be form-urlencoded.")
        form = {name: values[0] for name, values in parse_qs((await request.read()).decode()).items()}
        client_id, scope = form.get("client_id", ""), form.get("scope", "")
        if not self._knows(tenant):
            return self._refuse(400, "invalid_request", 90002, f"Tenant '{tenant}' not found.")
        if form.get("grant_type") != "client_credentials":
            return self._refuse(
                400, "unsupported_grant_type", 70003, f"The grant type '{form.get('grant_type', '')}' is not supported."
            )
        if client_id not in self.tokens.secrets:
            return self._refuse(
                400,
                "unauthorized_client",
                700016,
                f"Application with identifier '{client_id}' was not found in the directory '{tenant}'.",
            )
        if form.get("client_secret") != self.tokens.secrets[client_id]:
            return self._refuse(
                401, "invalid_client", 7000215, f"Invalid client secret provided for app '{client_id}'."
            )
        if not (match := SCOPE.fullmatch(scope)):
            return self._refuse(
                400,
                "invalid_scope",
                1002012,
                f"The provided value for scope {scope} is not valid: it must be one resource root followed by /.default.",
            )
        return web.json_response(
            {
                "token_type": "Bearer",
                "expires_in": self.tokens.lifetime_s,
                "ext_expires_in": self.tokens.lifetime_s,
                "access_token": self.tokens.issue(match[1], client_id),
            },
            headers={"Cache-Control": "no-store, no-cache"},
        )

    def _knows(self, tenant: str) -> bool:
        return tenant.lower() == self.tokens.tenant.lower()

    def _refuse(self, status: int, error: str, code: int, text: str) -> web.Response:
        trace, correlation = str(uuid.uuid4()), str(uuid.uuid4())
        moment = self.clock.now().strftime("%Y-%m-%d %H:%M:%SZ")
        return web.json_response(
            {
                "error": error,
                "error_description": f"AADSTS{code}: {text} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {moment}",
                "error_codes": [code],
                "timestamp": moment,
                "trace_id": trace,
                "correlation_id": correlation,
                "error_uri": f"https://login.microsoftonline.com/error?code={code}",
            },
            status=status,
        )
