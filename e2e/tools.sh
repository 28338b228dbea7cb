#!/usr/bin/env bash
# Installs what the end-to-end tests need beyond Rust into the cache of e2e/kind, each in a folder with its
# version in the name, and only what is missing.
#
#   tools.sh cluster   packages for containers, and kind, kubectl, helm and kubeconform
#   tools.sh clients   the MCP clients that the tests talk with: a Python environment, and Node with its packages
#   tools.sh nextest   cargo-nextest, the test runner
#   tools.sh all       all of these
#   tools.sh env       print export lines that put them to use: eval "$(e2e/tools.sh env)"
set -euo pipefail
# shellcheck source=e2e/kind/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/kind/lib.sh"

MCP_PYTHON=2.3.0 HTTPX=2.16.2
NODE=22.23.3
NODE_PACKAGES=("@modelcontextprotocol/sdk@1.32.2" "@modelcontextprotocol/client@2.4.0" "@modelcontextprotocol/conformance@0.2.0-alpha.12" "oidc-provider@9.13.3")
NEXTEST=0.9.151

PYTHON_DIR=$CACHE/python-mcp-$MCP_PYTHON-httpx2-$HTTPX
NODE_DIR=$CACHE/node-$NODE-$(sha256sum <<<"${NODE_PACKAGES[*]}" | cut -c1-12)
NEXTEST_DIR=$CACHE/nextest-$NEXTEST

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

cluster() {
  [ "${CLUSTER:-}" = existing ] || docker info >/dev/null 2>&1 ||
    packages "[tools]" dockerd:docker.io debootstrap:debootstrap jq:jq iptables:iptables gcc:gcc
  "$KIND_DIR/cluster" path >/dev/null
}

clients() {
  lock clients
  python_client
  node_clients
}

python_client() {
  [ ! -x "$PYTHON_DIR/bin/python" ] || return 0
  packages "[tools]" python3:python3
  python3 -c 'import ensurepip, venv' 2>/dev/null || packages "[tools]" ensurepip:python3-venv
  # The environment holds its own path, so it is made in place; the interpreter's link appears last.
  rm -rf "$PYTHON_DIR"
  # shellcheck disable=SC2016 # The inner shell expands these.
  step "[tools] making a Python environment with the MCP client $MCP_PYTHON" python bash -euc '
    python3 -m venv "$1"
    mv "$1/bin/python" "$1/bin/python.pending"
    "$1/bin/python.pending" -m pip install -q --disable-pip-version-check "$2" "$3"
    mv "$1/bin/python.pending" "$1/bin/python"' \
    python "$PYTHON_DIR" "mcp==$MCP_PYTHON" "httpx2==$HTTPX"
}

node_clients() {
  local arch
  [ ! -d "$NODE_DIR" ] || return 0
  have npm || packages "[tools]" npm:npm
  case $(uname -m) in
  x86_64) arch=x64 ;;
  aarch64) arch=arm64 ;;
  *) die "there is no Node package for $(uname -m)" ;;
  esac
  rm -rf "$NODE_DIR".tmp.*
  mkdir -p "$NODE_DIR.tmp.$$"
  # The conformance suite needs Node 22. The package with the bare binary needs no install script; "npm install
  # node" would run one. The engines check would look at the Node that runs npm.
  step "[tools] fetching Node $NODE and the MCP packages" node \
    npm install --prefix "$NODE_DIR.tmp.$$" --no-fund --no-audit --ignore-scripts --engine-strict=false \
    "node-linux-$arch@$NODE" "${NODE_PACKAGES[@]}"
  ln -s "node_modules/node-linux-$arch/bin" "$NODE_DIR.tmp.$$/bin"
  "$NODE_DIR.tmp.$$/bin/node" --version >/dev/null
  mv "$NODE_DIR.tmp.$$" "$NODE_DIR"
}

nextest() {
  [ ! -x "$NEXTEST_DIR/bin/cargo-nextest" ] || return 0
  # Whoever has it already needs no second one.
  ! cargo nextest --version >/dev/null 2>&1 || return 0
  lock nextest
  [ ! -x "$NEXTEST_DIR/bin/cargo-nextest" ] || return 0
  rm -rf "$NEXTEST_DIR".tmp.*
  # It only starts processes, so it is built quickly rather than for speed. The build folder survives an
  # interruption; a repeated run goes on where the last one stopped.
  step "[tools] building cargo-nextest $NEXTEST (about 5 minutes, once)" nextest \
    env -u RUSTFLAGS CARGO_TARGET_DIR="$CACHE/nextest-build" \
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_STRIP=symbols \
    cargo install --locked cargo-nextest --version "$NEXTEST" --no-default-features --features default-no-update \
    --root "$NEXTEST_DIR.tmp.$$"
  mv "$NEXTEST_DIR.tmp.$$" "$NEXTEST_DIR"
  rm -rf "$CACHE/nextest-build"
}

environment() {
  local path=$CLIENTS
  [ ! -x "$NEXTEST_DIR/bin/cargo-nextest" ] || path=$path:$NEXTEST_DIR/bin
  # shellcheck disable=SC2016 # The reader's shell expands it.
  printf 'export PATH=%q:"$PATH"\n' "$path"
  printf 'export PORTCULLIS_E2E_PYTHON=%q\n' "$PYTHON_DIR/bin/python"
  printf 'export PORTCULLIS_E2E_NODE=%q\n' "$NODE_DIR/bin/node"
  printf 'export PORTCULLIS_E2E_NODE_MODULES=%q\n' "$NODE_DIR/node_modules"
}

case ${1:-help} in
cluster | clients | nextest) "$1" ;;
all)
  cluster
  clients
  nextest
  ;;
env) environment ;;
help | -h | --help) usage ;;
*)
  usage >&2
  exit 2
  ;;
esac
