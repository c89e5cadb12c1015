"""
What the reference pair (Llama-3.2-3B-Instruct, whisper-large-v3-turbo) needs: memory, step time, batch, GPUs, hours, dollars.

    python benchmarks/large_shapes.py     # writes benchmarks/results/large_shapes.json and benchmarks/large_shapes.md

No GPU is used and nothing of these sizes is allocated: FLOPs and bytes are counted from the real classes
(`shape_counting.py`), times follow from published peaks (`large_shapes.yaml`) at fractions that are assumed. What can be
checked on a CPU is: the same counting for the embedded pair beside the memory that its training step takes here.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from large_shapes_report import write_report
from shape_counting import ADAM_BYTES, ShapedModel, StepShape, set_recomputing

HERE = Path(__file__).parent
TABLES = HERE / "large_shapes.yaml"
RESULTS = HERE / "results" / "large_shapes.json"
REPORT = HERE / "large_shapes.md"
GB, TERA, BYTES_PER_MIB = 1e9, 1e12, 1 << 20
SECONDS_PER_HOUR = 3600
FRAMES_PER_SECOND = 50
#: Every tensor gets pages of its own and gives them back at once, so that the process' memory is that of its tensors.
EXACT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}
CHECKS = (
    ("short", "float32", False),
    ("short", "float32", True),
    ("short", "bfloat16", False),
    ("10s", "float32", False),
    ("10s", "bfloat16", False),
)
#: Rows of the two batches between which peak memory is a straight line in the rows.
PROBE_ROWS = (32, 64)


def read_tables() -> dict[str, Any]:
    """`large_shapes.yaml`."""
    return yaml.safe_load(TABLES.read_text(encoding="utf-8"))


def reference_model(tables: dict[str, Any]) -> ShapedModel:
    """The reference pair's shapes, as training with `--bf16` holds them."""
    model = tables["models"]["reference"]
    return ShapedModel({"audio_config": model["audio_config"], "text_config": model["text_config"]})


def row_of(tables: dict[str, Any], rows: int, seconds: float) -> StepShape:
    """A batch of recordings of one length."""
    return StepShape(rows, seconds, answer_tokens=tables["answer_tokens"][seconds], **tables["row"])


def hand_formula(model: ShapedModel, shape: StepShape) -> dict[str, int]:
    """
    FLOPs of a step by the textbook: 2 for each weight of a product and position, 4 for each pair that attends and channel.

    Backwards a frozen product gives its input's gradient only; a trained one its own as well. The fused attention's
    backward pass has five products to the forward's two. The language model's first input needs a gradient, so all of them do.
    """
    text, counts = model.config.text_config, model.parameters()
    tokens = shape.rows * shape.row_tokens(model.config.stack_factor)
    embeddings = text.vocab_size * text.hidden_size
    norms = text.hidden_size * (2 * text.num_hidden_layers + 1)
    linear = counts["language_model"] - embeddings - norms
    width = text.num_attention_heads * text.head_dim
    attention = 4 * shape.rows * shape.row_tokens(model.config.stack_factor) ** 2 * width * text.num_hidden_layers
    lora, supervised = 2 * tokens * counts["lora"], shape.rows * shape.answer_tokens
    slots = shape.rows * shape.slots(model.config.stack_factor)
    projector = 2 * slots * sum(p.numel() for p in model.body.multi_modal_projector.parameters() if p.dim() == 2)
    head = 2 * supervised * embeddings
    forward = 2 * tokens * linear + attention + lora
    # The norm before the projector trains, so that the projector's layers hand on gradients like the others.
    backward = 2 * tokens * linear + attention * 5 // 2 + 2 * lora + 2 * projector + head
    return {"projector": projector, "language_model": forward, "head": head, "backward": backward}


def count_steps(model: ShapedModel, tables: dict[str, Any]) -> list[dict[str, Any]]:
    """Steps of 8 rows in all variants."""
    variants = {
        "cached features": {},
        "checkpointing": {"checkpointing": True},
        "shared prefix": {"share_prefix": True},
        "encoder in the step": {"cached": False},
    }
    lines = []
    for seconds in tables["answer_tokens"]:
        shape = row_of(tables, 8, seconds)
        for name, options in variants.items():
            count = model.training_step(shape, **options)
            static = model.static_bytes(
                encoder_resident=True
            )  # it stays on the device, also where features are cached
            lines.append(
                {
                    "audio_seconds": seconds,
                    "variant": name,
                    "rows": shape.rows,
                    "tokens": count.tokens,
                    "tflops": count.total_flops / TERA,
                    "static_gb": static / GB,
                    "activations_gb": count.forward_bytes / GB,
                    "peak_gb": (static + count.peak_bytes) / GB,
                }
            )
    return lines


def best_batches(model: ShapedModel, tables: dict[str, Any]) -> list[dict[str, Any]]:
    """The most rows that fit into a device's memory: the peak is a straight line in the rows."""
    lines, assumed = [], tables["assumptions"]
    static = model.static_bytes(encoder_resident=True)
    for seconds in tables["answer_tokens"]:
        for checkpointing in (False, True):
            low, high = (
                model.training_step(row_of(tables, rows, seconds), checkpointing=checkpointing).peak_bytes
                for rows in PROBE_ROWS
            )
            slope = (high - low) / (PROBE_ROWS[1] - PROBE_ROWS[0])
            start = low - slope * PROBE_ROWS[0]
            line: dict[str, Any] = {"audio_seconds": seconds, "checkpointing": checkpointing, "gb_per_row": slope / GB}
            for memory in tables["memory_gb"]:
                free = memory * (1 - assumed["fragmentation"]) - assumed["reserved_gb"]
                line[f"rows_in_{memory}_gb"] = max(0, int((free * GB - static - start) / slope))
            lines.append(line)
    return lines


def step_times(steps: list[dict[str, Any]], tables: dict[str, Any], model: ShapedModel) -> list[dict[str, Any]]:
    """Seconds and tokens per second of each counted step with cached features, by GPU and fraction of its peak."""
    lines = []
    weights = model.weight_bytes("model.language_model.")
    for step in steps:
        if step["variant"] not in ("cached features", "encoder in the step"):
            continue
        for name, gpu in tables["gpus"].items():
            line = {"audio_seconds": step["audio_seconds"], "variant": step["variant"], "gpu": name}
            line["fits"] = step["peak_gb"] + tables["assumptions"]["reserved_gb"] < gpu["gb"] * (
                1 - tables["assumptions"]["fragmentation"]
            )
            line["floor_s"] = 2 * weights / (gpu["tb_per_s"] * TERA)  # weights are read forwards and backwards
            for fraction in tables["assumptions"]["fractions"]:
                seconds = max(step["tflops"] / (fraction * gpu["tflops"]), line["floor_s"])
                line[f"s_at_{fraction}"] = seconds
                line[f"tokens_per_s_at_{fraction}"] = step["tokens"] / seconds
            lines.append(line)
    return lines


def decoding(model: ShapedModel, tables: dict[str, Any]) -> dict[str, Any]:
    """Bytes that one token at batch 1 reads, and the tokens a second that bandwidth allows; FLOPs of a prefill."""
    text = model.config.text_config
    base = model.weight_bytes("model.language_model.", trainable=False)
    lora = model.weight_bytes("model.language_model.", trainable=True)
    shape = row_of(tables, 1, 30)
    positions = shape.row_tokens(model.config.stack_factor)
    cache = 2 * positions * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 2
    routed = base + cache + 2 * lora  # read in float32, written and read again in bfloat16
    rates = {
        name: {"routed": gpu["tb_per_s"] * TERA / routed, "merged": gpu["tb_per_s"] * TERA / (base + cache)}
        for name, gpu in tables["gpus"].items()
    }
    return {
        "bytes_per_token": {"base": base, "cache": cache, "routed_lora": 2 * lora},
        "tokens_per_s_at_most": rates,
        "prefill_tflops": {seconds: model.prefill_flops(row_of(tables, 1, seconds)) / TERA for seconds in (5, 30)},
    }


def eight_gpus(model: ShapedModel, steps: list[dict[str, Any]], tables: dict[str, Any]) -> dict[str, Any]:
    """What DDP and FSDP2 send for a step of 8 rows of 12.3 s on each GPU, and what it takes beside computing."""
    count = tables["num_gpus"]
    share = (count - 1) / count
    step = next(s for s in steps if s["audio_seconds"] == 12.3 and s["variant"] == "cached features")
    whole = model.weight_bytes()
    encoder = model.weight_bytes("model.audio_tower.")
    layers = model.weight_bytes("model.language_model.layers.")
    outer = whole - encoder - layers  # embeddings and projector: gathered once
    gradients = 4 * model.parameters()["trainable"]
    sent = {"ddp": 2 * share * gradients, "fsdp2": share * (2 * layers + outer) + share * gradients}
    kept = {
        "ddp": whole + (ADAM_BYTES + 4) * model.parameters()["trainable"],
        "fsdp2": encoder + (layers + outer + (ADAM_BYTES + 4) * model.parameters()["trainable"]) / count,
    }
    fraction = tables["assumptions"]["planned_fraction"]
    times = {
        name: {
            "compute_ms": 1000 * step["tflops"] / (fraction * gpu["tflops"]),
            **{f"{plan}_ms": 1000 * moved / (gpu["link_gb_per_s"] * GB) for plan, moved in sent.items()},
        }
        for name, gpu in tables["gpus"].items()
    }
    return {"sent_gb": _in_gb(sent), "kept_gb": _in_gb(kept), "times": times}


def _in_gb(sizes: dict[str, float]) -> dict[str, float]:
    return {name: size / GB for name, size in sizes.items()}


def corpus_cost(model: ShapedModel, steps: list[dict[str, Any]], tables: dict[str, Any]) -> dict[str, Any]:
    """LibriSpeech-960: FLOPs of each stage, GPU-hours and dollars, and the size of the feature cache."""
    corpus, assumed = tables["corpus"], tables["assumptions"]
    clips, padded = corpus["clips"], 1 + assumed["padding"]
    shape = row_of(tables, 8, 12.3)
    step = next(s for s in steps if s["audio_seconds"] == 12.3 and s["variant"] == "cached features")
    slots = shape.slots(model.config.stack_factor)
    projector = [p.numel() for p in model.body.multi_modal_projector.parameters() if p.dim() == 2]
    scores = 2 * slots * model.config.text_config.hidden_size * assumed["pieces"]
    align = 6 * slots * sum(projector) + 2 * scores
    tflops = {
        "feature cache": clips * model.encoder_flops(row_of(tables, 1, 12.3)) / TERA,
        "align": assumed["align_epochs"] * padded * clips * align / TERA,
        "instruct, 1 epoch": padded * clips * step["tflops"] / step["rows"],
    }
    tflops["instruct, 3 epochs"] = 3 * tflops["instruct, 1 epoch"]
    cost: dict[str, Any] = {"tflops": tflops, "gpu_hours": {}, "dollars": {}}
    for name, gpu in tables["gpus"].items():
        rate = assumed["planned_fraction"] * gpu["tflops"] * SECONDS_PER_HOUR
        cost["gpu_hours"][name] = {stage: amount / rate for stage, amount in tflops.items()}
        hours = sum(cost["gpu_hours"][name][stage] for stage in ("feature cache", "align", "instruct, 3 epochs"))
        cost["gpu_hours"][name]["all"] = hours
        cost["dollars"][name] = hours * gpu["dollars_per_hour"]
    frame_bytes = model.config.audio_config.hidden_size * model.dtype.itemsize
    cost["cache_gb"] = corpus["hours"] * SECONDS_PER_HOUR * FRAMES_PER_SECOND * frame_bytes / GB
    cost["cpu_core_hours"] = clips * assumed["cpu_ms_per_clip"] / 1000 / SECONDS_PER_HOUR
    cost["cache_gb_per_s_of_8_gpus"] = {
        name: tables["num_gpus"] * assumed["planned_fraction"] * gpu["tflops"] * cost["cache_gb"]
        / tflops["instruct, 1 epoch"]
        for name, gpu in tables["gpus"].items()
    }  # fmt: skip
    return cost


def measure_step(shape_name: str, precision: str, checkpointing: bool) -> dict[str, Any]:
    """A training step of the embedded pair in this process: memory above what was there before it, and its batch."""
    from first_token import forget_peak_memory, peak_memory_mib
    from growth import give_back_memory
    from limit_counting import shared_text
    from training_peers import SHAPES, audiollm_side

    torch.manual_seed(0)
    model, batch = audiollm_side(getattr(torch, precision), SHAPES[shape_name])
    if checkpointing:
        set_recomputing(model, True)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, fused=True)
    for warm in (True, False):
        if not warm:
            give_back_memory()
            forget_peak_memory()
            before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / BYTES_PER_MIB
        start = time.perf_counter()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - start
    rows, length = batch["input_ids"].shape
    return {
        "rows": rows,
        "row_tokens": length,
        "audio_seconds": int(batch["encoded_audio_lengths"].max()) / FRAMES_PER_SECOND,
        "supervised": int((batch["labels"] >= 0).sum()),
        "shared_tokens": shared_text(model, batch),
        "measured_mib": peak_memory_mib() - before,
        "seconds": seconds,
    }


def check_on_cpu() -> list[dict[str, Any]]:
    """The counting beside what the embedded pair's step takes here, each in a process of its own."""
    from training_peers import LORA_ALPHA, LORA_RANK, base_configs

    audio, text = base_configs()
    fields = {"audio_config": audio, "text_config": text, "lora_rank": LORA_RANK, "lora_alpha": LORA_ALPHA}
    lines = []
    for shape_name, precision, checkpointing in CHECKS:
        seen: dict[str, Any] = {}
        for name, environment in (("exact", EXACT_MALLOC), ("default", {})):
            command = [sys.executable, __file__, "--measure", shape_name, precision, str(int(checkpointing))]
            done = subprocess.run(
                command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
            )
            found = json.loads(done.stdout.strip().splitlines()[-1])
            seen |= found | {f"measured_mib_{name}": found["measured_mib"], f"seconds_{name}": found["seconds"]}
        model = ShapedModel(fields, getattr(torch, precision), autocast=False)
        answer = round(seen["supervised"] / seen["rows"])
        bare = StepShape(seen["rows"], seen["audio_seconds"], 0, answer, seen["shared_tokens"])
        prompt = seen["row_tokens"] - bare.row_tokens(model.config.stack_factor)
        shape = StepShape(bare.rows, bare.audio_seconds, prompt, answer, bare.shared_tokens)
        count = model.training_step(shape, checkpointing=checkpointing, share_prefix=not checkpointing)
        counted = count.peak_bytes / BYTES_PER_MIB
        line: dict[str, Any] = {
            "shape": shape_name,
            "precision": precision,
            "checkpointing": checkpointing,
            "counted_mib": counted,
        }
        line |= {name: seen[name] for name in ("measured_mib_exact", "measured_mib_default", "seconds_default")}
        line["error"] = counted / line["measured_mib_exact"] - 1
        line["tflops"] = count.total_flops / TERA
        line["gflops_per_s"] = 1000 * line["tflops"] / line["seconds_default"]
        lines.append(line)
        print(line, flush=True)
    return lines


def count_all(tables: dict[str, Any]) -> dict[str, Any]:
    """Everything that is counted, as it is written to the results."""
    model = reference_model(tables)
    shape = row_of(tables, 8, 12.3)
    counted = model.training_step(shape).flops
    by_hand = hand_formula(model, shape)
    steps = count_steps(model, tables)
    return {
        "parameters": model.parameters(),
        "checkpoint_bytes": model.checkpoint_bytes(),
        "frozen_bytes": model.weight_bytes(trainable=False),
        "hand_formula": {part: {"counted": counted[part], "by_hand": by_hand[part]} for part in by_hand},
        "steps": steps,
        "step_times": step_times(steps, tables, model),
        "best_batches": best_batches(model, tables),
        "decoding": decoding(model, tables),
        "eight_gpus": eight_gpus(model, steps, tables),
        "corpus": corpus_cost(model, steps, tables),
    }


def read_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--report", type=Path, default=REPORT)
    parser.add_argument("--keep_check", action="store_true", help="keep what was measured on the CPU before")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> None:
    """Counts, checks, and writes both files."""
    options = read_options()
    if options.measure:
        shape_name, precision, checkpointing = options.measure
        print(json.dumps(measure_step(shape_name, precision, checkpointing == "1")))
        return
    tables = read_tables()
    if options.keep_check:
        check = json.loads(options.output.read_text(encoding="utf-8"))["check_on_cpu"]
    else:
        check = {"processor": platform.machine(), "threads": torch.get_num_threads(), "lines": check_on_cpu()}
    results = {"torch": torch.__version__, **count_all(tables), "check_on_cpu": check}
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_report(json.loads(options.output.read_text(encoding="utf-8")), tables, options.report)


if __name__ == "__main__":
    main()
