"""Average the weights of several checkpoints of one model."""

from pathlib import Path

from lab.cli import Parser, UserError, launch

# isort: split
from fairseq.checkpoint import average

from lab import checkpoint


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="average_checkpoints.py", description=__doc__)
    parser.add_argument("--inputs", nargs="+", type=Path, required=True, metavar="FILE", help="checkpoints to average")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="file to write")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the file that the command line asks for; all but the weights is copied from the first input."""
    args = build_parser().parse_args(argv)
    state = average(args.inputs)
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(args.output, state)
    except OSError as error:
        raise UserError(f"cannot write {args.output}: {error.strerror}") from None
    print(f"{args.output}: mean of {len(args.inputs)} checkpoints")


if __name__ == "__main__":
    launch(main, "average_checkpoints.py")
