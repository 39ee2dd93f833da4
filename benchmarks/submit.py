"""What it costs to queue 64 jobs (16 seeds x 4 chunks) with `ns generate`, over 64 bare calls of sbatch.

A real Slurm cluster (two virtual nodes, with accounting) and a real sshd are started for it, see
tests/services. `ns` is measured as a whole process, on the login node and over SSH; sbatch queues the very
scripts that `ns` wrote, in a loop of a shell. Jobs wait for a time that does not come, and are cancelled.
Run as root: `python benchmarks/submit.py [repeats]`. The last line is one JSON object.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.services import slurm, sshd  # noqa: E402
from tests.services.process import missing_programs, wait_until  # noqa: E402
from tests.services.slurm import SlurmCluster  # noqa: E402
from tests.services.sshd import SshServer  # noqa: E402

BOUNDS = {"login_vs_sbatch": 5.0, "ssh_vs_login": 2.0}
SEEDS, CHUNKS = 16, 4
JOBS = SEEDS * CHUNKS
BARE = 'for script in "$1"/*/job.sbatch; do sbatch --parsable "$script" > /dev/null || exit 1; done'


class Bench:
    """A user's folder, with a git repository, a cluster and a way to it over SSH."""

    def __init__(self, folder: Path, cluster: SlurmCluster, server: SshServer) -> None:
        self.folder = folder
        self.cluster = cluster
        self.work_dir = folder / "work"
        self.work_dir.mkdir()
        (self.work_dir / "in.jsonl").write_text('{"question": "What is 1 + 1?"}\n' * 100)
        git = ["git", "-c", "user.name=Bench", "-c", "user.email=bench@example.com"]
        for words in (["init", "--quiet"], ["add", "in.jsonl"], ["commit", "--quiet", "--message=x"]):
            subprocess.run([*git, *words], cwd=self.work_dir, check=True)
        common = {
            "executor": "slurm",
            "container_runtime": "none",
            "containers": {"nemo-skills": f"venv:{sys.prefix}"},
            "sbatch_options": {"begin": "now+10hours"},
        }
        tunnel = {"host": server.host, "port": server.port, "user": server.user}
        tunnel |= {"identity": str(server.identity), "job_dir": str(self._jobs("ssh"))}
        self._write("login", common | {"job_dir": str(self._jobs("login"))})
        self._write("ssh", common | {"ssh_tunnel": tunnel})
        self.env = {**os.environ, "NEMORUN_HOME": str(folder / "nemo_run")}
        self.envs: Mapping[str, Mapping[str, str]] = {
            "login": self.env | {"SLURM_CONF": cluster.env["SLURM_CONF"]},
            "ssh": self.env | {"PATH": server.env["PATH"]},
        }

    def ns(self, place: str) -> float:
        """Queue all jobs with one command and return its wall time."""
        argv = [sys.executable, "-m", "nemo_skills.pipeline.cli", "generate"]
        argv += [f"--cluster={self.folder / place}.yaml", "--server_type=stub", "--model=m"]
        argv += [f"--input_file={self.work_dir}/in.jsonl", f"--output_dir={self.folder}/out"]
        # all chunks by name: that leaves the jobs that merge to another call, so that there are 64
        argv += [f"--num_random_seeds={SEEDS}", f"--num_chunks={CHUNKS}", f"--chunk_ids=0..{CHUNKS - 1}"]
        argv += ["++prompt_config=generic/math"]
        env = dict(self.envs[place]) | {"PYTHONPATH": str(REPOSITORY)}
        return self._seconds(argv, env)

    def bare(self) -> float:
        """Queue the scripts that `ns` wrote last and return the wall time."""
        last = max(self._jobs("login").glob("generate/*"), key=lambda path: path.name)
        return self._seconds(["bash", "-c", BARE, "bash", str(last)], self.envs["login"])

    def clear(self) -> None:
        """Cancel what is queued, and check that it was all."""
        queued = self.cluster.command("squeue", "--noheader", "--format=%A").split()
        assert len(queued) == JOBS, f"{len(queued)} jobs are queued instead of {JOBS}"
        self.cluster.command("scancel", *queued)
        wait_until("an empty queue", lambda: not self.cluster.command("squeue", "--noheader"))

    def _seconds(self, argv: list[str], env: Mapping[str, str]) -> float:
        start = time.perf_counter()
        done = subprocess.run(argv, cwd=self.work_dir, env=env, capture_output=True, text=True, check=False)
        taken = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stderr}")
        self.clear()
        return taken

    def _jobs(self, place: str) -> Path:
        return self.folder / f"jobs-{place}"

    def _write(self, place: str, values: Mapping[str, object]) -> None:
        (self.folder / f"{place}.yaml").write_text(yaml.safe_dump(dict(values)))


def measure(repeats: int) -> dict[str, list[float]]:
    """Return the times of all ways to queue the jobs, taken in turn: a noisy machine slows all alike."""
    times: dict[str, list[float]] = {"sbatch": [], "login": [], "ssh": []}
    with tempfile.TemporaryDirectory(prefix="ns-bench-", dir="/tmp") as name:
        folder = Path(name)
        with (
            SlurmCluster(folder / "slurm") as cluster,
            SshServer(folder / "ssh", {"SLURM_CONF": str(cluster.conf)}) as server,
        ):
            bench = Bench(folder, cluster, server)
            for attempt in range(repeats + 1):
                taken = {"login": bench.ns("login"), "ssh": bench.ns("ssh"), "sbatch": bench.bare()}
                # the first round sends the code and fills caches
                if attempt:
                    for way, seconds in taken.items():
                        times[way].append(seconds)
    return times


def main() -> int:
    """Measure, print, and fail when a bound is broken."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    missing = missing_programs((*slurm.PROGRAMS, *sshd.PROGRAMS))
    if missing or os.geteuid():
        why = f"{', '.join(missing)} not installed" if missing else "this needs root"
        print(json.dumps({"benchmark": "submit", "skipped": f"{why}, see tests/services/install.sh"}))
        return 0
    times = measure(repeats)
    median = {way: statistics.median(values) for way, values in times.items()}
    for way, value in median.items():
        print(f"{JOBS} jobs, {way:8} {value:6.2f} s   ({min(times[way]):.2f} at best)")
    ratios = {
        "login_vs_sbatch": round(median["login"] / median["sbatch"], 2),
        "ssh_vs_login": round(median["ssh"] / median["login"], 2),
    }
    print(json.dumps({"benchmark": "submit", "jobs": JOBS, "repeats": repeats, **ratios, "bounds": BOUNDS}))
    return 0 if all(ratios[name] <= bound for name, bound in BOUNDS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
