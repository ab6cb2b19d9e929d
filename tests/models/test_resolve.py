"""What a name stands for: files and folders that are not there are refused at once, without asking a hub."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest

import likely
from likely.errors import ModelError
from likely.models.load import resolve, runtimes_for


@pytest.fixture
def no_hub(monkeypatch):
    """Nobody asks the network."""
    for name in ("HfApi", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, lambda *_, **__: pytest.fail("the hub was asked"))


@pytest.mark.parametrize("name", ["models/smol.gguf", "./smol", "~/smol", "a/b/c", "models/smol.safetensors"])
def test_what_looks_like_a_path_is_one(no_hub, name):
    with pytest.raises(ModelError, match=f"^{name} does not exist"):
        likely.load(name)


def test_a_name_in_a_folder_that_is_there_is_a_path(no_hub, tmp_path, monkeypatch):
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"^models/smolm2 does not exist.*smollm2"):
        likely.load("models/smolm2")


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch):
    asked = []

    class Unreachable:
        def model_info(self, name, *, timeout):
            asked.append((name, timeout))
            raise ConnectionError("[Errno 101] Network is unreachable\nmore")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    for runtime in ("torch", "native"):
        with pytest.raises(ModelError, match=r"no such file or folder, and no model .*\(\[Errno 101\].*unreachable\)$"):
            likely.load("nobody/nothing", runtime=runtime)
    assert [name for name, _ in asked] == ["nobody/nothing"] * 2 and all(0 < seconds <= 10 for _, seconds in asked)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one repository of three GGUF files, one of them kept here; what is fetched."""
    kept, fetched = tmp_path / "kept", []
    kept.mkdir()
    (kept / "m-Q8_0.gguf").touch()

    class Hub:
        def model_info(self, name, *, timeout):
            if name != "org/m-GGUF":
                raise ConnectionError("404 Client Error")
            names = ("m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-BF16.gguf", "m-F16-00001-of-00002.gguf", "README.md")
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in names])

    def snapshot(name, *, local_files_only):
        if name != "org/m-GGUF":
            raise FileNotFoundError(name)
        return str(kept)

    def download(name, file):
        fetched.append(file)
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return fetched


def test_a_gguf_file_of_the_hub_is_named_by_its_type(hub, tmp_path):
    assert resolve("org/m-GGUF:q8_0") == ("gguf", tmp_path / "kept" / "m-Q8_0.gguf") and hub == []
    assert resolve("org/m-GGUF:Q4_K_M") == ("gguf", tmp_path / "m-Q4_K_M.gguf") and hub == ["m-Q4_K_M.gguf"]
    for name, told in (
        ("org/m-GGUF:Q5_0", r'org/m-GGUF has no GGUF files "Q5_0" \(its GGUF files: m-BF16.gguf, m-F16-0.*m-Q8_0'),
        ("org/m-GGUF:F16", 'has no GGUF files "F16"'),
        ("org/other:Q8_0", r"org/other: no such file or folder, .*\(404 Client Error\)"),
    ):
        with pytest.raises(ModelError, match=told):
            resolve(name)


@pytest.fixture
def hub_of(monkeypatch):
    """Makes the hub's client keep one folder under every id."""

    def keep(folder):
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(folder / file))
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file: str(folder / file))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder))

    return keep


@pytest.mark.parametrize("family", ["mamba", "mamba2", "falcon_h1"])
def test_a_state_space_model_of_the_hub_opens_on_the_recurrent_runtime(hub_of, family):
    from tiny_states import readable_folder

    hub_of(readable_folder(family))
    with likely.load("someone/states") as lm:
        assert lm.info.runtime == "recurrent" and np.isfinite(lm.score("a", ["b"])[0].sequence_logprob)
    assert "recurrent" in runtimes_for("someone/states")


def test_a_state_space_model_that_it_does_not_compute_and_others_of_the_hub_open_in_torch(
    hub_of, monkeypatch, tmp_path
):
    from tiny_states import readable_folder

    from likely.runtimes.torch.masked import checkpoint
    from likely.runtimes.torch.runtime import TorchRuntime

    class Opened(Exception):
        pass

    def opened(source, **_):
        raise Opened

    monkeypatch.setattr(checkpoint, "config_of", lambda place: {})  # which would ask the hub
    monkeypatch.setattr(TorchRuntime, "from_pretrained", opened)
    folder = tmp_path / "gelu"
    shutil.copytree(readable_folder("mamba2"), folder)
    config = json.loads((folder / "config.json").read_text())
    for changed, runtime in (({"hidden_act": "gelu"}, None), ({"model_type": "llama"}, None), ({}, "torch")):
        (folder / "config.json").write_text(json.dumps(config | changed))
        hub_of(folder)
        with pytest.raises(Opened):
            likely.load("someone/states", runtime=runtime)


def test_the_original_files_name_no_type_and_are_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"d_model": 8, "n_layer": 1, "ssm_cfg": {}, "vocab_size": 5}))
    assert "recurrent" in runtimes_for(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"d_model": 8}))
    assert "recurrent" not in runtimes_for(tmp_path)


@pytest.mark.parametrize("name", [None, 3, b"smollm2", ["smollm2"]])
def test_what_is_no_name_is_refused_in_one_line(name):
    with pytest.raises(TypeError, match=r"the model is a name such as .*, a path or a URL, got") as error:
        likely.load(name)
    assert "\n" not in str(error.value)


def test_an_empty_name_is_refused():
    with pytest.raises(ModelError, match="the name of the model is empty"):
        likely.load("")


def test_a_path_may_be_an_object(tmp_path):
    (tmp_path / "model.gguf").touch()
    assert resolve(tmp_path / "model.gguf") == ("gguf", tmp_path / "model.gguf")
