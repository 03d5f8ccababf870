# The server as an image, for CUDA or a CPU:
#
#   docker build --tag redraft .
#   docker build --tag redraft:cpu --build-arg DEVICE=cpu --build-arg TORCH_INDEX=URL .
#
# docs/container.md has the arguments and how to run it; `make image` builds it without a Docker engine.

ARG BASE=docker.io/library/debian:bookworm-20250520-slim

# wheels that go before the index's, such as torch's CPU build: --build-context wheels=FOLDER
FROM scratch AS wheels

FROM ${BASE} AS base
# gcc builds the CPU kernels for the processor at hand; with CUDA, the launchers of Triton's, which want Python's headers.
# Debian keeps one version of a package per release, so pinning them here would only make builds fail after an update.
ARG DEVICE=cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev libgomp1 python3 tini \
    && case "$DEVICE" in \
         cuda) apt-get install -y --no-install-recommends python3-dev ;; \
         cpu) ;; \
         *) echo "DEVICE is cuda or cpu, not '$DEVICE'" >&2; exit 1 ;; \
       esac \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*

FROM base AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && python3 -m venv /opt/redraft
ENV PATH=/opt/redraft/bin:$PATH
# an index's address, key or certificate of your own comes as a secret (pip.conf), never as an argument, which images keep
ENV PIP_CONFIG_FILE=/run/secrets/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

# torch by itself, before the rest asks for another build; its tests (130 MB) are of no use to anybody here
COPY constraints.txt pyproject.toml ./
ARG DEVICE=cuda
ARG TORCH_INDEX=
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip --mount=type=secret,id=ca \
    pip install --no-cache-dir --no-compile --no-deps --find-links /wheels ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        --constraint constraints.txt torch \
    && torch="$(echo /opt/redraft/lib/python3*/site-packages/torch)" \
    && case "$DEVICE $(grep '^cuda' "$torch/version.py")" in \
         cpu*"= None" | cuda*"= '"*) ;; \
         *) echo "this is not torch's build for $DEVICE; give TORCH_INDEX or the context wheels (docs/container.md)" >&2; \
            exit 1 ;; \
       esac \
    && rm -rf "$torch/test" \
    && find "$torch/bin" -type f ! -name torch_shm_manager -delete

# what pyproject.toml asks for, before our own code comes: an edit of that fetches nothing. A CPU has no use for Triton
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip --mount=type=secret,id=ca \
    python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > wanted.txt \
    && if [ "$DEVICE" = cpu ]; then sed -i '/^triton/d' wanted.txt; fi \
    && pip install --no-cache-dir --no-compile --find-links /wheels --constraint constraints.txt --requirement wanted.txt setuptools

# bytecode for what a start loads and no more: for everything it would be 270 MB
COPY . .
RUN pip install --no-cache-dir --no-compile --no-deps --no-build-isolation --no-index . \
    && python3 -c "import redraft.server.launch, redraft.server.template_worker, redraft.server.healthcheck, \
redraft.server.engine.configure, redraft.server.engine.worker"

# the embedded target, converted, where it is wanted in the image itself; the lock beside it is of no more use
ARG EMBEDDED_TARGET=
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    mkdir -p /opt/share/targets \
    && case "$EMBEDDED_TARGET" in \
         '') ;; \
         smollm2-135m) REDRAFT_CACHE=/opt/share python3 -c "from redraft.server.engine.target.embedded import \
embedded_folder; embedded_folder()" && rm /opt/share/targets/.*.lock ;; \
         *) echo "EMBEDDED_TARGET is smollm2-135m or empty, not '$EMBEDDED_TARGET'" >&2; exit 1 ;; \
       esac

FROM base
# any user may run it (OpenShift chooses one by itself): what has to be written belongs to group 0, and USER and HOME are
# set, because torch asks who it is and a user without an entry in passwd has no answer
RUN useradd --uid 10001 --gid 0 --create-home --home-dir /home/redraft --shell /usr/sbin/nologin redraft \
    && mkdir /var/cache/redraft \
    && chown 10001:0 /var/cache/redraft /home/redraft \
    && chmod 2775 /var/cache/redraft /home/redraft
COPY --from=build /opt/redraft /opt/redraft
COPY --from=build /opt/share/targets /opt/redraft/share/redraft/targets
ENV PATH=/opt/redraft/bin:$PATH \
    HOME=/home/redraft \
    USER=redraft \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    REDRAFT_CACHE=/var/cache/redraft \
    XDG_CACHE_HOME=/var/cache/redraft/xdg \
    HF_HOME=/var/cache/redraft/huggingface \
    TRITON_CACHE_DIR=/var/cache/redraft/triton \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/redraft/inductor \
    MPLCONFIGDIR=/var/cache/redraft/matplotlib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    REDRAFT_HOST=0.0.0.0 \
    REDRAFT_PORT=8000
VOLUME ["/var/cache/redraft"]
WORKDIR /home/redraft
EXPOSE 8000
STOPSIGNAL SIGTERM
# the first start fetches, converts and measures
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python3", "-P", "-m", "redraft.server.healthcheck"]
USER 10001:0
# tini takes signals from the first moment on, when a first process would get none, and collects orphans
ENTRYPOINT ["tini", "--", "redraft"]
CMD ["serve"]
