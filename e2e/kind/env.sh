# shellcheck shell=bash
# To be sourced by people and scripts that want kind, kubectl and helm: builds them if need be and puts
# their folder on PATH. With a cluster's name as argument it also sets KUBECONFIG.
#   . e2e/kind/env.sh portcullis-test
_portcullis_kind=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$("$_portcullis_kind/cluster" path):$PATH
export PATH
if [ -n "${1:-}" ]; then
  KUBECONFIG=$("$_portcullis_kind/cluster" kubeconfig "$1")
  export KUBECONFIG
fi
unset _portcullis_kind
