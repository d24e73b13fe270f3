"""What one token of the language model reads from memory, from the checkpoint's headers and config.json."""
import json
import pathlib
import struct


def header(path: pathlib.Path) -> dict[str, dict]:
    """Of a safetensors file: name -> {dtype, shape, data_offsets}."""
    with open(path, "rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        tensors = json.loads(f.read(length))
    tensors.pop("__metadata__", None)
    return tensors


def weights(model: pathlib.Path) -> int:
    """Numbers in the tensors llm.*, all of which a token reads, but of the embedding table only a row."""
    count = 0
    for path in sorted(model.glob("model*.safetensors")):
        for name, tensor in header(path).items():
            if name.startswith("llm.") and "embed_tokens" not in name:
                size = 1
                for n in tensor["shape"]:
                    size *= n
                count += size
    return count


def cached(model: pathlib.Path) -> int:
    """Numbers in the keys and values of one position."""
    config = json.loads((model / "config.json").read_text())
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return 2 * config["num_hidden_layers"] * config.get("num_key_value_heads", config["num_attention_heads"]) * head


def token_bytes(model: pathlib.Path, precision: str, context: float) -> float:
    """precision: as it runs, float32 or bfloat16."""
    width = 4 if precision == "float32" else 2
    return width * (weights(model) + context * cached(model))
