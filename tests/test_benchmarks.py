"""The GPU benchmark runs the same code on a CPU, and measures nothing where there is no GPU."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import bench_gpu


def test_the_gpu_benchmark_trains_random_models_of_every_precision_on_a_cpu_too(capsys):
    pytest.importorskip("bitsandbytes")
    bench_gpu.main(["--device", "cpu", "--shapes", "tiny", "--rows", "24"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[1] for line in lines] == ["float32", "int8", "nf4"]
    assert all(float(line.split()[4].replace(",", "")) > 0 for line in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_the_table_says_not_measured(capsys):
    bench_gpu.main([])
    printed = capsys.readouterr().out
    assert "no GPU here" in printed
    assert printed.count("not measured") == 2 * len(bench_gpu.RUNS)
