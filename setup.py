import re
from pathlib import Path

from setuptools import find_packages, setup


init_file = Path("src/transformers_gram/__init__.py").read_text(encoding="utf-8")
plots = ["matplotlib", "scikit-learn"]
test = ["pytest", "hypothesis", *plots]

setup(
    name="transformers_gram",
    version=re.search(r'__version__ = "(.+)"', init_file)[1],
    description="GRAM: align 2 to n modalities with the volume of their embeddings, in the Hugging Face ecosystem",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    package_dir={"": "src"},
    packages=find_packages("src"),
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.6",
        "transformers>=5.23,<6",
        "datasets>=5.2",
        "accelerate>=1.15",
        "huggingface-hub>=2.4",
        "evaluate>=0.4.6",
        "safetensors>=0.8",
        "numpy>=2.0",
        "pillow>=12.0",
        "av>=17,<19",
    ],
    extras_require={"plots": plots, "test": test, "dev": [*test, "ruff"]},
)
