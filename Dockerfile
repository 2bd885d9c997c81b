# A worker, or a Prefect server with Redis, for a container platform. From the project's root:
#   docker build --target worker --tag veogen-worker .
#   docker build --target server --tag veogen-server .
# No token is inside, and none is an argument of the build: a run gets it from its environment or from a block.
FROM python:3.12-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY prefect_veogen prefect_veogen
COPY flows flows
COPY deployments/prefect.yaml deployments/prefect.yaml
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.12-slim AS worker
COPY requirements/runtime.txt /tmp/runtime.txt
RUN pip install --no-cache-dir --require-hashes --requirement /tmp/runtime.txt
COPY --from=wheel /wheels /wheels
# Docker, Kubernetes and ECS pools start their runs in this image as well; the worker of a pool needs its package.
ARG POOL_PACKAGE=""
RUN pip install --no-cache-dir --no-deps /wheels/*.whl && \
    if [ -n "$POOL_PACKAGE" ]; then pip install --no-cache-dir "$POOL_PACKAGE"; fi && \
    useradd --create-home --uid 1000 veogen && install -d -o veogen -g veogen /opt/veogen /media/veogen
COPY flows /opt/veogen/flows
USER veogen
WORKDIR /opt/veogen
CMD ["prefect", "worker", "start", "--pool", "veogen", "--type", "process"]

FROM worker AS server
USER root
RUN pip install --no-cache-dir "prefect-redis>=0.3"
USER veogen
CMD ["prefect", "server", "start", "--host", "0.0.0.0"]
