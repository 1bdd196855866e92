#!/bin/bash
# A Kubernetes of one node, in a network namespace of its own: up.sh IMAGE...
#
# The images come from the store that IMAGE_CLI names (docker). Its kubeconfig is $CLUSTER/kubeconfig;
# its addresses are reached by: nsenter --net=/run/netns/$NETNS. What runs is in $CLUSTER/run/pids,
# and ends with down.sh. The namespace leads nowhere but to the pods.
set -euo pipefail
cd "$(dirname "$0")"
CLUSTER=${CLUSTER:-/var/tmp/ponder-cluster}
NETNS=${NETNS:-ponder-cluster}
KUBECTL=${KUBECTL:-kubectl}
read -ra images <<<"${IMAGE_CLI:-docker}"
bin=$CLUSTER/kbin run=$CLUSTER/run node=172.30.0.1
api=https://$node:26443
within=(nsenter "--net=/run/netns/$NETNS")
export KUBECONFIG=$CLUSTER/kubeconfig

start() {
    local name=$1
    shift
    nohup "${within[@]}" "$@" >"$run/log/$name" 2>&1 </dev/null &
    echo $! >>"$run/pids"
}

# until SECONDS WHAT COMMAND...
until_true() {
    local left=$1 what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((left-- > 0)) || { echo "up.sh: $what: see $run/log" >&2; exit 1; }
        sleep 1
    done
}

network() {
    ip netns add "$NETNS"
    "${within[@]}" ip link set lo up
    "${within[@]}" ip link add node0 type bridge
    "${within[@]}" ip addr add $node/24 dev node0
    "${within[@]}" ip link set node0 up
    "${within[@]}" ip route add default via 172.30.0.254 dev node0
    "${within[@]}" sysctl -qw net.ipv4.ip_forward=1
    "${within[@]}" sysctl -qw net.bridge.bridge-nf-call-iptables=1 2>/dev/null || true
    cat >"$run/cni/10-bridge.conflist" <<END
{"cniVersion": "0.4.0", "name": "bridge", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "$run/ipam"}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
}

access() {
    token=$(openssl rand -hex 16)
    openssl genrsa -out "$run/accounts.key" 2048 2>/dev/null
    (umask 077 && echo "$token,admin,1,\"system:masters\"" >"$run/tokens.csv")
    (umask 077 && cat >"$KUBECONFIG") <<END
apiVersion: v1
kind: Config
clusters: [{name: one-node, cluster: {server: "$api", insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: $token}}]
contexts: [{name: one-node, context: {cluster: one-node, user: admin}}]
current-context: one-node
END
}

# The images outlive the cluster: the next one starts with them.
containers() {
    cat >"$run/containerd.toml" <<END
version = 2
root = "$CLUSTER/containerd"
state = "$run/containerd"
[grpc]
  address = "$run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  enable_unprivileged_ports = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$run/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
END
    start containerd containerd --config "$run/containerd.toml"
    until_true 30 "containerd does not answer" containers_do version
    pause
    local image
    for image in "$@"; do import "$image"; done
}

containers_do() { ctr --address "$run/containerd.sock" --namespace k8s.io "$@"; }

pause() {
    tar -C /usr/bin -c catatonit |
        "${images[@]}" import --change 'ENTRYPOINT ["/catatonit", "-P"]' - localhost/pause:1 >/dev/null
    import pause:1
}

# An image that is there already, by its id, is not copied again; one in whose place it comes goes.
import() {
    local id before there=$CLUSTER/imported/${1//[:\/]/_}
    id=$("${images[@]}" image inspect --format '{{.Id}}' "$1")
    before=$(cat "$there" 2>/dev/null || true)
    if [ "$before" = "$id" ]; then return; fi
    if [ -n "$before" ]; then
        containers_do images rm "localhost/$1" "sha256:${before#sha256:}" &>/dev/null || true
    fi
    rm -f "$there"
    "${images[@]}" tag "$1" "localhost/$1"
    "${images[@]}" save "localhost/$1" | containers_do images import - >/dev/null
    echo "$id" >"$there"
}

control() {
    local etcd=http://127.0.0.1:2379 peers=http://127.0.0.1:2380
    start etcd etcd --data-dir "$run/etcd" --log-level warn \
        --listen-client-urls $etcd --advertise-client-urls $etcd --listen-peer-urls $peers \
        --initial-advertise-peer-urls $peers --initial-cluster default=$peers
    start apiserver "$bin/kube-apiserver" --etcd-servers $etcd --cert-dir "$run/certs" \
        --bind-address $node --advertise-address $node --secure-port 26443 --insecure-port 0 \
        --service-account-issuer https://one-node --service-account-key-file "$run/accounts.key" \
        --service-account-signing-key-file "$run/accounts.key" \
        --service-cluster-ip-range 10.0.0.0/24 --token-auth-file "$run/tokens.csv" \
        --authorization-mode RBAC --kubelet-preferred-address-types InternalIP
    until_true 90 "the API server does not answer" "${within[@]}" "$KUBECTL" get --raw /readyz
    start controllers "$bin/kube-controller-manager" --kubeconfig "$KUBECONFIG" \
        --service-account-private-key-file "$run/accounts.key" --use-service-account-credentials \
        --leader-elect=false --bind-address 127.0.0.1 --port 0
    start scheduler "$bin/kube-scheduler" --kubeconfig "$KUBECONFIG" --leader-elect=false \
        --bind-address 127.0.0.1 --port 0
}

node() {
    start kubelet "$bin/kubelet" --kubeconfig "$KUBECONFIG" --hostname-override node1 \
        --container-runtime remote --container-runtime-endpoint "unix://$run/containerd.sock" \
        --cgroup-driver cgroupfs --fail-swap-on=false --oom-score-adj 0 --eviction-hard "" \
        --root-dir "$run/kubelet" --cert-dir "$run/kubelet-pki" --volume-plugin-dir "$run/plugins" \
        --node-ip $node --address $node --read-only-port 0 --healthz-port 0 --resolv-conf "" \
        --cluster-dns $node --cluster-domain cluster.local --image-gc-high-threshold 100 \
        --authentication-token-webhook=false --anonymous-auth --authorization-mode AlwaysAllow
    start proxy "$bin/kube-proxy" --kubeconfig "$KUBECONFIG" --hostname-override node1 \
        --cluster-cidr 10.88.0.0/16 --bind-address $node --healthz-bind-address 127.0.0.1:10256 \
        --metrics-bind-address 127.0.0.1:10249 --conntrack-max-per-core 0 \
        --conntrack-tcp-timeout-established 0s --conntrack-tcp-timeout-close-wait 0s
}

names() {
    : >"$run/hosts"
    start dns dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts \
        --addn-hosts="$run/hosts" --listen-address=$node --bind-interfaces --user=root \
        --pid-file="$run/dns.pid" --local=/cluster.local/
    start names python3 "$PWD/names.py" $api "$run/tokens.csv" "$run/hosts" "$run/dns.pid"
}

# Nothing makes volumes here: those that a release may claim are folders of this machine.
volumes() {
    local number
    for number in 1 2 3 4; do
        install -d -o 10001 -g 10001 "$run/volumes/$number"
        cat <<END
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: volume-$number}
spec:
  capacity: {storage: 1Ti}
  accessModes: [ReadWriteOnce, ReadWriteMany]
  persistentVolumeReclaimPolicy: Retain
  hostPath: {path: $run/volumes/$number}
END
    done | "${within[@]}" "$KUBECTL" apply -f - >/dev/null
}

[ ! -e "$run" ] || { echo "up.sh: there is $run: run down.sh first" >&2; exit 1; }
mkdir -p "$run/log" "$run/cni" "$CLUSTER/imported"
network
access
containers "$@"
control
node
names
volumes
until_true 90 "the node is not ready" \
    "${within[@]}" "$KUBECTL" wait --for=condition=Ready node/node1 --timeout=1s
echo "up: $("${within[@]}" "$KUBECTL" get node/node1 -o 'jsonpath={.status.nodeInfo.kubeletVersion}')"
