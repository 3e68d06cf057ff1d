"""Find how a container starts vLLM: by its image's entrypoint, by a list, by `sh -c`, or by a mounted script."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from tpu_migration.domain.translation.arguments import CommandLine
from tpu_migration.domain.translation.buffers import Buffer, FileBuffer, ListBuffer, TextBuffer, Token
from tpu_migration.domain.translation.model import Manifest
from tpu_migration.domain.translation.shell import ASSIGNMENT
from tpu_migration.domain.translation.variables import Configs, Variables

_SHELLS = {"sh", "bash", "dash", "ash", "zsh", "ksh", "busybox"}
_SERVER_MODULE = re.compile(r"vllm[./]entrypoints[./](openai[./])?api_server(\.py)?$")
_MAIN_MODULE = re.compile(r"vllm(\.entrypoints\.cli\.main)?$")


@dataclass
class Launch:
    """Hold the command line of a container's vLLM, and every text to write back once it is edited."""

    line: CommandLine | None
    buffers: list[Buffer] = field(default_factory=list)  # inner ones first
    scripts: list[TextBuffer] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    below_shell: bool = False  # a shell stays the pod's first process, and gets the SIGTERM in vLLM's place

    def commit(self) -> None:
        """Write the edited texts back."""
        for buffer in self.buffers:
            buffer.commit()


def program(token: str) -> str:
    """Give the last part of a path."""
    return posixpath.basename(token)


def emit_command(container: Manifest) -> None:
    """Give a container that relies on its image's entrypoint a command: the TPU image's runs `exec "$@"`."""
    if container.get("command"):
        return
    args = [str(item) for item in container.get("args") or []]
    split = _split_program(args)
    container["command"] = args[:split] if split else (["vllm"] if args[:1] == ["serve"] else ["vllm", "serve"])
    if args:
        container["args"] = args[split:]


def _split_program(args: Sequence[str]) -> int:
    """Count the leading arguments that name a program; 0 where they are vLLM's own."""
    if not args:
        return 0
    first = program(args[0])
    if first in _SHELLS:
        script = _script_index(args)
        return script if script is not None else 1
    if first.startswith("python") or first == "vllm" or ("/" in args[0] and first.endswith(".sh")):
        head = _head([*args])
        return head[0] if head else 1
    return 0


def _head(texts: Sequence[str]) -> tuple[int, bool] | None:
    """Find where vLLM's arguments begin, and whether the model may be a positional one."""
    for index, text in enumerate(texts):
        if _SERVER_MODULE.search(text):
            return index + 1, False
        starts = program(text) == "vllm" or (_MAIN_MODULE.match(text) and texts[index - 1 : index] == ["-m"])
        if starts and texts[index + 1 : index + 2] == ["serve"]:
            return index + 2, True
    return None


def _script_index(argv: Sequence[str]) -> int | None:
    """Find the script of `sh -c SCRIPT` in an argv that begins with the shell."""
    at = 1
    while at < len(argv) and argv[at][:1] in {"-", "+"} and len(argv[at]) > 1:
        flags = argv[at][1:] if not argv[at].startswith("--") else ""
        if flags.endswith("o") and "c" not in flags:
            at += 1  # -o pipefail, -euo pipefail
        elif "c" in flags:
            at += 1
            if "o" in flags:
                at += 1
            return at if at < len(argv) else None
        at += 1
    return None


def locate(container: Manifest, pod: Manifest, configs: Configs, path: str) -> Launch:
    """Find a container's vLLM. `container` must have a command (`emit_command`) and is edited on commit."""
    variables = Variables(container, configs)

    def store(key: str) -> Callable[[list[str]], None]:
        def put(items: list[str]) -> None:
            if items or key in container:
                container[key] = items

        return put

    command = ListBuffer(f"{path}.command", container.get("command") or [], store("command"))
    args = ListBuffer(f"{path}.args", container.get("args") or [], store("args"))
    tokens = [*command.tokens(), *args.tokens()]
    texts = [token.text for token in tokens]
    launch = Launch(None, [command, args])
    shell = next((at for at, text in enumerate(texts) if program(text) in _SHELLS), None)
    if shell is not None and (script := _script_index(texts[shell:])) is not None:
        _from_script(launch, _script_in_list(tokens[shell + script]), tokens[shell + script + 2 :], variables)
    if launch.line is None and (head := _head(texts)):
        at, positional = head
        start = tokens[-1] if len(tokens) > at else Token("", args, -1)
        rest = _splice(tokens[at:], launch, variables, {})
        launch.line = CommandLine(rest, variables, positional_model=positional, start=start)
    if launch.line is None:
        for token in tokens:
            if buffer := _mounted_script(token.text, container, pod, configs):
                rest = tokens[tokens.index(token) + 1 :]
                _from_script(launch, buffer, rest, variables)
                break
    if launch.line is None and texts[:2] == ["vllm", "serve"]:
        launch.line = CommandLine(tokens[2:], variables, positional_model=True, start=Token("", args, -1))
    if launch.line is not None:
        _read_config_file(launch, container, pod, configs)
    return launch


def _script_in_list(token: Token) -> TextBuffer:
    outer = token.buffer
    return TextBuffer(outer.path, token.text, lambda text: outer.replace(token.key, text))


def _from_script(launch: Launch, buffer: TextBuffer, rest: Sequence[Token], variables: Variables) -> None:
    local: dict[str, str] = {}
    launch.scripts.append(buffer)
    launch.buffers.insert(0, buffer)
    script = buffer.commands()
    for command in script:
        texts = [token.text for token in command]
        head = _head(texts)
        if head is not None and launch.line is None:
            at, positional = head
            words = _splice(command[at:], launch, variables, local, rest)
            start = command[at - 1]
            launch.below_shell = len(script) > 1 and "exec" not in texts[:at]
            launch.line = CommandLine(words, variables, positional_model=positional, local=dict(local), start=start)
        for text in texts:
            if match := ASSIGNMENT.match(text):
                value = variables.expand(text[match.end() :], shell=True, local=local)
                if value is not None:
                    local[match["name"]] = value


def _splice(
    tokens: Sequence[Token],
    launch: Launch,
    variables: Variables,
    local: dict[str, str],
    rest: Sequence[Token] = (),
) -> list[Token]:
    """Replace a token that is a variable full of options by these options, and `$@` by what it stands for."""
    found: list[Token] = []
    for token in tokens:
        shell = token.buffer.shell
        if shell and token.text in {"$@", "$*", "${@}"}:
            found.extend(rest)
            continue
        names = variables.references(token.text, shell=shell)
        whole = len(names) == 1 and token.text in {f"$({names[0]})", f"${{{names[0]}}}", f"${names[0]}"}
        if whole and not token.quoted and names[0] not in local and variables.can_set(names[0]):
            value = variables.bindings()[names[0]].value or ""
            if value.startswith("-") or (shell and " " in value.strip()):
                found.extend(_options_in_variable(names[0], value, launch, variables))
                continue
            if shell and not value:
                continue
        found.append(token)
    return found


def _options_in_variable(name: str, value: str, launch: Launch, variables: Variables) -> list[Token]:
    def put(text: str) -> None:
        variables.set(name, text)

    buffer = TextBuffer(f"variable {name}", value, put)
    launch.buffers.insert(0, buffer)
    return [token for command in buffer.commands() for token in command]


def _config_file(path: str, container: Manifest, pod: Manifest, configs: Configs) -> tuple[str, str] | None:
    """Find the ConfigMap and the key that a path in the container comes from."""
    volumes = {volume.get("name"): volume for volume in pod.get("volumes") or []}
    for mount in container.get("volumeMounts") or []:
        source = (volumes.get(mount.get("name")) or {}).get("configMap") or {}
        name, folder = source.get("name"), str(mount.get("mountPath", "")).rstrip("/")
        if name not in configs:
            continue
        if mount.get("subPath") and path == folder:
            return str(name), str(mount["subPath"])
        if not mount.get("subPath") and path.startswith(f"{folder}/"):
            inner = path[len(folder) + 1 :]
            keys = {item.get("path"): item.get("key") for item in source.get("items") or []}
            key = str(keys.get(inner, inner))
            if key in configs.data(str(name)):
                return str(name), key
    return None


def _mounted_script(text: str, container: Manifest, pod: Manifest, configs: Configs) -> TextBuffer | None:
    place = _config_file(text, container, pod, configs) if text.startswith("/") else None
    if place is None:
        return None
    name, key = place

    def put(script: str) -> None:
        configs.set(name, key, script)

    return TextBuffer(f"ConfigMap {name} key {key}", configs.data(name)[key], put)


def _read_config_file(launch: Launch, container: Manifest, pod: Manifest, configs: Configs) -> None:
    line = launch.line
    option = line.get("config") if line else None
    if line is None or option is None:
        return
    path = line.value("config")
    place = _config_file(path, container, pod, configs) if path else None
    if place is None:
        launch.problems.append(f"the file of {option.text} is out of sight: its options cannot be translated")
        return
    name, key = place
    try:
        values: Any = yaml.safe_load(configs.data(name)[key]) or {}
    except yaml.YAMLError as error:
        launch.problems.append(f"ConfigMap {name} key {key} is no YAML: {error}")
        return

    def put(text: str) -> None:
        configs.set(name, key, text)

    buffer = FileBuffer(f"ConfigMap {name} key {key}", values, put)
    launch.buffers.insert(0, buffer)
    line.add_file(buffer)
