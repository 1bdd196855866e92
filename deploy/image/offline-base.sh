#!/usr/bin/env bash
# Base images from Debian's packages, where no registry of images can be reached.
#
#   apt-get install buildah podman runc catatonit debootstrap
#   eval "$(deploy/image/offline-base.sh)" && make image
#
# Makes docker.io/library/python:3.11-slim-bookworm in a store of its own (IMAGE_STORE) and prints
# the settings that have `make image` use it. pip's settings and this machine's certificates come
# along, so that the Dockerfile stays as it is. Remove the store by `rm -rf` when done.
set -euo pipefail

store=${IMAGE_STORE:-/var/tmp/ponder-images}
name=docker.io/library/python:3.11-slim-bookworm
where="--root $store/root --runroot $store/run"

make_base() {
  local rootfs=$store/rootfs
  debootstrap --variant=minbase --include=ca-certificates,python3-venv bookworm "$rootfs"
  # Python's headers, without a C library's: what the image has that this one stands in for.
  (cd "$rootfs" && apt-get download -q libpython3.11-dev && dpkg -x libpython3.11-dev_*.deb . \
    && rm libpython3.11-dev_*.deb usr/lib/*/*.a usr/lib/python3.11/config-*/*.a)
  rm -rf "$rootfs"/var/cache/apt/* "$rootfs"/var/lib/apt/lists/*
  ln -s /usr/bin/python3 "$rootfs/usr/local/bin/python"
  mkdir -p "$rootfs"/usr/local/lib/python3.11/site-packages
  cp /etc/ssl/certs/ca-certificates.crt "$rootfs/etc/ssl/certs/ca-certificates.crt"
  touch "$rootfs/etc/pip.conf"
  # As in Debian's images: apt keeps no cache.
  echo 'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";' >"$rootfs/etc/apt/apt.conf.d/no-cache"
  local cert=/etc/ssl/certs/ca-certificates.crt
  # shellcheck disable=SC2086
  tar -C "$rootfs" -c . | podman $where import \
    --change "ENV PIP_CERT=$cert" --change "ENV SSL_CERT_FILE=$cert" \
    --change "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin" - "$name"
  rm -rf "$rootfs"
}

mkdir -p "$store"
# shellcheck disable=SC2086
podman $where image exists "$name" || make_base >&2

# pip's settings, and the folders that they name as indexes or as places to look for wheels.
{ echo "[global]" && python3 -m pip config list | sed -n "s/^global\.\(.*\)='\(.*\)'$/\1 = \2/p"; } \
  >"$store/pip.conf"
volumes=" --volume $store/pip.conf:/etc/pip.conf:ro"
for place in $(python3 -m pip config list | grep -oE "/[^' ]+" | sed 's,^//,,' | sort -u); do
  folder=${place%/simple}
  [ ! -d "$folder" ] || volumes+=" --volume $folder:$folder:ro"
done
# Limits that a machine's own may not be below.
printf '[containers]\ndefault_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]\n' \
  >"$store/containers.conf"
cat <<END
export CONTAINERS_CONF=$store/containers.conf
export IMAGE_BUILD="buildah $where build --layers --isolation chroot --format docker$volumes"
export IMAGE_CLI="podman $where --runtime runc"
END
