"""Versions and CPU features are found or unknown, never guessed."""

from graphopt.model import from_proto
from graphopt.report.circumstances import describe_data, package_versions, read_cpu_info, this_cpu
from graphopt.runtime.feeds import from_arrays, generate
from graphopt.testing import draw, model

X86 = """processor\t: 0
model name\t: Some Xeon
flags\t\t: fpu avx2 avx512f avx512_vnni
processor\t: 1
model name\t: Some Xeon
flags\t\t: fpu avx2 avx512f
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n"


def test_a_feature_is_there_if_every_core_has_it() -> None:
    cpu = read_cpu_info(X86)
    assert cpu["model"] == "Some Xeon"
    assert [name for name, there in cpu.items() if there is True] == ["avx2", "avx512f"]
    assert cpu["avx512_vnni"] is cpu["neon"] is False


def test_arm_names_its_features_otherwise() -> None:
    cpu = read_cpu_info(ARM)
    assert cpu["model"] is None
    assert (cpu["neon"], cpu["dotprod"], cpu["i8mm"], cpu["avx2"]) == (True, True, False, False)


def test_what_the_system_does_not_tell_is_unknown() -> None:
    assert set(read_cpu_info("").values()) == {None}
    assert set(this_cpu()) == set(read_cpu_info(""))


def test_versions() -> None:
    versions = package_versions()
    assert set(versions) == {"graphopt", "onnxruntime", "onnx", "numpy", "python"}
    assert all(versions.values())


def test_data_in_words() -> None:
    subject = from_proto(model("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"))
    arrays = from_arrays({"x": draw(3, 4)}, subject)
    assert describe_data(None, None) == "none: nothing was run"
    assert describe_data("a.npz", arrays) == "a.npz, 3 samples"
    assert describe_data({}, arrays) == "arrays, 3 samples"
    assert describe_data(None, generate(subject)).startswith("inputs generated from the model's signature, ")
