"""Training configurations: layers of yaml files, strict keys, and messages that say what would have worked."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from ugicm.config import MLICPP, Draw, ModelConfig, TrainConfig, from_dict, load_config, to_dict
from ugicm.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ABSTRACT = {"compact_base.yaml", "base.yaml", "stage1.yaml", "stage2.yaml"}


@pytest.fixture
def write(tmp_path):
    """write(name, **values) -> path of a yaml with a minimal training configuration, laid under ``values``."""
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


def test_configurations_that_scripts_name_exist():
    root = CONFIGS.parent
    texts = {path.name: path.read_text() for path in root.glob("scripts/*.py")}
    named = [(name, config) for name, text in texts.items() for config in re.findall(r"configs/[\w/]+\.yaml", text)]
    assert "train.py" in dict(named)
    assert [(name, config) for name, config in named if not (root / config).is_file()] == []


def test_full_size_configurations_are_the_released_form():
    assert load_config(CONFIGS / "paper/mlicpp_mse.yaml").model == MLICPP
    hyperprior = dataclasses.replace(MLICPP, backbone="bmshj2018", slices=1, lrp="none")
    assert load_config(CONFIGS / "paper/bmshj2018_mse.yaml").model == hyperprior


def test_values_are_converted_by_field_type(write):
    path = write(optim={"lr": "1e-4", "steps": "2e3", "betas": ["0.9", 0.99]}, precision={"compile": True})
    config = load_config(path)
    assert config.optim.lr == 1e-4 and config.optim.steps == 2000 and config.optim.betas == (0.9, 0.99)


def test_layers_merge_and_paths_belong_to_their_file(write, tmp_path):
    write("deep/base.yaml", optim={"lr": 1.0, "steps": 7}, quality={"fixed": 0.5}, init_from="w.safetensors")
    path = write("top.yaml", bare=True, base="deep/base.yaml", optim={"lr": 0.5}, quality={"range": [0, 1]},
                 data={"train": [{"path": "more", "weight": 2}]})  # fmt: skip
    config = load_config(path, ["run.dir=/elsewhere", "data.train=[here]"])
    assert (config.optim.lr, config.optim.steps) == (0.5, 7)
    assert config.quality == Draw(range=(0.0, 1.0))  # its forms exclude each other: replaced, not merged
    assert config.init_from == str(tmp_path / "deep/w.safetensors")
    assert config.run.dir == "/elsewhere"
    assert config.data.train[0].path == str(Path.cwd() / "here")  # the command line's: relative to where it is given
    assert load_config(path).data.train[0].path == str(tmp_path / "more")
    assert load_config(path).run.dir == str(tmp_path / "deep/run")


def test_free_keys_can_be_taken_out(write):
    path = write(optim={"lr_scale": {"g_a": 2.0, "g_s": 3.0}})
    assert load_config(path, ["optim.lr_scale.g_s=null"]).optim.lr_scale == {"g_a": 2.0}
    assert load_config(path, ["optim.lr_scale.h_a=4"]).optim.lr_scale == {"g_a": 2.0, "g_s": 3.0, "h_a": 4.0}
    assert load_config(path, ["optim.lr_scale={}"]).optim.lr_scale == {}
    assert load_config(path, ["optim={}"]).optim.lr_scale == {"g_a": 2.0, "g_s": 3.0}


def test_a_name_that_may_be_a_file_stays_a_name(write, tmp_path):
    teacher = {"kind": "timm", "name": "resnet18", "weights": "default"}
    path = write(objective={"teacher": teacher})
    assert load_config(path).objective.teacher.weights == "default"
    assert load_config(path, ["objective.teacher.weights=w.pth"]).objective.teacher.weights == str(Path.cwd() / "w.pth")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "--set optim.lrr=1: optim: unknown key 'lrr'; did you mean 'lr'?"),
        ("model.slice=3", "model: unknown key 'slice'; did you mean 'slices'?"),
        ("optim.lr=fast", "optim.lr: expected float, got 'fast'"),
        ("optim.steps=1.5", "optim.steps: expected int, got 1.5"),
        ("optim.lr=.inf", "optim.lr: expected float, got inf"),
        ("optim.lr_scale={g_a: 0}", "lr_scale.g_a must be positive, got 0.0; to train none of it, use freeze"),
        ("optim.betas=[0.9, 1.0]", "betas must be two numbers in [0, 1)"),
        ("optim.weight_decay=-1", "weight_decay must not be negative"),
        ("optim.final_lr=-1e-3", "final_lr must not be negative, got -0.001"),
        ("optim.gamma=-2", "gamma must be positive"),
        ("optim.milestones=[-5]", "milestones are steps from 0 on, got [-5]"),
        ("objective.balance_lr=-1", "balance_lr must be positive"),
        ("objective.local_side=0", "local_side must be positive, got 0"),
        ("objective.teacher={kind: timm, name: x, std: [0, 0, 0]}", "objective.teacher: std must be positive"),
        ("data.max_instances=-1", "data: max_instances must not be negative"),
        ("optim={lr: 1, lr: 2}", "key 'lr' stands here twice"),
        ("run.seed=-1", "run: seed must not be negative"),
        ("validation.every=-1", "validation: every must not be negative"),
        ("precision.compile=1", "precision.compile: expected true or false, got 1"),
        ("optim.lr", "--set optim.lr: expected KEY=VALUE"),
        ("optim.lr=[", "not a yaml value"),
        ("model.M=193", "must be 4 numbers that add up to M = 193"),
        ("model={M: 193, slice_widths: []}", "M = 193 is not divisible by slices = 4"),
        ("quality={fixed: 2}", "quality: values must lie in [0, 1], got [2.0]"),
        ("quality={fixed: 0.5, range: [0, 1]}", "quality: give exactly one of fixed, choices, range"),
        ("objective.terms.gobal.machine=1", "terms: 'gobal' not found; did you mean 'global'?"),
        ("objective.terms.global.machine=1", "global: needs a teacher"),
        ("objective.terms.ms_ssim.human=1", "ms_ssim needs crops of at least 192 pixels, got 128"),
        ("objective.terms.mse.human=-1", "objective.terms.mse: weights must not be negative"),
        ("objective.lambdas=[0]", "lambdas must be positive"),
        ("data.crop=100", "data: crop must be a multiple of 64, got 100"),
        ("data.train=[]", "data: train needs at least one source"),
        ("data.train=[{pth: x}]", "data.train[0]: unknown key 'pth'; did you mean 'path'?"),
        ("optim.accumulate=3", "data.batch = 8 is not divisible by optim.accumulate = 3"),
        ("optim.schedule=linear", "schedule 'linear' not found; available: cosine, step, constant"),
        ("precision.bf16_parser=true", "bf16_parser needs autocast: bf16"),
        ("validation.metric=ssim", "validation.metric: 'ssim' not found; available: loss, bpp, psnr, mse"),
        ("model=null", "give model, or init_from"),
        ("model.quality_points=0 ", None),  # fixed quality: fine
    ],
)
def test_bad_values_say_what_would_have_worked(write, override, message):
    path = write()
    if message is None:
        load_config(path, [override])
        return
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_one_rate_model_needs_a_fixed_quality(write):
    path = write(model={"quality_points": 0}, quality={"range": [0, 1]})
    with pytest.raises(ConfigError, match="quality must be fixed"):
        load_config(path)


def test_messages_name_the_file(write, tmp_path):
    base = write("base.yaml", optimizer={"lr": 1})
    path = write("top.yaml", bare=True, base="base.yaml")
    with pytest.raises(ConfigError, match=f"{base}: unknown key 'optimizer'; did you mean 'optim'"):
        load_config(path)
    with pytest.raises(ConfigError, match="none.yaml: cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="not yaml"):
        load_config(path)
    path.write_text("base: top.yaml")
    with pytest.raises(ConfigError, match="is its own base"):
        load_config(path)
    with pytest.raises(ConfigError, match="expected a mapping"):
        from_dict(ModelConfig, [1], "somewhere")


def test_integers_are_taken_as_they_are(write):
    assert load_config(write(), ["run.seed=9007199254740993"]).run.seed == 2**53 + 1


def test_a_key_that_stands_twice_is_named(write):
    path = write()
    path.write_text(path.read_text() + "\noptim: {lr: 1}\noptim: {steps: 3}\n")
    with pytest.raises(ConfigError, match=r"yaml: not yaml: key 'optim' stands here twice in .*line"):
        load_config(path)


def test_messages_stay_short(write):
    path = write()
    bomb = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else '1'}]\n" for i in range(8))
    path.write_text(bomb + "optim: {lr: *a7}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(str(caught.value)) < 1000
