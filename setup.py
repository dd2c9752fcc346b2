"""Install both packages: `pip install -e .` (pinned versions: `pip install -r requirements.txt` first)."""

from setuptools import find_packages, setup

setup(
    name="armt",
    version="0.1.0",
    description="Associative Recurrent Memory Transformer: models, Trainer and BABILong experiments",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["modeling_armt*", "lm_experiments_tools*"]),
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17",
        "datasets>=4.0",
        "tokenizers>=0.22",
        "safetensors>=0.6",
        "numpy>=2.0",
        "pyarrow>=18",
        "tensorboard>=2.18",
        "matplotlib>=3.9",
        "pyyaml>=6.0",
        "tqdm>=4.66",
    ],
    extras_require={
        "peft": ["peft>=0.18", "accelerate>=1.10"],  # LoRA; offloading and Hugging Face's Trainer
        "horovod": ["horovod==0.28.1"],
        "eval": ["lm_eval[hf]>=0.4.13"],  # lm-evaluation-harness
        "dev": ["pytest>=8.0", "pytest-xdist>=3.6", "ruff>=0.9"],
    },
)
