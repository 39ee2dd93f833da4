"""The scripts that run where jobs are submitted: each is one remote call, and prints lines of words and tabs.

Files of an experiment there, below `<job_dir>/<expname>/<id>`: `submitted` once all of its jobs are queued,
and per job a folder, which is the job's working directory, with `job.sbatch`, a script per component, `id`,
`state`, `writes` (the files that it writes, a line each) and, while the job needs it, `secrets.env`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nemo_skills.pipeline.cluster.env import SECRET_NAMES_ERE
from nemo_skills.pipeline.cluster.tunnel import assignments
from nemo_skills.pipeline.launch.survey import Queued

NO_SLURM, NO_CONTROLLER, LEFT_BEHIND = 97, 98, 99
"""Exit codes for troubles of their own; the last: jobs of a failed submission could not be cancelled."""

# sbatch hands on the environment of its caller, and Slurm keeps that on disk: nothing must reach jobs that is
# a secret, or belongs to the job in which somebody runs ns. Some variables also change what commands print.
_CLEAN = (
    assignments(no_slurm=NO_SLURM, no_controller=NO_CONTROLLER)
    + r"""
# clusters often add Slurm to PATH in login shells only
command -v sbatch > /dev/null || [[ ! -r /etc/profile ]] || . /etc/profile > /dev/null 2>&1
command -v sbatch > /dev/null || {
  echo 'there is no sbatch: is this a login node of Slurm?' >&2
  exit "$no_slurm"
}
[[ -n ${SLURM_JOB_ID:-} ]] && unset TMPDIR
for name in $(compgen -e); do
  case $name in
    SLURM_CONF | SLURM_CONF_SERVER | SLURM_JWT) continue ;;
    SLURM* | SBATCH_* | SRUN_* | SQUEUE_* | SACCT_* | SCANCEL_* | SCONTROL_* | PMI* | OMPI_*) unset "$name" ;;
    CUDA_VISIBLE_DEVICES | ROCR_VISIBLE_DEVICES | GPU_DEVICE_ORDINAL | NS_RUN_DIR) unset "$name" ;;
  esac
  [[ ${name^^} =~ $secret_names ]] && unset "$name"
done 2> /dev/null
unset name secret_names
"""
)

# Who writes what; secrets of jobs that were cancelled before they started are removed on the way
_QUEUE = r"""
queue=$(squeue --noheader --user="$(id -un)" --format='%A|%T|%r|%Z' 2>&1) || {
  printf '%s\n' "$queue" >&2
  exit "$no_controller"
}
declare -A queued=()
while IFS='|' read -r id state reason folder; do
  [[ $folder == "$root"/*/*/* ]] || continue
  queued[$folder]=1
  left=$(cat "$folder/state" 2> /dev/null)
  [[ -e ${folder%/*}/submitted ]] && whole=whole || whole=part
  while IFS= read -r path; do
    printf 'writer'
    printf '\t%s' "$id" "$state" "$reason" "${left:--}" "$whole" "$folder" "$path"
    printf '\n'
  done < "$folder/writes"
done <<< "$queue" 2> /dev/null
for entry in "$root"/.with_secrets/*; do
  [[ -e $entry ]] || continue
  needed=''
  for secret in "$(cat "$entry")"/*/secrets.env; do
    [[ -e $secret ]] || continue
    if [[ -n ${queued[${secret%/*}]:-} ]]; then needed=1; else rm -f "$secret"; fi
  done
  [[ $needed ]] || rm -f "$entry"
done
"""

_LOOK = r"""
while IFS= read -r path; do
  [[ -n $path && -e $path ]] && printf 'exists\t%s\n' "$path"
done <<< "$paths"
while IFS= read -r source; do
  [[ -z $source || -e $source ]] || printf 'missing\t%s\n' "$source"
done <<< "$sources"
for folder in "$root"/code/*/; do printf 'code\t%s\n' "${folder%/}"; done
config=$(scontrol show config) && [[ $config =~ ClusterName\ *=\ *([^[:space:]]+) ]]
printf 'cluster\t%s\n' "${BASH_REMATCH[1]:-}"
"""

# Jobs are held until all are queued, so that a submission that breaks off starts nothing
_SUBMIT = r"""
set -u
fail() {
  local code=1
  if ((${#ids[@]})) && ! scancel "${ids[@]}"; then
    echo "left on hold: jobs ${ids[*]}" >&2
    code=$left_behind
  fi
  cd / && rm -rf -- "$exp_dir"
  exit "$code"
}
ids=()
umask 022
while IFS= read -r folder; do mkdir -p -- "$folder" || fail; done <<< "$folders"
mkdir -p -- "$exp_dir" && chmod 700 -- "$exp_dir" && cd -- "$exp_dir" && tar -xpf - || fail
# its time says when it was used last
touch -c -- "$code_dir" 2> /dev/null
submit() {
  local name=$1 id
  shift
  [[ -e stopped ]] && fail
  set -- --parsable --hold --kill-on-invalid-dep=yes --chdir="$exp_dir/$name" "$@"
  id=$(sbatch "$@" "$name/job.sbatch") || {
    echo "in job $name" >&2
    fail
  }
  id=${id%%;*}
  ids+=("$id")
  echo "$id" > "$name/id" || fail
  printf 'job\t%s\t%s\n' "$name" "$id"
}
"""

_RELEASE = r"""
if compgen -G '*/secrets.env' > /dev/null; then
  mkdir -p "$root/.with_secrets" && echo "$exp_dir" > "$root/.with_secrets/${exp_dir##*/}" || fail
fi
[[ -e stopped ]] && fail
[[ -z $replaces ]] || scancel $replaces
if [[ -n $release ]]; then
  all=$(IFS=,; echo "${ids[*]}")
  scontrol release "$all" || fail
fi
: > submitted || fail
"""

# After a lost connection: was everything queued? If not, nothing may stay
_SETTLE = r"""
cd -- "$exp_dir" 2> /dev/null || exit 0
: > stopped
sleep 0.5
if [[ $keep && -e submitted ]]; then
  for file in */id; do printf 'job\t%s\t%s\n' "${file%/id}" "$(cat "$file")"; done
  exit 0
fi
for i in 1 2 3 4 5 6; do
  mine=()
  queue=$(squeue --noheader --user="$(id -un)" --format='%A|%T|%Z') || exit "$no_controller"
  while IFS='|' read -r id state folder; do
    [[ $folder == "$exp_dir"/* && $state != COMPLETING ]] && mine+=("$id")
  done <<< "$queue"
  ((${#mine[@]})) && scancel "${mine[@]}"
  ((${#mine[@]} == 0 && i > 1)) && break
  sleep 0.3
done
cd / && rm -rf -- "$exp_dir"
"""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A job in the queue, and one of the files that it writes."""

    job: Queued
    reason: str
    """Why it waits."""
    left: str
    """What its batch script has said so far."""
    whole: bool
    """Whether the submission that it belongs to was completed."""
    path: str
    """Host path that it writes."""

    @classmethod
    def read(cls, words: Sequence[str]) -> "Writer":
        """Read one line of a script's answer."""
        job_id, state, reason, left, whole, folder, path = words
        expname, _, name = folder.split("/")[-3:]
        job = Queued(id=job_id, state=state, job=name, expname=expname)
        return cls(job=job, reason=reason, left=left, whole=whole == "whole", path=path)

    @property
    def active(self) -> bool:
        """Whether it writes, or will: it is neither ending nor waiting for something that cannot happen."""
        ending = self.job.state == "COMPLETING" and self.left != "running"
        return self.whole and not ending and self.reason != "DependencyNeverSatisfied"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a script printed: the words of its lines, by their first word."""

    lines: Mapping[str, Sequence[Sequence[str]]]

    @classmethod
    def read(cls, text: str) -> "Answer":
        """Read the output of a script."""
        lines: dict[str, list[list[str]]] = {}
        for line in text.splitlines():
            kind, *words = line.split("\t")
            lines.setdefault(kind, []).append(words)
        return cls(lines=lines)

    def words(self, kind: str) -> list[str]:
        """Return the first word of every line of a kind."""
        return [words[0] for words in self.lines.get(kind, ()) if words]

    @property
    def ids(self) -> dict[str, str]:
        """Job name to Slurm id."""
        return {words[0]: words[1] for words in self.lines.get("job", ())}

    @property
    def writers(self) -> tuple[Writer, ...]:
        """The user's jobs in the queue, one entry for each file that they write."""
        return tuple(map(Writer.read, self.lines.get("writer", ())))


@dataclass(frozen=True, kw_only=True)
class Calls:
    """What one submission asks of Slurm."""

    root: str
    exp_dir: str
    folders: tuple[str, ...]
    """Folders for logs and outputs, which are made."""
    code_dir: str
    submit: tuple[str, ...]
    """Calls of the shell function `submit`; the ids of jobs queued before are in the array `ids`."""
    secret_names: tuple[str, ...] = ()
    """Variables that must not reach the jobs through the environment, besides those that look like it."""
    replaces: tuple[str, ...] = ()
    """Ids of queued jobs whose work these jobs take over."""
    release: bool = True
    """Whether jobs may start; False leaves them on hold."""


def look_script(root: str, paths: Iterable[str], sources: Iterable[str]) -> str:
    """Return the script that changes nothing and tells what there is.

    It prints which paths exist, which sources of mounts do not, the folders of packaged code, which jobs in
    the queue write what, and the cluster's name.
    """
    values = assignments(root=root, paths="\n".join(paths), sources="\n".join(sources))
    return _clean() + values + _QUEUE + _LOOK


def submit_script(calls: Calls) -> str:
    """Return the script that unpacks a tar of all job folders and queues the jobs: all of them or none."""
    values = assignments(
        root=calls.root,
        exp_dir=calls.exp_dir,
        folders="\n".join(calls.folders),
        code_dir=calls.code_dir,
        replaces=" ".join(calls.replaces),
        release="1" if calls.release else "",
        left_behind=LEFT_BEHIND,
    )
    lines = "".join(f"{call}\n" for call in calls.submit)
    return _clean(calls.secret_names) + values + _SUBMIT + lines + _RELEASE


def settle_script(exp_dir: str, *, keep: bool) -> str:
    """Return the script that looks after a submission whose end nobody saw.

    With `keep` it prints the ids of one that was completed; anything else is undone.
    """
    return _clean() + assignments(exp_dir=exp_dir, keep="1" if keep else "") + _SETTLE


def on_login_node(script: str) -> str:
    """Let a script find Slurm's commands, in an environment that does not change what they print."""
    return _clean() + script


def _clean(secret_names: Sequence[str] = ()) -> str:
    named = "".join(f"|^{name.upper()}$" for name in secret_names)
    return assignments(secret_names=SECRET_NAMES_ERE + named) + _CLEAN
