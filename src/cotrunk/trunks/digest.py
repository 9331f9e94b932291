"""A digest of values, which differs if they differ, and is equal in all processes if they are equal.

It fails closed: a value that it does not know how to read is refused, and never passed over.
"""

import enum
import functools
import hashlib
import inspect
import sys
from collections.abc import Mapping, Set
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import CotrunkError

# packages whose classes and functions are known by their names: their versions are part of every key
KNOWN = (
    "builtins",
    "types",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "cotrunk",
    "tokenizers",
    "numpy",
    "torchao",
    "bitsandbytes",
)
VERSIONED = KNOWN[2:]  # the others come with Python
# methods that run before a call, and whose result is read from the modules
MOVING = (
    "to",
    "from_pretrained",
    "enable_model_cpu_offload",
    "enable_sequential_cpu_offload",
    "compile",
    "load_lora_weights",
)
READ = ("_internal_dict", "_attention_backend")  # private attributes of diffusers that count: configurations and so on
PLAIN = {type(None), bool, int, float, complex, str, bytes}  # types whose repr is all of a value
WORD = 8  # bytes that are summed as one whole number
WIDTH = 1024  # words per row of the table whose sums are the digest of a large tensor
SMALL = 65_536  # a tensor of at most so many bytes is read as it is


class Digest:
    """Reads values one after another. Each is read with its type, so that 1, 1.0, True and "1" differ."""

    def __init__(self) -> None:
        self._found = hashlib.sha256()
        self._above: list[int] = []  # objects that are being read, which may hold themselves

    def hexdigest(self) -> str:
        """Return the digest of all values so far."""
        return self._found.hexdigest()

    def add(self, name: str, value: Any) -> None:
        """Read a value.

        Args:
            name: of the value, for messages.
            value: a number, text, enum, path, array, tensor, image, function or class, a collection of such values, or
                an object with public attributes of such values.

        Raises:
            CotrunkError: it cannot be read.
        """
        if id(value) in self._above:
            self._put("again", str(self._above[::-1].index(id(value))))
            return
        self._above.append(id(value))
        try:
            self._add(name, value)
        finally:
            self._above.pop()

    def _add(self, name: str, value: Any) -> None:
        kind = type(value).__name__
        if isinstance(value, enum.Enum):
            self._put(kind, value.name)
        elif type(value) in PLAIN:
            self._put(kind, repr(value))
        elif isinstance(value, torch.dtype | torch.Size | torch.memory_format | np.dtype | PurePath):
            self._put(kind, str(value))
        elif isinstance(value, torch.device):
            self._put(kind, value.type)
        elif isinstance(value, Tensor):
            self._tensor(name, value)
        elif isinstance(value, np.ndarray | np.generic) and value.dtype != object:
            self._put(kind, f"{value.dtype.str} {value.shape}", np.ascontiguousarray(value).tobytes())
        elif isinstance(value, Image.Image):
            image = value.convert("RGBA") if value.mode == "P" else value  # bytes mean nothing without the palette
            self._put("image", f"{image.mode} {image.size}", image.tobytes())
        elif isinstance(value, Mapping):
            self._mapping(name, value)
        elif isinstance(value, list | tuple):
            if all(type(each) in PLAIN for each in value):
                self._put("plain sequence", repr(list(value)))
                return
            self._put("sequence", str(len(value)))
            for place, each in enumerate(value):
                self.add(f"{name}[{place}]", each)
        elif isinstance(value, Set):
            self._put("set", *sorted(digest_of(name, each) for each in value))
        elif isinstance(value, torch.Generator | ModuleType):
            raise _unknown(name, value)
        elif isinstance(value, type):
            self.add_class(name, value)
        elif isinstance(value, functools.partial):
            self._put("partial")
            self.add(name, [value.func, value.args, value.keywords])
        elif isinstance(value, FunctionType | BuiltinFunctionType | MethodType):
            self._function(name, value)
        else:
            self._object(name, value)

    def add_class(self, name: str, kind: type) -> None:
        """Read a class: its name, and the sources of its bases outside the packages whose versions are in every key.

        Raises:
            CotrunkError: a base has no source, or a method of a known class was replaced.
        """
        self._put("class", kind.__module__, kind.__qualname__)
        for base in kind.__mro__:
            if not _is_known(base.__module__):
                self._put("source", base.__qualname__, _source(name, base))
            elif (replaced := _replaced_method(base)) is not None:
                raise _unknown(f"{name}: {base.__qualname__}.{replaced}", vars(base)[replaced])

    def _put(self, *texts: str | bytes) -> None:
        """Read texts so that they cannot run into each other."""
        parts = [each if isinstance(each, bytes) else each.encode("utf-8", "surrogatepass") for each in texts]
        self._found.update(b"".join(b"%d:%b" % (len(part), part) for part in parts))

    def _mapping(self, name: str, value: Mapping[Any, Any]) -> None:
        """Read a mapping whatever its order. Plain entries are read at once, because modules have many of them."""
        plain = {key: each for key, each in value.items() if type(key) is str and type(each) in PLAIN}
        self._put("mapping", str(len(value)), repr(sorted(plain.items(), key=lambda entry: entry[0])))
        for key in sorted(value.keys() - plain.keys(), key=lambda key: (type(key).__name__, repr(key))):
            self.add(name, key)
            self.add(f"{name}.{key}", value[key])

    def _function(self, name: str, value: Any) -> None:
        """Read the name of a function of a known package; a method must be of a class or of a module."""
        owner = getattr(value, "__self__", None)
        module = value.__module__ or getattr(owner, "__name__", "")
        is_named = _is_known(str(module)) and "<" not in value.__qualname__  # not a lambda or a closure
        if not is_named or not (owner is None or isinstance(owner, type | ModuleType | torch.nn.Module)):
            raise _unknown(name, value)
        self._put("function", str(module), value.__qualname__)

    def _object(self, name: str, value: Any) -> None:
        """Read the class and the public attributes of an object."""
        if not hasattr(value, "__dict__"):
            raise _unknown(name, value)
        self.add_class(name, type(value))
        found = {key: each for key, each in vars(value).items() if not key.startswith("_") or key in READ}
        if isinstance(config := found.get("_internal_dict"), Mapping):  # its private entries have no order of their own
            found["_internal_dict"] = {key: each for key, each in config.items() if not str(key).startswith("_")}
        self._mapping(name, found)

    def _tensor(self, name: str, value: Tensor) -> None:
        if value.is_meta or value.layout != torch.strided:
            raise _unknown(name, value)
        if hasattr(value, "__tensor_flatten__"):  # a quantised weight
            inner, context = value.__tensor_flatten__()
            self.add_class(name, type(value))
            self.add(name, {each: getattr(value, each) for each in inner})
            self.add(name, context)
            return
        if type(value) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer):  # e.g. GGUF, with its kind of numbers
            self.add_class(name, type(value))
            plain = (*PLAIN, enum.Enum, torch.dtype)
            self.add(name, {key: each for key, each in vars(value).items() if isinstance(each, plain)})
        self._put("tensor", str(value.dtype), str(tuple(value.shape)))
        self._put(sums(value.as_subclass(Tensor)).tobytes())


def sums(tensor: Tensor) -> np.ndarray:
    """Return the bytes of a small tensor; of a large one the sums of the rows and columns of a table of its bytes.

    The sums are computed where the tensor is, and differ after a change of any one value.
    """
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.storage_offset() * flat.element_size() % WORD:
        flat = flat.clone()  # the bytes of its words must begin at a multiple of their size
    content = flat.view(torch.uint8)
    if len(content) <= SMALL:
        return content.cpu().numpy()
    whole = len(content) // (WIDTH * WORD) * (WIDTH * WORD)
    table = content[:whole].view(torch.int64).view(-1, WIDTH)
    return torch.cat([table.sum(0), table.sum(1), content[whole:].to(torch.int64)]).cpu().numpy()


def digest_of(name: str, value: Any) -> str:
    """Return the digest of one value.

    Raises:
        CotrunkError: it cannot be read.
    """
    digest = Digest()
    digest.add(name, value)
    return digest.hexdigest()


def _is_known(module: str) -> bool:
    return module.partition(".")[0] in KNOWN


def _replaced_method(kind: type) -> str | None:
    """Return the name of a method of a known class that was defined outside the known packages, if there is one."""
    for name, value in [*vars(kind).items()]:
        if type(value) is FunctionType and name not in MOVING and not _is_known(value.__module__ or "builtins"):
            return name
    return None


@functools.cache
def _source_of(kind: type) -> str:
    """Return the source of the module of a class, whose functions its methods may call; in a script, of the class."""
    module = sys.modules.get(kind.__module__)
    return inspect.getsource(kind if module is None or kind.__module__ == "__main__" else module)


def _source(name: str, kind: type) -> str:
    try:
        return _source_of(kind)
    except (OSError, TypeError):
        raise _unknown(name, kind) from None


def _unknown(name: str, value: Any) -> CotrunkError:
    what = getattr(value, "__qualname__", None)
    kind = f"the {'class' if isinstance(value, type) else 'function'} {what}" if what else f"a {type(value).__name__}"
    return CotrunkError(
        f"Trunks are not stored: {name} is {kind}, and cotrunk cannot tell whether it changes images. Leave it out, or "
        "run without a trunk cache."
    )
