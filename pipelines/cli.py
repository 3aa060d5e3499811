"""The command line: words in, one line of error or the answer out. Names, exit codes and JSON are kept stable.

Only the standard library is imported here; each command loads what it needs when it runs.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

JOBS = ("prepare", "assess", "train", "evaluate", "midpoints", "promote", "generate")
BENCHES = ("encoders", "train", "sample", "catalogue")


def named(text: str) -> str:
    """An argument that names a file, a folder or a person: an empty one, as of a variable that is not set, would stand for another."""
    if not text:
        raise argparse.ArgumentTypeError("is empty: give a name")
    return text


class Parser(argparse.ArgumentParser):
    """Errors in one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see `{self.prog} --help`", file=sys.stderr)
        sys.exit(2)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from diffsfsr.cores import threads
    from diffsfsr.errors import InputError, NotReady

    os.environ.setdefault("OMP_NUM_THREADS", str(threads()))  # read when torch is loaded, here and by what is started from here
    try:
        with _ended_by_sigterm(), answers_only() as answer:
            answer(_run(args), as_json=getattr(args, "json", False))
        return getattr(args, "code", 0)  # 1: an answer that is bad news
    except InputError as error:
        return _complain(error, 2)
    except NotReady as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return _complain(f"{error.filename} is too long for a path", 2)
        return _complain(f"{error} (DIFFSFSR_DEBUG=1 shows where)", 1)
    except Exception as error:
        if os.environ.get("DIFFSFSR_DEBUG"):
            raise
        return _complain(f"{type(error).__name__}: {error} (DIFFSFSR_DEBUG=1 shows where)", 1)


def _complain(error: Any, code: int) -> int:
    print(f"diffsfsr: {_obeyed_by_none(' '.join(str(error).split()))}", file=sys.stderr)
    return code


def _obeyed_by_none(text: str) -> str:
    """Text for a person, in which what a terminal would obey is written out."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _run(args: argparse.Namespace) -> Any:
    from importlib import import_module

    module, function = args.function.split(":")
    return getattr(import_module(f"pipelines.{module}"), function)(args)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """`kill` stops a command as Ctrl-C does, with what it holds let go: also where a shell's `&` has it ignore Ctrl-C.

    Dagster gives SIGTERM, again and again, to whatever handles SIGINT: so that one handler must serve both.
    """
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: Any) -> None:
        if number == signal.SIGTERM or kept[signal.SIGINT] != signal.SIG_IGN:
            raise KeyboardInterrupt

    for number in kept:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def answers_only() -> Iterator[Any]:
    """Keeps standard output for the answer: what libraries and child processes print there goes to standard error."""
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)

    def answer(value: Any, as_json: bool) -> None:
        sys.stdout.flush()
        os.dup2(real, 1)
        if isinstance(sys.stdout, io.TextIOWrapper):  # JSON is UTF-8 in any locale, and a file's name may be neither
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        if as_json:
            print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
        elif value is not None:
            print(_obeyed_by_none(value if isinstance(value, str) else _plain(value)))
        sys.stdout.flush()

    try:
        yield answer
    finally:
        os.dup2(real, 1)
        os.close(real)


def _plain(value: Any, indent: str = "") -> str:
    """A value for a person: a line a key or an item."""
    if isinstance(value, dict):
        lines = []
        for key, inner in value.items():
            nested = isinstance(inner, dict | list) and inner
            lines.append(f"{indent}{key}:\n{_plain(inner, indent + '  ')}" if nested else f"{indent}{key}: {_plain(inner)}")
        return "\n".join(lines)
    if isinstance(value, list):
        return "\n".join(f"{indent}{_plain(item, indent).lstrip()}" for item in value)
    return f"{indent}{value}"


# --- the words --------------------------------------------------------------------------------------------------------


def parser() -> Parser:
    top = Parser(
        prog="diffsfsr", description="Personalised portraits: a selfie says who, a word says which expression, a scene says where."
    )
    words = top.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    demo = _command(words, "demo", "demo:demo", "portraits at once, then a model's life through the whole graph, on a page to look at")
    demo.add_argument(
        "--data", metavar="DIR", help="a folder of photographs, or an LFW-style tree; default: pictures that the packages ship"
    )
    about = "train this one from nothing; default: on from the model that comes with the package, or demo where none does"
    demo.add_argument("--preset", default="", help=about)

    _command(words, "doctor", "doctor:doctor", "what is installed and found here, and what to do about each gap", json=True)

    faces = _command(words, "faces", "look:faces", "what faces photographs show, and why others are rejected", json=True)
    faces.add_argument("paths", nargs="+", type=named, metavar="PATH", help="photographs or folders of them")
    faces.add_argument("--face", default="only", help="which face of a picture: only, largest, or its index from the left")

    embed = _command(words, "embed", "look:embed", "identity or expression embeddings of photographs, as Parquet", json=True)
    embed.add_argument("paths", nargs="+", type=named, metavar="PATH", help="photographs or folders of them")
    known = "dlib, facenet, w600k_r50, auraface, glintr100, mobilefacenet_arcface, mobileface_v2, reid0095, blendshapes"
    embed.add_argument("--encoder", required=True, help=f"{known}, or dln (the expression encoder of --preset)")
    embed.add_argument("--out", required=True, type=named, metavar="FILE.parquet")
    embed.add_argument("--preset", default="starter")

    emotions = _command(words, "emotions", "look:emotions", "the 135 emotion words as a tree, or how one word resolves", json=True)
    emotions.add_argument("word", nargs="?", metavar="WORD")

    portrait = _command(words, "portrait", "look:portrait", "make one portrait now", json=True)
    _order(portrait)
    portrait.add_argument(
        "--out", type=named, metavar="FILE", help="where to write it; default: portraits/ in the state folder, by content"
    )

    travel = _command(words, "travel", "travel:travel", "a strip or a GIF of an expression on its way through stations", json=True)
    _who_and_where(travel)
    about = "a station, two or more: an emotion word, a photograph of an expression, or scene for the scene's own"
    travel.add_argument("--through", action="append", default=[], metavar="WORD_OR_FILE", help=about)
    travel.add_argument("--frames", type=int, default=9, help="pictures in all; default 9")
    travel.add_argument(
        "--out", required=True, type=named, metavar="FILE", help="strip.png: frames side by side; travel.gif: frames in turn"
    )

    _request(words)
    _jobs(words)
    _weights(words)
    _export(words)

    bench = _command(words, "bench", "bench:bench", "measure speed beside a peer in the same run", json=True)
    bench.add_argument("what", choices=BENCHES)
    bench.add_argument("--preset", default="starter")
    _settings(bench)
    bench.add_argument("--seconds", type=float, default=3.0, help="least time to measure each row; default 3")

    forget = _command(words, "forget", "look:forget", "erase a person, a face, a data set or a portrait from every store", json=True)
    forget.add_argument("--person", type=named)
    forget.add_argument("--face", type=named, metavar="FACE_ID")
    forget.add_argument("--dataset", type=named, metavar="NAME")
    forget.add_argument(
        "--portrait", type=named, metavar="FILE", help="a finished portrait, its sidecar, and what is kept of the faces in it"
    )

    verify = _command(words, "verify", "look:verify", "check a portrait against its sidecar", json=True)
    verify.add_argument("portrait", type=named, metavar="FILE")

    up = _command(words, "up", "up:up", "Dagster and MLflow in the browser, on this machine only, until Ctrl-C")
    up.add_argument("--port", type=int, default=3000, help="Dagster's; MLflow takes the next one; default 3000")
    return top


def _command(words: Any, name: str, function: str, about: str, json: bool = False) -> argparse.ArgumentParser:
    command = words.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
    command.set_defaults(function=function)
    if json:
        command.add_argument("--json", action="store_true", help="one JSON value on standard output and nothing else")
    return command


def _order(command: argparse.ArgumentParser) -> None:
    _who_and_where(command)
    about = "which expression: one of `diffsfsr emotions`, or neutral; not needed with --task identity"
    command.add_argument("--emotion", default="", metavar="WORD", help=about)


def _who_and_where(command: argparse.ArgumentParser) -> None:
    command.add_argument("--selfie", action="append", default=[], metavar="FILE", help="who; several of one person are averaged")
    command.add_argument("--scene", default="", metavar="FILE", help="where: a photograph with a face in it")
    command.add_argument("--prompt", default="", metavar="TEXT", help="where: a description, painted by Stable Diffusion")
    command.add_argument("--task", default="all", help="all, identity (keep the scene's expression) or expression (keep its person)")
    command.add_argument("--strength", type=float, default=1.0, help="0 the scene's own expression, 1 the word's, up to 3 exaggerates")
    command.add_argument("--steps", type=int, default=0, help="sampling steps; default: the model's own")
    command.add_argument("--sampler", default="", help="pndm, ddim, dpm-solver++ or unipc; default: the model's own")
    command.add_argument("--seed", type=int, default=0, help="the same seed gives the same picture; default 0")
    command.add_argument("--face", default="only", help="which face of the scene: only, largest, or its index from the left")


def _request(words: Any) -> None:
    verbs = words.add_parser("request", help="queue portraits and follow them", description="Queue portraits and follow them.")
    verbs = verbs.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    _order(_command(verbs, "add", "requests:add", "queue one portrait", json=True))
    listed = _command(verbs, "list", "requests:list_requests", "the newest requests", json=True)
    listed.add_argument("--state", help="queued, leased, done, failed or cancelled")
    listed.add_argument("--limit", type=int, default=50)
    for name, about in (
        ("show", "everything about one request"),
        ("watch", "wait until a request has ended"),
        ("cancel", "cancel a request that has not ended"),
        ("retry", "queue a failed or cancelled request again"),
    ):
        verb = _command(verbs, name, f"requests:{name}", about, json=True)
        verb.add_argument("id", metavar="ID", help="or its first characters")
        if name == "watch":
            verb.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS")


def _jobs(words: Any) -> None:
    run = _command(words, "run", "run:run", f"run a job of the graph: {', '.join(JOBS)}", json=True)
    run.add_argument("job", choices=JOBS, metavar="JOB", help=", ".join(JOBS))
    run.add_argument("--preset", default="starter", help="a row of the preset table; default: starter")
    run.add_argument(
        "--data",
        metavar="PATH",
        help="prepare: a folder of photographs or of videos, or a list to fetch (FEC's .csv, Emo135's .json or .csv); also looked for "
        "in DIFFSFSR_DATA; default: those already known. train --from: such a folder, to learn it alone",
    )
    about = "train: on from this model instead of anew: starter (it comes with the package), champion, a version's number or a folder"
    run.add_argument("--from", dest="start", default="", metavar="MODEL", help=about)
    run.add_argument("--name", help="prepare: what to call the data set; default: the folder's name")
    about = "prepare: which faces are held out: published (labels.csv, or the data set's own rule; the default) or whole people (person)"
    run.add_argument("--split", choices=("published", "person"), default="", help=about)
    _settings(run)
    about = (
        "evaluate, midpoints: trained (the preset's newest), shipped, champion, challenger or a version's number; promote: the first two"
    )
    run.add_argument("--model", default="trained", help=about)
    _evaluation(run)
    run.add_argument("--version", type=int, default=0, metavar="N", help="promote: a registered version instead of the newest model")
    run.add_argument("--rollback", action="store_true", help="promote: back to the champion before this one")
    run.add_argument("--why", default="", metavar="TEXT", help="promote: a reason, for the history")
    run.add_argument("--dry-run", action="store_true", help="print the resolved settings, of a training what it costs too, and do nothing")


def _evaluation(run: argparse.ArgumentParser) -> None:
    about = "evaluate: measure another method instead: a baseline, two of them as swap+reenact, or a name for --outputs"
    run.add_argument("--method", default="", metavar="NAME", help=about)
    run.add_argument("--outputs", default="", metavar="DIR", help="evaluate: what another program made of the pairs, with its manifest.csv")
    about = "evaluate: write the pairs as another program needs them; with --method its pictures as scenes, for a second stage"
    run.add_argument("--export-pairs", default="", metavar="DIR", help=about)
    run.add_argument("--study", type=int, metavar="N", help="evaluate: a page that asks people about N items of each method")
    run.add_argument("--out", default="", metavar="FILE", help="evaluate --study: the page, an .html")
    run.add_argument("--answers", nargs="+", default=[], metavar="FILE", help="evaluate: what people answered, CSV or JSON, as tables")
    about = "evaluate: how the 135 words resolve, and how often a classifier names the family in N outputs of a word (default 40)"
    run.add_argument("--words", type=int, nargs="?", const=40, metavar="N", help=about)
    run.add_argument(
        "--ablations", action="store_true", help="evaluate: the preset's trained ablations side by side, as the paper's Table 3"
    )


def _export(words: Any) -> None:
    export = _command(words, "export", "export:export", "write a model as a folder that stands alone, as the one shipped here", json=True)
    export.add_argument("--preset", default="starter")
    about = "trained (the preset's newest), shipped, champion, challenger or a version's number"
    export.add_argument("--model", default="trained", help=about)
    export.add_argument("--out", type=named, metavar="DIR", help="default: the package's own data folder")
    export.add_argument("--notes", type=named, metavar="FILE", help="what was seen by eye, as Markdown for the model card's known failures")


def _settings(command: argparse.ArgumentParser) -> None:
    about = "change a setting of the preset, as training.steps=100"
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=about)


def _weights(words: Any) -> None:
    verbs = words.add_parser(
        "weights", help="the pretrained files: list, bring, check", description="The pretrained files: list, bring, check."
    )
    verbs = verbs.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    _command(verbs, "list", "weights:listed", "every file of the zoo and where it is", json=True)
    _command(verbs, "check", "weights:checked", "read every file that is here and compare its hash; exit 1 where one is wrong", json=True)
    pull = _command(verbs, "pull", "weights:pulled", "bring files, verified", json=True)
    pull.add_argument("name", metavar="NAME", nargs="+", help="a file of `weights list`, a group (sd-1.4, buffalo_l, ...) or a preset")
    pull.add_argument("--mirror", metavar="ADDRESS", help="http(s) address that serves the files; default DIFFSFSR_WEIGHTS_MIRROR")
    pull.add_argument("--accept-licence", action="store_true", help="accept terms that exclude commercial use; asked once, recorded")


if __name__ == "__main__":
    sys.exit(main())
