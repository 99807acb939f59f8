# The client and the load tester. Built from the repository's root:
#
#   docker build --file deploy/client.Dockerfile --tag alexnet-client .
FROM python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea
COPY constraints.txt /build/
COPY client /build/client
RUN python3 -m pip install --no-cache-dir --constraint /build/constraints.txt "/build/client[load,tls,tracing]" && \
    rm -r /build
USER 1000:1000
# matplotlib keeps a list of fonts there.
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib PYTHONDONTWRITEBYTECODE=1
EXPOSE 8003
CMD ["alexnet-client", "--help"]
