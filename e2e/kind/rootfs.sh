#!/usr/bin/env bash
# rootfs.sh DIRECTORY: the Debian bookworm root file system of the node (DIRECTORY/rootfs), and the small one
# of the network images (DIRECTORY/netroot). As root. DIRECTORY appears only when all of it is there.
# Bookworm on purpose: its systemd 252 still boots on a host with cgroup v1; trixie's 257 refuses unless the
# kernel command line says otherwise, and kind fixes the arguments of PID 1.
set -euo pipefail
target=$1
# The caller has already cleared what an interrupted run left.
out=$target.tmp.$$
mkdir -p "$out"

# The packages of kind's images/base/Dockerfile without the storage clients, plus runc.
pkgs=systemd,systemd-sysv,dbus,conntrack,iptables,nftables,iproute2,ethtool,util-linux,mount,kmod
pkgs+=,libseccomp2,pigz,e2fsprogs,bash,ca-certificates,curl,jq,procps,socat,runc,busybox-static,ipset
r=$out/rootfs
debootstrap --variant=minbase --include="$pkgs" bookworm "$r"

# What kind's Dockerfile does after apt: nothing of systemd starts but what we enable.
rm -f "$r"/lib/systemd/system/multi-user.target.wants/* "$r"/etc/systemd/system/*.wants/* \
  "$r"/lib/systemd/system/local-fs.target.wants/* "$r"/lib/systemd/system/basic.target.wants/* \
  "$r"/lib/systemd/system/sockets.target.wants/*udev* "$r"/lib/systemd/system/sockets.target.wants/*initctl* \
  "$r"/lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service
echo ReadKMsg=no >>"$r/etc/systemd/journald.conf"
rm -rf "$r"/var/cache/apt/archives/*.deb "$r"/var/lib/apt/lists/* "$r"/usr/share/{doc,man,locale,info}/*

# The network images (kube-proxy, netd): busybox (it has ip), iptables, conntrack and the libraries they load.
n=$out/netroot
libs=usr/lib/$(dpkg --print-architecture | sed 's/amd64/x86_64/; s/arm64/aarch64/')-linux-gnu
mkdir -p "$n"/usr/{bin,sbin,lib64} "$n/$libs" "$n"/{etc,tmp,run,proc,sys,var}
for d in bin sbin lib lib64; do ln -s "usr/$d" "$n/$d"; done
cp "$r/bin/busybox" "$n/bin/"
for a in $("$r/bin/busybox" --list); do [ -e "$n/bin/$a" ] || ln -s busybox "$n/bin/$a"; done
cp "$r"/usr/sbin/{xtables-nft-multi,conntrack,ipset,nft} "$n/usr/sbin/"
for a in iptables ip6tables; do for s in "" -save -restore; do ln -s xtables-nft-multi "$n/usr/sbin/$a$s"; done; done
cp -a "$r/$libs/xtables" "$n/$libs/"
(cd "$n" && find usr/sbin "$libs/xtables" -type f) | while read -r b; do
  chroot "$r" ldd "/$b" 2>/dev/null || true
done | awk '$2=="=>"{print $3} $1~/^\/lib/{print $1}' | sort -u | while read -r l; do
  cp -L "$r$l" "$n$l"
done
cp "$r/etc/protocols" "$r/etc/services" "$n/etc/" 2>/dev/null || true
du -sh "$r" "$n"
rm -rf "$target"
mv "$out" "$target"
