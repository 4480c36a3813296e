# The server with its board. Build: docker build -t internist .
# What it is built on is the same bits everywhere; docs/operate.md says how to take later ones.
ARG PYTHON_IMAGE=python:3.11-slim@sha256:1042b61448fef4ba92d16a8c7eb4996d027568ce64792a7877fd88511e0af7c6
FROM ${PYTHON_IMAGE} AS build

WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY client client
COPY server server
COPY dashboard dashboard
COPY migrations migrations
RUN python -m venv /opt/internist \
    && /opt/internist/bin/pip install --no-cache-dir -c constraints.txt '.[server,postgres]'

FROM ${PYTHON_IMAGE}

RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin internist \
    && install --directory --owner internist --group internist --mode 0750 /data
COPY --from=build /opt/internist /opt/internist

ENV PATH=/opt/internist/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER internist
WORKDIR /data
VOLUME /data
EXPOSE 8237
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8237/healthz', timeout=4)"]
CMD ["internist", "serve", "--host", "0.0.0.0"]
