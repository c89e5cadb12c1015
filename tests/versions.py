"""What the tests leave out with old releases of what the package is built on."""

from importlib.util import find_spec

import transformers
from packaging.version import Version

#: Before 5.23, transformers' any-to-any pipeline asks for librosa, whatever is given to it.
ANY_TO_ANY_RUNS = Version(transformers.__version__) >= Version("5.23") or find_spec("librosa") is not None
