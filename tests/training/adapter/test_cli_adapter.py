from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from router_runtime.artifacts import load_artifact
from router_runtime.errors import RouterError
from router_training.cli_adapter import fit_adapter

pytest.importorskip("router_training.adapter.learner", exc_type=ImportError)

APP = typer.Typer()
APP.command("fit-adapter")(fit_adapter)
QUICKLY = ["--learning_rate", "1e-2", "--lora_rank", "8", "--lora_alpha", "16", "--device", "cpu"]


def invoke(*arguments):
    found = CliRunner().invoke(APP, list(map(str, arguments)))
    if isinstance(found.exception, RouterError):
        raise found.exception
    return found


def test_the_seed_command_trains_a_router(llama, few_texts, tmp_path):
    output = tmp_path / "router-classifier"
    found = invoke(
        *("--model_name_or_path", llama),
        *("--data_path", few_texts / "train-classification.jsonl"),
        *("--eval_data_path", few_texts / "val-classification.jsonl"),
        *("--output_dir", output),
        *("--num_train_epochs", 1),
        *("--per_device_train_batch_size", 4),
        *("--per_device_eval_batch_size", 4),
        *("--gradient_accumulation_steps", 2),
        *("--save_total_limit", 3),
        *("--weight_decay", 0.01),
        *("--warmup_ratio", 0.03),
        *("--lr_scheduler_type", "cosine"),
        *("--bf16", "False"),
        *("--gradient_checkpointing", "True"),
        *("--report_to", "tensorboard"),
        *QUICKLY,
    )
    assert found.exit_code == 0, found.output
    assert "epoch 1: training loss" in found.output and "epoch 1 saved in" in found.output
    description = load_artifact(output).parts.description
    assert (description.dtype, description.adapter["r"]) == ("float32", 8)
    assert list((output / "logs").glob("events.out.tfevents*"))
    assert (output / "epochs" / "epoch-001" / "adapter_model.safetensors").is_file()


def test_options_may_be_spelt_with_dashes_and_a_folder_given(llama, few_texts, tmp_path):
    output = tmp_path / "r"
    found = invoke(
        *("--model-name-or-path", llama, "--data-path", few_texts, "--output-dir", output),
        *("--num-train-epochs", 1, "--lora-target-modules", "q_proj, v_proj", "--json"),
        *QUICKLY,
    )
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["best_epoch"] == 1
    modules = load_artifact(output).parts.description.adapter["target_modules"]
    assert {name.rpartition(".")[2] for name in modules} == {"q_proj", "v_proj"}


def test_what_cannot_be_is_said_in_a_line(llama, few_texts, tmp_path):
    with pytest.raises(RouterError, match=r"fit-adapter.*dropout"):
        invoke("--model_name_or_path", llama, "--data_path", few_texts, "--lora_dropout", 1.5)
    with pytest.raises(RouterError, match="There is no such file"):
        invoke("--model_name_or_path", llama, "--data_path", tmp_path / "none.jsonl")
    assert invoke("--model_name_or_path", llama).exit_code == 2
