"""The loopback Hub against the real huggingface_hub and transformers, in client processes of their own.

Each test plays one or two scripts; a script prints JSON on its last line and asserts what only the client can see.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import prepared_python
import pytest
from loopback_hub import LFS_THRESHOLD_BYTES, LoopbackHub

OWNER = "loopback-user"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub", page_size=3) as hub:
        yield hub


def play(script: str, environment: dict[str, str], *arguments: object) -> dict:
    """Runs a client script and returns the JSON it prints last."""
    variables = environment | {"OMP_NUM_THREADS": "1"}
    done = prepared_python.run(script, *arguments, env=variables, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


PUSH_TWICE = """
import json, torch
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
first, second = LlamaForCausalLM(config), LlamaForCausalLM(config)
shas = [model.push_to_hub("tiny").oid for model in (first, second)]
api = HfApi()
api.create_tag("loopback-user/tiny", tag="v1", revision=shas[0])
api.create_branch("loopback-user/tiny", branch="feature/old", revision="v1")
api.create_branch("loopback-user/tiny", branch="feature/old", exist_ok=True)

def loads(model, **revision):
    loaded = AutoModelForCausalLM.from_pretrained("loopback-user/tiny", **revision).state_dict()
    return all(torch.equal(loaded[name], weight) for name, weight in model.state_dict().items())

assert loads(second) and not loads(first)
for revision in (shas[0], "v1", "feature/old"):
    assert loads(first, revision=revision), revision
api.upload_file(path_or_fileobj=b"branch", path_in_repo="note.txt", repo_id="loopback-user/tiny", revision="feature/old")
refs = api.list_repo_refs("loopback-user/tiny")
print(json.dumps({"shas": shas, "refs": {ref.name: ref.target_commit for ref in refs.branches + refs.tags}}))
"""


@pytest.mark.slow  # tests of remote code and round trips push and load by it
def test_push_load_and_earlier_revisions(hub: LoopbackHub, tmp_path: Path) -> None:
    repo_id = f"{OWNER}/tiny"
    seen = play(PUSH_TWICE, hub.environment(tmp_path / "home"))
    first, second = seen["shas"]
    assert first != second
    assert seen["refs"].keys() == {"main", "feature/old", "v1"}
    assert (seen["refs"]["main"], seen["refs"]["v1"]) == (second, first)
    weights = "model.safetensors"
    assert {"config.json", "generation_config.json", "README.md", weights} < hub.files(repo_id).keys()
    assert hub.files(repo_id, first)[weights] == hub.files(repo_id, "v1")[weights] != hub.files(repo_id)[weights]
    assert hub.files(repo_id, "feature/old")["note.txt"] == b"branch"
    assert "note.txt" not in hub.files(repo_id)
    assert ("POST", f"/api/models/{repo_id}/commit/main") in {request[:2] for request in hub.requests}
    assert not [request for request in hub.requests if "xet" in request.path or request.status >= 500]


UPLOAD_AND_RESUME = """
import hashlib, json, sys
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download

folder = Path(sys.argv[1])
api = HfApi()
repo_id = api.create_repo("folder", exist_ok=True).repo_id
assert api.create_repo("folder", exist_ok=True).repo_id == repo_id == api.whoami()["name"] + "/folder"
api.upload_folder(repo_id=repo_id, folder_path=folder)
names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
assert sorted(api.list_repo_files(repo_id)) == sorted([".gitattributes", *names])
snapshot = Path(snapshot_download(repo_id))
assert all((snapshot / name).read_bytes() == (folder / name).read_bytes() for name in names)

unchanged = api.upload_folder(repo_id=repo_id, folder_path=folder)
assert unchanged.oid == api.model_info(repo_id).sha
operations = [CommitOperationAdd("a/b/new é.txt", b"new"), CommitOperationDelete("notes/")]
api.create_commit(repo_id, operations, commit_message="rearrange", parent_commit=unchanged.oid)
assert [file.path for file in api.list_repo_tree(repo_id, "a")] == ["a/b"]
assert Path(hf_hub_download(repo_id, "a/b/new é.txt")).read_text() == "new"

large = hf_hub_download(repo_id, "large.txt", force_download=True)
files = {file.rfilename: file for file in api.model_info(repo_id, files_metadata=True).siblings}
assert files["large.txt"].lfs.sha256 == hashlib.sha256(Path(large).read_bytes()).hexdigest()
assert files["empty.txt"].lfs is None and files["empty.txt"].size == 0
print(json.dumps({"pipeline_tag": api.model_info(repo_id).pipeline_tag, "names": names}))
"""


def test_folder_through_lfs_and_resumed_download(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "notes").mkdir(parents=True)
    card = "---\nlicense: mit\npipeline_tag: automatic-speech-recognition\ntags:\n- speech\n---\n# A card\n"
    contents = {"README.md": card, "notes/a.txt": "a", "notes/b.json": "{}", "empty.txt": ""}
    contents["large.txt"] = "0123456789abcdef" * (LFS_THRESHOLD_BYTES // 16 + 2**17)  # 12 MiB
    for name, text in contents.items():
        (folder / name).write_text(text)
    (folder / "small.bin").write_bytes(b"\0\1")
    hub.cut_next_download(after_bytes=11 * 2**20)  # the client writes pieces of 10 MiB: it keeps one

    seen = play(UPLOAD_AND_RESUME, hub.environment(tmp_path / "home"), folder)

    assert seen["pipeline_tag"] == "automatic-speech-recognition"
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("large.txt", "small.bin")]
    uploads = [request.path for request in hub.requests if request.method == "PUT"]
    assert sorted(uploads) == sorted(f"/lfs/{digest}" for digest in digests)
    ranges = [request.byte_range for request in hub.requests if request.status == 206]
    assert ranges == [f"bytes={10 * 2**20}-"]
    left = {name for name in contents if not name.startswith("notes/")}
    assert hub.files(f"{OWNER}/folder").keys() == {".gitattributes", "a/b/new é.txt", "small.bin", *left}


ERRORS = """
import json
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

def name_of(call, *arguments, **keywords):
    try:
        call(*arguments, **keywords)
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        return [type(error).__name__, status]
    return "no error"

api = HfApi()
print(json.dumps({
    "whoami": name_of(api.whoami),
    "unknown repo": name_of(hf_hub_download, "loopback-user/none", "config.json"),
    "unknown repo info": name_of(api.model_info, "none"),
    "unknown revision": name_of(hf_hub_download, "loopback-user/open", "a.txt", revision="none"),
    "unknown revision snapshot": name_of(snapshot_download, "loopback-user/open", revision="none"),
    "unknown file": name_of(hf_hub_download, "loopback-user/open", "none.txt"),
    "unknown folder": name_of(lambda: [*api.list_repo_tree("loopback-user/open", "none")]),
    "read": name_of(hf_hub_download, "loopback-user/open", "a.txt"),
    "private": name_of(hf_hub_download, "loopback-user/private", "a.txt"),
    "gated": name_of(hf_hub_download, "loopback-user/gated", "a.txt"),
    "write": name_of(api.upload_file, path_or_fileobj=b"b", path_in_repo="b.txt", repo_id="loopback-user/open"),
    "existing tag": name_of(api.create_tag, "loopback-user/open", tag="v1"),
    "broken card": name_of(api.upload_file, path_or_fileobj=b"---\\nlicense", path_in_repo="README.md", repo_id="loopback-user/open"),
    "stale parent": name_of(api.upload_file, path_or_fileobj=b"c", path_in_repo="c.txt", repo_id="loopback-user/open", parent_commit="0" * 40),
}))
"""

PREPARE_ACCESS = """
from huggingface_hub import HfApi
api = HfApi()
for name in ("open", "private", "gated"):
    api.create_repo(name, private=name == "private")
    api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id=f"loopback-user/{name}")
api.update_repo_settings("loopback-user/gated", gated="auto")
api.create_tag("loopback-user/open", tag="v1")
print("{}")
"""


def test_errors_are_the_clients_own(hub: LoopbackHub, tmp_path: Path) -> None:
    play(PREPARE_ACCESS, hub.environment(tmp_path / "owner"))
    owner = play(ERRORS, hub.environment(tmp_path / "owner"))
    assert owner == {
        "whoami": "no error",
        "unknown repo": ["RepositoryNotFoundError", 404],
        "unknown repo info": ["RepositoryNotFoundError", 404],
        "unknown revision": ["RevisionNotFoundError", 404],
        "unknown revision snapshot": ["RevisionNotFoundError", 404],
        "unknown file": ["RemoteEntryNotFoundError", 404],
        "unknown folder": ["RemoteEntryNotFoundError", 404],
        "read": "no error",
        "private": "no error",
        "gated": "no error",
        "write": "no error",
        "existing tag": ["HfHubHTTPError", 409],
        "broken card": ["ValueError", None],
        "stale parent": ["HfHubHTTPError", 412],
    }
    other = play(ERRORS, hub.environment(tmp_path / "other", token=hub.add_user("other")))
    assert other["read"] == other["whoami"] == "no error"
    assert other["private"] == ["RepositoryNotFoundError", 404]
    assert other["gated"] == ["GatedRepoError", 403]
    assert other["write"] == ["HfHubHTTPError", 403]
    anonymous = play(ERRORS, hub.environment(tmp_path / "anonymous", token=None))
    assert anonymous["read"] == "no error"
    assert anonymous["unknown repo"] == anonymous["private"] == ["RepositoryNotFoundError", 401]
    assert anonymous["gated"] == ["GatedRepoError", 401]
    stranger = play(ERRORS, hub.environment(tmp_path / "stranger", token="hf_wrong"))
    assert stranger["whoami"] == stranger["read"] == stranger["write"] == ["HfHubHTTPError", 401]


REMOTE_CODE = """
import json, sys, torch
from transformers import AutoModel

sys.path.insert(0, sys.argv[1])
from gain.modeling_gain import GainConfig, GainModel

GainConfig.register_for_auto_class()
GainModel.register_for_auto_class("AutoModel")
model = GainModel(GainConfig(width=3))
sha = model.push_to_hub("gain").oid
for revision in ("main", sha):
    loaded = AutoModel.from_pretrained("loopback-user/gain", revision=revision, trust_remote_code=True)
    assert torch.equal(loaded.gain, model.gain)
print(json.dumps({"module": type(loaded).__module__, "sha": sha}))
"""

GAIN_CODE = {
    "configuration_gain.py": """
from transformers import PreTrainedConfig


class GainConfig(PreTrainedConfig):
    model_type = "gain"

    def __init__(self, width=2, **kwargs):
        self.width = width
        super().__init__(**kwargs)
""",
    "modeling_gain.py": """
import torch
from transformers import PreTrainedModel

from .configuration_gain import GainConfig


class GainModel(PreTrainedModel):
    config_class = GainConfig

    def __init__(self, config):
        super().__init__(config)
        self.gain = torch.nn.Parameter(torch.rand(config.width))
        self.post_init()
""",
}


@pytest.mark.slow  # likewise
def test_remote_code(hub: LoopbackHub, tmp_path: Path) -> None:
    package = tmp_path / "sources" / "gain"
    package.mkdir(parents=True)
    for name, code in GAIN_CODE.items():
        (package / name).write_text(code)
    seen = play(REMOTE_CODE, hub.environment(tmp_path / "home"), package.parent)
    assert seen["module"].startswith("transformers_modules.loopback_hyphen_user.gain.")
    files = hub.files(f"{OWNER}/gain", seen["sha"])
    assert GAIN_CODE.keys() < files.keys()
    auto_map = json.loads(files["config.json"])["auto_map"]
    assert auto_map == {"AutoConfig": "configuration_gain.GainConfig", "AutoModel": "modeling_gain.GainModel"}
