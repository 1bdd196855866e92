#!/bin/bash
# Ends what up.sh started, and only that; then its mounts, cgroups and network namespaces.
# The binaries and the images stay in $CLUSTER for the next time.
set -uo pipefail
CLUSTER=${CLUSTER:-/var/tmp/ponder-cluster}
NETNS=${NETNS:-ponder-cluster}
KUBECTL=${KUBECTL:-kubectl}
run=$CLUSTER/run
within=(nsenter "--net=/run/netns/$NETNS")
export KUBECONFIG=$CLUSTER/kubeconfig

sandboxes() { ip netns list | awk '/^cni-/ {print $1}'; }

# First, while there is somebody to end them: a containerd that is killed leaves its pods behind.
workloads() {
    "${within[@]}" "$KUBECTL" delete deployments,statefulsets,jobs,pods --all --all-namespaces \
        --grace-period=1 --timeout=60s
    for _ in {1..30}; do
        [ -n "$(sandboxes)" ] || return 0
        sleep 1
    done
}

processes() {
    tac "$run/pids" | while read -r pid; do kill "$pid"; done
    for _ in {1..10}; do
        [ -n "$(ip netns pids "$NETNS")" ] || return 0
        sleep 1
    done
    ip netns pids "$NETNS" | xargs -r kill -9
    sleep 1
}

leftovers() {
    local name
    for name in $(sandboxes); do
        ip netns pids "$name" | xargs -r kill -9
        ip netns del "$name"
    done
    awk -v under="$run/" 'index($2, under) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount -l
    sleep 1
    find /sys/fs/cgroup -depth -type d -path '*kubepods*' -exec rmdir {} \;
    ip netns del "$NETNS"
}

[ -e "$run" ] || exit 0
{
    workloads
    processes
    leftovers
} >"$CLUSTER/down.log" 2>&1
rm -rf "$run" "$KUBECONFIG"
