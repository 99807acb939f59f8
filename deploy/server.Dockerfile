# The production server: NVIDIA's Triton, which carries the fixes that the wheel's 2.51 lacks, with the backend that decodes
# images and the command that verifies the models before it becomes Triton. Built from the repository's root:
#
#   docker build --file deploy/server.Dockerfile --tag alexnet-server .
#   docker build --file deploy/server.Dockerfile --build-arg MODEL=baked --tag alexnet-model .
#
# The second one has the model repository inside (REPOSITORY=build/mine takes another one), and fails if a file of a release is not
# what was published. To take another release of NVIDIA's, give its tag and digest:
#   --build-arg TRITON_IMAGE=nvcr.io/nvidia/tritonserver:YY.MM-py3@sha256:...
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.06-py3@sha256:a40838bb4587d2aceb46b1e7fd144afb24c9016c219dd3eba31716e4e28dbfc7
ARG MODEL=mounted

FROM ${TRITON_IMAGE} AS server
COPY constraints.txt /build/
COPY client /build/client
COPY deploy/pyproject.toml /build/deploy/
COPY deploy/alexnet_server /build/deploy/alexnet_server
# Into the system's Python: it is the one that Triton's Python backend embeds. --ignore-installed: what Debian installed has no
# list of its files, so pip could not replace it. Without the wheel, whose Triton is not wanted here.
RUN python3 -m pip install --no-cache-dir --break-system-packages --ignore-installed --constraint /build/constraints.txt \
        "/build/client[tls]" jinja2 numpy psutil pyyaml && \
    python3 -m pip install --no-cache-dir --break-system-packages --no-deps /build/deploy && \
    mkdir -p /opt/tritonserver/backends/image_decoder /models /var/cache/alexnet-serving/tensorrt && \
    chown -R 1000:1000 /var/cache/alexnet-serving && \
    echo "from alexnet_server.decoder.model import TritonPythonModel" > /opt/tritonserver/backends/image_decoder/model.py && \
    rm -r /build
# NVIDIA's own user without rights, by number: Kubernetes must see that it is not root.
USER 1000:1000
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1
EXPOSE 8001 8002
ENTRYPOINT ["alexnet-server"]
CMD ["exec", "--repository", "/models", "--address", "0.0.0.0"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s CMD ["alexnet-server", "probe", "--model", "alexnet", "--model", "alexnet_encoded"]

FROM server AS mounted

FROM server AS baked
ARG REPOSITORY=model_repository
COPY ${REPOSITORY} /models
RUN alexnet-server deliver /models /tmp/verified && rm -r /tmp/verified

FROM ${MODEL}
