# Two images from one file:
#   docker build -t quire .                       CPU
#   docker build -t quire:cuda --target cuda .    NVIDIA GPU (needs the NVIDIA container toolkit)
#
# It listens on all addresses of the container, so it wants a key file, or --insecure:
#   docker run -p 8000:8000 -v "$PWD/api_key:/run/secrets/api_key:ro" quire --api-key-file /run/secrets/api_key
#   docker run -p 127.0.0.1:8000:8000 quire --insecure

FROM python:3.11.14-slim-bookworm AS base

FROM base AS wheel
# For the native CPU kernels; without a compiler the wheel is made without them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM base AS cpu-environment
# PyPI's torch for Linux brings gigabytes of CUDA; the CPU build is on torch's own index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints-cpu.txt /
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/quire \
    && /opt/quire/bin/pip install --no-cache-dir --constraint /constraints-cpu.txt \
        --extra-index-url "$TORCH_INDEX" "$(echo /wheels/*.whl)[otel]"

FROM base AS cuda-environment
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/quire \
    && /opt/quire/bin/pip install --no-cache-dir "$(echo /wheels/*.whl)[otel]"

FROM base AS runtime
# A fixed number, so that volumes can be given to it.
RUN groupadd --gid 10001 quire \
    && useradd --uid 10001 --gid quire --no-create-home --home-dir /data --shell /usr/sbin/nologin quire \
    && install -d -o quire -g quire /data /data/huggingface /data/triton \
    && install -d -o quire -g quire -m 700 /data/state
ENV PATH=/opt/quire/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/data/huggingface \
    TRITON_CACHE_DIR=/data/triton
WORKDIR /data
VOLUME /data
EXPOSE 8000
# Alive, not ready: an engine that loads or restarts must not be restarted for it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/livez', timeout=3)"]
# Running requests may finish in --shutdown-timeout seconds (8), inside docker stop's 10.
STOPSIGNAL SIGTERM
ENTRYPOINT ["quire", "serve", "--host", "0.0.0.0"]

FROM runtime AS cuda
# Triton builds its driver module with the C compiler the first time a kernel runs on a machine
# (triton/runtime/build.py; the result is cached in TRITON_CACHE_DIR), so this image has one.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=cuda-environment /opt/quire /opt/quire
USER 10001:10001

FROM runtime AS cpu
COPY --from=cpu-environment /opt/quire /opt/quire
USER 10001:10001
