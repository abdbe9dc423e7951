"""Imports in fresh processes: no compiled library, no Triton, nothing heavy, and use after a fork."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

HIDE = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name in {hidden!r} or name.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hide())
"""


def run(code: str, hidden: tuple[str, ...] = ()) -> str:
    """Output of `code` in a fresh interpreter in which the modules `hidden` do not exist."""
    program = HIDE.format(hidden=set(hidden)) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_the_compiled_library():
    output = run(
        """
        import torch, lmser_kernels
        from lmser_kernels import _library, nn
        assert not _library.available
        assert _library.error.startswith("lmser_kernels._C is not there"), _library.error
        x = torch.randn(2, 3, 8, 8, requires_grad=True)
        edge = nn.TiedConv2d(3, 4, 3, 2, 1, activation="relu")
        h = edge(x)
        h = lmser_kernels.add_act(h, edge.drives(x, h)[0])
        edge.transpose(h, add=x, output_size=8).sum().backward()
        nn.TiedLinear(3, 4)(torch.randn(2, 3)).sum().backward()
        assert x.grad is not None and edge.weight.grad is not None
        print(lmser_kernels.explain("conv2d_add_act", x, edge.weight))
        try:
            lmser_kernels.conv2d_add_act(x, edge.weight, impl="native")
        except RuntimeError as error:
            print(error)
        from lmser_kernels import doctor
        doctor.main([])
        """,
        hidden=("lmser_kernels._C",),
    )
    assert "conv2d_add_act -> reference: eager PyTorch" in output
    assert 'impl="native": lmser_kernels._C is not there' in output
    assert "not loaded: lmser_kernels._C is not there" in output


def test_a_library_that_does_not_load_is_named():
    output = run(
        """
        import importlib.util, sys

        class Broken:
            def find_spec(self, name, path=None, target=None):
                if name == "lmser_kernels._C":
                    raise ImportError("libc10.so: cannot open\\nshared object file")

        sys.meta_path.insert(0, Broken())
        from lmser_kernels import _library
        print(_library.available, _library.error)
        """
    )
    assert output.strip() == (
        "False lmser_kernels._C could not be loaded: libc10.so: cannot open shared object file"
    )


def test_a_library_older_than_the_python_is_named():
    output = run(
        """
        import sys, types
        sys.modules["lmser_kernels._C"] = types.ModuleType("lmser_kernels._C")
        from lmser_kernels import _library
        print(_library.available, _library.error)
        """
    )
    assert output.startswith("False lmser_kernels._C is older than the Python beside it (no conv2d_add_act, ")


def test_without_triton(impl):
    run(
        f"""
        import torch, lmser_kernels
        lmser_kernels.conv2d_add_act(torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3), impl={impl!r})
        assert "triton" not in sys.modules
        """,
        hidden=("triton",),
    )


def test_imports_nothing_but_the_core():
    run(
        """
        import torch, numpy
        before = set(sys.modules)
        import lmser_kernels
        loaded = {name.split(".")[0] for name in set(sys.modules) - before} - {"lmser_kernels"}
        assert loaded <= set(sys.stdlib_module_names) | {"torch", "numpy"}, loaded
        """,
        hidden=("sklearn", "skimage", "matplotlib", "PIL", "safetensors", "tqdm", "jinja2", "triton"),
    )


def test_public_names():
    run(
        """
        import types, lmser_kernels
        assert lmser_kernels.__all__ == sorted(lmser_kernels.__all__)
        for name in lmser_kernels.__all__:
            assert isinstance(getattr(lmser_kernels, name), types.ModuleType) == (name in ("nn", "reference"))
        # The packages of the same names stay importable beside the functions.
        from lmser_kernels.add_act import api, reference
        from lmser_kernels.explain import Explanation
        assert lmser_kernels.add_act is api.add_act
        assert lmser_kernels.reference.add_act is reference.add_act
        """
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_use_after_a_fork(impl, threads):
    # A child has none of its parent's threads: as every OpenMP program it must ask for one, like the workers
    # of torch.utils.data do.
    output = run(
        f"""
        import multiprocessing, torch
        from lmser_kernels import conv2d_add_act

        torch.set_num_threads({threads})
        x, weight = torch.randn(8, 16, 32, 32), torch.randn(32, 16, 3, 3)

        def value():
            w = weight.clone().requires_grad_()
            h = conv2d_add_act(x, w, padding=1, activation="tanh", impl={impl!r})
            h.sum().backward()
            return h.detach(), w.grad

        parent = value()

        def child(queue):
            torch.set_num_threads(1)
            h, grad = value()
            close = [torch.allclose(h, parent[0], atol=1e-4), torch.allclose(grad, parent[1], 1e-3, 1e-2)]
            queue.put(all(close))

        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        process.join(60)
        if process.is_alive():
            process.kill()
            raise SystemExit("the child hangs")
        print(queue.get())
        """
    )
    assert output.strip() == "True"
