#!/bin/bash
# A release's life in a real cluster: the one that KUBECONFIG names, or else a Kubernetes of one node
# that is built and run here, for which this has to be root on Debian. See docs/deploy.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
checks=(.venv/bin/pytest --durations=0 deploy/cluster/checks)

if [ -n "${KUBECONFIG:-}" ]; then
    .venv/bin/python scripts/chart_tools.py >/dev/null
    exec "${checks[@]}"
fi

packages=(golang-1.19-go rsync make dpkg-dev etcd-server containerd runc containernetworking-plugins
    iptables conntrack dnsmasq-base iproute2 openssl catatonit)
fail() { echo "run.sh: $1" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "a cluster of its own needs root; KUBECONFIG names another"
dpkg-query -W "${packages[@]}" >/dev/null || fail "apt-get install ${packages[*]}"
if [ -z "${IMAGE_BUILD:-}" ] && ! docker info &>/dev/null; then
    settings=$(deploy/image/offline-base.sh)
    eval "$settings"
fi

export CLUSTER=${CLUSTER:-/var/tmp/ponder-cluster} NETNS=${NETNS:-ponder-cluster}
helm=$(.venv/bin/python scripts/chart_tools.py)
KUBECTL=$(command -v kubectl || echo "$(dirname "$helm")/kubectl")
export KUBECTL
read -ra build <<<"${IMAGE_BUILD:-docker build}"

deploy/cluster/build.sh
deploy/image/build.sh gateway cpu trainer
"${build[@]}" --tag ponder-valkey:test deploy/cluster/valkey
deploy/cluster/down.sh
trap deploy/cluster/down.sh EXIT
deploy/cluster/up.sh ponder-gateway:test ponder-cpu:test ponder-trainer:test ponder-valkey:test
export KUBECONFIG=$CLUSTER/kubeconfig HELM_ARGS="--values=deploy/cluster/images.yaml ${HELM_ARGS:-}"
nsenter "--net=/run/netns/$NETNS" "${checks[@]}"
