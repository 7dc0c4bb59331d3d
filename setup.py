"Package metadata comes from settings.ini; this file only reads it."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_namespace_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]


def requirements(name: str) -> list[str]:
    "The requirement list called `name` in settings.ini, one requirement a line."
    return [line.strip() for line in settings[name].splitlines() if line.strip()]


extras = ("serve", "heic", "parquet", "watch", "video", "batch", "cloud", "train", "dev")
found = (requirements(f"{extra}_requirements") for extra in extras)
serve, heic, parquet, watch, video, batch, cloud, train, dev = found
setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8") if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    keywords=settings["keywords"],
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Natural Language :: English",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
    ],
    # Folders that hold only data (the released bundle, templates, pictures) are packages without modules to setuptools
    packages=find_namespace_packages(include=["card_classifier", "card_classifier.*"], exclude=["*.__pycache__"]),
    package_data={"": ["*"]},
    python_requires=f">={settings['min_python']}",
    install_requires=requirements("requirements"),
    extras_require={
        "serve": serve,
        "heic": heic,
        "parquet": parquet,
        "watch": watch,
        "batch": batch,
        "video": video,
        "cloud": cloud,
        "train": [*train, *cloud],
        "dev": [*train, *serve, *heic, *parquet, *watch, *video, *batch, *cloud, *dev],
    },
    entry_points={
        "console_scripts": requirements("console_scripts"),
        "nbdev": ["card_classifier=card_classifier._modidx:d"],
    },
    zip_safe=False,
)
