"""Where the measurements shipped with bayes_sd lie: in the wheel, or in the checkout."""

from pathlib import Path

from bayes_sd.errors import InputError

PLACES = (Path(__file__).parent / "_traces", Path(__file__).parents[1] / "traces")


def corpus(name: str = "vllm-cpu") -> Path:
    """Folder of a shipped campaign.

    Raises
    ------
    InputError
        If it is not there.
    """
    for place in PLACES:
        if (place / name).is_dir():
            return place / name
    raise InputError(f"The shipped traces {name!r} were not found beside the package.")
