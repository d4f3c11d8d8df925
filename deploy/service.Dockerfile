# The service and the models of exported/. No torch and nothing of training/ inside.
#
#   docker build -f deploy/service.Dockerfile -t seqserve:cpu .
#   docker build -f deploy/service.Dockerfile -t seqserve:gpu --build-arg RUNTIME=gpu .
#
# The GPU image brings its own CUDA libraries; the host needs a driver and the NVIDIA container toolkit.

FROM python:3.11-slim-bookworm

ARG RUNTIME=cpu

ENV PYTHONUNBUFFERED=1 \
    SEQSERVE_HOST=0.0.0.0

WORKDIR /app

# Dependencies depend on these two files only, so a change of code does not install them again. The package itself
# runs from /app: installing it would need training/ beside it.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
      extras = p['optional-dependencies']; \
      print(*p['dependencies'], *extras['${RUNTIME}'], *extras['bound'], sep='\n')" > /tmp/requirements.txt \
 && pip install --no-cache-dir -c constraints.txt -r /tmp/requirements.txt \
 && rm /tmp/requirements.txt \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin seqserve

COPY service/ service/
RUN python -m compileall -q service
COPY exported/ exported/

USER 10001
EXPOSE 8000

HEALTHCHECK --interval=5s --timeout=3s --start-period=15s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]

# Exec form: the process is number 1 and gets SIGTERM itself, on which it drains.
CMD ["python", "-m", "service", "serve"]
