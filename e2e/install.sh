#!/usr/bin/env bash
# install.sh CLUSTER: brings the image of e2e/image.sh onto the nodes of the cluster and installs or upgrades
# the chart with it in namespace portcullis-system. IMAGE=repository:tag installs that image instead, which the
# nodes must be able to pull. Further arguments go to Helm.
set -euo pipefail
# shellcheck source=e2e/kind/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/kind/lib.sh"
cd "$REPO_DIR"
cluster=${1:?"usage: install.sh CLUSTER [HELM ARGUMENT...]"}
shift
system=portcullis-system
PATH=$(e2e/kind/cluster path):$PATH
KUBECONFIG=$(e2e/kind/cluster kubeconfig "$cluster")
export KUBECONFIG

lock "install-$cluster"
if [ -n "${IMAGE:-}" ]; then
  repository=${IMAGE%:*} tag=${IMAGE##*:} pull=IfNotPresent
  say "using $IMAGE"
else
  repository=localhost/portcullis pull=Never
  # The tag that changes with the contents makes Kubernetes replace the pods of an earlier build.
  tag=$(docker image inspect -f '{{.Id}}' "$repository:dev") || die "there is no image $repository:dev; \"just image\" makes it"
  tag=${tag#sha256:}
  tag=dev-${tag:0:12}
  # Samples and tests name the plain tag.
  e2e/kind/cluster load "$cluster" "$repository:dev"
  e2e/kind/cluster load "$cluster" "$repository:$tag"
fi

# An interrupted Helm leaves its release "pending" and refuses to go on.
for status in pending-install pending-upgrade pending-rollback; do
  kubectl -n "$system" delete secret -l "owner=helm,name=portcullis,status=$status" --ignore-not-found >/dev/null
done
step "helm upgrade --install portcullis charts/portcullis (until the operator is ready)" helm \
  helm upgrade --install portcullis charts/portcullis --namespace "$system" --create-namespace \
  --set "image.repository=$repository" --set "image.tag=$tag" --set "image.pullPolicy=$pull" --wait --timeout 3m "$@"
