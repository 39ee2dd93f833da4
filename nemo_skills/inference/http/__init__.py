"""POST requests over HTTP/1.1, as cheap as they can be made in Python.

General clients spend most of their time per request on what a generation client never needs: cookies,
redirects, streaming, a timer for each request. Here a request is one write and an answer one future.
`benchmarks/client_throughput.py` shows what that is worth.
"""

from nemo_skills.inference.http.answer import Response
from nemo_skills.inference.http.connection import BrokenConnectionError
from nemo_skills.inference.http.poster import NoConnectionError, Poster, Target

__all__ = ["BrokenConnectionError", "NoConnectionError", "Poster", "Response", "Target"]
