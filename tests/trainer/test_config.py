"""Settings of a run: every shipped file is read, and what is wrong is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType
from accelerate.utils.deepspeed import HfDeepSpeedConfig

from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.settings import load

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "configs" / "train"
RUNS = [f for f in sorted(SHIPPED.glob("*.yaml")) if "rows" in yaml.safe_load(f.read_text())]


def test_there_is_one_for_each_kind_of_run() -> None:
    wanted = {"sft", "policy-gradient", "dpo", "prm", "orm", "value", "lora", "full-7b"}
    assert wanted <= {file.stem for file in RUNS}


@pytest.mark.parametrize("file", RUNS, ids=lambda f: f.stem)
def test_a_shipped_run_is_read(file: Path) -> None:
    config = load(TrainConfig, file)
    assert config.model == "models/policy" or config.model.startswith("Qwen/")
    assert config.accumulation(config.processes or 1) >= 1


def cluster(name: str) -> ClusterConfig:
    config = load_config_from_file(str(SHIPPED / name))
    assert isinstance(config, ClusterConfig)
    return config


def test_the_launcher_reads_fsdp2() -> None:
    config = cluster("accelerate-fsdp2.yaml")
    assert config.distributed_type == DistributedType.FSDP
    assert config.fsdp_config["fsdp_version"] == 2
    assert config.mixed_precision == "no", "it is for the run's settings to say"
    assert config.num_processes == load(TrainConfig, SHIPPED / "full-7b.yaml").processes


def test_the_launcher_reads_deepspeed() -> None:
    config = cluster("accelerate-deepspeed.yaml")
    assert config.distributed_type == DistributedType.DEEPSPEED
    assert (ROOT / config.deepspeed_config["deepspeed_config_file"]).exists()


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_reads_its_own(stage: int) -> None:
    file = SHIPPED / f"deepspeed-zero{stage}.json"
    config = HfDeepSpeedConfig(json.loads(file.read_text()))
    assert config.is_zero3() == (stage == 3)
    assert config.is_zero2() == (stage == 2)
    # What the run says of itself is not said twice.
    for key in ("gradient_accumulation_steps", "train_micro_batch_size_per_gpu"):
        assert config.get_value(key) == "auto"


def written(folder: Path, text: str) -> Path:
    file = folder / "train.yaml"
    file.write_text(text)
    return file


LEAST = "model: m\nrows: [r]\noutput: o\n"


def test_words_win_over_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, LEAST + "optimizer: {learning_rate: 1e-4}\nlosses: {rl: 0.5}\n")
    words = [
        "optimizer.learning_rate=3e-5",
        "off_policy=null",
        "lora.rank=8",
        "rows=[a, b]",
        "output=./there",
    ]
    config = load(TrainConfig, file, words)
    assert config.optimizer.learning_rate == 3e-5
    assert config.losses.rl == 0.5
    assert config.off_policy is None
    assert config.lora is not None
    assert config.lora.rank == 8
    assert [str(p) for p in config.rows] == ["a", "b"]
    assert config.output == Path("there")


@pytest.mark.parametrize(
    "text, words, message",
    [
        ("learning_rate: 1e-4\n", [], r"train.yaml: learning_rate: Extra inputs"),
        ("optimizer: {learning_rate: fast}\n", [], r"optimizer.learning_rate: Input should be"),
        ("", ["optimizer.betas=[0.9]"], r"optimizer.betas.1: Field required"),
        ("", ["losses.policy=ppo"], r"losses.policy: Input should be 'pg', 'clip' or 'cispo'"),
        ("", ["batch=10"], r"batch: 10 is not a multiple of micro_batch, 8"),
        ("", ["rows=[]"], r"rows: Tuple should have at least 1"),
        ("", ["head.labels=1"], r"head: labels: only a token head has a choice"),
        ("", ["off_policy.max_staleness=1"], r"off_policy: max_staleness: say in versions which"),
        ("", ["off_policy.reject=[2, 0.5]"], r"off_policy: reject: the first number must be below"),
        ("", ["batch"], r"--set batch: must be key=value, such as optimizer.learning_rate=1e-4"),
        ("model: n\n", [], r"the key 'model' stands there twice"),
        ("seed: .nan\n", [], r"seed"),
        ("losses: [1]\n", [], r"losses: "),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(TrainConfig, written(tmp_path, LEAST + text), words)


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "\xff"])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    file = tmp_path / "train.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"train\.yaml"):
        load(TrainConfig, file)


def test_settings_are_read_without_torch() -> None:
    code = (
        "import sys, trainer.config, trainer.settings, trainer.rows; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
