"""The benchmark tools: their results mean what their names say. Speed itself is not tested."""

import dataclasses
import importlib
import json
import os
import time
from pathlib import Path

import pytest
import torch
import yaml
from small_models import CONFIGS, small_model

from scripts.benchmark import folder_speed, levers, roofline, sharing, speed, throughput, training_speed
from scripts.benchmark.speed import BenchmarkCase, Timing
from ugicm.arguments import run_command
from ugicm.codec import Codec, load
from ugicm.config import to_dict
from ugicm.errors import UgicmError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def keep_threads():
    """Restore the number of threads, which benchmarks set."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def benchmark_command():
    """Return scripts/benchmark/__main__.py as a module."""
    return importlib.import_module("scripts.benchmark.__main__")


def test_median_seconds_excludes_warm_up():
    waits = iter([0.3, 0.02, 0.05, 0.02])
    assert 0.02 <= roofline.median_seconds(lambda: time.sleep(next(waits)), 3) < 0.05


def test_count_macs_counts_added_layers():
    model = small_model()
    config, counts = model.config, roofline.count_macs(model)
    wider = small_model()
    wider.g_a.stem = torch.nn.Sequential(wider.g_a.stem, torch.nn.Conv2d(config.width_8, config.width_8, 1))
    more = roofline.count_macs(wider)
    assert more["g_a"] - counts["g_a"] == pytest.approx(config.width_8**2 / 64 / 1e3, abs=0.011)
    assert (more["entropy"], more["g_s"]) == (counts["entropy"], counts["g_s"])


def test_activation_bytes_matches_manual_computation():
    """The input of a convolution; and the output of ReLU, which is the input of the other."""

    class Model(torch.nn.Sequential):
        def forward(self, x, beta, quality):
            return super().forward(x)

    model = Model(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, 1))
    assert roofline.activation_bytes(model, 32) == 4 * (3 + 8) * 32**2


def test_count_macs_matches_manual_computation_of_synthesis():
    model = small_model()
    c = model.config

    def block(width):
        return 6 * width**2 + 9 * width

    at_16 = c.M * c.width_16 + c.depth_16 * block(c.width_16) + 4 * c.width_16 * c.width_8 + c.detail_width * 768
    at_8 = c.depth_8 * block(c.width_8) + 9 * c.width_8 * 192
    assert roofline.count_macs(model)["g_s"] == pytest.approx((at_16 / 256 + at_8 / 64) / 1e3, abs=0.01)


def test_measured_rates_are_products_over_seconds(monkeypatch):
    def median_seconds(work, repeats, device):
        layers.append(work.func)
        return 1e-3

    layers = []
    monkeypatch.setattr(roofline, "median_seconds", median_seconds)
    rates = roofline.measured_rates(torch.float32)
    assert list(rates.values()) == [round(128 * 256 * layer.weight.numel() / 1e6, 1) for layer in layers]
    assert list(rates) == ["1x1", "3x3"]


def test_time_case(checkpoint):
    case = BenchmarkCase("small", 128, 64, threads=1, checkpoint=str(checkpoint), fast=False)
    timing, detail = speed.time_case(case, repeats=2)
    assert (timing.dtype, timing.threads, timing.width, timing.height) == ("float32", 1, 128, 64)
    assert timing.entropy_read > 0 and timing.entropy_write > 0
    larger = dataclasses.replace(case, width=1024, height=1024)
    assert speed.peak_memory(larger) > timing.memory_mib + 10 > 10  # the image as floats is 12 MiB
    seconds, floors = detail["seconds"], detail["floor_seconds"]
    assert timing.time_over_floor == pytest.approx(
        (seconds["g_a"] + seconds["g_s"]) / (floors["g_a"] + floors["g_s"]), abs=0.01
    )
    rate = max(detail["gmac_per_second"].values())
    assert floors["g_a"] == pytest.approx(detail["kmac_per_pixel"]["g_a"] * 1e3 * 128 * 64 / rate / 1e9)


def test_time_case_ratios_to_reference(checkpoint, monkeypatch):
    case = BenchmarkCase("small", 64, 64, threads=1, checkpoint=str(checkpoint), fast=False)
    reference = speed.UgicmSubject(case)
    reference.compress()

    def seconds(works, repeats, device):
        [work() for work in works]
        assert works[-1] in (reference.compress, reference.decompress_both)
        return [[1.0, 3.0, 9.0], [2.0, 4.0, 9.0]] if len(works) == 2 else [[1.0] * 3, [3.0] * 3, [4.0] * 3]

    monkeypatch.setattr(speed, "seconds_in_turns", seconds)
    monkeypatch.setattr(speed, "peak_memory", lambda case: 0.0)  # takes a process
    monkeypatch.setattr(speed, "_detail", lambda *_: {})  # takes seconds
    timing, _ = speed.time_case(case, 3, reference)
    assert (timing.compress, timing.decompress, timing.decompress_both) == (3.0, 1.0, 3.0)
    assert (timing.compress_ratio, timing.decompress_ratio) == (0.75, 0.75)
    (record,) = speed.as_records([timing])
    assert (record["compress_ratio"], record["decompress_ratio"]) == (0.75, 0.75)


def test_time_case_per_pixel_ratios_to_base(checkpoint, monkeypatch):
    case = BenchmarkCase("small", 128, 128, threads=1, checkpoint=str(checkpoint), fast=False)
    base = speed.UgicmSubject(dataclasses.replace(case, width=64, height=64))
    reference = speed.UgicmSubject(case)
    reference.compress()

    def seconds(works, repeats, device):
        [work() for work in works]
        return [[8.0], [4.0], [1.0]] if len(works) == 3 else [[5.0], [6.0], [3.0], [2.0]]  # base is the last

    monkeypatch.setattr(speed, "seconds_in_turns", seconds)
    monkeypatch.setattr(speed, "peak_memory", lambda case: 0.0)  # takes a process
    monkeypatch.setattr(speed, "_detail", lambda *_: {})  # takes seconds
    timing, _ = speed.time_case(case, 1, reference, base)
    assert (timing.compress_ratio, timing.decompress_ratio) == (2.0, 2.0)
    assert (timing.compress_per_pixel_ratio, timing.decompress_per_pixel_ratio) == (2.0, 0.75)


def test_time_case_floor_uses_padded_size(checkpoint, monkeypatch):
    case = BenchmarkCase("small", 65, 64, threads=1, checkpoint=str(checkpoint), fast=False)
    monkeypatch.setattr(speed, "peak_memory", lambda case: 0.0)  # takes a process
    monkeypatch.setattr(speed, "measured_rates", lambda *_: {"1x1": 1.0})
    _, detail = speed.time_case(case, 1)
    assert detail["floor_seconds"]["g_a"] == pytest.approx(detail["kmac_per_pixel"]["g_a"] * 1e3 * 128 * 64 / 1e9)


def test_as_records_omits_missing_ratios():
    timing = Timing("ours", 1000, 500, 1, "cpu", "float32", 1.0, 0.5, 0.8, None, None, 1, 1.0, None)
    (record,) = speed.as_records([timing])
    assert (record["compress_mp_per_s"], record["decompress_mp_per_s"]) == (0.5, 1.0)
    assert not any(key.endswith("_ratio") for key in record)


def test_seconds_in_turns_alternates_calls():
    calls = []
    seconds = roofline.seconds_in_turns([lambda: calls.append(0), lambda: calls.append(1)], 2)
    assert calls == [0, 1] * 3 and [len(s) for s in seconds] == [2, 2]
    assert roofline.median_ratio([1.0, 4.0, 3.0], [2.0, 4.0, 1.0]) == 1.0


@pytest.mark.slow
def test_time_folder(checkpoint, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    folder_speed.make_images(photos, 4, 96, 64)
    contents = {path.read_bytes() for path in photos.iterdir()}
    assert len(contents) == 4
    report = folder_speed.time_folder(photos, 2, str(checkpoint), repeats=1)
    assert (report["images"], report["workers"]) == (4, 2)
    for command in ("compress", "decompress"):
        figures = report[command]
        assert figures["same_files"] is True
        assert figures["ratio"] == pytest.approx(
            figures["one_by_one_seconds"] / figures["side_by_side_seconds"], abs=0.01
        )


def test_time_folder_reports_medians_of_alternating_commands(tmp_path, monkeypatch):
    photos, runs = tmp_path / "photos", []
    folder_speed.make_images(photos, 2, 16, 16)
    seconds = iter([9, *(1, 11, 6, 2, 12, 7, 9, 99, 99), *(3, 3, 3) * 3])  # of compress; where there is only loading

    def command(*arguments):
        source, target, options = arguments[3], arguments[4], arguments[5:]
        assert source.exists() and not target.exists()
        if source.is_dir():
            runs.append((arguments[2], source.name, options[options.index("--workers") + 1]))
            target.mkdir()
            second_alone = len(runs) == 5
            (target / "a").write_text("other" if second_alone else "same")
        return next(seconds)

    monkeypatch.setattr(folder_speed, "_seconds", command)
    report = folder_speed.time_folder(photos, 2)
    turn = [("single", 1), ("photos", 1), ("photos", 2)]
    assert runs[:9] == [("compress", *run) for run in turn] * 3
    assert runs[9:12] == [("decompress", f"compress-{run}", n) for run, n in (("single", 1), ("one", 1), ("side", 2))]
    compress, decompress = report["compress"], report["decompress"]
    assert [compress[f"{name}_seconds"] for name in ("start", "one_by_one", "side_by_side")] == [2, 12, 7]
    assert (compress["ratio"], compress["ratio_without_start"]) == (round(12 / 7, 3), 2)
    assert compress["seconds"]["start"] == [1, 2, 9] and report["repeats"] == 3
    assert not compress["same_files"] and decompress["same_files"]  # in each turn
    assert decompress["ratio_without_start"] is None


def test_folder_seconds_raises_if_command_fails(tmp_path):
    with pytest.raises(UgicmError, match="no files to work on"):
        folder_speed._seconds("-m", "ugicm", "compress", tmp_path, tmp_path / "out")


def test_throughput(checkpoint):
    case = BenchmarkCase("small", 64, 64, threads=1, checkpoint=str(checkpoint))
    for count in (1, 2):
        record = throughput.throughput(case, count, images=3, repeats=1)
        assert (record["workers"], record["images"]) == (count, 3 * count)
        assert all(record[work] > 0 for work in throughput.OPERATIONS)


def test_throughput_reports_failed_process(tmp_path):
    with pytest.raises(UgicmError, match=r"one of 2 processes failed: .*none\.safetensors"):
        throughput.throughput(BenchmarkCase("x", 64, 64, 1, checkpoint=str(tmp_path / "none.safetensors")), 2, 1, 1)


def test_start_seconds():
    found = folder_speed.start_seconds(1)
    assert list(found) == ["python", "import ugicm", "ugicm info FILE"]
    assert 0 < found["python"] < found["ugicm info FILE"]


def test_train_command(tmp_path, make_image, run_script, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    (tmp_path / "images").mkdir()
    for i in range(4):
        make_image(96, 80, i).save(tmp_path / "images" / f"{i}.png")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({
        "run": {"dir": str(tmp_path / "run")},
        "data": {"train": [str(tmp_path / "images")], "crop": 64, "batch": 2, "holdout": 1},
        "model": to_dict(CONFIGS["compact"]),
        "quality": {"range": [0, 1]},
        "objective": {"lambdas": [0.001, 0.01], "terms": {"mse": {"human": 1.0, "machine": 0.5}}},
        "optim": {"steps": 1000, "lr": 1e-3, "warmup": 100},
    }))  # fmt: skip
    output = tmp_path / "speed.json"
    done = run_script(
        "scripts/benchmark/__main__.py",
        "train",
        "-c",
        config,
        "--set",
        "precision.autocast=none",
        "--variants",
        "as configured",
        "fp32",
        "--threads",
        1,
        "--steps",
        2,
        "--repeats",
        1,
        "-o",
        output,
    )
    assert done.returncode == 0, done.stderr
    assert "fp32: equal to 'as configured', left out" in done.stderr
    report = json.loads(output.read_text())
    assert report["same"] == {"fp32": "as configured"}
    (run,) = report["runs"]
    assert (run["variant"], run["device"], run["threads"]) == ("as configured", "cpu", 1)
    assert run["samples_per_s"] * run["seconds_per_step"] == pytest.approx(2, rel=0.01)
    assert sum(run["shares"].values()) == pytest.approx(1, abs=0.1)
    assert run["shares"]["forward"] > 0.05 and run["shares"]["backward"] > 0.05
    assert "samples/s" in done.stdout and "as configured" in done.stdout
    assert not (tmp_path / "run").exists()


def test_training_speed_excludes_warm_up_steps(monkeypatch):
    def trained(function, config, settings):
        overrides = dict(override.split("=", 1) for override in settings)
        assert (overrides["run.log_every"], overrides["optim.steps"]) == ("5", "10")
        events = [{"event": "start", "device": "cpu", "threads": 1}, *({"event": "train", "step": n} for n in (5, 10))]
        Path(overrides["run.dir"]).mkdir()
        Path(overrides["run.dir"], "metrics.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))

    monkeypatch.setattr(training_speed, "in_fresh_process", trained)
    start, stretch = training_speed._measured("configs/smoke.yaml", [], "cpu", 1, 5)
    assert start["event"] == "start" and stretch["step"] == 10


def test_time_in_turns_alternates_variants(monkeypatch):
    def stretch(pace, forward):
        return {"samples_per_s": pace, "time/forward": forward, "time/backward": 1 - forward}

    turns, calls = iter([(8, 0.4), (1, 0.5), (10, 0.2), (2, 0.5), (9, 0.3), (3, 0.5)]), []

    def measured(config, overrides, device, threads, steps):
        calls.append((overrides, device, threads))
        return {"device": "cpu", "threads": 2}, stretch(*next(turns))

    monkeypatch.setattr(training_speed, "_measured", measured)
    cases, config = [("as configured", "cpu", 0), ("fp32", "cpu", 0)], str(ROOT / "configs" / "smoke.yaml")
    first, second = training_speed.time_in_turns(config, ["data.batch=18"], cases, 5, 3)
    assert calls[:2] * 3 == calls and calls[1][0] == ["data.batch=18", *training_speed.VARIANTS["fp32"]]
    assert (first["samples_per_s"], first["seconds_per_step"]) == (9, 2)
    assert (first["slowest_samples_per_s"], first["fastest_samples_per_s"]) == (8, 10)
    assert (first["shares"]["forward"], first["shares"]["backward"]) == (0.3, 0.7)
    assert (second["variant"], second["threads"], second["samples_per_s"]) == ("fp32", 2, 2)


def test_distinct_merges_equal_variants():
    config, names = str(ROOT / "configs" / "compact_base.yaml"), list(training_speed.VARIANTS)
    variants, same = training_speed.distinct(config, [], names)
    assert same == {"bf16": "as configured"} and variants == [name for name in names if name != "bf16"]
    assert training_speed.distinct(config, [], ["bf16"]) == (["bf16"], {})


@pytest.mark.parametrize("arguments, words", [
    (["codec", "--size", "512"], ["HEIGHTxWIDTH"]),
    (["codec", "--baselines", "JPEG"], ["JPEG", "mbt2018_mean"]),
    (["codec", "-c", "gone.safetensors", "--baselines", "--no-released"], ["gone.safetensors: no such file"]),
    (["train", "-c", "gone.yaml"], ["gone.yaml"]),
    (["train", "-c", "configs/smoke.yaml", "--variants", "fp8"], ["fp8", "bf16"]),
    (["folder", "--workers", "0"], ["1 or more"]),
    (["levers", "--device", "meta"], ["device 'meta' cannot be used"]),
])  # fmt: skip
def test_wrong_usage_prints_one_line(arguments, words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    script = benchmark_command()
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
    monkeypatch.setattr(os, "environ", os.environ.copy())
    try:
        status = run_command(script.main)
    except SystemExit as end:
        status = end.code
    _, err = capsys.readouterr()
    error = [line for line in err.splitlines() if not line.endswith("...")]
    assert status == 2 and len(error) == 1
    assert all(word in error[0] for word in words)


def test_folder_report_describes_model(checkpoint, monkeypatch):
    script = benchmark_command()
    figures = dict.fromkeys(
        ("start_seconds", "one_by_one_seconds", "side_by_side_seconds", "ratio", "ratio_without_start"), 1.0
    )
    timed = {"images": 1, "compress": {**figures, "same_files": True}, "decompress": {**figures, "same_files": True}}
    monkeypatch.setattr(folder_speed, "time_folder", lambda *_: dict(timed))
    monkeypatch.setattr("sys.argv", ["benchmark", "folder", "-d", "x", "-c", str(checkpoint)])
    args = script._parser().parse_args()
    report, _ = script.folder(args)
    assert report["model"] == load(checkpoint).describe()


# Levers


@pytest.mark.parametrize("backbone", ["compact", "mlicpp"])
def test_levers_do_not_change_the_image(backbone):
    codec = Codec(small_model(backbone))
    for lever in levers.levers(codec, 128, 64):
        if lever.name != "compiled synthesis":  # takes a minute
            record = levers.measure(lever, 1)
            assert record["seconds_without"] > 0 and record["seconds_with"] > 0
            assert record["psnr_between"] is None or record["psnr_between"] > (40 if "bfloat16" in lever.name else 90)


def test_measure_lever_reports_medians(monkeypatch):
    monkeypatch.setattr(levers, "seconds_in_turns", lambda *_: [[1.0, 2.0, 9.0], [1.0, 1.0, 4.0]])
    lever = levers.Lever("x", True, "", lambda: torch.zeros(1), lambda: torch.full((1,), 0.1))
    record = levers.measure(lever, 3)
    assert (record["seconds_without"], record["seconds_with"], record["ratio"]) == (2.0, 1.0, 0.5)
    assert record["psnr_between"] == 20.0


def test_measure_lever_reports_error():
    def no_compiler():
        raise RuntimeError("no compiler here\nand a long trace")

    lever = levers.Lever("compiled synthesis", False, "", torch.ones, torch.ones, prepare=no_compiler)
    assert levers.measure(lever, 1)["error"] == "no compiler here"


# Batches and busy machines


def test_batch_speed_compares_with_single_calls(monkeypatch):
    monkeypatch.setattr(sharing, "build", lambda *_: Codec(small_model()))
    report = sharing.batch_speed((64, 64), 2, 2, 1)
    for name in ("compress", "decompress"):
        record = report[name]
        assert record["same"] and record["one_by_one_per_s"] > 0
        assert record["ratio"] == pytest.approx(record["batch_per_s"] / record["one_by_one_per_s"], rel=0.05)


def test_busy_speed_sets_the_wait_policy_of_each_run(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    monkeypatch.setattr(sharing, "in_fresh_process", lambda *_: {name: os.environ[name] for name in names})
    runs = sharing.busy_speed((64, 64), [0, 1], 1, 1)
    assert [(run["busy"], run["OMP_WAIT_POLICY"], run["GOMP_SPINCOUNT"]) for run in runs] == [
        (busy, *waiting)
        for busy in (0, 1)
        for waiting in (("passive", "2000"), ("passive", "0"), ("active", "infinite"))
    ]
    assert [run["policy"] for run in runs] == 2 * ["passive, 2000", "passive", "active"]
