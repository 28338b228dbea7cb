#!/usr/bin/env bash
# binaries.sh clients|node DIRECTORY: build static binaries from Go modules alone into DIRECTORY (their
# versions and hashes are in the three go.mod and go.sum). "clients" is what people and tests call; "node"
# is what goes into the node image. DIRECTORY appears only when all of it is there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=e2e/kind/versions.sh
. "$here/versions.sh"
set_name=$1 target=$2
# The build is kept apart until it is complete, so that an interrupted run leaves nothing half-made.
rm -rf "$target".tmp.*
export CGO_ENABLED=0 GOBIN=$target.tmp.$$ GOFLAGS="-trimpath -buildvcs=false"
mkdir -p "$GOBIN"

# k8s/ is a module of its own because k8s.io/kubernetes needs its own replace lines.
kubernetes() {
  local p=k8s.io/component-base/version minor=${KUBE#v1.}
  cd "$here/k8s"
  go install -ldflags "-s -w -X $p.gitVersion=$KUBE -X $p.gitMajor=1 -X $p.gitMinor=${minor%%.*} -X $p.gitTreeState=clean
    -X $p.gitCommit=unknown -X $p.buildDate=2026-01-01T00:00:00Z" "${@/#/k8s.io/kubernetes/cmd/}"
}
tools() {
  local c=github.com/containerd/containerd/v2 r=sigs.k8s.io/cri-tools
  cd "$here/tools"
  go install -tags "no_aufs no_zfs no_btrfs no_devmapper" -ldflags "-s -w
    -X $c/version.Version=$(go list -m -f '{{.Version}}' $c) -X $r/pkg/version.Version=$(go list -m -f '{{.Version}}' $r)" "$@"
}
helm() {
  local v
  cd "$here/helm"
  v=$(go list -m -f '{{.Version}}' helm.sh/helm/v4)
  go install -ldflags "-s -w -X helm.sh/helm/v4/internal/version.version=$v" tool
}

case $set_name in
clients)
  (tools sigs.k8s.io/kind)
  (kubernetes kubectl)
  (helm)
  ;;
node)
  (tools github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2,ctr} \
    github.com/containernetworking/plugins/plugins/{ipam/host-local,main/loopback,main/ptp,meta/portmap} \
    github.com/coredns/coredns go.etcd.io/etcd/server/v3 sigs.k8s.io/cri-tools/cmd/crictl)
  mv "$GOBIN/server" "$GOBIN/etcd"
  (kubernetes kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubeadm kubectl kubelet)
  gcc -Os -static -s -o "$GOBIN/pause" "$here/pause.c"
  # image.sh wants the files that kind adds to its base image; they are part of kind's module.
  cp -r "$(cd "$here/tools" && go list -m -f '{{.Dir}}' sigs.k8s.io/kind)/images/base/files" "$GOBIN/kind-files"
  chmod -R u+w "$GOBIN/kind-files"
  ;;
*)
  echo "usage: binaries.sh clients|node DIRECTORY" >&2
  exit 2
  ;;
esac
rm -rf "$target"
mv "$GOBIN" "$target"
