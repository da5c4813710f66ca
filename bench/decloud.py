"""GLF-CR as its formula is written and as Safelight computes it: time, memory, agreement, in one run.

    python bench/decloud.py                # one 128² tile, one thread
    python bench/decloud.py --device cuda --threads 8

Each formulation runs in a process of its own, which says its peak memory; the two results are compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import machine
from safelight.pipelines.decloud import network as module
from safelight.pipelines.decloud.network import GLFCR, HEADS, Architecture, JointWindowAttention, attention_mask

RESULT = Path(__file__).resolve().parent / "results" / "decloud.md"
MOST_SECONDS, MOST_MEGABYTES, LEAST_DECIBELS = 1.8, 600, 50.0
SIDE = 128
FORMULATIONS = ("plain", "ours", "ours, mixed precision")


@dataclass(frozen=True)
class Measured:
    """Median seconds of the processor and by the clock, peak bytes, and what the network adds to the image."""

    cpu: float
    clock: float
    bytes: int
    result: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", choices=FORMULATIONS, help="used by this script itself")
    parser.add_argument("--to", type=Path, help="used by this script itself")
    options = parser.parse_args()
    if options.one:
        measure(options.one, options.device, options.threads, options.repeats, options.to)
        return
    with tempfile.TemporaryDirectory() as folder:
        lines = machine.describe("bench/decloud.py")
        found = {name: run(name, options, Path(folder) / f"{number}") for number, name in enumerate(FORMULATIONS)}
    text = "\n".join(["# GLF-CR on one tile", "", *lines, "", *table(found), "", *targets(found), ""])
    RESULT.write_text(text, encoding="utf-8")
    print(text)


def run(name: str, options: argparse.Namespace, to: Path) -> Measured:
    command = [sys.executable, __file__, "--one", name, "--to", str(to), "--device", options.device]
    command += ["--threads", str(options.threads), "--repeats", str(options.repeats)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Measured(**json.loads(done.stdout), result=torch.load(to, weights_only=True))


def measure(name: str, device: str, threads: int, repeats: int, to: Path) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = GLFCR(Architecture()).eval().to(device)
    lively(net)
    if name == "plain":
        setattr(JointWindowAttention, "forward", plain_attention)  # noqa: B010 - an assignment mypy would refuse
        module._PIXELS_AT_A_TIME = {device: SIDE**2}
    cloudy, sar = torch.rand(1, 13, SIDE, SIDE).to(device), torch.rand(1, 2, SIDE, SIDE).to(device)
    seconds, clock = [], []
    with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16, enabled="mixed" in name):
        for _ in range(repeats + 1):
            before, at = time.process_time(), time.perf_counter()
            result = net(cloudy, sar).float().cpu()
            seconds.append(time.process_time() - before)
            clock.append(time.perf_counter() - at)
    torch.save(result - cloudy.cpu(), to)
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    print(
        json.dumps({"cpu": sorted(seconds[1:])[repeats // 2], "clock": sorted(clock[1:])[repeats // 2], "bytes": peak})
    )


def lively(net: GLFCR) -> None:
    """Give the attention something to do: with PyTorch's first weights its gate hardly matters."""
    for name, parameter in net.named_parameters():
        if "qkv" in name or "attn_fuse" in name or "table" in name:
            torch.nn.init.normal_(parameter, std=1.0 if "table" in name else 1.5 / parameter[0].numel() ** 0.5)


def plain_attention(
    self: JointWindowAttention, x: Tensor, x_sar: Tensor, regions: Tensor | None
) -> tuple[Tensor, Tensor]:
    """All windows at once, one operation after the other, as published."""
    windows, tokens, channels = x.shape

    def split(qkv: Tensor) -> Tensor:
        return qkv.view(windows, tokens, 3, HEADS, channels // HEADS).permute(2, 0, 3, 1, 4)

    (q, k, v), (q_sar, k_sar, v_sar) = split(self.qkv(x)), split(self.qkv_SAR(x_sar))
    table = self.relative_position_bias_table[self.relative_position_index.flatten()]
    bias = table.view(tokens, tokens, HEADS).permute(2, 0, 1)
    scale = (channels // HEADS) ** -0.5
    logits = (q * scale) @ k.transpose(-2, -1) + bias
    logits_sar = (q_sar * scale) @ k_sar.transpose(-2, -1) + bias
    if regions is not None:
        mask = attention_mask(regions).repeat(windows // len(regions), 1, 1)[:, None]
        logits, logits_sar = logits + mask, logits_sar + mask
    gate = torch.sigmoid(self.attn_fuse_1x1conv(logits_sar - logits))
    logits = logits + (logits_sar - logits) * gate
    out, out_sar = logits.softmax(-1) @ v, logits_sar.softmax(-1) @ v_sar
    return (
        self.proj(out.transpose(1, 2).reshape(windows, tokens, channels)),
        self.proj_SAR(out_sar.transpose(1, 2).reshape(windows, tokens, channels)),
    )


def table(found: dict[str, Measured]) -> list[str]:
    lines = [
        "| formulation | CPU s | clock s | peak MB | largest difference | agreement dB |",
        "|---|---|---|---|---|---|",
    ]
    plain = found["plain"].result
    for name, one in found.items():
        difference, decibels = float((one.result - plain).abs().max()), agreement(one.result, plain)
        lines.append(
            f"| {name} | {one.cpu:.2f} | {one.clock:.2f} | {one.bytes / 1e6:.0f} | {difference:.1e} | {decibels:.0f} |"
        )
    return lines


def agreement(a: Tensor, b: Tensor) -> float:
    """Return the PSNR in dB, the range that of what the network adds to the image."""
    return float(20 * torch.log10((b.amax() - b.amin()) / (a - b).square().mean().sqrt()))


def targets(found: dict[str, Measured]) -> list[str]:
    ours, mixed = found["ours"], agreement(found["ours, mixed precision"].result, found["plain"].result)
    checks = (
        (f"CPU time {ours.cpu:.2f} s, at most {MOST_SECONDS}", ours.cpu <= MOST_SECONDS),
        (f"memory {ours.bytes / 1e6:.0f} MB, at most {MOST_MEGABYTES}", ours.bytes / 1e6 <= MOST_MEGABYTES),
        (f"mixed precision {mixed:.0f} dB, at least {LEAST_DECIBELS:.0f}", mixed >= LEAST_DECIBELS),
    )
    return [f"- {'reached' if reached else 'MISSED'}: {what}" for what, reached in checks]


if __name__ == "__main__":
    main()
