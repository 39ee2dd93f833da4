"""Which servers of a job answer, seen from where jobs are submitted: a script that asks, and its answer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_skills.pipeline.cluster.tunnel import assignments

# Nothing but bash: a login node may have neither curl nor Python
_PROBE = r"""
probe() {
  ${limit:+"$limit" 5} bash -c '
    exec 3<> "/dev/tcp/$1/$2" || exit
    printf "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n" "$3" "$1" >&3
    IFS= read -r -t 5 line <&3 && [[ $line == *" 200"* ]]' - "$@" 2> /dev/null
}
limit=$(command -v timeout)
# a job that was requeued has a folder for each of its runs
run=$(ls -dt -- "$folder"/run "$folder"/run-* 2> /dev/null | head -n 1)
for file in "$run"/server-*.json; do
  entry=$(cat "$file" 2> /dev/null)
  [[ $entry =~ \"host\":\ \"([^\"]+)\" ]] && host=${BASH_REMATCH[1]} || continue
  [[ $entry =~ \"port\":\ ([0-9]+) ]] && port=${BASH_REMATCH[1]} || continue
  [[ $entry =~ \"ready_path\":\ \"([^\"]+)\" ]] && path=${BASH_REMATCH[1]} || continue
  state=gone
  if [[ $entry != *'"state": "exited"'* ]]; then
    probe "$host" "$port" "$path" && state=ready || state=starting
  fi
  echo "server|$state|$entry"
done
"""


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server."""

    host: str
    port: int
    state: str
    """`starting`, `ready` or `gone`."""
    model: str | None
    count: int
    """How many servers the job has."""

    @property
    def address(self) -> str:
        """The URL that clients take."""
        return f"http://{self.host}:{self.port}/v1"


def servers_script(folder: str) -> str:
    """Return the script that looks for the servers of a job, given the job's folder."""
    return assignments(folder=folder) + _PROBE


def read_servers(answer: str) -> list[Server]:
    """Read what `servers_script` printed."""
    found = []
    for line in answer.splitlines():
        if line.startswith("server|"):
            _, state, text = line.split("|", 2)
            entry = json.loads(text)
            found.append(
                Server(
                    host=entry["host"],
                    port=entry["port"],
                    state=state,
                    model=entry.get("model"),
                    count=entry.get("count", 1),
                )
            )
    return found


def ready_servers(servers: Sequence[Server]) -> tuple[Server, ...]:
    """Return the servers that live once all of these are ready; nothing before that."""
    alive = tuple(server for server in servers if server.state != "gone")
    complete = servers and len(servers) >= max(server.count for server in servers)
    return alive if complete and all(server.state == "ready" for server in alive) else ()
