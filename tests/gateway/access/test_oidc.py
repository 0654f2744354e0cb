"""JWTs of an OpenID provider: what is accepted, what is refused and why, and keys that rotate."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from starlette.applications import Starlette
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import Route

from gateway.access.authentication import Authentication, TokenInvalid
from gateway.access.caller import Caller
from gateway.access.oidc import OidcOptions, OidcVerifier
from gateway.access.signing_keys import SigningKeys, check_url, parse_keys
from gateway.access.token_file import new_token, write_tokens
from gateway.command import serve
from services.errors import NotReady, PermissionDenied
from tests.serving_app import serving_app

RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


def public(key: Any, key_id: str, **more: str) -> dict[str, Any]:
    algorithm = (
        jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    )
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": key_id, "use": "sig", **more}


@dataclass
class Provider:
    """An OpenID provider on loopback; `keys` can be changed."""

    issuer: str = ""
    keys: list[dict[str, Any]] = field(default_factory=lambda: [public(RSA, "one"), public(EC, "ec")])
    num_fetches: int = 0
    is_down: bool = False
    redirects: bool = False

    def token(
        self, *, key: Any = RSA, kid: str = "one", alg: str = "RS256", headers: Any = (), **claims: Any
    ):
        now = int(time.time())
        content = {
            "iss": self.issuer,
            "aud": "triptych",
            "sub": "alice",
            "iat": now,
            "exp": now + 300,
            **claims,
        }
        content = {name: value for name, value in content.items() if value is not None}
        return jwt.encode(content, key, algorithm=alg, headers={"kid": kid, **dict(headers)})


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()

    async def discover(request):
        return JSONResponse({"issuer": made.issuer, "jwks_uri": f"{made.issuer}/keys"})

    async def keys(request):
        made.num_fetches += 1
        if made.redirects:
            return RedirectResponse("https://example.org/keys")
        return JSONResponse({"keys": made.keys}, 503 if made.is_down else 200)

    app = Starlette(routes=[Route("/.well-known/openid-configuration", discover), Route("/keys", keys)])
    async with serving_app(app) as address:
        made.issuer = f"http://{address}"
        yield made


def verifier(provider: Provider, clock: Clock | None = None, **options: Any) -> OidcVerifier:
    keys = SigningKeys(provider.issuer, clock=clock or Clock())
    return OidcVerifier(OidcOptions(provider.issuer, ["triptych"], **options), keys)


async def enter(found: OidcVerifier, token: str) -> Caller:
    authentication = Authentication(oidc=found)
    await authentication.prepare(f"Bearer {token}")
    return authentication.authenticate(f"Bearer {token}")


async def test_a_token_of_the_provider_names_its_caller(provider: Provider):
    found = verifier(provider)
    assert await enter(found, provider.token()) == Caller("oidc:alice")
    assert await enter(found, provider.token(key=EC, kid="ec", alg="ES256")) == Caller("oidc:alice")
    assert await enter(found, provider.token(headers={"typ": "at+jwt"}, aud=["a", "triptych"]))
    assert provider.num_fetches == 1


def unsigned(header: dict[str, Any], claims: dict[str, Any], sign: bytes | None = None) -> str:
    """A token by hand: PyJWT makes none that is wrong."""
    parts = [base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=") for one in (header, claims)]
    signature = b"" if sign is None else hmac.digest(sign, b".".join(parts), hashlib.sha256)
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"aud": "others"}, "Audience"),
        ({"aud": None}, '"aud" claim'),
        ({"iss": "https://example.org"}, "issuer"),
        ({"iss": None}, '"iss" claim'),
        ({"exp": 1}, "expired"),
        ({"exp": None}, '"exp" claim'),
        ({"exp": "never"}, "invalid"),
        ({"nbf": 2**40}, "not yet valid"),
        ({"iat": 2**40}, "not yet valid"),
        ({"sub": None}, '"sub" claim'),
        ({"sub": ""}, "text of 1 to 255"),
        ({"sub": "a\nb"}, "text of 1 to 255"),
        ({"sub": "a" * 256}, "text of 1 to 255"),
        ({"key": OTHER_RSA}, "Signature"),
        ({"kid": "unknown"}, "no such key"),
        ({"alg": "RS512"}, "expected one signed with RS256 or ES256"),
        ({"key": EC, "alg": "ES256"}, "invalid"),
        ({"headers": {"typ": "dpop+jwt"}}, "typ"),
        ({"headers": {"crit": ["b64"], "b64": False}}, "crit"),
    ],
    # Names of fields: a key's own text differs in every process, and pytest-xdist compares the names.
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
async def test_a_token_that_is_wrong_is_refused(provider: Provider, changes: dict[str, Any], reason: str):
    with pytest.raises(TokenInvalid, match=f"the token is refused.*{reason}"):
        await enter(verifier(provider), provider.token(**changes))


@pytest.mark.parametrize("algorithm", ["none", "None", "HS256"])
async def test_a_public_key_is_no_secret_and_no_signature_is_none(provider: Provider, algorithm: str):
    claims = {"iss": provider.issuer, "aud": "triptych", "sub": "alice", "exp": int(time.time()) + 300}
    secret = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    token = unsigned({"alg": algorithm, "kid": "one"}, claims, secret if algorithm == "HS256" else None)
    with pytest.raises(TokenInvalid, match="expected one signed with"):
        await enter(verifier(provider), token)


async def test_a_key_that_the_token_brings_along_is_not_used(provider: Provider):
    token = provider.token(
        key=OTHER_RSA, headers={"jwk": public(OTHER_RSA, "one"), "jku": "https://example.org"}
    )
    with pytest.raises(TokenInvalid, match="Signature"):
        await enter(verifier(provider), token)


async def test_clocks_may_differ_by_the_skew(provider: Provider):
    token = provider.token(exp=int(time.time()) - 30, nbf=int(time.time()) + 30)
    assert await enter(verifier(provider), token)
    with pytest.raises(TokenInvalid, match="expired|not yet"):
        await enter(verifier(provider, clock_skew_s=5.0), token)


async def test_a_new_key_is_fetched_when_a_token_has_it_and_a_withdrawn_one_is_refused(provider: Provider):
    clock = Clock()
    found = verifier(provider, clock)
    old = provider.token()
    assert await enter(found, old)
    provider.keys = [public(OTHER_RSA, "two")]
    clock.now_s += 11
    assert await enter(found, provider.token(key=OTHER_RSA, kid="two"))
    with pytest.raises(TokenInvalid, match="no such key"):
        await enter(found, old)


async def test_unknown_keys_cause_one_fetch_in_ten_seconds(provider: Provider):
    found = verifier(provider)
    assert await enter(found, provider.token())
    for number in range(20):
        with pytest.raises(TokenInvalid):
            await enter(found, provider.token(kid=f"unknown {number}"))
    assert provider.num_fetches == 1


async def test_callers_who_come_at_once_share_one_fetch(provider: Provider):
    found = verifier(provider)
    callers = await asyncio.gather(*[enter(found, provider.token()) for _ in range(20)])
    assert set(callers) == {Caller("oidc:alice")}
    assert provider.num_fetches == 1


async def test_known_keys_are_used_for_an_hour_without_the_provider(provider: Provider):
    clock = Clock()
    found = verifier(provider, clock)
    token = provider.token()
    assert await enter(found, token)
    provider.is_down = True
    clock.now_s += 3000
    assert await enter(found, token)
    clock.now_s += 1000
    with pytest.raises(NotReady, match="their provider does not answer"):
        await enter(found, token)


async def test_redirects_of_the_provider_are_not_followed(provider: Provider):
    provider.redirects = True
    with pytest.raises(NotReady):
        await enter(verifier(provider), provider.token())


async def test_a_claim_can_name_who_sees_all(provider: Provider):
    found = verifier(provider, sees_all=("groups", "operators"))
    assert (await enter(found, provider.token(groups=["operators", "x"]))).sees_all
    assert (await enter(found, provider.token(groups="operators"))).sees_all
    assert not (await enter(found, provider.token(groups=["operators2"]))).sees_all


async def test_tokens_of_the_file_go_on_beside_it(provider: Provider, tmp_path):
    token, entry = new_token(Caller("bob"))
    write_tokens(tmp_path / "tokens.json", [entry])
    both = Authentication(tmp_path / "tokens.json", verifier(provider))
    jwt_of_alice = f"Bearer {provider.token()}"
    await both.prepare(jwt_of_alice)
    assert both.authenticate(jwt_of_alice).name == "oidc:alice"
    assert both.authenticate(f"Bearer {token}").name == "bob"
    with pytest.raises(PermissionDenied):
        both.authenticate("Bearer nobody's")


def test_symmetric_short_and_encrypting_keys_are_left_out():
    short = rsa.generate_private_key(65537, 1024)
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "secret", "alg": "HS256"}
    document = {
        "keys": [secret, public(short, "short"), public(RSA, "enc", use="enc"), public(EC, "good"), {}]
    }
    assert list(parse_keys(document)) == ["good"]


@pytest.mark.parametrize("url", ["http://example.org", "ftp://x", "https://", "file:///etc/passwd", ""])
def test_a_provider_is_asked_over_tls_only(url: str):
    with pytest.raises(ValueError, match="expected an https:// URL"):
        check_url(url)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--oidc-issuer", "https://example.org"], "needs an audience"),
        (["--oidc-audience", "a"], "need --oidc-issuer"),
        (["--oidc-issuer", "http://example.org", "--oidc-audience", "a"], "expected an https:// URL"),
        (["--oidc-issuer", "https://e", "--oidc-audience", "a", "--oidc-sees-all", "x"], "CLAIM=VALUE"),
        (
            ["--oidc-issuer", "https://e", "--oidc-audience", "a", "--oidc-algorithm", "HS256"],
            "is not one of",
        ),
    ],
)
def test_options_that_cannot_be_used_are_wrong_usage(arguments: list[str], message: str):
    done = CliRunner().invoke(serve, arguments)
    assert done.exit_code == 2
    assert message in done.output
