#!/bin/sh
# Install what the service tests run: Slurm with accounting, Docker, sshd and what builds the base image.
# Needs root on Debian 12. Running it again is quick. No daemon is started, now or at boot time of a container.
set -eu

PACKAGES="slurm-wlm slurmctld slurmd slurm-client slurmdbd slurm-wlm-mysql-plugin libslurm-dev munge mariadb-server
docker.io debootstrap openssh-server openssh-client rsync gcc libc6-dev iproute2 iptables procps ca-certificates"

if [ "$(id -u)" != 0 ]; then
    echo "install.sh: run me as root" >&2
    exit 1
fi

missing=""
for package in $PACKAGES; do
    state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done
if [ -z "$missing" ]; then
    echo "install.sh: nothing to do"
    exit 0
fi
echo "install.sh: installing$missing"

# Packages start their daemons when they are installed; invoke-rc.d asks this file first. 101 means "not allowed".
policy=/usr/sbin/policy-rc.d
saved=""
if [ -e "$policy" ]; then
    saved=$(mktemp)
    cp -p "$policy" "$saved"
fi
restore() {
    if [ -n "$saved" ]; then
        cp -p "$saved" "$policy"
        rm -f "$saved"
    else
        rm -f "$policy"
    fi
}
trap restore EXIT
trap 'exit 1' HUP INT TERM
printf '#!/bin/sh\nexit 101\n' > "$policy"
chmod 755 "$policy"

export DEBIAN_FRONTEND=noninteractive
apt_get() {
    apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 "$@"
}
# Unrelated third-party sources of the machine may be unreachable: only the install decides.
apt_get update || echo "install.sh: apt-get update reported errors; going on" >&2
# shellcheck disable=SC2086
apt_get install -y --no-install-recommends $missing >/dev/null
echo "install.sh: done"
