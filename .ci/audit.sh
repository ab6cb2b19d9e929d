#!/usr/bin/env bash
# Known vulnerabilities of the versions in requirements-test.lock. Fails on a finding; says so, and passes, where the
# index does not answer.
set -uo pipefail
cd "$(dirname "$0")/.."

venv=build/audit-venv
[ -x "$venv/bin/pip-audit" ] || { python3 -m venv "$venv" && timeout 120 "$venv/bin/pip" install -q pip-audit; } \
  || { echo "dependency audit: could not be run (pip-audit cannot be installed here)"; exit 0; }
report=$(mktemp)
trap 'rm -f "$report"' EXIT
timeout 300 "$venv/bin/pip-audit" --no-deps --disable-pip -r requirements-test.lock -f json -o "$report" --progress-spinner off 2>/dev/null
"$venv/bin/python" - "$report" <<'PYTHON'
import json
import sys

try:
    found = json.load(open(sys.argv[1]))["dependencies"]
except (OSError, ValueError, KeyError):
    print("dependency audit: could not be run (the index did not answer)")
    sys.exit(0)
audited = [d for d in found if "vulns" in d]
for d in audited:
    for v in d["vulns"]:
        print(f"{d['name']} {d['version']}: {v['id']}, fixed in {', '.join(v['fix_versions']) or 'no version yet'}")
if not audited:
    print("dependency audit: could not be run (the index gave no answer for any package)")
    sys.exit(0)
bad = sum(bool(d["vulns"]) for d in audited)
print(f"dependency audit: {len(audited)} of {len(found)} packages audited, {bad} with known vulnerabilities")
sys.exit(bad > 0)
PYTHON
