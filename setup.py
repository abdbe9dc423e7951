"""Builds the one extension, `lmser_kernels._C`: operators, and the pybind11 module that describes them.

pyproject.toml holds everything else. torch.utils.cpp_extension is not used: it gives every source the same
flags, while the CPU kernels are compiled once per instruction set, and it wants the CUDA build of torch before
it compiles CUDA sources, while the stable ABI needs only headers. The sources are compiled by ninja.

Two variables are read when building: LMSER_CUDA=0 leaves CUDA sources out although nvcc is there (1 insists on
them), LMSER_CUDA_ARCH names architectures other than the default list.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M).group(1)
TORCH_TARGET = "0x020b000000000000"  # the stable ABI of torch 2.11

AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512"
ISA_FLAGS = {
    "isa_avx512.cpp": AVX512,
    "narrow_avx512.cpp": AVX512,
    "isa_avx2.cpp": "-mavx2 -mfma -mf16c",
    "isa_baseline.cpp": "",
}


def find_compiler() -> str | None:
    """GCC, whose vector extensions the kernels are written in; without it the package works by its references."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler.split()[0]) is None:
        problem = f"there is no {compiler}"
    else:
        about = subprocess.run([*compiler.split(), "--version"], capture_output=True, text=True, check=False)
        if "Free Software Foundation" in about.stdout:
            return compiler
        problem = f"{compiler} is not GCC"
    print(f"lmser: installing without compiled kernels: {problem} (CXX names another)", file=sys.stderr)
    return None


def cpu_sources() -> list[Path]:
    sources = sorted((ROOT / "csrc").glob("*.cpp")) + sorted((ROOT / "csrc/cpu").glob("*.cpp"))
    x86 = platform.machine().lower() in {"x86_64", "amd64"}
    return [
        s for s in sources if x86 or s.name not in {"isa_avx512.cpp", "isa_avx2.cpp", "narrow_avx512.cpp"}
    ]


@dataclass
class Cuda:
    """The toolkit that builds the CUDA sources; its runtime is linked statically."""

    nvcc: Path
    runtime: Path  # libcudart_static.a
    release: str


def find_cuda() -> Cuda | None:
    wanted = os.environ.get("LMSER_CUDA")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None) or shutil.which("nvcc")
    problem = "nvcc is neither on PATH nor in CUDA_HOME/bin"
    if nvcc:
        # A wrapper on PATH may lead elsewhere: ask nvcc itself where its toolkit lies.
        dry = subprocess.run(
            [nvcc, "-dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
        )
        top = re.search(r"^#\$ TOP=(.+)$", dry.stderr, re.M)
        root = Path(top.group(1).strip()).resolve() if top else Path(nvcc).resolve().parent.parent
        places = [root / "lib64", root / "lib", *root.glob("targets/*/lib")]
        runtimes = [p / "libcudart_static.a" for p in places if (p / "libcudart_static.a").is_file()]
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        release = re.search(r"release (\d+\.\d+)", version)
        if runtimes:
            return Cuda(Path(nvcc), runtimes[0], release.group(1) if release else "unknown")
        problem = f"{nvcc} is there, but libcudart_static.a is not below {root}"
        print(f"lmser: building without CUDA: {problem}", file=sys.stderr)
    if wanted == "1":
        raise SystemExit(f"LMSER_CUDA=1, but {problem}")
    return None


def cuda_architectures(nvcc: Path) -> list[str]:
    if chosen := os.environ.get("LMSER_CUDA_ARCH"):
        return chosen.replace(",", " ").split()
    known = subprocess.run([str(nvcc), "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    return [a for a in ("80", "90", "100") if f"compute_{a}" in known]


class NinjaBuild(build_ext):
    """Compiles with ninja, every source with its own flags, and links one shared library."""

    def build_extension(self, ext: Extension) -> None:
        import ninja
        import pybind11
        import torch

        work = Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        torch_dir = Path(torch.__file__).parent

        # pybind11's own first: the copy of it among torch 2.11's headers refuses to be used beside the stable ABI.
        includes = [
            Path(pybind11.get_include()),
            torch_dir / "include",
            Path(sysconfig.get_paths()["include"]),
        ]
        include_flags = " ".join(f"-isystem {self.escape(p)}" for p in includes)
        defines = f"-DTORCH_TARGET_VERSION={TORCH_TARGET} -DLMSER_VERSION={VERSION}"
        common = f"-std=c++20 -O3 -g0 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -Wall -Wextra {defines}"
        cuda = find_cuda()
        rules = [
            f"cxx = {COMPILER}",
            f"flags = {common} {include_flags}",
            "rule cxx\n  command = $cxx -MMD -MF $out.d $flags $extra -c $in -o $out\n  deps = gcc\n  depfile = $out.d",
            "rule link\n  command = $cxx -shared -o $out $in $libs",
        ]
        builds, objects = [], []
        cuda_define = ""
        if cuda is not None:
            cuda_define = f"-DLMSER_WITH_CUDA -DLMSER_CUDA_VERSION={cuda.release}"
            archs = cuda_architectures(cuda.nvcc)
            codes = " ".join(f"-gencode arch=compute_{a},code=sm_{a}" for a in archs)
            codes += f" -gencode arch=compute_{archs[-1]},code=compute_{archs[-1]}"
            rules.append(
                f"rule nvcc\n  command = {self.escape(cuda.nvcc)} -ccbin $cxx -std=c++20 -O3 --threads 2 "
                "-Xcompiler -fPIC -Xcompiler -fvisibility=hidden "
                f"--expt-relaxed-constexpr -cudart static {codes} {defines} {include_flags} -MMD -MF $out.d -c $in -o $out\n"
                "  deps = gcc\n  depfile = $out.d"
            )
            for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
                objects.append(work / f"{source.name}.o")
                builds.append(f"build {self.escape(objects[-1])}: nvcc {self.escape(source.resolve())}")
        for source in cpu_sources():
            objects.append(work / f"{source.name}.o")
            extra = f"{ISA_FLAGS.get(source.name, '')} {cuda_define if source.name == 'inspect.cpp' else ''}"
            builds.append(
                f"build {self.escape(objects[-1])}: cxx {self.escape(source.resolve())}\n  extra = {extra}"
            )
        libs = f"-L{self.escape(torch_dir / 'lib')} -Wl,--no-as-needed -ltorch_cpu -ltorch -Wl,--as-needed -lpthread"
        if cuda is not None:
            libs += f" {self.escape(cuda.runtime)} -lrt -ldl"
        builds.append(
            f"build {self.escape(target)}: link {' '.join(self.escape(o) for o in objects)}\n  libs = {libs}"
        )
        (work / "build.ninja").write_text("\n".join([*rules, *builds, ""]))
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "--quiet", "-k", "0", "-C", str(work)]
        try:
            subprocess.run(command, check=True, stdout=sys.stderr)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"compiling lmser_kernels._C failed ({error}); the compiler's message is above"
            ) from None

    @staticmethod
    def escape(path: Path) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


COMPILER = find_compiler()
setup(
    ext_modules=[Extension("lmser_kernels._C", sources=[])] if COMPILER else [],
    cmdclass={"build_ext": NinjaBuild},
)
