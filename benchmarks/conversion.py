"""How fast models convert between Hugging Face folders and NeMo checkpoints, next to `cp` of the same bytes.

A random bf16 model of 2.1 GB (1.07 billion parameters, two files) is made once. Then, several times in
turn: `cp -r` of its folder, Hugging Face to NeMo, `cp -r` of the NeMo checkpoint, NeMo to Hugging Face.
All four write to the same disk and end when their files are on it (fsync), all read what the page cache
holds, all begin with a quiet disk (sync); the best time of each is compared: a disk shared with others
delays now this one, now that one, and cp and conversion alike. Conversions run in a fresh process each,
whose imports (printed) are not part of the time; `peak_rss_mb` is the largest resident set of such a
process or of one that it starts. At the end the tensors of the last round trip are compared with the
model's, byte by byte.
Run: `python benchmarks/conversion.py [repetitions]`. The last line is one JSON object.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nemo_skills.core.safetensors import SafetensorsFolder, TensorKind, write_tensors

BOUNDS = {"to_nemo_vs_cp": 0.5, "to_hf_vs_cp": 0.5, "peak_rss_mb": 1024}
SIZES = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 18, "vocab_size": 64_000}
HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8}
CHILD = """
import json, resource, sys, time
start = time.monotonic()
import torch.distributed.checkpoint
from nemo_skills.conversion import hf_to_nemo, nemo_to_hf
from nemo_skills.conversion.config import ConvertConfig
main, source, output = sys.argv[1:]
config = ConvertConfig(input_model=source, output_model=output)
imported = time.monotonic()
{"to_nemo": hf_to_nemo, "to_hf": nemo_to_hf}[main].convert(config)
done = time.monotonic()
usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
rss_mb = max(usage.ru_maxrss for usage in usages) / 1024
print(json.dumps({"s": done - imported, "import_s": imported - start, "rss_mb": rss_mb}))
"""


def make_model(folder: Path) -> int:
    """Write a Llama of random numbers; return its size in bytes."""
    from nemo_skills.conversion.families import find_families
    from nemo_skills.conversion.mapping import hf_shapes
    from nemo_skills.conversion.model_config import parse_config

    folder.mkdir()
    config = {"model_type": "llama", "max_position_embeddings": 4096, "dtype": "bfloat16", **SIZES, **HEADS}
    (folder / "config.json").write_text(json.dumps(config))
    shape = parse_config((folder / "config.json").read_bytes(), "config").shape
    shapes = hf_shapes(find_families("llama")[0], shape)
    kinds = {name: TensorKind("BF16", sizes) for name, sizes in shapes.items()}
    random = np.random.default_rng(0)

    def pieces(name: str) -> Iterator[memoryview]:
        yield memoryview(random.bytes(kinds[name].nbytes))

    size = sum(kind.nbytes for kind in kinds.values())
    write_tensors(folder, kinds, pieces, size // 2 + 2**27)
    return size


def copy(source: Path, output: Path) -> float:
    """Copy a folder with cp; return how long it took until all was on the disk."""
    os.sync()
    start = time.monotonic()
    subprocess.run(["cp", "-r", source, output], check=True)
    for file in output.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    return time.monotonic() - start


def convert(main: str, source: Path, output: Path) -> dict[str, float]:
    """Convert in a fresh process; return its figures."""
    os.sync()
    command = [sys.executable, "-c", CHILD, main, str(source), str(output)]
    done: dict[str, float] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    return done


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors."""
    first, second = SafetensorsFolder(one), SafetensorsFolder(other)
    for name, kind in first.kinds.items():
        views = [memoryview(bytearray(kind.nbytes)) for _ in range(2)]
        first.read_into(name, 0, views[0])
        second.read_into(name, 0, views[1])
        if second.kinds[name] != kind or views[0] != views[1]:
            return False
    return first.kinds == second.kinds


def main() -> int:
    """Measure, print, and say whether the bounds hold."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    times: dict[str, list[float]] = {"cp_hf": [], "to_nemo": [], "cp_nemo": [], "to_hf": []}
    rss, imports = 0.0, []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model, nemo, back, copied = work / "model", work / "nemo", work / "back", work / "copy"
        size = make_model(model)
        print(f"{size / 1e9:.2f} GB, {repetitions} repetitions")
        for repetition in range(repetitions):
            shutil.rmtree(nemo, ignore_errors=True)
            shutil.rmtree(back, ignore_errors=True)
            for what, source, output in (("to_nemo", model, nemo), ("to_hf", nemo, back)):
                # a disk may be slower for what comes second
                for step in ("cp", what) if repetition % 2 else (what, "cp"):
                    if step == "cp":
                        times["cp_hf" if what == "to_nemo" else "cp_nemo"].append(copy(source, copied))
                        shutil.rmtree(copied)
                        continue
                    figures = convert(what, source, output)
                    times[what].append(figures["s"])
                    imports.append(figures["import_s"])
                    rss = max(rss, figures["rss_mb"])
        equal = same(model, back)
    speed = {name: size / 1e9 / min(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"  {name:8} {speed[name]:5.2f} GB/s  ({', '.join(f'{value:.2f}' for value in values)} s)")
    print(f"  imports before the start {statistics.median(imports):.1f} s; round trip equal: {equal}")
    figures = {
        "to_nemo_vs_cp": round(speed["to_nemo"] / speed["cp_hf"], 2),
        "to_hf_vs_cp": round(speed["to_hf"] / speed["cp_nemo"], 2),
        "peak_rss_mb": round(rss),
    }
    print(json.dumps({"benchmark": "conversion", "gb": round(size / 1e9, 2), **figures, "bounds": BOUNDS}))
    fast = all(figures[name] >= BOUNDS[name] for name in ("to_nemo_vs_cp", "to_hf_vs_cp"))
    return 0 if equal and fast and rss <= BOUNDS["peak_rss_mb"] else 1


if __name__ == "__main__":
    sys.exit(main())
