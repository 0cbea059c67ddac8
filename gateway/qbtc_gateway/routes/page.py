"""The page at ``/``: one HTML document with its style and script inside.

It may fetch from this server and from nowhere else: the content security policy names the hashes of
its own style and script and allows no other.
"""

import gzip
import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

__all__ = ["page_router"]

_WEIGHT: Final = re.compile(r"[01](\.[0-9]{0,3})?")


def page_router() -> APIRouter:
    """Return the route of the page."""
    folder = files("qbtc_gateway") / "static"
    style = (folder / "chat.css").read_text(encoding="utf-8")
    script = (folder / "chat.js").read_text(encoding="utf-8")
    text = (folder / "chat.html").read_text(encoding="utf-8")
    body = text.replace("/*style*/", style).replace("/*script*/", script).encode()
    packed = gzip.compress(body, 9, mtime=0)
    headers = {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": (
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}';"
            " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
            " frame-ancestors 'none'"
        ),
        "cross-origin-opener-policy": "same-origin",
        "x-frame-options": "DENY",
        "cache-control": "no-cache",
        "vary": "accept-encoding",
    }
    router = APIRouter(include_in_schema=False)

    @router.head("/")
    @router.get("/")
    async def page(request: Request) -> Response:
        if _takes_gzip(",".join(request.headers.getlist("accept-encoding"))):
            return Response(packed, headers={**headers, "content-encoding": "gzip"})
        return Response(body, headers=headers)

    return router


def _takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding lets us pack (RFC 9110, 12.5.3); what is no weight counts as 0."""
    weights = {}
    for each in accepted.lower().split(","):
        coding, *parameters = (part.strip() for part in each.split(";"))
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        weights[coding] = bool(_WEIGHT.fullmatch(weight)) and float(weight) > 0
    return weights.get("gzip", weights.get("*", False))


def _hash(text: str) -> str:
    """Source expression of an inline style or script."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
