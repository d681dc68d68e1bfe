"""Tensors as a pickle of PyTorch describes them: which functions of PyTorch make them, and their values as arrays."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.torch_file.pickles import Foreign, Malformed, as_key

MAX_DIMENSIONS = 32
MAX_EXPANSION, SMALL = 8, 1 << 20
"""The arrays may have 8 times the bytes of the file and 1 MiB: an expanded tensor has many values in few bytes."""

DTYPES: dict[str, Any] = {
    "bfloat16": jnp.bfloat16,
    **{name: name for name in ("float16", "float32", "float64", "bool")},
    **{f"{kind}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}

STORAGES = {
    **{"HalfStorage": "float16", "FloatStorage": "float32", "DoubleStorage": "float64", "BFloat16Storage": "bfloat16"},
    **{"CharStorage": "int8", "ShortStorage": "int16", "IntStorage": "int32", "LongStorage": "int64"},
    **{"ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8", "_UntypedStorage": "uint8"},
    **{"ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128"},
    **{f"Q{kind}Storage": f"q{kind.lower()}" for kind in ("Int8", "UInt8", "Int32", "UInt4x2", "UInt2x4")},
}
"""The dtypes of storages by the names of their classes."""

ITEM_SIZES = {
    **{name: np.dtype(dtype).itemsize for name, dtype in DTYPES.items()},
    **{"complex64": 8, "complex128": 16, "qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1},
}

PLAIN = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_tensor")

FAULTS = {
    "torch._utils._rebuild_qtensor": "is quantized",
    "torch._utils._rebuild_sparse_tensor": "is sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "is sparse",
    "torch._utils._rebuild_nested_tensor": "is a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "is on the device 'meta' and has no values",
    "numpy.core.multiarray._reconstruct": "is a NumPy array, no tensor",
    "numpy._core.multiarray._reconstruct": "is a NumPy array, no tensor",
}
"""Why what these functions make is not read."""


@dataclass(frozen=True)
class Storage:
    """Where the values of tensors are, by a persistent id.

    Attributes:
      dtype: the name of its dtype.
      key: its name in the file.
      start: the first value; greater than 0 for a view of another storage, which was saved before PyTorch 0.4.
      size: the number of values.
      whole: the number of values of the whole storage.
      location: the device that it was on.
    """

    dtype: str
    key: str
    start: int
    size: int
    whole: int
    location: str


@dataclass(frozen=True)
class Tensor:
    """A tensor whose values were not read yet.

    Attributes:
      dtype: the name of its dtype.
      shape: its shape.
      stride: the distance of neighbours along each axis, in values.
      offset: the place of its first value in the storage.
      storage: where its values are; None if it has a fault.
      fault: why it cannot be read; empty if it can.
    """

    dtype: str = ""
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    offset: int = 0
    storage: Storage | None = None
    fault: str = ""


@dataclass
class Contents:
    """What is in a file.

    Attributes:
      root: the object that was saved.
      storage: gives the bytes of a storage by its key, or raises KeyError.
      order: the byte order, as NumPy writes it.
    """

    root: Any
    storage: Callable[[str], memoryview]
    order: str = "<"


def to_storage(identity: Any) -> Any:
    """The object of a persistent id: a storage; or, in the older format, the class of a module with its source."""
    if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
        if isinstance(identity[1], Foreign):
            return Foreign(identity[1].name, is_module=True)
    elif isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] == "storage":
        _, cls, key, location, size, *view = identity
        module, _, name = cls.name.rpartition(".") if isinstance(cls, Foreign) and not cls.made else ("", "", "")
        if module not in ("torch", "torch.cuda", "torch.storage") or name not in STORAGES:
            raise Malformed(f"a storage has the class {module}.{name}" if name else "a storage has no class")
        if isinstance(key, str) and isinstance(location, str) and _are_sizes([size]):
            if not view or view[0] is None:
                return Storage(STORAGES[name], key, 0, size, size, location)
            if isinstance(view[0], tuple) and len(view[0]) == 3 and _are_sizes(view[0][1:]):
                _, start, view_size = view[0]
                if start + view_size <= size:
                    return Storage(STORAGES[name], key, start, view_size, size, location)
    raise Malformed("a persistent id is that of no storage")


def _are_sizes(values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def call(name: str, arguments: Any) -> Any:
    """What a call of one of PyTorch's functions makes; NotImplemented for all others."""
    match name:
        case "collections.OrderedDict":
            return _ordered_dict(arguments)
        case "collections.defaultdict":
            return {}
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
            if arguments and isinstance(arguments[0], Tensor):
                return arguments[0]
            raise Malformed("a parameter has no tensor")
        case "torch._tensor._rebuild_from_type_v2":
            return _with_attributes(arguments)
        case "torch.storage._load_from_bytes":
            raise WeightsError(
                "names torch.storage._load_from_bytes: pickle.dump wrote its tensors. In PyTorch, save them with "
                "torch.save(model.state_dict(), 'weights.pt')."
            )
    if name in PLAIN:
        return _tensor(name, arguments)
    if name in FAULTS and name.startswith("torch"):
        return Tensor(fault=FAULTS[name])
    if name.startswith(("torch._utils._rebuild_", "torch._tensor._rebuild_")):
        return Tensor(fault=f"is made by {name}, which is not supported")
    return NotImplemented


def _ordered_dict(arguments: Any) -> dict[Any, Any]:
    """An OrderedDict, which Python 2 gave its items as a list of pairs."""
    pairs = arguments[0] if len(arguments) == 1 else []
    are_pairs = isinstance(pairs, list) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs)
    if len(arguments) > 1 or not are_pairs:
        raise Malformed("an OrderedDict is not made of pairs")
    return {as_key(key): value for key, value in pairs}


def _with_attributes(arguments: Any) -> Tensor:
    """A tensor of a subclass, or with attributes of its own."""
    match arguments:
        case (Foreign(name=function), Foreign(name=cls), tuple(inner), _):
            if cls not in ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter"):
                return Tensor(fault=f"is of the class {cls}")
            if function in PLAIN:
                return _tensor(function, inner)
            return Tensor(fault=FAULTS.get(function, f"is made by {function}, which is not supported"))
    raise Malformed("a tensor with attributes is not made of a function, a class and arguments")


def _tensor(function: str, arguments: Any) -> Tensor:
    parts: Any = arguments if len(arguments) >= 4 else (None,) * 4
    storage, offset, shape, stride, *more = parts
    dtype, metadata = storage.dtype if isinstance(storage, Storage) else "", more[2] if len(more) > 2 else None
    if function == PLAIN[1]:
        name = more[2].name if len(more) > 2 and isinstance(more[2], Foreign) else ""
        dtype, metadata = name.removeprefix("torch."), more[3] if len(more) > 3 else None
        if not name.startswith("torch."):
            raise Malformed("a tensor has no dtype")
    if (
        not (isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(stride, tuple))
        or not _are_sizes((offset, *shape, *stride))
        or len(shape) != len(stride)
    ):
        raise Malformed("a tensor is not made of a storage, an offset, a shape and strides")
    if metadata:
        return Tensor(fault="has a property that is computed when it is read (conjugate or negative)")
    if storage.location == "meta":
        return Tensor(fault=FAULTS["torch._utils._rebuild_meta_tensor_no_storage"])
    if dtype not in DTYPES:
        kind = "is quantized" if dtype.startswith("q") else f"has the type {dtype}; expected floats of 16 to 64 bits"
        return Tensor(fault=kind)
    if len(shape) > MAX_DIMENSIONS:
        return Tensor(fault=f"has {len(shape)} dimensions, the most here are {MAX_DIMENSIONS}")
    return Tensor(dtype, shape, stride, offset, storage)


def check_sizes(tensors: Mapping[str, Tensor], file_size: int) -> None:
    """Refuses tensors that are far larger than their file."""
    total = 0
    for name, tensor in tensors.items():
        if tensor.storage:
            if tensor.storage.whole * ITEM_SIZES[tensor.storage.dtype] > file_size:
                raise Malformed(f"the storage of {name} has {tensor.storage.whole:,} values, more than the file")
            total += math.prod(tensor.shape) * ITEM_SIZES[tensor.dtype]
    if total > MAX_EXPANSION * file_size + SMALL:
        raise WeightsError(
            f"holds expanded tensors, which repeat values: {total:,} bytes in a file of {file_size:,}. In PyTorch, "
            "save {name: tensor.contiguous() for name, tensor in model.state_dict().items()}."
        )


def to_array(name: str, tensor: Tensor, contents: Contents) -> np.ndarray:
    """The values of a tensor. Raises WeightsError where it has a fault, Malformed where its storage is too small."""
    storage = tensor.storage
    if storage is None:
        raise WeightsError(
            f"has an array that cannot be read: {name} {tensor.fault}. If the model does without it, leave it out with "
            "--ignore; otherwise save it in PyTorch as a plain float tensor."
        )
    try:
        raw = contents.storage(storage.key)
    except KeyError:
        raise Malformed(f"the storage {storage.key[:100]!r} of {name} is missing") from None
    whole = storage.whole * ITEM_SIZES[storage.dtype]
    if not whole <= len(raw) < whole + ITEM_SIZES[storage.dtype]:
        raise Malformed(f"the storage of {name} has {len(raw)} bytes, expected {whole}")
    dtype = np.dtype(DTYPES[tensor.dtype])
    raw = raw[storage.start * ITEM_SIZES[storage.dtype] :][: storage.size * ITEM_SIZES[storage.dtype]]
    if math.prod(tensor.shape) == 0:
        if math.prod(max(size, 1) for size in tensor.shape) > 1 << 48:
            raise Malformed(f"{name} has the shape {list(tensor.shape)}")
        return np.zeros(tensor.shape, dtype)
    strides = [step if size > 1 else 0 for size, step in zip(tensor.shape, tensor.stride, strict=True)]
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, strides, strict=True))
    if last >= (size := len(raw) // dtype.itemsize):
        raise Malformed(f"{name} reaches to value {last} of a storage that has {size}")
    flat = np.frombuffer(raw, f"{contents.order}u{dtype.itemsize}", size)
    view = np.lib.stride_tricks.as_strided(
        flat[tensor.offset :], tensor.shape, [step * dtype.itemsize for step in strides], writeable=False
    )
    native = np.require(view.astype(f"u{dtype.itemsize}", copy=False), requirements="A")
    return native.view(dtype)
