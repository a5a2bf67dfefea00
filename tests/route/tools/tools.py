"""Documents and functions that the tests of the tool platform share."""

from polytask.route.tools import Document, Parameter


def weather(city: str, days: int = 1) -> dict[str, object]:
    """Forecast the weather of a city.

    Args:
        city: where.
        days: how many days ahead.

    Returns:
        Temperature in degrees and a word.
    """
    return {"city": city, "days": days, "temperature": 20.5}


def double(number: float) -> float:
    """Multiply a number by two."""
    return 2 * number


def note(text: str) -> str:
    """Write a text down."""
    return f"noted: {text}"


def file_documents() -> list[Document]:
    """The example of the paper: a file is opened, read, and has to be closed."""
    path = Parameter("file_path", "string", "Where the file is.", True)
    mode = Parameter("mode", "string", "How it is opened.", False, "r", ("r", "w"))
    handle = Parameter("file", "object", "An opened file.", True)
    return [
        Document(
            "open_local_file",
            (path, mode),
            "Open a file on this machine.",
            Parameter("file", "object"),
            composition="Open before reading; close it by close_local_file.",
            module="files",
        ),
        Document(
            "read_local_file", (handle,), "Read the text of an opened file.", Parameter("text", "string"), module="files"
        ),
        Document("close_local_file", (handle,), "Close an opened file.", module="files", idempotent=False),
        Document(
            "math.factorial",
            (Parameter("number", "integer", "At least 0.", True),),
            "The product of all whole numbers up to one.",
            Parameter("result", "integer"),
            module="math",
        ),
        Document(
            "math.root",
            (Parameter("value", "number", "At least 0.", True),),
            "The square root of a number.",
            Parameter("result", "number"),
            module="math",
        ),
    ]
