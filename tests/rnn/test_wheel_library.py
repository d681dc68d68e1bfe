"""A file where a wheel has its library, but not that library."""

import ctypes
import hashlib
import shutil
import subprocess
import sys

import pytest

from lstm_mnist_jax.rnn.native import build


def put(folder, content):
    (folder / f"prebuilt-{hashlib.sha256(content).hexdigest()[:16]}.so").write_bytes(content)


def test_a_library_that_cannot_be_loaded_or_is_one_of_two(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    assert build._prebuilt() is None
    put(tmp_path, b"for another processor" * 100)
    with pytest.raises(OSError, match=r"prebuilt-\w+\.so.* \(is it for \w+ on \w+\?\)"):
        build._prebuilt()
    put(tmp_path, b"of another version" * 100)
    with pytest.raises(OSError, match="has 2 libraries: remove the folder, and install the package again"):
        build._prebuilt()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_library_without_the_functions_of_this_package_or_with_a_missing_symbol(tmp_path):
    for name, content in (("other", "int other(void) { return 1; }"),
                          ("lacking", "int missing(void); int other(void) { return missing(); }")):  # fmt: skip
        (tmp_path / f"{name}.c").write_text(f"{content}\n")
        words = ["cc", "-shared", "-fPIC", tmp_path / f"{name}.c", "-o", tmp_path / f"{name}.so"]
        subprocess.run(words, check=sys.platform == "linux" or name == "other", timeout=60)
    if sys.platform == "linux":
        with pytest.raises(OSError, match=r"missing$"):  # and no question about the processor
            build._load(tmp_path / "lacking.so")
    found = r"it is another library: .*LstmMnistJaxSelfTest"
    with pytest.warns(RuntimeWarning, match=found), pytest.raises(build.BuildError, match=found):
        build._test(ctypes.CDLL(str(tmp_path / "other.so")))


def test_wheels_are_compiled_with_the_same_flags():
    pytest.importorskip("hatchling")
    import wheel_hook

    assert wheel_hook.FLAGS == build.FLAGS
