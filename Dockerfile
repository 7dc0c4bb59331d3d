# The service, without torch, is the default target; `--target train` gives the training stack instead.
# Either runs as any unprivileged user, with the root file system read-only: the service writes to /data and /tmp, training to /work and /tmp.

# One place pins the base: the multi-platform index that python:3.11-slim named in September 2026 (Python 3.11.16 on Debian 13).
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim@sha256:be1575ed968de893bd54f4c56315ff7c4736ce522c1bca08fd521731aafc0d76

# Tools that build; the service is shipped without them.
FROM ${PYTHON_IMAGE} AS tools
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update -q && apt-get install -q -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
# Certificates are the base image's, so that an authority of one's own can be mounted over them.
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt UV_SYSTEM_CERTS=true UV_LINK_MODE=copy VIRTUAL_ENV=/opt/card-classifier
WORKDIR /build
COPY requirements.lock ./
RUN pip install --no-cache-dir --constraint requirements.lock uv \
 && uv venv --python python3 "$VIRTUAL_ENV"
COPY settings.ini setup.py pyproject.toml ./

# The training stack. Torch comes with its CUDA libraries, so that the same image trains on a GPU; with seven gigabytes, stages would only double them.
FROM tools AS train
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.title="card_classifier, training" org.opencontainers.image.licenses="Apache-2.0" org.opencontainers.image.base.name="${PYTHON_IMAGE}"
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --compile-bytecode --constraint requirements.lock --build-constraint requirements.lock --requirement setup.py --extra train
COPY README.md LICENSE ./
COPY card_classifier card_classifier
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --compile-bytecode --build-constraint requirements.lock --no-deps . \
 && rm -rf "$VIRTUAL_ENV/.lock" /build
WORKDIR /work
COPY data.dvc ./
COPY configs configs
COPY nbs/recipes/train.ipynb nbs/recipes/train.ipynb
# Training starts a kernel, whose sockets lie in the working folder, and writes runs below it.
RUN mkdir data outputs && chown -R 10001:10001 /work \
 && find / -xdev -type d -perm -o+w ! -path /tmp -exec chmod o-w {} +
ENV PATH=/opt/card-classifier/bin:$PATH HOME=/tmp LOGNAME=card-classifier PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MPLBACKEND=agg DVC_NO_ANALYTICS=1 WANDB_SILENT=true
USER 10001:10001
VOLUME ["/work/data", "/work/outputs"]
HEALTHCHECK NONE
ARG REVISION=unknown
LABEL org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["card-classifier"]
CMD ["train", "--experiment", "quick"]

# The packages of the service, less what it never touches.
FROM tools AS serve-packages
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --constraint requirements.lock --build-constraint requirements.lock --requirement setup.py --extra serve
# hadolint ignore=DL3003
RUN cd "$VIRTUAL_ENV"/lib/python3.*/site-packages \
    # OpenVINO's engines for anything but a CPU, its readers of anything but ONNX and its own format, what compiles C++ against it
 && rm -rf openvino/libs/libopenvino_{auto,auto_batch,hetero,intel_gpu,intel_npu}_plugin.so openvino/libs/cache.json \
    openvino/libs/libopenvino_{gguf,jax,paddle,pytorch,tensorflow,tensorflow_lite}_frontend.so* \
    openvino/frontend/{jax,paddle,pytorch,tensorflow} openvino/torch openvino/include openvino/cmake \
    # OpenVINO's converter, which reports every import to Google Analytics
 && rm -rf openvino/tools openvino_telemetry openvino_telemetry-*.dist-info \
    # Gradio's server in Node.js, its video editor in WebAssembly, its plots, sample media
 && rm -rf gradio/templates/node gradio/templates/frontend/static/{ffmpeg,bokeh} gradio/templates/frontend/assets/{AltairPlot,PlotlyPlot}-*.js \
    gradio/media_assets gradio/test_data gradio/CHANGELOG.md \
    # At every import Gradio parses its sources to write stubs for editors: half of its start, and nothing can be written here
 && sed -i 's/^        create_or_modify_pyi(component_class, name, events)$/        pass/' gradio/component_meta.py \
 && grep -q '^        pass$' gradio/component_meta.py \
    # Transfers to and from Hugging Face
 && rm -rf hf_xet hf_xet-*.dist-info \
    # Tests, and what only compilers and type checkers read
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.c' -o -name '*.a' \) -delete \
    # Debugging symbols, where a package ships them and brings no shared libraries of its own, whose paths stripping may spoil
 && find _brotli* httptools sqlalchemy uvloop yaml -name '*.so' -exec strip --strip-unneeded {} +
COPY README.md LICENSE ./
COPY card_classifier card_classifier
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --build-constraint requirements.lock --no-deps . \
 && rm -f "$VIRTUAL_ENV/.lock"

FROM ${PYTHON_IMAGE} AS serve
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.title="card_classifier" org.opencontainers.image.licenses="Apache-2.0" org.opencontainers.image.base.name="${PYTHON_IMAGE}"
COPY --from=serve-packages /opt/card-classifier /opt/card-classifier
ENV PATH=/opt/card-classifier/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 \
    GRADIO_ANALYTICS_ENABLED=False HF_HUB_OFFLINE=1 \
    CARD_CLASSIFIER_DATABASE=sqlite:////data/records.sqlite PORT=8080
# Bytecode of what starts with the service and of what answers a request, the standard library's included, because nothing can be written later.
# hadolint ignore=DL3003
RUN cd /opt/card-classifier/lib/python3.*/site-packages \
 && python3 -m compileall -q alembic anyio card_classifier fastapi h11 httptools prometheus_client psycopg pydantic python_multipart sqlalchemy/dialects/postgresql sqlalchemy/dialects/sqlite starlette structlog uvicorn \
 && python3 -c "import gradio, card_classifier.cli.main, card_classifier.serving.site, card_classifier.demo.app; from card_classifier.recognition.predictor import Predictor; Predictor()" \
 && install -d -o 10001 -g 10001 /data \
 && find / -xdev -type d -perm -o+w ! -path /tmp -exec chmod o-w {} + \
 && rm -rf /tmp/*
ENV PYTHONDONTWRITEBYTECODE=1
WORKDIR /data
VOLUME ["/data"]
USER 10001:10001
EXPOSE 8080
# Whether it lives: one that lives and can't record is not to be restarted for that; `/health/ready` tells it
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python3", "-I", "-S", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); c.request('GET', '/health/live'); sys.exit(c.getresponse().status != 200)"]
ARG REVISION=unknown
LABEL org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["card-classifier"]
CMD ["serve", "--host", "0.0.0.0"]
