# Image of the client and the load tester. Build it from the root of the repository:
#
#   docker build --file deploy/client.Dockerfile --tag alexnet-client .
FROM python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea
COPY constraints.txt /build/
COPY client /build/client
RUN python3 -m pip install --no-cache-dir --constraint /build/constraints.txt "/build/client[load,tls,tracing]" && \
    rm -r /build
USER 1000:1000
# matplotlib writes its font cache to MPLCONFIGDIR.
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib PYTHONDONTWRITEBYTECODE=1
EXPOSE 8003
CMD ["alexnet-client", "--help"]
