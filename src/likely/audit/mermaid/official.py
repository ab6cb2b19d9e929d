"""Mermaid's own parser, asked through node where it is installed: an optional check of ours."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from likely.errors import CapabilityError

LIMIT_S = 120.0
_SCRIPT = """
import { readFileSync } from 'node:fs';
import { JSDOM } from 'jsdom';
globalThis.window = new JSDOM('').window;
globalThis.document = window.document;
globalThis.Option = window.Option;
const { default: mermaid } = await import('mermaid');
const found = [];
for (const text of JSON.parse(readFileSync(0, 'utf8'))) {
  try { await mermaid.parse(text); found.push(null); }
  catch (error) { found.push(String(error.message).split('\\n')[0].slice(0, 200) || 'refused'); }
}
console.log(JSON.stringify(found));
"""


def official_errors(texts: Sequence[str], folder: str | Path) -> list[str | None]:
    """What Mermaid's parser says of each text: None where it accepts it, else the first line of its error.

    folder  where `npm install mermaid jsdom` was run
    CapabilityError where node or the packages are missing; nothing is installed here.
    """
    node, place = shutil.which("node"), Path(folder)
    if node is None:
        raise CapabilityError("node is not installed: leave the official check out, or install Node.js 20 or later")
    missing = [name for name in ("mermaid", "jsdom") if not (place / "node_modules" / name).is_dir()]
    if missing:
        raise CapabilityError(f"{place} has no node_modules/{missing[0]}. Run there: npm install mermaid jsdom")
    try:
        done = subprocess.run(
            [node, "--input-type=module", "-e", _SCRIPT], input=json.dumps(list(texts)), text=True, encoding="utf-8",
            capture_output=True, cwd=place, timeout=LIMIT_S, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise CapabilityError(f"Mermaid's parser took more than {LIMIT_S:.0f} s for {len(texts)} texts") from None
    except (subprocess.CalledProcessError, ValueError, IndexError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        raise CapabilityError(f"Mermaid's parser did not run in {place}: {said[-1] if said else 'no output'}") from None
    assert len(found) == len(texts)
    return found
