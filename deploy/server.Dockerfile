# Image of the production server: NVIDIA's Triton (with the security fixes that the wheel's 2.51 lacks), the backend that decodes
# images, and `alexnet-server`, which verifies the models before it starts Triton. Build it from the root of the repository:
#
#   docker build --file deploy/server.Dockerfile --tag alexnet-server .
#   docker build --file deploy/server.Dockerfile --build-arg MODEL=baked --tag alexnet-model .
#
# The second image contains the model repository (another one with --build-arg REPOSITORY=build/mine); the build fails if a file
# differs from the manifest of its release. Another Triton release needs a tag and a digest:
#   --build-arg TRITON_IMAGE=nvcr.io/nvidia/tritonserver:YY.MM-py3@sha256:...
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.06-py3@sha256:a40838bb4587d2aceb46b1e7fd144afb24c9016c219dd3eba31716e4e28dbfc7
ARG MODEL=mounted

FROM ${TRITON_IMAGE} AS server
COPY constraints.txt /build/
COPY client /build/client
COPY deploy/pyproject.toml deploy/README.md /build/deploy/
COPY deploy/alexnet_server /build/deploy/alexnet_server
# Without the extra "triton": the image has its own. Triton's Python backend embeds the system's Python, so everything is
# installed there. --ignore-installed: pip cannot uninstall
# Debian's packages.
RUN python3 -m pip install --no-cache-dir --break-system-packages --ignore-installed --constraint /build/constraints.txt \
        "/build/client[tls]" /build/deploy && \
    mkdir -p /opt/tritonserver/backends/image_decoder /models /var/cache/alexnet-serving/tensorrt && \
    chown -R 1000:1000 /var/cache/alexnet-serving && \
    echo "from alexnet_server.decoder.model import TritonPythonModel" > /opt/tritonserver/backends/image_decoder/model.py && \
    rm -r /build
# The unprivileged user of NVIDIA's image. Kubernetes can verify runAsNonRoot only for a numeric user.
USER 1000:1000
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1
EXPOSE 8001 8002
ENTRYPOINT ["alexnet-server"]
CMD ["exec", "--repository", "/models", "--address", "0.0.0.0"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s CMD ["alexnet-server", "probe", "--model", "alexnet", "--model", "alexnet_encoded", "--golden", "/models"]

FROM server AS mounted

FROM server AS baked
ARG REPOSITORY=model_repository
COPY ${REPOSITORY} /models
RUN alexnet-server deliver /models /tmp/verified && rm -r /tmp/verified

FROM ${MODEL}
