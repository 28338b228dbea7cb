#!/usr/bin/env bash
# A cluster with Portcullis and a server to play with, from nothing (just up). Can be interrupted and repeated;
# a second run brings the newest build onto the same cluster. IMAGE=repository:tag installs that image instead
# of building one (for CLUSTER=existing, whose nodes must be able to pull it). down.sh undoes it all.
set -euo pipefail
# shellcheck source=e2e/kind/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/kind/lib.sh"
cd "$REPO_DIR"
cluster=portcullis-dev
namespace=agents
server=ops
dev=target/dev
began=$SECONDS

lock up
say "[up 1/6] tools"
e2e/tools.sh cluster
e2e/tools.sh clients
eval "$(e2e/tools.sh env)"

say "[up 2/6] cluster"
e2e/kind/cluster up "$cluster"
KUBECONFIG=$(e2e/kind/cluster kubeconfig "$cluster")
export KUBECONFIG

say "[up 3/6] image"
[ -n "${IMAGE:-}" ] || e2e/image.sh dev >/dev/null

say "[up 4/6] the operator, by Helm"
e2e/install.sh "$cluster"

say "[up 5/6] the server \"$server\" in namespace \"$namespace\", with keys for a viewer and an admin"
# The label tells down.sh that the namespace is ours.
if ! kubectl get namespace "$namespace" >/dev/null 2>&1; then
  kubectl create namespace "$namespace" >/dev/null
  kubectl label namespace "$namespace" app.kubernetes.io/managed-by=just-up >/dev/null
fi
kubectl label namespace "$namespace" portcullis.dev/servers=local --overwrite >/dev/null
# The operator's admission policies take a moment until the API server knows them.
for attempt in $(seq 10); do
  kubectl -n "$namespace" apply -f manifests/samples/quickstart.yaml -f manifests/samples/workload.yaml >&2 && break
  [ "$attempt" != 10 ] || die "the samples could not be applied"
  sleep 1
done
kubectl -n "$namespace" apply -f - >&2 <<Y
apiVersion: v1
kind: Service
metadata: {name: $server-dev}
spec:
  type: NodePort
  selector: {portcullis.dev/server: $server}
  ports: [{name: https, port: 443, targetPort: https, nodePort: 30080}]
Y
# shellcheck disable=SC2016 # The inner shell expands these.
step "         waiting until the server and the keys are ready" ready bash -euc '
  kubectl -n "$1" wait "mcpserver/$2" --for=condition=Ready --timeout=180s &&
    kubectl -n "$1" wait mcpapikey/viewer mcpapikey/admin --for=condition=Ready --timeout=60s || {
    kubectl -n "$1" get mcpservers,mcpapikeys,pods
    kubectl -n "$1" get "mcpserver/$2" -o "jsonpath={.status.conditions}"
    exit 1
  }' ready "$namespace" "$server"

say "[up 6/6] a first call"
secret() { kubectl -n "$namespace" get secret "$1" -o "go-template={{index .data \"$2\" | base64decode}}"; }
key() {
  local name
  name=$(kubectl -n "$namespace" get mcpapikey "$1" -o 'jsonpath={.status.secretRef.name}')
  secret "${name:-$1-mcp-key}" api-key
}
umask 077
mkdir -p "$dev"
secret "$server-mcp-tls" ca.crt >"$dev/ca.crt.tmp"
mv "$dev/ca.crt.tmp" "$dev/ca.crt"
port=$(e2e/kind/cluster nodeport "$cluster" 30080)
url=https://localhost:$port
PORTCULLIS_ADMIN_KEY=$(key admin)
viewer=$(key viewer)
export PORTCULLIS_ADMIN_KEY
{
  printf 'export KUBECONFIG=%q\n' "$KUBECONFIG"
  printf 'export PORTCULLIS_URL=%q\n' "$url"
  printf 'export PORTCULLIS_CA=%q\n' "$REPO_DIR/$dev/ca.crt"
  printf 'export PORTCULLIS_ADMIN_KEY=%q\n' "$PORTCULLIS_ADMIN_KEY"
  printf 'export PORTCULLIS_VIEWER_KEY=%q\n' "$viewer"
  printf 'export PORTCULLIS_NAMESPACE=%q\n' "$namespace"
  printf 'export PORTCULLIS_SERVER=%q\n' "$server"
} >"$dev/env.tmp"
mv "$dev/env.tmp" "$dev/env"

call() { # KEY TOOL ARGUMENTS: the answer, and whether there was one that is no error
  "$PORTCULLIS_E2E_PYTHON" e2e/clients/call.py "$url" "$dev/ca.crt" "$@" 2>"$dev/call.log"
}
export PORTCULLIS_VIEWER_KEY=$viewer
# A NodePort answers about a second after its pods are ready.
for attempt in $(seq 15); do
  answer=$(call @PORTCULLIS_VIEWER_KEY pods_list "{\"namespace\": \"$namespace\"}") && break
  if [ "$attempt" = 15 ]; then
    cat "$dev/call.log" >&2
    printf '%s\n' "${answer:-}" >&2
    die "the server at $url gave no good answer to pods_list"
  fi
  sleep 1
done
scale="{\"namespace\": \"$namespace\", \"name\": \"web\", \"replicas\": 3}"
call @PORTCULLIS_ADMIN_KEY deployments_scale "$scale" >/dev/null || die "the admin could not scale: $(cat "$dev/call.log")"
if call @PORTCULLIS_VIEWER_KEY deployments_scale "$scale" >/dev/null; then die "the viewer could scale"; fi
rm -f "$dev/call.log"
printf '%s\n' "$answer"
say "
Portcullis is up ($((SECONDS - began)) s); the answer above is pods_list of namespace $namespace, called as viewer.
The admin has scaled Deployment web to 3; the viewer was refused when it tried the same.

  URL          $url/mcp  (legacy clients: $url/sse)
  settings     . $dev/env
  call again   . $dev/env && $PORTCULLIS_E2E_PYTHON e2e/clients/call.py \"\$PORTCULLIS_URL\" \"\$PORTCULLIS_CA\" @PORTCULLIS_VIEWER_KEY pods_list '{\"namespace\": \"$namespace\"}'
  objects      KUBECONFIG=$KUBECONFIG $CLIENTS/kubectl get mcp -n $namespace
  take down    just down"
