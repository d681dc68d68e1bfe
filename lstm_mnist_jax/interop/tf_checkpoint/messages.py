"""The protocol buffers of TensorFlow's checkpoints and graphs, as far as they are read here, and the arrays in them.

From tensorflow/core/protobuf/{tensor_bundle,meta_graph,saved_model}.proto, core/util/saved_tensor_slice.proto and
core/framework/{attr_value,function,graph,node_def,op_def,tensor,tensor_shape,tensor_slice}.proto.
"""

import math
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

DECLARATIONS = """
BundleHeader    num_shards=1 endianness=2 version=3:Version
Version         producer=1 min_consumer=2
BundleEntry     dtype=1 shape=2:Shape shard=3 offset=4 size=5 crc32c=6:fixed32 slices=7*:Slice
Shape           dim=2*:Dim unknown_rank=3
Dim             size=1
Slice           extent=1*:Extent
Extent          start=1 length=2
SavedSlices     meta=1:SavedMeta data=2:SavedSlice
SavedMeta       tensor=1*:SavedTensor
SavedTensor     name=1:string shape=2:Shape type=3
SavedSlice      name=1:string slice=2:Slice data=3:Tensor
Tensor          dtype=1 shape=2:Shape content=4:bytes float32=5*:float float64=6*:double int=7* string=8*:bytes \
                complex64=9*:float int64=10* bool=11* complex128=12*:double half=13* uint32=16* uint64=17*:uint64
SavedModel      version=1 meta_graphs=2*:MetaGraph
MetaGraph       graph_def=2:Graph
Graph           node=1*:Node library=2:Library
Library         function=1*:Function
Function        signature=1:Signature node=3*:Node ret=4*:Returned
Signature       name=1:string input_arg=2*:Argument output_arg=3*:Argument
Argument        name=1:string
Returned        key=1:string value=2:string
Node            name=1:string op=2:string input=3*:string attr=5*:Attribute
Attribute       key=1:string value=2:Value
Value           list=1:List s=2:bytes i=3 f=4:float b=5:bool type=6 shape=7:Shape tensor=8:Tensor func=10:FunctionName
List            s=2*:bytes i=3* type=6* shape=7*:Shape
FunctionName    name=1:string
"""
"""Each message with its fields: NAME=NUMBER, * where it is repeated, and the type, int64 where there is none. A Value
has one of its fields."""


DTYPES: dict[int, np.dtype] = {
    number: np.dtype(kind)
    for number, kind in {
        1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 8: "<c8", 9: "<i8", 10: "?",
        14: jnp.bfloat16, 17: "<u2", 18: "<c16", 19: "<f2", 22: "<u4", 23: "<u8",
    }.items()
}  # fmt: skip
"""NumPy's types by the numbers of TensorFlow's (types.proto)."""

STRING = 7

FIELDS = dict.fromkeys(("int32", "int16", "uint16", "int8", "uint8"), "int") | {"float16": "half", "bfloat16": "half"}
"""The fields of a Tensor with the values of these types; those of others are called as the types are."""

Extent = tuple[int, int]
"""Start and length of a slice along one axis."""


class Malformed(ValueError):
    """Bytes are damaged. `checked` makes it a WeightsError with the file's name."""


class Unsupported(Malformed):
    """Bytes are whole, and of a kind that is not supported."""


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="lstm_mnist_jax/tensorflow.proto", package="lstm_mnist_jax", syntax="proto3"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    for line in DECLARATIONS.strip().splitlines():
        name, *fields = line.split()
        declared = file.message_type.add(name=name)
        if name == "Value":
            declared.oneof_decl.add(name="value")
        for field in fields:
            match = re.fullmatch(r"(\w+)=(\d+)(\*?):?(\w*)", field)
            assert match
            added = declared.field.add(name=match[1], number=int(match[2]), label=3 if match[3] else 1)
            if name == "Value":
                added.oneof_index = 0
            if match[4][:1].isupper():
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".lstm_mnist_jax.{match[4]}"
            else:
                added.type = getattr(kinds, f"TYPE_{(match[4] or 'int64').upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClassesForFiles([file.name], pool)


CLASSES = {name.rpartition(".")[2]: cls for name, cls in _classes().items()}


def parse(name: str, data: bytes) -> Any:
    """A message of one of the declared kinds. Raises Malformed."""
    try:
        return CLASSES[name].FromString(data)
    except DecodeError as error:
        raise Malformed("a message in it cannot be parsed") from error


def new(name: str, **fields: Any) -> Any:
    """A message of one of the declared kinds, to be written."""
    return CLASSES[name](**fields)


def dtype_name(number: int) -> str:
    """The name of a type of TensorFlow."""
    return DTYPES[number].name if number in DTYPES else "string" if number == STRING else f"TensorFlow type {number}"


def require_dtype(number: int) -> np.dtype:
    """NumPy's type for TensorFlow's. Raises Unsupported where there is none."""
    if number not in DTYPES:
        raise Unsupported(f"it is of the type {dtype_name(number)}, which holds no numbers")
    return DTYPES[number]


def shape_of(message: Any) -> tuple[int, ...]:
    """From a Shape. Raises Malformed where a size is unknown or absurd."""
    shape = tuple(axis.size for axis in message.dim)
    if min(shape, default=0) < 0 or math.prod(max(size, 1) for size in shape) >= 1 << 48 or len(shape) > 32:
        raise Malformed(f"its shape {list(shape)} makes no sense")
    return shape


def extents_of(message: Any, shape: tuple[int, ...]) -> tuple[Extent, ...]:
    """From a Slice of a variable of this shape. Raises Malformed where it is outside the shape."""
    if len(message.extent) != len(shape):
        raise Malformed(f"it has a slice of {len(message.extent)} axes, but the shape {list(shape)}")
    axes = list(zip(message.extent, shape, strict=True))  # no length: to the end
    if any(min(axis.start, axis.length) < 0 or axis.start + axis.length > size for axis, size in axes):
        raise Malformed(f"it has a slice that lies outside its shape {list(shape)}")
    return tuple((axis.start, axis.length or size - axis.start) for axis, size in axes)


def decode_tensor(dtype: np.dtype, shape: tuple[int, ...], tensor: Any) -> np.ndarray:
    """The values of a Tensor. Raises Malformed."""
    if tensor.content:
        if len(tensor.content) % dtype.itemsize:
            raise Malformed(f"its values end within a {dtype.name}")
        values = np.frombuffer(tensor.content, dtype)
    else:
        numbers = getattr(tensor, FIELDS.get(dtype.name, dtype.name))
        if dtype.kind == "c":  # real and imaginary parts by turns
            numbers = np.array(numbers, f"<f{dtype.itemsize // 2}")
            values = numbers[: len(numbers) // 2 * 2].view(dtype)
        elif FIELDS.get(dtype.name) == "half":
            values = np.array(numbers, np.int64).astype(np.uint16).view(dtype)
        else:
            values = np.array(numbers, dtype if dtype.kind == "f" or dtype.name == "uint64" else np.int64).astype(dtype)
    if values.size != math.prod(shape):
        raise Malformed(f"it has {values.size} values, but its shape {list(shape)} needs {math.prod(shape)}")
    return values.reshape(shape)
