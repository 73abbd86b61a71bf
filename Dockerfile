# An image for NVIDIA GPUs from the versions that were tried together (setup.cfg). Not built or run where it was written:
# there was neither a GPU nor Docker. docs/docker.md has the commands.
#
# torch 2.13.0 from PyPI brings its own CUDA 13.0 libraries, so the base needs none; the host needs driver 580 or newer.
FROM python:3.11-slim-bookworm

# compilers: DeepSpeed and Triton build kernels at run time, ninja with them; git: datasets and the Hub's tools
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential git ninja-build \
 && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 TOKENIZERS_PARALLELISM=false
WORKDIR /workspace/vopd-recipes

# torch first, exactly: with none installed an open range may bring another version. The package's own code comes last,
# so that a change in it does not install everything anew.
RUN pip install "torch==2.13.0"
COPY setup.cfg pyproject.toml README.md LICENSE ./
RUN mkdir -p src/vopd_recipes && touch src/vopd_recipes/__init__.py && pip install -e ".[eval,vllm]" \
 && vllm download-kernels  # FlashInfer's, which it would compile at its first start; there is no nvcc
COPY . .
RUN pip install --no-deps -e .

# Models and data sets are kept where the host mounts them
ENV HF_HOME=/workspace/huggingface
ENTRYPOINT ["vopd"]
CMD ["--help"]
