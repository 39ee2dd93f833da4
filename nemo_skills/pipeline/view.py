"""`ns view`: a local web page to read generations."""

import subprocess
import sys

from nemo_skills.core.errors import JobFailedError
from nemo_skills.pipeline.options import ViewOptions
from nemo_skills.pipeline.wrapper import wrapper

MAIN = "nemo_skills.evaluation.viewer"


@wrapper()
def view(own: ViewOptions) -> None:
    """Serve a page on this machine that shows rows of JSONL files: filtered, page by page, side by side.

    Nothing is loaded into memory but the rows on the page; Ctrl-C ends it.
    """
    flags = [f"--port={own.port}", *(["--browser"] if own.browser else [])]
    argv = [sys.executable, "-m", MAIN, *flags, "--", *own.folders]
    with subprocess.Popen(argv) as server:
        try:
            code = server.wait()
        except KeyboardInterrupt:
            # it got the signal too
            server.wait()
            raise
    if code:
        raise JobFailedError("the viewer ended early", exit_code=code)
