# docker build -t medsegdiff .
# docker run --rm --user "$(id -u):$(id -g)" --shm-size 8g -v "$PWD:/work" medsegdiff check --data_dir MY_DATA
# For CUDA: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 -t medsegdiff:cuda .
#           docker run --gpus all ... medsegdiff:cuda ...
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
# torch first: a change of the code below then needs no new download.
RUN pip install "torch>=2.8" "torchvision>=0.23" --index-url "$TORCH_INDEX"

WORKDIR /opt/medsegdiff
COPY pyproject.toml setup.py README.md LICENSE ./
COPY guided_diffusion ./guided_diffusion
RUN pip install ".[cloud,hub,medical]" && rm -rf /opt/medsegdiff

# With --user the files of a mounted folder can be read and written; that user has no home, so that the folders here are
# open to anybody. Worker processes hand over batches in shared memory, of which a container has 64 MB by default.
RUN useradd --uid 1000 medsegdiff && mkdir -m 1777 /cache /work
ENV MEDSEGDIFF_CACHE=/cache HOME=/tmp
USER medsegdiff
WORKDIR /work
ENTRYPOINT ["medsegdiff"]
CMD ["--help"]
