"""The command line: `kgen` and `python -m kgen`. Help lists only what works.

Exit codes: 0 done, 1 a check failed, 2 bad usage or input, 3 the environment lacks something, 130 interrupted (and
resumable). An error is one message on stderr; --debug shows the traceback as well.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Sequence

import kgen

from .errors import KgenError

# What runs where torch is missing or too old.
WITHOUT_TORCH = {"list", "show", "diff", "rollback", "gc", "doctor"}

Command = Callable[[argparse.Namespace], "int | None"]


def _lazy(module: str, name: str) -> Command:
    """A command whose module is imported when it runs: `kgen list` need not import torch."""

    def run(args: argparse.Namespace) -> int | None:
        return getattr(importlib.import_module(f".{module}", __package__), name)(args)

    run.target = (module, name)  # type: ignore[attr-defined]
    return run


def _registry_option(p: argparse.ArgumentParser, what: str) -> None:
    p.add_argument("--registry", metavar="DIR", help=what)


def _model_options(p: argparse.ArgumentParser, optional: bool = False) -> None:
    p.add_argument(
        "model",
        metavar="MODEL",
        nargs="?" if optional else None,
        help="a KernelBench-style file (Model, get_inputs, get_init_inputs), a script, or "
        "package.module:callable",
    )
    p.add_argument("--module", metavar="NAME", help="a script's global: the module, or a callable giving it")
    p.add_argument(
        "--inputs", metavar="NAME", help="a script's global: a tuple, a dict, or a callable giving one"
    )
    p.add_argument(
        "--target",
        metavar="PATTERN",
        action="append",
        help="what to tune: names of Ops or submodules, with * and ?; default: every subgraph that is a "
        "canonical Op",
    )
    mode = p.add_mutually_exclusive_group()
    mode.add_argument("--eval", action="store_const", dest="mode", const="eval", help="call eval() first")
    mode.add_argument("--train", action="store_const", dest="mode", const="train", help="call train() first")
    p.add_argument(
        "--precision",
        default="native",
        choices=["native", "fp32", "tf32", "bf16"],
        help="how exact float32 must be: as float32 is (native and fp32 mean that; a CPU has no other class), or as its "
        "products in tf32 or bf16 are",
    )
    p.add_argument(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda or cuda:N: the model and its inputs are moved there; of cuda:0,cuda:1 the first has the model and "
        "all judge. Default: where the model's tensors are; a KernelBench-style file, whose tensors are on the CPU, goes to "
        "the first GPU that torch sees",
    )


def _unsafe_option(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--unsafe-cpu", action="store_true", default=None,
        help="run a model's Candidates for the CPU also where the kernel lacks landlock or seccomp (`kgen doctor` tells)",
    )  # fmt: skip


def _proposer_options(p: argparse.ArgumentParser, stages: bool = True) -> None:
    p.add_argument(
        "--proposer",
        default="builtin",
        choices=["builtin", "llm", "files"],
        help="where Candidates come from: templates, a model behind an OpenAI-compatible endpoint, or files that an agent "
        "writes (default builtin)",
    )
    p.add_argument("--llm", metavar="NAME", help="the model")
    p.add_argument("--endpoint", metavar="URL", help="such as https://api.deepseek.com/v1 (default: OPENAI_BASE_URL)")
    p.add_argument(
        "--key-env", metavar="NAME", help="the variable that holds the key (default OPENAI_API_KEY; none is needed locally)"
    )
    p.add_argument("--effort", help="reasoning_effort: low, medium, high")
    p.add_argument("--temperature", type=float)
    p.add_argument("--max-tokens", type=int, metavar="N", help="of an answer with its reasoning (default 32768)")
    p.add_argument("--header", action="append", metavar="H", help='"Name: value"; a value env:VARIABLE is taken from there, as that of a key must be')
    p.add_argument("--proxy", metavar="URL", help="default: what the environment says")
    p.add_argument("--ca", metavar="FILE", help="certificates of an authority of your own, PEM")
    p.add_argument("--prices", action="append", metavar="FILE", help="a price table before kgen's own")
    _unsafe_option(p)
    if stages:
        p.add_argument(
            "--stages", action="store_true", help="capture and write the first prompts; then kgen propose, evaluate, advance in turn"
        )


def _prompt_options(p: argparse.ArgumentParser, whom: str) -> None:
    p.add_argument("--strategy", choices=["refine", "branch"], help=f"how {whom} asked (default refine)")
    p.add_argument("--in-flight", type=int, metavar="N", help="questions open at once (default 4)")
    p.add_argument(
        "--target-share", metavar="SHARE", type=float,
        help="stop asking when the best Candidate is this near to the roofline: its least time over what it takes, above 0 "
        "and at most 1 (default 0.95)",
    )  # fmt: skip
    p.add_argument("--note", metavar="TEXT", help="an instruction of yours for the prompts")
    p.add_argument("--knowledge", action="append", metavar="FILE", help="a text that goes into the prompts")


def _add_tune(sub: argparse._SubParsersAction) -> None:
    p = sub.add_parser("tune", help="capture a model's shapes, search, judge and promote kernels")
    _model_options(p)
    _proposer_options(p)
    _prompt_options(p, "llm and files are")
    p.add_argument(
        "--budget",
        metavar="BUDGET",
        default="15m",
        help="for the search: 90s, 15m, 1h; with --proposer llm also 2usd, 40calls, 2Mtok, or several with commas between "
        "(default 15m)",
    )
    p.add_argument("--run", metavar="DIR", help="the Run's folder (default: runs/<model>-<time> in the cache)")
    p.add_argument("--resume", action="store_true", help="go on with the Run in --run")
    _registry_option(p, "where to promote to (default: the first of KGEN_REGISTRY, else the user's)")
    p.add_argument("--no-promote", action="store_true", help="judge and gate only")
    p.add_argument(
        "--min-speedup", metavar="RATIO", type=float, default=1.05,
        help="what the lower end of the 95%% interval must be above for a promotion (default 1.05)",
    )  # fmt: skip
    p.add_argument(
        "--baselines", metavar="TIME", default="5m",
        help="what torch.compile and max-autotune may take to compile for an Op, all Cases together and at most 2m each; what "
        "does not end in time is said to be not measured (default 5m)",
    )  # fmt: skip
    p.add_argument("--json", action="store_true", help="the result as JSON, on stdout")
    p.set_defaults(run_command=_lazy("tune", "run_tune"))


def _add_capture(sub: argparse._SubParsersAction) -> None:
    p = sub.add_parser("capture", help="write a model's Tasks to a folder that another machine can judge")
    _model_options(p)
    p.add_argument("-o", "--output", metavar="TASK_DIR", required=True, help="the folder; with several Tasks, one below it each")
    p.add_argument("--json", action="store_true", help="one Task a line: op, folder, cases, share")
    p.set_defaults(run_command=_lazy("tune", "run_capture"))


def _add_judge(sub: argparse._SubParsersAction) -> None:
    p = sub.add_parser("judge", help="judge candidate files against a Task")
    p.add_argument("task", metavar="TASK_DIR", help="a folder that `kgen capture` wrote; its reference is run")
    p.add_argument("files", metavar="FILE", nargs="+", help="C or CUDA files that open with a plan (docs/formats.md)")
    p.add_argument("--tunables", metavar="JSON", help='values, such as {"BLOCK_M": 64}; default: the first of each')
    p.add_argument("--device", metavar="DEVICE", help="which GPU, as cuda:1, for a Task that was captured on one")
    p.add_argument("--no-timing", action="store_true", help="correctness alone")
    p.add_argument("--sass", action="store_true", help="and the machine code of the innermost loops, by a disassembler that is here")
    p.add_argument("--json", action="store_true", help="one Record a line")
    p.set_defaults(run_command=_lazy("judge_command", "run_judge"))


def _add_registry_commands(sub: argparse._SubParsersAction) -> None:
    everywhere = "this registry alone (default: all that `import kgen` reads)"
    version = "v3, v3-3fa2 where a merge gave two kernels one number, or the first digits of an id"
    p = sub.add_parser("list", help="every promoted kernel")
    _registry_option(p, everywhere)
    p.add_argument("--json", action="store_true", help="one kernel a line")
    p.set_defaults(run_command=_lazy("commands", "run_list"))

    p = sub.add_parser("show", help="an Op, or one kernel and its evidence")
    p.add_argument("name", metavar="OP[/vN]", help=f"softmax, or softmax/v3; a version is {version}")
    p.add_argument("--source", action="store_true", help="print the kernel's source, too")
    p.add_argument("--json", action="store_true", help="the kernel's Record as it is")
    _registry_option(p, everywhere)
    p.set_defaults(run_command=_lazy("commands", "run_show"))

    p = sub.add_parser("diff", help="what differs between two versions")
    p.add_argument("op", metavar="OP", help="softmax")
    p.add_argument("a", metavar="vA", help=version)
    p.add_argument("b", metavar="vB", help="the other one")
    _registry_option(p, everywhere)
    p.set_defaults(run_command=_lazy("commands", "run_diff"))

    p = sub.add_parser("rollback", help="make an earlier version active again")
    p.add_argument("op", metavar="OP", help="softmax")
    p.add_argument("version", metavar="vN", help=version)
    _registry_option(p, everywhere)
    p.set_defaults(run_command=_lazy("commands", "run_rollback"))

    p = sub.add_parser("gc", help="remove kernels that are neither active nor what an active one replaced")
    p.add_argument("--dry-run", action="store_true", help="only say what would go")
    _registry_option(p, everywhere)
    p.set_defaults(run_command=_lazy("commands", "run_gc"))

    p = sub.add_parser("verify", help="judge active kernels again on this machine and renew their evidence")
    p.add_argument("op", metavar="OP", nargs="?", help="this Op alone (default: all)")
    _registry_option(p, everywhere)
    p.add_argument("--json", action="store_true", help="one kernel a line")
    p.set_defaults(run_command=_lazy("verify", "run_verify"))

    p = sub.add_parser("check", help="for CI: are active kernels still right, and as fast as a baseline file says")
    p.add_argument("op", metavar="OP", nargs="?", help="this Op alone (default: all)")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--baseline", metavar="FILE", help="speedups to compare with, made by --write-baseline on this machine")
    which.add_argument("--write-baseline", metavar="FILE", help="keep the speedups of this check in FILE if all is well")
    p.add_argument("--require", choices=["cuda"], help="fail without a CUDA device, and when no CUDA kernel was checked")
    p.add_argument(
        "--strict", action="store_true", help="fail, too, when anything that this machine runs was not checked, speed included"
    )
    p.add_argument("--junit", metavar="FILE", help="write JUnit XML, one testcase a pin")
    p.add_argument("--md", metavar="FILE", help="write a Markdown summary")
    p.add_argument("--budget", metavar="TIME", help="begin no other pin after 90s, 15m, 1h (default: check all)")
    p.add_argument("--timing", metavar="TIME", default="20s", help="time one pin for at most this long (default 20s)")
    _registry_option(p, everywhere)
    p.add_argument("--json", action="store_true", help="the report as one JSON object, on stdout")
    p.set_defaults(run_command=_lazy("check_report", "run_check"))

    p = sub.add_parser("why", help="which kernel serves a call, and why not another")
    p.add_argument("op", metavar="OP", help="attention, softmax, or an Op of a registry")
    p.add_argument(
        "args",
        metavar="ARG",
        nargs="*",
        help="its arguments: tensors as float32[1,8,1024,64], the rest as name=value or plain numbers",
    )
    p.set_defaults(run_command=_lazy("verify", "run_why"))

    p = sub.add_parser("build", help="compile active kernels into the cache, to ship it")
    p.add_argument("--arch", metavar="A", help="of the machine that serves: x86-64-v3, x86-64-v4, sm_90 ... (default: this CPU's)")
    _registry_option(p, everywhere)
    p.set_defaults(run_command=_lazy("verify", "run_build"))


def _add_others(sub: argparse._SubParsersAction) -> None:
    p = sub.add_parser("report", help="draw what a Run found, as one HTML page")
    p.add_argument("run_dir", metavar="RUN_DIR", help="a Run's folder, which `kgen tune` names when it begins")
    p.add_argument("-o", "--output", metavar="F.html", help="the page (default: RUN_DIR/report.html)")
    p.set_defaults(run_command=_lazy("report", "run_report"))

    for name, what in (
        ("advance", "decide what a staged Run asks next; needs neither network nor device"),
        ("propose", "ask what is open in a staged Run; needs the network alone"),
    ):
        p = sub.add_parser(name, help=what)
        p.add_argument("run_dir", metavar="RUN_DIR")
        p.add_argument("--json", action="store_true")
        p.set_defaults(run_command=_lazy("stages", "run_stage"))
    p = sub.add_parser("evaluate", help="judge what came in a staged Run; needs the device alone")
    p.add_argument("run_dir", metavar="RUN_DIR")
    p.add_argument("--device", metavar="DEVICE", help="which GPUs judge, as in cuda:1 or cuda:0,cuda:1 (default: the first)")
    p.add_argument("--finish", action="store_true", help="then tune the best, and gate and promote them")
    _unsafe_option(p)
    _registry_option(p, "where to promote to (default: the first of KGEN_REGISTRY, else the user's)")
    p.add_argument("--no-promote", action="store_true", help="judge and gate only")
    p.add_argument("--json", action="store_true")
    p.set_defaults(run_command=_lazy("stages", "run_evaluate"))

    p = sub.add_parser("export", help="conversations with rewards a turn, for training, as JSON lines")
    p.add_argument("run_dir", metavar="RUN_DIR")
    p.add_argument("--trajectories", metavar="F.jsonl", required=True)
    p.set_defaults(run_command=_lazy("trajectories", "run_export"))

    p = sub.add_parser("prompt", help="show what a Run would ask its proposer next")
    p.add_argument("run_dir", metavar="RUN_DIR")
    p.add_argument("--op", metavar="OP", help="of a Run over several Ops")
    p.set_defaults(run_command=_lazy("asking", "run_prompt"))

    p = sub.add_parser("bench-loop", help="a Run over each problem of a folder: solve rate, speedup and fast_p over time and tokens")
    p.add_argument("folder", metavar="FOLDER", help="KernelBench-style files, each tuned as a whole, and Task folders, at any depth")
    _proposer_options(p, stages=False)
    _prompt_options(p, "llm and files are")
    p.add_argument("--budget", metavar="BUDGET", default="15m", help="of each problem, as of `kgen tune` (default 15m)")
    p.add_argument("--run", metavar="DIR", help="the results, a Run a problem; the same command goes on there (default: a new one in the cache)")
    p.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N, as of `kgen tune`")
    p.add_argument("--precision", default="native", choices=["native", "fp32", "tf32", "bf16"], help="as of `kgen tune`")
    p.add_argument("--plot", metavar="F.png", help="the picture (default: DIR/bench.png, where matplotlib is)")
    p.add_argument("--json", action="store_true", help="the result as one JSON object, on stdout")
    p.set_defaults(run_command=_lazy("bench_loop", "run_bench"), module=None, inputs=None, target=None, mode=None)

    p = sub.add_parser("mcp", help="serve a Run to an agent over the Model Context Protocol, which is the model then")
    _model_options(p, optional=True)
    _prompt_options(p, "the agent is")
    _unsafe_option(p)
    p.add_argument(
        "--budget", metavar="BUDGET", default="15m",
        help="of the Run, from the agent's first question on: 90s, 15m, 1h; also 40calls (answers), 2Mtok (of them), or several "
        "with commas between (default 15m)",
    )  # fmt: skip
    p.add_argument("--run", metavar="DIR", help="the Run's folder; one that is there is gone on with (default: a new one in the cache)")
    _registry_option(p, "where to promote to (default: the first of KGEN_REGISTRY, else the user's)")
    p.add_argument("--no-promote", action="store_true", help="judge and gate only")
    p.add_argument(
        "--min-speedup", metavar="RATIO", type=float, default=1.05,
        help="what the lower end of the 95%% interval must be above for a promotion (default 1.05)",
    )  # fmt: skip
    p.set_defaults(run_command=_lazy("mcp_server", "run_mcp"), proposer="mcp")

    p = sub.add_parser("doctor", help="what is found, what is not, what to do")
    p.add_argument(
        "--timing", action="store_true",
        help="also measure, within a minute, which difference of two times this machine can tell",
    )  # fmt: skip
    p.add_argument("--json", action="store_true", help="the findings as a JSON list")
    p.set_defaults(run_command=_lazy("doctor", "run_doctor"))

    p = sub.add_parser("demo", help="tune the example model and show what came of it")
    p.add_argument("--budget", metavar="TIME", help="time for the search: 90s, 2m (default 2m; on a GPU 1m)")
    p.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: the first GPU, the CPU without one)")
    p.add_argument("--run", metavar="DIR", help="keep the Run here, and go on with it when it is there (default: a new one in the cache)")
    p.set_defaults(run_command=_lazy("demo", "run_demo"))


_EPILOG = """\
`kgen doctor` says what is missing, `kgen tune MODEL` makes kernels, and `import kgen` serves them;
`kgen COMMAND --help` tells more. Registries are the folders of KGEN_REGISTRY, then the user's
(~/.local/share/kgen/generated), then the one that comes with kgen.

exit codes: 0 done, 1 a check failed, 2 bad usage or input, 3 the environment lacks something,
130 interrupted (`kgen tune` says how to go on)
"""

# What a command's own help says after its line in the list: a text, then examples.
_MORE: dict[str, tuple[str, ...]] = {
    "tune": (
        "The model runs once; each part of it that is an Op with a template is searched for a faster kernel, and what passes "
        "the judge and the gate is promoted. What stands behind -- is the script's own command line. Ctrl-C loses the "
        "candidate under way; --resume goes on.",
        "tune my_model.py",
        "tune train.py --module net --inputs batch --budget 5m -- --layers 4",
    ),
    "capture": ("What stands behind -- is the script's own command line.", "capture my_model.py -o task"),
    "judge": (
        "Exit code 0 if every file passes, 1 if not.",
        "judge task kernel.c",
        "judge task kernel.c --tunables '{\"BLOCK_M\": 64}'",
    ),
    "show": ("", "show softmax", "show softmax/v3 --source"),
    "diff": ("Tunables, times and source.", "diff softmax v1 v2"),
    "rollback": ("Every pin (a shape, or a range of shapes) that it was promoted for points at it again.", "rollback softmax v2"),
    "gc": ("", "gc --dry-run"),
    "verify": (
        "For a new device, torch or compiler: what passes gets new evidence, written into its registry, so that "
        "KGEN_POLICY=strict serves it here. Exit code 1 when a kernel fails; its pins stay.",
    ),
    "check": (
        "Judges every active kernel that this machine runs on fresh seeds and times it beside the best that torch does, pin by "
        "pin; changes no registry. Exit code 1 when a kernel is wrong, when one is surely slower than the baseline says (the "
        "upper end of the 95% interval of its speedup over the baseline's is below 0.95), and when none was checked.",
        "check --write-baseline speeds.json",
        "check --baseline speeds.json --strict --junit kernels.xml --md summary.md",
    ),
    "why": (
        "The call is made once, with tensors of zeros.",
        "why softmax float32[4096,1024] -1",
        "why attention float32[1,8,1024,64] float32[1,8,1024,64] float32[1,8,1024,64] is_causal=True",
    ),
    "bench-loop": (
        "Nothing is promoted. fast_p is KernelBench's: the fraction of problems that are right and more than p times as fast as "
        "eager torch; beside it stands the same over the best that torch does. Ctrl-C and the same command again go on.",
        "bench-loop KernelBench/level1 --proposer llm --llm gpt-5 --budget 15m,1usd --run runs/level1",
    ),
    "mcp": (
        "Speaks MCP on stdin and stdout; an agent's settings name this command. Needs the package mcp (pip install "
        "'kgen[mcp]'). The agent reads prompts, submits kernels, gets their verdicts, and asks to finish.",
        "mcp my_model.py --run runs/mine --budget 30m",
    ),
    "build": ("Prints the folder that a machine without a compiler needs, and names with KGEN_CACHE.", "build --arch x86-64-v3"),
    "doctor": ("Exit code 3 when something that is needed is missing.",),
    "demo": ("Its kernels go into its own Run, not into your registry.",),
}


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="kgen",
        description="PyTorch kernels that are generated, judged and promoted.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--debug", action="store_true", help="show tracebacks")
    top.add_argument("--version", action="store_true", dest="show_version", help="print the version")
    sub = top.add_subparsers(metavar="COMMAND", title="commands", dest="command")
    _add_tune(sub)
    _add_capture(sub)
    _add_judge(sub)
    _add_registry_commands(sub)
    _add_others(sub)
    short = {a.dest: a.help or "" for a in sub._choices_actions}
    for name, p in sub.choices.items():
        p.add_argument("--debug", action="store_true", help=argparse.SUPPRESS, default=argparse.SUPPRESS)
        more, *examples = _MORE.get(name, ("",))
        text = f"{short[name][0].upper()}{short[name][1:]}. {more}"
        shown = "\n".join(f"    kgen {e}" for e in examples)
        p.description = "\n\n".join(filter(None, (textwrap.fill(text.strip(), 80), shown)))
        p.formatter_class = argparse.RawDescriptionHelpFormatter
    return top


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is kgen's, and what stands behind -- for the script."""
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _one_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """kgen's own warnings as messages; where in kgen they were raised is of no use to anybody."""
    text = str(message)
    if text.startswith("kgen: "):
        return f"kgen: warning: {text.removeprefix('kgen: ')}\n"
    return f"{filename}:{lineno}: {category.__name__}: {text}\n"


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("kgen")
    except metadata.PackageNotFoundError:
        return "0.1.0"


def _say(message: object) -> None:
    text = str(message)
    with contextlib.suppress(OSError):
        print(text if text.startswith("kgen") else f"kgen: {text}", file=sys.stderr)


def _interrupted(args: argparse.Namespace) -> int:
    run_dir, command = getattr(args, "resume_with", (None, ""))
    # A Run that was not begun yet has nothing to go on with.
    begun = run_dir is not None and any((run_dir / n).is_file() for n in ("run.json", "bench.json"))
    _say(f"interrupted; go on with: {command}" if begun else "interrupted")
    return 130


def _drop_output() -> None:
    """What is still in a buffer cannot be written, and the interpreter must not try again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(error: BaseException, args: argparse.Namespace) -> int:
    """Says what went wrong in one message; the exit code."""
    if isinstance(error, KeyboardInterrupt) or getattr(error, "code", 0) == 130:
        return _interrupted(args)
    if isinstance(error, KgenError):
        _say(error)
        return error.code
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC and not error.filename:
            _drop_output()
            _say("No space left on device, for the output or a temporary file: free some")
        else:
            _say(f"{error.strerror}: {error.filename}" if error.filename else error)
        return 3
    if isinstance(error, ImportError):
        known = str(error).startswith("kgen")
        _say(f"{error} (`kgen doctor` tells more)" if known else f"cannot import what it needs: {error}; see `kgen doctor`")
        return 3
    first = (str(error).strip().splitlines() or [""])[0][:300]
    _say(f"unexpected {type(error).__name__}: {first} (--debug shows where)")
    return 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    ours, theirs = _split(words)
    top = parser()
    try:
        args = top.parse_args(ours)
    except SystemExit as e:
        return int(e.code or 0)
    if args.show_version:
        print(f"kgen {_version()}")
        return 0
    if not hasattr(args, "run_command"):
        top.print_help()
        return 2
    args.script_args, args.words = theirs, words
    if isinstance(kgen._unusable, KeyboardInterrupt):
        return _interrupted(args)
    if kgen._unusable is not None and args.command not in WITHOUT_TORCH:
        return _failed(kgen._unusable, args)
    before, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        code = args.run_command(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_output()  # whoever read has seen enough
        return 0
    except (Exception, KeyboardInterrupt) as e:
        if args.debug:
            traceback.print_exc()
        return _failed(e, args)
    finally:
        warnings.formatwarning = before
