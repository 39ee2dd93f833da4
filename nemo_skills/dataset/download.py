"""Fetches files from where benchmarks are published."""

import http.client
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nemo_skills.core.errors import UserError

_TIMEOUT_S = 30
_LARGE = 50_000_000
_AGENT = "nemo_skills (prepares benchmarks)"


def download(url: str, folder: Path) -> Path:
    """Fetch a file into `folder`, under the name that it has in its address.

    Raises:
        UserError: it cannot be fetched.
    """
    name = unquote(Path(urlsplit(url).path).name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    request = urllib.request.Request(url, headers={"User-Agent": _AGENT})  # noqa: S310 (addresses are ours)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response, path.open("wb") as file:  # noqa: S310
            expected = int(response.headers.get("Content-Length") or 0)
            if expected > _LARGE:
                print(f"downloading {url}, {expected / 1e6:.0f} MB", file=sys.stderr)
            shutil.copyfileobj(response, file)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"cannot download {url} ({error}); fetch it elsewhere and pass it with --source {name}",
            exit_code=1,
        ) from None
    if expected and path.stat().st_size != expected:
        raise UserError(f"the download of {url} broke off; try again", exit_code=1)
    return path
