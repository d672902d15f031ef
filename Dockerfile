# docker build --target cpu|gpu|onnx .      cpu is the default; onnx has no torch and is the smallest.
#
# Behind a proxy or without the public index: `--secret id=ca,src=FILE` brings certificates, `--build-context wheels=DIR`
# local wheels, `--build-arg TORCH_BACKEND=` takes torch from those wheels. None of them stays in the image.
ARG BASE=python:3.11-slim

# Empty, unless a build context of this name takes its place.
FROM scratch AS wheels

FROM ${BASE} AS source
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    UV_SYSTEM_CERTS=1 \
    UV_FIND_LINKS=/wheels \
    UV_COMPILE_BYTECODE=1 \
    UV_NO_CACHE=1 \
    VIRTUAL_ENV=/opt/fathom
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv /opt/uv && \
    /opt/uv/bin/pip install --no-cache-dir --quiet uv && \
    python3 -m venv --without-pip /opt/fathom
ENV PATH=/opt/fathom/bin:/opt/uv/bin:$PATH
WORKDIR /src
COPY . .

FROM source AS build-cpu
ARG TORCH_BACKEND=cpu
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=bind,from=wheels,target=/wheels \
    uv pip install ${TORCH_BACKEND:+--torch-backend ${TORCH_BACKEND}} -c constraints-cpu.txt '.[cpu,grpc]'
RUN fathom export arith --formats onnx --repository /repository && \
    fathom export digits --formats onnx --repository /repository

FROM source AS build-gpu
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=bind,from=wheels,target=/wheels \
    uv pip install '.[gpu,grpc]'

FROM source AS build-onnx
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=bind,from=wheels,target=/wheels \
    uv pip install '.[onnx,grpc]'

FROM ${BASE} AS runtime
# A volume mounted there takes over the folder's owner.
RUN useradd --uid 10001 --no-log-init fathom && \
    install --directory --owner=fathom --group=fathom /var/lib/fathom
# ONNX Runtime reports to its vendor unless told not to. Weights in huge pages, where the kernel lends them to who asks:
# a token of a model that memory holds up comes a tenth sooner.
ENV PATH=/opt/fathom/bin:$PATH \
    ORT_DISABLE_TELEMETRY=1 \
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FATHOM_REPOSITORY=/repository \
    FATHOM_HOST=0.0.0.0 \
    FATHOM_PORT=8000
COPY --from=build-cpu /repository /repository
EXPOSE 8000
USER 10001:10001
# Past any proxy the environment names, which is why this is not urllib.request.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["python", "-c", "import http.client, os, sys; \
server = http.client.HTTPConnection('127.0.0.1', int(os.environ['FATHOM_PORT']), timeout=2); \
server.request('GET', '/health/live'); \
sys.exit(server.getresponse().status != 200)"]
ENTRYPOINT ["fathom"]
CMD ["serve"]

FROM runtime AS onnx
COPY --from=build-onnx /opt/fathom /opt/fathom

FROM runtime AS gpu
ENV FATHOM_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-gpu /opt/fathom /opt/fathom

FROM runtime AS cpu
COPY --from=build-cpu /opt/fathom /opt/fathom
