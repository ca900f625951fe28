"""Check that bitstreams decode everywhere: write them in one environment, decode them in every other.

    python -m scripts.stress.portability -d photos/                               # the shipped model, 40 images
    python -m scripts.stress.portability -c released.pth.tar -d photos/ --crop 128    # a large model on small crops
    python -m scripts.stress.portability -d photos/ more/ --python /other/venv/bin/python --cuda

Environments differ in threads, instruction sets of PyTorch, oneDNN and MKL, oneDNN on or off, memory layout, for models
with integer networks in the precision of their operands (as matrix units round them), and, if given, in the interpreter
(with another version of PyTorch) and the device.
Exit status: 0 no mismatch, 1 a bitstream decoded to other symbols or something failed, 2 wrong usage.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.processes import log, run_python
from ugicm import atomic, bitstream, files, images
from ugicm.arguments import ArgumentParser, check_device, positive, run_command, spread, unit
from ugicm.errors import StreamError, UgicmError, UsageError
from ugicm.evaluation import results

if TYPE_CHECKING:
    from ugicm.codec import Codec


@dataclass(frozen=True)
class Environment:
    """How a process computes: settings that change the rounding of floating-point results.

    Attributes:
        bits: significant bits that operands of integer layers are rounded to: 24 in float32, 11 in TF32 and float16, 8
            in bfloat16.
        python: the interpreter.
        variables: environment variables, which PyTorch reads when it is imported.
    """

    name: str
    threads: int = 1
    mkldnn: bool = True
    channels_last: bool = True
    bits: int = 24
    device: str = "cpu"
    python: str = sys.executable
    variables: dict[str, str] = field(default_factory=dict)


def environments(interpreters: Sequence[str] = (), cuda: bool = False, integer: bool = True) -> list[Environment]:
    """Return the environments to compare.

    Args:
        interpreters: others than this one, each an environment.
        cuda: whether the GPU is one.
        integer: whether the model has integer networks, for which precisions of operands are compared.
    """

    def isa(aten: str, onednn: str, mkl: str) -> dict[str, str]:
        return {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn, "MKL_CBWR": mkl}

    chosen = [
        Environment("1 thread"),
        Environment("2 threads", threads=2),
        Environment("4 threads", threads=4),
        Environment("no vector instructions", variables=isa("default", "SSE41", "COMPATIBLE")),
        Environment("AVX2", variables=isa("avx2", "AVX2", "AVX2")),
        Environment("oneDNN off", mkldnn=False),
        Environment("channels first", channels_last=False),
    ]
    if integer:
        chosen += [Environment("TF32 operands", bits=11), Environment("bfloat16 operands", bits=8)]
    chosen += [Environment(f"interpreter {python}", python=python) for python in interpreters]
    if cuda:
        chosen.append(Environment("CUDA", device="cuda"))
    return chosen


def check(
    checkpoint: str | None,
    sources: Sequence[Path],
    qualities: Sequence[float],
    chosen: Sequence[Environment],
    folder: Path,
) -> dict[str, Any]:
    """Write every image at every quality in every environment, and decode every bitstream in every environment.

    Identical bitstreams are decoded once per environment. Processes run in parallel, one per core.

    Args:
        checkpoint: of the model, None for the shipped one.
        sources: image files.
        qualities: of every image.
        chosen: environments.
        folder: for the bitstreams.

    Returns:
        The report: the number of bitstreams and of mismatches for every pair of environments and, where scales are
        floating-point numbers, the smallest relative distance of one to a bound of the table. A mismatch is a
        StreamError: a bitstream has a digest of its symbols.

    Raises:
        UgicmError: a process failed.
    """

    def run_all(task: dict[str, Any]) -> Iterator[tuple[Environment, dict]]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield from zip(chosen, pool.map(lambda env: _run(env, checkpoint, folder, task), chosen))

    written = {}
    for environment, outcome in run_all({"images": [str(path) for path in sources], "qualities": list(qualities)}):
        written[environment.name] = outcome
        log(f"written: {environment.name}")
    content = {
        name: hashlib.blake2b(Path(name).read_bytes()).hexdigest()
        for outcome in written.values() for name in outcome["files"]
    }  # fmt: skip
    first = {content[name]: name for name in reversed(content)}
    pairs, mismatches = [], 0
    for reader, outcome in run_all({"bitstreams": list(first.values())}):
        failed = {content[name] for name in outcome["failed"]}
        for writer in chosen:
            names = written[writer.name]["files"]
            wrong = [name for name in names if content[name] in failed]
            mismatches += len(wrong)
            pairs.append({
                "writer": writer.name, "reader": reader.name, "streams": len(names), "mismatches": len(wrong),
                "examples": wrong[:3],
            })  # fmt: skip
        log(f"decoded: {reader.name}; {mismatches} mismatches so far")
    return {
        "mismatches": mismatches,
        "streams": sum(pair["streams"] for pair in pairs),
        "different_streams": len(first),
        "closest_to_a_bound": min(filter(None, (outcome["closest"] for outcome in written.values())), default=None),
        "versions": {name: outcome["torch"] for name, outcome in written.items()},
        "pairs": pairs,
    }


def _run(environment: Environment, checkpoint: str | None, folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Run :func:`work` in an environment. Raises UgicmError with the process's last words if it fails."""
    name = hashlib.blake2b(environment.name.encode(), digest_size=6).hexdigest()
    task = {**task, "checkpoint": checkpoint, "folder": str(folder / name), "environment": asdict(environment)}
    try:
        printed = run_python(
            "-W", "ignore", "-c", "from scripts.stress.portability import work; work()", python=environment.python,
            environment={"OMP_NUM_THREADS": str(environment.threads), **environment.variables}, stdin=json.dumps(task),
        )  # fmt: skip
    except UgicmError as error:
        raise UgicmError(f"{environment.name}: {error}") from None
    return json.loads(printed.splitlines()[-1])


def work() -> None:
    """Read a task from standard input, write or decode bitstreams, and print the outcome. Both are JSON."""
    import torch

    from ugicm.codec import load

    task = json.load(sys.stdin)
    environment = Environment(**task["environment"])
    torch.set_num_threads(environment.threads)
    torch.backends.mkldnn.enabled = environment.mkldnn
    codec = load(task["checkpoint"], environment.device)
    if not environment.channels_last:
        codec.model.to(memory_format=torch.contiguous_format)
    entropy_model = codec.model.entropy_model
    _round_operands(entropy_model, environment.bits)
    distances = _record_distances(entropy_model.gaussian) if entropy_model.indexes is None else []
    written, failed = [], []
    if "bitstreams" in task:
        failed = [name for name in task["bitstreams"] if not _decodes(codec, Path(name))]
    else:
        for i, image in enumerate(task["images"]):
            for quality in task["qualities"] if codec.has_quality else [0.5]:
                written.append(str(Path(task["folder"]) / f"{i}-{quality}.ugic"))
                atomic.write(written[-1], codec.compress(image, quality))
    outcome = {"files": written, "failed": failed, "closest": min(distances, default=None), "torch": torch.__version__}
    print(json.dumps(outcome))


def _decodes(codec: Codec, path: Path) -> bool:
    """Return whether a bitstream decodes to the symbols that were written."""
    try:
        codec.entropy_decode(bitstream.parse(path.read_bytes()))
    except StreamError:
        return False
    return True


def _round_operands(entropy_model: Any, bits: int) -> None:
    """Let integer layers round inputs and weights to ``bits`` significant bits, as matrix units do."""
    import torch

    from ugicm.entropy.integer import IntegerLayer

    def rounded(x: Any) -> Any:
        mantissa, exponent = torch.frexp(x)
        return torch.ldexp(torch.round(mantissa * 2**bits), exponent - bits)

    for layer in entropy_model.modules():
        if isinstance(layer, IntegerLayer):
            layer.weight.copy_(rounded(layer.weight))
            layer.register_forward_pre_hook(lambda _, inputs: tuple(rounded(x) for x in inputs))


def _record_distances(gaussian: Any) -> list[float]:
    """Return a list to which every choice of table rows adds the relative distance of the closest scale to a bound."""
    distances = []
    choose = gaussian.build_indexes

    def build_indexes(scale: Any) -> Any:
        rows, bounds = choose(scale), gaussian.scale_table[:-1]
        for bound in (bounds[(rows - 1).clamp(min=0)], bounds[rows.clamp(max=len(bounds) - 1)]):
            distance = ((scale - bound) / bound).abs()
            distances.append(distance[distance > 0].min().item())
        return rows

    gaussian.build_indexes = build_indexes
    return distances


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m scripts.stress.portability", description=__doc__)
    parser.add_argument("-c", "--checkpoint", help="model (default: the shipped one)")
    parser.add_argument("-d", "--dataset", required=True, nargs="+", help="folders of images")
    parser.add_argument("--images", type=positive, default=40, help="number of images, evenly spread (default: 40)")
    parser.add_argument("--crop", type=positive, help="use the center square of this many pixels")
    parser.add_argument("--quality", type=unit, nargs="+", default=[0.1, 0.5, 0.9])
    parser.add_argument("--python", nargs="*", default=[], help="other interpreters to write and decode with")
    parser.add_argument("--cuda", action="store_true", help="also on the GPU")
    parser.add_argument("-o", "--output", default="experiments/portability.json")
    args = parser.parse_args(argv)

    import ugicm

    if args.cuda:
        check_device("cuda")
    if missing := [name for name in args.python if not shutil.which(name)]:
        raise UsageError(f"--python {missing[0]}: no such interpreter")
    found = [path for folder in args.dataset for path in files.find(folder, files.IMAGE_SUFFIXES)]
    sources = [found[i] for i in spread(args.images, len(found))]
    codec = ugicm.load(args.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        if args.crop:
            sources = [_crop(path, args.crop, Path(folder) / f"{i}.png") for i, path in enumerate(sources)]
        chosen = environments(args.python, args.cuda, codec.model.entropy_model.indexes is not None)
        report = check(args.checkpoint, sources, args.quality, chosen, Path(folder))
    report |= {"images": len(sources), "qualities": args.quality, "model": codec.describe()}
    report |= {"environment": results.environment()}
    atomic.write(args.output, (json.dumps(report, indent=2) + "\n").encode())
    names, mismatches = list(report["versions"]), {(p["reader"], p["writer"]): p["mismatches"] for p in report["pairs"]}
    rows = [[reader, *(mismatches[reader, writer] for writer in names)] for reader in names]
    print(results.table(rows, ["decoded in / written in", *(str(i + 1) for i in range(len(names)))]))
    print(f"\n{report['streams']} decodings, {report['mismatches']} mismatches; {args.output}")
    if report["closest_to_a_bound"] is not None:
        print(f"closest relative distance of a scale to a table bound: {report['closest_to_a_bound']:.3g}")
    return 1 if report["mismatches"] else 0


def _crop(path: Path, side: int, target: Path) -> Path:
    images.center_crop(images.open_rgb(path), side).save(target)
    return target


if __name__ == "__main__":
    sys.exit(run_command(main))
