# The server with its board. Build: docker build -t internist .
FROM python:3.11-slim AS build

WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY client client
COPY server server
COPY dashboard dashboard
COPY migrations migrations
RUN python -m venv /opt/internist \
    && /opt/internist/bin/pip install --no-cache-dir -c constraints.txt '.[server,postgres]'

FROM python:3.11-slim

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
