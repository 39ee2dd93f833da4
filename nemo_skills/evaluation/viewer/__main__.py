"""Serve the pages: `python -m nemo_skills.evaluation.viewer DIR…`; `ns view` starts it."""

import argparse
import asyncio
import contextlib
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.script import run_script
from nemo_skills.evaluation.viewer.app import make_app
from nemo_skills.evaluation.viewer.runs import OutputFile, find_files

HOST = "127.0.0.1"


async def serve(files: Sequence[OutputFile], port: int, *, browser: bool) -> None:
    """Serve until cancelled.

    Raises:
        UserError: the port is taken.
    """
    from aiohttp import web

    runner = web.AppRunner(make_app(files), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, port)
        try:
            await site.start()
        except OSError as error:
            raise UserError(f"cannot listen on port {port}: {error.strerror}", exit_code=1) from None
        address = f"http://{HOST}:{runner.addresses[0][1]}/"
        print(f"{len(files)} files at {address} (Ctrl-C ends)", flush=True)
        if browser:
            webbrowser.open(address)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m nemo_skills.evaluation.viewer", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--browser", action="store_true", help="open the page in the browser")
    args = parser.parse_args()
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(serve(find_files(args.folders), args.port, browser=args.browser))


if __name__ == "__main__":
    run_script(main)
