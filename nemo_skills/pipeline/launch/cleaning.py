"""What may be removed on a cluster: one script that looks, and removes if it is told to."""

from dataclasses import dataclass

from nemo_skills.pipeline.cluster.tunnel import assignments
from nemo_skills.pipeline.launch.logdir import LOGS
from nemo_skills.pipeline.launch.slurm_remote import NO_CONTROLLER, on_login_node

# An experiment's folder is `<root>/<expname>/<expname>_<nanoseconds>`; the working directory of a job in the
# queue is below it. Code that no remaining script names is not used. Nothing of other users is touched.
_CLEAN = r"""
queue=$(squeue --noheader --format='%Z' 2>&1) || { printf '%s\n' "$queue" >&2; exit "$no_controller"; }
real_root=$(cd -- "$root" 2> /dev/null && pwd -P) || exit 0
declare -A busy=()
# Slurm has the path as it was then; the same folder may have other names
while IFS= read -r folder; do
  [[ $folder == */* ]] && folder=$(cd -- "${folder%/*}" 2> /dev/null && pwd -P) && busy[$folder]=1
done <<< "$(sort -u <<< "$queue")"

drop() {
  local kind=$1 path=$2 size
  size=$(du -sk -- "$path" 2> /dev/null | cut -f 1)
  if [[ $remove ]]; then rm -rf -- "$path" || kind=failed; fi
  printf '%s\t%s\t%s\n' "$kind" "${size:-0}" "$path"
}
is_old() { [[ -O $1 && -n $(find "$1" -maxdepth 0 ! -newermt "@$before" 2> /dev/null) ]]; }

kept=()
for folder in "$root"/*/*; do
  name=${folder##*/} parent=${folder%/*}
  [[ -d $folder && ! -L $folder && $name =~ ^(.+)_([0-9]{16,19})$ ]] || continue
  [[ ${BASH_REMATCH[1]} == "${parent##*/}" ]] || continue
  if [[ -n ${busy[$real_root/${folder#"$root"/}]:-} ]]; then
    kept+=("$folder")
    printf 'busy\t0\t%s\n' "$folder"
  elif [[ -O $folder ]] && ((BASH_REMATCH[2] < before * 1000000000)); then
    drop experiment "$folder"
  else
    kept+=("$folder")
  fi
done
for entry in "$root"/.with_secrets/*; do
  [[ $remove && -f $entry && ! -e $(cat "$entry") ]] && rm -f -- "$entry"
done
[[ $remove ]] && find "$root" -mindepth 1 -maxdepth 1 -type d -user "$(id -un)" -empty -delete 2> /dev/null

used=$'\n'
((${#kept[@]})) && used+=$(find "${kept[@]}" -maxdepth 2 -type f \( -name '*.sh' -o -name '*.sbatch' \) \
  -exec grep -hoE '/code/[0-9a-f]{64}' {} + | sort -u)$'\n'
for path in "$root"/code/*; do
  [[ ! -L $path && $used != *$'\n'"/code/${path##*/}"$'\n'* ]] && is_old "$path" && drop code "$path"
done
for path in "$root/$logs"/*; do
  left=''
  for folder in "${kept[@]}"; do [[ $folder == "$root/${path##*/}"/* ]] && left=1; done
  [[ ! -L $path && -z $left ]] && is_old "$path" && drop logs "$path"
done
true
"""


@dataclass(frozen=True)
class Leftover:
    """Something old, which was removed if that was asked for."""

    kind: str
    """`experiment`, `code`, `logs` or `package`; `busy` for what is kept because its jobs have not ended, and
    `failed` for what could not be removed."""
    path: str
    kilobytes: int


def clean_script(root: str, before: int, *, remove: bool) -> str:
    """Return the script that finds, and perhaps removes, what is older than a time in seconds."""
    flag = "1" if remove else ""
    values = assignments(root=root, before=before, remove=flag, logs=LOGS, no_controller=NO_CONTROLLER)
    return on_login_node(values + _CLEAN)


def read_leftovers(answer: str) -> list[Leftover]:
    """Read what the script printed."""
    lines = (line.split("\t", 2) for line in answer.splitlines() if line.count("\t") >= 2)
    return [Leftover(kind, path, int(size)) for kind, size, path in lines]
