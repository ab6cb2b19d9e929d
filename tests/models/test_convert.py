from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gguf import write_tiny_gemma3, write_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from likely.errors import ModelError
from likely.formats.families import config_from_header, llama3_factors, metadata_from_config
from likely.formats.folder import shard_names
from likely.formats.gguf import GgufHeader, TensorInfo, read_header
from likely.formats.safetensors_file import floats_from, floats_to, read_entries
from likely.models import plans
from likely.models import verify_conversion as conversion_check
from likely.models.convert import convert
from likely.tokenizers.gguf import tokenizer_from_gguf
from likely.tokenizers.parity import compare_tokenizers

Writer = Callable[..., Path]
TINY: dict[str, Callable[[Path], Path]] = {
    "llama": write_tiny_llama,
    "llama tied": lambda path: write_tiny_llama(path, tied=True, pre="smollm"),
    "llama spm": lambda path: write_tiny_llama(path, tokenizer="llama", add_bos=True),
    "qwen2": lambda path: write_tiny_llama(path, arch="qwen2", pre="qwen2"),
    "qwen3": lambda path: write_tiny_llama(path, arch="qwen3", pre="qwen2"),
    "gemma3": write_tiny_gemma3,
    "gemma3 spm": lambda path: write_tiny_gemma3(path, tokenizer="llama"),
}
IDS = [[259, 104, 273, 277, 266, 261, 307, 35, 52, 53, 54, 276, 5, 77] * 3]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """These models are too small to share between threads, and two texts tell a wrong conversion as well as six."""
    one_thread = partial(conversion_check.score_with_llamacpp, threads=1)
    monkeypatch.setattr(conversion_check, "score_with_llamacpp", one_thread)
    monkeypatch.setattr(conversion_check, "TEXTS", conversion_check.TEXTS[:2])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits


def loaded_gguf(path: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if "partial" in p.name or "replaced" in p.name]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", TINY)
def test_gguf_to_folder_and_back_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    source = TINY[name](tmp_path / "source.gguf")
    there = convert(source, tmp_path / "folder", to="safetensors")
    back = convert(tmp_path / "folder", tmp_path / "back.gguf", to="f32")
    assert tensors_of(tmp_path / "back.gguf") == tensors_of(source)
    assert compare_tokenizers(tokenizer_from_gguf(source), tokenizer_from_gguf(tmp_path / "back.gguf")) == []
    for report in (there, back):
        assert report.check is not None and report.check.mean_abs_difference < 1e-3 and report.check.tokens > 50
    ours, theirs = read_header(tmp_path / "back.gguf").metadata, read_header(source).metadata
    for key, value in theirs.items():
        if isinstance(value, int | float | bool | str) and key not in ("general.name", "tokenizer.ggml.pre"):
            assert ours[key] == value, key
    assert leftovers(tmp_path) == []


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", TINY)
def test_transformers_gives_the_folder_the_logits_of_the_file(name: str, tmp_path: Path) -> None:
    source = TINY[name](tmp_path / "source.gguf")
    convert(source, tmp_path / "folder", to="safetensors", verify=False)
    folder = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    torch.testing.assert_close(logits_of(folder), logits_of(loaded_gguf(source)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "llama spm", "gemma3", "gemma3 spm"])
def test_transformers_gives_the_folder_our_ids_and_settings(name: str, tmp_path: Path) -> None:
    source = TINY[name](tmp_path / "source.gguf")
    convert(source, tmp_path / "folder", to="safetensors", verify=False)
    ours, theirs = tokenizer_from_gguf(source), AutoTokenizer.from_pretrained(tmp_path / "folder")
    text = "the cat sat 123\n\n  é <|im_end|> on"
    expected = ours.encode(text, parse_special=True)
    assert theirs.encode(text, add_special_tokens=False) == expected
    assert theirs.encode(text) == ([0, *expected] if ours.add_bos else expected)
    assert theirs.chat_template == ours.chat_template and theirs.eos_token_id == 2
    settings = json.loads((tmp_path / "folder" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [2, 0]


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_weights_keep_their_bits_in_a_folder(dtype: str, tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "source.gguf", dtype=dtype)
    convert(source, tmp_path / "folder", to="safetensors", verify=False)
    weights = load_file(tmp_path / "folder" / "model.safetensors")
    kind = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    assert weights["model.layers.0.mlp.up_proj.weight"].dtype == kind
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["dtype"] == str(kind).removeprefix("torch.")
    convert(tmp_path / "folder", tmp_path / "back.gguf", to=dtype.lower(), verify=False)
    assert tensors_of(tmp_path / "back.gguf") == tensors_of(source)


@pytest.mark.sampled(6)
@pytest.mark.parametrize(("to", "kind"), [("f16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0")])
def test_matrices_are_encoded_as_the_public_package_does_and_norms_stay_f32(to: str, kind: str, tmp_path: Path) -> None:
    source = write_tiny_gemma3(tmp_path / "source.gguf", layers=2)
    report = convert(source, tmp_path / "out.gguf", to=to)
    for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors:
        original = next(o for o in gguf.GGUFReader(source).tensors if o.name == t.name)
        wanted = kind if len(original.shape) > 1 else "F32"
        assert t.tensor_type.name == wanted
        encoded = gguf.quants.quantize(original.data, gguf.GGMLQuantizationType[wanted])
        assert t.data.tobytes() == encoded.tobytes()
    assert report.check is not None and report.check.mean_abs_difference < report.check.bound
    assert read_header(tmp_path / "out.gguf").metadata["general.file_type"] == {"f16": 1, "bf16": 32, "q8_0": 7}[to]


def test_q8_0_takes_34_bytes_for_32_weights_and_errs_by_half_a_step(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "source.gguf", dim=64, ffn=128)
    report = convert(source, tmp_path / "q8.gguf", to="q8_0", verify=False)
    before, after = read_header(source), read_header(tmp_path / "q8.gguf")
    matrices = [t for t in before.tensors if len(t.shape) > 1]
    assert sum(t.nbytes for t in after.tensors if t.type == "Q8_0") == sum(t.size for t in matrices) // 32 * 34
    assert report.types == {"Q8_0": len(matrices), "F32": len(before.tensors) - len(matrices)}
    originals = {t.name: t.data for t in gguf.GGUFReader(source).tensors}
    for t in gguf.GGUFReader(tmp_path / "q8.gguf").tensors:
        if t.tensor_type.name == "Q8_0":
            blocks = originals[t.name].reshape(-1, 32)
            error = np.abs(gguf.quants.dequantize(t.data, t.tensor_type).reshape(-1, 32) - blocks)
            step = np.abs(blocks).max(axis=1, keepdims=True) / 127
            assert (error <= 0.51 * step + 128 * step * 2.0**-11).all()  # rounding, and the fp16 scale


def test_rows_that_are_no_whole_blocks_become_f16(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "source.gguf", ffn=48)
    convert(source, tmp_path / "q8.gguf", to="q8_0")
    types = {t.name: t.type for t in read_header(tmp_path / "q8.gguf").tensors}
    assert types["blk.0.ffn_down.weight"] == "F16" and types["blk.0.ffn_up.weight"] == "Q8_0"


def test_pieces_do_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tiny_llama(tmp_path / "source.gguf", dtype="Q8_0")
    convert(source, tmp_path / "whole.gguf", to="f16", verify=False)
    monkeypatch.setattr("likely.formats.weights._PIECE_VALUES", 100)
    convert(source, tmp_path / "pieces.gguf", to="f16", verify=False)
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "pieces.gguf").read_bytes()


def test_shards_are_loaded_by_transformers_and_converted_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tiny_llama(tmp_path / "source.gguf")
    monkeypatch.setattr(plans, "shard_names", lambda sizes: shard_names(sizes, limit=50_000))
    convert(source, tmp_path / "folder", to="safetensors", verify=False)
    assert len(list((tmp_path / "folder").glob("model-*-of-*.safetensors"))) > 2
    folder = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    torch.testing.assert_close(logits_of(folder), logits_of(loaded_gguf(source)), rtol=0, atol=1e-5)
    convert(tmp_path / "folder", tmp_path / "back.gguf", to="f32", verify=False)
    assert tensors_of(tmp_path / "back.gguf") == tensors_of(source)


# --- a wrong conversion is noticed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_tiny_llama, write_tiny_gemma3])
def test_a_wrong_number_is_noticed_and_nothing_is_kept(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source.gguf", dtype="Q8_0")
    monkeypatch.setattr("likely.formats.families.change_to_folder", lambda *_: None)  # heads, or norms, left alone
    with pytest.raises(ModelError, match="not the same model"):
        convert(source, tmp_path / "folder", to="safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source.gguf"]


def test_numbers_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "source.gguf")
    with pytest.raises(ModelError, match="not finite"):
        convert(
            source, tmp_path / "out.gguf", to="f16", scorer=lambda path, ids: [np.full(len(i) - 1, np.nan) for i in ids]
        )
    assert not (tmp_path / "out.gguf").exists()


def test_the_check_compares_source_and_target_per_token(tmp_path: Path) -> None:
    source, seen = write_tiny_llama(tmp_path / "source.gguf"), []

    def scorer(path: Path, ids: list[list[int]]) -> list[np.ndarray]:
        seen.append(path)
        return [np.full(len(i) - 1, -1.0 if path == source else -1.01) for i in ids]

    report = convert(source, tmp_path / "out.gguf", to="f16", scorer=scorer)
    assert report.check is not None and report.check.mean_abs_difference == pytest.approx(0.01)
    assert seen[0] == source and seen[1].parent == tmp_path and not seen[1].exists()
    assert "0.01 nats per token" in str(report)


def test_without_a_runtime_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(Exception, match=r"pip install 'likely\[local\]', or convert with verify=False"):
        conversion_check.runtime_for(write_tiny_llama(tmp_path / "a.gguf"))
    with pytest.raises(Exception, match=r"pip install 'likely\[torch\]'"):
        conversion_check.runtime_for(tmp_path)


# --- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["f16", "safetensors"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_stopping_in_the_middle_leaves_nothing(to: str, error: BaseException, tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "source.gguf")

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise error

    with pytest.raises(ModelError if isinstance(error, OSError) else KeyboardInterrupt):
        convert(source, tmp_path / "out", to=to, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["source.gguf"]


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_ctrl_c_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "source.gguf")
    script = (
        "import sys\nfrom likely.models.convert import convert\n"
        "def wait(done, total):\n    print(done, flush=True)\n    sys.stdin.read()\n"
        "convert(sys.argv[1], sys.argv[2], to='f16', progress=wait)\n"
    )
    command = [sys.executable, "-c", script, str(source), str(tmp_path / "out.gguf")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None and process.stdout.readline()
        assert len(leftovers(tmp_path)) == 1 and not (tmp_path / "out.gguf").exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
    assert [p.name for p in tmp_path.iterdir()] == ["source.gguf"]


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    source = write_tiny_llama(tmp_path / "source.gguf")
    convert(source, tmp_path / "out.gguf", to="f16", verify=False, progress=lambda *args: calls.append(args))
    assert calls == sorted(calls) and calls[-1][0] == calls[-1][1] == calls[0][1]


def test_an_existing_target_is_replaced_only_when_asked(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "source.gguf")
    for to, name in (("f16", "out.gguf"), ("safetensors", "folder")):
        convert(source, tmp_path / name, to=to, verify=False)
        with pytest.raises(ModelError, match="exists already"):
            convert(source, tmp_path / name, to=to, verify=False)
        convert(source, tmp_path / name, to=to, verify=False, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "out.gguf", "source.gguf"]


def test_a_folder_that_is_no_model_is_never_replaced(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "source.gguf")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters.txt").write_text("dear")
    with pytest.raises(ModelError, match="no model folder"):
        convert(source, tmp_path / "home", to="safetensors", overwrite=True)
    assert (tmp_path / "home" / "letters.txt").read_text() == "dear"


def test_places_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "source.gguf")
    convert(source, tmp_path / "folder", to="safetensors", verify=False)
    (tmp_path / "link.gguf").symlink_to(source)
    for start, target, to, message in (
        (source, source, "f32", "lie inside each other"),
        (source, tmp_path / "link.gguf", "f32", "lie inside each other"),
        (source, tmp_path, "safetensors", "lie inside each other"),
        (tmp_path / "folder", tmp_path / "folder" / "x.gguf", "f32", "lie inside each other"),
        (tmp_path / "folder", tmp_path / "other", "safetensors", "safetensors folder already"),
        (source, tmp_path / "none" / "x.gguf", "f32", "is not a folder; create it"),
        (source, tmp_path / "folder", "f32", "is a folder; give the name of the GGUF file"),
        (source, tmp_path / "x.gguf", "q8", 'cannot convert to "q8"; did you mean "q8_0"'),
        (tmp_path / "absent.gguf", tmp_path / "x.gguf", "f32", "does not exist"),
    ):
        with pytest.raises(ModelError, match=message):
            convert(start, target, to=to, verify=False, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "link.gguf", "source.gguf"]


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rotary_factors_are_those_of_transformers_and_come_back(factor: float) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 9,
        "num_attention_heads": 32, "head_dim": 64, "max_position_embeddings": 131072, "rope_parameters": rope,
    }  # fmt: skip
    factors = metadata_from_config(config)[1]
    plain = 500000.0 ** (-np.arange(0, 64, 2) / 64)
    ours = LlamaRotaryEmbedding(LlamaConfig(**{k: v for k, v in config.items() if k != "model_type"})).inv_freq
    assert factors is not None
    np.testing.assert_allclose(plain / factors, ours.numpy(), rtol=1e-5)
    assert factors.min() == 1 and factors.max() == factor
    values = {"attention.head_count": 32, "embedding_length": 2048, "feed_forward_length": 64, "block_count": 1}
    values |= {"context_length": 131072, "rope.freq_base": 500000.0}
    metadata = {"general.architecture": "llama"} | {f"llama.{name}": value for name, value in values.items()}
    header = GgufHeader(3, metadata, [TensorInfo("token_embd.weight", (9, 2048), "F32", 0, 0)], 0, 32)
    assert config_from_header(header, factors)["rope_parameters"] == rope
    with pytest.raises(ModelError, match="no known rotary scaling"):
        config_from_header(header, factors * np.linspace(1, 2, 32, dtype=np.float32))


def test_llama3_factors_are_one_for_short_waves_and_the_factor_for_long_ones() -> None:
    rule = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    factors = llama3_factors(rule, 500000.0, 128)
    assert (np.diff(factors) >= 0).all() and factors[0] == 1 and factors[-1] == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' cannot become"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, 'rotary scaling of type "yarn"'),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive number, found 0"),
        (
            {"num_hidden_layers": 1 << 30},
            r"num_hidden_layers .* found 1073741824 \(at most 65536",
        ),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor must be a positive number"),
        ({"rope_parameters": [1]}, r"must be an object, found \[1\]"),
    ],
)
def test_settings_without_a_counterpart_are_refused(change: dict, message: str, tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "source.gguf")
    convert(source, tmp_path / "folder", to="safetensors", verify=False)
    file = tmp_path / "folder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        convert(tmp_path / "folder", tmp_path / "back.gguf", to="f32", verify=False)


def test_a_folder_written_by_transformers_becomes_a_file_with_the_same_logits(tmp_path: Path) -> None:
    """The folder is not ours: its config, weights and tokenizer are saved by transformers from a fresh model."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    convert(write_tiny_gemma3(tmp_path / "t.gguf"), tmp_path / "t", to="safetensors", verify=False)
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=330, hidden_size=32, intermediate_size=64, num_hidden_layers=7, num_attention_heads=2, head_dim=256,
        num_key_value_heads=1, sliding_window=8, max_position_embeddings=256, bos_token_id=0, eos_token_id=2,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
        },
    )  # fmt: skip
    model = Gemma3ForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.1 if p.ndim == 1 else 1.5 / p.shape[1] ** 0.5)
    model.save_pretrained(tmp_path / "folder")
    AutoTokenizer.from_pretrained(tmp_path / "t").save_pretrained(tmp_path / "folder")
    report = convert(tmp_path / "folder", tmp_path / "out.gguf", to="f32")
    assert report.check is not None and report.check.mean_abs_difference < 2e-3
    assert (report.check.source_runtime, report.check.target_runtime) == ("torch", "llamacpp")


# --- safetensors files -----------------------------------------------------------------------------------------------


def test_safetensors_entries_are_those_of_the_public_package(tmp_path: Path) -> None:
    kinds = {"a": torch.float32, "b": torch.bfloat16, "c": torch.float16, "d": torch.int64}
    values = {name: torch.arange(6).reshape(2, 3).to(kind) for name, kind in kinds.items()}
    save_file(values, tmp_path / "x.safetensors")
    raw = (tmp_path / "x.safetensors").read_bytes()
    for name, entry in read_entries(tmp_path / "x.safetensors").items():
        assert entry.shape == (2, 3)
        if name != "d":
            assert floats_from(raw[entry.start : entry.end], entry.dtype).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("dtype", "kind"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", torch.float32)])
def test_rounding_is_that_of_torch(dtype: str, kind: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 50_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate(
        [values, np.array([0, -0.0, 1e-45, 65504, 65520, 1e38, 3.4e38, np.inf, -np.inf, np.nan], "f4")]
    )
    ours = floats_from(floats_to(values, dtype), dtype)
    np.testing.assert_array_equal(ours, torch.from_numpy(values).to(kind).float().numpy())


def _safetensors(header: object, data: bytes = b"\0" * 8) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


@pytest.mark.parametrize(
    "content",
    [
        b"", b"abc", (1 << 60).to_bytes(8, "little") + b"{}", _safetensors(b"{"), _safetensors([]),
        _safetensors(b"[" * 9999), _safetensors({"a": 1}),
        _safetensors({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}),
        _safetensors({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}),
        _safetensors({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}),
        _safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        _safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}),
        _safetensors({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}),
        _safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
        _safetensors(b'{"a": %s, "a": %s}' % ((b'{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}',) * 2)),
        _safetensors({"a": {"dtype": "F32", "shape": [2, *[1] * 8], "data_offsets": [0, 8]}}),
    ],
    ids=lambda content: f"{len(content)} bytes",
)  # fmt: skip
def test_broken_safetensors_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_entries(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(), (0, 32)])
def test_a_tensor_without_rows_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    convert(write_tiny_llama(tmp_path / "m.gguf"), tmp_path / "folder", to="safetensors", verify=False)
    file = tmp_path / "folder" / "model.safetensors"
    save_file(load_file(file) | {"model.norm.weight": torch.zeros(shape)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="a tensor of shape"):
        convert(tmp_path / "folder", tmp_path / "x.gguf", to="f32", verify=False)


# --- the real thing --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_becomes_a_folder_and_comes_back_to_the_same_weights(smollm2_path: Path, tmp_path: Path) -> None:
    there = convert(smollm2_path, tmp_path / "folder", to="safetensors")
    assert there.check is not None and there.check.mean_abs_difference < 0.15  # activations at 8 bit against fp32
    back = convert(tmp_path / "folder", tmp_path / "back.gguf", to="f32")
    assert back.check is not None and back.check.mean_abs_difference < 1e-4
    convert(smollm2_path, tmp_path / "direct.gguf", to="f32", verify=False)
    assert tensors_of(tmp_path / "back.gguf") == tensors_of(tmp_path / "direct.gguf")
