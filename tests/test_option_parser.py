"""What the help of every command leaves out, and what it keeps."""

from dataclasses import dataclass, field

from audiollm.option_parser import HelpFormatter, OptionParser


@dataclass
class Options:
    """Options of every kind."""

    long_name: str | None = field(default=None, metadata={"help": "A name."})
    is_on: bool = field(default=False, metadata={"help": "A flag."})
    several: list[str] = field(default_factory=list, metadata={"help": "A list."})
    formats: list[str] = field(default_factory=lambda: ["json", "parquet"], metadata={"help": "What is written."})
    count: int = field(default=8, metadata={"help": "A number."})


def test_help_says_what_counts() -> None:
    options: type = Options
    parser = OptionParser(options, prog="command", usage="command", formatter_class=HelpFormatter)
    text = " ".join(parser.format_help().split())
    assert "--long_name LONG_NAME A name. --is_on A flag. --several" in text and "A list. --formats" in text
    assert "(default: json parquet)" in text and "(default: 8)" in text
    (parsed,) = parser.parse_args_into_dataclasses(["--is-on", "--several", "a", "b"])
    assert parsed == Options(is_on=True, several=["a", "b"])
