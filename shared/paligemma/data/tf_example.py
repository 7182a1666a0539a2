"""`tf.train.Example`, the message in a TFRecord, without TensorFlow, which takes six seconds and 650 MB to import.

Source: tensorflow/core/example/example.proto and feature.proto. Field numbers and types determine the bytes, so these equal
TensorFlow's (tests/unit/test_shards.py compares them).
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_PACKAGE = "tensorflow"
_ONE, _MANY = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED
_BYTES, _FLOAT, _INT64 = FieldDescriptorProto.TYPE_BYTES, FieldDescriptorProto.TYPE_FLOAT, FieldDescriptorProto.TYPE_INT64


def _message(name: str, *fields: FieldDescriptorProto) -> DescriptorProto:
    return DescriptorProto(name=name, field=fields)


def _values(kind: FieldDescriptorProto.Type.ValueType) -> FieldDescriptorProto:
    return FieldDescriptorProto(name="value", number=1, label=_MANY, type=kind)


def _field(name: str, number: int, message: str, **options) -> FieldDescriptorProto:
    options = {"label": _ONE, "type": FieldDescriptorProto.TYPE_MESSAGE, "type_name": f".{_PACKAGE}.{message}", **options}
    return FieldDescriptorProto(name=name, number=number, **options)


def _file() -> FileDescriptorProto:
    feature = _message(
        "Feature",
        *(
            _field(f"{kind}_list", number, f"{kind.title()}List", oneof_index=0)
            for number, kind in enumerate(("bytes", "float", "int64"), start=1)
        ),
    )
    feature.oneof_decl.add(name="kind")
    features = _message("Features", _field("feature", 1, "Features.FeatureEntry", label=_MANY))
    entry = _message(
        "FeatureEntry",
        FieldDescriptorProto(name="key", number=1, label=_ONE, type=FieldDescriptorProto.TYPE_STRING),
        _field("value", 2, "Feature"),
    )
    entry.options.map_entry = True  # a map is a repeated pair on the wire
    features.nested_type.append(entry)
    lists = (("BytesList", _BYTES), ("FloatList", _FLOAT), ("Int64List", _INT64))
    messages = [*(_message(name, _values(kind)) for name, kind in lists), feature, features]
    messages.append(_message("Example", _field("features", 1, "Features")))
    return FileDescriptorProto(name="paligemma/tf_example.proto", package=_PACKAGE, syntax="proto3", message_type=messages)


# A separate pool: TensorFlow registers the same names in the default pool, where names must be unique.
_POOL = DescriptorPool()
_POOL.Add(_file())
TFExample: Any = GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.Example"))
"""The message class: `TFExample.FromString(data)`, `.features.feature[name].bytes_list.value`, `.SerializeToString()`."""
