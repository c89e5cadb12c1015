"""`large_shapes.md`, written from the results and tables of `large_shapes.py`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

MB, GB = 1e6, 1e9
NOT_RUN = "**Counted, not run: no GPU has been used.**"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def write_report(results: dict[str, Any], tables: dict[str, Any], path: Path) -> None:
    """Writes the page."""
    parts = [_size, _check, _memory, _time, _decoding, _eight, _corpus, _peers, _limits]
    path.write_text("\n".join(part(results, tables) for part in parts), encoding="utf-8")


def _size(results: dict[str, Any], tables: dict[str, Any]) -> str:
    p = results["parameters"]
    rows = [(name.replace("_", " "), f"{count:,}") for name, count in p.items()]
    fits = max(abs(v["counted"] / v["by_hand"] - 1) for v in results["hand_formula"].values())
    return f"""# What the reference pair needs

{tables["models"]["reference"]["title"]}, LoRA of rank 16 on all linear layers, audio tokens of 80 ms. {NOT_RUN}
FLOPs and bytes are those of the real classes on torch's `meta` device (`benchmarks/shape_counting.py`); times follow from
published peaks at an assumed fraction of them, {tables["assumptions"]["planned_fraction"]} where none is named. Again: `python benchmarks/large_shapes.py`.

{table(["parameters", "counted"], rows)}
An adapter checkpoint is {results["checkpoint_bytes"] / MB:.0f} MB in float32, {4 * p["projector"] / MB:.0f} MB of it the projector
(`--projector_hidden_size` is four times the language model's width when not given); the frozen bases are
{results["frozen_bytes"] / GB:.2f} GB in bfloat16. FLOPs of a step differ from the textbook's formula by at most {fits:.2%} in any part.
"""


def _check(results: dict[str, Any], tables: dict[str, Any]) -> str:
    rows = []
    for line in results["check_on_cpu"]["lines"]:
        name = f"{line['shape']}, {line['precision']}" + (", checkpointing" if line["checkpointing"] else "")
        exact, default = line["measured_mib_exact"], line["measured_mib_default"]
        measured = [f"{line['counted_mib']:.0f}", f"{exact:.0f}", f"{line['error']:+.1%}", f"{default:.0f}"]
        rows.append([name, *measured, f"{line['gflops_per_s']:.0f}"])
    worst = max(abs(line["error"]) for line in results["check_on_cpu"]["lines"])
    return f"""## Is the counting right?

The same counting for the embedded pair, beside what a step of `training_step.py` took here above what was there before it,
with every tensor in pages of its own (MALLOC_MMAP_THRESHOLD_=65536), and as glibc keeps memory by itself. The counted bytes
are off by at most {worst:.1%}; the rest is the allocator's. Rates are of a shared machine.

{table(["step", "counted MiB", "measured", "error", "glibc's default", "GFLOP/s"], rows)}"""


def _memory(results: dict[str, Any], tables: dict[str, Any]) -> str:
    columns = ("tokens", "tflops", "activations_gb", "peak_gb")
    rows = [
        [f"{s['audio_seconds']:g} s", s["variant"], s["tokens"], *(f"{s[c]:.2f}" for c in columns[1:])]
        for s in results["steps"]
    ]
    sizes = tables["memory_gb"]
    best = [
        [f"{b['audio_seconds']:g} s", "yes" if b["checkpointing"] else "no", f"{b['gb_per_row']:.3f}"]
        + [b[f"rows_in_{size}_gb"] for size in sizes]
        for b in results["best_batches"]
    ]
    first = results["steps"][0]
    assumed = tables["assumptions"]
    return f"""## Memory and work of a training step, 8 rows

Peak: {first["static_gb"]:.2f} GB of weights and AdamW's states, then activations, gradients and scratch. Attention is the fused kernel.
The shared prefix is run once on a CPU only (`cpu_speed.py`); its line says what a GPU would save. The encoder stays on the
device where features are cached, though it then does nothing.

{table(["audio", "variant", "tokens", "TFLOP", "activations GB", "peak GB"], rows)}
Rows that fit, with {assumed["reserved_gb"]} GB for CUDA and {assumed["fragmentation"]:.0%} lost in the allocator (the logits of all answers are in this: bound
`--max_tokens_per_batch` rather than rows where lengths differ):

{table(["audio", "checkpointing", "GB a row", *(f"{size} GB" for size in sizes)], best)}"""


def _time(results: dict[str, Any], tables: dict[str, Any]) -> str:
    fractions = tables["assumptions"]["fractions"]
    planned = tables["assumptions"]["planned_fraction"]
    rows = []
    for line in results["step_times"]:
        if line["variant"] != "cached features":
            continue
        times = [f"{1000 * line[f's_at_{f}']:.0f}" for f in fractions]
        fits = "" if line["fits"] else " (does not fit)"
        rate = f"{line[f'tokens_per_s_at_{planned}']:,.0f}"
        rows.append([f"{line['audio_seconds']:g} s", line["gpu"] + fits, *times, rate])
    return f"""## Time of a step, 8 rows, cached features

Milliseconds at fractions of the published dense bfloat16 peak.

{table(["audio", "GPU", *(f"{f:g}" for f in fractions), f"tokens/s at {planned:g}"], rows)}"""


def _decoding(results: dict[str, Any], tables: dict[str, Any]) -> str:
    rates, size = results["decoding"]["tokens_per_s_at_most"], results["decoding"]["bytes_per_token"]
    fill = results["decoding"]["prefill_tflops"]["30"]
    fraction = tables["assumptions"]["planned_fraction"]
    rows = [
        [
            name,
            f"{r['routed']:.0f}",
            f"{r['merged']:.0f}",
            f"{1000 * fill / (fraction * tables['gpus'][name]['tflops']):.0f}",
        ]
        for name, r in rates.items()
    ]
    return f"""## Decoding at batch 1

A token reads {size["base"] / GB:.2f} GB of weights, {size["cache"] / MB:.0f} MB of cache after 30 s of audio, and {size["routed_lora"] / MB:.0f} MB for routed LoRA in
float32. What bandwidth allows at most; a GPU that is fed one small kernel after the other stays far below it, and routed LoRA
has four more of these in each of 196 layers: use `--merge_adapters` to answer fast.

{table(["GPU", "tokens/s", "merged", "first token of 30 s, ms"], rows)}"""


def _eight(results: dict[str, Any], tables: dict[str, Any]) -> str:
    plan = results["eight_gpus"]
    rows = [
        [name, *(f"{t[k]:.0f}" for k in ("compute_ms", "ddp_ms", "fsdp2_ms"))] for name, t in plan["times"].items()
    ]
    sent, kept = plan["sent_gb"], plan["kept_gb"]
    return f"""## Eight GPUs: DDP

`training/distributed/ddp.yaml`. Each GPU holds all weights ({kept["ddp"]:.1f} GB with gradients and AdamW's states) and sends
{sent["ddp"]:.2f} GB of the adapter's gradients a step. FSDP2 (`fsdp2.yaml`) would shard the 28 decoder layers one by one, the embeddings
and the projector (the encoder stays whole): {kept["fsdp2"]:.1f} GB, but {sent["fsdp2"]:.1f} GB a step, since frozen layers are gathered forwards
and backwards. It is for bases that do not fit (2 bytes a parameter: from some 10B on 24 GB, 35B on 80 GB). Steps of 8 rows of 12.3 s, in ms:

{table(["GPU", "computing", "DDP sends", "FSDP2 sends"], rows)}
```bash
{tables["commands"]["prepare"]}
{tables["commands"]["align"]}
{tables["commands"]["instruct"]}
```
"""


def _corpus(results: dict[str, Any], tables: dict[str, Any]) -> str:
    corpus, cost, planned = tables["corpus"], results["corpus"], tables["assumptions"]["planned_fraction"]
    stages = ("feature cache", "align", "instruct, 1 epoch", "instruct, 3 epochs", "all")
    rows = [
        [name, *(f"{hours[s]:.2f}" for s in stages), f"{cost['dollars'][name]:.2f}"]
        for name, hours in cost["gpu_hours"].items()
    ]
    read = max(cost["cache_gb_per_s_of_8_gpus"].values())
    return f"""## {corpus["name"]}: {corpus["hours"]} h, {corpus["clips"]:,} clips

GPU-hours at {planned} of the peak, and dollars for cache, {tables["assumptions"]["align_epochs"]} epochs of align and three of instruct, at the prices below.

{table(["GPU", *stages, "$"], rows)}
The cache takes {cost["cache_gb"]:.0f} GB in bfloat16, and eight of the fastest GPUs read {read:.1f} GB/s of it: put it on local NVMe, and give
`--dataloader_num_workers`. Decoding and log-mel frames take {cost["cpu_core_hours"]:.1f} core-hours once, as long as the encoder on one GPU or
longer: threads make them ahead of it. Without the cache, each epoch costs {cost["tflops"]["feature cache"] / cost["tflops"]["instruct, 1 epoch"]:.0%} more. Loading, data checks and evaluation come on top.

{table(["GPU", "dense bf16 TFLOP/s", "GB", "TB/s", "$/h", "source"], [[n, g["tflops"], g["gb"], g["tb_per_s"], f"{g['dollars_per_hour']:.2f}", g["source"]] for n, g in tables["gpus"].items()])}"""


def _peers(results: dict[str, Any], tables: dict[str, Any]) -> str:
    rows = [
        [p["name"], p["what"], p["gpus"], p["time"], f"{p['gpu_hours']:,}" if "gpu_hours" in p else "", p["source"]]
        for p in tables["peers"]
    ]
    return f"""## What peers publish

Other data, other sizes and other aims: not a comparison of speed. Where hours are given, GPU-hours are GPUs times hours.

{table(["", "trained", "GPUs", "time", "GPU-hours", "source"], rows)}"""


def _limits(results: dict[str, Any], tables: dict[str, Any]) -> str:
    frozen = results["frozen_bytes"] / GB
    return f"""## What is left to find out on a GPU
- The fraction of the peak. Products here are large (2,000 rows by 3,072 to 8,192), but norms, rotary embeddings and LoRA's own products are small kernels that move memory.
- The forward pass waits for the device about six times a step (slots, supervised positions, rows with audio), none of them within the layers; a token of an answer waits once.
- LoRA's float32 factors are cast to bfloat16 at every use: nothing beside a training step, 800 small kernels in a token.
- Every process checks all recordings itself before training, and loads the bases into its host's memory: {frozen:.1f} GB each at least.
- The align stage keeps the language model on the device, though it reads its embeddings only.
"""
