#!/usr/bin/env bash
# Build the images of container roles, here; nothing is pushed. A cluster config then names them:
#
#   containers: {nemo-skills: nemo-skills:latest, vllm: nemo-skills-vllm:latest}
set -euo pipefail

usage() {
  cat <<'EOF'
usage: dockerfiles/build.sh [--base IMAGE] [--tag TAG] [--build-arg NAME=VALUE]... ROLE...

ROLE is the ending of a Dockerfile in this folder: nemo-skills, vllm, trtllm, nemo, sandbox.
--base IMAGE            base image instead of the Dockerfile's own
--tag TAG               tag of the images; default: latest
--build-arg NAME=VALUE  further argument of the Dockerfiles, such as EXTRAS= or PACKAGES="numpy sympy"

Without a network: see dockerfiles/provision.py for wheels.
EOF
}

fail() {
  echo "build.sh: $1" >&2
  exit 2
}

folder=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
tag=latest
roles=()
args=()
while (($#)); do
  case $1 in
    -h | --help) usage; exit ;;
    --base | --tag | --build-arg) (($# > 1)) || fail "$1 needs a value" ;;&
    --base) args+=(--build-arg "BASE=$2"); shift ;;
    --tag) tag=$2; shift ;;
    --build-arg) args+=(--build-arg "$2"); shift ;;
    --base=* | --tag=* | --build-arg=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; continue ;;
    -*) fail "unknown option $1; see --help" ;;
    *) roles+=("$1") ;;
  esac
  shift
done
((${#roles[@]})) || { usage >&2; exit 2; }
for role in "${roles[@]}"; do
  [[ -f $folder/Dockerfile.$role ]] || fail "there is no role '$role'; see --help"
done
command -v docker >/dev/null || fail "there is no 'docker' command"

for role in "${roles[@]}"; do
  image=nemo-skills-${role#nemo-skills}
  image=${image%-}:$tag
  if [[ $role == trtllm && " ${args[*]-} " != *" BASE="* ]]; then
    fail "trtllm has no default base image: --base IMAGE names a TensorRT-LLM release image"
  fi
  docker build --force-rm --network=host --file "$folder/Dockerfile.$role" --tag "$image" "${args[@]}" "$folder/.."
  echo "built $image"
done
