"""The command line: ``lmser list``, ``run``, ``data get``, ``demo``, ``report``, ``bench``.

What a user can put right ends with one sentence and exit status 2: data that is not there, a wrong name, a
run directory in use, an extra that is not installed. An interrupted run says how to continue and ends with
128 + the signal's number.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from lmser._extras import require
from lmser.experiments import EXPERIMENTS, Experiment, Request, find

__all__ = ["main"]


class _Refused(click.ClickException):
    """One sentence on standard error, no traceback."""

    exit_code = 2


@contextlib.contextmanager
def _explained(*command: str, resumable: bool = True, **options: object) -> Iterator[None]:
    """Turn the errors that say what the user can do into `_Refused`, and say after a signal how to go on.

    Everything else is a defect of this package and keeps its traceback.
    """
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    again = "Continue with: " + shlex.join(["lmser", *command, *given, *(["--resume"] if resumable else [])])
    from lmser.data import BadData, MissingData
    from lmser.data.download import DownloadError
    from lmser.experiments.run_directory import RunRefused
    from lmser.training import ConfigMismatch, Interrupted, NotCapturable
    from lmser.training.distributed import is_main

    try:
        yield
    except (BadData, MissingData, DownloadError, RunRefused, ConfigMismatch, NotCapturable) as error:
        if not is_main():  # of several processes one tells the user
            sys.exit(_Refused.exit_code)
        raise _Refused(str(error)) from error
    except Interrupted as error:
        if is_main():
            click.echo(f"{error}\n{again}", err=True)
        sys.exit(128 + error.signum)
    except KeyboardInterrupt:
        click.echo(f"Stopped.\n{again}", err=True)
        sys.exit(130)
    except ImportError as error:
        if "pip install 'lmser[" not in str(error):
            raise
        raise _Refused(str(error)) from error


@contextlib.contextmanager
def _processes(device: str) -> Iterator[tuple[str, bool]]:
    """Join torchrun's processes, if it started this one: gives its device, and whether it is the first."""
    from lmser.training.distributed import NoDevice, is_main, joined

    with contextlib.ExitStack() as stack:
        try:
            own = stack.enter_context(joined(device))
        except NoDevice as error:
            raise _Refused(str(error)) from error
        yield str(own), is_main()


def _experiment(_context: click.Context, _parameter: click.Parameter, name: str) -> Experiment:
    try:
        return find(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _seeds(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"expected whole numbers like 0,1,2, got {text!r}") from None
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise click.BadParameter(f"expected different numbers of at least 0, got {text!r}")
    return seeds


def _device(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise click.BadParameter(f"{name!r} is not a device; cpu, cuda or cuda:1 are") from None
    if device.type not in ("cpu", "cuda"):
        raise click.BadParameter(f"{name!r} is not supported, cpu and cuda are")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        from lmser_kernels.chips import why_no

        raise click.BadParameter(f"{name!r} is not there: {why_no(device)}")
    return name


_out = click.option("--out", type=click.Path(path_type=Path), help="Folder for the results.")
_resume = click.option("--resume", is_flag=True, help="Continue the run in that folder, to the same bits.")
_on = click.option("--device", default="cpu", show_default=True, callback=_device, help="cpu or cuda[:N].")
_DATA = Path("data")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lmser")
def main() -> None:
    """Reflection networks (Lmser, CLmser) and the papers' experiments with them."""


@main.command("list")
def list_experiments() -> None:
    """List the experiments that `lmser run` knows: what they reproduce, read and take."""
    for experiment in EXPERIMENTS:
        reads = f"{experiment.data}: {experiment.needs}" if experiment.data else "no data"
        quick, paper = _duration(experiment.minutes["quick"]), _duration(experiment.minutes["paper"])
        click.echo(
            f"{experiment.name}\n"
            f"    {experiment.summary}\n"
            f"    stands beside {experiment.source}\n"
            f"    reads {reads}\n"
            f"    about {quick} quick, {paper} paper on two cores"
        )


def _duration(minutes: float) -> str:
    """``"25 min"``, or hours from two on."""
    return f"{minutes:g} min" if minutes < 120 else f"{minutes / 60:.0f} h"


@main.command(context_settings={"show_default": True})
@click.argument("experiment", metavar="NAME", callback=_experiment)
@click.option("--data", default=_DATA, type=click.Path(path_type=Path), help="Folder with the data sets.")
@_on
@click.option(
    "--scale", type=click.Choice(["quick", "paper"]), default="quick", help="Minutes, or the paper's own."
)
@click.option(
    "--seeds", callback=_seeds, help="Runs to average, e.g. 0,1,2 (by default one, at paper scale three)."
)
@click.option(
    "--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", help="bfloat16: autocast."
)
@click.option("--compile", "compiled", is_flag=True, help="Train through torch.compile.")
@click.option(
    "--workers", type=click.IntRange(min=0), default=0, help="Processes that decode images, 0: none."
)
@click.option(
    "--cuda-graph/--no-cuda-graph",
    default=None,
    help="On a GPU, replay each training step as one CUDA graph.  [default: where it can be]",
)
@click.option("--tensorboard", is_flag=True, help="Write event files beside each run's log.jsonl.")
@click.option("--rows", default="", help="Only rows with one of these in their path, e.g. SmallCNN,grid/.")
@_out
@_resume
def run(
    experiment: Experiment,
    data: Path,
    device: str,
    scale: Any,
    seeds: tuple[int, ...] | None,
    precision: str,
    compiled: bool,
    workers: int,
    cuda_graph: bool | None,
    tensorboard: bool,
    rows: str,
    out: Path | None,
    resume: bool,
) -> None:
    """Run the experiment NAME (see `lmser list`) and write tables, figures and a report.

    On several devices or processes that share a file system: torchrun --nproc-per-node N -m lmser run NAME
    """
    if experiment.data and not data.is_dir():
        raise _Refused(
            f"the data folder {data} {'is a file' if data.exists() else 'does not exist'}; "
            f"{experiment.name} reads {experiment.data}: {experiment.needs} "
            "(--data names another folder)"
        )
    out = Path("runs") / f"{experiment.name}-{scale}" if out is None else out
    seeds = experiment.seeds[scale] if seeds is None else seeds
    options = {"data": data, "device": device, "scale": scale, "seeds": ",".join(map(str, seeds)), "out": out}
    # What is at its default is left out, so that it is the same run as before there was the option.
    training: dict[str, Any] = {}
    if precision != "float32":
        training["precision"] = options["precision"] = precision
    if compiled:
        training["compile"] = True
    if workers:
        training["workers"] = options["workers"] = workers
    if cuda_graph is not None:
        if cuda_graph and not device.startswith("cuda"):
            raise _Refused(f"--cuda-graph: expected --device cuda, got {device}")
        training["cuda_graph"] = cuda_graph
    chosen = tuple(filter(None, rows.split(",")))
    if chosen:
        if not experiment.by_rows:
            able = ", ".join(e.name for e in EXPERIMENTS if e.by_rows)
            raise _Refused(f"--rows: {experiment.name} is run as a whole; a part can be run of {able}")
        options["rows"] = rows
    flags = [name for name, on in (("compile", compiled), ("tensorboard", tensorboard)) if on]
    if cuda_graph is not None:
        flags.append("cuda-graph" if cuda_graph else "no-cuda-graph")
    with (
        _processes(device) as (own, main),
        _explained("run", experiment.name, *(f"--{name}" for name in flags), **options),
    ):
        from lmser.report import write_report

        results = experiment.module().run(
            Request(
                data=data,
                device=own,
                scale=scale,
                seeds=seeds,
                out=out,
                resume=resume,
                progress=main,
                training=training,
                tensorboard=tensorboard,
                rows=chosen,
            )
        )
        if not main:
            return
        page = write_report(
            out / "report.html",
            [(out, results)],
            title=results.title,
            introduction=f"Beside {experiment.source}.",
        )
    _print(results, page)


@main.group("data")
def data_group() -> None:
    """Data sets."""


@data_group.command("get")
@click.argument("name")
@click.option(
    "--root", default=_DATA, show_default=True, type=click.Path(path_type=Path), help="The data folder."
)
def get(name: str, root: Path) -> None:
    """Download the data set NAME (mnist, fashion-mnist, cifar10) and check every byte."""
    from lmser.data import download

    shown: dict[str, int] = {}

    def progress(file: str, done: int, total: int | None) -> None:
        if not sys.stderr.isatty():
            return
        percent = 100 * done // total if total else 0
        if shown.get(file) != percent:
            shown[file] = percent
            size = f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"
            click.echo(f"\r{file}: {size}", nl=total is not None and done >= total, err=True)

    with _explained("data", "get", name, resumable=False, root=root):
        try:
            folder = download.get(name, root, progress)
        except ValueError as error:
            raise _Refused(str(error)) from error
    click.echo(f"{name} is in {folder}")


@main.command()
@_out
@_resume
@_on
def demo(out: Path | None, resume: bool, device: str) -> None:
    """Train CLmser and its ablations on photographs, in minutes and without a download."""
    out = Path("runs") / "demo" if out is None else out
    with _explained("demo", device=device, out=out):
        from lmser.experiments import demo as experiment

        results = experiment.run(out, resume=resume, device=device)
    _print(results, out / "report.html")


@main.command(context_settings={"show_default": True})
@click.option(
    "--only", multiple=True, metavar="TEXT", help="Workloads whose name contains it; may be repeated."
)
@click.option(
    "--skip", multiple=True, metavar="TEXT", help="No workloads whose name contains it; may be repeated."
)
@click.option("--list", "listed", is_flag=True, help="Name the workloads and measure nothing.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the results here as they come."
)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw every workload under the roofline: .svg or .png."
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of all contenders.  [default: torch's own]"
)
@click.option(
    "--repeats", type=click.IntRange(min=1), help="Rounds of each workload.  [default: its own number]"
)
@click.option(
    "--isa", help="The instruction set of the kernels: avx512, avx2 or baseline.  [default: the best here]"
)
@click.option(
    "--compile/--no-compile", "compiled", default=True, help="Let torch.compile compete, where it takes part."
)
def bench(
    only: tuple[str, ...],
    skip: tuple[str, ...],
    listed: bool,
    json_file: Path | None,
    plot: Path | None,
    threads: int | None,
    repeats: int | None,
    isa: str | None,
    compiled: bool,
) -> None:
    """Measure the kernels on this machine's CPU against eager and compiled PyTorch.

    Contenders take turns in one process on the same inputs, and each is verified against float64 before any time is
    told. A row: milliseconds and spread of the kernels and of the best other, their ratio, rates, the share of the FMA
    peak measured in the same run (fewer products than the definition's may pass 100 %), and peak memory.
    """
    import torch

    from lmser.benchmarks import measure
    from lmser.benchmarks.roofline import FORMATS, draw
    from lmser.benchmarks.workloads import workloads
    from lmser_kernels import _library

    try:
        works = measure.chosen(workloads(), only, skip)
    except ValueError as error:
        raise _Refused(str(error)) from error
    if listed:
        for work in works:
            click.echo(work.name)
        return
    if plot is not None:
        if plot.suffix.removeprefix(".") not in FORMATS:
            raise _Refused(
                f"--plot: expected a name that ends in .{' or .'.join(FORMATS)}, got {plot.name!r}"
            )
        with _explained("bench", resumable=False):
            require("matplotlib")
    for name, path in (("--json", json_file), ("--plot", plot)):
        if path is not None and not path.resolve().parent.is_dir():
            raise _Refused(f"{name}: the folder {path.parent} does not exist")
    if not _library.available:
        raise _Refused(f"there is nothing to measure: {_library.error}")
    if isa is not None:
        try:
            _library.module.choose_isa(isa)  # type: ignore[union-attr]
        except ValueError as error:
            raise _Refused(f"--isa: {error}") from error
    if threads is not None:
        torch.set_num_threads(threads)

    def keep(result: dict[str, Any]) -> None:
        if json_file is not None:
            measure.write(result, json_file)

    try:
        result = measure.run(works, compiled=compiled, repeats=repeats, say=click.echo, keep=keep)
    except ArithmeticError as error:
        raise click.ClickException(str(error)) from error
    said = measure.summary(result)
    if said is not None:
        click.echo(said)
    if plot is not None:
        draw(result, plot)
        click.echo(f"roofline: {plot}")


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="The page to write.  [default: DIRECTORY/report.html]"
)
def report(directory: Path, out: Path | None) -> None:
    """Gather every result below DIRECTORY in one HTML page that needs no other file."""
    with _explained("report", str(directory), resumable=False):
        from lmser.report import collect, missing_figures, write_report

        try:
            found = collect(directory)
            missing = missing_figures(found)
            page = write_report(
                directory / "report.html" if out is None else out,
                found,
                title="Results of lmser",
                introduction=(
                    "Networks that reconstruct and recognise in both directions over shared weights (Lmser, "
                    "CLmser): the papers' experiments run again, every table beside the numbers they print."
                ),
            )
        except (FileNotFoundError, IsADirectoryError, ValueError) as error:
            raise _Refused(str(error)) from error
    if missing:
        click.echo(
            f"{len(missing)} figures are named in the page but not shown, their files are not there: "
            f"{missing[0]}{' and others' if len(missing) > 1 else ''}",
            err=True,
        )
    click.echo(f"report: {page}")


def _print(results: Any, page: Path) -> None:
    for table in results.tables:
        click.echo(f"\n{table.text()}")
    click.echo("")
    for note in results.notes:
        click.echo(note)
    click.echo(f"results: {page.parent / 'results.json'}\nreport:  {page}")


if __name__ == "__main__":
    main()
