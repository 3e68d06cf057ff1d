# Three images from one file:
#   docker build --target airflow --tag tpu-migration-airflow:0.1.0 .    Airflow with the package
#   docker build --target sandbox --tag tpu-migration-sandbox:0.1.0 .    the embedded cloud and its users
#   docker build --tag tpu-migration-toolbox:0.1.0 .                     bench, prober and guard; no Airflow
ARG PYTHON=3.12
ARG AIRFLOW=3.3.2

FROM python:${PYTHON}-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md ./
COPY include include
COPY plugins plugins
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM apache/airflow:${AIRFLOW}-python${PYTHON} AS airflow
COPY constraints.txt requirements.txt requirements-celery.txt /tmp/requirements/
RUN pip install --no-cache-dir --constraint /tmp/requirements/constraints.txt \
    --requirement /tmp/requirements/requirements-celery.txt
# Where the password file goes, and what the volumes of logs and sandbox take their owner from.
USER root
RUN install --directory --owner=airflow --group=0 /opt/airflow/state /opt/airflow/logs /sandbox
USER airflow
# Last, for it changes most. A wheel wins over a mounted plugins folder, which comes last on sys.path.
COPY --from=wheel /dist /tmp/dist
RUN pip install --no-cache-dir --no-deps /tmp/dist/*.whl

FROM airflow AS sandbox
COPY requirements-dev.txt /tmp/requirements/
RUN pip install --no-cache-dir --constraint /tmp/requirements/constraints.txt \
    --requirement /tmp/requirements/requirements-dev.txt
COPY include /opt/tpu-migration/include
COPY plugins /opt/tpu-migration/plugins
COPY dags /opt/tpu-migration/dags
COPY sandbox /opt/tpu-migration/sandbox
WORKDIR /opt/tpu-migration

FROM python:${PYTHON}-slim AS toolbox-packages
COPY constraints.txt /tmp/
COPY --from=wheel /dist /tmp/dist
RUN wheel="$(ls /tmp/dist/*.whl)" \
 && pip install --no-cache-dir --prefix /packages --constraint /tmp/constraints.txt "${wheel}[toolbox]"

FROM python:${PYTHON}-slim AS toolbox
COPY --from=toolbox-packages /packages /usr/local
USER 65532:65532
CMD ["tpu-migration", "--help"]
