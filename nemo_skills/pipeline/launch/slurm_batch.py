"""The constant part of every batch script: starts the components of a job, and ends them together.

It runs in the job's allocation under bash 4.2 or newer. The lines that `slurm_script` puts before it set:
job_dir, exp_dir, seen_job_dir (how components see the job's folder), main (index of the main), names,
replicas (indices of components of which one suffices),
previous (the job that this one continues, or nothing), next (the job that continues this one, or nothing),
unfinished (the exit code by which the main says that the next job shall go on, or nothing)
and doomed (jobs that cannot run unless this one succeeds).

Signals reach components through Slurm's steps, `scancel --signal`: an `srun` that gets SIGTERM has Slurm kill
its tasks at once.
"""

HELPER_GRACE_S = 1.5
"""What servers and sandboxes have between SIGTERM and SIGKILL once the main is gone: they save nothing."""
NOTICE_S = 1.5
"""What the main has to notice that its server is gone, and to say so, before it is asked to end."""
GRACE_S = 10
"""What the main then has to save its work."""

PROLOGUE = r"""
secrets=$job_dir/secrets.env
run=run-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
ids=$SLURM_JOB_ID
for group in "${!SLURM_JOB_ID_HET_GROUP_@}"; do ids+=,${!group}; done
pids=()
state=''

say() { echo "$(date +%T) $*"; }

# What is known of this job when Slurm has forgotten it; the next job of a chain reads it too
leave() { echo "$1" > "$job_dir/state.tmp" && mv -f "$job_dir/state.tmp" "$job_dir/state"; }

# How the job ended is settled: nobody needs the secrets any more
conclude() {
  # exit code, if there is one, and seconds; before the state, which says that they are there
  echo "${code:--} $SECONDS" > "$job_dir/ended"
  leave "$1"
  rm -f "$secrets"
  [[ $1 == succeeded || ($1 == timeout && -n $next) ]] && return
  for name in "${doomed[@]}"; do rm -f "$exp_dir/$name/secrets.env"; done
}

# The time limit is near: the main saves what it has, and the next job of the chain goes on
on_warning() {
  [[ -n $state ]] && return
  state=timeout
  say "the time limit is near: asking ${names[main]} to end"
  signal_component "$main"
}

# Slurm ends the job, and has told the components: time is up, somebody cancelled it, or it is to run again
on_term() {
  local job restarts=0
  job=$(scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null)
  [[ $job =~ Restarts=([0-9]+) ]] && restarts=${BASH_REMATCH[1]}
  if [[ -z $job || $restarts -gt ${SLURM_RESTART_COUNT:-0} || $job == *JobState=*REQUEUE* ]]; then
    state=requeued
    return
  fi
  state=cancelled
  [[ $job == *Reason=TimeLimit* ]] && state=timeout
  conclude "$state"
}

signal_component() {
  local step name
  while IFS='|' read -r step name; do
    [[ $name == "${names[$1]}" ]] && scancel --signal=TERM "$step"
  done < <(squeue --noheader --steps --jobs="$ids" --format='%i|%j' 2>/dev/null)
}

alive() { kill -0 "${pids[$1]}" 2>/dev/null; }

# Waits until a component is gone, for so many tenths of a second at most
gone_within() {
  local i
  for ((i = 0; i < $2; i++)); do
    alive "$1" || return 0
    sleep 0.1
  done
  ! alive "$1"
}

exit_code() {
  while alive "$1"; do wait "${pids[$1]}"; done
  wait "${pids[$1]}"
}

# Sets `first` to the component whose end is the end of the job, if there is one, and `living` to the others
first_gone() {
  local i left=''
  living=()
  for i in "${!pids[@]}"; do alive "$i" && living+=("${pids[i]}"); done
  for i in "${replicas[@]}"; do alive "$i" && left=1; done
  for first in "${!pids[@]}"; do
    [[ ${lost[first]} ]] || alive "$first" && continue
    [[ $left && " ${replicas[*]} " == *" $first "* ]] || return 0
    exit_code "$first"
    say "${names[first]} ended with exit code $?; the job goes on with the others like it"
    lost[first]=1
  done
  return 1
}

start() {
  local log=$1
  shift
  srun "$@" >> "$log" 2>&1 &
  pids+=($!)
}

# in a container these would name folders of another system
[[ $seen_job_dir == "$job_dir" ]] || unset PYTHONPATH PYTHONHOME VIRTUAL_ENV

trap on_warning USR1
trap on_term TERM

if [[ -n $previous ]]; then
  # 'running' is what a job leaves behind that was killed without a word, as when its node dies
  before=$(cat "$exp_dir/$previous/state" 2>/dev/null)
  if [[ $before != timeout && $before != running ]]; then
    say "nothing to continue: the state of job $previous is '${before:-unknown}'"
    [[ $before == succeeded ]] && code=0 || code=1
    [[ $before == succeeded ]] || before=failed
    conclude "$before" "$code"
    exit "$code"
  fi
fi
mkdir -p "$job_dir/$run" && leave running || { say "cannot write to $job_dir"; exit 1; }
export NS_RUN_DIR=$seen_job_dir/$run
"""

EPILOGUE = r"""
# The first exit ends the job, and the main's exit code is the job's
lost=()
until first_gone; do
  if ((BASH_VERSINFO[0] > 4 || BASH_VERSINFO[1] > 2)); then wait -n "${living[@]}"; else sleep 0.5; fi
done
stopped=''
if [[ $first != "$main" && -z $state ]]; then
  exit_code "$first"
  code=$?
  # a server that ends because its client is done is not to blame
  if ! gone_within "$main" __NOTICE__ && [[ -z $state ]]; then
    say "${names[first]} ended with exit code $code while ${names[main]} was running: asking that to end"
    stopped=1
    signal_component "$main"
    gone_within "$main" __GRACE__ || kill -TERM "${pids[main]}" 2>/dev/null
  fi
fi
exit_code "$main"
code=$?
# a main that saves its work and ends cleanly when the job is cancelled has not succeeded
if [[ $code == 0 && -z $stopped && $state != cancelled ]]; then
  state=succeeded
elif [[ -z $state ]]; then
  state=failed
  [[ -z $stopped && -n $unfinished && $code == "$unfinished" ]] && state=timeout
fi
[[ $state != succeeded && $code == 0 ]] && code=1
for other in "${!pids[@]}"; do alive "$other" && signal_component "$other"; done
for other in "${!pids[@]}"; do
  gone_within "$other" __HELPER_GRACE__ || kill -TERM "${pids[other]}" 2>/dev/null
done
[[ $state == requeued ]] || conclude "$state" "$code"
say "job $state, exit code $code"
exit "$code"
"""


def _tenths(seconds: float) -> str:
    return str(round(seconds * 10))


EPILOGUE = (
    EPILOGUE.replace("__NOTICE__", _tenths(NOTICE_S))
    .replace("__HELPER_GRACE__", _tenths(HELPER_GRACE_S))
    .replace("__GRACE__", _tenths(GRACE_S))
)
