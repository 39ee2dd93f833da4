"""`--server_type=nemo` where there is no vLLM: a converted copy behind `transformers serve`."""

import subprocess
from pathlib import Path

import pytest

from nemo_skills.conversion import hf_to_nemo
from nemo_skills.conversion.config import ConvertConfig
from nemo_skills.conversion.hf_copy import hf_copy
from nemo_skills.examples.tiny_model import build
from tests.integration.generation import read_rows, write_rows


@pytest.mark.service("hf")
def test_a_nemo_file_is_served(ns: list[str], weird_tmp_path: Path) -> None:
    model = build(weird_tmp_path / "hf")
    checkpoint = weird_tmp_path / "model.nemo"
    hf_to_nemo.convert(ConvertConfig(input_model=str(model), output_model=str(checkpoint)))
    write_rows(weird_tmp_path / "in.jsonl", 6)
    words = ["--server_type=nemo", f"--model={checkpoint}", "--input_file=in.jsonl", "--output_dir=o"]
    words += ["++prompt_config=generic/default", "++inference.tokens_to_generate=12"]
    done = subprocess.run([*ns, "generate", *words], cwd=weird_tmp_path, capture_output=True, text=True)
    log = (weird_tmp_path / "o" / "generation-logs" / "generate-server.log").read_text()
    assert done.returncode == 0, done.stderr + log
    rows = read_rows(weird_tmp_path / "o" / "generation" / "output.jsonl")
    assert [0 < row["num_generated_tokens"] <= 12 for row in rows] == [True] * 6
    assert f"serving {checkpoint} from {hf_copy(checkpoint)}" in log
