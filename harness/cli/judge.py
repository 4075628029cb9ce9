"""The arguments of ``harness judge``."""

from __future__ import annotations

import argparse

from harness.cli._arguments import (
    above_zero,
    add_assets,
    add_catalogue,
    add_data,
    add_results,
    add_suite,
    assets_from,
    catalogue_from,
    count,
    positive,
    results_from,
    seconds,
)
from harness.commands.requests import JudgeRequest


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_suite(command)
    add_catalogue(command)
    command.add_argument(
        "--judge", required=True, metavar="URL|PATH", help="an OpenAI-compatible endpoint, or a folder with a model"
    )
    command.add_argument("--judge-model", required=True, metavar="NAME", help="as the endpoint knows it")
    command.add_argument(
        "--key-variable", metavar="NAME", help="environment variable with the key (default: OPENAI_API_KEY, if set)"
    )
    command.add_argument("--run", action="append", metavar="RUN", help="this run only, by name or id; may be repeated")
    command.add_argument(
        "--references", default="gpt-4", metavar="NAME", help="who gave the reference answers (default: gpt-4)"
    )
    command.add_argument("--repeats", type=positive, default=1, metavar="K", help="judge everything K times")
    command.add_argument("--max-tokens", type=positive, default=2048, metavar="N", help="of one judgment")
    command.add_argument(
        "--max-tokens-field",
        choices=("max_tokens", "max_completion_tokens"),
        help="name of that field in the request (default: max_tokens, or the other where the endpoint refuses it)",
    )
    command.add_argument(
        "--temperature",
        choices=("protocol", "default"),
        default="protocol",
        help="protocol: 0, unless the endpoint refuses it; default: none is sent, and the endpoint takes its own",
    )
    command.add_argument(
        "--verdict",
        choices=("first", "last"),
        default="first",
        help="which of several ratings in a judgment counts (default: first, as FastChat)",
    )
    command.add_argument("--requests-per-minute", type=_rate, metavar="N", help="calls a minute at most")
    command.add_argument("--concurrency", type=positive, default=1, metavar="N", help="calls at a time")
    command.add_argument(
        "--timeout", type=seconds, default=120.0, metavar="SECONDS", help="how long the judge may stay silent"
    )
    command.add_argument("--max-retries", type=count, default=8, metavar="N", help="tries after the first (default: 8)")
    add_data(command, "a local folder of MT-Bench's files")
    add_results(command)
    add_assets(command)
    command.add_argument("--dry-run", action="store_true", help="count calls and tokens and stop")


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.judge import judge_suite

    request = JudgeRequest(
        judge=args.judge,
        judge_model=args.judge_model,
        key_variable=args.key_variable,
        references=args.references,
        repeats=args.repeats,
        max_tokens=args.max_tokens,
        max_tokens_field=args.max_tokens_field,
        temperature=args.temperature,
        verdict=args.verdict,
        requests_per_minute=args.requests_per_minute,
        concurrency=args.concurrency,
        timeout_seconds=args.timeout,
        max_retries=args.max_retries,
    )
    return judge_suite(
        args.suite,
        request,
        assets_from(args),
        results=results_from(args),
        run_ids=tuple(args.run or ()),
        data=tuple(args.data),
        catalogue=catalogue_from(args),
        dry_run=args.dry_run,
    )


def _rate(text: str) -> float:
    return above_zero(text, "a number of calls a minute above 0")
