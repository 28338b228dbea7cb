#!/usr/bin/env bash
# image.sh NODE_BINARIES ROOTFS IMAGE: the control plane's images and from them the node image IMAGE, with a
# running docker daemon. IMAGE gets its name only when it is complete.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=e2e/kind/versions.sh
. "$here/versions.sh"
bin=$1 rootfs=$2 image=$3
sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo)
container=
work=$(mktemp -d "${bin%/*/*}/image.tmp.XXXXXX")
cleanup() {
  [ -z "$container" ] || docker rm -f "$container" >/dev/null || true
  "${sudo[@]}" rm -rf "$work"
}
trap cleanup EXIT

tags=()
# img TAG FILE PATH [ROOT] [CHANGE]: an image of one layer with one static binary, on top of ROOT if given.
img() {
  local d=$work/img
  "${sudo[@]}" rm -rf "$d"
  mkdir -p "$d"
  [ -z "${4:-}" ] || "${sudo[@]}" cp -a "$4/." "$d/"
  "${sudo[@]}" install -D "$2" "$d$3"
  "${sudo[@]}" tar -C "$d" -c . |
    docker import --change "ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" ${5:+--change "$5"} - "$1" >/dev/null
  tags+=("$1")
}
for c in kube-apiserver kube-controller-manager kube-scheduler; do
  img "$REGISTRY/$c:$KUBE" "$bin/$c" "/usr/local/bin/$c"
done
img "$REGISTRY/kube-proxy:$KUBE" "$bin/kube-proxy" /usr/local/bin/kube-proxy "$rootfs/netroot"
img "$REGISTRY/etcd:$ETCD" "$bin/etcd" /usr/local/bin/etcd
img "$REGISTRY/coredns/coredns:$COREDNS" "$bin/coredns" /coredns "" 'ENTRYPOINT ["/coredns"]'
img "$REGISTRY/pause:$PAUSE" "$bin/pause" /pause "" 'ENTRYPOINT ["/pause"]'
img portcullis-kind/netd:1 "$here/netd.sh" /netd.sh "$rootfs/netroot" 'ENTRYPOINT ["/bin/sh","/netd.sh"]'
docker save -o "$work/images.tar" "${tags[@]}"

node=$work/node
mkdir -p "$node/manifests" "$node/bin"
cp -r "$bin/kind-files" "$node/files"
cp "$here/default-cni.yaml" "$here/default-storage.yaml" "$node/manifests/"
# Only these: the builder sends the whole context to the daemon.
for b in kubeadm kubelet kubectl containerd ctr containerd-shim-runc-v2 crictl host-local loopback ptp portmap; do
  cp -l "$bin/$b" "$node/bin/" 2>/dev/null || cp "$bin/$b" "$node/bin/"
done
"${sudo[@]}" tar -C "$rootfs/rootfs" -c . | docker import - portcullis-kind/rootfs:build >/dev/null
# The classic builder: it needs neither buildx nor a frontend image.
DOCKER_BUILDKIT=0 docker build -q --network none --build-arg "KUBE_VERSION=$KUBE" --build-arg "PAUSE=$REGISTRY/pause:$PAUSE" \
  -t portcullis-kind/nodebase:build -f "$here/node.Dockerfile" "$node"
# As "kind build node-image" does: blobs into containerd's store, unpacked when first used. Commit rather
# than COPY, so that no second copy of the tar stays in a layer.
container=$(docker run -d --network none --security-opt seccomp=unconfined -v "$work/images.tar:/images.tar:ro" \
  --entrypoint containerd portcullis-kind/nodebase:build)
for _ in $(seq 100); do
  docker exec "$container" ctr version >/dev/null 2>&1 && break
  sleep 0.2
done
docker exec "$container" ctr -n k8s.io images import --label=io.cri-containerd.pinned=pinned --all-platforms --no-unpack /images.tar
docker exec "$container" ctr -n k8s.io images ls -q | grep -v ^sha256
docker stop -t 10 "$container" >/dev/null
docker commit --change 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]' "$container" "$image" >/dev/null
# The parts are layers of the node image or packed in it; their names are of no more use.
docker rm -f "$container" >/dev/null
container=
docker rmi "${tags[@]}" portcullis-kind/nodebase:build portcullis-kind/rootfs:build >/dev/null || true
docker image ls "$image"
