"""Settings of `run_generation`: the known command lines, and every mistake named before anything runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import compose
from nemo_skills.inference.generate_offline import OfflineConfig
from nemo_skills.inference.offline.environment import register_arithmetic
from nemo_skills.inference.run_generation import RunGenerationConfig

REQUIRED = [
    "pretrained_checkpoint.restore_from_path=/models/m",
    "model.data.train_ds.file_path=in.jsonl",
    "exp_manager.explicit_log_dir=/results",
]
ROWS = ["++input_file=in.jsonl", "++output_file=out.jsonl", "++server.server_type=hf", "++server.model=/m"]


def config(*args: str) -> RunGenerationConfig:
    return compose(RunGenerationConfig, [*REQUIRED, *args])


def offline(*args: str) -> OfflineConfig:
    return compose(OfflineConfig, [*ROWS, *args])


def test_the_published_command_line_is_understood() -> None:
    found = config(
        "trainer.num_nodes=1",
        "trainer.devices=8",
        "model.micro_batch_size=1",
        "model.global_batch_size=32",
        "exp_manager.create_wandb_logger=false",
        "exp_manager.wandb_logger_kwargs.project=null",
        "exp_manager.wandb_logger_kwargs.name=null",
        "++model.sequence_parallel=false",
        "++model.apply_rope_fusion=false",
        "trainer.generation.max_epochs=1",
        "model.generation.num_responses_to_gen=1",
        "trainer.generation.trt_llm.enable=true",
    )
    assert found.engine_name == "trtllm"
    assert (found.batch, found.trainer.devices) == (1, 8)
    assert found.output == Path("/results/generations/generations.jsonl")


def test_a_config_file_with_the_published_arithmetic(weird_tmp_path: Path) -> None:
    register_arithmetic()
    (weird_tmp_path / "gpt_generation.yaml").write_text(
        """
pretrained_checkpoint: {restore_from_path: /m}
exp_manager: {explicit_log_dir: /r}
model:
  encoder_seq_length: 4096
  data: {train_ds: {file_path: in.jsonl}}
  generation:
    length_params: {max_length: "${int_div:${model.encoder_seq_length}, 2}", min_length: 1}
    trt_llm:
      enable: true
      max_input_len: "${subtract:${model.encoder_seq_length}, ${model.generation.length_params.max_length}}"
      model_type: gptnext
      unload_engine_train: false
"""
    )
    found = compose(
        RunGenerationConfig,
        ["--config-path", str(weird_tmp_path), "--config-name", "gpt_generation", "engine=hf"],
    )
    spec = found.engine_spec()
    assert (spec.engine, spec.max_tokens, spec.max_prompt, spec.context) == ("hf", 2048, 2048, 4096)


def test_defaults_are_those_that_users_know() -> None:
    spec = config().engine_spec()
    sampling = spec.sampling
    assert (spec.engine, spec.dtype, spec.clean, spec.long_prompts) == ("hf", "auto", False, "skip")
    assert (sampling.greedy, sampling.temperature, sampling.top_k, sampling.top_p) == (False, 1.0, 0, 1.0)
    assert sampling.end_strings == ("<|endoftext|>", "<extra_id_1>")
    assert sampling.min_tokens == 1


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["engine=vllm"], {"engine": "vllm", "batch": 256}),
        (["model.generation.trt_llm.enable=true"], {"engine": "trtllm"}),
        (["model.generation.trt_llm.enable=true", "engine=vllm"], {"engine": "vllm"}),
        (["trainer.precision=bf16"], {"dtype": "bfloat16"}),
        (["trainer.precision=32"], {"dtype": "float32"}),
        (
            ["model.data.train_ds.max_seq_length=100", "model.generation.trt_llm.max_input_len=50"],
            {"max_prompt": 50},
        ),
        (["model.tensor_model_parallel_size=2"], {"tensor_parallel": 2}),
        (["++engine_args.gpu_memory_utilization=0.5"], {"args": {"gpu_memory_utilization": 0.5}}),
    ],
)
def test_what_the_engine_is_told(args: list[str], expected: dict[str, object]) -> None:
    spec = config(*args).engine_spec()
    assert {name: getattr(spec, name) for name in expected} == expected


@pytest.mark.parametrize("args", [["use_greedy=true"], ["temperature=0"]])
def test_greedy_in_two_ways(args: list[str]) -> None:
    spec = config(*(f"model.generation.sampling_params.{arg}" for arg in args)).engine_spec()
    assert spec.sampling.greedy


def test_top_p_0_is_off_as_it_always_was() -> None:
    spec = config("model.generation.sampling_params.top_p=0.0").engine_spec()
    assert spec.sampling.top_p == 1.0


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("model.generation.num_response_to_gen=2", r"Did you mean 'model\.generation\.num_responses_to_gen'"),
        ("model.generation.sampling_params.tempreture=1", r"Did you mean '.*sampling_params\.temperature'"),
        ("engine=vlm", "vllm"),
        ("model.generation.sampling_params.all_probs=true", "compute_logprob is"),
        ("model.pipeline_model_parallel_size=2", "tensor_model_parallel_size"),
        ("exp_manager.create_wandb_logger=true", "no metrics"),
        ("trainer.precision=bf8", "bf16"),
        ("model.global_batch_size=0", "model.global_batch_size must be positive"),
        ("trainer.devices=0", "trainer.devices must be positive"),
        ("model.generation.trt_llm.reshard=true", "reshard is not supported"),
        ("model.generation.sampling_params.end_strings=[a,'']", "empty text"),
    ],
)
def test_mistakes_are_named(arg: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(arg)


def test_what_must_be_given_is_listed_at_once() -> None:
    with pytest.raises(UserError) as caught:
        compose(RunGenerationConfig, [])
    for key in ("restore_from_path", "file_path", "explicit_log_dir"):
        assert f"{key}: missing" in str(caught.value)


def test_rows_without_a_server_take_the_arguments_of_the_generation_main() -> None:
    found = offline(
        "++inference.temperature=0.5",
        "++inference.top_k=7",
        "++inference.tokens_to_generate=99",
        "++server.context_limit_retry_strategy=reduce_generation",
    )
    spec = found.engine_spec(("stop",))
    assert (spec.max_tokens, spec.sampling.top_k, spec.sampling.end_strings) == (99, 7, ("stop",))
    assert (spec.clean, spec.long_prompts, found.batch) == (True, "shorten_response", 8)
    assert offline("++inference.top_k=-1").engine_spec(()).sampling.top_k == 0
    assert offline().engine_spec(()).sampling.greedy


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("++server.server_type=openai", "without a server it is one of hf, vllm, trtllm"),
        ("++num_chunks=2 ++chunk_id=0", "num_chunks needs a server"),
        ("++multi_turn_key=turns", "multi_turn_key needs a server"),
        ("++inference.top_logprobs=1", "top_logprobs needs a server"),
        ("++inference.extra_body={a: 1}", "engine_args go to the engine"),
        ("++server.address=http://x", "no server"),
        ("++server.model=null", "server.model is missing"),
        ("++batch_sizes=1", "Did you mean 'batch_size'"),
        ("++devices=0", "devices must be positive"),
    ],
)
def test_what_needs_a_server_is_refused(arg: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        offline(*arg.split(" ++") if arg.startswith("++num") else [arg])


def test_importing_the_mains_imports_nothing_heavy() -> None:
    script = (
        "import sys, nemo_skills.inference.run_generation, nemo_skills.inference.generate_offline;"
        "heavy = {'torch', 'transformers', 'vllm', 'hydra', 'omegaconf', 'aiohttp', 'openai'};"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
