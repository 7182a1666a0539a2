"""How Google's and Kubeflow's servers keep JSON objects: in protocol buffers' Struct, where every number is a double."""

from __future__ import annotations

import json

from google.protobuf import json_format, struct_pb2


def as_kept(value: dict, spelling: type[int] | type[float]) -> dict:
    """The object as it is given back. `spelling`: 8 is said as 8 (int; Go and C++ do) or as 8.0 (float; Python does)."""
    kept = json_format.MessageToDict(json_format.ParseDict(value, struct_pb2.Struct()))

    def number(text: str) -> int | float:
        return spelling(float(text)) if float(text).is_integer() else float(text)

    return json.loads(json.dumps(kept), parse_float=number, parse_int=number)
