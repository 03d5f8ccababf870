"""GGUF → a folder of safetensors, configuration, tokenizer and chat template, as transformers would lay it out.

Weights are de-quantised tensor by tensor and written in shards, so that memory stays at one shard however large the
model is; in a process of its own, so that a server that had to convert first does not keep torch loaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from redraft.server.engine.progress import progress
from redraft.server.engine.target.gguf_file import GgufModel, GgufTensor
from redraft.server.engine.types import RedraftError

LAYOUT = 1
"""Part of every converted folder's name; raise it when what is written changes."""
SHARD_BYTES = 4 << 30
REFUSED = 2
"""Exit code of the converting process when its stdout holds the reason."""


def convert_gguf(source: Path, folder: Path) -> None:
    """Write the model in the GGUF file ``source`` as bf16 into the existing ``folder``, in another process.

    Raises ``RedraftError`` for architectures, tensors and quantisations that are not supported.
    """
    # -P: the working directory may hold folders that shadow installed packages
    command = [sys.executable, "-P", "-m", __name__, str(source), str(folder)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode == REFUSED:
        raise RedraftError(result.stdout.strip())
    if result.returncode:
        raise RedraftError(
            f"converting {source.name} failed (exit code {result.returncode}; -9 often means too little memory); "
            "what went wrong stands above"
        )


def write_model(source: Path, folder: Path) -> None:
    """What ``convert_gguf`` does, in this process."""
    model = GgufModel(source)
    tensors = model.tensors
    _write_config(model, folder)
    with progress(f"Converting {source.name}", sum(tensor.elements for tensor in tensors)) as advance:
        _write_weights(tensors, folder, advance)
    _write_tokenizer(source, model, folder)


def _write_config(model: GgufModel, folder: Path) -> None:
    from transformers import AutoConfig

    values = model.config()
    AutoConfig.for_model(model.architecture, **values).save_pretrained(folder)
    special = {name: values[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(special, indent=2))


def _shards(tensors: list[GgufTensor]) -> list[list[GgufTensor]]:
    shards: list[list[GgufTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + 2 * tensor.elements > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += 2 * tensor.elements
    return shards


def _write_weights(tensors: list[GgufTensor], folder: Path, advance: Callable[[int], None]) -> None:
    from safetensors.torch import save_file

    shards = _shards(tensors)
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        loaded = {}
        for tensor in shard:
            loaded[tensor.name] = tensor.load()
            index[tensor.name] = name
            advance(tensor.elements)
        save_file(loaded, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o644)  # save_file makes it private, which a shared cache cannot use
    if len(shards) > 1:
        total = sum(2 * tensor.elements for tensor in tensors)
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2))


def _write_tokenizer(source: Path, model: GgufModel, folder: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise RedraftError(f"the tokenizer inside {source.name} cannot be read ({error}); use safetensors") from error
    tokenizer.model_max_length = int(model.get("context_length"))
    tokenizer.save_pretrained(folder)


def main() -> int:
    """Entry point of the converting process."""
    try:
        write_model(Path(sys.argv[1]), Path(sys.argv[2]))
    except RedraftError as error:
        sys.stdout.write(str(error))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
