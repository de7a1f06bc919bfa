# conic_jax for NVIDIA GPUs; for a CPU alone, docker build --build-arg EXTRAS= .
#   docker build -t conic_jax .
#   docker run --gpus all -v /my/images:/images -v "$PWD/runs:/runs" conic_jax pretrain /images --out=/runs/first
FROM python:3.12-slim

# The wheels of jax[cuda12] bring CUDA themselves.
ARG EXTRAS=[cuda12,gcs,s3]
WORKDIR /opt/conic_jax
COPY pyproject.toml requirements.txt README.md LICENSE ./
COPY conic_jax conic_jax
COPY configs configs
# The tested versions first, then what the machine adds to them.
RUN pip install --no-cache-dir --requirement requirements.txt \
 && if [ -n "${EXTRAS}" ]; then pip install --no-cache-dir --requirement requirements.txt ".${EXTRAS}"; fi \
 && useradd --create-home --uid 1000 conic
USER 1000
WORKDIR /home/conic
ENTRYPOINT ["conic"]
CMD ["--help"]
