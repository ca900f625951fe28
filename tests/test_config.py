"""Training configurations: bases and overrides of YAML files, allowed keys and values, and error messages."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from ugicm.config import (
    MLICPP,
    CompactConfig,
    Draw,
    HyperpriorConfig,
    MlicppConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    from_dict,
    load_config,
    to_dict,
)
from ugicm.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ABSTRACT = {"compact_base.yaml", "base.yaml", "stage1.yaml", "stage2.yaml"}


@pytest.fixture
def write(tmp_path):
    """write(name, **values) -> path of a YAML file with a minimal configuration and ``values``."""
    def make(name="x.yaml", bare=False, **values):
        minimal = {} if bare else {"run": {"dir": "run"}, "data": {"train": ["images"]}, "model": {}}
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({**minimal, **values}))
        return path

    return make


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONFIGS)))
def test_shipped_configurations_load(path):
    if path.name in ABSTRACT:
        config = load_config(path, ["init_from=x.safetensors", "run.dir=x"])
    else:
        config = load_config(path)
    assert to_dict(from_dict(TrainConfig, to_dict(config), "again")) == to_dict(config)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONFIGS)))
def test_shipped_configurations_stay_inside_the_repository(path):
    config = load_config(path, [f"init_from={CONFIGS}/x.safetensors"] if path.name in ABSTRACT else [])
    sources = [name for source in config.data.train for name in (source.path, source.instances) if name]
    for name in (config.run.dir, config.init_from, *sources):
        assert name is None or Path(name).is_relative_to(CONFIGS.parent)
    assert path.read_text().startswith("# ") and "\n# Needs: " in path.read_text()


def test_configurations_named_in_scripts_exist():
    root = CONFIGS.parent
    texts = {path.name: path.read_text() for path in root.glob("scripts/*.py")}
    named = [(name, config) for name, text in texts.items() for config in re.findall(r"configs/[\w/]+\.yaml", text)]
    assert "train.py" in dict(named)
    assert [(name, config) for name, config in named if not (root / config).is_file()] == []


def test_paper_configurations_use_the_released_model():
    assert load_config(CONFIGS / "paper/mlicpp_mse.yaml").model == MLICPP == MlicppConfig()
    assert load_config(CONFIGS / "paper/bmshj2018_mse.yaml").model == HyperpriorConfig()


def test_values_are_converted_by_field_type(write):
    path = write(optim={"lr": "1e-4", "steps": "2e3", "betas": ["0.9", 0.99]}, precision={"compile": True})
    config = load_config(path)
    assert config.optim.lr == 1e-4 and config.optim.steps == 2000 and config.optim.betas == (0.9, 0.99)


def test_bases_merge_and_paths_are_relative_to_their_file(write, tmp_path):
    write("deep/base.yaml", optim={"lr": 1.0, "steps": 7}, quality={"fixed": 0.5}, init_from="w.safetensors")
    path = write("top.yaml", bare=True, base="deep/base.yaml", optim={"lr": 0.5}, quality={"range": [0, 1]},
                 data={"train": [{"path": "more", "weight": 2}]})  # fmt: skip
    config = load_config(path, ["run.dir=/other", "data.train=[local]"])
    assert (config.optim.lr, config.optim.steps) == (0.5, 7)
    assert config.quality == Draw(range=(0.0, 1.0))  # replaced, not merged
    assert config.init_from == str(tmp_path / "deep/w.safetensors")
    assert config.run.dir == "/other"
    assert config.data.train[0].path == str(Path.cwd() / "local")  # relative to the current directory
    assert load_config(path).data.train[0].path == str(tmp_path / "more")
    assert load_config(path).run.dir == str(tmp_path / "deep/run")


def test_null_removes_free_keys(write):
    path = write(optim={"lr_scale": {"g_a": 2.0, "g_s": 3.0}})
    assert load_config(path, ["optim.lr_scale.g_s=null"]).optim.lr_scale == {"g_a": 2.0}
    assert load_config(path, ["optim.lr_scale.h_a=4"]).optim.lr_scale == {"g_a": 2.0, "g_s": 3.0, "h_a": 4.0}
    assert load_config(path, ["optim.lr_scale={}"]).optim.lr_scale == {}
    assert load_config(path, ["optim={}"]).optim.lr_scale == {}
    assert load_config(path, ["optim.lr=1", "optim.lr=null", "objective.teachers=null"]).optim.lr == 1e-4
    assert load_config(path, ["validation.crop=null", "objective.terms.global=null"]).validation.crop == 256


def test_names_of_weights_are_not_paths(write, tmp_path):
    teacher = {"kind": "timm", "name": "resnet18", "weights": "default"}
    path = write(objective={"teachers": {"a": teacher}})
    assert load_config(path).objective.teachers["a"].weights == "default"
    config = load_config(path, ["objective.teachers.a.weights=w.pth"])
    assert config.objective.teachers["a"].weights == str(Path.cwd() / "w.pth")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "--set optim.lrr=1: optim.lrr: unknown key; available: name, steps, lr"),
        ("model.slice_width=3", "model.slice_width: unknown key"),
        ("model.slice_width=3", "machine_depth; did you mean 'slice_widths'?"),
        ("model.channel_widths=[8]", "model.channel_widths: unknown key; available: backbone, N, M"),
        ("model.backbone=mlicp", "model.backbone: 'mlicp' not found; available: compact, mlicpp, bmshj2018; did you"),
        ("run.qqq=1", "run.qqq: unknown key; available: dir, seed, device"),
        ("optim.lr=fast", "--set optim.lr=fast: optim.lr: expected a number, got 'fast'"),
        ("optim.steps=1.5", "optim.steps: expected an integer, got 1.5"),
        ("optim.lr=.inf", "optim.lr: expected a number, got inf"),
        ("optim.lr_scale={g_a: 0}", "optim.lr_scale.g_a: must be above 0, got 0.0"),
        ("optim.betas=[0.9, 1.0]", "optim.betas[1]: must be below 1, got 1.0"),
        ("optim.betas=[0.9]", "optim.betas: expected a list of 2 values, got [0.9]"),
        ("optim.weight_decay=-1", "optim.weight_decay: must be at least 0, got -1.0"),
        ("optim.milestones=[-5]", "optim.milestones[0]: must be at least 0, got -5"),
        ("optim.warmup=1000000", "optim: warmup = 1000000 must not exceed steps = 100000"),
        ("objective.local_side=0", "objective.local_side: must be at least 1, got 0"),
        ("objective.teachers.a={kind: timm, name: x, std: [0, 0, 0]}", "objective.teachers.a.std[0]: must be above 0"),
        ("objective.teachers.a={kind: timm}", "objective.teachers.a.name: missing key"),
        ("data.max_instances=-1", "data.max_instances: must be at least 0, got -1"),
        ("optim={lr: 1, lr: 2}", "duplicate key 'lr'"),
        ("run.seed=-1", "run.seed: must be at least 0, got -1"),
        ("precision.compile=1", "precision.compile: expected true or false, got 1"),
        ("precision=1", "precision: expected a mapping of keys, got 1"),
        ("init_from=3", "init_from: expected a path, got 3"),
        ("optim.lr", "--set optim.lr: expected KEY=VALUE"),
        ("optim.lr=[", "invalid YAML"),
        ("model.M=193", "model: slice_widths [16, 32, 48, 96, 64] must add up to M = 193"),
        ("model.N=100000", "model.N: must be at most 16384, got 100000"),
        ("model.scale_min=64", "model: scale_min = 64.0 must be below scale_max = 64.0"),
        ("model.quality_points=1", "model: quality_points must be 0 or at least 2, got 1"),
        ("model.detail_width=16", "model: detail_width = 16 must be 0 or the width of the last slice, 64"),
        ("quality={fixed: 2}", "quality.fixed: must be at most 1, got 2.0"),
        ("quality={fixed: 0.5, range: [0, 1]}", "quality: give exactly one of fixed, choices, range"),
        ("quality={range: [1, 0]}", "quality: range must be [low, high] with low <= high"),
        ("objective.terms.gobal.machine=1", "objective.terms.gobal: 'gobal' not found; available: mse, ms_ssim"),
        ("objective.terms.gobal.machine=1", "did you mean 'global'?"),
        ("objective.terms.global.machine=1", "objective: terms: global: needs teachers"),
        ("objective.terms.ms_ssim.human=1", "ms_ssim needs crops of at least 192 pixels, got 128"),
        ("objective.terms.mse.human=-1", "objective.terms.mse.human: must be at least 0, got -1.0"),
        ("objective.lambdas=[0]", "objective.lambdas[0]: must be above 0, got 0.0"),
        ("objective.lambdas=[]", "objective.lambdas: length must be at least 1, got 0"),
        ("data.crop=100", "data.crop: must be a multiple of 64, got 100"),
        ("data.train=[]", "data: train needs at least one source"),
        ("data.train=x", "data.train: expected a list, got 'x'"),
        ("data.train=[{pth: x}]", "data.train[0].pth: unknown key; available: path, shards, weight, instances; did"),
        ("optim.accumulate=3", "data.batch = 8 must be divisible by optim.accumulate = 3"),
        ("optim.schedule=linear", "optim.schedule: 'linear' not found; available: cosine, step, constant"),
        ("validation.metric=ssim", "validation.metric: 'ssim' not found; available: loss, bpp, psnr, mse"),
        ("model=null", "give model, or init_from"),
        ("run.dir=null", "run.dir: missing key"),
    ],
)
def test_error_names_key_and_allowed_values(write, override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(write(), [override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_single_rate_model_needs_fixed_quality(write):
    assert load_config(write(), ["model.quality_points=0 "]).quality.fixed == 0.5
    path = write(model={"quality_points": 0}, quality={"range": [0, 1]})
    with pytest.raises(ConfigError, match="quality must be fixed"):
        load_config(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CompactConfig(N=-1), "CompactConfig.N: must be at least 1, got -1"),
        (lambda: dataclasses.replace(MLICPP, lrp="none"), "MlicppConfig.lrp: 'none' not found; available: full, slim"),
        (lambda: CompactConfig(slice_widths=(64, 64)), r"slice_widths \[64, 64\] must add up to M = 256"),
        (lambda: OptimConfig(lr="fast"), "OptimConfig.lr: expected a number, got 'fast'"),
    ],
)
def test_direct_construction_is_checked(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
    assert OptimConfig(lr="1e-5", betas=[0, 0.5]).betas == (0.0, 0.5)


def test_backbone_selects_the_model_class(write):
    assert type(load_config(write()).model) is CompactConfig
    path = write(model={"backbone": "mlicpp", "M": 64, "slice_widths": [32, 32]})
    assert load_config(path).model == MlicppConfig(M=64, slice_widths=(32, 32))
    assert load_config(path, ["model.lrp=slim"]).model == MlicppConfig(M=64, slice_widths=(32, 32), lrp="slim")
    assert load_config(path, ["model.backbone=bmshj2018"]).model == HyperpriorConfig()  # replaced, not merged
    assert not {"width_8", "slice_widths", "channel_widths"} & set(to_dict(HyperpriorConfig()))


def test_error_names_the_file_of_a_base(write, tmp_path):
    base = write("base.yaml", optimizer={"lr": 1})
    path = write("top.yaml", bare=True, base="base.yaml")
    with pytest.raises(ConfigError, match=f"{base}: optimizer: unknown key; .* did you mean 'optim'"):
        load_config(path)
    write("base.yaml", optim={"lr": -1})
    with pytest.raises(ConfigError, match=f"{base}: optim.lr: must be above 0, got -1"):
        load_config(path)
    with pytest.raises(ConfigError, match="none.yaml: cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="top.yaml: invalid YAML"):
        load_config(path)
    path.write_text("base: top.yaml")
    with pytest.raises(ConfigError, match="is its own base"):
        load_config(path)
    path.write_text("base: 3")
    with pytest.raises(ConfigError, match="top.yaml: base: expected text, got 3"):
        load_config(path)
    with pytest.raises(ConfigError, match="somewhere: expected a mapping"):
        from_dict(ModelConfig, [1], "somewhere")


def test_large_integers_are_exact(write):
    assert load_config(write(), ["run.seed=9007199254740993"]).run.seed == 2**53 + 1


def test_duplicate_keys_are_refused(write):
    path = write()
    path.write_text(path.read_text() + "\noptim: {lr: 1}\noptim: {steps: 3}\n")
    with pytest.raises(ConfigError, match=r"yaml: invalid YAML: duplicate key 'optim' in .*line"):
        load_config(path)


def test_messages_stay_short(write):
    path = write()
    bomb = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else '1'}]\n" for i in range(8))
    path.write_text(bomb + "optim: {lr: *a7}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(str(caught.value)) < 1000
