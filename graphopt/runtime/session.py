"""A model in ONNX Runtime: optimizations off unless asked for, quiet, and with one clear line when it refuses."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.message import DecodeError, EncodeError
from numpy.typing import NDArray

from graphopt.errors import GraphoptError
from graphopt.model import Model, save, to_proto
from graphopt.model.exporter import weight_bytes

if TYPE_CHECKING:
    import onnxruntime as ort

IN_MEMORY = 1 << 26
"""Weights of up to this many bytes are handed over in memory, more through files, which ONNX Runtime maps."""

_SMALL = 1 << 22

_FATAL = 4

_FILE = re.compile(r"Load model from .*? failed: ?")
"""What ONNX Runtime puts before some errors: a file, which may be one that was written for the session alone."""

_libraries: list[str] = []


def use_custom_operators(libraries: Sequence[str]) -> None:
    """Have every session from now on know the operators of these libraries (see ONNX Runtime, "Custom operators")."""
    _libraries[:] = libraries


def custom_operators() -> list[str]:
    """Return the libraries whose operators sessions know, so that it cannot be said beforehand what they know."""
    return list(_libraries)


def is_mapped(model: Model) -> bool:
    """Whether the weights of a model go to sessions through a file, which ONNX Runtime maps."""
    return weight_bytes(model) > IN_MEMORY


class Session:
    """A model on ONNX Runtime's CPU provider.

    Attributes:
        inputs: The names that must be fed.
        overridable: The names of initializers that may be fed.
        outputs: The names that ``run`` returns: the model's own, then the extra ones.
    """

    def __init__(
        self,
        model: Model | onnx.ModelProto | bytes | str | PathLike[str],
        *,
        optimize: bool = False,
        threads: int = 0,
        extra_outputs: Sequence[str] = (),
        profile: Path | None = None,
        mapped: bool | None = None,
    ) -> None:
        """Load a model.

        Args:
            model: A loaded model, a proto that holds its weights, serialized or not (serialized, with the outputs that
                it is to have, saves memory), or a file, with external data beside it or without.
            optimize: Whether ONNX Runtime may rewrite the graph.
            threads: Threads per operator; 0 leaves the choice to ONNX Runtime.
            extra_outputs: Names of tensors of the main graph to give out too.
            profile: Where to write the times of nodes, see ``end_profiling``; None measures none.
            mapped: Whether the weights of a loaded model go through a file, so that kernels do not repack them without
                optimizations, and may round in another way; ``is_mapped`` if None.

        Raises:
            GraphoptError: ONNX Runtime cannot load the model.
        """
        self.optimize, self._threads, self._profile = optimize, threads, profile
        if isinstance(model, bytes):
            self._session = self._open(model, None)
        elif isinstance(model, onnx.ModelProto):
            self._session = self._open(serialized(model, extra_outputs), None)
        elif isinstance(model, Model) and not (is_mapped(model) if mapped is None else mapped):
            self._session = self._open(serialized(to_proto(model), extra_outputs), None)
        elif isinstance(model, Model):
            with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
                path = Path(folder, "model.onnx")
                save(model, path, "always", durable=False)
                self._session = self._load_file(path, extra_outputs)
        else:
            self._session = self._load_file(Path(model), extra_outputs)
        self.inputs = tuple(each.name for each in self._session.get_inputs())
        self.overridable = tuple(each.name for each in self._session.get_overridable_initializers())
        self.outputs = tuple(each.name for each in self._session.get_outputs())

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Run once.

        Args:
            feeds: One array per input (a list for a sequence input), and for overridable initializers if they are to
                hold something else; names that the model does not have are ignored.

        Returns:
            The outputs by name: arrays; for sequence, map and optional outputs lists, dicts and None.

        Raises:
            GraphoptError: An input is missing, or ONNX Runtime cannot run the model on these inputs.
        """
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise GraphoptError(f"input {missing[0]!r} is not fed")
        import onnxruntime as ort

        settings = ort.RunOptions()
        settings.log_severity_level = _FATAL
        chosen = {name: feeds[name] for name in (*self.inputs, *self.overridable) if name in feeds}
        try:
            values = self._session.run(self.outputs, chosen, settings)
        except Exception as error:  # its exceptions have no common base but this
            raise GraphoptError(f"ONNX Runtime cannot run the model: {one_line(error)}") from error
        return dict(zip(self.outputs, values, strict=True))

    def end_profiling(self) -> Path:
        """Stop measuring and return the file with the times of nodes, in Chrome's trace format."""
        return Path(self._session.end_profiling())

    def _load_file(self, path: Path, extra_outputs: Sequence[str]) -> "ort.InferenceSession":
        """Load a file; its external data is found relative to it."""
        if not extra_outputs:
            return self._open(str(path), None)
        try:
            proto = onnx.load(path, format="protobuf", load_external_data=False)
        except (OSError, DecodeError) as error:
            raise GraphoptError(f"{path}: {one_line(error)}") from error
        return self._open(serialized(proto, extra_outputs), path.parent)

    def _open(self, source: str | bytes, folder: Path | None) -> "ort.InferenceSession":
        """Create ONNX Runtime's session; a run without checks may never come here, and saves the import."""
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.log_severity_level = _FATAL
        settings.intra_op_num_threads = self._threads
        settings.inter_op_num_threads = 1
        # Threads that spin while they wait cost more than they gain where others need the processor.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not self.optimize:
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            if not isinstance(source, bytes):  # weights that lie in a file stay mapped if kernels do not repack them
                settings.add_session_config_entry("session.disable_prepacking", "1")
                settings.enable_cpu_mem_arena = False
        if self._profile is not None:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(self._profile)
        if folder is not None:
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        try:
            for library in _libraries:
                settings.register_custom_ops_library(library)
            return ort.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base but this
            raise GraphoptError(f"ONNX Runtime cannot load the model: {one_line(error)}") from error


def serialized(proto: onnx.ModelProto, extra_outputs: Sequence[str] = ()) -> bytes:
    """Return a proto's bytes, tensors of its main graph given out beside its own outputs.

    Raises:
        GraphoptError: It is larger than 2 GB.
    """
    given = {info.name for info in proto.graph.output}
    extra = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(extra_outputs) if name not in given]
    try:
        whole: bytes = proto.SerializeToString()
    except (EncodeError, ValueError) as error:  # which one, depends on how protobuf is built
        raise GraphoptError(f"the model cannot be serialized: {one_line(error)}") from error
    # Serialized messages merge by concatenation: this appends to the repeated field graph.output.
    return whole + (onnx.ModelProto(graph=onnx.GraphProto(output=extra)).SerializeToString() if extra else b"")


def threads_for_samples(model: Model) -> int:
    """Return how many threads to run few samples at a time on: 1 for a small model, whose work is not worth sharing."""
    return 1 if weight_bytes(model) <= _SMALL else 0


def one_line(error: Exception) -> str:
    """Return an error's text in one line without ONNX Runtime's prefixes, cut where it grows long."""
    text = " ".join(str(error).split())
    parts = text.split(" : ", 3)
    if text.startswith("[ONNXRuntimeError]") and len(parts) == 4:
        text = _FILE.sub("", parts[3], count=1)
    return text if len(text) <= 400 else text[:397] + "..."
