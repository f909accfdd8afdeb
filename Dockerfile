# An image for a CPU and one for NVIDIA's GPUs:
#   docker build --target cpu --tag transfusion:cpu .
#   docker build --target cuda --tag transfusion:cuda .
# Data and runs lie in folders of the host, which must be writable for the user 1000 of the image:
#   docker run --rm -v "$PWD/data:/home/user/data" -v "$PWD/runs:/home/user/runs" transfusion:cpu \
#     train --config digits --workdir runs/digits
# The CUDA libraries come with jax; the host needs NVIDIA's driver and container toolkit (docker run --gpus all ...).
# tests/test_site.py lints this file.
FROM python:3.12-slim-bookworm AS base
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 user
WORKDIR /home/user
RUN mkdir data runs .cache && chown user:user data runs .cache
COPY LICENSE README.md constraints.txt pyproject.toml setup.py /opt/transfusion/
COPY configs /opt/transfusion/configs
COPY transfusion /opt/transfusion/transfusion
ENTRYPOINT ["transfusion"]
CMD ["--help"]

FROM base AS cpu
ENV JAX_PLATFORMS=cpu
RUN pip install --constraint /opt/transfusion/constraints.txt '/opt/transfusion[demo,parquet,tokenizers]'
USER 1000

FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN pip install --constraint /opt/transfusion/constraints.txt '/opt/transfusion[demo,gpu,parquet,tokenizers]'
USER 1000
