"""What a release needs: versions that agree, a README whose links work on PyPI, files that the sdist takes along."""

import importlib.util
import re
import shutil
import tomllib
from pathlib import Path

import keras
import pytest

import keras_fam

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(keras.config.backend() != "torch", reason="files alone, no backend: once is enough")


def absolute_links():
    spec = importlib.util.spec_from_file_location("absolute_links", ROOT / ".github" / "absolute_links.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_a_release(tmp_path):
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    absolute_links().main("someone/somewhere", "v1.2.3", tmp_path)
    before, after = (ROOT / "README.md").read_text(), (tmp_path / "README.md").read_text()
    link = re.compile(r"\]\(([^)\s]+)\)")
    relative = [target for target in link.findall(before) if not target.startswith("http")]
    assert len(relative) > 5 and all((ROOT / target).exists() for target in relative)
    assert all(target.startswith("https://") for target in link.findall(after))
    for target in relative:
        kind = "raw" if target.endswith(".png") else "blob"
        assert f"](https://github.com/someone/somewhere/{kind}/v1.2.3/{target})" in after
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    assert project["urls"]["Homepage"] == "https://github.com/someone/somewhere"
    assert {**project, "urls": None} == {
        **tomllib.loads((ROOT / "pyproject.toml").read_text())["project"],
        "urls": None,
    }


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE).group(1) == keras_fam.__version__


def test_the_workflow_runs_what_is_there():
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    scripts = re.findall(r"python ([\w./]+\.py)", workflow)
    assert scripts and all((ROOT / script).exists() for script in scripts)
    pattern = re.search(r"sed -n '(.+?)' (\S+)\)", workflow)
    line = re.fullmatch(r"s/(.+)\\\((.+)\\\)(.+)/\\1/p", pattern.group(1))
    version = re.search(f"{line.group(1)}({line.group(2)}){line.group(3)}", (ROOT / pattern.group(2)).read_text())
    assert version.group(1) == keras_fam.__version__


def test_the_manifest_takes_what_tests_read():
    manifest = (ROOT / "MANIFEST.in").read_text()
    named = [name for line in re.findall(r"^(?:include|graft) (.+)$", manifest, re.MULTILINE) for name in line.split()]
    assert {"tests", "docs", "examples", "benchmarks", ".github"} <= set(named)
    assert all((ROOT / name).exists() for name in named)


def test_contributing_has_commands_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    commands = re.search(r"```shell\n(.*?)```", text, re.DOTALL).group(1).splitlines()
    assert len(commands) == 3
    extras = re.search(r"\.\[(.+?)\]", commands[0]).group(1).split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= set(project["optional-dependencies"])
