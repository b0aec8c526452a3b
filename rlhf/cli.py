"""The command line, `rlhf COMMAND`. User mistakes end in one message and exit code 2."""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf.errors import ConfigError, RlhfError

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 (done), 1 (a check failed) or 2 (a mistake, explained)."""
    arguments = _parse(argv)
    from rlhf.telemetry.logs import configure_logging

    configure_logging(verbose=arguments.verbose)
    # A shell starts background jobs with SIGINT ignored, and asyncio leaves it so: no signal would end the run.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Schedulers end a job by SIGTERM: it deserves the same order as Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        code: int = arguments.command(arguments)
    except RlhfError as error:
        logger.debug("the error came from here", exc_info=True)
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(_interrupted(arguments))
        return 130
    return code


def _interrupted(arguments: argparse.Namespace) -> str:
    """What is said at the end of a command that was interrupted; a pipeline speaks for its stage."""
    if arguments.command is _stage and arguments.tied:
        return ""
    if arguments.command is _pipeline and arguments.redo:
        return "interrupted; the same command, without --redo, goes on\n"
    hints = {_train: "; the same command resumes from the last checkpoint"}
    hints |= dict.fromkeys((_pipeline, _stage, _evaluate, _vision), "; the same command goes on")
    return f"interrupted{hints.get(arguments.command, '')}\n"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may stand before and after options, which argparse alone does not allow."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    options = [word for word in rest if word.startswith("-") or not hasattr(arguments, "overrides")]
    if options:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlhf", description="RL post-training: Ray, vLLM and FSDP2 in one loop."
    )
    parser.add_argument("--verbose", action="store_true", help="log details, and the traceback of a mistake")
    commands = parser.add_subparsers(required=True, metavar="command")

    train = commands.add_parser("train", help="train a recipe; resumes if its run folder holds a checkpoint")
    _recipe_arguments(train)
    train.add_argument("--dry-run", action="store_true", help="print the derived plan and stop")
    train.add_argument("--fresh", action="store_true", help="delete the run folder first")
    train.set_defaults(command=_train)

    _pipeline_arguments(commands)

    check = commands.add_parser(
        "check", help="load every named object, grade every gold and what must not pay; any kind of file"
    )
    _recipe_arguments(check)
    check.add_argument("--rows", type=_count, metavar="N", help="grade only N rows, the same ones every time")
    check.add_argument(
        "--json", type=Path, metavar="FILE", help="also write everything that was found as JSON"
    )
    check.set_defaults(command=_check)

    play = commands.add_parser(
        "play", help="take the model's place: type its turns, see tokens, masks and rewards"
    )
    _recipe_arguments(play)
    play.add_argument(
        "--row", type=_place, default=0, metavar="N", help="which row of task.train (default: 0)"
    )
    play.set_defaults(command=_play)

    evaluate = commands.add_parser(
        "eval", help="measure models on sets, or a recipe's model on its task.heldout; goes on where it was"
    )
    _recipe_arguments(evaluate)
    evaluate.set_defaults(command=_evaluate)

    _vision_arguments(commands)

    report = commands.add_parser(
        "report", help="write report.html for the folder of a run, a pipeline or an evaluation"
    )
    report.add_argument("run_dir", type=Path)
    report.set_defaults(command=_report)

    doctor = commands.add_parser(
        "doctor", help="what is installed, what will be used, what to do about the rest"
    )
    doctor.add_argument("recipe", nargs="?", help="also judge the needs of this recipe")
    doctor.set_defaults(command=_doctor, overrides=[])
    return parser


def _pipeline_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    pipeline = commands.add_parser("pipeline", help="run the stages of a pipeline that are not done yet")
    pipeline.add_argument("pipeline", help="a YAML file")
    _override_arguments(pipeline, example="stages.rl.schedule.num_steps=3")
    pipeline.add_argument("--dry-run", action="store_true", help="draw the stages, what is done and why not")
    pipeline.add_argument("--until", metavar="STAGE", help="only this stage and those that it needs")
    pipeline.add_argument(
        "--redo",
        metavar="STAGE",
        action="append",
        default=[],
        help="run this stage again; its old result stays",
    )
    pipeline.set_defaults(command=_pipeline)

    stage = commands.add_parser("stage", help="run one stage of a pipeline by itself, from its stage.yaml")
    stage.add_argument("file", type=Path)
    stage.add_argument("--tied", action="store_true", help="end when standard input closes")
    _code_dir_argument(stage)
    stage.set_defaults(command=_stage)


def _vision_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    vision = commands.add_parser("vision", help="retrieval alignment: teach a dual encoder taste")
    kinds = vision.add_subparsers(required=True, metavar="train | build-orders | eval | bench")
    for name, said in (
        ("train", "align a retriever; resumes if its run folder holds a checkpoint"),
        ("build-orders", "make the lists of a recipe and write them down"),
        ("eval", "measure a recipe's model on its eval section"),
        ("bench", "compare ways to align, tuned alike; exit code 1 where a gate is missed"),
    ):
        command = kinds.add_parser(name, help=said)
        _recipe_arguments(command)
        command.set_defaults(command=_vision, kind=name)
        if name in ("train", "bench"):
            command.add_argument("--dry-run", action="store_true", help="print the whole recipe and stop")
        if name == "train":
            command.add_argument("--fresh", action="store_true", help="delete the run folder first")
        if name == "build-orders":
            command.add_argument("--out", type=Path, required=True, metavar="FILE", help="a JSONL file")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _place(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return int(text)


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file")
    _override_arguments(parser, example="schedule.num_steps=10")


def _override_arguments(parser: argparse.ArgumentParser, *, example: str) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"for example {example}")
    _code_dir_argument(parser)


def _code_dir_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--code-dir",
        type=Path,
        default=Path(),
        help="first on the path of rewards and mappers (default: here)",
    )


def _train(arguments: argparse.Namespace) -> int:
    from rlhf.config.loading import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    _prepend(arguments.code_dir)
    if arguments.dry_run:
        _print_plan(arguments.recipe, recipe)
        return 0
    from rlhf.execute import execute

    return asyncio.run(execute(recipe, code_dir=arguments.code_dir.resolve(), fresh=arguments.fresh))


def _pipeline(arguments: argparse.Namespace) -> int:
    from rlhf.pipeline.command import pipeline

    if arguments.dry_run and (arguments.until or arguments.redo):
        raise ConfigError(
            "--dry-run draws all stages as they stand: --until and --redo are for runs. Leave out one or the others."
        )
    _prepend(arguments.code_dir)
    return pipeline(
        arguments.pipeline,
        arguments.overrides,
        code_dir=arguments.code_dir.resolve(),
        choice=None if arguments.dry_run else (arguments.until, arguments.redo),
        verbose=arguments.verbose,
    )


def _stage(arguments: argparse.Namespace) -> int:
    from rlhf.pipeline.child import end_with_stdin, run_stage
    from rlhf.pipeline.kinds import execute_stage

    if arguments.tied:
        end_with_stdin()
    _prepend(arguments.code_dir)
    run_stage(arguments.file, code_dir=arguments.code_dir.resolve(), execute=execute_stage)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from rlhf.pipeline.checking import check_file

    _prepend(arguments.code_dir)
    return asyncio.run(
        check_file(
            Path(arguments.recipe),
            arguments.overrides,
            code_dir=arguments.code_dir.resolve(),
            num_rows=arguments.rows,
            json_file=arguments.json,
        )
    )


def _play(arguments: argparse.Namespace) -> int:
    from rlhf.config.loading import load_recipe
    from rlhf.play import play

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    _prepend(arguments.code_dir)
    return asyncio.run(play(recipe, code_dir=arguments.code_dir.resolve(), row=arguments.row))


def _evaluate(arguments: argparse.Namespace) -> int:
    from rlhf.offline.command import evaluate_file

    _prepend(arguments.code_dir)
    code_dir = arguments.code_dir.resolve()
    return asyncio.run(evaluate_file(Path(arguments.recipe), arguments.overrides, code_dir=code_dir))


def _vision(arguments: argparse.Namespace) -> int:
    from rlhf.vision import command

    _prepend(arguments.code_dir)
    path, overrides, code_dir = Path(arguments.recipe), arguments.overrides, arguments.code_dir.resolve()
    if arguments.kind in ("train", "bench") and arguments.dry_run:
        load = command.load_bench if arguments.kind == "bench" else command.load_alignment
        sys.stdout.write(command.resolved(load(path, overrides)))
        return 0
    match arguments.kind:
        case "train":
            return command.train_command(path, overrides, code_dir=code_dir, fresh=arguments.fresh)
        case "build-orders":
            return command.orders_command(path, overrides, code_dir=code_dir, out=arguments.out)
        case "eval":
            return command.eval_command(path, overrides, code_dir=code_dir)
        case _:
            return command.bench_command(path, overrides)


def _report(arguments: argparse.Namespace) -> int:
    from rlhf.reports import write_any_report

    sys.stdout.write(f"{write_any_report(arguments.run_dir)}\n")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from rlhf.config.loading import load_recipe
    from rlhf.doctor import examine, render

    recipe = load_recipe(arguments.recipe, arguments.overrides) if arguments.recipe else None
    return render(examine(recipe))


def _print_plan(path: str, recipe: object) -> None:
    from rich.table import Table

    from rlhf.config.loading import resolved_yaml
    from rlhf.config.schema import Recipe
    from rlhf.plan import derive_plan
    from rlhf.telemetry.logs import TERMINAL

    assert isinstance(recipe, Recipe)
    table = Table(title=f"plan of {path}", show_header=False)
    for what, amount in derive_plan(recipe):
        table.add_row(what, amount)
    sys.stdout.write(resolved_yaml(recipe))
    TERMINAL.print(table)


def _prepend(code_dir: Path) -> None:
    if not code_dir.is_dir():
        raise ConfigError(f"--code-dir: there is no folder {str(code_dir)!r}.")
    sys.path.insert(0, str(code_dir.resolve()))


if __name__ == "__main__":
    sys.exit(main())
