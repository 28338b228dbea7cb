#!/usr/bin/env bash
# Writes manifests/install.yaml, the chart as plain manifests for those who do not use Helm.
#
#   render.sh           write it
#   render.sh --check   fail when what is checked in is not what the chart makes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
file=manifests/install.yaml
namespace=portcullis-system

command -v helm >/dev/null || {
  echo "helm is missing, so $file can be neither written nor checked: https://helm.sh (or e2e/tools.sh cluster)" >&2
  exit 1
}

render() {
  cat <<Y
# The chart as plain manifests, made by charts/render.sh; edit the chart instead.
# kubectl apply --server-side -f $file
apiVersion: v1
kind: Namespace
metadata:
  name: $namespace
  labels:
    pod-security.kubernetes.io/enforce: restricted
Y
  helm template portcullis charts/portcullis --namespace "$namespace" --skip-tests --kube-version 1.33.0
}

fresh=$(mktemp)
trap 'rm -f "$fresh"' EXIT
render >"$fresh"
case ${1:-} in
"")
  mkdir -p "${file%/*}"
  cp "$fresh" "$file"
  chmod 0644 "$file"
  ;;
--check)
  helm lint --quiet charts/portcullis
  diff -u --label "$file" --label "$file (rendered)" "$file" "$fresh" || {
    echo "$file is out of date; run charts/render.sh" >&2
    exit 1
  }
  ;;
*)
  sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
  ;;
esac
