"""Building the compiled kernel where something is in the way."""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jaxlib
import programs
import pytest

from lstm_mnist_jax.rnn import native
from lstm_mnist_jax.rnn.native import build

NATIVE = Path(native.__file__).parent

needs_kernel = pytest.mark.skipif(
    native.unavailable() is not None, reason=f"no compiled kernel: {native.unavailable()}"
)

PROBE = """
import numpy as np
from lstm_mnist_jax.rnn import lstm, native
{before}
print(native.unavailable())
x = np.ones((2, 2, 2), "f"); w = np.ones((2, 8), "f"); z = np.zeros((2, 2), "f")
assert np.isfinite(lstm(x, w, w, w[0], (z, z)).h).all()
try:
    lstm(x, w, w, w[0], (z, z), backend="native")
except ValueError as error:
    print("refused:", error)
"""


@pytest.fixture(autouse=True)
def temporary_files(tmp_path, monkeypatch):
    """Libraries that do not fit into the cache folder go to the folder for temporary files: each test has its own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def start(cache, *before, **environment):
    """A process that says why it has no kernel, and that all runs without; `before` are lines of Python."""
    variables = {"LSTM_MNIST_JAX_NATIVE": "1", "XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    lines = ["from lstm_mnist_jax.rnn.native import build", "build.tempfile.tempdir = None", *before]
    code = PROBE.replace("{before}", "\n".join(lines))
    return programs.Program(code=code, env={**os.environ, **variables, **environment})


def finish(process):
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert errors == ""
    return output.splitlines()


def libraries(cache):
    return list((cache / "lstm_mnist_jax" / "native").glob("*.so"))


LINKS = """#!/bin/sh
case "$*" in
*/ffi.cc*)
    for output; do :; done
    exec COMPILER -r -nostdlib OBJECTS -o "$output"
    ;;
esac
exec COMPILER "$@" -O0
"""

REMEMBERS = """#!/bin/sh
for output; do :; done
kept="$0.${output##*/}"
if [ ! -f "$kept" ]; then
    "COMPILER" "$@" && cp "$output" "$0.$$" && mv "$0.$$" "$kept"
else
    cp "$kept" "$output"
fi
"""


def write_script(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def compiler_for(tmp_path_factory):
    """A function that makes a compiler, whose libraries are for a version of XLA's interface; by default, jaxlib's.

    What it does is not the point here: nothing is optimized. And ffi.cc, which takes seconds, is compiled once, with
    the version as a variable.
    """
    folder, compiler = tmp_path_factory.mktemp("compiler"), os.environ.get("CXX", "c++")
    shutil.copytree(build.INCLUDE, folder / "headers")
    (header,) = folder.rglob("ffi/api/c_api.h")
    text, define = header.read_text(), r"(#define XLA_FFI_API_M(AJ|IN)OR) (\d+)"
    (_, _, usual_major), (_, _, usual_minor) = re.findall(define, text)
    header.write_text("extern int mAJor, mINor;\n" + re.sub(define, r"\1 m\2or", text))
    words = ["-O0", "-isystem", folder / "headers", "-c", NATIVE / "ffi.cc", "-o", folder / "ffi.o"]
    subprocess.run([*shlex.split(compiler), *build.FLAGS, *words], check=True)

    def make(major=usual_major, minor=usual_minor):
        version = folder / f"version-{major}.{minor}.cc"
        version.write_text(f"int mAJor = {major}, mINor = {minor};\n")
        links = LINKS.replace("OBJECTS", f'"{folder}/ffi.o" "{version}"').replace("COMPILER", compiler)
        return write_script(folder / f"c++-{major}.{minor}", links)

    return make


@pytest.fixture(scope="module")
def compiler(compiler_for, tmp_path_factory):
    """The compiler behind a cache, as people have them."""
    return write_script(tmp_path_factory.mktemp("compiler") / "c++", REMEMBERS.replace("COMPILER", compiler_for()))


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"LSTM_MNIST_JAX_NATIVE": "0"}, "LSTM_MNIST_JAX_NATIVE=0"),
        ({"CXX": "/nowhere/c++"}, "/nowhere/c++"),
        ({"CXX": "false"}, "false failed"),
        ({"CXX": "true"}, "true wrote no file"),
        ({"CXX": "c++ 'a"}, "No closing quotation"),
    ],
    ids=["turned off", "no compiler", "a compiler that fails", "a compiler that writes nothing", "half a quotation"],
)
def test_without_a_kernel_everything_runs_and_the_reason_is_told(tmp_path, environment, reason):
    first, second = finish(start(tmp_path, **environment))
    assert reason in first
    assert second.startswith("refused: ")
    assert reason in second


@pytest.mark.slow
@needs_kernel
@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is for Linux")
def test_two_builders_at_once_leave_one_library(tmp_path, compiler):
    processes = [start(tmp_path, CXX=compiler) for _ in range(2)]
    assert [finish(process) for process in processes] == [["None"], ["None"]]
    (library,) = libraries(tmp_path)
    # The next process takes what is there, and asks no compiler for it.
    written = library.stat().st_mtime_ns
    assert finish(start(tmp_path, CXX=compiler)) == ["None"]
    assert library.stat().st_mtime_ns == written
    # In a cache that was copied to another processor, its library is another.
    assert finish(start(tmp_path, "build._processor = lambda: 'another'", CXX=compiler)) == ["None"]
    assert len(libraries(tmp_path)) == 2


@pytest.mark.slow
@needs_kernel
def test_a_library_that_ends_too_early_is_made_anew(tmp_path, compiler):
    assert finish(start(tmp_path, CXX=compiler)) == ["None"]
    (library,) = libraries(tmp_path)
    whole = library.read_bytes()
    for share in (0, 0.01, 0.5, 0.99):
        os.truncate(library, int(share * len(whole)))
        assert finish(start(tmp_path, CXX=compiler)) == ["None"], share
        assert [path.read_bytes() for path in libraries(tmp_path)] == [whole], share


@pytest.mark.slow
@needs_kernel
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("return 0.5f * TanhSlope(tanh);", "its self-test gives wrong numbers"),
        ("__builtin_trap();", "the processor does not have the instructions that it says it has"),
    ],
    ids=["a wrong derivative", "an instruction that the processor does not have"],
)
def test_a_library_that_fails_its_self_test_is_not_used(tmp_path, compiler_for, line, reason):
    sources, right = tmp_path / "sources", "return 0.25f * TanhSlope(tanh);"
    shutil.copytree(NATIVE, sources)
    text = (sources / "vectors.h").read_text()
    assert right in text
    (sources / "vectors.h").write_text(text.replace(right, line))
    moved = f"build.FOLDER = build.Path({str(sources)!r})"
    first, second = finish(start(tmp_path, moved, CXX=compiler_for()))
    assert first == f"{libraries(tmp_path)[0]} is not for this processor: {reason}"
    assert second.startswith("refused: ")
    # The same library in a wheel: none is compiled instead, as it would be the same.
    prebuilt = put_prebuilt(sources, libraries(tmp_path)[0].read_bytes())
    process = start(tmp_path / "empty", "import warnings; warnings.simplefilter('default')", moved, CXX="/nowhere/c++")
    output, errors = process.communicate()
    assert output.splitlines()[0] == f"{prebuilt} is not for this processor: {reason}"
    assert errors.count("RuntimeWarning") == 1
    assert reason in errors
    assert not libraries(tmp_path / "empty")


@pytest.mark.slow
@needs_kernel
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="qemu-x86_64 is not installed")
@pytest.mark.skipif(
    "avx512f" not in Path("/proc/cpuinfo").read_text(), reason="QEMU emulates all that this processor has"
)
def test_an_emulated_processor_without_what_the_system_reports_of_it(tmp_path, compiler):
    """Its library is that of the machine: /proc/cpuinfo, from which the name is made, is that of the machine."""
    assert finish(start(tmp_path, CXX=compiler)) == ["None"]
    (library,) = libraries(tmp_path)
    done = subprocess.run(
        ["qemu-x86_64", "-cpu", "max", sys.executable, "-S", "-c", SELF_TEST, str(library)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.stdout == "the processor does not have the instructions that it says it has\n", done.stderr


SELF_TEST = """
import ctypes, sys
test = ctypes.CDLL(sys.argv[1]).LstmMnistJaxSelfTest
test.restype = ctypes.c_char_p
print(test().decode())
"""


def put_prebuilt(sources, content):
    """Puts a library where that of a wheel is."""
    path = sources / f"prebuilt-{hashlib.sha256(content).hexdigest()[:16]}.so"
    path.write_bytes(content)
    return path


@pytest.fixture
def wheel(tmp_path, compiler):
    """A copy of the C++ files with a wheel's library, and the line that takes it for the package's."""
    sources = tmp_path / "sources"
    shutil.copytree(NATIVE, sources)
    build._compile([compiler], tmp_path / "lstm.so")
    prebuilt = put_prebuilt(sources, (tmp_path / "lstm.so").read_bytes())
    return prebuilt, f"build.FOLDER = build.Path({str(sources)!r})"


@pytest.mark.slow
@needs_kernel
def test_the_library_of_a_wheel_needs_no_compiler_unless_it_is_damaged(tmp_path, compiler, wheel):
    prebuilt, moved = wheel
    assert finish(start(tmp_path, moved, CXX="/nowhere/c++")) == ["None"]
    assert not libraries(tmp_path)
    os.truncate(prebuilt, prebuilt.stat().st_size // 2)
    output, errors = start(
        tmp_path, "import warnings; warnings.simplefilter('default')", moved, CXX="/nowhere/c++"
    ).communicate()
    first, _ = output.splitlines()
    damaged = f"{prebuilt} is damaged: install the package again"
    assert first.startswith(f"the library of this wheel cannot be used ({damaged}), and none can be compiled (CXX is ")
    assert errors.count("RuntimeWarning") == 1
    assert finish(start(tmp_path, moved, CXX=compiler)) == ["None"]
    assert len(libraries(tmp_path)) == 1


@pytest.mark.slow
@needs_kernel
def test_a_wheel_for_another_system_is_compiled(tmp_path, compiler, wheel):
    prebuilt, moved = wheel
    prebuilt.unlink()
    put_prebuilt(prebuilt.parent, b"of another system" * 100)
    assert finish(start(tmp_path, moved, CXX=compiler)) == ["None"]
    assert len(libraries(tmp_path)) == 1
    first, _ = finish(start(tmp_path / "empty", moved, CXX="/nowhere/c++"))
    assert "invalid ELF header" in first
    assert "/nowhere/c++" in first


@pytest.mark.slow
@needs_kernel
@pytest.mark.parametrize("version", [(0, 0), (1000, 3)])
def test_a_wheel_for_another_jaxlib_is_compiled(tmp_path, compiler, compiler_for, wheel, version):
    prebuilt, moved = wheel
    build._compile([compiler_for(*version)], tmp_path / "other.so")
    prebuilt.unlink()
    put_prebuilt(prebuilt.parent, (tmp_path / "other.so").read_bytes())
    output, errors = start(
        tmp_path, "import warnings; warnings.simplefilter('default')", moved, CXX="/nowhere/c++"
    ).communicate()
    first, second = output.splitlines()
    assert first.startswith(f"the library of this wheel cannot be used (jaxlib {jaxlib.__version__}: ")
    assert f"API version ({version[0]}.{version[1]})" in first
    assert second.startswith("refused: ")
    assert errors.count("RuntimeWarning") == 1
    assert finish(start(tmp_path, moved, CXX=compiler)) == ["None"]


@pytest.mark.slow
@needs_kernel
def test_a_cache_folder_that_cannot_be_written_is_no_obstacle(tmp_path, temporary_files, compiler):
    (tmp_path / "file").write_text("")
    assert finish(start(tmp_path / "file", CXX=compiler)) == ["None"]
    (library,) = temporary_files.rglob("*.so")
    assert finish(start(tmp_path / "file", "build._compile = None", CXX=compiler)) == ["None"]
    # What another user may have put there is not loaded.
    library.parent.chmod(0o777)
    _, errors = start(tmp_path / "file", "build._compile = None", CXX=compiler).communicate()
    assert "'NoneType' object is not callable" in errors


NO_PROGRAMS = """
load = build.ctypes.CDLL
def load_elsewhere(path):
    if "/lstm_mnist_jax/native/" in path:
        raise OSError("failed to map segment from shared object")
    return load(path)
build.ctypes.CDLL = load_elsewhere
"""


@pytest.mark.slow
@needs_kernel
def test_a_cache_folder_from_which_nothing_can_be_loaded_is_no_obstacle(tmp_path, temporary_files, compiler):
    assert finish(start(tmp_path, NO_PROGRAMS, CXX=compiler)) == ["None"]
    assert list(temporary_files.rglob("*.so"))
    assert finish(start(tmp_path, NO_PROGRAMS, "build._compile = None", CXX=compiler)) == ["None"]


@pytest.mark.slow
@needs_kernel
def test_a_compiler_with_arguments(tmp_path, compiler):
    assert finish(start(tmp_path, CXX=f"env A=b {compiler}")) == ["None"]


def test_a_full_disk(tmp_path):
    first, _ = finish(start(tmp_path, "build.COMPILER_BYTES = 1 << 62", CXX="false"))
    assert first.startswith("no room for a compiler's files in ")


HANGS = """#!/bin/sh
echo $$ >> "$0.pids"
sleep 300 &
echo $! >> "$0.pids"
wait
"""


@pytest.fixture
def hanging(tmp_path):
    """A compiler that does not end; nor does a process that it starts. Those that are left are killed in the end."""
    script = tmp_path / "hanging"
    script.write_text(HANGS)
    script.chmod(0o755)
    yield script
    pids = script.with_name("hanging.pids")
    for pid in pids.read_text().split() if pids.exists() else ():
        command = Path("/proc", pid, "cmdline")  # the number may be another's by now
        if command.exists() and {b"300", bytes(script)} & set(command.read_bytes().split(b"\0")):
            os.kill(int(pid), 9)


@pytest.mark.parametrize("source", ["loops.cc", "ffi.cc"])
def test_an_error_in_either_file_is_an_error_of_the_build(tmp_path, source):
    fails = f'case "$*" in */{source}*) echo "error: {source}" >&2; exit 1; esac'
    script = write_script(tmp_path / "c++", f'#!/bin/sh\nfor output; do :; done\n: > "$output"\n{fails}\n')
    with pytest.raises(build.BuildError, match=rf"c\+\+ failed: error: {source}"):
        build._compile([script], tmp_path / "lstm.so")


def test_a_compiler_that_does_not_end_is_waited_for_once_a_day(tmp_path, hanging):
    short = "build.TIMEOUT = 1; build.QUICK_SECONDS = 0.9"  # a failure that took less would not be remembered
    process = start(tmp_path, short, "import warnings; warnings.simplefilter('default')", CXX=str(hanging))
    output, errors = process.communicate()
    reason = f"{hanging} did not finish within 1 seconds"
    assert output.startswith(reason)
    assert errors.count("RuntimeWarning") == 1
    assert reason in errors
    assert "LSTM_MNIST_JAX_NATIVE=0" in errors
    pids = hanging.with_name("hanging.pids").read_text().split()
    statuses = [Path("/proc", pid, "status") for pid in pids]
    assert not [path for path in statuses if path.exists() and "State:\tZ" not in path.read_text()]

    first, _ = finish(start(tmp_path, short, CXX=str(hanging)))
    assert first.startswith(f"{reason} (remembered for a day; to try again, remove ")
    assert hanging.with_name("hanging.pids").read_text().split() == pids
    (note,) = tmp_path.rglob("*.failed")
    then = time.time() - 25 * 3600
    os.utime(note, (then, then))
    first, _ = finish(start(tmp_path, short, CXX=str(hanging)))
    assert first == reason


def test_a_process_that_compiles_is_waited_for_unless_it_is_killed(tmp_path, hanging):
    killed = start(tmp_path, CXX=str(hanging))
    pids = hanging.with_name("hanging.pids")
    end = time.monotonic() + 60
    while not pids.exists() or len(pids.read_text().split()) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    short = "build.LOCK_TIMEOUT = 0.5; import warnings; warnings.simplefilter('default')"
    output, errors = start(tmp_path, short, CXX=str(hanging)).communicate()
    reason = "another process has been compiling it for 0.5 seconds; the next can use it"
    assert output.startswith(f"{reason}\n")
    assert errors.count("RuntimeWarning") == 1
    assert reason in errors
    killed.kill()
    killed.communicate()
    for pid in pids.read_text().split():
        os.kill(int(pid), 9)
    hanging.write_text("#!/bin/sh\nexit 3\n")
    first, _ = finish(start(tmp_path, CXX=str(hanging)))
    assert first == f"{hanging} failed: exit code 3"


@pytest.mark.slow
@needs_kernel
def test_libraries_that_nobody_loads_any_more_are_removed(tmp_path, compiler):
    folder = tmp_path / "lstm_mnist_jax" / "native"
    folder.mkdir(parents=True)
    for name, age in (("lstm-old.so", 100), ("lstm-new.so", 10)):
        (folder / name).write_bytes(b"")
        then = time.time() - age * 24 * 3600
        os.utime(folder / name, (then, then))
    assert finish(start(tmp_path, CXX=compiler)) == ["None"]
    assert not (folder / "lstm-old.so").exists()
    assert (folder / "lstm-new.so").exists()


def test_a_switch_that_is_neither_on_nor_off_is_refused(tmp_path):
    process = start(tmp_path, LSTM_MNIST_JAX_NATIVE="nonsense")
    _, errors = process.communicate()
    assert process.returncode != 0
    assert "LSTM_MNIST_JAX_NATIVE is 'nonsense', expected 0 or 1" in errors
