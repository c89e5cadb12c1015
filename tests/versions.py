"""Tests that are left out with old releases of what the package is built on."""

from importlib.util import find_spec

import accelerate
import huggingface_hub
import transformers
from packaging.version import Version
from transformers import TrainingArguments

#: Before 5.23, transformers' any-to-any pipeline asks for librosa, whatever is given to it.
ANY_TO_ANY_RUNS = Version(transformers.__version__) >= Version("5.23") or find_spec("librosa") is not None
#: Before 2.2, huggingface_hub asks the public Hub about a card, whichever Hub is named.
CARDS_ARE_ASKED_ABOUT_AT_THE_ENDPOINT = Version(huggingface_hub.__version__) >= Version("2.2")
#: Before 1.15, accelerate refuses a `device_map` that leaves everything on disk.
ALL_CAN_STAY_ON_DISK = Version(accelerate.__version__) >= Version("1.15")
#: Computes activations twice instead of keeping them; before 5.23, `train` has it by its older name.
RECOMPUTING = (
    f"--{'activation' if hasattr(TrainingArguments, 'activation_checkpointing') else 'gradient'}_checkpointing"
)
