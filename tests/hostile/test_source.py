"""The source itself: no way of running what a file contains."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "likely"
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pandas.read_pickle",
    "pd.read_pickle", "joblib.load",
}  # fmt: skip
FORBIDDEN_VALUES = {("trust_remote_code", True), ("allow_pickle", True), ("shell", True), ("weights_only", False)}
# (file, what): why it is no such call
ALLOWED: dict[tuple[str, str], str] = {
    ("queries/program.py", "compile("): "a query is the user's own program: rewritten, then run after consent",
    ("queries/program.py", "exec("): "the same; never one that came over a network",
}


def offences(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [f"import {n.name}" for n in names if n.name.split(".")[0] in PICKLES]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in PICKLES:
                found.append(f"import {module}")
            case ast.Call(func=func, keywords=keywords):
                if ast.unparse(func) in FORBIDDEN_CALLS:
                    found.append(f"{ast.unparse(func)}(")
                for keyword in keywords:
                    if (
                        isinstance(keyword.value, ast.Constant)
                        and (keyword.arg, keyword.value.value) in FORBIDDEN_VALUES
                    ):
                        found.append(f"{keyword.arg}={keyword.value.value}")
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                constants = [(k, v) for k, v in pairs if isinstance(k, ast.Constant) and isinstance(v, ast.Constant)]
                found += [f"{k.value}={v.value}" for k, v in constants if (k.value, v.value) in FORBIDDEN_VALUES]
    return found


def test_no_source_file_runs_what_it_reads() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 40
    found = {(str(f.relative_to(SOURCE)), what) for f in files for what in offences(f.read_text("utf-8"))}
    assert found == set(ALLOWED), "a new one needs a reason in ALLOWED, a gone one leaves it"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib as j",
        "torch.load(path)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "f(**{'trust_remote_code': True})",
        "np.load(p, allow_pickle=True)",
        "yaml.load(text)",
        "subprocess.run(c, shell=True)",
        "eval(text)",
        "exec(text)",
        "os.system(c)",
    ],
)
def test_each_way_is_found(line: str) -> None:
    assert len(offences(line)) == 1


def test_what_is_harmless_is_not_found() -> None:
    harmless = "model.eval()\nre.compile(x)\nyaml.safe_load(t)\nnp.load(p, allow_pickle=False)\nast.literal_eval(t)"
    assert offences(harmless) == []
