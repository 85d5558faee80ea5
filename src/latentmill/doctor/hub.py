"""Whether models can be had from the hub: by which endpoint, with or without a token, which is never shown."""

from __future__ import annotations

import os
import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from latentmill.doctor.findings import Finding, one_line
from latentmill.registry import DEFAULT_MODEL, MODELS

GROUP = "hub"
SECONDS = 5.0  # that each step of an answer may take
_FILE = "config.json"
_OK, _UNAUTHORIZED = 200, 401


def findings(seconds: float = SECONDS) -> list[Finding]:
    """Two small requests; none where HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants, get_token

    endpoint, token = str(constants.ENDPOINT), get_token()
    if constants.HF_HUB_OFFLINE:
        access = Finding(GROUP, "access", f"not tried: HF_HUB_OFFLINE is set ({shown_url(endpoint)})", "absent")
        return [access, _token(token, None)]
    access = _access(endpoint, seconds)
    accepted = _accepted(endpoint, token, seconds) if token and access.state == "ok" else None
    return [access, _token(token, accepted)]


def shown_url(url: str) -> str:
    """Without a user and password that it may hold."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _access(endpoint: str, seconds: float) -> Finding:
    """Ask for a file's size and digest, as a download does first."""
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # of its HTTP library

    told, start = f"{shown_url(endpoint)}{_by()}", time.perf_counter()
    repository = MODELS[DEFAULT_MODEL].repository
    try:
        get_hf_file_metadata(f"{endpoint}/{repository}/resolve/main/{_FILE}", token=False, timeout=seconds)
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no status")
        advice = "if HF_ENDPOINT names a mirror, name another, or unset it; if a proxy answers, let it through"
        return Finding(GROUP, "access", f"{told} answers {status} for {repository}", "warning", advice)
    except (HTTPError, OSError, ValueError) as error:
        advice = (
            "models that are not in the cache cannot be downloaded: look at the network and at HTTPS_PROXY, or set "
            "HF_ENDPOINT to a mirror; models that are there are found at once with HF_HUB_OFFLINE=1; `mini` needs none"
        )
        return Finding(GROUP, "access", f"{told} cannot be reached: {one_line(error)}", "warning", advice)
    return Finding(GROUP, "access", f"{told} answers in {time.perf_counter() - start:.1f} s")


def _by() -> str:
    """What of the environment leads to this endpoint."""
    named = [name for name in ("HF_ENDPOINT",) if os.environ.get(name)]
    named += ["a proxy"] if urllib.request.getproxies().keys() & {"https", "http", "all"} else []
    return f" (by {' and '.join(named)})" if named else ""


def _accepted(endpoint: str, token: str, seconds: float) -> bool | None:
    """Whether the hub knows the token; None where that cannot be told."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    session: Any = get_session()
    try:
        answer = session.get(f"{endpoint}/api/whoami-v2", headers=build_hf_headers(token=token), timeout=seconds)
    except (HTTPError, OSError, ValueError):
        return None
    return {_OK: True, _UNAUTHORIZED: False}.get(answer.status_code)


def _token(token: str | None, accepted: bool | None) -> Finding:
    if token is None:
        gated = ", ".join(name for name, entry in MODELS.items() if "gated" in entry.note)
        advice = f"only for gated models ({gated}): accept their terms on their pages, then set HF_TOKEN"
        return Finding(GROUP, "token", "none", "absent", advice)
    where = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "a login on this machine"
    if accepted is False:
        advice = "make a new one in the hub's settings, and set HF_TOKEN to it"
        return Finding(GROUP, "token", f"by {where}: the hub refuses it", "warning", advice)
    return Finding(GROUP, "token", f"by {where}{': the hub knows it' if accepted else ', not tried'}")
