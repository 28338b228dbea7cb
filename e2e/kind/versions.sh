# shellcheck shell=bash disable=SC2034
# What kubeadm v1.36.3 and kind v0.33.0 ask for, exactly ("kubeadm config images list", kind's base
# Dockerfile); change together with k8s/go.mod, tools/go.mod and helm/go.mod.
KUBE=v1.36.3
COREDNS=v1.14.2
ETCD=3.6.8-0
PAUSE=3.10.2
REGISTRY=registry.k8s.io
# The node image that kind v0.33.0 uses when it is not told otherwise.
STOCK_IMAGE=kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5
