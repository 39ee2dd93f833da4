"""`ns view`: a local web page to read generations."""

import importlib

from nemo_skills.pipeline.options import ViewOptions
from nemo_skills.pipeline.wrapper import wrapper

VIEWER = "nemo_skills.evaluation.viewer.server"


@wrapper()
def view(own: ViewOptions) -> None:
    """Serve a page on this machine that shows rows of JSONL files: filtered, page by page, side by side.

    Nothing is loaded into memory but the rows on the page; Ctrl-C ends it.
    """
    viewer = importlib.import_module(VIEWER)
    viewer.serve_folders(own.folders, port=own.port, browser=own.browser)
