"""The protocol buffers of TensorFlow's checkpoints and graphs, as far as they are read here.

From tensorflow/core/protobuf/{tensor_bundle,meta_graph,saved_model}.proto, core/util/saved_tensor_slice.proto and
core/framework/{attr_value,function,graph,node_def,op_def,tensor,tensor_shape,tensor_slice}.proto.
"""

import re
from typing import Any

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
