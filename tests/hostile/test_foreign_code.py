"""Model folders and files that bring code along: it never runs, and the refusal is one line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny_llama

import likely
from likely.errors import LikelyError, ModelError
from likely.models.convert import convert

torch = pytest.importorskip("torch")
AUTO_MAP = {
    "AutoConfig": "evil.EvilConfig",
    "AutoModel": "evil.EvilModel",
    "AutoModelForCausalLM": "evil.EvilModel",
    "AutoTokenizer": ["evil.EvilTokenizer", None],
}
REMOTE_MAP = {name: "evil/repository--evil.EvilModel" for name in AUTO_MAP}


class Payload:
    """Unpickled without care, it creates the file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    gguf = write_tiny_llama(folder / "tiny.gguf")
    convert(gguf, folder / "model", to="safetensors", verify=False)
    return folder / "model"


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "CODE_HAS_RUN"


@pytest.fixture
def folder(sound: Path, tmp_path: Path, mark: Path) -> Path:
    """A sound model beside modules that create the mark when they are imported."""
    target = tmp_path / "model"
    shutil.copytree(sound, target)
    code = f"""import os
os.makedirs({str(mark)!r}, exist_ok=True)
from transformers import LlamaConfig as EvilConfig, LlamaForCausalLM as EvilModel
from transformers import PreTrainedTokenizerFast as EvilTokenizer
"""
    (target / "evil.py").write_text(code)
    (target / "custom_generate").mkdir()
    (target / "custom_generate" / "generate.py").write_text(code)
    return target


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def refusal(source: Path, mark: Path, **options: object) -> str:
    with pytest.raises(LikelyError) as caught:
        likely.load(str(source), **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500 and not mark.exists(), message
    return message


def test_the_traps_work(folder: Path, mark: Path) -> None:
    """What is refused below does run where nobody takes care."""
    exec((folder / "evil.py").read_text(), {})
    assert mark.exists()
    mark.rmdir()
    pickle.loads(pickle.dumps(Payload(mark)))  # noqa: S301
    assert mark.exists()


def test_code_of_a_known_architecture_is_ignored(folder: Path, mark: Path) -> None:
    with likely.load(str(folder)) as before:
        expected = before.score("a", ["b", "c"])
    change(folder / "config.json", auto_map=AUTO_MAP, trust_remote_code=True)
    change(folder / "tokenizer_config.json", auto_map=AUTO_MAP, tokenizer_class="EvilTokenizer")
    change(folder / "generation_config.json", custom_generate=str(folder), trust_remote_code=True)
    with likely.load(str(folder)) as lm:
        assert lm.score("a", ["b", "c"]) == expected
        lm.generate("a", max_tokens=2)
    assert not mark.exists()


@pytest.mark.parametrize("auto_map", [AUTO_MAP, REMOTE_MAP])
def test_code_of_an_unknown_architecture_is_refused(folder: Path, mark: Path, auto_map: dict) -> None:
    change(folder / "config.json", auto_map=auto_map, model_type="evil", architectures=["EvilModel"])
    refusal(folder, mark)
    change(folder / "config.json", trust_remote_code=True)
    refusal(folder, mark)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("value", ["evil/attention", {"": "evil/attention"}])
def test_code_of_a_hub_is_not_fetched(folder: Path, mark: Path, key: str, value: object) -> None:
    change(folder / "config.json", **{key: value})
    assert "evil/attention" in refusal(folder, mark)
    change(folder / "config.json", **{key: None, "text_config": {"deep": [{key: value}]}})
    assert "evil/attention" in refusal(folder, mark)


@pytest.mark.parametrize("saved", [pickle.dumps, None], ids=["pickle", "torch.save"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "weights.pkl"])
def test_pickled_weights_are_refused(folder: Path, mark: Path, name: str, saved: Callable | None) -> None:
    (folder / "model.safetensors").unlink()
    if saved:
        (folder / name).write_bytes(saved({"a": Payload(mark)}))
    else:
        torch.save({"a": Payload(mark)}, folder / name)
    assert name in refusal(folder, mark) and "safetensors" in refusal(folder, mark)
    with pytest.raises(ModelError, match="safetensors"):
        convert(folder, folder.with_suffix(".gguf"), to="f32", verify=False)
    assert not mark.exists()


@pytest.mark.parametrize("shard", ["evil.bin", "../evil.bin", "../other.safetensors", 7, None])
def test_an_index_cannot_name_pickles_or_other_folders(folder: Path, mark: Path, shard: object) -> None:
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    (folder / "part.safetensors").write_bytes((folder.parent / "other.safetensors").read_bytes())
    for place in (folder, folder.parent):
        torch.save({"a": Payload(mark)}, place / "evil.bin")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "index" in refusal(folder, mark)


def test_a_pickle_called_safetensors_and_a_pickled_adapter_are_refused(folder: Path, mark: Path) -> None:
    torch.save({"a": Payload(mark)}, folder / "adapter_model.bin")
    change(folder / "config.json", _name="x")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "."}))
    assert "adapter_model.bin" in refusal(folder, mark)
    (folder / "adapter_model.bin").unlink()
    (folder / "adapter_config.json").unlink()
    torch.save({"a": Payload(mark)}, folder / "model.safetensors")
    refusal(folder, mark)


@pytest.mark.parametrize("runtime", [None, "torch", "llamacpp"])
@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.pt", "a.pkl", "a.bin", "a.gguf"])
def test_files_of_other_formats_are_refused_unopened(
    tmp_path: Path, mark: Path, name: str, runtime: str | None
) -> None:
    path, objects = tmp_path / name, np.array([Payload(mark)], dtype=object)
    if name == "a.npz":
        np.savez(path, a=objects)
    elif name == "a.npy":
        np.save(path, objects, allow_pickle=True)
    elif name in ("a.pt", "a.gguf"):
        torch.save({"a": Payload(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(mark)))
    assert "not a GGUF file" in refusal(path, mark, runtime=runtime)
