# The kind node image less the container images. The context is a staging directory with:
# files (kind's images/base/files), bin, manifests.
FROM portcullis-kind/rootfs:build
COPY files/ /
COPY bin/kubeadm bin/kubelet bin/kubectl /usr/bin/
COPY bin/containerd bin/ctr bin/containerd-shim-runc-v2 bin/crictl /usr/local/bin/
COPY bin/host-local bin/loopback bin/ptp bin/portmap /opt/cni/bin/
COPY manifests/ /kind/manifests/
ARG KUBE_VERSION
ARG PAUSE
RUN chmod 0755 /usr/local/bin/* /kind /kind/bin /kind/bin/* && mkdir -p /etc/kubernetes/manifests /LICENSES \
 && systemctl enable kubelet.service containerd.service undo-mount-hacks.service \
 && systemctl mask systemd-binfmt.service \
 && printf %s "$KUBE_VERSION" >/kind/version \
 # without CAP_SYS_RESOURCE nobody may lower oom_score_adj; the sandbox image is the one we made
 && sed -i -e 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' \
           -e "s#sandbox_image = .*#sandbox_image = \"$PAUSE\"#" /etc/containerd/config.toml \
 && ctr oci spec | jq '.hooks.createContainer |= . + [{"path": "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
    >/etc/containerd/cri-base.json
ENV container=docker
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]
