"""A stand-in for the package ``tensorrt``: the names of each version, and an engine that runs the ONNX file on the CPU.

Names and values were read from NVIDIA's wheels (tensorrt-bindings 8.6.1, tensorrt-cu12-bindings 10.16.1.11 and
11.4.0.106), as far as speedup code may touch them. What a version lacks fails as it does there, with AttributeError.
"""

from __future__ import annotations

import ctypes
import enum
import json
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

VERSIONS = ("8.6.1", "10.16.1.11", "11.4.0.106")
CREATION_FLAGS = {
    "8.6.1": {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1},
    "10.16.1.11": {
        "EXPLICIT_BATCH": 0,
        "STRONGLY_TYPED": 1,
        "PREFER_JIT_PYTHON_PLUGINS": 2,
        "PREFER_AOT_PYTHON_PLUGINS": 3,
    },
    "11.4.0.106": {"STRONGLY_TYPED": 0, "PREFER_JIT_PYTHON_PLUGINS": 1, "PREFER_AOT_PYTHON_PLUGINS": 2},
}
WEAK_TYPING = ["FP16", "INT8", "FP8", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"]
BUILDER_FLAGS = {
    "8.6.1": ["DEBUG", "REFIT", "TF32", *WEAK_TYPING],
    "10.16.1.11": ["DEBUG", "REFIT", "TF32", *WEAK_TYPING],
    "11.4.0.106": ["DEBUG", "REFIT", "TF32"],
}
ONLY_8_6 = {"max_workspace_size"}  # of IBuilderConfig
NOT_IN_11 = {"int8_calibrator", "quantization_flags"}
CONFIG = {"builder_optimization_level", "profiling_verbosity", "flags", "avg_timing_iterations"}


class FakeTensorRT(types.ModuleType):
    """The module; ``calls`` records what was asked of it, as (name, arguments)."""

    def __init__(self, version: str, refuse: str = "") -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.calls: list[tuple[Any, ...]] = []
        self.refuse = refuse
        self.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", CREATION_FLAGS[version])
        self.BuilderFlag = enum.Enum("BuilderFlag", BUILDER_FLAGS[version])
        self.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "NONE", "DETAILED"])
        self.LayerInformationFormat = enum.Enum("LayerInformationFormat", ["ONELINE", "JSON"])
        self.TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
        self.MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE", "DLA_MANAGED_SRAM"])
        self.DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT8"])
        self.ILogger = _ILogger
        self.Builder = lambda log: _Builder(self, log)
        self.OnnxParser = lambda network, log: _Parser(self, network, log)
        self.Runtime = lambda log: _Runtime(self, log)

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def arguments(self, name: str) -> tuple[Any, ...]:
        """Return what the last call of ``name`` was given."""
        return [call[1:] for call in self.calls if call[0] == name][-1]


class FakeCuda:
    """``Cuda`` in the memory of the CPU; ``handle`` is the stream's."""

    handle = 4711

    def put(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach().float().contiguous()

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.full(shape, torch.nan)

    def timed(self, enqueue: Callable[[int], bool]) -> tuple[bool, float]:
        return enqueue(self.handle), 0.25


class _ILogger:
    Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)


class _Builder:
    def __init__(self, module: FakeTensorRT, log: Any) -> None:
        self._module, self._log = module, log

    def create_network(self, flags: int = 0) -> _Network:
        self._module.calls.append(("create_network", flags))
        return _Network()

    def create_builder_config(self) -> _Config:
        return _Config(self._module)

    def create_optimization_profile(self) -> _Profile:
        return _Profile(self._module)

    def build_serialized_network(self, network: _Network, config: _Config) -> memoryview | None:
        self._module.calls.append(("build_serialized_network",))
        if self._module.refuse == "build":
            self._log.log(_ILogger.Severity.ERROR, "no kernel for Conv\n")
            return None
        shapes = self._module.arguments("set_shape")[1:]
        head = {"version": self._module.__version__, "shapes": shapes, "verbosity": config.profiling_verbosity.name}
        return memoryview(json.dumps(head).encode() + b"\0" + network.content)


class _Network:
    content = b""

    def get_input(self, number: int) -> Any:
        return onnx.load_model_from_string(self.content).graph.input[number]


class _Config:
    def __init__(self, module: FakeTensorRT) -> None:
        newest = module.__version__.startswith("11")
        allowed = (
            CONFIG | (ONLY_8_6 if module.__version__.startswith("8") else set()) | (set() if newest else NOT_IN_11)
        )
        object.__setattr__(self, "_allowed", allowed)
        object.__setattr__(self, "_module", module)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._allowed:
            raise AttributeError(f"'IBuilderConfig' object has no attribute '{name}'")
        object.__setattr__(self, name, value)
        self._module.calls.append((name, value))

    def set_flag(self, flag: enum.Enum) -> None:
        self._module.calls.append(("set_flag", flag.name))

    def clear_flag(self, flag: enum.Enum) -> None:
        self._module.calls.append(("clear_flag", flag.name))

    def set_memory_pool_limit(self, pool: enum.Enum, size: int) -> None:
        self._module.calls.append(("set_memory_pool_limit", pool.name, size))

    def add_optimization_profile(self, profile: _Profile) -> int:
        return 0


class _Profile:
    def __init__(self, module: FakeTensorRT) -> None:
        self._module = module

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._module.calls.append(("set_shape", input, min, opt, max))


class _Parser:
    num_errors = 0

    def __init__(self, module: FakeTensorRT, network: _Network, log: Any) -> None:
        self._network, self._refuse = network, module.refuse == "parse"

    def parse(self, model: bytes, path: str | None = None) -> bool:
        self._network.content = model
        self.num_errors = int(self._refuse)
        return not self._refuse

    def get_error(self, number: int) -> Any:
        return types.SimpleNamespace(desc=lambda: "Assertion failed: zero point must be 0")


class _Runtime:
    def __init__(self, module: FakeTensorRT, log: Any) -> None:
        self._module, self._log = module, log

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        head, _, content = plan.partition(b"\0")
        facts = json.loads(head) if content else {}
        if facts.get("version") != self._module.__version__:
            self._log.log(_ILogger.Severity.WARNING, "plans are not portable")
            self._log.log(_ILogger.Severity.ERROR, "Serialization assertion failed.")
            return None
        return _Engine(self._module, content, facts)


class _Engine:
    num_io_tensors = 2

    def __init__(self, module: FakeTensorRT, content: bytes, facts: dict[str, Any]) -> None:
        self.module, self.content, self.facts = module, content, facts
        self.graph = onnx.load_model_from_string(content).graph
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.runs = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.contexts = 0

    def get_tensor_name(self, number: int) -> str:
        return [self.graph.input[0].name, self.graph.output[0].name][number]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.module.TensorIOMode
        return modes.INPUT if name == self.graph.input[0].name else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.module.DataType.HALF if self.module.refuse == "dtype" else self.module.DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3, -1, -1)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.facts["shapes"]]

    def create_execution_context(self) -> _Context | None:
        self.contexts += 1
        return None if self.module.refuse == "memory" else _Context(self)

    def create_engine_inspector(self) -> _Inspector:
        return _Inspector(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, channels, height, width = self.shape
        return (batch, channels, 2 * height, 2 * width)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        self.engine.module.calls.append(("execute_async_v3", stream_handle))
        if self.engine.module.refuse == "run":
            return False
        source, target = self.engine.get_tensor_name(0), self.engine.get_tensor_name(1)
        (result,) = self.engine.runs.run(None, {source: self._memory(source, self.shape)})
        self._memory(target, self.get_tensor_shape(target))[...] = result
        return True

    def _memory(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape))
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses[name])).reshape(shape)


class _Inspector:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self.execution_context: _Context | None = None

    def get_engine_information(self, form: Any) -> str:
        """Say what the documents show: in 11 types have a field of their own, and ``Bindings`` is ``I/O Tensors``."""
        assert form.name == "JSON"
        newest = self._engine.module.__version__.startswith("11")
        names = [self._engine.get_tensor_name(number) for number in range(2)]
        known = self.execution_context is not None and self.execution_context.shape
        layers: list[Any] = []
        for node in self._engine.graph.node:
            if node.op_type != "Conv":
                continue
            integer = node.input[0].endswith("_dq") and node.input[1].endswith("_dq")
            form_of = "Thirty-two wide channel vectorized row major Int8 format" if integer else "Row major linear FP32"
            field = (
                {"Format": form_of, "DataType": "Int8" if integer else "Float"}
                if newest
                else {"Format/Datatype": form_of}
            )
            layer = {"Name": node.name, "LayerType": "CaskConvolution", "Inputs": [{"Name": node.input[0], **field}]}
            if not known:
                layer["Inputs"] = [{"Name": node.input[0], "Format/Datatype": "N/A due to dynamic shapes"}]
            if len(layers) % 2:  # not every layer lists its weights
                layer["Weights"] = {"Type": "Int8" if integer else "Float", "Count": 1}
            layers.append(
                {**layer, "ParameterType": "Convolution", "TacticName": f"sm80_{'i8i8' if integer else 'f32f32'}"}
            )
        layers.append(
            {"Name": "reformat", "LayerType": "Reformat", "Inputs": [{"Format/Datatype": "Row major Int8 format"}]}
        )
        if self._engine.facts["verbosity"] != "DETAILED":
            layers = [layer["Name"] for layer in layers]
        ends: dict[str, Any] = {"I/O Tensors": [{"Name": name} for name in names]} if newest else {"Bindings": names}
        return json.dumps({"Layers": layers, **ends})
