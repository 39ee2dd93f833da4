"""The servers that answer: least loaded first, silent ones set aside for a while."""

import time
from collections.abc import Sequence

from nemo_skills.inference.server.ready import Endpoint

_FIRST_REST_S = 0.5
_LONGEST_REST_S = 30.0


class EndpointState:
    """One server and how it is doing."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.in_flight = 0
        self.failures = 0
        """Connections in a row that failed."""
        self.rests_until = 0.0


class EndpointPool:
    """Chooses a server for each request."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        assert endpoints
        self.states = [EndpointState(endpoint) for endpoint in endpoints]
        self.last_contact = time.monotonic()

    def pick(self) -> EndpointState:
        """Return the least loaded server; when all rest, the one that comes back first."""
        if len(self.states) == 1:
            return self.states[0]
        now = time.monotonic()
        awake = [state for state in self.states if state.rests_until <= now]
        if awake:
            return min(awake, key=lambda state: state.in_flight)
        return min(self.states, key=lambda state: state.rests_until)

    def answered(self, state: EndpointState) -> None:
        """Note that the server said something, if only an error."""
        self.last_contact = time.monotonic()
        state.failures = 0
        state.rests_until = 0.0

    def silent(self, state: EndpointState) -> None:
        """Note that no connection came about or that it broke; others take over while the server rests."""
        now = time.monotonic()
        if state.rests_until > now:
            return  # requests that broke together count once
        state.failures += 1
        state.rests_until = now + min(_LONGEST_REST_S, _FIRST_REST_S * 2 ** min(state.failures - 1, 10))

    def silent_for(self) -> float:
        """Return for how many seconds no server has answered."""
        return time.monotonic() - self.last_contact
