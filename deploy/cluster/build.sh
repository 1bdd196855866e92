#!/bin/bash
# Builds Kubernetes 1.20.2, the newest that Debian's own Go compiles, from Debian's source package:
# several minutes of a core, offline but for the source. The binaries stay in $CLUSTER/kbin.
set -euo pipefail
CLUSTER=${CLUSTER:-/var/tmp/ponder-cluster}
version=1.20.2
parts=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy)

built() { for part in "${parts[@]}"; do [ -x "$CLUSTER/kbin/$part" ] || return 1; done; }

# apt's own settings stay as they are: the sources are looked up in a list beside them.
source_package() {
    mkdir -p "$CLUSTER/apt/lists/partial" "$CLUSTER/src"
    local from=(/etc/apt/sources.list.d/debian.sources) to=$CLUSTER/apt/sources.sources
    if [ -e "${from[0]}" ]; then
        sed "s/^Types:.*/Types: deb-src/" "${from[0]}" > "$to"
    else
        to=$CLUSTER/apt/sources.list
        sed -n 's/^deb \(.*debian.*\)/deb-src \1/p' /etc/apt/sources.list > "$to"
    fi
    local apt=(apt-get -q -o "Dir::Etc::SourceList=$to" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$CLUSTER/apt/lists" -o APT::Sandbox::User=root)
    "${apt[@]}" update
    (cd "$CLUSTER/src" && "${apt[@]}" source --download-only kubernetes)
}

built && exit
src=$CLUSTER/src/kubernetes-$version
if [ ! -e "$src/vendor" ]; then
    source_package
    mkdir -p "$src"
    tar -xf "$CLUSTER"/src/kubernetes_*.orig.tar.* -C "$src" --strip-components=1
fi
cd "$src"
export PATH=/usr/lib/go-1.19/bin:$PATH GOPATH=$src/.go HOME=$CLUSTER/home CGO_ENABLED=0
# Without what cloud providers need, which is half of it
export GOPROXY=off GOFLAGS="-mod=vendor -tags=providerless" GOTOOLCHAIN=local
mkdir -p "$HOME" .go/src/k8s.io "$CLUSTER/kbin"
[ -L .go/src/k8s.io/kubernetes ] || ln -s ../../.. .go/src/k8s.io/kubernetes
make WHAT="${parts[*]/#/cmd/}"
for part in "${parts[@]}"; do install "_output/bin/$part" "$CLUSTER/kbin/"; done
built && rm -rf "$CLUSTER/src" "$CLUSTER/apt" "$CLUSTER/home"
