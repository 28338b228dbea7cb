#!/usr/bin/env bash
# Undoes up.sh (just down): the cluster and its files go, and the docker daemon that we started, if no other
# cluster needs it. On an existing cluster (CLUSTER=existing) what up.sh installed there goes.
set -euo pipefail
# shellcheck source=e2e/kind/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/kind/lib.sh"
cd "$REPO_DIR"

lock up
if [ "${CLUSTER:-}" = existing ]; then
  PATH=$(e2e/kind/cluster path):$PATH
  # The servers go before the operator, which has finalizers to take away.
  kubectl -n agents delete -f manifests/samples/quickstart.yaml --ignore-not-found --timeout=60s >&2 || true
  kubectl -n agents delete service ops-dev --ignore-not-found >&2
  helm uninstall portcullis --namespace portcullis-system --ignore-not-found --wait >&2
  # Only the namespace that up.sh made has this label.
  kubectl delete namespace -l app.kubernetes.io/managed-by=just-up >&2
  rm -rf target/dev
  exit 0
fi
e2e/kind/cluster down portcullis-dev
rm -rf target/dev
rmdir target/clusters 2>/dev/null || true
e2e/kind/cluster idle
say "nothing is left of portcullis-dev but the build cache, $CACHE ($(du -sh "$CACHE" 2>/dev/null | cut -f1)); \"just purge\" removes it too"
