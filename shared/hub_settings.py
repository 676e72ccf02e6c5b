"""What the environment says of the way to the Hugging Face Hub, looked at before the first request."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec

from shared.app.errors import UserError


def require_reachable(settings: Mapping[str, str] = os.environ) -> None:
    """Raises UserError for settings of the environment with which no request can begin."""
    endpoint = settings.get("HF_ENDPOINT", "")
    if endpoint and not endpoint.lower().startswith(("http://", "https://")):
        raise UserError(f"HF_ENDPOINT={endpoint} has no scheme; write https://{endpoint}")
    for name in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"):
        proxy = settings.get(name) or settings.get(name.lower(), "")
        if proxy.lower().startswith("socks") and find_spec("socksio") is None:
            raise UserError(
                f"{name}={proxy.rpartition('@')[2]} is a SOCKS proxy, which needs a package: pip install socksio"
            )
    if not all(" " < letter < "\x7f" for letter in settings.get("HF_TOKEN", "").strip()):
        raise UserError("HF_TOKEN holds letters that no token has; copy it again, or run `hf auth login`")
