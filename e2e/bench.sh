#!/usr/bin/env bash
# bench.sh: measures what README's table says and writes it there (just bench).
#
# The endpoint is the binary of the release image, by `serve --from`, with TLS, key, role check and audit on; the load generator
# (wrk, HTTP/1.1 over TLS) runs beside it on the same machine. "Trivial call" is tools/call of namespaces_list,
# which asks no API server. The baseline in the same run is the refusal of a request without a key: TLS, HTTP and
# one audit record gathered, and no tool. Apply to Ready is measured on the cluster of the end-to-end tests.
set -euo pipefail
# shellcheck source=e2e/kind/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/kind/lib.sh"
cd "$REPO_DIR"
command -v wrk >/dev/null || apt-get install -y --no-install-recommends wrk >/dev/null

say "[bench 1/4] release build (fat link-time optimization: several minutes when cold)"
# The very binary of the image that is shipped.
PROFILE=release e2e/image.sh bench >/dev/null
binary=$PWD/target/$(rustc -vV | sed -n 's/^host: //p')/release/portcullis

work=$(mktemp -d)
server=
cleanup() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
mkdir "$work/policy"
cat >"$work/policy/policy.yaml" <<'Y'
{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {name: bench, namespace: bench}, spec: {}}
---
{apiVersion: portcullis.dev/v1alpha1, kind: McpRole, metadata: {name: reader, namespace: bench}, spec: {permissions: ["k8s:namespaces:list", "k8s:pods:list"]}}
---
{apiVersion: portcullis.dev/v1alpha1, kind: McpApiKey, metadata: {name: me, namespace: bench}, spec: {identity: me, servers: [bench], roles: [{name: reader}]}}
Y
cluster=portcullis-test
KUBECONFIG=$(e2e/kind/cluster kubeconfig "$cluster")
export KUBECONFIG
PATH=$(e2e/kind/cluster path):$PATH
port=$((20000 + RANDOM % 20000))
url=https://127.0.0.1:$port/mcp

call() { # KEY: a request of the current revision, the answer's status code
  curl -sk -o /dev/null -w '%{http_code}' -X POST "$url" -H "x-api-key: $1" -H 'content-type: application/json' \
    -H 'accept: application/json, text/event-stream' -H 'mcp-protocol-version: 2026-07-28' \
    -H 'mcp-method: tools/call' -H 'mcp-name: namespaces_list' -d "$body"
}
body='{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"namespaces_list","arguments":{},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}'

say "[bench 2/4] start, memory, calls"
start() {
  MIMALLOC_ARENA_EAGER_COMMIT=0 RUST_LOG=warn "$binary" serve --from "$work/policy" --listen "127.0.0.1:$port" \
    --admin-listen 127.0.0.1:0 >"$work/log" 2>&1 &
  server=$!
}
start
until [ -s "$work/policy/.portcullis/keys/me" ] && key=$(cat "$work/policy/.portcullis/keys/me") && [ "$(call "$key")" = 200 ]; do
  kill -0 "$server" 2>/dev/null || die "the server ended: $(cat "$work/log")"
  sleep 0.05
done
kill "$server"
wait "$server" 2>/dev/null || true
began=$(date +%s%N)
start
until [ "$(call "$key")" = 200 ]; do sleep 0.005; done
first=$((($(date +%s%N) - began) / 1000000))
sleep 5
idle=$(awk '/^VmRSS/ {printf "%.1f", $2 / 1024}' "/proc/$server/status")

lua() { # KEY
  cat <<L
wrk.method = "POST"
wrk.body = [[$body]]
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Accept"] = "application/json, text/event-stream"
wrk.headers["MCP-Protocol-Version"] = "2026-07-28"
wrk.headers["Mcp-Method"] = "tools/call"
wrk.headers["Mcp-Name"] = "namespaces_list"
L
  [ -z "$1" ] || printf 'wrk.headers["X-API-Key"] = "%s"\n' "$1"
}
lua "$key" >"$work/call.lua"
lua "" >"$work/refused.lua"
load() { # SCRIPT CLIENTS: requests per second and p99
  wrk -t1 -c"$2" -d8s --latency -s "$1" "$url" >"$work/wrk"
  awk '/Requests\/sec/ {r = $2} /99%/ {p = $2} END {printf "%.0f %s", r, p}' "$work/wrk"
}
load "$work/call.lua" 16 >/dev/null
read -r one one99 <<<"$(load "$work/call.lua" 1)"
grep -q 'Non-2xx' "$work/wrk" && die "not every call succeeded"
read -r many many99 <<<"$(load "$work/call.lua" 64)"
grep -q 'Non-2xx' "$work/wrk" && die "not every call succeeded"
busy=$(awk '/^VmRSS/ {printf "%.1f", $2 / 1024}' "/proc/$server/status")
read -r refused _ <<<"$(load "$work/refused.lua" 64)"
kill "$server"
wait "$server" 2>/dev/null || true
server=

say "[bench 3/4] apply to Ready for 1 and for 30 servers"
namespace=bench-$RANDOM
ready() { # COUNT: seconds from apply to the last server Ready
  local i manifests=
  kubectl create namespace "$namespace-$1" >/dev/null
  kubectl label namespace "$namespace-$1" portcullis.dev/servers=local >/dev/null
  for i in $(seq "$1"); do
    manifests+="---
{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {name: s$i}, spec: {}}
"
  done
  local began=$EPOCHREALTIME
  kubectl -n "$namespace-$1" apply -f - <<<"$manifests" >/dev/null
  kubectl -n "$namespace-$1" wait mcpservers --all --for=condition=Ready --timeout=300s >/dev/null
  awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN {printf "%.1f", b - a}'
  kubectl delete namespace "$namespace-$1" --wait=true >/dev/null
}
ready1=$(ready 1)
ready30=$(ready 30)

say "[bench 4/4] the table in README.md"
size=$(docker image inspect -f '{{.Size}}' localhost/portcullis:bench)
table=$(
  cat <<T
| What | Figure |
|---|---|
| start to first answer | $first ms |
| memory idle, and after the load below | $idle MiB, $busy MiB |
| trivial \`tools/call\`, 1 client | $one/s, p99 $one99 |
| trivial \`tools/call\`, 64 clients | $many/s, p99 $many99 |
| the same against a request refused for want of a key (baseline of the same run) | $(awk -v a="$many" -v b="$refused" 'BEGIN {printf "%.2f", a / b}') of $refused/s |
| apply to Ready, 1 server | $ready1 s |
| apply to Ready, 30 servers at once | $ready30 s |
| image | $(awk -v s="$size" 'BEGIN {printf "%.1f", s / 1048576}') MiB |

Measured on $(nproc) cores ($(uname -m)) with the load generator and the cluster beside, on $(date +%F), by \`just bench\`.
T
)
printf '%s\n' "$table"
awk -v table="$table" '/<!-- bench -->/ {print; print table; skip = 1} /<!-- \/bench -->/ {skip = 0} !skip && !/<!-- bench -->/' \
  README.md >"$work/README.md"
cp "$work/README.md" README.md
