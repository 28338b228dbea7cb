#!/usr/bin/env bash
# dockerd.sh up|down|ours: a docker daemon of our own, for machines where none is running. Its state is in
# the cache, its socket at the usual place. "up" does nothing when a daemon answers; "down" stops only one
# that "up" started; "ours" tells by its status whether the running one is.
set -euo pipefail
# shellcheck source=e2e/kind/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
state=$CACHE/docker
pidfile=$state/dockerd.pid

ours() {
  local pid
  pid=$(cat "$pidfile" 2>/dev/null) || return 1
  # After a crash the number can belong to another process by now, or to a dead one that nobody waited for.
  [ "$(sed -n 's/^Name:[[:space:]]*//p' "/proc/$pid/status" 2>/dev/null)" = dockerd ] &&
    ! grep -q '^State:[[:space:]]*[ZX]' "/proc/$pid/status" 2>/dev/null
}

up() {
  local runtime='"default-runtime": "runc"' daemon
  ! docker info >/dev/null 2>&1 || return 0
  [ -z "${DOCKER_HOST:-}" ] || die "nothing answers at DOCKER_HOST=$DOCKER_HOST"
  lock dockerd
  ! docker info >/dev/null 2>&1 || return 0
  packages "[3/6]" dockerd:docker.io jq:jq iptables:iptables
  # A daemon that the init system starts with the package is as good as one that was there before.
  for _ in $(seq 30); do
    ! docker info >/dev/null 2>&1 || return 0
    [ -d /run/systemd/system ] || break
    sleep 0.5
  done
  mkdir -p "$state"
  # One of ours that does not answer is either just starting or just dying.
  for _ in $(seq 60); do
    ours || break
    ! docker info >/dev/null 2>&1 || return 0
    sleep 0.5
  done
  ! ours || die "our docker daemon ($(cat "$pidfile")) runs but does not answer; its log is $state/dockerd.log"
  "${SUDO[@]}" rm -f "$pidfile"
  # CAP_SYS_RESOURCE is bit 24; without it nobody can run privileged containers but through our wrapper.
  if ((0x$(awk '/^CapBnd/ { print $2 }' /proc/self/status) >> 24 & 1)); then :; else
    install -m 0755 "$KIND_DIR/runc-nores" "$state/runc-nores"
    runtime="\"default-runtime\": \"runc-nores\", \"runtimes\": {\"runc-nores\": {\"path\": \"$state/runc-nores\"}}"
  fi
  # Sockets have short names only, hence the second directory outside the cache.
  cat >"$state/daemon.json" <<J
{"data-root": "$state/data", "exec-root": "/run/portcullis-kind", "pidfile": "$pidfile", "bridge": "none",
 "group": "$(id -g)", $runtime}
J
  # kind mounts this directory into its nodes.
  "${SUDO[@]}" mkdir -p /lib/modules
  say "[3/6] starting a docker daemon of our own (log: $state/dockerd.log)"
  # Shortly after a crash the first attempt can fail, because a dying containerd is taken for a living one.
  for _ in 1 2 3; do
    # The system's PATH: containerd must be the one that belongs to this docker, not the node's.
    (
      drop_descriptors
      exec "${SUDO[@]}" env PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
        setsid dockerd --config-file "$state/daemon.json" -H unix:///var/run/docker.sock
    ) </dev/null >"$state/dockerd.log" 2>&1 &
    daemon=$!
    for _ in $(seq 600); do
      ! docker info >/dev/null 2>&1 || return 0
      kill -0 "$daemon" 2>/dev/null || break
      sleep 0.1
    done
    sleep 1
  done
  tail -n 5 "$state/dockerd.log" >&2
  die "dockerd did not start; its log is $state/dockerd.log"
}

down() {
  local pid
  lock dockerd
  if ! ours; then
    say "there is no docker daemon of ours to stop"
    return 0
  fi
  # The network that kind makes has a bridge on the host, which outlives the daemon.
  docker network rm kind >/dev/null 2>&1 || true
  pid=$(cat "$pidfile")
  "${SUDO[@]}" kill "$pid"
  for _ in $(seq 300); do
    if ! ours; then
      # The namespaces that it keeps mounted would stay for ever.
      unmount_below /run/portcullis-kind
      unmount_below "$state"
      "${SUDO[@]}" rm -rf /run/portcullis-kind
      say "stopped the docker daemon that we had started"
      return 0
    fi
    sleep 0.1
  done
  die "dockerd ($pid) does not stop"
}

case ${1:-} in
up | down | ours) "$1" ;;
*) die "usage: dockerd.sh up|down|ours" ;;
esac
