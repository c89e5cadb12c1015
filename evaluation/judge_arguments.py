"""Options of the judge: which model, where, and whose key."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit


@dataclass
class JudgeArguments:
    """A language model behind an OpenAI-compatible endpoint that marks answers to open questions."""

    judge_model: str | None = field(
        default=None,
        metadata={"help": "Model that marks open answers, as its endpoint calls it; none marks them if not given."},
    )
    judge_url: str = field(
        default="https://api.openai.com/v1", metadata={"help": "Base address of an OpenAI-compatible endpoint."}
    )
    judge_key_variable: str | None = field(
        default=None,
        metadata={
            "help": "Environment variable with the endpoint's key, which is never written anywhere; OPENAI_API_KEY for "
            "OpenAI's own endpoint, and no key for others, if not given."
        },
    )
    judge_prompts: Path | None = field(
        default=None, metadata={"help": "YAML file of prompts instead of those of evaluation/judge_prompts.yaml."}
    )
    judge_samples: int | None = field(
        default=None, metadata={"help": "How often the same is asked; what the prompt says, if not given."}
    )
    judge_concurrency: int = field(default=4, metadata={"help": "Requests at a time."})
    judge_retries: int = field(
        default=8,
        metadata={"help": "How often a request is sent again, after a wait, when the endpoint is busy or fails."},
    )
    judge_timeout_s: float = field(default=120.0, metadata={"help": "Seconds that a reply may take."})

    def __post_init__(self):
        for name, least in (("judge_samples", 1), ("judge_concurrency", 1), ("judge_retries", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} is {value}; expected at least {least}")
        if self.judge_timeout_s <= 0:
            raise ValueError(f"--judge_timeout_s is {self.judge_timeout_s:g}; expected more than 0")
        address = urlsplit(self.judge_url)
        if address.scheme not in ("http", "https") or not address.netloc:
            raise ValueError(f"--judge_url {self.judge_url} is no http or https address")
        if "@" in address.netloc or address.query:
            raise ValueError("--judge_url must hold no password or key; put the key into the environment")


__all__ = ["JudgeArguments"]
