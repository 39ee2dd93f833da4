"""Serves the pages until it is stopped."""

import asyncio
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from nemo_skills.core.errors import UserError
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


def serve_folders(folders: Sequence[str], *, port: int = 0, browser: bool = False) -> None:
    """Serve what lies in folders until Ctrl-C.

    Args:
        folders: folders with JSONL files, or such files.
        port: 0 for any free one.
        browser: open the page in the browser.

    Raises:
        UserError: there is nothing to show, the port is taken, or a library is missing.
    """
    asyncio.run(serve(find_files([Path(folder) for folder in folders]), port, browser=browser))
