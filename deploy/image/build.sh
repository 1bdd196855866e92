#!/usr/bin/env bash
# Builds the images of the targets that are named: deploy/image/build.sh gateway cpu
#
# IMAGE_BUILD     the command that builds (docker build); buildah: "buildah build --format docker",
#                 without which its images have no HEALTHCHECK
# IMAGE_TAG       test
# IMAGE_OPTIONS   further options, such as "--build-arg VLLM_VERSION=0.32.0"
# TORCH_INDEX_URL where pip finds PyTorch's CPU build, for cpu and trainer
set -euo pipefail
cd "$(dirname "$0")/../.."

(($#)) || { echo "build.sh: name targets: gateway, cpu, gpu, trainer, trainer-gpu" >&2; exit 2; }
read -ra build <<<"${IMAGE_BUILD:-docker build}"
read -ra options <<<"${IMAGE_OPTIONS:-}"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)

for target in "$@"; do
  "${build[@]}" "${options[@]}" --target "$target" --tag "ponder-$target:${IMAGE_TAG:-test}" \
    --build-arg "PONDER_VERSION=$version" \
    --build-arg "TORCH_INDEX_URL=${TORCH_INDEX_URL:-}" \
    --build-arg "REVISION=$(git rev-parse HEAD)" \
    --build-arg "CREATED=$(git log -1 --format=%cI)" .
done
